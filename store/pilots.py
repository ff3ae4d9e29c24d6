"""Pilots and pools: registration, heartbeats, drain requests, and reaping what the dead have left.

A pool's `_id` is its lease token: it belongs to one coordinator process and is never used again. A heartbeat is
a counter, not a time, so that no clock has to agree with another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

import pymongo.errors as driver
from bson.raw_bson import RawBSONDocument

from pilot.errors import Fenced
from pilot.states import Outcome, PilotState, PoolState, State
from pilot.store import dependants, provenance, tasks
from pilot.store.mongo import Store, translating
from pilot.store.tasks import Document, End

LIVE_PILOTS = (PilotState.STARTING, PilotState.RUNNING, PilotState.DRAINING)

# -- pilots ---------------------------------------------------------------------------------------


@translating("write a pilot down")
def ask_for(store: Store, pilot: str, fields: Document) -> None:
    """Write that a pilot is asked for, before its batch system is: whatever happens then, it is known of."""
    store.pilots.insert_one(
        {"_id": pilot, "state": PilotState.STARTING.value, "beat": 0, "created": datetime.now(UTC), **fields}
    )


@translating("change a pilot's document")
def note(store: Store, pilot: str, fields: Document) -> None:
    """Set fields of a pilot's document."""
    store.pilots.update_one({"_id": pilot}, {"$set": fields})


@translating("register a pilot")
def register(store: Store, pilot: str, agent: str, fields: Document) -> None:
    """Write that a pilot's agent has begun, before it starts its first pool. Repeatable.

    A batch system may start a pilot a second time while the first one still runs on a node that it cannot see.
    So this fences an earlier agent and the pools that it has started: their heartbeats find nothing any more.

    Args:
        store: the database.
        pilot: its id.
        agent: token of this very process.
        fields: of the document.

    Raises:
        Fenced: the pilot was ended before it began.
    """
    now = datetime.now(UTC)
    fresh = {"state": PilotState.RUNNING.value, "seen": now, **fields, "agent": agent}
    try:
        store.pilots.update_one(
            {"_id": pilot, "state": {"$ne": PilotState.ENDED.value}},
            {
                "$inc": {"beat": 1},
                "$set": fresh,
                "$unset": {"reason": "", "ended": ""},
                "$setOnInsert": {"created": now},
            },
            upsert=True,
        )
    except driver.DuplicateKeyError as exc:
        raise Fenced(f"pilot {pilot!r} was ended before it began") from exc
    store.pools.update_many(
        {"pilot": pilot, "state": PoolState.LIVE.value},
        {"$set": {"state": PoolState.DEAD.value, "reason": "its pilot was started anew", "ended": now}},
    )


@translating("report a pilot's heartbeat")
def beat(store: Store, pilot: str, agent: str, fields: Document) -> Document:
    """Count the heartbeat up, set `fields`, and return the document (``drain`` tells what is asked of it).

    A pilot that was taken for lost is back by it; one that has written its end is not.

    Raises:
        Fenced: it is not in the store, has ended, or has another agent by now.
    """
    found: Document | None = store.pilots.find_one_and_update(
        {"_id": pilot, "agent": agent, "state": {"$ne": PilotState.ENDED.value}},
        {"$inc": {"beat": 1}, "$set": {**fields, "seen": datetime.now(UTC)}},
        return_document=True,
    )
    if found is None:
        raise Fenced(f"pilot {pilot!r} is no longer in the store, or was started anew")
    return found


@translating("read a pilot's heartbeat")
def beat_of(store: Store, pilot: str) -> int | None:
    """Return a pilot's heartbeat, None if it is not in the store."""
    found: Document | None = store.pilots.find_one({"_id": pilot}, {"beat": 1})
    return None if found is None else int(found["beat"])


