"""Reads from the store what `pilot.explain` concludes from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from pilot import fleet
from pilot.cli import queries, text
from pilot.explain import NAMED, Attempt, Facts, Other, Pilot
from pilot.layout import Layout
from pilot.model import record_id
from pilot.states import ENDED, Kind, PilotState, State
from pilot.store import pilots, provenance, tasks
from pilot.store.mongo import Store

Document = dict[str, Any]

DEPTH = 200
"""How far up a chain of parents is followed."""

_FIELDS = (
    "name", "state", "kind", "reason", "message", "class", "priority", "lease", "leased", "attempt", "tried", "lost",
    "retries", "pending", "submitted", "ended", "cancel", "invalid",
)  # fmt: skip


def collect(store: Store, task: str, now: datetime, root: bool = True) -> Facts:
    """Read what there is to know of a task's progress.

    Args:
        store: the database.
        task: its full id.
        now: the present time (UTC).
        root: follow the chain of parents too.
    """
    doc = tasks.get(store, [task], _FIELDS)[task]
    state = State(doc["state"])
    since = doc.get("ended") if state in ENDED else doc.get("leased") if state is State.LEASED else doc["submitted"]
    others: dict[str, Document] = {}
    if state is State.WAITING or doc.get("reason") == "upstream":
        others = _parents(store, doc, state is State.FAILED)
    named = sorted(others.values(), key=lambda other: _URGENCY.index(State(other["state"])))[:NAMED]
    before, same = queries.ahead(store, doc["priority"]) if state is State.READY else (0, 0)
    pool = queries.pool(store, doc.get("lease", "")) if state is State.LEASED else None
    end = _end_of_chain(store, doc) if root and others else None
    return Facts(
        doc, max(0.0, (now - (since or doc["submitted"])).total_seconds()), up(store, now),
        Counter(State(other["state"]) for other in others.values()),
        [Other(o["_id"], o["name"], State(o["state"]), o.get("reason", "")) for o in named],
        collect(store, end, now, root=False) if end else None, before, max(0, same - 1), pool,
        _attempts(store, doc, now), queued(store, now) if state is State.READY else (),
    )  # fmt: skip


def up(store: Store, now: datetime) -> list[Pilot]:
    """Return the pilots that are up, as the store says."""
    pools: dict[str, list[Document]] = {}
    for pool in pilots.pools(store):
        pools.setdefault(pool["pilot"], []).append(pool)
    found = []
    for doc in pilots.listing(store, live_only=True):
        if doc["state"] == PilotState.STARTING:
            continue
        mine = pools.get(doc["_id"], [])
        left_s = None if doc.get("end_at") is None else (doc["end_at"] - now).total_seconds()
        found.append(
            Pilot(
                doc["_id"], doc.get("host", "?"), sum(p.get("slots", 0) for p in mine), doc.get("slot_cores", 1),
                sum(p.get("busy", 0) for p in mine),
                max(0.0, (now - (doc.get("seen") or doc["created"])).total_seconds()), left_s,
                bool(doc.get("drain")) or doc["state"] == "draining",
                [Layout.from_document(pool) for pool in mine if pool.get("slots")],
            )
        )  # fmt: skip
    return found


def queued(store: Store, now: datetime, ask: bool = True) -> list[str]:
    """Return what each pilot that is not up yet waits for, in words.

    Args:
        store: the database.
        now: the present time (UTC).
        ask: the batch systems too.
    """
    views = fleet.look(store, now, live_only=True, ask=ask)
    starting = [view for view in views if view.state == PilotState.STARTING]
    return [f"pilot {view.id} is not up yet: {view.reason or f'its job is {view.job}'}" for view in starting]


_URGENCY = (State.FAILED, State.CANCELLED, State.READY, State.WAITING, State.LEASED, State.DONE)
"""Which of many parents is worth naming first: the one that keeps the others."""


def _parents(store: Store, doc: Document, failed: bool) -> dict[str, Document]:
    """Return what a task waits for, by id; join documents are replaced by what they stand for.

    Args:
        store: the database.
        doc: the task's document.
        failed: only those that did not succeed.
    """
    found: dict[str, Document] = {}
    wanted: Iterable[str] = doc.get("pending", ())
    while wanted:
        got = tasks.get(store, wanted, ["name", "state", "kind", "reason", "pending"])
        joins = [other for other in got.values() if other["kind"] == Kind.JOIN]
        found |= {name: other for name, other in got.items() if other["kind"] != Kind.JOIN}
        wanted = [parent for join in joins for parent in join.get("pending", ())]
    if failed:
        return {n: o for n, o in found.items() if o["state"] in (State.FAILED, State.CANCELLED)} or found
    return found


def _end_of_chain(store: Store, doc: Document) -> str | None:
    """Follow the chain of parents to the task that keeps all others; None if there is no such task."""
    seen = {doc["_id"]}
    for _ in range(DEPTH):
        failed = doc["state"] == State.FAILED
        others = [o for o in _parents(store, doc, failed).values() if o["_id"] not in seen]
        if not failed:
            others = [other for other in others if other["state"] not in ENDED]
        if not others:
            break
        doc = min(others, key=lambda other: _URGENCY.index(State(other["state"])))
        seen.add(doc["_id"])
        if doc["state"] != State.WAITING and doc.get("reason") != "upstream":
            break
    return doc["_id"] if len(seen) > 1 else None


def _attempts(store: Store, doc: Document, now: datetime) -> list[Attempt]:
    wanted = [record_id(doc["_id"], number + 1) for number in range(doc.get("attempt", 0))]
    fields = ["attempt", "outcome", "host", "exception", "exit_code", "time", "cached_from", "cache"]
    found = []
    records = provenance.get(store, wanted, fields)
    taken = provenance.get(store, filter(None, (r.get("cached_from") for r in records.values())), ["time.finished"])
    for record in records.values():
        finished = record.get("time", {}).get("finished")
        ago_s = None if finished is None else max(0.0, (now - finished).total_seconds())
        host = record.get("host") or (record.get("exception") or {}).get("host", "")
        source, cache = record.get("cached_from", ""), record.get("cache", {})
        ended = taken.get(source, {}).get("time", {}).get("finished")
        found.append(
            Attempt(
                record["attempt"], record["outcome"], ago_s, host, text.line(queries.cause(record), 200), source,
                None if ended is None else max(0.0, (now - ended).total_seconds()), cache.get("saved_s", 0.0),
                text.line(cache.get("miss", ""), 300),
            )
        )  # fmt: skip
    return sorted(found, key=lambda attempt: attempt.number)
