"""MPI functions in a program of their own: started by a real child with a real launcher."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pilot.executors.run.orphans import find_orphans
from pilot.model import Result, pretended_node
from pilot.states import Outcome
from tests import run_tasks
from tests.run_mpi_rig import CPUS, mpi_rig, needs_two_cpus, script, site_with
from tests.run_rig import Rig, placed, wait_for


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with mpi_rig(tmp_path) as made:
        yield made


def _isolated(rig: Rig, function: Any, *args: Any, ranks: int = 2, **wide: Any) -> Result:
    item = rig.function(function, *args, wide={"ranks": ranks, "isolated": True, **wide})
    result = rig.one(item)
    assert not find_orphans("PILOT_TASK", item.task)
    return result


def test_an_isolated_function_gives_what_it_would_in_the_pool(rig: Rig) -> None:
    result = _isolated(rig, run_tasks.ranks_of, ranks=3)
    assert result.outcome is Outcome.SUCCEEDED, (rig.why(result), rig.tail(result))
    assert rig.value(result) == [0, 1, 2]
    assert result.launcher
    assert result.launcher[-2:] == ("-n", "3")
    assert (result.rank, result.exit_code) == (3, None)
    assert result.usage.cpu_s > 0
    gathered = _isolated(rig, run_tasks.ranks_of, gather=True)
    assert [rig.value(gathered, f"result[{rank}]") for rank in (0, 1)] == [[0, 1], [0, 1]]


@needs_two_cpus
def test_an_isolated_function_is_bound_as_placed(rig: Rig) -> None:
    hosts = tuple(pretended_node(os.uname().nodename, number) for number in (0, 1))
    place = placed((CPUS[1],), (CPUS[0],), hosts=hosts)
    result = _isolated(rig, run_tasks.cpus_of_ranks, place=place)
    assert rig.value(result) == [[CPUS[1]], [CPUS[0]]]


def test_an_isolated_function_that_crashes_costs_itself(rig: Rig) -> None:
    result = _isolated(rig, run_tasks.kill_rank, 1, int(signal.SIGSEGV))
    assert (result.outcome, result.exit_code) == (Outcome.CRASHED, -signal.SIGSEGV)
    assert "was killed by signal 11 (SIGSEGV)" in rig.why(result)
    assert "the last words" in rig.why(result)
    assert result.failure
    assert result.failure.rank in (1, -1)  # Hydra does not always tell; it must never be rank 0
    assert result.failure.host == os.uname().nodename
    assert rig.one(rig.command("true")).outcome is Outcome.SUCCEEDED


def test_an_isolated_function_that_raises_fails(rig: Rig) -> None:
    result = _isolated(rig, run_tasks.raise_in_rank, 1)
    assert result.outcome is Outcome.FAILED
    assert "ValueError" in (result.failure.traceback if result.failure else "")


def test_an_isolated_function_whose_launcher_fails_is_lost(tmp_path: Path) -> None:
    with mpi_rig(tmp_path / "rig", **site_with(script(tmp_path / "launch", "exit 5"))) as rig:
        result = _isolated(rig, run_tasks.ranks_of)
        assert result.outcome is Outcome.LOST
        assert "did not start the program" in rig.why(result)


def test_an_isolated_function_is_stopped_at_its_walltime(rig: Rig, tmp_path: Path) -> None:
    mark, task = tmp_path / "mark", f"alone-{os.getpid()}"
    item = rig.function(
        run_tasks.hang_in_ranks, str(mark), walltime_s=6.0, task=task, wide={"ranks": 2, "isolated": True}
    )
    result = rig.one(item)
    assert result.outcome is Outcome.TIMEOUT
    assert mark.exists()
    wait_for(lambda: not find_orphans("PILOT_TASK", task))
