"""Things are killed for real, at random moments under load, and afterwards nothing is lost and nothing done twice."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import pilot
from pilot.states import PilotState
from pilot.store import pilots
from tests import pilot_tasks
from tests.conftest import need
from tests.rig import LONG_S, Pilot, Rig, ids, kill, script, wait_until

pytestmark = pytest.mark.timeout(300)

TASKS = 500
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
    crashed = list(rig.store.provenance.find({"outcome": {"$ne": "succeeded"}}))
    assert len(crashed) <= 6
    assert {doc["outcome"] for doc in crashed} <= {"crashed"}
    assert all("SIGKILL" in doc["exception"]["message"] for doc in crashed)
    rig.drain()
    rig.check_clean()


@pytest.mark.parametrize("rank", [1, 0], ids=["slot", "coordinator"])
def test_a_rank_is_killed(rig: Rig, dice: random.Random, rank: int) -> None:
    one = rig.start()
    with rig.open():
        futures = load(retries=0)  # what goes down with a pool is not the task's fault
        for _ in moments(dice, rig, 3):
            pid = one.rank(rank)
            kill(pid)
            killed = time.monotonic()
            wait_until(lambda pid=pid: one.seen("rank", rank) not in ([], [pid]), LONG_S, "the pool is back", rig.logs)
            again, back = done(rig), time.monotonic()
            wait_until(lambda again=again: done(rig) > again or done(rig) == TASKS, LONG_S, "it works", rig.logs)
            print(
                f"rank {rank} killed: restarted in {back - killed:.2f} s, at work in {time.monotonic() - killed:.2f} s"
            )
        finish(rig, futures)
    lost = {doc["_id"]: doc["lost"] for doc in rig.store.tasks.find({"lost": {"$gt": 0}})}
    assert all(len(rig.records(task)) == count + 1 for task, count in list(lost.items())[:20])


# -- agents and pilots ----------------------------------------------------------------------------


def test_an_agent_is_killed_and_its_pool_does_not_live_on(rig: Rig, dice: random.Random) -> None:
    one = rig.start()
    with rig.open():
        futures = load(seconds=0.04)  # still at work when the pool notices
        for _ in moments(dice, rig, 1, TASKS // 8):
            kill(one.process.pid)
        killed = time.monotonic()
        one.gone()
        print(f"pool gone {time.monotonic() - killed:.2f} s after its agent")
        assert rig.counts().keys() == {"done", "ready"}, "the orphaned pool was to return its leases"
        assert rig.store.provenance.count_documents({"outcome": {"$ne": "succeeded"}}) == 0
        rig.start()
        finish(rig, futures)
    assert state_of(rig, one) == PilotState.LOST


def test_an_agent_is_killed_and_another_pilot_is_there(rig: Rig, dice: random.Random) -> None:
    one, two = rig.start(), rig.start()
    with rig.open():
        futures = load()
        for _ in moments(dice, rig, 1):
            kill(one.process.pid)
        finish(rig, futures, clean=False)
        one.gone()
        wait_until(lambda: state_of(rig, one) == PilotState.LOST, LONG_S, "the dead pilot is lost", rig.logs)
        assert two.process.poll() is None
    rig.drain()
    rig.check_clean()


def test_one_of_two_pilots_is_killed_wholly(rig: Rig, dice: random.Random) -> None:
    one, two = rig.start(), rig.start()
    with rig.open():
        futures = load(retries=0)
        for _ in moments(dice, rig, 1):
            wait_until(lambda: rig.store.tasks.distinct("lease", {"lease": {"$gt": ""}}), LONG_S, "they work")
            one.kill()
        killed = time.monotonic()
        finish(rig, futures, clean=False)
        print(f"all done {time.monotonic() - killed:.2f} s after one of two pilots was killed")
        wait_until(lambda: state_of(rig, one) == PilotState.LOST, LONG_S, "the dead pilot is lost", rig.logs)
        assert two.process.poll() is None
    rig.drain()
    rig.check_clean()


def test_a_frozen_pilot_wakes_after_others_took_its_work(rig: Rig, dice: random.Random, tmp_path: Path) -> None:
    """What it had leased is done by the other; what it reports late changes nothing; it works on under a new token."""
    notes = tmp_path / "notes"
    one, two = rig.start(), rig.start()
    with rig.open():
        futures = pilot.task(pilot_tasks.note).map(range(TASKS), path=str(notes), seconds=0.01)
        wait_until(lambda: tokens_of(rig, one), LONG_S, "it is up", one.log)
        for _ in moments(dice, rig, 1, TASKS // 2):
            frozen = one.freeze()
        tokens = tokens_of(rig, one)
        wait_until(
            lambda: rig.store.pools.find_one({"_id": {"$in": tokens}, "state": "dead"}), LONG_S, "it is fenced", two.log
        )
        rig.settled()
        held = rig.store.provenance.count_documents({"token": {"$in": tokens}, "outcome": "lost"})
        more = pilot.task(pilot_tasks.nap).map(range(200), seconds=0.05)
        for pid in frozen:
            kill(pid, signal.SIGCONT)
        wait_until(lambda: set(tokens_of(rig, one)) - set(tokens), LONG_S, "it has a new token", rig.logs)
        finish(rig, [*futures, *more][:TASKS], clean=False)
        assert [future.result(LONG_S) for future in more] == list(range(200))
        rig.check(ids(more))
        new = list(set(tokens_of(rig, one)) - set(tokens))
        assert rig.store.provenance.count_documents({"token": {"$in": new}}) > 0, "the pilot that woke did nothing"
        assert one.process.poll() is None
        print(f"{held} attempts of the frozen pilot were lost")
        ran = [line.split()[0] for line in notes.read_text().splitlines()]
        print(f"{len(ran) - len(set(ran))} tasks ran twice, none counted twice")
    rig.drain()
    rig.check_clean()


@pytest.mark.parametrize("who", ["coordinator", "agent"])
def test_one_process_of_a_pilot_hangs(rig: Rig, dice: random.Random, who: str) -> None:
    """An agent replaces a pool that hangs; a pool whose agent hangs drains, and a new one starts when it wakes."""
    one = rig.start()
    with rig.open():
        futures = load()
        coordinator = one.rank(0)
        for _ in moments(dice, rig, 1):
            pid = coordinator if who == "coordinator" else one.process.pid
            kill(pid, signal.SIGSTOP)
        stopped = time.monotonic()
        if who == "agent":
            one.gone()
            kill(pid, signal.SIGCONT)
        wait_until(lambda: one.seen("rank", 0) not in ([], [coordinator]), LONG_S, "there is a new pool", one.log)
        print(f"a new pool {time.monotonic() - stopped:.2f} s after the {who} hung")
        finish(rig, futures)
    assert one.process.poll() == 0
    assert state_of(rig, one) == PilotState.ENDED


def test_sigterm_drains(rig: Rig, dice: random.Random) -> None:
    """What runs is finished, what has not begun is returned, nobody is blamed."""
    one = rig.start()
    with rig.open():
        futures = load(seconds=0.02, retries=0)
        for _ in moments(dice, rig, 1, TASKS // 2):
            one.signal(signal.SIGTERM)
        asked = time.monotonic()
        assert one.wait() == 0
        print(f"drained in {time.monotonic() - asked:.2f} s")
        rig.check_clean()
        assert rig.counts().keys() == {"done", "ready"}
        assert rig.store.provenance.count_documents({"outcome": {"$ne": "succeeded"}}) == 0
        assert rig.store.tasks.count_documents({"lost": {"$gt": 0}}) == 0
        assert state_of(rig, one) == PilotState.ENDED
        rig.start()
        finish(rig, futures)


def test_walltime_of_the_pilot(rig: Rig) -> None:
    """It begins nothing late and ends in time; what it could not finish is done by the next one, without blame."""
    end_at = time.time() + 10.0
    one = rig.start(end_at=end_at, drain_s=6.0, stop_s=5.0)
    with rig.open():
        long = pilot.task(pilot_tasks.nap).map(range(2), seconds=8.0)
        wait_until(lambda: busy(rig) == 2, LONG_S, "they run", rig.logs)
        too_long = pilot.task(walltime="1h")(pilot_tasks.nap).submit(7)
        short = load(100, seconds=0.05, retries=0)
        assert one.wait() == 0
        print(f"ended {end_at - time.time():.2f} s before its walltime")
        assert time.time() < end_at
        rig.check_clean()
        assert [doc["outcome"] for doc in rig.store.provenance.find({"outcome": {"$ne": "succeeded"}})] == ["lost"] * 2
        assert rig.store.tasks.count_documents({"tried": {"$gt": 0}}) == 0
        found = rig.store.tasks.find_one({"_id": too_long.id})
        assert found
        assert found["attempt"] == 0, "it could not end in time"
        rig.start()
        finish(rig, short, clean=False)
        assert [future.result(LONG_S) for future in [*long, too_long]] == [0, 1, 7]
        rig.check(ids([*long, too_long]))
    rig.drain()
    rig.check_clean()


@pytest.mark.parametrize("now", [False, True], ids=["drain", "now"])
def test_down(rig: Rig, now: bool) -> None:
    """`pilot down` waits for what runs; with ``--now`` it is ended, lost without blame."""
    one = rig.start()
    with rig.open():
        futures = pilot.task(pilot_tasks.nap).map(range(40), seconds=2.0 if not now else 30.0)
        wait_until(lambda: busy(rig) == 2, LONG_S, "two tasks run", rig.logs)
        assert pilots.drain(rig.store, [one.id], now=now) == 1
        asked = time.monotonic()
        assert one.wait() == 0
        took = time.monotonic() - asked
        print(f"{'now' if now else 'drain'}: down in {took:.2f} s")
        rig.check_clean()
        assert state_of(rig, one) == PilotState.ENDED
        records = list(rig.store.provenance.find())
        assert {doc["outcome"] for doc in records} == {"lost" if now else "succeeded"}
        assert len(records) == 2
        assert rig.store.tasks.count_documents({"state": "ready"}) == len(futures) - (0 if now else 2)
        assert rig.store.tasks.count_documents({"tried": {"$gt": 0}}) == 0
        rig.check()


# -- client ---------------------------------------------------------------------------------------

BIG_MAP = """
import sys, pilot
from tests import pilot_tasks
def numbers():
    for number in range(1_000_000):
        if number == 6000:
            print("submitting", flush=True)
        yield number
