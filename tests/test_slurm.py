"""Pilots through a real Slurm: four simulated nodes on this machine."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator

import psutil
import pytest

import pilot
from pilot.executors.batch.scheduler import Scheduler
from pilot.states import JobState
from tests import batch_rig, pilot_tasks
from tests.batch_rig import UP_S, User, wait_until
from tests.rig import Rig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CLUSTER = batch_rig.CLUSTER


@pytest.fixture(scope="module")
def cluster() -> Iterator[Scheduler]:
    """Bring up Slurm, and take it down after the last test."""
    with batch_rig.cluster() as scheduler:
        yield scheduler


@pytest.fixture
def user(lobby: Rig, cluster: Scheduler) -> Iterator[User]:
    """Return a user with a site file made of the generic one; cancel what is left afterwards."""
    with batch_rig.slurm_user(lobby, cluster, slots=2) as user:
        yield user


def scontrol(*words: str) -> None:
    subprocess.run(["scontrol", *words], check=True, timeout=60)


def test_a_pilot_of_two_nodes(user: User) -> None:
    asked = user.up("--nodes", "2")
    assert asked["slots"] == 4
    batch_rig.check_it_works(user, asked)


def test_several_pools_and_a_node_that_dies(user: User) -> None:
    """One dead node costs its block only: what ran there runs again, and the block is left out."""
    user.change(launcher={"block_nodes": 1})
    asked = user.up("--nodes", "2")
    user.await_up(asked)
    assert user.script(asked).count("#SBATCH --no-kill") == 1
    with user.rig.open():
        futures = pilot.task(retries=0)(pilot_tasks.nap).map(range(8), seconds=3.0)
        wait_until(lambda: user.view(asked["pilot"])["busy"] == 4, UP_S, "all slots are busy")
        subprocess.run([CLUSTER / "slurm-node-fail", "node02"], check=True, timeout=60)
        assert [future.result(UP_S) for future in futures] == list(range(8))
    view = wait_until(
        lambda: (seen := user.view(asked["pilot"]))["nodes"] == 1 and seen, UP_S, "the node is left out",
        user.log(asked),
    )  # fmt: skip
    assert view["state"] == "running"
    assert "ended" in user.run("down")
    batch_rig.start_cluster()


def test_a_pilot_that_is_requeued(user: User) -> None:
    user.change(batch={"requeue": True})
    asked = user.up()
    user.await_up(asked)
    with user.rig.open():
        future = pilot.task(retries=0)(pilot_tasks.nap).submit(1, seconds=8.0)
        wait_until(lambda: future.state is pilot.State.LEASED, UP_S, "it runs")
        scontrol("requeue", asked["job"])
        wait_until(lambda: user.view(asked["pilot"])["state"] == "starting", UP_S, "the agent has ended")
        assert future.result(UP_S) == 1
        assert future.record()["attempt"] > 1
    assert user.view(asked["pilot"])["state"] == "running"
    assert "ended" in user.run("down")


def test_a_node_that_only_seems_dead(user: User) -> None:
    """Slurm starts the job elsewhere while the first pilot still runs: one of them works, the other one ends itself."""
    user.change(batch={"requeue": True})
    asked = user.up()
    user.await_up(asked)
    first = user.pilot(asked)
    node = user.scheduler.look([asked["job"]])[asked["job"]].hosts
    with user.rig.open():
        future = pilot.task(retries=0)(pilot_tasks.nap).submit(1, seconds=20.0)
        wait_until(lambda: future.state is pilot.State.LEASED, UP_S, "it runs")
        subprocess.run([CLUSTER / "slurm-node-fail", node, "soft"], check=True, timeout=60)
        wait_until(lambda: user.pilot(asked)["agent"] != first["agent"], UP_S, "it is started again", user.log(asked))
        assert future.result(UP_S) == 1
    wait_until(lambda: not psutil.pid_exists(first["pid"]), UP_S, "the first agent has ended", user.log(asked))
    assert user.view(asked["pilot"])["state"] == "running"
    assert "ended" in user.run("down")
    batch_rig.start_cluster()


def test_a_pilot_that_waits_for_nodes(user: User) -> None:
    hog = subprocess.run(
        ["sbatch", "--parsable", "-N4", "--exclusive", "--output=/dev/null", "--wrap", "exec sleep 120"],
        check=True, capture_output=True, text=True, cwd=user.rig.config.root,
    ).stdout.strip()  # fmt: skip
    asked = user.up()
    wait_until(
        lambda: re.search(r"waits in the queue: (Resources|Priority)", user.view(asked["pilot"])["reason"]),
        UP_S,
        "it says why",
        user.log(asked),
    )
    task = user.run("submit", "--", "true").split()[0]
    assert re.search("waits in the queue: (Resources|Priority)", user.run("explain", task))
    user.scheduler.cancel([hog])
    user.await_up(asked)
    assert "ended" in user.run("down")


def test_a_partition_that_is_down(user: User) -> None:
    scontrol("update", "PartitionName=debug", "State=DOWN")
    try:
        asked = user.up()
        wait_until(
            lambda: "waits in the queue: PartitionDown" in user.view(asked["pilot"])["reason"], UP_S, "it says why"
        )
        assert user.view(asked["pilot"])["state"] == "starting"
        assert re.search(r"ended$", user.run("down").strip())
        assert user.view(asked["pilot"])["state"] == "ended"
        assert user.await_over(asked["job"]) is JobState.CANCELLED
    finally:
        scontrol("update", "PartitionName=debug", "State=UP")


def test_what_slurm_refuses(user: User) -> None:
    said = user.run("up", "--site", str(user.site), "--walltime", "10m", "--queue", "nosuch", code=1)
    assert "Slurm refused the job" in said
    assert "invalid partition specified: nosuch" in said
    assert "needs a walltime" in user.run("up", "--site", str(user.site), code=1)
    assert json.loads(user.run("pilots", "--json"))[0]["state"] == "ended"


def test_a_pilot_that_is_cancelled(user: User) -> None:
    batch_rig.check_its_work_is_given_back_when_it_is_cancelled(user, user.up())


def test_the_walltime(user: User) -> None:
    batch_rig.check_it_ends_before_its_time(user, "1m")


def test_a_job_that_fails_before_its_agent_begins(user: User) -> None:
    batch_rig.check_it_is_given_up_when_its_job_fails(user)