@translating("read a pilot's state")
def live(store: Store, pilot: str) -> bool:
    """Return whether a pilot is in the store and has not ended."""
    found = store.pilots.find_one({"_id": pilot, "state": {"$in": [s.value for s in LIVE_PILOTS]}}, {"_id": 1})
    return found is not None


@translating("ask pilots to drain")
def drain(store: Store, pilots: Iterable[str], now: bool = False) -> int:
    """Ask pilots to take no more work and end; `now`: without finishing what runs. Return how many live."""
    wish = "now" if now else "drain"
    return store.pilots.update_many(
        {"_id": {"$in": list(pilots)}, "state": {"$in": [s.value for s in LIVE_PILOTS]}}, {"$set": {"drain": wish}}
    ).modified_count


@translating("write a pilot's end")
def end(
    store: Store, pilot: str, state: PilotState, reason: str, agent: str | None = None, failed: bool = False
) -> None:
    """Write how a pilot ended, unless that has been written already, or (with `agent`) it has another agent by now.

    `failed`: nobody asked it to.
    """
    mine = {} if agent is None else {"agent": agent}
    fields = {"state": state.value, "reason": reason, "ended": datetime.now(UTC)}
    store.pilots.update_one(
        {"_id": pilot, "state": {"$in": [s.value for s in LIVE_PILOTS]}, **mine},
        {"$set": fields | ({"failed": True} if failed else {})},
    )


@translating("write a pilot's end")
def again(store: Store, pilot: str, agent: str, reason: str) -> None:
    """Write that a pilot's agent has ended, and that its batch system may start another one: it tells which."""
    store.pilots.update_one(
        {"_id": pilot, "agent": agent, "state": {"$in": [s.value for s in LIVE_PILOTS]}},
        {"$set": {"state": PilotState.STARTING.value, "reason": reason, "submitted": datetime.now(UTC)}},
    )


@translating("list pilots")
def listing(store: Store, live_only: bool = False, limit: int = 100) -> list[Document]:
    """Return pilots, newest first."""
    query: Document = {"state": {"$in": [s.value for s in LIVE_PILOTS]}} if live_only else {}
    return list(store.pilots.find(query, sort=[("created", -1)], limit=limit))


@translating("list pilots that a scaler asked for")
def asked_for(store: Store, site: str, since: datetime | None, limit: int) -> list[tuple[Document, list[Document]]]:
    """Return the latest pilots that the scaler of a site asked for, newest first, each with its pools."""
    query: Document = {"scaler": True, "site": site}
    if since is not None:
        query["created"] = {"$gte": since}
    docs = list(store.pilots.find(query, sort=[("created", -1)], limit=limit))
    pools: dict[str, list[Document]] = {doc["_id"]: [] for doc in docs}
    for pool in store.pools.find({"pilot": {"$in": list(pools)}}):
        pools[pool["pilot"]].append(pool)
    return [(doc, pools[doc["_id"]]) for doc in docs]


# -- pools ----------------------------------------------------------------------------------------


@translating("register a pool")
def open_pool(store: Store, token: str, pilot: str, fields: Document) -> None:
    """Write a live pool's document; must be acknowledged before anything is leased under `token`."""
    store.pools.insert_one(
        {"_id": token, "pilot": pilot, "state": PoolState.LIVE.value, "beat": 0, "created": datetime.now(UTC), **fields}
    )


@translating("report a pool's heartbeat")
def beat_pool(store: Store, token: str, fields: Document) -> None:
    """Count the heartbeat up.

    Raises:
        Fenced: the pool is no longer live: stop leasing, drop what has not begun, take a new token.
    """
    found = store.pools.update_one(
        {"_id": token, "state": PoolState.LIVE.value},
        {"$inc": {"beat": 1}, "$set": {**fields, "seen": datetime.now(UTC)}},
    )
    if not found.matched_count:
        raise Fenced(f"pool {token!r} was declared dead")


