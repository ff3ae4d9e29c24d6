"""Pilots and pools: heartbeats, fencing, reaping; and reading the queue."""

from __future__ import annotations

import pytest

from pilot.errors import (
    Fenced,
    TaskNotFound,
)
from pilot.states import PilotState, PoolState, State
from pilot.store import dependants, pilots, tasks
from pilot.store.mongo import Store
from tests import queue_rig as rig
from tests.queue_rig import NOW, kill_pool, lease, repeated, state, states, submit, task, untouched

# -- pilots and pools -------------------------------------------------------------------------------


def test_a_heartbeat_counts_while_the_pool_lives(store: Store, a: str) -> None:
    assert pilots.pool_beats(store) == {a: 0}
    pilots.beat_pool(store, a, {"busy": 3})
    pilots.beat_pool(store, a, {})
    assert pilots.pool_beats(store) == {a: 2}
    (doc,) = pilots.pools(store, "pilot")
    assert (doc["busy"], doc["beat"]) == (3, 2)
    repeated(store, lambda: pilots.close_pool(store, a, PoolState.ENDED, "drained"))
    untouched(store, lambda: pilots.close_pool(store, a, PoolState.DEAD, "too late"))
    with pytest.raises(Fenced, match="pool-a"):
        pilots.beat_pool(store, a, {})
    assert pilots.pools(store) == []
    assert pilots.pools(store, live_only=False)[0]["reason"] == "drained"


def test_only_a_heartbeat_that_stands_still_is_fenced(store: Store, a: str) -> None:
    pilots.beat_pool(store, a, {})
    assert not pilots.fence(store, a, 0, "stood still")
    pilots.beat_pool(store, a, {})
    assert pilots.fence(store, a, 2, "stood still")
    assert pilots.fence(store, a, 2, "stood still")
    with pytest.raises(Fenced):
        pilots.beat_pool(store, a, {})


def test_only_what_no_live_pool_holds_is_reapable(store: Store, a: str, b: str) -> None:
    submit(store, *(task(f"t{n}") for n in range(6)))
    lease(store, a, 2)
    lease(store, b, 2)
    lease(store, "unknown", 2)
    assert pilots.dead_tokens(store) == ["unknown"]
    kill_pool(store, b)
    assert sorted(pilots.dead_tokens(store)) == [b, "unknown"]
    assert rig.reap(store) == 4
    assert pilots.dead_tokens(store) == []
    assert sorted(states(store).values()) == ["leased"] * 2 + ["ready"] * 4


def test_a_frozen_pool_that_leases_after_its_death_is_reaped_again(store: Store, a: str) -> None:
    submit(store, task("t"))
    kill_pool(store, a)
    assert rig.reap(store) == 0
    assert lease(store, a) == {"t": 1}
    assert rig.reap(store) == 1
    assert state(store, "t") == "ready"


def test_pilots_are_registered_asked_and_ended(store: Store) -> None:
    with pytest.raises(Fenced, match="p1"):
        pilots.beat(store, "p1", "a", {})
    pilots.register(store, "p1", "a", {})
    pilots.register(store, "p1", "a", {})
    assert pilots.beat(store, "p1", "a", {"state": "running"}).get("drain") is None
    assert pilots.pilot_beats(store) == {"p1": 3}
    assert pilots.drain(store, ["p1", "p2"]) == 1
    assert pilots.beat(store, "p1", "a", {"state": "draining"})["drain"] == "drain"
    pilots.drain(store, ["p1"], now=True)
    assert pilots.beat(store, "p1", "a", {})["drain"] == "now"
    repeated(store, lambda: pilots.end(store, "p1", PilotState.ENDED, "asked"))
    untouched(store, lambda: pilots.end(store, "p1", PilotState.LOST, "too late"))
    assert pilots.drain(store, ["p1"]) == 0
    assert pilots.pilot_beats(store) == {}
    assert pilots.listing(store, live_only=True) == []
    assert pilots.listing(store)[0]["reason"] == "asked"
    with pytest.raises(Fenced, match="was ended before it began"):
        pilots.register(store, "p1", "b", {})


def test_a_pilot_that_is_started_twice(store: Store) -> None:
    """A batch system requeues a job whose first incarnation still runs on a node that it cannot reach."""
    pilots.ask_for(store, "p1", {"site": "s"})
    assert pilots.pilot_beats(store) == {}  # nobody is to be missed yet
    pilots.register(store, "p1", "first", {"host": "n1"})
    pilots.open_pool(store, "tok1", "p1", {"launch": "p1.1"})
    pilots.register(store, "p1", "second", {"host": "n2"})
    assert pilots.pools(store, "p1") == []
    with pytest.raises(Fenced):
        pilots.beat_pool(store, "tok1", {})
    with pytest.raises(Fenced, match="was started anew"):
        pilots.beat(store, "p1", "first", {})
    untouched(store, lambda: pilots.end(store, "p1", PilotState.ENDED, "old", "first"))
    assert pilots.beat(store, "p1", "second", {})["host"] == "n2"
    repeated(store, lambda: pilots.end(store, "p1", PilotState.ENDED, "new", "second"))


# -- reading ----------------------------------------------------------------------------------------


def test_a_shortened_id_finds_its_task(store: Store) -> None:
    wide = task("abc", *(f"p{n}" for n in range(1001)))
    submit(store, *(task(f"p{n}") for n in range(1001)), wide, task("abd"), task("xyz"))
    assert tasks.resolve(store, "xyz")["_id"] == "xyz"
    assert tasks.resolve(store, "x")["_id"] == "xyz"
    assert tasks.resolve(store, "abc")["_id"] == "abc"
    assert store.tasks.count_documents({"kind": "join"}) == 2
    store.tasks.delete_one({"_id": "abd"})
    assert tasks.resolve(store, "ab")["_id"] == "abc"  # its join documents are nobody's business
    for text in ("p", "", "nobody", "ab~"):
        with pytest.raises(TaskNotFound):
            tasks.resolve(store, text)


def test_tasks_are_counted_and_listed_without_their_joins(store: Store, a: str) -> None:
    submit(store, *(task(f"p{n}") for n in range(1100)), task("j", *(f"p{n}" for n in range(1100))), task("k", "j"))
    assert tasks.counts(store) == dict.fromkeys(State, 0) | {State.READY: 1100, State.WAITING: 2}
    lease(store, a, 10)
    tasks.cancel(store, [f"p{n}" for n in range(1100)][-3:], NOW)
    dependants.release(store)
    counted = tasks.counts(store)
    assert counted[State.LEASED] + counted[State.READY] + counted[State.CANCELLED] == 1100
    assert counted[State.FAILED] == 2
    assert counted[State.WAITING] == counted[State.DONE] == 0
    names = [doc["_id"] for doc in tasks.listing(store, state=State.FAILED)]
    assert sorted(names) == ["j", "k"]
    assert len(tasks.listing(store, limit=7)) == 7
