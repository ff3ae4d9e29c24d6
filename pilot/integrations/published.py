"""What is to be published of a project: some records, all that went into them, and what their values are.

The standards say the same of it, each in its own words: `prov`, `rocrate`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from mimetypes import guess_type
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from pilot import content, environment, values
from pilot.errors import InvalidInput, ObjectCorrupt, ObjectMissing, PackageMissing, TaskNotFound
from pilot.graph import FIELDS as GRAPH_FIELDS
from pilot.graph import Graph, Run, Value, graph_of
from pilot.plain import FORM, dump
from pilot.store import lineage, provenance
from pilot.store.objects import Objects

if TYPE_CHECKING:
    from pilot.client import Project
    from pilot.store.mongo import Store

Document = Mapping[str, Any]

LIMIT = 10_000
"""Records of a document, unless it is told otherwise: they are in memory together."""

TERMS = "https://pypi.org/project/hpc-pilot/#"
"""Namespace of what the standards have no word for."""

FIELDS = sorted(
    {name.partition(".")[0] for name in GRAPH_FIELDS}
    | {"exception", "exit_code", "job", "pilot", "site", "time", "usage"}
)
"""What is read of a record: nothing that signs it, no task's output log."""

# -- packages that need not be installed --------------------------------------------------------------


def package(module: str) -> Any:
    """Return a module of the extra ``standards``.

    Raises:
        PackageMissing: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as exc:
        raise PackageMissing(
            f"cannot publish without the package {module.partition('.')[0]!r}: {exc}; "
            "pip install 'hpc-pilot[standards]'"
        ) from exc


# -- what a value is ----------------------------------------------------------------------------------


class Content(NamedTuple):
    """What a value is, as far as that can be said without running anything of it."""

    kind: str
    """``int float bool str dict list null`` of plain data that the record holds, ``json`` of other plain data;
    ``bytes array pickle``; ``file tree`` of a `pilot.File`; ``unknown`` if its bytes are gone."""
    media_type: str
    suffix: str
    """Of a file that holds its body; empty: as that of its name."""
    plain: Any = values.NOT_NATIVE
    """The value itself, if it is plain data that the record holds."""
    body: Callable[[], memoryview] | None = None
    """Returns its bytes as other programs read them, verified: without our tag; None: they are not to be had."""
    file: Document = MappingProxyType({})
    """Of a file or tree: its ``name``, and the ``hash`` and ``size`` of its bytes."""
    parts: tuple[Content, ...] = ()
    """The files of a tree, or the files and trees that a value of another kind names."""


_BINARY = "application/octet-stream"
_ENCODINGS = {
    b"j": ("json", "application/json", ".json"),
    b"b": ("bytes", _BINARY, ".bin"),
    b"n": ("array", "application/x-npy", ".npy"),
    b"p": ("pickle", "application/x-python-pickle", ".pickle"),
    b"r": ("pickle", "application/x-python-pickle", ".pickle"),
}
"""Tag of an encoding → kind, media type, suffix."""

_UNKNOWN = Content("unknown", _BINARY, "")


def content_of(entry: Document, objects: Objects) -> Content:
    """Return what an input or output of a record is."""
    if "value" in entry:
        plain = entry["value"]
        if (fields := _file_in(plain)) is not None:
            return _file(fields, objects)
        named = _named(values.reencode(plain), objects)
        return Content(kind_of(plain), "application/json", ".json", plain, parts=named)
    data, digest = entry.get("data"), entry["hash"]
    if data is not None:
        return _encoded(bytes(data), lambda: bytes(data), objects)
    if not entry.get("object"):
        return _UNKNOWN
    try:
        return _encoded(objects.get(digest, verify=False), lambda: objects.get(digest), objects)
    except ObjectMissing:
        return _UNKNOWN


def _encoded(data: bytes | memoryview, read: Callable[[], bytes | memoryview], objects: Objects) -> Content:
    known = _ENCODINGS.get(bytes(data[:1]))
    if known is None:
        return _UNKNOWN
    return Content(*known, body=lambda: memoryview(read())[1:], parts=_named(data, objects))


def _named(data: bytes | memoryview, objects: Objects) -> tuple[Content, ...]:
    return tuple(_file(fields, objects) for fields in values.files_in(data))


def _file_in(plain: Any) -> Document | None:
    """Return what the form of a file or directory says, if this is one."""
    form = plain.get(FORM) if isinstance(plain, dict) else None
    if isinstance(form, list) and len(form) == 2 and form[0] == "file" and isinstance(form[1], dict):
        return form[1]
    return None


def _file(fields: Document, objects: Objects) -> Content:
    """Return what a file or directory is; the bytes of what lies in place are not looked for."""
    facts, digest = {name: fields[name] for name in ("name", "hash", "size")}, fields["hash"]
    if fields.get("tree"):
        return Content("tree", _BINARY, "", file=facts, parts=_members(fields, objects))
    kept = "keep" not in fields and objects.exists(digest)
    return Content(
        "file", guess_type(fields["name"])[0] or _BINARY, "",
        body=(lambda: memoryview(objects.get(digest))) if kept else None, file=facts,
    )  # fmt: skip


def _members(fields: Document, objects: Objects) -> tuple[Content, ...]:
    """Return the files of a directory, named by their way in it; none if its manifest is gone."""
    try:
        rows = content.rows(objects.get(fields["hash"]))
    except (ObjectMissing, ObjectCorrupt):
        return ()
    lying = {"keep": fields["keep"]} if "keep" in fields else {}
    return tuple(_file({**row._asdict(), **lying}, objects) for row in rows if row.hash)


def kind_of(tree: Any) -> str:
    """Return what plain data is, in Python's words."""
    for kind in (bool, int, float, str, list, dict):
        if isinstance(tree, kind):
            return kind.__name__
    return "null"


