"""Whether documents of an archive have the form of those that pilot writes. Pure.

Anybody may have made an archive: what is shown, walked and compared later must not stumble over it. Whether it is
true, only signatures tell.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pilot import environment, functions
from pilot.errors import ArchiveError, PilotError
from pilot.model import record_id
from pilot.records import Document, Get, unpack
from pilot.states import ENDED, Kind, Outcome, State
from pilot.values import digest

LIVE_FIELDS = frozenset({"lease", "leased", "cancel", "unchecked", "unreleased", "revive", "awaited", "client"})
"""Of a task's document: what only means something to the pools and sessions of its own project."""

_HASH = re.compile(r"[0-9a-f]{64}")
_PROJECT = re.compile(r"[\w-]{1,64}", re.ASCII)

_TASK: Mapping[str, type | tuple[type, ...]] = {
    "_id": str, "kind": str, "name": str, "function": (str, type(None)), "command": (dict, type(None)),
    "inputs": (list, dict), "class": str, "priority": int, "bucket": int, "seq": int, "retries": int, "waits": str,
    "state": str, "attempt": int, "tried": int, "lost": int, "rev": int, "submitted": datetime, "signature": bytes,
}  # fmt: skip
_RECORD: Mapping[str, type | tuple[type, ...]] = {
    "_id": str, "task": str, "attempt": int, "token": str, "outcome": str, "inputs": (list, dict),
    "outputs": (list, dict), "time": dict, "task_signature": bytes, "signature": bytes,
}  # fmt: skip
_FUNCTION: Mapping[str, type | tuple[type, ...]] = {
    "_id": str, "module": str, "qualname": str, "source": str, "source_hash": str, "module_hash": str, "python": str,
    "signature": bytes,
}  # fmt: skip


def check_task(doc: Document, get: Get) -> None:
    """Check a task: it has ended, and nothing of it would make a pool look at it. `get` reads a list of inputs.

    Raises:
        ArchiveError: it is not one that was exported.
    """
    _fields("task", doc, _TASK)
    name, state = doc["_id"], doc["state"]
    if ":" in name or not name:
        raise ArchiveError(f"{name!r:.100} is not the id of a task")
    if state not in set(ENDED) or doc["kind"] not in set(Kind) - {Kind.JOIN}:
        raise ArchiveError(f"task {name!r:.100} is a {doc['kind']!r:.40} and {state!r:.40}, which is no end")
    if live := sorted(LIVE_FIELDS & doc.keys()):
        raise ArchiveError(f"task {name!r:.100} has the field {live[0]!r}, which nothing has that has ended")
    official, done = doc.get("official", 0), state == State.DONE
    if not isinstance(official, int) or official > doc["attempt"] or (done and official != doc["attempt"]):
        raise ArchiveError(f"task {name!r:.100} is {state} and does not name the attempt that ended it")
    pending = doc.get("pending", [])
    if not isinstance(pending, list) or not all(type(item) is str for item in pending):
        raise ArchiveError(f"task {name!r:.100} waits for something that is no task")
    if not _are_remarks(doc):
        raise ArchiveError(f"task {name!r:.100} has tags, groups or notes in a form that is not known")
    if not all(_is_input(entry) for entry in _listed("task", doc, "inputs", get)):
        raise ArchiveError(f"task {name!r:.100}: one of its inputs has a form that is not known")
    _origin("task", doc)


def check_record(doc: Document, get: Get) -> None:
    """Check a record, and the lists that are too long for it, which `get` reads.

    Raises:
        ArchiveError: it is not one that was exported.
    """
    _fields("record", doc, _RECORD)
    name = doc["_id"]
    if name != record_id(doc["task"], doc["attempt"]) or doc["attempt"] < 1:
        raise ArchiveError(
            f"record {name!r:.100} is not that of attempt {doc['attempt']!r} of task {doc['task']!r:.100}"
        )
    if doc["outcome"] not in set(Outcome):
        raise ArchiveError(f"record {name!r:.100} has the outcome {doc['outcome']!r:.40}, which there is not")
    for field in ("inputs", "outputs"):
        if not all(_is_entry(entry) for entry in _listed("record", doc, field, get)):
            raise ArchiveError(f"record {name!r:.100}: one of its {field} has a form that is not known")
    placement = doc.get("placement", [])
    if not (isinstance(placement, list) or (isinstance(placement, dict) and _is_hash(placement.get("object")))):
        raise ArchiveError(f"record {name!r:.100} has a placement in a form that is not known")
    _origin("record", doc)


