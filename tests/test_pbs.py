"""Pilots through PBS: a real one if `qsub` is there, else programs that say what a real one said."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

import pilot
from pilot.executors.batch import pbs
from pilot.executors.batch.scheduler import Scheduler
from pilot.scaling import REFUSALS
from pilot.site_files import load_site
from pilot.states import JobState
from pilot.store.local import LocalServer
from tests import batch_rig, pilot_tasks
from tests.batch_rig import UP_S, User, wait_until
from tests.rig import Rig, kill

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

REAL = shutil.which("qsub") is not None


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the fakes on the PATH, unless there is a real PBS; return the folder in which they keep jobs."""
    return tmp_path if REAL else batch_rig.fake_pbs(tmp_path, monkeypatch)


@pytest.fixture
def user(lobby: Rig, fake: Path) -> Iterator[User]:
    """Return a user with a site file made of the generic one; delete what is left afterwards."""
    data = load_site("pbs").model_dump(mode="json", exclude_unset=True)
    data |= {"name": "sim", "slots": 2}
    data["batch"] |= {"queue": "workq", "options": ["-l select={nodes}:ncpus=1"]}
    path = lobby.config.root / "sim.yaml"
    path.write_text(yaml.safe_dump(data))
    scheduler = Scheduler(pbs)
    user = User(lobby, path, scheduler)
    yield user
    (fake / "away").unlink(missing_ok=True)
    scheduler.cancel([path.read_text().strip() for path in lobby.config.folder.glob("pilots/*/job.id")])
    wait_until(lambda: user.run("pilots", "--live", "--json") == "[]\n", UP_S, "all pilots are over")


def test_a_pilot(user: User) -> None:
    batch_rig.check_it_works(user, user.up())


def test_a_pilot_that_can_never_run(user: User) -> None:
    asked = user.up("--nodes", "5")
    assert "Can Never Run: Insufficient amount of resource" in user.view(asked["pilot"])["reason"]
    assert "ended" in user.run("down")
    assert user.await_over(asked["job"]) is JobState.CANCELLED


def test_what_pbs_refuses(user: User) -> None:
    said = user.run("up", "--site", str(user.site), "--walltime", "10m", "--queue", "nosuch", code=1)
    assert "PBS refused the job" in said
    assert "qsub: Unknown queue" in said
    assert json.loads(user.run("pilots", "--json"))[0]["state"] == "ended"


def test_a_pilot_that_is_deleted(user: User) -> None:
    batch_rig.check_its_work_is_given_back_when_it_is_cancelled(user, user.up())


def test_the_walltime(user: User) -> None:
    batch_rig.check_it_ends_before_its_time(user, "25s")


def test_a_module_that_is_not_there(user: User) -> None:
    batch_rig.check_a_module_that_is_not_there(user)


def test_a_job_that_fails_before_its_agent_begins(user: User) -> None:
    batch_rig.check_it_is_given_up_when_its_job_fails(user)


@pytest.mark.skipif(REAL, reason="a real server is not to be ended")
def test_a_server_that_is_away(user: User, fake: Path) -> None:
    (fake / "free").unlink()
    asked = user.up()
    (fake / "away").touch()
    assert "cannot connect to server" in user.view(asked["pilot"])["reason"]
    assert user.view(asked["pilot"])["state"] == "starting"  # nothing is known: nothing is concluded
    assert "cannot connect to server" in user.run("down", code=1)
    (fake / "away").unlink()
    wait_until(lambda: user.state(asked["job"]) is JobState.CANCELLED or user.run("down"), UP_S, "it is taken back")


# -- scaling --------------------------------------------------------------------------------------


def test_pilots_come_with_work_and_end_without(user: User) -> None:
    assert user.scale()["why"] == "nothing waits"
    with user.rig.open():
        futures = pilot.task(pilot_tasks.nap).map(range(20), seconds=0.01)
        (asked,) = user.scale("--idle", "1s")["asked"]
        assert user.scale()["asked"] == []
        assert [future.result(UP_S) for future in futures] == list(range(20))
        assert futures[0].record()["job"] == asked["job"]
    assert user.await_over(asked["job"]) is JobState.COMPLETED
    assert user.view(asked["pilot"])["reason"] == "had no work for 1 s"
    assert user.scale()["up"] == 0


