"""From an archive to the store: everything is checked first, then stored, what is named before what names it.

Two passes over the archive. The first one reads all documents, changes nothing, and refuses the archive as a whole if
one of them is altered, has a form that is not known, does not verify although we have the key, or is here already with
other content. The second one stores objects, environments, functions, records and tasks. Each step can be repeated and
finds what is there: an import that was interrupted is completed by the next, and two at once do no harm.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import bson
from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument
from pymongo.errors import BulkWriteError

from pilot import admission, audit, mentions, records, signing
from pilot.errors import (
    ArchiveConflict,
    ArchiveError,
    NotTrusted,
    ObjectCorrupt,
    ObjectDropped,
    ObjectStoreFull,
    SignatureError,
)
from pilot.functions import code_from
from pilot.manifest import FORMAT, KINDS, object_entry
from pilot.model import SCHEMA, record_id
from pilot.states import GOOD, State
from pilot.store import care, foreign, provenance, schema, tasks
from pilot.store.archive import Reader
from pilot.store.exports import used_records
from pilot.store.mongo import Store, duplicates, translating
from pilot.store.objects import Objects
from pilot.store.tasks import Document

_FIXED = (
    "kind", "name", "function", "command", "inputs", "class", "fresh", "gather", "folder", "waits", "submitted",
    "signature",
)  # fmt: skip
"""Of a task: what never changes. Two documents that agree in it are of the same task."""

_STATE = ("state", "reason", "message", "attempt", "tried", "lost", "official", "ended", "rev", "pending")
"""Of a task: how far it has come. An archive that knows more brings it up to date here."""


Pair = tuple[bytes, Document]
"""A document as it is stored, and decoded."""


@dataclass(slots=True)
class Imported:
    """What an import found and did."""

    new: dict[str, int] = field(default_factory=lambda: dict.fromkeys((*KINDS, "objects"), 0))
    """Stored, or, in a dry run, to be stored; objects of which the archive has the bytes."""
    same: dict[str, int] = field(default_factory=lambda: dict.fromkeys((*KINDS, "objects"), 0))
    """Here already."""
    updated: int = 0
    """Tasks imported earlier that have come further since."""
    signed: bool = False
    """The archive is signed as a whole, and that was verified."""
    verified: dict[str, bool] = field(default_factory=dict)
    """Project that documents come from → whether its key is here and all of them verified."""


def import_(
    store: Store, objects: Objects, reader: Reader, signer: signing.Signer, now: datetime, *,
    dry_run: bool = False, advance: Callable[[int], None] = lambda count: None,
) -> Imported:  # fmt: skip
    """Take over what an archive holds and this project does not have yet. Repeatable.

    Args:
        store: the database.
        objects: the object repository.
        reader: the archive, open.
        signer: this project's, which knows the keys that are trusted.
        now: the time (UTC).
        dry_run: check everything, also objects, and store nothing.
        advance: told how many more documents are done; each is looked at twice, in a dry run once.

    Raises:
        ArchiveError: something in it is altered or has a wrong form; nothing was stored but objects that are right.
        ArchiveConflict: something is here already with other content; nothing was stored.
        SignatureError: something does not verify although its key is here; nothing was stored.
        ObjectStoreFull: there is no room for the objects; nothing was stored.
    """
    work = _Import(store, objects, reader, signer, advance)
    work.check()
    work.take_objects(dry_run)
    if not dry_run:
        about = reader.manifest
        note = {
            "project": about.project, "name": about.name, "pilot": about.pilot, "created": about.created,
            "asked": about.asked, "imported": now,
        }  # fmt: skip
        with translating("write an archive down", store.where):
            store.archives.update_one({"_id": about.archive}, {"$setOnInsert": note}, upsert=True)
        work.store_documents()
    return work.found


def verify_signature(reader: Reader, signer: signing.Signer) -> bool:
    """Verify the signature of an archive; return False if it has none or its project's key is not here.

    Raises:
        SignatureError: it does not fit.
    """
    signed = reader.signature()
    if signed is None:
        return False
    try:
        by = signer.of(reader.manifest.project)
    except NotTrusted:
        return False
    by.verify("archive", FORMAT, signed[0].hex(), signed[1])
    return True


class _Import:
    """One import on its way."""

    def __init__(
        self, store: Store, objects: Objects, reader: Reader, signer: signing.Signer, advance: Callable[[int], None]
    ) -> None:
        self.found = Imported()
        self._store = store
        self._objects = objects
        self._reader = reader
        self._signer = signer
        self._advance = advance
        self._project = reader.manifest.project
        self._absent = reader.absent()
        self._official: dict[str, int] = {}
        """Task of the archive → number of its official attempt, negative until its record is seen; 0: not done."""
        self._elsewhere: dict[str, str] = {}
        """Task → project that it comes from, of those from another one than the archive."""
        self._signers: dict[str, signing.Signer | None] = {}
        self._remarked: set[str] = set()
        """Which of the `schema.REMARK_INDEXES` have to find something of it."""
        self._settled: set[str] = set()
        """Entries of which everything is here already."""
        self._checks = {
            "environments": self._check_environments, "functions": self._check_functions,
            "records": self._check_records, "tasks": self._check_tasks,
        }  # fmt: skip

    # -- the first pass ------------------------------------------------------------------------------

    def check(self) -> None:
        """Look at everything but the bytes of objects, and change nothing."""
        self.found.signed = verify_signature(self._reader, self._signer)
        for _ in self._reader.objects():
            pass
        for kind in ("environments", "functions", "tasks", "records"):  # records are compared with their tasks
            for entry, documents in self._reader.documents(kind):
                try:
                    self._check_entry(kind, entry, [(raw, _decoded(raw)) for raw in documents])
                except (ArchiveError, SignatureError) as exc:
                    raise type(exc)(f"entry {entry!r} of the archive: {exc}; nothing was imported") from exc
                self._advance(len(documents))
        unseen = [record_id(task, -number) for task, number in self._official.items() if number < 0]
        self._records_are_here(unseen, "a task that is done names the record")

    def _check_entry(self, kind: str, entry: str, pairs: Sequence[Pair]) -> None:
        updated = self.found.updated
        new = self._checks[kind](pairs)
        self.found.new[kind] += new
        self.found.same[kind] += len(pairs) - new
        if not new and self.found.updated == updated:
            self._settled.add(entry)

    def _check_environments(self, pairs: Sequence[Pair]) -> int:
        for _, doc in pairs:
            admission.check_environment(doc)
        return len(pairs) - len(self._stored("environments", pairs))

    def _check_functions(self, pairs: Sequence[Pair]) -> int:
        for _, doc in pairs:
            admission.check_function(doc)
            for named in mentions.of_function(doc):
                self._object_is_there(named.hash, f"function {doc['_id']!r}")
            if (by := self._signer_of(doc)) is not None:
                by.verify("function", SCHEMA, signing.function_fields(code_from(doc)), doc["signature"])
        return len(pairs) - len(self._stored("functions", pairs))

    def _check_tasks(self, pairs: Sequence[Pair]) -> int:
        pending: set[str] = set()
        for _, doc in pairs:
            self._remarked |= schema.REMARK_INDEXES.keys() & doc.keys()
            admission.check_task(doc, self._get)
            name, origin = doc["_id"], admission.origin_of(doc, self._project)
            if name in self._official:
                raise ArchiveError(f"task {name!r} is in the archive twice")
            self._official[name] = -doc["official"] if doc["state"] == State.DONE else 0
            if origin != self._project:
                self._elsewhere[name] = origin
            for named in mentions.of_task(doc, self._get):
                if not named.place:
                    self._object_is_there(named.hash, f"task {name!r}")
            if (by := self._signer_of(doc)) is not None:
                inputs = records.unpack_inputs(doc["inputs"], self._get)
                by.verify("task", SCHEMA, signing.task_fields(doc, inputs), doc["signature"])
            if origin != self._signer.project:
                pending.update(doc.get("pending", ()))
        stored = self._stored("tasks", pairs)
        self._compare_tasks(pairs, stored)
        for part in tasks.chunks(sorted(pending)):
            query = {"_id": {"$in": list(part)}, "from": {"$exists": False}}
            with translating("read tasks", self._store.where):
                ours = self._store.tasks.find_one(query, ["_id"])
            if ours is not None:
                raise ArchiveError(f"a task of another project waits for {ours['_id']!r}, a task of this one")
        return len(pairs) - len(stored)

    def _compare_tasks(self, pairs: Sequence[Pair], stored: dict[str, Pair]) -> None:
        for _, doc in pairs:
            name = doc["_id"]
            if name not in stored:
                continue
            there = stored[name][1]
            ours = "from" not in there
            if ours != (admission.origin_of(doc, self._project) == self._signer.project):
                raise ArchiveConflict(f"task {name!r} is here already, and is another project's")
            for key in _FIXED:
                if doc.get(key) != there.get(key):
                    raise ArchiveConflict(f"task {name!r} is here already with another {key!r}")
            if ours and doc["attempt"] > there["attempt"]:
                raise ArchiveConflict(
                    f"task {name!r} is this project's own, at attempt {there['attempt']} here and {doc['attempt']} "
                    "in the archive: this database is older than the archive; restore a backup instead"
                )
            if not ours and doc["rev"] > there["rev"]:
                self.found.updated += 1

    def _check_records(self, pairs: Sequence[Pair]) -> int:
        stored = self._stored("provenance", pairs)
        sources: set[str] = set()
        for raw, doc in pairs:
            name = doc["_id"]
            admission.check_record(doc, self._get)
            self._check_task_of(doc)
            if name in stored and foreign.bare(raw, doc) != foreign.bare(*stored[name]):
                raise ArchiveConflict(f"record {name!r} is here already with other content")
            for hash in mentions.objects(doc, self._get):
                self._object_is_there(hash, f"record {name!r}")
            if wrong := audit.check_digest(doc, provenance.digest_of(raw, doc)):
                raise ArchiveError(f"record {name!r}: {wrong}")
            if (by := self._signer_of(doc)) is not None:
                records.verify({key: value for key, value in doc.items() if key != "from"}, by)
            for used in used_records(doc, self._get):
                task = used.rpartition(":")[0]
                official = abs(self._official.get(task, 0))
                if not official or used != record_id(task, official):
                    sources.add(used)
        self._records_are_here(sorted(sources), "a record uses an output of")
        return len(pairs) - len(stored)

    def _check_task_of(self, record: Document) -> None:
        """Compare a record with its task, and note that it was seen if it is the official one."""
        name, task = record["_id"], record["task"]
        official = self._official.get(task)
        if official is None or self._elsewhere.get(task, self._project) != admission.origin_of(record, self._project):
            raise ArchiveError(f"record {name!r} is of a task that the archive does not hold")
        if record["outcome"] in set(GOOD):
            if official != -record["attempt"]:
                raise ArchiveError(
                    f"record {name!r} succeeded and is not the one that its task names, or is there twice"
                )
            self._official[task] = -official
        elif abs(official) == record["attempt"]:
            raise ArchiveError(f"record {name!r} is that of a task which is done, and did not succeed")

    def _records_are_here(self, ids: Sequence[str], what: str) -> None:
        """See that records are in the store, since they are not in the archive."""
        found = provenance.get(self._store, ids, ["_id"])
        if missing := next((name for name in ids if name not in found), None):
            raise ArchiveError(f"{what} {missing!r}, which is neither in the archive nor here")

    def _stored(self, collection: str, pairs: Sequence[Pair]) -> dict[str, Pair]:
        """Return those documents that are here already, as they are here."""
        found = {}
        for part in tasks.chunks([doc["_id"] for _, doc in pairs]):
            with translating("read documents", self._store.where):
                for raw in foreign.raw(self._store.database[collection], {"_id": {"$in": list(part)}}):
                    doc = provenance.decode(raw)
                    found[doc["_id"]] = raw, doc
        return found

    def _signer_of(self, doc: Document) -> signing.Signer | None:
        """Return who verifies a document, if the key of the project that it comes from is here."""
        origin = admission.origin_of(doc, self._project)
        if origin not in self._signers:
            try:
                self._signers[origin] = self._signer.of(origin)
            except NotTrusted:
                self._signers[origin] = None
            self.found.verified[origin] = self._signers[origin] is not None
        return self._signers[origin]

    def _get(self, hash: str) -> bytes | memoryview:
        """Return an object, of the archive or of the repository.

        Raises:
            ObjectDropped: the archive came without it, and it is not here.
        """
        if self._reader.has(hash):
            return self._reader.get(hash)
        if hash in self._absent and not self._objects.exists(hash):
            raise ObjectDropped(f"the archive came without the object {hash}")
        return self._objects.get(hash)

    def _object_is_there(self, hash: str, who: str) -> None:
        if not (self._reader.has(hash) or hash in self._absent or self._objects.exists(hash)):
            raise ArchiveError(f"{who} names the object {hash!r}, which is neither in the archive nor here")

    # -- the second pass -----------------------------------------------------------------------------

    def take_objects(self, dry_run: bool) -> None:
        """Copy the objects that are not here, each checked while it is copied."""
        self._check_room()
        for hash, size in self._reader.objects():
            there = self._objects.exists(hash)
            if there or dry_run:
                self._reader.verify_object(hash)
            else:
                try:
                    there = not self._objects.receive(hash, size, self._reader.pieces(hash))
                except ObjectCorrupt as exc:
                    raise ArchiveError(f"entry {object_entry(hash)!r} of the archive was altered: {exc}") from exc
            (self.found.same if there else self.found.new)["objects"] += 1
        about = self._reader.manifest
        for hash in () if dry_run else self._absent:
            if not self._objects.exists(hash):  # whoever misses it is told why
                care.note_absence(self._objects, hash, f"the export of the archive {about.archive} ({about.created})")

    def _check_room(self) -> None:
        place = os.path.dirname(self._objects.root)
        new = sum(size for hash, size in self._reader.objects() if not self._objects.exists(hash))
        free = shutil.disk_usage(place).free
        if new > free:
            raise ObjectStoreFull(
                f"the archive's objects take {new:,} bytes, and {place!r} has room for {free:,}; nothing was imported"
            )

    def store_documents(self) -> None:
        """Insert what is not here; records before the tasks that name them."""
        for name in sorted(self._remarked):
            schema.ensure_remarks(self._store, name)
        for kind in KINDS:
            collection = self._store.provenance if kind == "records" else self._store.database[kind]
            for entry, documents in self._reader.documents(kind):
                for part in tasks.chunks(documents) if entry not in self._settled else ():
                    self._insert(kind, collection, [self._stamped(kind, raw) for raw in part])
                self._advance(len(documents))

    def _stamped(self, kind: str, raw: bytes) -> bytes:
        """Return a document as it is stored: with where it comes from, if that is another project."""
        if kind == "environments":  # they belong to nobody
            return raw
        doc = provenance.decode(raw)
        origin = admission.origin_of(doc, self._project)
        raw = foreign.bare(raw, doc)
        if origin == self._signer.project:
            return raw
        if kind == "records":
            return foreign.stamp(raw, records.origin_of(doc, origin, self._reader.manifest.archive, self._signer))
        return foreign.stamp(raw, {"project": origin, "archive": self._reader.manifest.archive})

    def _insert(self, kind: str, collection: Any, documents: Sequence[bytes]) -> None:
        with translating(f"import {kind}", self._store.where):
            try:
                collection.insert_many([RawBSONDocument(raw) for raw in documents], ordered=False)
                return
            except BulkWriteError as exc:
                there = set(duplicates(exc))
            known = {doc["_id"]: (raw, doc) for raw in documents if (doc := provenance.decode(raw))["_id"] in there}
            if kind == "records":  # somebody may have put another one there since we looked
                for name, (raw, doc) in self._stored("provenance", list(known.values())).items():
                    if foreign.bare(raw, doc) != foreign.bare(*known[name]):
                        raise ArchiveConflict(f"record {name!r} has meanwhile appeared here with other content")
            elif kind == "tasks":
                self._bring_up_to_date([doc for _, doc in known.values() if "from" in doc])

    def _bring_up_to_date(self, documents: Sequence[Document]) -> None:
        """Move tasks that were imported before to where the archive has them, if that is further."""
        for doc in documents:
            query = {"_id": doc["_id"], "rev": {"$lt": doc["rev"]}, "from.project": doc["from"]["project"]}
            there = {key: doc[key] for key in _STATE if key in doc}
            gone = dict.fromkeys((key for key in _STATE if key not in doc), "")
            self._store.tasks.update_one(query, {"$set": there, **({"$unset": gone} if gone else {})})


def _decoded(raw: bytes) -> Document:
    """Return a document of an archive.

    Raises:
        ArchiveError: it is not BSON as pilot writes it: a name may be in it twice, for one reader the one, for another
            the other.
    """
    try:
        doc = provenance.decode(raw)
        if bson.encode(doc) == raw:
            return doc
    except (BSONError, OverflowError, ValueError, TypeError, RecursionError) as exc:
        raise ArchiveError(f"a document in it cannot be read: {exc}") from exc
    raise ArchiveError("a document in it is not in the form in which pilot writes one")