def literal(tree: Any) -> str | int | float | bool:
    """Return plain data as one literal: itself if it is text or a number that JSON has, else its canonical JSON."""
    if isinstance(tree, int) and not isinstance(tree, bool):
        return int(tree)  # the driver has a type of its own for large ones
    if isinstance(tree, str | bool) or (isinstance(tree, float) and math.isfinite(tree)):
        return tree
    return dump(tree)


def error_of(record: Document) -> str:
    """Return why an attempt did not succeed; empty if it did."""
    exception = record.get("exception") or {}
    words = ": ".join(str(exception[key]) for key in ("type", "message") if exception.get(key))
    return environment.scrubbed(words)


# -- reading ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Published:
    """Records with all that went into them."""

    project: str
    id: str
    """Of the project; unlike its name, no other has it."""
    wanted: tuple[str, ...]
    """The records that were asked for."""
    graph: Graph
    """Of these records and those above them."""
    functions: Mapping[str, Document]
    environments: Mapping[str, Document]
    objects: Objects

    def content(self, value: Value) -> Content:
        """Return what a value of the graph is."""
        return content_of(value.entry, self.objects)

    def command(self, run: Run) -> dict[str, Any] | None:
        """Return the command that a run is of, without variables and passwords that are nobody's business."""
        command = run.record.get("command")
        if command is None:
            return None
        kept = [[name, value] for name, value in command.get("env", ()) if environment.harmless(name, value)]
        argv = [environment.scrubbed(word) for word in command["argv"]]
        return {**command, "argv": argv, "env": kept}


def collect(project: Project, ids: Iterable[str], limit: int = LIMIT) -> Published:
    """Read records and all that went into them.

    Args:
        project: an open one.
        ids: as of `provenance.meant`; of a task that did not succeed its last attempt.
        limit: so many records at most.

    Raises:
        TaskNotFound, RecordNotFound: as of `provenance.meant`.
        InvalidInput: none is asked for, or more than `limit` records went into them.
        ObjectMissing, ObjectCorrupt: a list of inputs or outputs that was too long for its record is gone.
    """
    wanted = tuple(dict.fromkeys(provenance.meant(project.store, text)[-1] for text in ids))
    if not wanted:
        raise InvalidInput("nothing to publish: give the id of a task")
    objects = Objects(project.config.objects_folder)
    found = _above(project.store, objects, wanted, limit)
    made = graph_of(found, objects.get)
    hashes = {record["function"] for record in found if record.get("function")}
    digests = {record["environment"] for record in found if record.get("environment")}
    environments = {digest: provenance.get_environment(project.store, digest) for digest in sorted(digests)}
    return Published(
        project.config.name, project.config.id, wanted, made, provenance.get_functions(project.store, sorted(hashes)),
        {digest: doc for digest, doc in environments.items() if doc is not None}, objects,
    )  # fmt: skip


def _above(store: Store, objects: Objects, wanted: Sequence[str], limit: int) -> list[Document]:
    """Return these records and all above them, nearest first."""
    walk = lineage.ancestors(store, objects.get, wanted, limit=limit)
    if walk.cut:
        raise InvalidInput(
            f"cannot publish {wanted[0]!r}: more than {limit:,} records went into it; allow more with --limit"
        )
    found = provenance.get(store, walk.distance, FIELDS)
    gone = next((name for name in wanted if name not in found), None)
    if gone is not None:
        raise TaskNotFound(f"there is no record {gone!r} in this project; `pilot show` lists a task's attempts")
    return [found[name] for name in walk.distance if name in found]
