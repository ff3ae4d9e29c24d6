"""Scalers at work on a real store, with stand-ins for a PBS that never has a node free, and on this machine."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

import pilot
from pilot import scaler, signing
from pilot.config import create_project
from pilot.errors import StoreUnavailable
from pilot.executors.batch import pbs
from pilot.executors.batch.scheduler import Scheduler
from pilot.scaler import Round, Scaler
from pilot.scaling import DEATHS, MARGIN_S, Seen, Wishes
from pilot.site_files import load_site
from pilot.states import PilotState
from pilot.store import pilots, scaling
from pilot.store.mongo import Store
from pilot.store.tasks import ready_counts
from tests import batch_rig, pilot_tasks, queue_rig
from tests.batch_rig import User
from tests.queue_rig import NOW
from tests.rig import LONG_S, Rig, wait_until


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = batch_rig.fake_pbs(tmp_path, monkeypatch)
    (home / "free").unlink()
    return home


@pytest.fixture
def made(store: Store, mongod_uri: str, fake: Path, tmp_path: Path) -> Callable[..., Scaler]:
    """Return what makes scalers of one site, whose store has work for one pilot."""
    (tmp_path / "project").mkdir()
    config = create_project(tmp_path / "project", mongod_uri)  # else it would start a server of its own
    signing.create_key(config.key_file)
    queue_rig.submit(store, *[queue_rig.task(f"t-{number}") for number in range(20)])
    return lambda **wishes: Scaler(store, config, load_site("pbs"), Wishes(**wishes))


def long_ago(store: Store, **fields: timedelta) -> None:
    """Let times of all pilots be earlier ones."""
    for name, ago in fields.items():
        store.pilots.update_many({}, {"$set": {name: datetime.now(UTC) - ago}})


# -- rounds ---------------------------------------------------------------------------------------


def test_of_scalers_that_race_one_submits(store: Store, made: Callable[..., Scaler]) -> None:
    rounds: list[Round] = []
    barrier = threading.Barrier(3)

    def race() -> None:
        mine = made()
        barrier.wait(LONG_S)
        rounds.append(mine.round())

    for _ in range(4):
        threads = [threading.Thread(target=race) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG_S)
        assert sum(len(one.asked) for one in rounds) == 1, rounds
        assert store.pilots.count_documents({}) == 1
        rounds.clear()
        store.pilots.delete_many({})


def test_a_round_belongs_to_one_until_it_ends_or_time_is_over(store: Store) -> None:
    assert scaling.begin(store, "s", "one", "s")
    assert scaling.begin(store, "s", "two", "s") is None
    assert scaling.begin(store, "other", "two", "s")
    assert scaling.renew(store, "s", "one")
    store.scalers.update_one({"_id": "s"}, {"$set": {"until": datetime.now(UTC) - timedelta(seconds=1)}})
    assert scaling.begin(store, "s", "two", "s")
    assert not scaling.renew(store, "s", "one")
    scaling.end(store, "s", "one")
    assert scaling.renew(store, "s", "two")
    scaling.end(store, "s", "two")
    assert scaling.begin(store, "s", "three", "s")


def test_a_scaler_that_lost_its_round_asks_for_nothing_more(
    store: Store, made: Callable[..., Scaler], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = made(min=1)
    monkeypatch.setattr(one, "_submit", lambda settings: pytest.fail("it was to ask for nothing"))
    look = one._look

    def slowly(*facts: Any) -> Any:
        store.scalers.update_one({"_id": "pbs"}, {"$set": {"holder": "another"}})
        return look(*facts)

    monkeypatch.setattr(one, "_look", slowly)
    assert "another scaler has begun one" in one.round().trouble
    assert scaling.renew(store, "pbs", "another")


def test_what_waits_is_counted_up_to_a_limit(store: Store, made: Callable[..., Scaler]) -> None:
    assert ready_counts(store) == {"c1": 20}
    assert ready_counts(store, 7) == {"c1": 7}


def test_a_store_that_is_away_is_waited_for(made: Callable[..., Scaler], monkeypatch: pytest.MonkeyPatch) -> None:
    one, stop, told = made(), threading.Event(), []
    answers = iter([StoreUnavailable("no server"), Round("nothing waits")])

    def answer() -> Round:
        found = next(answers)
        if isinstance(found, StoreUnavailable):
            raise found
        stop.set()
        return found

    monkeypatch.setattr(one, "round", answer)
    assert scaler.run(one, 0.01, told.append, stop).well
    assert [done.trouble for done in told] == ["no server", ""]


# -- pilots in the queue --------------------------------------------------------------------------


def test_pilots_of_people_are_supply_and_not_under_the_cap(store: Store, made: Callable[..., Scaler]) -> None:
    assert len(made(max=1).round().asked) == 1
    store.pilots.update_many({}, {"$unset": {"scaler": ""}})
    assert made(max=1).round().why == "what is up or in the queue is enough for what waits"
    assert len(made(max=1, min=1).round().asked) == 1


def test_while_the_batch_system_does_not_answer_nothing_is_asked_for(
    store: Store, made: Callable[..., Scaler], fake: Path
) -> None:
    assert len(made().round().asked) == 1
    (fake / "away").touch()
    found = made(min=2).round()
    assert "cannot connect to server" in found.why
    assert not found.well
    assert store.pilots.count_documents({}) == 1


def test_a_pilot_that_may_be_queued_counts_until_it_is_given_up(
    store: Store, made: Callable[..., Scaler], fake: Path
) -> None:
    (fake / "away").touch()
    assert "cannot connect to server" in made().round().trouble
    (fake / "away").unlink()
    found = made(min=2).round()
    assert "it is not known whether pilot" in found.why
    assert (found.queued, found.asked) == (1, ())
    long_ago(store, created=timedelta(minutes=11))
    found = made().round()
    assert (found.queued, len(found.asked)) == (0, 1)


def test_jobs_that_fail_again_and_again_pause_until_a_person_resumes(store: Store, made: Callable[..., Scaler]) -> None:
    for _ in range(DEATHS):
        (asked,) = made().round().asked
        pilots.end(store, asked.pilot, PilotState.LOST, "its batch job ended as F before its agent had reported")
    for _ in range(2):
        found = made().round()
        assert (found.paused, found.asked) == (True, ())
        assert "3 pilots in a row died early, the last one: its batch job ended as F" in found.why
    store.pilots.update_many({}, {"$set": {"state": "ended", "started": datetime.now(UTC)}})
    assert made().round().paused  # until a person has looked, whatever happens
    assert scaling.resume(store, "pbs")
    assert len(made().round().asked) == 1


# -- facts from documents -------------------------------------------------------------------------

MACHINE = scaler.machine_of(load_site("pbs"))


def seen(doc: dict[str, Any], *pools: dict[str, Any], here: bool = True) -> Seen:
    base = {"state": "running", "nodes": 2, "slots": 8, "seen": NOW, "scaler": True}
    return scaler.seen_as({**base, **doc}, pools, MACHINE, here, NOW)


def test_a_pilot_in_the_queue_is_what_its_site_gives() -> None:
    found = seen({"state": "starting", "walltime_s": 3600.0})
    assert [layout.slots for layout in found.layouts] == [8]
    assert (found.left_s, found.queued, found.able, found.ours) == (3600.0 - MARGIN_S, True, True, True)


def test_a_pilot_that_is_up_is_what_its_pools_say() -> None:
    pools = [{"nodes": [["n1", 3, 2]], "slots": 3, "slot_cores": 4, "in_hand": 5, "waiting": 2}, {"slots": 0}]
    found = seen({"end_at": NOW + timedelta(minutes=5)}, *pools)
    assert [(layout.slots, layout.slot_cores) for layout in found.layouts] == [(3, 4)]
    assert (found.left_s, found.held, found.queued) == (300.0, 7, False)


def test_who_takes_no_work() -> None:
    old = NOW - timedelta(seconds=31)
    assert seen({}).able
    assert not seen({"state": "draining"}).able
    assert not seen({"drain": "drain"}).able
    assert not seen({"seen": old}).able
    assert seen({"seen": old, "batch": "pbs"}).able  # its batch system says when it is over


def test_how_long_tasks_took_lately() -> None:
    assert scaler.mean_s([{"busy": 4, "rate": 0.5}, {"busy": 2, "rate": 1.5}]) == 3.0
    assert scaler.mean_s([{"busy": 4, "rate": 0.0}, {}]) is None


def test_memory_is_what_earlier_pilots_had(store: Store, made: Callable[..., Scaler]) -> None:
    (asked,) = made().round().asked
    pilots.open_pool(store, "old", asked.pilot, {"slot_memory": 1 << 30})
    pilots.end(store, asked.pilot, PilotState.ENDED, "had no work")
    store.tasks.update_many({}, {"$set": {"class": f"c1m{9 << 30}"}})
    assert "the largest node here has 4" in next(iter(made().round().never.values()))


# -- this machine ---------------------------------------------------------------------------------


def here(rig: Rig, name: str, **changes: Any) -> User:
    """Return a user of a site without a batch system."""
    data = load_site().model_dump(mode="json", exclude_unset=True) | {"name": name, "slots": 2}
    path = rig.config.root / f"{name}.yaml"
    path.write_text(yaml.safe_dump(data | changes))
    return User(rig, path, Scheduler(pbs))


@pytest.mark.slow
def test_a_site_without_a_batch_system(lobby: Rig) -> None:
    with lobby.open():
        futures = pilot.task(pilot_tasks.nap).map(range(20), seconds=0.01)
        (asked,) = here(lobby, "here").scale("--idle", "1s")["asked"]
        assert [future.result(LONG_S) for future in futures] == list(range(20))
    wait_until(lambda: not pilots.listing(lobby.store, live_only=True), LONG_S, "the idle pilot has ended")
    ((latest, _),) = pilots.asked_for(lobby.store, "here", None, 2)
    assert (latest["_id"], latest["reason"]) == (asked["pilot"], "had no work for 1 s")


@pytest.mark.slow
def test_a_pilot_that_cannot_come_up(lobby: Rig) -> None:
    user = here(lobby, "broken", launcher={"command": ["no-such-mpiexec"]})
    for _ in range(DEATHS):
        assert "no-such-mpiexec" in user.scale("--min", "1", code=1)["trouble"]
    found = user.scale("--min", "1", code=1)
    assert (found["paused"], found["asked"]) == (True, [])
    assert "no-such-mpiexec" in found["why"]


@pytest.mark.slow
def test_the_loop_ends_on_a_signal_and_prints_what_changes(lobby: Rig) -> None:
    user = here(lobby, "idle")
    argv = [sys.executable, "-P", "-m", "pilot", "scale", "--site", str(user.site), "--interval", "0.1s"]
    with subprocess.Popen(argv, cwd=lobby.config.root, stdout=subprocess.PIPE, text=True) as loop:
        assert loop.stdout is not None
        first = loop.stdout.readline()
        scalers = lobby.store.scalers
        wait_until(lambda: scalers.find_one({"_id": "idle", "rounds": {"$gt": 3}}), LONG_S, "it has done more rounds")
        loop.send_signal(signal.SIGTERM)
        assert loop.stdout.read() == ""
        assert loop.wait(LONG_S) == 0
    assert first.endswith(" nothing waits; 0 pilots up, 0 in the queue\n")
