"""What must be true of the store at any moment, as one function.

Called after every test that has a store, after every fault round, and by ``pilot doctor``. It only reads.
While pools work, a task may move between two reads: what looks wrong is read once more before it is reported.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from graphlib import CycleError, TopologicalSorter
from typing import Any

from pilot.model import official_record, record_id
from pilot.states import ENDED, GOOD, Kind, State
from pilot.store import lineage
from pilot.store.mongo import Store, translating
from pilot.store.tasks import Document, chunks

Problem = tuple[str, str]
"""Task id and what is wrong with it."""

_FIELDS = (
    "state", "kind", "attempt", "lease", "official", "pending", "waits", "reason",
    "unchecked", "unreleased", "revive", "awaited",
)  # fmt: skip


@translating("check the invariants")
def violations(store: Store, limit: int = 100) -> list[str]:
    """Return what is wrong, one line each, at most `limit` lines; an empty list is what one wants.

    Cost: one pass over tasks and records; memory for the ids of one chunk.
    """
    found: list[str] = []
    for check in (_states, _successes, _labels, _sources, _cycles):
        suspects = {task for task, _ in check(store, None)}
        if suspects:
            found += sorted(f"task {task}: {text}" for task, text in check(store, suspects))
        if len(found) >= limit:
            break
    return found[:limit]


Check = Callable[[Store, "set[str] | None"], Iterable[Problem]]


def _documents(store: Store, only: set[str] | None) -> Iterable[list[Document]]:
    query: Document = {} if only is None else {"_id": {"$in": sorted(only)}}
    batch: list[Document] = []
    for doc in store.tasks.find(query, list(_FIELDS), batch_size=1000):
        batch.append(doc)
        if len(batch) == 1000:
            yield batch
            batch = []
    yield batch


def _states(store: Store, only: set[str] | None) -> Iterable[Problem]:
    """Check states against leases, official records and parents."""
    for docs in _documents(store, only):
        officials = [name for doc in docs if (name := official_record(doc))]
        outcomes: dict[str, str] = {}
        for part in chunks(officials):
            for record in store.provenance.find({"_id": {"$in": list(part)}}, {"outcome": 1}):
                outcomes[record["_id"]] = record["outcome"]
        parents = {p for doc in docs if doc["state"] != State.DONE for p in doc.get("pending", ())}
        states: dict[str, Document] = {}
        for part in chunks(sorted(parents)):
            for parent in store.tasks.find({"_id": {"$in": list(part)}}, ["state", "unreleased", "revive"]):
                states[parent["_id"]] = parent
        for doc in docs:
            for text in (*_ended_rightly(doc, outcomes), *_waits_rightly(doc, states)):
                yield doc["_id"], text


def _ended_rightly(doc: Document, outcomes: dict[str, str]) -> Iterable[str]:
    state = State(doc["state"])
    if state is State.DONE and doc["kind"] != Kind.JOIN:
        official = official_record(doc)
        if official != record_id(doc["_id"], doc["attempt"]):
            yield f"done at attempt {doc['attempt']}, but its official record is {official!r}"
        elif outcomes.get(official or "") not in set(GOOD):
            yield f"done, but its official record {official!r} says {outcomes.get(official or '')!r}"
    elif state in ENDED and official_record(doc) not in {None, *outcomes}:
        yield f"{state.value}, but its official record {official_record(doc)!r} does not exist"
    if ("lease" in doc) != (state is State.LEASED):
        yield f"{state.value}, and " + (f"leased under {doc['lease']!r}" if "lease" in doc else "without a lease")


def _waits_rightly(doc: Document, parents: dict[str, Document]) -> Iterable[str]:
    state, pending = State(doc["state"]), doc.get("pending", [])
    seen_to = doc.get("unchecked") or doc.get("revive")
    blamable = [p for p in pending if p not in parents or parents[p]["state"] in (State.FAILED, State.CANCELLED)]
    if state is State.WAITING and not seen_to:
        if not pending:
            yield "waiting for nothing"
        for parent in pending:
            there = parents.get(parent)
            if there is None:
                yield f"waits for {parent!r}, which does not exist"
            elif State(there["state"]) in ENDED and not there.get("unreleased"):
                yield f"waits for {parent!r}, which is {there['state']}, and nobody will tell it"
    if state is State.READY and pending:
        yield f"ready, but pending {pending[:3]}"
    upstream = state is State.FAILED and doc.get("reason") == "upstream"
    if upstream and not (blamable or seen_to or any(parents[p].get("revive") for p in pending)):
        yield "failed upstream, but no parent of it failed or was cancelled"


def _successes(store: Store, only: set[str] | None) -> Iterable[Problem]:
    """Check that every record that succeeded is its task's official one, so that no task has two and none is lost."""
    query: Document = {"outcome": {"$in": [o.value for o in GOOD]}}
    if only is not None:
        query["task"] = {"$in": sorted(only)}
    batch: list[Document] = []
    for record in store.provenance.find(query, ["task", "attempt"], batch_size=1000):
        batch.append(record)
        if len(batch) == 1000:
            yield from _successes_of(store, batch)
            batch = []
    yield from _successes_of(store, batch)


