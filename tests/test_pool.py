"""Real MPI programs: `pool_program` plays a scenario under each MPI, the tests judge its report."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pilot.executors.pool.world import EXIT_ALONE, EXIT_ERROR, EXIT_LEFTOVER, EXIT_WORLD
from tests.pool_rig import BIN, LAUNCHERS, Pool, pool, processes

__all__ = ["pool"]

# -- starting and stopping --------------------------------------------------------------------------


def test_slots_say_hello_and_goodbye(pool: Pool) -> None:
    report = pool.plays("hello", ranks=4)
    assert report["size"] == 4
    assert sorted(report["hosts"]) == ["node0", "node1", "node1"]
    assert sorted(report["events"]) == [["Joined", 1, ""], ["Joined", 2, ""], ["Joined", 3, ""]]


def test_program_of_another_size_is_refused_with_library_and_launcher(pool: Pool) -> None:
    code, text = pool.fails("hello", ranks=2, expected=3)
    assert code == EXIT_WORLD or (pool.crashing_launcher and code < 0)
    assert "MPI program of 3 ranks, but rank" in text
    assert "MPICH" in text or "Open MPI" in text
    assert "_RANK=" in text


def test_singletons_of_a_foreign_launcher_are_refused(tmp_path: Path) -> None:
    launcher, env = LAUNCHERS["openmpi"]()
    pool = Pool([str(BIN / "mpiexec")], env, tmp_path)  # MPICH's launcher, Open MPI's library
    code, text = pool.fails("hello", ranks=3)
    assert code != 0
    assert "rank 0 finds 1" in text
    assert pool.gone(5.0) == []
    assert launcher


def test_stop_finishes_what_runs_and_returns_the_rest(pool: Pool) -> None:
    report = pool.plays("stopping")
    assert report["outcomes"] == {"succeeded": 2}
    assert report["returned"] == 98


def test_signals_of_a_scheduler_do_not_end_a_slot(pool: Pool) -> None:
    assert pool.plays("signals")["outcomes"] == {"succeeded": 1}


# -- work -------------------------------------------------------------------------------------------


def test_many_small_tasks(pool: Pool) -> None:
    assert pool.plays("throughput", count=3000)["outcomes"] == {"succeeded": 3000}


def test_single_tasks_on_an_idle_pool(pool: Pool) -> None:
    assert pool.plays("latency", count=5)["outcomes"] == {"succeeded": 5}


def test_recall_is_exact_while_tasks_run(pool: Pool) -> None:
    report = pool.plays("recall")
    assert report["outcomes"] == {"succeeded": 1500}
    assert report["recalled"] > 0
    assert report["ran"] == report["ran_distinct"] == 1500


def test_recall_is_exact_while_children_die(pool: Pool) -> None:
    report = pool.plays("recall", count=600, deadly=0.03)
    assert report["outcomes"].get("crashed", 0) == report["deadly"] > 0
    assert report["outcomes"]["succeeded"] == 600 - report["deadly"]
    assert report["ran"] == report["ran_distinct"] == 600


def test_recalled_slot_confirms_that_it_is_empty(pool: Pool) -> None:
    report = pool.plays("empty")
    assert report["order"] is True
    assert report["left"] == [["long", 1]]
    assert report["empty"] is True


def test_cancel_running_and_unbegun(pool: Pool) -> None:
    report = pool.plays("cancel")
    assert report["not_begun"] == ["t199", "t5"]
    assert report["running"] == ["cancelled"]
    assert report["cancel_s"] < 2.5
    assert report["unknown"] is False
    assert report["outcomes"] == {"cancelled": 1, "succeeded": 198}


def test_walltime_ends_one_task_only(pool: Pool) -> None:
    report = pool.plays("walltime")
    assert report["slow"] == ["timeout"]
    assert report["outcomes"] == {"timeout": 1, "succeeded": 1}


def test_large_frames_and_results(pool: Pool) -> None:
    assert pool.plays("big")["outcomes"] == {"succeeded": 240}


def test_large_messages_cross_without_deadlock(pool: Pool) -> None:
    report = pool.plays("storm")
    assert report["received"] == [report["sent"], report["sent"]]
    assert report["in_order"]


@pytest.mark.parametrize("scenario", ["throughput", "recall", "big", "storm"])
def test_slots_on_other_hosts_cannot_ring(pool: Pool, scenario: str) -> None:
    report = pool.plays(scenario, doorbell=False)
    assert "outcomes" not in report or set(report["outcomes"]) == {"succeeded"}


def test_child_that_dies_costs_one_attempt(pool: Pool) -> None:
    report = pool.plays("crash")
    assert report["crashed"] == ["s1-30", "s1-45", "s2-30", "s2-45"]
    assert report["outcomes"] == {"succeeded": 116, "crashed": 4}


def test_slot_recovers_when_children_can_start_again(pool: Pool) -> None:
    report = pool.plays("recovers")
    assert [name for name, slot, _ in report["events"] if slot == 1] == ["Joined", "Failing", "Joined"]
    assert report["outcomes"] == {"succeeded": 1}
    assert report["returned"] == 3


def test_slot_without_a_child_says_so_and_returns_its_work(pool: Pool) -> None:
    report = pool.plays("failing", child=["/bin/false"])
    assert report["returned"] == 5
    assert 1 not in report["able"]
    assert any(name == "Failing" and "exit code 1" in reason for name, _, reason in report["events"])


# -- absence ----------------------------------------------------------------------------------------


def test_rank_0_that_was_away_blames_nobody(pool: Pool) -> None:
    report = pool.plays("paused", silence_s=3.0, worker={"silence_s": 60})
    assert all(name == "Joined" for name, _, _ in report["events"])


@pytest.mark.parametrize("thaw", [True, False])
def test_frozen_slot_is_lost_once_and_the_others_go_on(pool: Pool, thaw: bool) -> None:
    code, text = pool.fails("frozen", silence_s=2.5, stop_s=5.0, thaw=thaw)
    report = pool.report()
    if thaw:
        assert code == 0, text
    else:
        assert code == EXIT_LEFTOVER or (pool.crashing_launcher and code < 0), text
    assert report["clean"] is thaw
    assert report["lost_keys"] == report["were_in_hand"] == 10
    assert 2 < report["lost_s"] < 6
    assert [name for name, _, _ in report["events"] if name != "Joined"] == ["Lost"]
    assert report["after"] == ["succeeded"]
    assert pool.gone(5.0) == []


@pytest.mark.parametrize("scenario", ["killed", "broken"])
def test_dead_rank_ends_the_program(pool: Pool, scenario: str) -> None:
    begin = time.monotonic()
    code, text = pool.fails(scenario, timeout_s=30)
    assert code != 0
    assert pool.gone(3.0) == []
    assert time.monotonic() - begin < 20
    if scenario == "broken":
        assert code == EXIT_ERROR or (pool.crashing_launcher and code < 0)
        assert "rank 0 is broken on purpose" in text


def test_killed_launcher_takes_everything_with_it(pool: Pool) -> None:
    launched = pool.start("idle", seconds=60)
    deadline = time.monotonic() + 30
    while len(processes(pool.mark)) < 6 and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    launched.kill()
    launched.wait()
    assert pool.gone(5.0) == []


def test_slot_ends_when_rank_0_is_silent(pool: Pool) -> None:
    code, text = pool.fails("silent", worker={"silence_s": 2.0}, timeout_s=30)
    assert code == EXIT_ALONE or (pool.crashing_launcher and code < 0), text
    assert "has heard nothing from rank 0 for 2 s" in text
    assert pool.gone(5.0) == []


def test_idle_slots_cost_little(pool: Pool) -> None:
    report = pool.plays("idle", seconds=3)
    assert report["processes"] == [2, 2]
    assert max(report["slots_cpu"]) < 0.05  # 0.01 on a quiet machine; see docs/performance.md
