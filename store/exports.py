"""From the store to an archive: tasks with all their records, and everything that these were made of.

The unit is a task that has ended: its document, the records of all its attempts, and the same of every task whose
output it used. Ids are held in memory, documents and objects pass through it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bson

from pilot import manifest, mentions, records
from pilot.admission import LIVE_FIELDS
from pilot.errors import InvalidInput
from pilot.manifest import Manifest
from pilot.model import record_id
from pilot.states import ENDED, Kind
from pilot.store import foreign, lineage, provenance, tasks
from pilot.store.archive import Signature, Writer
from pilot.store.mongo import Store, translating
from pilot.store.objects import Objects
from pilot.store.tasks import Document

_ENDED = [state.value for state in ENDED]


@dataclass(frozen=True, slots=True)
class Exported:
    """What an archive got."""

    manifest: Manifest
    unended: int
    """Tasks that were asked for and have not ended; they are not in it."""


# -- what is asked for ------------------------------------------------------------------------------


def asked_for(store: Store, names: Sequence[str] = (), tag: str | None = None) -> Iterator[str]:
    """Yield the ids of the tasks that are asked for.

    Args:
        store: the database.
        names: ids of tasks, which may be shortened, or of records; none: all tasks.
        tag: without names, only those with it.

    Raises:
        TaskNotFound: there is none of this name, or several fit.
        InvalidInput: one that is named has not ended.
    """
    for name in names:
        doc = tasks.resolve(store, name.partition(":")[0])
        if doc["state"] not in _ENDED:
            raise InvalidInput(f"cannot export task {doc['_id']!r}: it is {doc['state']}; wait for its end")
        yield doc["_id"]
    if not names:
        query: Document = {"kind": {"$ne": Kind.JOIN.value}}
        if tag is not None:
            query["tags"] = tag
        with translating("list tasks", store.where):
            for doc in store.tasks.find(query, {"_id": 1}):
                yield doc["_id"]


# -- the archive ------------------------------------------------------------------------------------


def export(
    store: Store, objects: Objects, path: Path, about: Manifest, wanted: Iterable[str], *,
    values: bool = True, sign: Signature | None = None, advance: Callable[[int], None] = lambda count: None,
) -> Exported:  # fmt: skip
    """Write an archive of tasks and of all that they came from.

    A project may go on working meanwhile: what ends later is not in it, and what is in it is whole.

    Args:
        store: the database.
        objects: the object repository.
        path: of the archive; nothing may have that name.
        about: the manifest's head.
        wanted: ids of tasks; those that have not ended are left out.
        values: with the objects that values are; without, only lists too long for a document, which links need.
        sign: signs the manifest.
        advance: told how many more tasks are written.

    Raises:
        ArchiveError: the file cannot be written, or exists.
        ObjectCorrupt: an object is damaged. Nothing is left of the archive.
    """
    with Writer(path) as writer:
        work = _Export(store, objects, writer, values, advance)
        work.tasks(wanted)
        work.named()
        absent = work.objects()
        return Exported(writer.finish(about, absent, sign), work.unended)


class _Chunks:
    """Documents of one kind on their way into entries of some size."""

    def __init__(self, writer: Writer, kind: str) -> None:
        self._writer = writer
        self._kind = kind
        self._parts: list[bytes] = []
        self._size = self._number = 0

    def add(self, raw: bytes) -> None:
        """Add a document."""
        if self._size and self._size + len(raw) > manifest.CHUNK_BYTES:
            self.flush()
        self._parts.append(raw)
        self._size += len(raw)

    def flush(self) -> None:
        """Write what there is."""
        if self._parts:
            name = manifest.chunk_entry(self._kind, self._number)
            self._writer.put(name, b"".join(self._parts), len(self._parts))
            self._parts, self._size, self._number = [], 0, self._number + 1


class _Export:
    """What is known while an archive is written."""

    def __init__(
        self, store: Store, objects: Objects, writer: Writer, values: bool, advance: Callable[[int], None]
    ) -> None:
        self.unended = 0
        self._store = store
        self._objects = objects
        self._writer = writer
        self._values = values
        self._advance = advance
        self._seen: set[str] = set()
        self._code: dict[str, dict[str, None]] = {"functions": {}, "environments": {}}
        self._wanted: dict[bytes, None] = {}
        """Objects, by the bytes of their hashes: a third of the memory."""
        self._named: set[bytes] = set()
        """Objects that are left out."""

    # -- tasks and records --------------------------------------------------------------------------

    def tasks(self, wanted: Iterable[str]) -> None:
        """Write tasks, and level by level those whose outputs they used, with all records; each once."""
        out = {kind: _Chunks(self._writer, kind) for kind in ("tasks", "records")}
        for batch in tasks.batches(wanted):
            level: list[str] = batch
            while level:
                above: dict[str, None] = {}
                for part in tasks.chunks(self._new(level)):
                    above |= self._take(part, out)
                level = list(above)
        for chunk in out.values():
            chunk.flush()

    def _new(self, ids: Iterable[str]) -> list[str]:
        new = [task for task in dict.fromkeys(ids) if task not in self._seen]
        self._seen.update(new)
        return new

    def _take(self, ids: Sequence[str], out: Mapping[str, _Chunks]) -> dict[str, None]:
        """Write some tasks with their records; return the tasks whose outputs these used."""
        attempts: list[str] = []
        above: dict[str, None] = {}
        with translating("read tasks", self._store.where):
            for raw in foreign.raw(self._store.tasks, {"_id": {"$in": list(ids)}}):
                doc = provenance.decode(raw)
                if doc["kind"] == Kind.JOIN:
                    continue
                if doc["state"] not in _ENDED:
                    self.unended += 1
                    continue
                # By the number of the attempt that ended it: a retry that ends meanwhile is not half in the archive.
                attempts += [record_id(doc["_id"], number) for number in range(1, doc["attempt"] + 1)]
                self._name("functions", doc.get("function"))
                self._want(mentions.of_task(doc, self._objects.get))
                above |= dict.fromkeys(doc.get("pending", ()))  # of one that failed upstream: why
                out["tasks"].add(bson.encode({key: value for key, value in doc.items() if key not in LIVE_FIELDS}))
                self._advance(1)
        with translating("read provenance records", self._store.where):
            for part in tasks.chunks(attempts):
                for raw in foreign.raw(self._store.provenance, {"_id": {"$in": list(part)}}):
                    out["records"].add(raw)
                    above |= dict.fromkeys(self._look_into(provenance.decode(raw)))
        return above

    def _look_into(self, record: Document) -> Iterator[str]:
        """Note what a record names; yield the tasks whose outputs it used."""
        self._name("functions", record.get("function"))
        self._name("environments", record.get("environment"))
        self._want(mentions.of_record(record, self._objects.get))
        for used in used_records(record, self._objects.get):
            yield used.rpartition(":")[0]

    def _name(self, kind: str, hash: Any) -> None:
        if hash:
            self._code[kind][hash] = None

    def _want(self, named: Iterable[mentions.Named]) -> None:
        """Note contents for later; of files that lie in place there is nothing but the hash."""
        for one in named:
            if one.place:
                continue
            if self._values or one.kind == "list":
                self._wanted[bytes.fromhex(one.hash)] = None
            else:
                self._named.add(bytes.fromhex(one.hash))

    # -- what they name -----------------------------------------------------------------------------

    def named(self) -> None:
        """Write the functions and environments that tasks and records name."""
        for kind, hashes in self._code.items():
            out = _Chunks(self._writer, kind)
            collection = self._store.database[kind]
            for part in tasks.chunks(list(hashes)):
                with translating(f"read {kind}", self._store.where):
                    for raw in foreign.raw(collection, {"_id": {"$in": list(part)}}):
                        out.add(raw)
                        self._want(mentions.of_function(provenance.decode(raw)))
            out.flush()

    def objects(self) -> list[str]:
        """Write the objects; return those that are named and not in the archive."""
        absent = [hash.hex() for hash in self._named if hash not in self._wanted]
        for key in self._wanted:
            hash = key.hex()
            if self._objects.exists(hash):
                self._writer.put_object(hash, self._objects.size(hash), self._objects.pieces(hash))
            else:
                absent.append(hash)
        return sorted(absent)


def used_records(record: Document, get: records.Get) -> Iterator[str]:
    """Yield the records whose outputs went into this one."""
    yield from lineage.sources(records.unpack(record["inputs"], get))
    if record.get("cached_from"):
        yield record["cached_from"]
