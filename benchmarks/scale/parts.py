"""What a simulated pool deals with: the database, slots, and wide tasks."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from benchmarks.scale.costs import Costs
from pilot import lifecycle
from pilot.board import Board, Node, Shape, Spots
from pilot.layout import Layout
from pilot.placement import Planner, Waiting

MEMORY_S = 5.0
"""Over which the requests of a pool are averaged."""
WALLTIME = 2.0
"""Walltimes that users give, in lengths of their tasks."""

Task = tuple[Shape, float]
At = Callable[[float, Callable[[], None]], None]
"""Lets something happen at a time."""


class Database:
    """The database, as one of several like pools sees it.

    Its cores are divided fairly among the requests of all pools; one request keeps one core busy at most. As many
    requests of each other pool are taken to be under way as there were of this one on average of late.
    """

    def __init__(self, costs: Costs, pools: int, queued: int) -> None:
        self._costs = costs
        self._cores = costs.store_cores - costs.beats(pools)
        self._others = pools - 1
        self._factor = costs.store_factor(pools, queued)
        self._active = 0
        self._average = 1.0  # all begin at once
        self._looked = 0.0
        self.commands = 0.0
        self.done_s = 0.0
        """Work of this pool, in seconds of one core."""

    def begin(self, now: float, commands: float, work_us: float) -> float:
        """Return when a request of so many commands, with so much work beside them, is answered."""
        self._count(now, 1)
        self.commands += commands
        work_s = (self._costs.command_us * commands + work_us * self._factor) * 1e-6
        self.done_s += work_s
        rate = self._cores / (self._active + self._others * self._average)
        return now + self._costs.store_round_trip_s + work_s / min(1.0, rate)

    def end(self, now: float) -> None:
        """Note that a request has been answered."""
        self._count(now, -1)

    def _count(self, now: float, more: int) -> None:
        kept = math.exp((self._looked - now) / MEMORY_S)
        self._average = kept * self._average + (1 - kept) * self._active
        self._looked = now
        self._active += more


class Slot:
    """A rank and its child."""

    __slots__ = ("held", "idle_since", "queue", "results", "running")

    def __init__(self) -> None:
        self.held = 0
        """As rank 0 knows it."""
        self.queue: deque[float] = deque()
        self.running = False
        self.results: list[float] = []
        """Kept back, to be sent together."""
        self.idle_since = 0.0


class Wide:
    """Tasks of more than one slot, as `pilot.wide` deals with them; does nothing if there are none."""

    def __init__(self, work: Sequence[Task], nodes: Sequence[Node], at: At, look: Callable[[], None]) -> None:
        self._at, self._look = at, look
        self._layout = Layout(tuple(nodes), slot_cores=1)
        self._planner = Planner(Board(nodes)) if work else None
        self._queued: dict[Shape, deque[float]] = {}
        for shape, length in work:
            self._queued.setdefault(shape, deque()).append(length)
        self._waiting: dict[Shape, deque[float]] = {shape: deque() for shape in self._queued}
        self._held = dict.fromkeys(self._queued, 0)
        self._over: list[tuple[Shape, Spots]] = []
        self._changed = False

    def wanted(self) -> list[Task]:
        """Take from the queue what is to be leased now."""
        got = []
        for shape, queued in self._queued.items():
            target = lifecycle.lease_target(self._layout.concurrency(shape), 1.0)
            more = lifecycle.lease_more(target, self._held[shape])
            for _ in range(min(more, len(queued))):
                got.append((shape, queued.popleft()))
                self._held[shape] += 1
        return got

    def add(self, leased: Sequence[Task]) -> None:
        """Take what has been leased."""
        for shape, length in leased:
            self._waiting[shape].append(length)
            self._changed = True

    def start(self, now: float) -> int:
        """Begin what has room; return how many."""
        if self._planner is None or not self._changed:
            return 0
        self._changed = False
        shapes = list(self._waiting)
        waiting = [
            Waiting(str(k), shape, WALLTIME * self._waiting[shape][0], 0, k, len(self._waiting[shape]))
            for k, shape in enumerate(shapes)
            if self._waiting[shape]
        ]
        starts = self._planner.plan(waiting, now).starts
        for start in starts:
            shape = shapes[int(start.key)]
            length = self._waiting[shape].popleft()
            self._planner.begin(start.spots, now + WALLTIME * length)
            self._at(now + length, partial(self._end, shape, start.spots))
        return len(starts)

    def _end(self, shape: Shape, spots: Spots) -> None:
        self._over.append((shape, spots))
        self._look()

    def collect(self) -> int:
        """Free the slots of what has ended; return how many."""
        count = len(self._over)
        for shape, spots in self._over:
            if self._planner is not None:
                self._planner.end(spots)
            self._held[shape] -= 1
        self._changed |= count > 0
        self._over.clear()
        return count

    def busy(self, slot: int, until: float) -> None:
        """Note narrow work."""
        if self._planner is not None:
            self._planner.busy(slot, until)

    def idle(self, slot: int) -> None:
        """Note that a slot holds no narrow work."""
        if self._planner is not None:
            self._planner.idle(slot)
            self._changed = True

    def open_to(self, slots: list[int], length: float, now: float) -> list[int]:
        """Return the slots that may get narrow work of this length."""
        return slots if self._planner is None else self._planner.open_to(WALLTIME * length, now, slots)