def test_pilots_that_pbs_refuses_again_and_again(user: User) -> None:
    words = ["--min", "1", "--queue", "nosuch"]
    long_ago = {"$set": {"ended": datetime.now(UTC) - timedelta(days=1)}}
    for _ in range(REFUSALS):
        assert "qsub: Unknown queue" in user.scale(*words, code=1)["trouble"]
        user.rig.store.pilots.update_many({"failed": True}, long_ago)
    assert "qsub: Unknown queue" in user.scale(*words, code=1)["why"]
    for command in ("status", "pilots"):
        assert "5 submissions in a row were refused, the last one: PBS refused the job" in user.run(command)
    assert user.scale("--min", "1", code=1)["paused"]
    assert "goes on" in user.run("scale", "--resume", "--site", str(user.site))
    (asked,) = user.scale("--min", "1")["asked"]
    assert user.state(asked["job"]) in (JobState.QUEUED, JobState.RUNNING)
    assert "no pilots are asked for" not in user.run("status")


# -- the store --------------------------------------------------------------------------------------


@pytest.fixture
def queued(user: User, fake: Path) -> Callable[..., dict[str, Any]]:
    """Return what asks for a pilot that stays in the queue until `qrun`."""
    if REAL:
        pytest.skip("only an operator of a real PBS may say when a job starts")

    def ask(*words: str) -> dict[str, Any]:
        (fake / "free").unlink(missing_ok=True)
        return user.up(*words)

    return ask


def run_now(asked: dict[str, Any]) -> None:
    subprocess.run(["qrun", asked["job"]], check=True, timeout=30)


def test_the_store_inside_of_a_pilot(user: User, queued: Callable[..., dict[str, Any]]) -> None:
    server = LocalServer(user.rig.config.store_folder)
    task = user.run("submit", "--", "true").split()[0]
    asked = queued("--store-in-pilot")
    assert not server.status().running
    assert "queued" in user.run("pilots")  # the store was started for this, and is stopped again
    assert not server.status().running
    run_now(asked)
    wait_until(lambda: server.inside and server.status().running, UP_S, "the pilot runs it", user.log(asked))
    wait_until(lambda: "succeeded" in user.run("show", task), UP_S, "the task is done", user.log(asked))
    assert "ended" in user.run("down")
    assert user.await_over(asked["job"]) is JobState.COMPLETED
    assert not server.status().running
    assert "succeeded" in user.run("show", task)
    server.start()


def test_a_pilot_that_cannot_reach_the_store_says_so(user: User, queued: Callable[..., dict[str, Any]]) -> None:
    asked = queued()
    path = user.rig.config.store_folder / "server.json"
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | {"host": "login1", "boot": "b", "addresses": ["127.0.0.1"]}))
    run_now(asked)
    user.await_over(asked["job"])
    path.write_text(before)
    reason = user.view(asked["pilot"])["reason"]
    assert "cannot work: the store in " in reason
    assert "listens only to that host itself" in reason
    assert "pilot store start --interface" in reason


def test_a_pilot_waits_for_a_store_that_is_just_started_anew(user: User, queued: Callable[..., dict[str, Any]]) -> None:
    asked = queued()
    server = LocalServer(user.rig.config.store_folder)
    server.stop()
    trouble = user.rig.config.pilot_folder(asked["pilot"]) / "trouble"
    run_now(asked)
    said = wait_until(lambda: trouble.is_file() and trouble.read_text(), UP_S, "it says so", user.log(asked))
    assert "cannot work yet: the store in " in said
    server.start()
    user.await_up(asked)
    assert "cannot work" not in user.view(asked["pilot"])["reason"]
    assert "ended" in user.run("down")


