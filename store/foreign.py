"""Documents of other projects: a last field ``from`` says where one came from; all before it is as it was there."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import bson

from pilot.errors import InvalidInput
from pilot.states import Kind, State
from pilot.store.mongo import Store, translating
from pilot.store.tasks import Document

_SIZE = struct.Struct("<i")

FIELD = "from"


def stamp(raw: bytes, origin: Mapping[str, Any]) -> bytes:
    """Return a document with the field ``from`` behind its others, whose bytes stay as they are."""
    tail = bson.encode({FIELD: origin})[_SIZE.size :]
    return _SIZE.pack(len(raw) - 1 + len(tail)) + raw[_SIZE.size : -1] + tail


def bare(raw: bytes, doc: Document) -> bytes:
    """Return a stored document, which is `doc`, as it was in the project that it comes from."""
    if FIELD not in doc:
        return raw
    tail = bson.encode({FIELD: doc[FIELD]})[_SIZE.size :]
    if not raw.endswith(tail):  # somebody has put it in another place
        return bson.encode({key: value for key, value in doc.items() if key != FIELD})
    return _SIZE.pack(len(raw) - len(tail) + 1) + raw[_SIZE.size : -len(tail)] + b"\0"


def raw(collection: Any, query: Mapping[str, Any], fields: Mapping[str, int] | None = None) -> Iterator[bytes]:
    """Yield the bytes of the documents that a query finds."""
    for batch in collection.find_raw_batches(query, fields):
        yield from split(batch)


def split(batch: bytes) -> Iterator[bytes]:
    """Yield the documents of a batch that the server sent."""
    start = 0
    while start < len(batch):
        (size,) = _SIZE.unpack_from(batch, start)
        yield batch[start : start + size]
        start += size


@translating("store a task that is done")
def adopt(store: Store, task: str, name: str, attempt: int, now: datetime) -> None:
    """Store a task that was done in another project, so that others can use its record, which was put in before."""
    store.tasks.insert_one(
        {
            "_id": task, "kind": Kind.FUNCTION.value, "name": name, "state": State.DONE.value, "attempt": attempt,
            "official": attempt, "rev": 0, "submitted": now, "ended": now,
        }
    )  # fmt: skip


def refuse(doc: Document) -> None:
    """Refuse to run a task of another project.

    Raises:
        InvalidInput: it was imported.
    """
    if "from" in doc:
        raise InvalidInput(
            f"cannot retry task {doc['_id']!r}: it was imported from the project {doc['from']['project']!r}, of which "
            "nothing is run here; submit a task of your own"
        )
