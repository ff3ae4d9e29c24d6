"""What it costs to place one wide task in a full pool: 10,000 slots, 20 classes; no pool and no store."""

from __future__ import annotations

import heapq
import random
import time
from typing import Any

from _harness import Settings, Workload, main

from pilot.board import Board, Node, Shape, Spots
from pilot.placement import Planner, Waiting

NODES, SLOTS = 157, 64
CLASSES = 20
WAITING = 4
"""Tasks of each class that wait all the time."""
SEED = 20261125


def classes(draw: random.Random) -> list[Waiting]:
    """Return classes of one to sixty-four ranks, of one or two slots each, and one of whole nodes."""
    made = []
    for number in range(CLASSES):
        shape = Shape(ranks=2 ** draw.randrange(7), slots_per_rank=1 + number % 2, mpi=True)
        made.append(Waiting(f"class {number}", shape, 30.0 + 3 * number, number % 3, number, WAITING))
    return [*made[:-1], made[-1]._replace(shape=Shape(ranks=8, nodes=2, mpi=True))]


def placement(settings: Settings) -> dict[str, Any]:
    """Keep a full pool full: each time a task ends, decide anew, until so many have begun since it was full.

    The task that begins joins the end of its class, so that all classes have their turn.
    """
    draw = random.Random(SEED)
    nodes = [Node(f"n{k}", tuple(range(1 + k * SLOTS, 1 + (k + 1) * SLOTS))) for k in range(NODES)]
    planner = Planner(Board(nodes))
    waiting = {one.key: one for one in classes(draw)}
    running: list[tuple[float, int, Spots]] = []
    decisions = began = seq = 0
    now = seconds = used = 0.0
    while began < settings.tasks:
        start = time.perf_counter()
        plan = planner.plan(list(waiting.values()), now)
        for one in plan.starts:
            planner.begin(one.spots, now + (waiting[one.key].walltime_s or 0.0))
        spent = time.perf_counter() - start
        for one in plan.starts:
            seq += 1
            waiting[one.key] = waiting[one.key]._replace(seq=CLASSES + seq)
            heapq.heappush(
                running, (now + (waiting[one.key].walltime_s or 0.0) * draw.uniform(0.1, 1.0), seq, one.spots)
            )
        now, _, ended = heapq.heappop(running)
        start = time.perf_counter()
        planner.end(ended)
        spent += time.perf_counter() - start
        if now > 0.0 and seq > NODES:  # the first decision fills the pool
            decisions += 1
            began += len(plan.starts)
            seconds += spent
            used += 1 - planner.board.free / (NODES * SLOTS)
    return {
        "seconds": seconds, "tasks": began, "us_per_task": seconds * 1e6 / began,
        "us_per_decision": seconds * 1e6 / decisions, "busy": used / decisions,
    }  # fmt: skip


if __name__ == "__main__":
    notes = f"{NODES * SLOTS:,} slots, {CLASSES} classes; decision, begin and end of each task in a full pool"
    main("pilot", "hpc-pilot", {"placement": Workload(placement, 20_000, notes, workers=1)})
