"""The workload of mixed shapes for ours and the peers: seeded, heavy-tailed; its bound, and what FIFO makes of it."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

SEED = 20261125
WIDTHS, SHARES = (1, 2, 4, 8), (80, 12, 6, 2)
"""How many slots a task takes, and in how many per cent of the tasks."""
MEDIAN_S, SIGMA = 0.2, 1.2
SHORTEST_S, LONGEST_S = 0.05, 2.0
TASKS, SLOTS = 400, 16


class Job(NamedTuple):
    """One task of the workload."""

    number: int
    width: int
    length_s: float

    @property
    def walltime_s(self) -> int:
        """What a user would ask for: more than it takes, and a round number."""
        return math.ceil(self.length_s * 1.3 + 1.0)


def jobs(count: int, slots: int) -> list[Job]:
    """Return the first `count` tasks of the workload in the order of submission; none is wider than `slots`."""
    chance = random.Random(SEED)
    return [Job(number, *_shape(chance, slots)) for number in range(count)]


def _shape(chance: random.Random, slots: int) -> tuple[int, float]:
    width = chance.choices(WIDTHS, SHARES)[0]
    length_s = chance.lognormvariate(math.log(MEDIAN_S), SIGMA)
    return min(width, slots), round(min(max(length_s, SHORTEST_S), LONGEST_S), 3)


def bound_s(work: Sequence[Job], slots: int) -> float:
    """Return the time in which nobody can do it faster: the longest task, or the area over the slots."""
    area = sum(job.width * job.length_s for job in work)
    return max(area / slots, *(job.length_s for job in work))


def fifo_s(work: Sequence[Job], slots: int) -> float:
    """Return how long strict first-in first-out takes without any cost: while the first does not fit, all wait."""
    now, free = 0.0, slots
    running: list[tuple[float, int]] = []
    for job in work:
        while free < job.width:
            now, width = heapq.heappop(running)
            free += width
        free -= job.width
        heapq.heappush(running, (now + job.length_s, job.width))
    return max(end for end, _ in running)


def greedy_s(work: Sequence[Job], slots: int) -> float:
    """Return how long it takes without any cost if the first that fits starts whenever there is room."""
    now, free, waiting = 0.0, slots, list(work)
    running: list[tuple[float, int]] = []
    while waiting:
        for job in list(waiting):
            if job.width <= free:
                waiting.remove(job)
                free -= job.width
                heapq.heappush(running, (now + job.length_s, job.width))
        now, width = heapq.heappop(running)
        free += width
    return max([now, *(end for end, _ in running)])


def fields(work: Sequence[Job], slots: int, seconds: float) -> dict[str, Any]:
    """Return what is reported of a run that took so long, beside what arithmetic says of it."""
    bound = bound_s(work, slots)
    return {
        "seconds": seconds,
        "ratio": seconds / bound,
        "bound_s": bound,
        "fifo_ratio": fifo_s(work, slots) / bound,
        "greedy_ratio": greedy_s(work, slots) / bound,
    }
