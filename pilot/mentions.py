"""What documents name in the object repository: values, lists, files, code. Pure, but for what is read to find out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pilot import content, values
from pilot.errors import ObjectDropped
from pilot.records import Get, unpack


class Named(NamedTuple):
    """One content that a document names."""

    hash: str
    kind: str
    """``value``, ``list`` (of inputs, outputs or ranks), ``file``, ``tree`` (its files are named too), ``function``,
    ``module text``."""
    place: bool = False
    """It lies in place: the object repository knows where, and does not have it."""


def objects(record: Mapping[str, Any], get: Get) -> Iterator[str]:
    """Yield the hashes of the objects that a record names: values of its inputs and outputs, lists of them, and files.

    Some may be named twice. The input of a link is an output of another record, which names it.

    Args:
        record: whole, or with its inputs, outputs and placement.
        get: reads an object.
    """
    for named in of_record(record, get):
        if not named.place:
            yield named.hash


def of_record(record: Mapping[str, Any], get: Get) -> Iterator[Named]:
    """Yield all that `objects` does, and the files that lie in place.

    Raises:
        ObjectMissing, ObjectCorrupt: a list, a large value that names files, or the manifest of a tree cannot be read.
    """
    for name in ("inputs", "outputs", "placement"):
        stored = record.get(name, ())
        if isinstance(stored, Mapping):
            yield Named(stored["object"], "list")
        if name != "placement":
            for entry in unpack(stored, get):
                yield from _named_by(entry, get)


def _named_by(entry: Mapping[str, Any], get: Get) -> Iterator[Named]:
    """Yield what one input or output names; also one of a task's document."""
    if "source" in entry:
        return
    data: bytes | memoryview
    if "value" in entry:
        data = values.reencode(entry["value"])
    elif "data" in entry:
        data = bytes(entry["data"])
    else:
        yield Named(entry["hash"], "value")
        try:
            data = get(entry["hash"]) if "files" in entry else b""
        except ObjectDropped:  # what it named was given up with it
            return
    for fields in values.files_in(data):
        digest, tree, place = fields["hash"], "tree" in fields, "keep" in fields
        if tree:
            yield Named(digest, "tree")  # its manifest, which is kept even if it lies in place
        if place or not tree:
            yield Named(digest, "tree" if tree else "file", place)
        else:
            try:
                manifest = get(digest)
            except ObjectDropped:
                continue
            yield from (Named(row.hash, "file") for row in content.rows(manifest) if row.hash)


def of_task(doc: Mapping[str, Any], get: Get) -> Iterator[Named]:
    """Yield what the document of a task names; as `of_record`."""
    stored = doc["inputs"]
    if isinstance(stored, Mapping):
        yield Named(stored["object"], "list")
    for entry in unpack(stored, get):
        yield from _named_by(entry, get)


def of_function(doc: Mapping[str, Any]) -> Iterator[Named]:
    """Yield what the document of a function names: its pickle if that is large, the text of its module."""
    pickle = doc.get("pickle") or {}
    if pickle and "data" not in pickle:
        yield Named(pickle["hash"], "function")
    if doc.get("module_text"):
        yield Named(doc["module_hash"], "module text")
