"""What the commands read from the store beyond what the layers below need themselves."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from pilot.errors import StoreUnavailable
from pilot.model import official_record
from pilot.states import ENDED, Kind, State
from pilot.store import provenance, schema, tasks
from pilot.store.mongo import Store, translating

Document = dict[str, Any]

UNENDED = (State.WAITING, State.READY, State.LEASED)
_LOOK_MS = 300
_HINTS = {State.READY: "ready", State.LEASED: "lease"}
"""The index that holds few documents beside those of the state; `aside` holds the others."""


@translating("ask the store's version")
def version(store: Store) -> str:
    """Return the version of the server."""
    return str(store.database.client.server_info()["version"])


@translating("ask the store's clock")
def clock(store: Store) -> datetime:
    """Return what time it is for the server (UTC)."""
    moment: datetime = store.database.command("hello")["localTime"]
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)  # a command's answer ignores the codec's zone


def _in_state(state: State) -> Document:
    return {"lease": {"$exists": True}} if state is State.LEASED else {"state": state.value}


def _hint(state: State) -> str:
    return _HINTS.get(state, "aside")


@translating("count tasks")
def outstanding(store: Store, since: int = 0, until: int | None = None) -> dict[State, int]:
    """Return how many tasks that were submitted in a window have not ended, by state; joins are left out.

    The cost follows the tasks that have not ended, not all there are.

    Args:
        store: the database.
        since: first place in the order of service (`seq`, nanoseconds since the epoch).
        until: last place; None: now.
    """
    window: Document = {}
    if since or until is not None:
        window["seq"] = {"$gte": since} if until is None else {"$gte": since, "$lte": until}
    found = {state: store.tasks.count_documents(_in_state(state) | window, hint=_hint(state)) for state in UNENDED}
    joins = {"kind": Kind.JOIN.value, "state": State.WAITING.value} | window
    found[State.WAITING] = max(0, found[State.WAITING] - store.tasks.count_documents(joins, hint="aside"))
    return found


@translating("look for failed tasks")
def problems(store: Store, limit: int) -> list[Document]:
    """Return the first tasks that failed by themselves, not because of a parent, oldest first."""
    query = {"state": State.FAILED.value, "reason": {"$ne": "upstream"}, "kind": {"$ne": Kind.JOIN.value}}
    fields = ["name", "state", "reason", "message", "ended", "official", "attempt", "submitted"]
    return list(store.tasks.find(query, fields, sort=[("seq", 1)], limit=limit, hint="aside"))


@translating("count failed tasks")
def failed_upstream(store: Store) -> int:
    """Return how many tasks failed because of a parent."""
    query = {"state": State.FAILED.value, "reason": "upstream", "kind": {"$ne": Kind.JOIN.value}}
    return store.tasks.count_documents(query, hint="aside")


def errors(store: Store, docs: Sequence[Document]) -> dict[str, str]:
    """Return in a few words why each of these failed tasks did, by id.

    Args:
        store: the database.
        docs: with ``official``, ``reason`` and ``message``.
    """
    officials = {name: doc for doc in docs if (name := official_record(doc)) and doc["state"] == State.FAILED}
    found = {}
    for name, record in provenance.get(store, officials, ["exception", "exit_code", "outcome"]).items():
        found[officials[name]["_id"]] = cause(record)
    for doc in docs:
        words = ": ".join(str(doc[key]) for key in ("reason", "message") if doc.get(key))
        if words and not found.get(doc["_id"]):
            found[doc["_id"]] = words
    return found


def cause(record: Document) -> str:
    """Return in a few words why an attempt did not succeed."""
    exception = record.get("exception") or {}
    words = ": ".join(str(exception[key]) for key in ("type", "message") if exception.get(key))
    if not words and record.get("exit_code"):
        words = f"exit code {record['exit_code']}"
    return " ".join(words.split())


def ids(store: Store, states: Sequence[State], tag: str | None = None, roots: bool = False) -> Iterator[list[str]]:
    """Yield the ids of tasks in some states, by thousands; each batch is read when it is asked for.

    Args:
        store: the database.
        states: which; not `done`, for which there is no index.
        tag: only those with it.
        roots: without those that failed because of a parent.
    """
    for state in states:
        query: Document = _in_state(state) | {"kind": {"$ne": Kind.JOIN.value}}
        if tag is not None:
            query["tags"] = tag
        if roots:
            query["reason"] = {"$ne": "upstream"}
        yield from _batches(store, query, _hint(state))


def _batches(store: Store, query: Document, hint: str) -> Iterator[list[str]]:
    with translating("list tasks", store.where):
        batch: list[str] = []
        for doc in store.tasks.find(query, {"_id": 1}, hint=hint):
            batch.append(doc["_id"])
            if len(batch) == 5000:
                yield batch
                batch = []
        if batch:
            yield batch


@translating("count tasks by state")
def states_of(store: Store, ids: Sequence[str]) -> dict[str, State]:
    """Return the state of each of these tasks that exists."""
    found = {}
    for start in range(0, len(ids), 5000):
        query = {"_id": {"$in": list(ids[start : start + 5000])}}
        found.update({doc["_id"]: State(doc["state"]) for doc in store.tasks.find(query, {"state": 1})})
    return found


@translating("count how tasks ended")
def ends(store: Store, since: int, until: int | None = None) -> dict[State, int]:
    """Return how many tasks that were submitted in a window have failed or were cancelled."""
    window = {"$gte": since} if until is None else {"$gte": since, "$lte": until}
    return {
        state: store.tasks.count_documents({"state": state.value, "seq": window}, hint="aside")
        for state in ENDED - {State.DONE}
    }


@translating("look for a pool")
def pool(store: Store, token: str) -> Document | None:
    """Return the pool, live or not, whose lease token this is."""
    found: Document | None = store.pools.find_one({"_id": token})
    return found


@translating("count what is ahead in the queue")
def ahead(store: Store, priority: int) -> tuple[int, int]:
    """Count ready tasks of higher and of the same priority, over all classes (index `ready`).

    Args:
        store: the database.
        priority: as documents have it: smaller is sooner.
    """
    before = same = 0
    for name in tasks.ready_classes(store):
        query = {"state": State.READY.value, "class": name}
        before += store.tasks.count_documents({**query, "priority": {"$lt": priority}}, hint="ready")
        same += store.tasks.count_documents({**query, "priority": priority}, hint="ready")
    return before, same


@translating("count what is marked")
def marked(store: Store) -> dict[str, int]:
    """Return how many tasks wait for `reconcile`, by marker."""
    return {
        name: store.tasks.count_documents({name: True}, hint=name) for name in ("unchecked", "unreleased", "revive")
    }


@translating("look for a task's output")
def written_until(store: Store, file: str) -> int:
    """Return up to where a slot's output file belongs to attempts that have ended, 0 if none is recorded.

    There is no index for this: a second at most, then it gives up.
    """
    last = store.provenance.find(
        {"output_log.file": file}, {"output_log": 1}, sort=[("output_log.offset", -1)], limit=1, max_time_ms=3000
    )
    return max((doc["output_log"]["offset"] + doc["output_log"]["length"] for doc in last), default=0)


def made(store: Store, hashes: Collection[str], but: Collection[str]) -> dict[str, tuple[str, str]]:
    """Return for each content a record that made it and the name of its output there.

    The index over hashes is there only once somebody has asked for the graph of one; without it, it looks for a
    third of a second at most.

    Args:
        store: the database.
        hashes: of the contents.
        but: records not to be named.
    """
    found: dict[str, tuple[str, str]] = {}
    query = {"outputs.hash": {"$in": list(hashes)}, "_id": {"$nin": list(but)}}
    try:
        with translating("look for a value", store.where):
            for doc in store.provenance.find(query, ["outputs.hash", "outputs.name"], limit=100, max_time_ms=_LOOK_MS):
                for entry in doc["outputs"]:
                    if entry["hash"] in hashes:
                        found.setdefault(entry["hash"], (doc["_id"], entry["name"]))
    except StoreUnavailable:
        return found
    return found


@translating("count records")
def size(store: Store) -> int:
    """Return about how many records there are."""
    return store.provenance.estimated_document_count()


@translating("ask for the sizes of indexes")
def index_sizes(store: Store) -> dict[str, int]:
    """Return the sizes in bytes of the indexes over records, by name, without that of `_id`."""
    if not schema.record_indexes(store):
        return {}
    sizes: dict[str, int] = store.database.command("collStats", "provenance")["indexSizes"]
    return {name: size for name, size in sorted(sizes.items()) if name != "_id_"}