def check_function(doc: Document) -> None:
    """Check that a function is what its hash says.

    Raises:
        ArchiveError: it is not.
    """
    _fields("function", doc, _FUNCTION)
    source, pickle, kin = doc["source"], doc.get("pickle"), doc.get("kin", [])
    if pickle is not None:
        if not (isinstance(pickle, dict) and _is_hash(pickle.get("hash")) and isinstance(pickle.get("size"), int)):
            raise ArchiveError(f"function {doc['_id']!r:.100} has a pickle in a form that is not known")
        if "data" in pickle and (type(pickle["data"]) is not bytes or digest(pickle["data"]) != pickle["hash"]):
            raise ArchiveError(f"function {doc['_id']!r:.100} has a pickle with another hash than it says")
    if not isinstance(kin, list) or not all(map(_is_hash, kin)):
        raise ArchiveError(f"function {doc['_id']!r:.100} has classes in a form that is not known")
    text = digest(source.encode("utf-8", "surrogatepass")) if source else ""
    if text != doc["source_hash"] or functions.identity(functions.code_from(doc)) != doc["_id"]:
        raise ArchiveError(f"function {doc['_id']!r:.100} is not what its hash says")
    _origin("function", doc)


def check_environment(doc: Document) -> None:
    """Check that an environment is what its hash says.

    Raises:
        ArchiveError: it is not.
    """
    try:
        found = environment.identity({key: value for key, value in doc.items() if key != "_id"})
    except PilotError as exc:
        raise ArchiveError(f"environment {doc.get('_id')!r:.100} cannot be read: {exc}") from exc
    if found != doc.get("_id"):
        raise ArchiveError(f"environment {doc.get('_id')!r:.100} is not what its hash says")


def origin_of(doc: Document, project: str) -> str:
    """Return the project that a checked document comes from, which is `project` unless it says otherwise."""
    return str(doc["from"]["project"]) if "from" in doc else project


def _fields(kind: str, doc: Document, expected: Mapping[str, type | tuple[type, ...]]) -> None:
    for name, kinds in expected.items():
        if not isinstance(doc.get(name), kinds) or isinstance(doc.get(name), bool):
            raise ArchiveError(f"{kind} {doc.get('_id')!r:.100} has no proper {name!r}: {doc.get(name)!r:.60}")


def _origin(kind: str, doc: Document) -> None:
    if "from" not in doc:
        return
    origin = doc["from"]
    project = origin.get("project") if isinstance(origin, dict) else None
    if not isinstance(project, str) or not _PROJECT.fullmatch(project):
        raise ArchiveError(f"{kind} {doc['_id']!r:.100} does not say rightly which project it comes from")


def _listed(kind: str, doc: Document, field: str, get: Get) -> list[Any]:
    """Return a list that may be an object."""
    stored = doc[field]
    if isinstance(stored, dict) and not (_is_hash(stored.get("object")) and isinstance(stored.get("count"), int)):
        raise ArchiveError(f"{kind} {doc['_id']!r:.100}: its {field} are neither a list nor an object")
    try:
        return unpack(stored, get)
    except (PilotError, TypeError) as exc:
        raise ArchiveError(f"{kind} {doc['_id']!r:.100}: its {field} cannot be read: {exc}") from exc


def _are_remarks(doc: Document) -> bool:
    """Whether what people say of a task has the form in which pilot writes it."""
    words = [*_items(doc, "tags"), *_items(doc, "groups")]
    notes = _items(doc, "notes")
    kinds = {"time": datetime, "user": str, "text": str}
    return all(type(word) is str for word in words) and all(
        isinstance(note, dict) and all(isinstance(note.get(name), kind) for name, kind in kinds.items())
        for note in notes
    )


def _items(doc: Document, field: str) -> list[Any]:
    found = doc.get(field, [])
    return found if isinstance(found, list) else [None]


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and _HASH.fullmatch(value) is not None


def _is_entry(entry: Any) -> bool:
    """Whether an input or output has the form of one."""
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not _is_hash(entry.get("hash")):
        return False
    source = entry.get("source", {"record": "", "output": ""})
    named = isinstance(source, dict) and all(isinstance(source.get(key), str) for key in ("record", "output"))
    return named and isinstance(entry.get("size"), int)


def _is_input(entry: Any) -> bool:
    """Whether an input of a task has the form of one."""
    if not _is_entry(entry) or not isinstance(entry.get("data", b""), bytes):
        return False
    links = entry.get("links", [])
    return isinstance(links, list) and all(
        isinstance(link, list) and len(link) == 3 and isinstance(link[0], str) and isinstance(link[1], str)
        for link in links
    )
