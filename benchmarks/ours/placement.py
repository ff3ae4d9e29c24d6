"""What it costs to place one wide task: 10,000 slots, 20 classes, no pool and no store."""

from __future__ import annotations

import random
import time
from typing import Any

from _harness import Settings, Workload, main

from pilot.board import Board, Node, Shape
from pilot.placement import Planner, Waiting

NODES, SLOTS = 157, 64
CLASSES = 20
SEED = 20261125


def classes(draw: random.Random) -> list[Waiting]:
    """Return classes of one to sixty-four ranks, of one or two slots each."""
    made = []
    for number in range(CLASSES):
        shape = Shape(ranks=2 ** draw.randrange(7), slots_per_rank=1 + number % 2, mpi=True)
        made.append(Waiting(f"class {number}", shape, 60.0, number % 3, number, 1_000_000))
    return made


def placement(settings: Settings) -> dict[str, Any]:
    """Start as many tasks as asked, one or a few of the running ones ending before each decision."""
    draw = random.Random(SEED)
    nodes = [Node(f"n{k}", tuple(range(1 + k * SLOTS, 1 + (k + 1) * SLOTS))) for k in range(NODES)]
    planner, waiting = Planner(Board(nodes)), classes(draw)
    running: list[Any] = []
    started, now, seconds = 0, 0.0, 0.0
    while started < settings.tasks:
        now += 1.0
        begun = time.perf_counter()
        plan = planner.plan([one._replace(count=4) for one in waiting], now)
        for start in plan.starts:
            planner.begin(start.spots, now + 60.0)
        seconds += time.perf_counter() - begun
        running += [start.spots for start in plan.starts]
        started += len(plan.starts)
        for _ in range(min(len(running), max(1, len(running) // 4))):
            ended = running.pop(draw.randrange(len(running)))
            begun = time.perf_counter()
            planner.end(ended)
            seconds += time.perf_counter() - begun
    return {"seconds": seconds, "us_per_task": seconds * 1e6 / started, "tasks": started}


if __name__ == "__main__":
    notes = f"{NODES * SLOTS:,} slots, {CLASSES} classes; decision, begin and end of each task"
    main("pilot", "hpc-pilot", {"placement": Workload(placement, 20_000, notes, workers=1)})
