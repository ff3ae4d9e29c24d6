"""Real processes on one queue at the same time: nothing is done twice, nothing is stuck."""

from __future__ import annotations

import itertools
import multiprocessing
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from typing import Any

import pytest

from pilot.states import Outcome
from pilot.store import dependants, tasks
from pilot.store.mongo import Store
from tests import queue_racers as racers
from tests import queue_rig as rig
from tests.queue_rig import Key, task

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

Race = Callable[..., list[Any]]


@pytest.fixture
def race(store: Store, mongod_uri: str) -> Race:
    """Return a function that runs each (function, arguments…) in a process of its own and returns the results."""

    def run(*runners: Sequence[Any]) -> list[Any]:
        context = multiprocessing.get_context("spawn")
        barrier = context.Barrier(len(runners))
        with ProcessPoolExecutor(len(runners), context, racers.join, (barrier,)) as pool:
            futures = [pool.submit(one, mongod_uri, store.database.name, *rest) for one, *rest in runners]
            done, _ = wait(futures, timeout=2 * racers.DEADLINE_S)
            assert len(done) == len(futures), f"only {len(done)} of {len(futures)} processes ended"
            return [future.result() for future in futures]

    return run


def successes(store: Store) -> Counter[str]:
    """Return how many records of each task succeeded."""
    return Counter(doc["task"] for doc in store.provenance.find({"outcome": "succeeded"}, ["task"]))


def test_four_pools_do_each_task_once(store: Store, race: Race) -> None:
    documents = [task(f"r{n}") for n in range(2000)]
    documents += [task(f"c{n}", f"r{n}", f"r{(n * 13) % 2000}") for n in range(1500)]
    documents += [task(f"d{n}", f"c{n}", waits="end") for n in range(500)]
    rig.submit(store, *documents)
    total = len(documents)
    leased: list[list[Key]] = race(*((racers.drain, f"pool-{n}", total) for n in range(4)))
    every = [key for keys in leased for key in keys]
    assert sorted(every) == sorted((doc["_id"], 1) for doc in documents)
    assert sum(map(bool, leased)) > 1, "one pool did it all: nothing was raced"
    assert set(successes(store).values()) == {1}
    assert store.provenance.count_documents({}) == total
    assert dependants.reconcile(store) == 0


def test_submit_races_with_the_ends_of_parents(store: Store, race: Race) -> None:
    """No sweep runs: whoever submits a child, or ends its parent, must have seen to it."""
    families = 25
    total = 2 * families * 40
    race(
        (racers.submit_families, "x", families), (racers.submit_families, "y", families),
        (racers.drain, "pool-1", total), (racers.drain, "pool-2", total),
    )  # fmt: skip
    assert set(rig.states(store).values()) == {"done"}
    assert successes(store).keys() == rig.states(store).keys()
    assert set(successes(store).values()) == {1}


def test_sweeps_race_with_submit_and_with_each_other(store: Store, race: Race) -> None:
    """No sweep calls a parent missing that is being submitted, and none undoes what another does."""
    families = 20
    total = families * 40
    race(
        (racers.submit_families, "x", families), (racers.drain, "pool", total),
        (racers.sweep, total), (racers.sweep, total),
    )  # fmt: skip
    assert set(rig.states(store).values()) == {"done"}
    assert set(successes(store).values()) == {1}


def test_two_reapers_and_the_pool_they_took_for_dead(store: Store, race: Race) -> None:
    rig.submit(store, *(task(f"t{n}") for n in range(2000)), *(task(f"c{n}", f"t{n}") for n in range(0, 2000, 10)))
    rig.open_pool(store, "frozen")
    held = rig.lease(store, "frozen", 2000)
    assert len(held) == 2000
    rig.kill_pool(store, "frozen")
    *_, accepted = race((racers.reap,), (racers.reap,), (racers.commit_late, "frozen"))
    outcomes = {doc["task"]: doc["outcome"] for doc in store.provenance.find()}
    assert outcomes.keys() == held.keys()
    good = {name for name, outcome in outcomes.items() if outcome == Outcome.SUCCEEDED}
    assert len(good) == accepted
    for doc in store.tasks.find({"_id": {"$in": list(held)}}):
        expected = ("done", 0) if doc["_id"] in good else ("ready", 1)
        assert (doc["state"], doc["lost"]) == expected, doc["_id"]
    rig.quiesce(store)
    found = rig.states(store)
    for n in range(0, 2000, 10):
        assert found[f"c{n}"] == ("ready" if f"t{n}" in good else "waiting")


def test_failures_cancels_retries_and_sweeps_all_at_once(store: Store, race: Race) -> None:
    layers, width = 8, 75
    total = layers * width
    names = [[f"t{layer}.{n}" for n in range(width)] for layer in range(layers)]
    rig.submit(store, *map(task, names[0]))
    for above, here in itertools.pairwise(names):
        rig.submit(store, *(task(name, above[n], above[n * 7 % width]) for n, name in enumerate(here)))
    race(
        (racers.drain, "pool-1", total, False), (racers.drain, "pool-2", total, False),
        (racers.meddle, 30, total), (racers.sweep, total),
    )  # fmt: skip
    assert set(rig.states(store).values()) == {"done"}
    assert set(successes(store).values()) == {1}
    assert len(successes(store)) == total
    rig.quiesce(store)


@pytest.mark.any_documents
def test_rival_records_of_the_same_attempts_leave_each_value_one_creator(store: Store, race: Race) -> None:
    """Two pools, a frozen one and a replay: whoever writes the record of an attempt first made its outputs."""
    names = [f"t{n}" for n in range(400)]
    rivals = {f"pool-{n}": names[:: -1 if n % 2 else 1] for n in range(4)}
    counted = dict(zip(rivals, race(*((racers.claim, token, order) for token, order in rivals.items())), strict=True))
    assert sorted(name for mine in counted.values() for name in mine) == sorted(names)
    creators = {doc["task"]: doc["token"] for doc in store.provenance.find({}, ["task", "token"])}
    assert creators == {name: token for token, mine in counted.items() for name in mine}
    assert store.provenance.count_documents({}) == len(names)
    assert sum(map(bool, counted.values())) > 1, "one of them wrote all: nothing was raced"


def test_people_who_write_on_the_same_tasks_lose_nothing(store: Store, race: Race) -> None:
    ids = [f"t{n}" for n in range(50)]
    rig.submit(store, *map(task, ids))
    race((racers.remark, "x", ids), (racers.remark, "y", ids), (racers.drain, "pool", len(ids)))
    kept = {f"{name}.{number}" for name in "xy" for number in range(0, 10, 2)}
    for doc in store.tasks.find({}):
        assert (set(doc["tags"]), set(doc["groups"]), doc["state"]) == (kept, kept, "done")
        assert len(doc["tags"]) == len(doc["groups"]) == len(kept)
    notes = tasks.get(store, ids[:1])[ids[0]]["notes"]
    assert sorted(note["text"] for note in notes) == sorted(f"{name} {number}" for name in "xy" for number in range(10))
