"""Provenance records: inserted once, never changed. The record decides how an attempt ended.

Whoever wants to end a begun attempt (the pool that ran it, a reaper, an agent replaying a spool) inserts its
record first. If one is there already, the outcome *it* has is the one to apply: a reaper that finds
``succeeded`` makes the task done, a pool that finds ``lost`` drops its own result. So a task has at most one
``succeeded`` record, whoever is slow, frozen or wrong about whom.

A stored record is its fields as BSON, of which the digest is taken, and behind them those of the seal (`records.SEAL`).
The server keeps a document's bytes as they came, so `opened` can take the digest again.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import bson
from bson.codec_options import CodecOptions
from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument
from pymongo.errors import BulkWriteError

from pilot.errors import RecordNotFound, StoreUnavailable
from pilot.model import official_record, record_id
from pilot.records import SEAL, Seal
from pilot.states import Outcome
from pilot.store import foreign, tasks
from pilot.store.mongo import Store, duplicates, translating
from pilot.store.tasks import Document, End, chunks
from pilot.values import digest

RawRecord = RawBSONDocument
"""A record as the bytes that are stored; made by `encode`."""

RECORD_BYTES = 8 * 1024 * 1024
"""A record above this is replaced by a minimal one; MongoDB's own limit is twice that."""

_SIZE = struct.Struct("<i")
"""How a document begins; it ends with a NUL."""

_HEAD = struct.Struct("<i5xi")
"""How a document begins: its size, then ``_id``, which the server puts first: a string with its length."""

_CODEC: CodecOptions[Document] = CodecOptions(tz_aware=True)


def encode(
    record: Document, seal: Seal, minimal: Callable[[Document, str], Document]
) -> tuple[RawBSONDocument, Document]:
    """Encode and seal one record, or, if it cannot be stored, the `minimal` record of the same attempt; return which.

    One by one and before the bulk, so that one poison value (a number out of range, a text that is not UTF-8,
    too large) never blocks the records beside it.

    Args:
        record: without the fields of its seal; ``_id`` comes first.
        seal: makes them of the record and of the digest of its bytes.
        minimal: makes a record that can be stored of one that cannot, and why.
    """
    body, why = b"", ""
    try:
        body = bson.encode(record)
        if len(body) > RECORD_BYTES:
            why = f"the record has {len(body)} bytes, at most {RECORD_BYTES} can be stored"
    except (BSONError, OverflowError, UnicodeEncodeError, ValueError, TypeError, RecursionError) as exc:
        why = f"the record cannot be encoded: {exc}"
    if why:
        record = minimal(record, why)
        body = bson.encode(record)
    tail = bson.encode(seal(record, digest(body)))
    size = _SIZE.pack(len(body) + len(tail) - _SIZE.size - 1)
    return RawBSONDocument(b"".join((size, body[_SIZE.size : -1], tail[_SIZE.size :]))), record


def opened(raw: bytes) -> tuple[Document, str]:
    """Return a stored record, and its `digest_of`."""
    doc = bson.decode(raw, _CODEC)
    return doc, digest_of(raw, doc)


def digest_of(raw: bytes, doc: Document) -> str:
    """Return the digest of the bytes of a stored record, which is `doc`, without its seal.

    It is "" if the seal is not at the end. It is judged elsewhere: it is to be the one that the seal says.
    """
    raw = foreign.bare(raw, doc)
    tail = bson.encode({name: doc[name] for name in SEAL if name in doc})[_SIZE.size :]
    if not raw.endswith(tail):  # somebody added a field, or put one in another place
        return ""
    size = len(raw) - len(tail) + 1
    return digest(_SIZE.pack(size), memoryview(raw)[_SIZE.size : size - 1], b"\0")


def stream(store: Store, ids: Sequence[str] | None = None, superseded: bool = False) -> Iterator[bytes]:
    """Yield the bytes of records, for `opened`: of these, or of all, about in the order in which they were written.

    Args:
        store: the database.
        ids: of records; None: all.
        superseded: those of attempts that had been given up as lost, which nobody uses.
    """
    query: Document = {} if ids is None else {"_id": {"$in": list(ids)}}
    with translating("read provenance records", store.where):
        batches: Any = (store.superseded if superseded else store.provenance).find_raw_batches(query)
        for batch in batches:
            yield from foreign.split(batch)


@translating("write provenance records")
def insert(store: Store, records: Sequence[RawBSONDocument]) -> dict[str, Outcome]:
    """Insert records (step 2 of the commit); return the stored outcome of those that were there before.

    Raises:
        StoreUnavailable: repeat the call.
        StoreFull: free space, then repeat.
    """
    there: dict[str, Outcome] = {}
    signatures: dict[str, object] = {}
    if not records:
        return there
    try:
        store.provenance.insert_many(records, ordered=False)
    except BulkWriteError as exc:
        ids = duplicates(exc)
        for part in chunks(ids):
            for doc in store.provenance.find({"_id": {"$in": list(part)}}, ["outcome", "signature"]):
                there[doc["_id"]] = Outcome(doc["outcome"])
                signatures[doc["_id"]] = doc.get("signature")
        _put_once(store.superseded, [one for one in records if _is_superseded(one, signatures)])
        if len(there) < len(ids):  # somebody's insert that may yet be rolled back: nothing is decided
            raise StoreUnavailable("cannot read records that somebody is writing now: repeat it") from exc
    return there


