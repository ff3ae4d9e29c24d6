"""Pilots through PBS: a real one if `qsub` is there, else programs that say what a real one said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from pilot.executors.batch import pbs
from pilot.executors.batch.scheduler import Scheduler
from pilot.site_files import load_site
from pilot.states import JobState
from tests import batch_rig
from tests.batch_rig import UP_S, User
from tests.conftest import REAL_PBS
from tests.rig import Rig, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def user(lobby: Rig, fake_pbs: Path) -> Iterator[User]:
    """Return a user with a site file made of the generic one; delete what is left afterwards."""
    data = load_site("pbs").model_dump(mode="json", exclude_unset=True)
    data |= {"name": "sim", "slots": 2}
    data["batch"] |= {"queue": "workq", "options": ["-l select={nodes}:ncpus=1"]}
    path = lobby.config.root / "sim.yaml"
    path.write_text(yaml.safe_dump(data))
    scheduler = Scheduler(pbs)
    yield User(lobby, path, scheduler)
    (fake_pbs / "away").unlink(missing_ok=True)
    scheduler.cancel([path.read_text().strip() for path in lobby.config.folder.glob("pilots/*/job.id")])


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
    batch_rig.check_it_ends_before_its_time(user)


def test_a_job_that_fails_before_its_agent_begins(user: User) -> None:
    batch_rig.check_it_is_given_up_when_its_job_fails(user)


@pytest.mark.skipif(REAL_PBS, reason="a real server is not to be ended")
def test_a_server_that_is_away(user: User, fake_pbs: Path) -> None:
    (fake_pbs / "free").unlink()
    asked = user.up()
    (fake_pbs / "away").touch()
    assert "cannot connect to server" in user.view(asked["pilot"])["reason"]
    assert user.view(asked["pilot"])["state"] == "starting"  # nothing is known: nothing is concluded
    assert "cannot connect to server" in user.run("down", code=1)
    (fake_pbs / "away").unlink()
    wait_until(lambda: user.state(asked["job"]) is JobState.CANCELLED or user.run("down"), UP_S, "it is taken back")
