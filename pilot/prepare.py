"""From a leased task's document to work that a slot can run: check signatures, fetch code and linked values.

Nothing reaches a slot that was not verified here: the task, its function, and the records of the parents
whose outputs it uses. A task that cannot be run is refused with a reason, and the others go on.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pilot import records, signing
from pilot.caching import Asked, Lookup
from pilot.errors import DecodingError, ObjectMissing, PilotError, PythonMismatch, SignatureError
from pilot.executors.run.handle import Item
from pilot.executors.run.wire import pack_work
from pilot.functions import code_from
from pilot.model import SCHEMA, Blob, Command, FunctionCode, Input, Placement, Work, official_record
from pilot.resources import Resources
from pilot.states import Kind, State
from pilot.store import provenance, tasks
from pilot.store.mongo import Store

PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"

Document = dict[str, Any]

_MALFORMED = (KeyError, TypeError, ValueError, AttributeError)
"""What a document raises in which somebody has removed or replaced a field: it costs one task, not the pool."""


_resources = functools.lru_cache(1000)(Resources.from_key)
"""A class has thousands of tasks."""


class Held(NamedTuple):
    """A leased attempt, ready for a slot, with what its record will need."""

    task: Document
    item: Item
    inputs: tuple[Input, ...]
    sources: records.Sources
    program: bool = False
    """It is started by an MPI launcher: an MPI program, or an MPI function that runs alone."""
    place: Placement | None = None
    """Of a wide task that was dispatched."""
    cache: Document | None = None
    """Of a task with caching on: what its record says of that."""

    @property
    def cached(self) -> bool:
        """Whether it need not run, since an equal task's outputs are taken; there is nothing to send then."""
        return self.cache is not None and "cached_from" in self.cache


class Refused(NamedTuple):
    """A leased attempt that cannot be run, and why."""

    task: Document
    error: PilotError


class _Linked(NamedTuple):
    """A verified task with the values that it links to."""

    task: Document
    inputs: tuple[Input, ...]
    sources: dict[tuple[str, str | None], list[records.Source]]
    values: dict[tuple[str, str | None], Blob]


