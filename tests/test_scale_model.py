"""The scale model: it keeps its own books, agrees with what was measured, and shows the limits where they are."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.scale.__main__ import report
from benchmarks.scale.costs import Costs
from benchmarks.scale.model import NARROW, simulate
from pilot.board import Shape

COSTS = Costs()
MIX = ((NARROW, 0.7), (Shape(ranks=2, mpi=True), 0.2), (Shape(ranks=4, nodes=2, mpi=True), 0.1))


@pytest.mark.parametrize(("slots", "measured"), [(1, 0.998), (8, 0.996), (32, 0.992), (128, 0.970)])
def test_sleeping_tasks_take_as_long_as_measured(slots: int, measured: float) -> None:
    outcome = simulate(1, slots, 1.0, 10 * slots, COSTS)  # as in benchmarks/ours/busy.py
    assert outcome.utilisation == pytest.approx(measured, rel=0.15)
    assert outcome.limit == "slots"


def test_a_run_is_repeatable() -> None:
    assert simulate(2, 16, 0.5, 300, COSTS, spread=0.5, mix=MIX) == simulate(
        2, 16, 0.5, 300, COSTS, spread=0.5, mix=MIX
    )


def test_nothing_goes_faster_than_what_it_needs() -> None:
    for nodes, task_s in ((1, 0.001), (64, 0.01), (640, 0.1)):
        outcome = simulate(nodes, 64, task_s, 40_000 if nodes == 1 else nodes * 64 * 5, COSTS)
        assert outcome.tasks_per_s <= 1.02 * COSTS.store_per_s(outcome.pools, outcome.tasks)
        assert outcome.tasks_per_s <= 1.02 * outcome.pools * COSTS.coordinator_per_s()
        assert outcome.store_busy <= 1.02
        assert outcome.coordinator_busy <= 1.02
        assert outcome.limit != "slots"
        assert 0 < outcome.steady < 0.9


def test_long_tasks_keep_ten_thousand_nodes_busy_and_short_ones_do_not() -> None:
    tasks = 10_000 * 64 * 10
    long, short = simulate(10_000, 64, 100.0, tasks, COSTS, spread=0.3), simulate(10_000, 64, 1.0, tasks, COSTS)
    assert (long.pools, long.slots, long.limit) == (157, 157 * 64 * 64, "slots")
    assert long.steady > 0.95
    assert short.limit == "database"
    assert short.tasks_per_s == pytest.approx(COSTS.store_per_s(157, tasks), rel=0.15)


def test_one_pool_is_limited_by_its_writer() -> None:
    outcome = simulate(64, 64, 0.05, 80_000, COSTS)
    assert outcome.limit == "writers"
    faster = simulate(64, 64, 0.05, 80_000, replace(COSTS, coordinator_us=20.0))
    assert faster.limit == "writers"
    assert faster.tasks_per_s == pytest.approx(outcome.tasks_per_s, rel=0.05)
    lighter = simulate(64, 64, 0.05, 80_000, replace(COSTS, finish_us=25.0))
    assert lighter.limit == "coordinators"
    assert lighter.tasks_per_s > outcome.tasks_per_s


def test_wide_tasks_go_through_the_real_planner() -> None:
    outcome = simulate(4, 16, 1.0, 600, COSTS, spread=0.5, mix=MIX)
    assert outcome.tasks == 600
    assert 0.9 < outcome.utilisation <= 1.0  # whole nodes count as a whole


def test_idle_slots_get_what_others_have_not_begun() -> None:
    """The last tasks of a run: without recall a slot would have two of them while others have none."""
    outcome = simulate(1, 16, 10.0, 48, COSTS)
    assert outcome.makespan_s < 31.0


def test_a_start_from_the_nodes_own_disks_does_not_grow() -> None:
    local = replace(COSTS, metadata_missed=0.0)
    assert local.start_s(10_000, 64) == local.start_s(1, 64)
    assert COSTS.start_s(10_000, 64) > 100 * COSTS.start_s(8, 64)


def test_the_report_names_what_saturates_first() -> None:
    text = "\n".join(report((1, 128), 3, COSTS))
    assert "In one pool the thread that writes what has ended saturates first: 16,367 tasks/s." in text
    assert "From two pools on it is the database" in text
