"""What a task may use of its node: CPUs, threads, GPUs. Real children, real affinity."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pilot.executors.run import bind
from pilot.site_files import load_site
from pilot.sites import Node
from pilot.states import Outcome
from tests import run_tasks
from tests.run_rig import Rig, placed

CPUS = sorted(os.sched_getaffinity(0))
GPU_SITE = load_site().model_copy(update={"node": Node(gpus=4, gpu_variable="ROCR_VISIBLE_DEVICES")})

needs_two_cpus = pytest.mark.skipif(len(CPUS) < 2, reason="needs two CPUs")


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with Rig(tmp_path) as made:
        yield made


@pytest.fixture
def gpu_rig(tmp_path: Path) -> Iterator[Rig]:
    with Rig(tmp_path, site=GPU_SITE) as made:
        yield made


def _wide(*cpus: int, gpus: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"place": placed(cpus, gpus=(gpus,))}


@needs_two_cpus
def test_a_function_has_its_cpus_and_threads_only_while_it_runs(rig: Rig) -> None:
    before, during, after = (
        rig.function(run_tasks.share),
        rig.function(run_tasks.share, cores=2, wide=_wide(CPUS[1])),
        rig.function(run_tasks.share),
    )
    results = [rig.value(result) for result in rig.run(before, during, after)]
    assert [one["cpus"] for one in results] == [CPUS, [CPUS[1]], CPUS]
    assert [one["threads"] for one in results] == ["1", "2", "1"]
    assert len({one["pid"] for one in results}) == 1


@needs_two_cpus
def test_threads_that_a_task_finds_move_with_it(rig: Rig) -> None:
    rig.one(rig.function(run_tasks.leave_thread))
    during, after = rig.run(
        rig.function(run_tasks.thread_cpus, wide=_wide(CPUS[0])), rig.function(run_tasks.thread_cpus)
    )
    assert rig.value(during) == [[CPUS[0]]] * 2
    assert rig.value(after) == [CPUS] * 2


@needs_two_cpus
def test_a_command_has_its_cpus_and_threads(rig: Rig) -> None:
    script = "grep Cpus_allowed_list /proc/self/status; echo $OMP_NUM_THREADS"
    wide, narrow = rig.run(
        rig.command(script, shell=True, cores=2, wide=_wide(CPUS[1])), rig.command(script, shell=True)
    )
    assert rig.tail(wide).split()[1:] == [str(CPUS[1]), "2"]
    assert rig.tail(narrow).split()[1] != str(CPUS[1])


def test_threads_that_the_user_chose_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    with Rig(tmp_path) as rig:
        assert rig.value(rig.one(rig.function(run_tasks.share, cores=2, wide=_wide(CPUS[0]))))["threads"] == "7"


def test_cpus_that_are_not_there_are_said_and_do_not_fail_the_task(rig: Rig) -> None:
    result = rig.one(rig.function(run_tasks.share, wide=_wide(1000)))
    assert rig.value(result)["cpus"] == CPUS
    assert "cannot be bound to CPUs 1000" in rig.tail(result)


# -- the slot's own CPUs --------------------------------------------------------------------------


@needs_two_cpus
def test_bound_children_stay_bound_when_they_are_replaced(rig: Rig) -> None:
    rig.one(rig.function(run_tasks.nothing))
    rig.child.bind(CPUS[1:2])
    first = rig.value(rig.one(rig.function(run_tasks.share)))
    wide = rig.value(rig.one(rig.function(run_tasks.share, wide=_wide(*CPUS))))
    rig.one(rig.function(run_tasks.leave, 3))
    last = rig.value(rig.one(rig.function(run_tasks.share)))
    assert (first["cpus"], wide["cpus"], last["cpus"]) == (CPUS[1:2], CPUS, CPUS[1:2])
    assert first["pid"] != last["pid"]


def test_cpus_that_are_not_there_cannot_be_bound_to(rig: Rig) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        rig.child.bind([1000])
    assert rig.value(rig.one(rig.function(run_tasks.share)))["cpus"] == CPUS


# -- GPUs -----------------------------------------------------------------------------------------


def _gpus(rig: Rig, *tasks: tuple[str, ...] | None) -> list[Any]:
    """Run functions one after the other that were given these GPUs (None: no placement)."""
    items = [
        rig.function(run_tasks.variable, "ROCR_VISIBLE_DEVICES", wide=None if one is None else _wide(gpus=one))
        for one in tasks
    ]
    return [rig.value(result) for result in rig.run(*items)]


def test_functions_see_their_gpus_and_no_others(gpu_rig: Rig) -> None:
    assert [seen for _, seen in _gpus(gpu_rig, None, ("2",), ("2",), ("0", "3"), (), None)] == [
        "", "2", "2", "0,3", "", "",
    ]  # fmt: skip


def test_other_gpus_need_another_process(gpu_rig: Rig) -> None:
    pids = [pid for pid, _ in _gpus(gpu_rig, ("2",), ("2",), ("1",), None, None)]
    assert pids[0] == pids[1]
    assert pids[3] == pids[4]
    assert len(set(pids)) == 3


def test_commands_see_their_gpus_and_no_others(gpu_rig: Rig) -> None:
    script = "echo =$ROCR_VISIBLE_DEVICES="
    narrow, wide, own = gpu_rig.run(
        gpu_rig.command(script, shell=True),
        gpu_rig.command(script, shell=True, wide=_wide(gpus=("1", "2"))),
        gpu_rig.command(script, shell=True, wide=_wide(gpus=("1",)), env={"ROCR_VISIBLE_DEVICES": "3"}),
    )
    assert [gpu_rig.tail(one) for one in (narrow, wide, own)] == ["==\n", "=1,2=\n", "=3=\n"]


def test_without_gpus_the_users_variable_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    with Rig(tmp_path, site=load_site()) as rig:
        result = rig.one(rig.function(run_tasks.variable, "CUDA_VISIBLE_DEVICES"))
        assert rig.value(result)[1] == "5"


# -- the wrapper of ranks -------------------------------------------------------------------------


def test_the_wrapper_knows_the_launchers_that_pools_know() -> None:
    from pilot.executors.pool.identity import RANK_VARIABLES

    assert bind.RANK_VARIABLES == RANK_VARIABLES


def test_an_isolated_function_is_not_bound_in_its_child(rig: Rig) -> None:
    """Its ranks are; the child only waits. (Here its program is missing: the site has no launchers.)"""
    result = rig.one(rig.function(run_tasks.share, wide={"ranks": 2, "isolated": True, "place": placed((0,), (0,))}))
    assert result.outcome is Outcome.FAILED
    assert "of flavour 'mpich': the site file has, under 'programs', none" in rig.why(result)
    assert rig.value(rig.one(rig.function(run_tasks.share)))["cpus"] == CPUS