def _is_superseded(record: RawBSONDocument, signatures: Mapping[str, object]) -> bool:
    """Whether another record of the same attempt was there before this link of a chain."""
    name = record["_id"]
    return name in signatures and signatures[name] != record.get("signature") and record["chain"]["seq"] > 0


def settle(store: Store, records: Sequence[RawBSONDocument], ends: Sequence[End]) -> list[End]:
    """Insert the records and return the ends as the store has them: the record decides."""
    there = insert(store, records)
    if not there:
        return list(ends)
    return [end._replace(outcome=there.get(record_id(end.task, end.attempt), end.outcome)) for end in ends]


@translating("read provenance records")
def get(store: Store, ids: Iterable[str], fields: Sequence[str] | None = None) -> dict[str, Document]:
    """Return those records that exist, by id."""
    found: dict[str, Document] = {}
    projection = None if fields is None else list(fields)
    for part in chunks(list(dict.fromkeys(ids))):
        for doc in store.provenance.find({"_id": {"$in": list(part)}}, projection):
            found[doc["_id"]] = doc
    return found


@translating("read provenance records")
def get_raw(
    store: Store, ids: Iterable[str], fields: Sequence[str], outcomes: Collection[Outcome] = ()
) -> dict[str, bytes]:
    """Return those records that exist, by id, as bytes for `decode`: whoever keeps many of them keeps no objects.

    Args:
        store: the database.
        ids: of the records.
        fields: what is read of them.
        outcomes: only records with one of these; empty: all.
    """
    found: dict[str, bytes] = {}
    query: Document = {"outcome": {"$in": [outcome.value for outcome in outcomes]}} if outcomes else {}
    for part in chunks(list(dict.fromkeys(ids))):
        batches: Any = store.provenance.find_raw_batches({"_id": {"$in": list(part)}, **query}, list(fields))
        for batch in batches:
            for one in foreign.split(batch):
                _, length = _HEAD.unpack_from(one)
                found[one[_HEAD.size : _HEAD.size + length - 1].decode()] = one
    return found


def decode(record: bytes) -> Document:
    """Return a record of `get_raw`."""
    return bson.decode(record, _CODEC)


@translating("read a task's records")
def attempts(store: Store, task: str) -> list[Document]:
    """Return all records of one task, first attempt first."""
    found = store.provenance.find({"_id": {"$gte": f"{task}:", "$lt": f"{task};"}})
    return sorted(found, key=lambda doc: int(doc["attempt"]))


def meant(store: Store, text: str) -> list[str]:
    """Return the ids of the records that a person means, the latest attempt last.

    Args:
        store: the database.
        text: a record's id, ``TASK:ATTEMPT``, or a task's: its official record, or all if it has none. The task's part
            may be shortened.

    Raises:
        TaskNotFound: there is no such task, or several.
        RecordNotFound: it has no record yet, or none of this attempt.
    """
    name, colon, attempt = text.partition(":")
    if colon and get(store, [text], ["_id"]):
        return [text]
    task = tasks.resolve(store, name)
    if not colon and (official := official_record(task)):
        return [official]
    ids = [record["_id"] for record in attempts(store, task["_id"])]
    if colon:
        ids = [one for one in ids if one == f"{task['_id']}:{attempt}"]
    if not ids and colon:
        raise RecordNotFound(f"task {task['_id']!r} has no record of attempt {attempt}; `pilot show` lists them")
    if not ids:
        raise RecordNotFound(
            f"task {task['_id']!r} is {task['state']} and has no record yet; `pilot explain {task['_id']}` says why"
        )
    return ids


@translating("store functions")
def put_functions(store: Store, documents: Sequence[Document]) -> None:
    """Store functions by content; those that are there are left.

    But for what was imported: its signature is another project's, and with that our pools would not run it.
    """
    for there in _put_once(store.functions, documents):
        ours = next(doc for doc in documents if doc["_id"] == there)
        store.functions.replace_one({"_id": there, "from": {"$exists": True}}, ours)


@translating("store an environment")
def put_environment(store: Store, document: Document) -> None:
    """Store an environment by content."""
    _put_once(store.environments, [document])


def _put_once(collection: Any, documents: Sequence[Document | RawBSONDocument]) -> list[Any]:
    """Insert documents that are not there; return the ids of the others."""
    if documents:
        try:
            collection.insert_many(documents, ordered=False)
        except BulkWriteError as exc:
            return duplicates(exc)
    return []


@translating("read functions")
def get_functions(store: Store, hashes: Iterable[str]) -> dict[str, Document]:
    """Return the functions of those hashes that exist, by hash."""
    return {doc["_id"]: doc for doc in store.functions.find({"_id": {"$in": list(hashes)}})}


def all_functions(store: Store) -> Iterator[Document]:
    """Yield every function."""
    with translating("read functions", store.where):
        yield from store.functions.find()


def all_environments(store: Store) -> Iterator[Document]:
    """Yield every environment."""
    with translating("read environments", store.where):
        yield from store.environments.find()


@translating("read how far chains have come")
def tips(store: Store) -> dict[str, Document]:
    """Return, of every pool that told, how far its chain of records had come; not verified."""
    return {doc["_id"]: doc["chain"] for doc in store.pools.find({"chain": {"$exists": True}}, ["chain"])}


@translating("read an environment")
def get_environment(store: Store, digest: str) -> Document | None:
    """Return the environment with this hash."""
    found: Document | None = store.environments.find_one({"_id": digest})
    return found
