"""Print what the model says of machines from one node to ten thousand: ``python -m benchmarks.scale``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace

from benchmarks.scale.costs import POOL_NODES, Costs
from benchmarks.scale.model import DEFAULT, NARROW, Outcome, simulate
from pilot.board import Shape

NODES = (1, 8, 64, 128, 640, 2_000, 10_000)
SLOTS = 64
LENGTHS_S = (0.1, 1.0, 10.0, 100.0, 1000.0)
TASKS_PER_SLOT = 20
SPREAD = 0.3
LONG_START_S = 60.0
MIX = (
    (NARROW, 0.80), (Shape(ranks=2, mpi=True), 0.12), (Shape(ranks=4, mpi=True), 0.06), (Shape(ranks=8, mpi=True), 0.02)
)  # fmt: skip
MIX_NODES, MIX_LENGTHS_S, MIX_TASKS = (1, 8, 64), (1.0, 10.0), 5


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description="tables of the scale model")
    parser.add_argument("--nodes", type=int, nargs="+", default=NODES)
    parser.add_argument("--tasks-per-slot", type=int, default=TASKS_PER_SLOT)
    arguments = parser.parse_args()
    for line in report(arguments.nodes, arguments.tasks_per_slot, DEFAULT):
        print(line, flush=True)


def report(nodes: Sequence[int], tasks_per_slot: int, costs: Costs) -> Iterator[str]:
    """Yield the tables, line by line."""
    yield f"{SLOTS} slots a node, pools of {POOL_NODES} nodes, {tasks_per_slot} tasks a slot, lengths ± {SPREAD:.0%}"
    yield ""
    yield "tasks/s over the whole run, utilisation in its middle; what holds it down: database, coordinators, writers"
    yield "  nodes" + "".join(f"{f'{length:g} s':>22}" for length in LENGTHS_S)
    for number in nodes:
        cells = [_cell(run(number, length, tasks_per_slot, costs)) for length in LENGTHS_S]
        yield f"{number:>7,}" + "".join(f"{cell:>22}" for cell in cells)
    yield ""
    yield "ceilings in tasks/s, the shortest tasks that keep 90 % busy by them, and what the model makes of these"
    yield "  nodes  pools     slots  database  coordinators   writers  shortest  modelled  commands/s"
    for number in nodes:
        yield _ceilings(number, tasks_per_slot, costs)
    yield ""
    yield "start-up of all pools at once, in seconds: installation on a shared file system, and on the nodes"
    local = replace(costs, metadata_missed=0.0)
    for number in nodes:
        yield f"{number:>7,}{costs.start_s(number, SLOTS):>10.1f}{local.start_s(number, SLOTS):>10.1f}"
    yield ""
    yield "80 % single tasks, 12 % of 2 ranks, 6 % of 4, 2 % of 8: utilisation in the middle, and over the whole run"
    yield "  nodes" + "".join(f"{f'{length:g} s':>16}" for length in MIX_LENGTHS_S)
    for number in (number for number in MIX_NODES if number in nodes):
        mixed = [
            simulate(number, SLOTS, length, number * SLOTS * MIX_TASKS, costs, spread=0.5, mix=MIX)
            for length in MIX_LENGTHS_S
        ]
        yield f"{number:>7,}" + "".join(f"{f'{one.steady:.1%} {one.utilisation:.1%}':>16}" for one in mixed)
    yield ""
    yield from verdict(costs)


def run(nodes: int, task_s: float, tasks_per_slot: int, costs: Costs) -> Outcome:
    """Simulate single-core tasks."""
    return simulate(nodes, SLOTS, task_s, nodes * SLOTS * tasks_per_slot, costs, spread=SPREAD)


def _cell(outcome: Outcome) -> str:
    why = "" if outcome.limit == "slots" else outcome.limit[0]
    return f"{outcome.tasks_per_s:,.0f} {outcome.steady:.1%} {why or ' '}"


def _ceilings(nodes: int, tasks_per_slot: int, costs: Costs) -> str:
    pools, slots = -(-nodes // POOL_NODES), nodes * SLOTS
    database = costs.store_per_s(pools, slots * tasks_per_slot)
    coordinators = pools * costs.coordinator_per_s()
    writers = pools * costs.writer_per_s(pools, slots * tasks_per_slot)
    shortest_s = 0.9 * slots / min(database, coordinators, writers)
    outcome = run(nodes, shortest_s, tasks_per_slot, costs)
    return (
        f"{nodes:>7,}{pools:>7}{slots:>10,}{database:>10,.0f}{coordinators:>14,.0f}{writers:>10,.0f}"
        f"{f'{shortest_s:.3g} s':>10}{outcome.steady:>10.1%}{outcome.commands_per_s:>12,.0f}"
    )


def verdict(costs: Costs) -> Iterator[str]:
    """Say what saturates first, and at what size."""
    files = costs.metadata_ops * costs.metadata_missed * SLOTS / costs.metadata_ops_per_s
    size = (LONG_START_S - costs.launch_s - costs.rank_s) / files if files else float("inf")
    one, two = (costs.store_per_s(pools, 100_000) for pools in (1, 2))
    writer = costs.writer_per_s(1, 100_000)
    limits = {"database": one, "coordinator": costs.coordinator_per_s(), "thread that writes what has ended": writer}
    first = min(limits, key=limits.__getitem__)
    yield f"In one pool the {first} saturates first: {limits[first]:,.0f} tasks/s."
    yield f"From two pools on it is the database: {two:,.0f} tasks/s, and less with every pool more, as they share it."
    busiest = costs.store_per_s(-(-NODES[-1] // POOL_NODES), 10**6)
    yield (
        f"At {NODES[-1]:,} nodes that is {busiest:,.0f}, so that tasks of {NODES[-1] * SLOTS / busiest:.0f} s and more "
        f"fill the machine."
    )
    yield f"Start-up takes more than {LONG_START_S:g} s from {size:,.0f} nodes on,"
    yield "unless the installation is on the nodes."


if __name__ == "__main__":
    main()
