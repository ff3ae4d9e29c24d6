"""Things are killed for real, at random moments under load, and afterwards nothing is lost and nothing done twice."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import pilot
from pilot.states import Outcome, PilotState
from pilot.store import pilots
from tests import pilot_tasks
from tests.conftest import need
from tests.rig import LONG_S, Pilot, Rig, ids, kill, processes, script, wait_until

pytestmark = pytest.mark.timeout(300)

TASKS = 800
SECONDS = 0.01


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    need("mongod")
    need("mpiexec")
    with Rig(tmp_path / "p") as made:
        yield made


@pytest.fixture
def dice(request: pytest.FixtureRequest) -> random.Random:
    """Return random numbers whose seed is printed; ``PILOT_SEED`` repeats them."""
    import os

    seed = int(os.environ.get("PILOT_SEED") or time.time_ns() % 1_000_000)
    print(f"PILOT_SEED={seed}")
    return random.Random(seed)


def load(count: int = TASKS, seconds: float = SECONDS, **options: object) -> list[pilot.Future]:
    """Submit short tasks that may be tried often."""
    options = {"retries": 50, **options}
    return pilot.task(**options)(pilot_tasks.nap).map(range(count), seconds=seconds)


def done(rig: Rig) -> int:
    return rig.store.tasks.count_documents({"state": "done"})


def moments(dice: random.Random, rig: Rig, rounds: int, total: int = TASKS) -> Iterator[int]:
    """Yield at `rounds` random moments of the work on `total` tasks."""
    for number in sorted(dice.sample(range(total // 20, total * 8 // 10), rounds)):
        wait_until(lambda number=number: done(rig) >= number, LONG_S, f"{number} tasks are done", rig.logs)
        time.sleep(dice.random() * 0.05)  # a random moment, not a wait
        yield number


def finish(rig: Rig, futures: list[pilot.Future], clean: bool = True) -> None:
    """Wait for the end of all tasks, check that nothing was lost or done twice, that nothing is left over."""
    rig.settled()
    assert [future.result(LONG_S) for future in futures] == list(range(len(futures)))
    rig.check(ids(futures))
    if clean:
        rig.drain()
        rig.check_clean()


# -- parts of a pool ------------------------------------------------------------------------------


def test_children_are_killed(rig: Rig, dice: random.Random) -> None:
    one = rig.start()
    with rig.open():
        futures = load()
        coordinator = one.rank(0)
        killed = [kill(one.child(dice.choice((1, 2)))) for _ in moments(dice, rig, 6)]
        finish(rig, futures, clean=False)
        assert any(killed)
        assert one.rank(0) == coordinator, "a dead child has cost the pool"
        crashed = list(rig.store.provenance.find({"outcome": "crashed"}))
        assert len(crashed) <= 6
        assert all("SIGKILL" in doc["exception"]["message"] for doc in crashed)
        assert rig.store.provenance.count_documents({"outcome": {"$nin": ["crashed", "succeeded"]}}) == 0
    rig.drain()
    rig.check_clean()


@pytest.mark.parametrize("rank", [1, 0], ids=["slot", "coordinator"])
def test_a_rank_is_killed(rig: Rig, dice: random.Random, rank: int) -> None:
    one = rig.start()
    with rig.open():
        futures = load(retries=0)  # what goes down with a pool is not the task's fault
        for number in moments(dice, rig, 3):
            kill(one.rank(rank))
            killed = time.monotonic()
            wait_until(lambda number=number: done(rig) > number + 200 or done(rig) == TASKS, LONG_S, "more is done", rig.logs)
            print(f"rank {rank} killed after {number} tasks, at work again after {time.monotonic() - killed:.2f} s")
            if time.monotonic() - killed > 8: print(rig.logs())
        finish(rig, futures)
    assert {doc["reason"] for doc in pilots.pools(rig.store, one.id, live_only=False)} > {"drained"}


def test_an_agent_is_killed_and_its_pool_does_not_live_on(rig: Rig, dice: random.Random) -> None:
    one = rig.start()
    with rig.open():
        futures = load()
        for _ in moments(dice, rig, 1):
            kill(one.process.pid)
        killed = time.monotonic()
        one.gone()
        print(f"pool gone {time.monotonic() - killed:.2f} s after its agent")
        assert 0 < rig.store.tasks.count_documents({"state": "ready"})
        assert rig.store.tasks.count_documents({"state": "leased"}) == 0, "the orphaned pool was to return its leases"
        rig.start()
        finish(rig, futures)
    assert rig.store.pilots.find_one({"_id": one.id})["state"] == PilotState.LOST


def test_an_agent_is_killed_and_another_pilot_is_there(rig: Rig, dice: random.Random) -> None:
    one, two = rig.start(), rig.start()
    with rig.open():
        futures = load()
        for _ in moments(dice, rig, 1):
            kill(one.process.pid)
        finish(rig, futures, clean=False)
        one.gone()
        wait_until(
            lambda: rig.store.pilots.find_one({"_id": one.id})["state"] == PilotState.LOST, LONG_S, "the dead pilot is lost"
        )
        assert two.process.poll() is None
    rig.drain()
    rig.check_clean()