class Preparer:
    """Prepares tasks of one project; keeps the functions it has verified.

    Args:
        store: the database.
        get: reads an object of the repository.
        signer: the project's.
        cache: looks for the results of equal tasks.
    """

    def __init__(self, store: Store, get: records.Get, signer: signing.Signer, cache: Lookup) -> None:
        self._store = store
        self._get = get
        self._signer = signer
        self._cache = cache
        self.functions: dict[str, FunctionCode] = {}
        self._bad_functions: dict[str, PilotError] = {}

    def prepare(self, docs: Sequence[Document]) -> tuple[list[Held], list[Refused]]:
        """Verify and complete leased tasks; at most four queries however many they are, and six for their cache.

        Raises:
            StoreUnavailable: nothing was prepared; the leases stand.
        """
        refused: list[Refused] = []
        good: list[tuple[Document, tuple[Input, ...]]] = []
        for doc in docs:
            try:
                good.append((doc, self._verified(doc)))
            except PilotError as exc:
                refused.append(Refused(doc, exc))
        self._load_functions({doc["function"] for doc, _ in good if doc["function"]})
        parents = {link.task for _, inputs in good for item in inputs for link in item.links}
        officials = self._officials(parents) if parents else {}
        linked = []
        for doc, inputs in good:
            try:
                linked.append(self._linked(doc, inputs, officials))
            except PilotError as exc:
                refused.append(Refused(doc, exc))
            except _MALFORMED as exc:
                refused.append(_spoilt(doc, exc))
        asked = [one for one in linked if "cache" in one.task]
        cached = self._cache.look([self._asked(one) for one in asked]) if asked else {}
        held = []
        for one in linked:
            try:
                held.append(_complete(one, cached.get(one.task["_id"])))
            except PilotError as exc:
                refused.append(Refused(one.task, exc))
            except _MALFORMED as exc:
                refused.append(_spoilt(one.task, exc))
        return held, refused

    def _verified(self, doc: Document) -> tuple[Input, ...]:
        try:
            inputs = records.unpack_inputs(doc["inputs"], self._get)
            fields = signing.task_fields(doc, inputs)
        except _MALFORMED as exc:
            raise SignatureError(f"the document of task {doc['_id']!r} is spoilt: {exc!r}") from exc
        self._signer.verify("task", SCHEMA, fields, doc.get("signature"))
        return inputs

    def _load_functions(self, hashes: Iterable[str]) -> None:
        missing = [digest for digest in hashes if digest not in self.functions]
        if not missing:
            return
        there = provenance.get_functions(self._store, missing)
        for digest in missing:
            try:
                self.functions[digest] = self._function(digest, there.get(digest))
                self._bad_functions.pop(digest, None)
            except PilotError as exc:
                self._bad_functions[digest] = exc

    def _function(self, digest: str, doc: Document | None) -> FunctionCode:
        if doc is None:
            raise ObjectMissing(f"function {digest[:16]}… is not in the store; submit the task anew")
        try:
            code = code_from(doc)
        except _MALFORMED as exc:
            raise SignatureError(f"the document of function {digest[:16]}… is spoilt: {exc!r}") from exc
        self._signer.verify("function", SCHEMA, signing.function_fields(code), doc.get("signature"))
        if code.python != PYTHON:
            raise PythonMismatch(
                f"function {code.qualname!r} was submitted from Python {code.python}, this pilot runs Python {PYTHON}: "
                f"start the pilot with Python {code.python}, then `pilot retry` the task"
            )
        return code

    def _officials(self, parents: set[str]) -> dict[str, Document]:
        """Return the official record of each parent, not verified yet."""
        found = tasks.get(self._store, parents, ["official", "state"])
        official = [name for doc in found.values() if doc["state"] == State.DONE and (name := official_record(doc))]
        there = provenance.get(self._store, official, records.VERIFIED_FIELDS)
        return {name.rpartition(":")[0]: record for name, record in there.items()}

    def _linked(self, doc: Document, inputs: tuple[Input, ...], officials: Mapping[str, Document]) -> _Linked:
        function = doc["function"]
        if function and function not in self.functions:
            raise self._bad_functions[function]
        linked: dict[tuple[str, str | None], Blob] = {}
        sources: dict[tuple[str, str | None], list[records.Source]] = {}
        for used in inputs:
            for link in used.links:
                if (link.task, link.output) not in sources:
                    self._resolve(link.task, link.output, officials.get(link.task), linked, sources)
        return _Linked(doc, inputs, sources, linked)

    def _asked(self, one: _Linked) -> Asked:
        return Asked(one.task, one.inputs, one.sources, self.functions.get(one.task["function"]))

    def _resolve(
        self,
        task: str,
        output: str | None,
        record: Document | None,
        linked: dict[tuple[str, str | None], Blob],
        sources: dict[tuple[str, str | None], list[records.Source]],
    ) -> None:
        """Find the value of one link; a command's whole result is all of its outputs."""
        if record is None:
            raise DecodingError(f"its parent {task!r} has no official record; `pilot show {task}` says more")
        records.verify(record, self._signer)
        outputs = {entry["name"]: entry for entry in records.unpack(record["outputs"], self._get)}
        if output in outputs:
            used = [outputs[output]]
            linked[task, output] = records.blob_from(used[0])
        elif "result" in outputs:
            used = [outputs["result"]]
            linked[task, None] = records.blob_from(used[0])  # the child takes the item out of it
        elif output is None and outputs:
            used = list(outputs.values())
            linked |= {(task, one["name"]): records.blob_from(one) for one in used}
        else:
            raise DecodingError(f"its parent {task!r} has no output {output!r}, only {sorted(outputs)}")
        sources[task, output] = [records.Source(record["_id"], e["name"], e["hash"], e["size"]) for e in used]


def _complete(one: _Linked, cache: Document | None) -> Held:
    """Return what a slot gets of a task; of one that need not run nothing but its name."""
    doc, inputs, sources, linked = one
    function, resources, fresh = doc["function"], _resources(doc["class"]), doc.get("fresh", False)
    if cache is not None and "cached_from" in cache:
        item = Item(doc["_id"], doc["attempt"], function, resources.walltime_s, fresh, b"")
        return Held(doc, item, inputs, sources, cache=cache)
    command = Command.from_document(doc["command"]) if doc["command"] else None
    mpi = resources.ranks is not None
    program = mpi and (resources.program or command is not None or "suspect" in doc)  # it may have ended a pool
    work = Work(
        doc["_id"], doc["attempt"], Kind(doc["kind"]), doc["name"], function, command,
        tuple([(used.name, used.blob) for used in inputs]), linked, resources.memory_bytes, resources.cores,
        doc.get("folder", ""), resources.ranks, doc.get("gather", False), None, program and command is None,
    )  # fmt: skip
    item = Item(doc["_id"], doc["attempt"], function, resources.walltime_s, fresh, pack_work(work))
    return Held(doc, item, inputs, sources, program, cache=cache)


def _spoilt(doc: Document, exc: Exception) -> Refused:
    return Refused(doc, SignatureError(f"the document of task {doc['_id']!r} is spoilt: {exc!r}"))


def code_document(code: FunctionCode, signature: bytes, text: bool = False) -> Document:
    """Return a function as the `functions` collection holds it.

    Args:
        code: the function.
        signature: of its `signing.function_fields`.
        text: the object repository has the text of its module's file, under the hash of that.
    """
    doc = code._asdict()
    doc["_id"] = doc.pop("hash")
    doc["pickle"] = (
        {k: v for k, v in code.pickle._asdict().items() if v is not None and k != "files"} if code.pickle else None
    )
    doc["signature"] = signature
    if not code.kin:
        del doc["kin"]
    if text:
        doc["module_text"] = True
    return {key: value for key, value in doc.items() if value is not None}