def listed(user: User, asked: dict[str, Any]) -> dict[str, Any]:
    """Return what a command, which starts the store if it is stopped, lists of a pilot."""
    views: list[dict[str, Any]] = json.loads(user.run("pilots", "--json"))
    return next(view for view in views if view["id"] == asked["pilot"])


def inside(user: User, asked: dict[str, Any]) -> LocalServer:
    """Start a pilot that has the store inside; return that."""
    server = LocalServer(user.rig.config.store_folder)
    run_now(asked)
    wait_until(lambda: server.inside == asked["pilot"] and server.runs, UP_S, "it has the store", user.log(asked))
    return server


def test_a_pilot_with_the_store_inside_that_is_deleted(user: User, queued: Callable[..., dict[str, Any]]) -> None:
    task = user.run("submit", "--retries", "0", "--", "sleep", "120").split()[0]
    asked = queued("--store-in-pilot")
    server = inside(user, asked)
    wait_until(lambda: "leased" in user.run("show", task), UP_S, "it is at work", user.log(asked))
    user.scheduler.cancel([asked["job"]])  # which signals the server as well
    assert user.await_over(asked["job"]) is JobState.CANCELLED
    assert not server.runs
    view = listed(user, asked)
    assert (view["state"], view["reason"]) == ("ended", "ended on SIGTERM"), user.words(asked["pilot"])
    assert "ready" in user.run("show", task)
    user.run("cancel", task)
    assert server.runs, "it is here again, and stays"
    assert server.home == ""


def test_a_store_that_dies_inside_of_its_pilot(user: User, queued: Callable[..., dict[str, Any]]) -> None:
    asked = queued("--store-in-pilot")
    server = inside(user, asked)
    user.await_up(asked)
    kill(server.status().pid or 0)
    task = user.run("submit", "--", "true").split()[0]
    wait_until(lambda: "succeeded" in user.run("show", task), UP_S, "the task is done", user.log(asked))
    assert server.inside == asked["pilot"]
    assert "ended" in user.run("down")
    assert user.await_over(asked["job"]) is JobState.COMPLETED
    assert not server.runs
    server.start()


def test_a_store_that_was_promised_to_a_pilot_that_is_taken_back(
    user: User, queued: Callable[..., dict[str, Any]]
) -> None:
    asked = queued("--store-in-pilot")
    server = LocalServer(user.rig.config.store_folder)
    assert server.home == asked["pilot"]
    assert "ended" in user.run("down")
    user.run("status")
    assert server.home == ""
    assert server.runs


def test_a_store_that_was_promised_stays_while_a_pilot_here_uses_it(
    user: User, queued: Callable[..., dict[str, Any]]
) -> None:
    asked = queued("--store-in-pilot")
    server = LocalServer(user.rig.config.store_folder)
    here = json.loads(user.run("up", "--site", "local", "--slots", "1", "--json"))
    user.run("status")
    assert server.runs
    assert "ended" in user.run("down", here["pilot"])
    wait_until(lambda: not server.runs or user.run("status"), UP_S, "the last who used it has stopped it")
    assert not server.runs
    assert server.home == asked["pilot"]
    user.run("down")
    user.run("status")


def test_a_pilot_that_ends_before_it_has_the_store(user: User, queued: Callable[..., dict[str, Any]]) -> None:
    asked = queued("--store-in-pilot")
    path = user.rig.config.store_folder / "server.json"
    before = json.loads(path.read_text())
    path.write_text(json.dumps(before | {"pid": 1, "host": "login1", "boot": "b"}))
    run_now(asked)
    log = user.rig.config.pilot_folder(asked["pilot"]) / "agent.log"
    wait_until(log.exists, UP_S, "its agent has begun")
    user.scheduler.cancel([asked["job"]])
    user.await_over(asked["job"])
    path.write_text(json.dumps(before))
    server = LocalServer(user.rig.config.store_folder)
    assert "ended on SIGTERM before it had begun" in listed(user, asked)["reason"]
    user.run("status")  # the first command has found that it is lost
    assert server.home == ""
    server.start()