def _successes_of(store: Store, records: list[Document]) -> Iterable[Problem]:
    ids = [record["task"] for record in records]
    tasks = {doc["_id"]: doc for doc in store.tasks.find({"_id": {"$in": ids}}, ["state", "attempt", "official"])}
    for record in records:
        doc = tasks.get(record["task"])
        if doc is None:
            continue  # deleted: its records are another matter
        about_to_end = doc["state"] == State.LEASED and doc["attempt"] == record["attempt"]
        if official_record(doc) != record["_id"] and not about_to_end:
            yield doc["_id"], f"{doc['state']}, but its record {record['_id']} succeeded and is not the official one"


def _labels(store: Store, only: set[str] | None) -> Iterable[Problem]:
    """Check that each value has one creator, and each input and output a name of its own in its record.

    The first is the unique index of `_id`, as long as an `_id` says whose record it is.
    """

    def repeated(field: str) -> Document:
        names = {"$cond": [{"$isArray": f"${field}"}, f"${field}.name", []]}
        return {"$gt": [{"$size": names}, {"$size": {"$setUnion": [names]}}]}

    moved = {"$ne": ["$_id", {"$concat": ["$task", ":", {"$toString": "$attempt"}]}]}
    query: Document = {"$expr": {"$or": [moved, repeated("inputs"), repeated("outputs")]}}
    if only is not None:
        query["task"] = {"$in": sorted(only)}
    for record in store.provenance.find(query, ["task", "attempt"]):
        if record["_id"] != record_id(record["task"], record["attempt"]):
            yield record["task"], f"record {record['_id']} is of another attempt than its id says"
        else:
            yield record["task"], f"record {record['_id']} has two inputs, or two outputs, of one name"


def _sources(store: Store, only: set[str] | None) -> Iterable[Problem]:
    """Check that every input with a source names the official record and output with the same content.

    Of imported records the tasks come last: where an import was interrupted, they are not there yet.
    """
    query: Document = {"inputs.source": {"$exists": True}}
    if only is not None:
        query["task"] = {"$in": sorted(only)}
    batch: list[Document] = []
    for record in store.provenance.find(query, ["task", "inputs"], batch_size=200):
        batch.append(record)
        if len(batch) == 200:
            yield from _sources_of(store, batch)
            batch = []
    yield from _sources_of(store, batch)


def _sources_of(store: Store, records: list[Document]) -> Iterable[Problem]:
    wanted: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for record in records:
        for item in record["inputs"]:
            source: dict[str, Any] | None = item.get("source")
            if source:
                wanted[source["record"]].append((record["_id"], source["output"], item["hash"]))
    for part in chunks(sorted(wanted)):
        there = {
            doc["_id"]: doc for doc in store.provenance.find({"_id": {"$in": list(part)}}, ["task", "outputs", "from"])
        }
        tasks = [doc["task"] for doc in there.values()]
        users = store.tasks.find({"_id": {"$in": tasks}}, ["official"])
        official = {doc["_id"]: official_record(doc) for doc in users}
        for name in part:
            for user, output, digest in wanted[name]:
                task = user.rpartition(":")[0]
                if name not in there:
                    yield task, f"record {user} names source {name!r}, which does not exist"
                elif official.get(there[name]["task"], name if "from" in there[name] else None) != name:
                    yield task, f"record {user} names source {name!r}, which is not the official one"
                elif digest not in [o["hash"] for o in there[name]["outputs"] if o["name"] == output]:
                    yield task, f"record {user}: source {name!r} has no output {output!r} with hash {digest}"


def _cycles(store: Store, only: set[str] | None) -> Iterable[Problem]:
    """Check that no record came from itself, however indirectly; whatever `only` says, since a cycle has many tasks.

    In whatever order records are put, a cycle has a link that leads backward. Here that is the order of tasks' ids,
    in which parents nearly always come first: only what lies above the few other links is followed.
    """
    backward: set[str] = set()
    for record in store.provenance.find({"inputs.source": {"$exists": True}}, ["inputs.source.record"]):
        place = _place(record["_id"])
        backward |= {source for source in lineage.sources(record["inputs"]) if _place(source) >= place}
    above: dict[str, set[str]] = {}
    level = backward
    while level:
        for part in chunks(sorted(level)):
            for record in store.provenance.find({"_id": {"$in": list(part)}}, ["inputs.source.record"]):
                inputs = record.get("inputs", [])
                above[record["_id"]] = set() if isinstance(inputs, dict) else set(lineage.sources(inputs))
        level = {source for one in level for source in above.get(one, ())} - above.keys()
    try:
        TopologicalSorter(above).prepare()
    except CycleError as exc:
        cycle: list[str] = exc.args[1]
        yield cycle[0].rpartition(":")[0], f"its record came from itself: {' ← '.join(reversed(cycle))}"


def _place(record: str) -> tuple[str, int, str]:
    """Return where a record stands in the order of tasks' ids, which grow with time."""
    task, _, _ = record.rpartition(":")
    batch, _, number = task.rpartition("-")
    return (batch, int(number), record) if number.isdecimal() else (task, 0, record)