with pilot.open() as project:
    pilot.task(pilot_tasks.double).map(numbers())
"""


def test_a_client_is_killed_in_the_middle_of_a_map(rig: Rig, dice: random.Random) -> None:
    rig.start()
    client = script(rig.config, BIG_MAP)
    try:
        assert client.stdout is not None
        assert client.stdout.readline() == "submitting\n"
        time.sleep(dice.random() * 0.3)  # a random moment, not a wait
    finally:
        client.kill()
        client.communicate()
    submitted = [doc["_id"] for doc in rig.store.tasks.find({}, ["_id"])]
    print(f"{len(submitted)} tasks were submitted")
    assert 2000 <= len(submitted) < 1_000_000
    rig.settled()
    rig.check(submitted)
    with rig.open() as project:
        some = dice.sample(submitted, 50)
        futures = [project.task(task) for task in some]
        assert [future.result(LONG_S) for future in futures] == [2 * int(task.rpartition("-")[2]) for task in some]
    rig.drain()
    rig.check_clean()


# -- the database ---------------------------------------------------------------------------------


def test_mongod_is_killed_and_restarted(rig: Rig, dice: random.Random) -> None:
    one = rig.start()
    with rig.open():
        futures = load(retries=0)
        for _ in moments(dice, rig, 3):
            rig.kill_server()
            killed = time.monotonic()
            time.sleep(dice.random())  # how long it is away
            rig.server.start()
            again = done(rig)
            wait_until(lambda again=again: done(rig) > again or done(rig) == TASKS, LONG_S, "more is done", rig.logs)
            print(f"mongod killed, tasks end again after {time.monotonic() - killed:.2f} s")
        finish(rig, futures)
    assert one.process.poll() == 0
    assert rig.store.provenance.count_documents({"outcome": {"$ne": "succeeded"}}) == 0, "an outage is no failure"


@pytest.mark.parametrize("how", ["stopped", "frozen"])
def test_mongod_is_away_for_five_seconds(rig: Rig, dice: random.Random, how: str, tmp_path: Path) -> None:
    """Results are spooled meanwhile; nothing runs twice, although heartbeats were away longer than their TTL."""
    notes = tmp_path / "notes"
    one, two = rig.start(slots=1), rig.start(slots=1)
    with rig.open():
        futures = pilot.task(pilot_tasks.note).map(range(TASKS), path=str(notes), seconds=0.01)
        for _ in moments(dice, rig, 1, TASKS // 2):  # so that there are results to be spooled
            pid = rig.server_pid()
            assert pid is not None
            if how == "stopped":
                rig.server.stop()
                wait_until(rig.spooled, LONG_S, "results are spooled", rig.logs)  # after PILOT_SELECT_S
                rig.server.start()
            else:
                kill(pid, signal.SIGSTOP)
                time.sleep(5.0)  # how long it is away
                kill(pid, signal.SIGCONT)
        finish(rig, futures, clean=False)
        ran = [line.split()[0] for line in notes.read_text().splitlines()]
        assert sorted(map(int, ran)) == list(range(TASKS)), "an outage of the store has made tasks run twice"
    assert [pilot.process.poll() for pilot in (one, two)] == [None, None]
    rig.drain()
    rig.check_clean()


def test_a_coordinator_dies_while_mongod_is_away(rig: Rig, dice: random.Random) -> None:
    """What it has spooled is replayed by its agent before the leases are returned."""
    one = rig.start()
    with rig.open():
        futures = load(retries=0)
        for _ in moments(dice, rig, 1):
            rig.server.stop()
        wait_until(rig.spooled, LONG_S, "results are spooled", one.log)
        kill(one.rank(0))
        wait_until(lambda: "pool" in one.words() and not one.seen("rank"), LONG_S, "the pool is gone", one.log)
        rig.server.start()
        finish(rig, futures)
        assert "replayed" in one.words()


# -- helpers --------------------------------------------------------------------------------------


def state_of(rig: Rig, one: Pilot) -> str:
    found = rig.store.pilots.find_one({"_id": one.id})
    return found["state"] if found else "absent"


def tokens_of(rig: Rig, one: Pilot) -> list[str]:
    return [doc["_id"] for doc in pilots.pools(rig.store, one.id, live_only=False)]


def busy(rig: Rig) -> int:
    """Return how many slots are at work, as their pools say."""
    return sum(doc.get("busy", 0) for doc in pilots.pools(rig.store))
