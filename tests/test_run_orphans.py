"""What children are born with and what must not outlive them. Real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pilot.executors.run.orphans import find_orphans, kill_orphans
from pilot.executors.run.scrub import child_environment, command_environment, scrubbed
from tests.run_rig import REPOSITORY, Rig, alive, wait_for


@pytest.fixture
def rig(tmp_path: Path) -> Any:
    with Rig(tmp_path) as made:
        yield made


# -- orphans ------------------------------------------------------------------------------------------

_RANK = """
import sys, time
from pathlib import Path
from tests.run_rig import Rig
from tests import run_tasks
with Rig(Path(sys.argv[1])) as rig:
    if sys.argv[2] == "function":
        rig.offer([rig.function(run_tasks.spawn_and_wait, sys.argv[3], False)])
    else:
        rig.offer([rig.command(f"echo $$ > {sys.argv[3]}.x; mv {sys.argv[3]}.x {sys.argv[3]}; sleep 300", shell=True)])
    rig.until(lambda: False, 300)
"""


@pytest.mark.parametrize("kind", ["function", "command"])
def test_death_of_the_rank_leaves_nothing(tmp_path: Path, kind: str) -> None:
    mark = tmp_path / "mark"
    env = {**os.environ, "PYTHONPATH": REPOSITORY}
    rank = subprocess.Popen([sys.executable, "-c", _RANK, str(tmp_path), kind, str(mark)], env=env)
    pool = f"test-{rank.pid}-0"
    try:
        pids = wait_for(lambda: mark.exists() and [int(word) for word in mark.read_text().split()])
        children = find_orphans("PILOT_POOL", pool)
        assert set(pids) <= set(children)
        rank.kill()
        rank.wait()
        if kind == "command":
            wait_for(lambda: not any(map(alive, children)))
        else:  # the child dies with its rank; what a function started is swept up by the agent
            wait_for(lambda: not alive(pids[0]))
        assert kill_orphans("PILOT_POOL", pool, 1.0) == (0 if kind == "command" else 2)
        wait_for(lambda: not any(map(alive, children)))
    finally:
        rank.kill()
        rank.wait()
        kill_orphans("PILOT_POOL", pool, 0.0)


def test_kill_orphans_spares_others_and_is_stubborn() -> None:
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(300)"

    def start(value: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", code], env={**os.environ, "PILOT_TEST": value}, stdout=subprocess.PIPE
        )
        assert process.stdout
        assert process.stdout.readline() == b"up\n"
        return process

    token = f"token-{os.getpid()}"
    mine, other = start(token), start(f"{token}-of-another")
    with mine, other:
        try:
            assert kill_orphans("PILOT_TEST", token, 0.2) == 1
            assert mine.wait(5) == -signal.SIGKILL
            assert other.poll() is None
        finally:
            mine.kill()
            other.kill()


# -- environment --------------------------------------------------------------------------------------


def test_scrubbed_keeps_tuning() -> None:
    env = {
        "PATH": "/bin", "MPICH_OFI_NIC_POLICY": "NUMA", "FI_PROVIDER": "tcp", "UCX_TLS": "sm", "OMPI_MCA_btl": "self",
        "MPIR_CVAR_NOLOCAL": "1", "I_MPI_FABRICS": "shm",
    }  # fmt: skip
    identity = [
        "PMI_RANK", "PMI_FD", "PMI2_RANK", "PMIX_RANK", "PMIX_SERVER_URI4", "PALS_RANKID", "HYDI_CONTROL_FD",
        "HYDRA_X", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_RANK", "OMPI_UNIVERSE_SIZE",
        "OMPI_MCA_ess_base_vpid", "OMPI_MCA_orte_hnp_uri", "SLURM_PROCID", "SLURM_STEP_ID", "SLURMD_NODENAME",
        "PRTE_LAUNCHED", "PILOT_TASK",
    ]  # fmt: skip
    assert scrubbed({**env, **dict.fromkeys(identity, "x")}) == env


def test_thread_count_is_ours_unless_the_user_set_it() -> None:
    ours = child_environment({"A": "b"}, "token", 4)
    assert ours["OMP_NUM_THREADS"] == "4"
    assert command_environment(ours, "t", 1, 2, {})["OMP_NUM_THREADS"] == "2"
    assert child_environment(ours, "inner", 8)["OMP_NUM_THREADS"] == "8"  # a pilot inside a task
    users = child_environment({"OMP_NUM_THREADS": "3"}, "token", 4)
    assert command_environment(users, "t", 1, 2, {})["OMP_NUM_THREADS"] == "3"
    assert command_environment(ours, "t", 1, 2, {"OMP_NUM_THREADS": "7"})["OMP_NUM_THREADS"] == "7"


def test_child_inherits_nothing(rig: Rig) -> None:
    def descriptors() -> list[str]:
        import contextlib
        import os

        links = []
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):
                links.append(os.readlink(f"/proc/self/fd/{name}"))
        return links

    reading, writing = os.pipe()
    os.set_inheritable(reading, True)
    try:
        rig.child.close()
        rig.child.start()
        links = rig.value(rig.one(rig.function(descriptors)))
        assert os.readlink(f"/proc/self/fd/{reading}") not in links
        assert sum(link.startswith("socket:") for link in links) == 2
        assert "/dev/null" in links
    finally:
        os.close(reading)
        os.close(writing)