@translating("close a pool")
def close_pool(store: Store, token: str, state: PoolState, reason: str, fields: Document | None = None) -> None:
    """End a pool's token. `PoolState.DEAD` fences it: its heartbeat finds nothing and its leases are reapable.

    `fields` are its last report.
    """
    store.pools.update_one(
        {"_id": token, "state": PoolState.LIVE.value},
        {"$set": {**(fields or {}), "state": state.value, "reason": reason, "ended": datetime.now(UTC)}},
    )


@translating("fence a stale pool")
def fence(store: Store, token: str, beat: int, reason: str) -> bool:
    """Declare a pool dead unless its heartbeat has moved since it was seen at `beat`; return whether it is dead."""
    store.pools.update_one(
        {"_id": token, "state": PoolState.LIVE.value, "beat": beat},
        {"$set": {"state": PoolState.DEAD.value, "reason": reason, "ended": datetime.now(UTC)}},
    )
    return store.pools.count_documents({"_id": token, "state": PoolState.LIVE.value}) == 0


@translating("read heartbeats")
def pool_beats(store: Store) -> dict[str, int]:
    """Return token → heartbeat of all pools that are live by their document."""
    return {p["_id"]: p["beat"] for p in store.pools.find({"state": PoolState.LIVE.value}, {"beat": 1})}


@translating("read heartbeats")
def pilot_beats(store: Store) -> dict[str, int]:
    """Return id → heartbeat of all pilots that run by their document."""
    running = [PilotState.RUNNING.value, PilotState.DRAINING.value]
    return {p["_id"]: p["beat"] for p in store.pilots.find({"state": {"$in": running}}, {"beat": 1})}


@translating("list pools")
def pools(store: Store, pilot: str | None = None, live_only: bool = True) -> list[Document]:
    """Return pools, of one pilot or of all."""
    query: dict[str, Any] = {} if pilot is None else {"pilot": pilot}
    if live_only:
        query["state"] = PoolState.LIVE.value
    return list(store.pools.find(query))


# -- reaping --------------------------------------------------------------------------------------


@translating("find abandoned leases")
def dead_tokens(store: Store) -> list[str]:
    """Return the tokens under which something is leased and which are not a live pool's.

    Reads the leases first and the pools second: a pool is registered before it leases, so a live one is never
    in the answer. A set, not an event: whatever one reaper leaves, the next one finds.
    """
    leased: list[str] = store.tasks.distinct("lease", {"lease": {"$gt": ""}})  # so written, it reads the index only
    live = set(pool_beats(store))
    return [token for token in leased if token not in live]


@translating("note suspects")
def suspect(store: Store, keys: Iterable[tuple[str, int]]) -> None:
    """Note that these attempts ran in the ranks of a pool that died; their next ones run alone. Repeatable."""
    for task, attempt in keys:
        query = {"_id": task, "attempt": attempt, "state": State.LEASED.value}
        store.tasks.update_one(query, {"$set": {"suspect": attempt}})


@translating("reap abandoned leases")
def reap(store: Store, token: str, lost_record: Callable[[Document], RawBSONDocument]) -> int:
    """End every attempt leased under a dead pool's token as `lost`, or as its record says; return how many.

    The `lost` record goes in first; where the pool's own record is there already, its outcome is applied.
    `lost_record` makes it of the task's document, without the inputs.
    Filters on token and attempt, so that any number of reapers may do this at once, again and again.
    """
    count = 0
    while True:
        query = {"lease": token, "state": State.LEASED.value}
        docs = list(store.tasks.find(query, {"inputs": False}, limit=tasks.CHUNK))
        if not docs:
            return count
        ends = [End(doc["_id"], doc["attempt"], token, Outcome.LOST, doc.get("client")) for doc in docs]
        ends = provenance.settle(store, [lost_record(doc) for doc in docs], ends)
        tasks.finish(store, ends, datetime.now(UTC))
        dependants.release(store, [end.task for end in ends])
        count += len(docs)
