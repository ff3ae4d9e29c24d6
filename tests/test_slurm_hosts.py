"""Pilots on nodes that are hosts of their own: networks, names, bound steps, memory that is counted; no accounting."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

import pilot
from pilot.executors.batch.scheduler import Scheduler
from tests import batch_rig
from tests.batch_rig import UP_S, User
from tests.rig import Rig

# Not to be run beside others: an Open MPI that starts while networks come and go may fail.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SRUN = [
    *("srun", "--jobid={job}", "-K1", "--overlap", "--overcommit", "--cpu-bind=none", "--mem=0", "--mpi=pmi2"),
    *("--distribution=arbitrary", "--nodes", "{nodes}", "--ntasks", "{ranks}"),
]
"""How programs of tasks start, as on the sites that extend `_srun`."""
PROGRAM = "from mpi4py import MPI; c = MPI.COMM_WORLD; h = c.gather(MPI.Get_processor_name()); c.rank or print(*h)"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Scheduler]:
    """Bring up another Slurm: it binds what it starts, counts memory, has no accounting, and nodes in own networks."""
    with batch_rig.cluster(
        SLURM_SIM_NET="1", SLURM_SIM_DBD="0", SLURM_SIM_NODES="2", SLURM_SIM_CPUS="2", SLURM_SIM_GPUS="0",
        SLURM_SIM_TASK="task/affinity", SLURM_SIM_SELECT="CR_Core_Memory",
    ) as scheduler:  # fmt: skip
        yield scheduler


@pytest.fixture
def user(lobby: Rig, cluster: Scheduler) -> Iterator[User]:
    """Return a user of a site whose nodes have as many CPUs as this machine, two."""
    program = {
        "launcher": SRUN, "host_line": "{host}", "line_per_rank": True, "step": "always",
        "env": {"SLURM_HOSTFILE": "{hostfile}", **batch_rig.SHORT_ADDRESSES},
    }  # fmt: skip
    with batch_rig.slurm_user(
        lobby, cluster, node={"cores": 2}, programs={"mpich": program}, reach={"interfaces": ["slurmbr0"]}
    ) as user:
        user.change(batch={"options": ["--exclusive", "--mem=0"]})
        yield user


def cpus(x: int) -> tuple[str, list[int]]:
    """Return where a task runs, and on which CPUs it may."""
    return os.uname().nodename, sorted(os.sched_getaffinity(0))


def test_a_site_is_tried_in_a_job(user: User) -> None:
    said = user.run("site", "check", str(user.site), "--in-job", "--nodes", "2")
    for line in (
        "node01 reaches the project's store",
        "one program of 5 ranks on node01, node02",
        "every rank may use all 2 CPUs of its node",
        "the program ended",
        "a program of 2 ranks on node01, node02 started beside the pool, by /usr/bin/srun",
    ):
        assert line in said
    assert "wrong" not in said


def test_tasks_and_programs_over_two_nodes(user: User) -> None:
    asked = user.up("--nodes", "2")
    user.await_up(asked)
    with user.rig.open():
        words = [sys.executable, "-c", PROGRAM]
        program = pilot.command(words, ranks=4, stdout="hosts", outputs={"hosts": "hosts"}).submit()
        places = {(host, *ids) for host, ids in [f.result(UP_S) for f in pilot.task(cpus).map(range(40))]}
        assert program.result(UP_S)["hosts"].split() == [b"node01", b"node01", b"node02", b"node02"]
        assert [one["host"] for one in program.record()["placement"]] == ["node01", "node01", "node02", "node02"]
    assert {host for host, *_ in places} == {"node01", "node02"}
    assert {len(ids) for _, *ids in places} == {1}, "each slot is bound to a CPU of its own"
    assert "ended" in user.run("down")


def test_a_job_that_fails_without_accounting(user: User) -> None:
    batch_rig.check_it_is_given_up_when_its_job_fails(user)
