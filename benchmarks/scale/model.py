"""One pool event by event, driven by the real decisions; it shares the database with pools that do the same.

All pools of a run are alike, so one is simulated, slot by slot. Nothing of `pilot` is imitated that can be imported:
how much to lease and to prefetch, who gets what, what is called back and what is reserved is decided by its own code.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks.scale.costs import POOL_NODES, Costs
from benchmarks.scale.parts import Database, Slot, Task, Wide
from pilot import lifecycle, placement
from pilot.board import Node, Shape

NARROW = Shape()
DEFAULT = Costs()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to. Times in simulated seconds; the start-up is not part of the rates."""

    nodes: int
    slots: int
    pools: int
    task_s: float
    tasks: int
    makespan_s: float
    """From the first lease until the last end is in the database."""
    tasks_per_s: float
    """Over the whole run."""
    utilisation: float
    """Of the slots, over the whole run: its beginning and its end are in it."""
    steady: float
    """Of the slots while the middle half of all ends was written."""
    commands_per_s: float
    """Of the database."""
    store_busy: float
    """Of the database's capacity."""
    coordinator_busy: float
    """Of each pool's rank 0."""
    writer_busy: float
    """Of each pool's one thread that writes what has ended: its requests follow one another."""
    start_s: float
    """Until the first task could start."""

    @property
    def limit(self) -> str:
        """What holds the rate down; "slots" if they are busy."""
        if self.steady >= 0.9:
            return "slots"
        busy = {"database": self.store_busy, "coordinators": self.coordinator_busy, "writers": self.writer_busy}
        return max(busy, key=busy.__getitem__)


def simulate(
    nodes: int,
    slots_per_node: int,
    task_s: float,
    tasks: int,
    costs: Costs = DEFAULT,
    *,
    spread: float = 0.0,
    mix: Sequence[tuple[Shape, float]] = ((NARROW, 1.0),),
    seed: int = 1,
) -> Outcome:
    """Run so many tasks, all queued before, on a machine of so many nodes.

    Args:
        nodes: in pools of 64.
        slots_per_node: slots of one core. Rank 0 is not one of them.
        task_s: mean length of a task.
        tasks: of all pools together.
        costs: the table.
        spread: lengths are drawn from `task_s` (1 ± spread).
        mix: shapes, and which part of the tasks has each.
        seed: of the lengths and of the order of shapes.
    """
    pools = -(-nodes // POOL_NODES)
    each = max(1, tasks // pools)
    draw = random.Random(seed)
    shapes = draw.choices([shape for shape, _ in mix], [part for _, part in mix], k=each)
    work = [(shape, task_s * (1 + spread * draw.uniform(-1, 1))) for shape in shapes]
    first = 1
    machine = []
    for number in range(-(-nodes // pools)):
        machine.append(Node(f"n{number}", tuple(range(first, first + slots_per_node))))
        first += slots_per_node
    pool = _Pool(machine, work, Database(costs, pools, tasks), costs)
    pool.run()
    slots = first - 1
    whole = {shape: (shape.nodes or 0) * slots_per_node or shape.ranks * shape.slots_per_rank for shape, _ in work}
    area_s = sum(whole[shape] * length for shape, length in work)
    makespan_s = pool.now
    rate = _middle(pool.ends) or each / makespan_s
    return Outcome(
        nodes, slots * pools, pools, task_s, each * pools, makespan_s, each * pools / makespan_s,
        area_s / (slots * makespan_s), min(1.0, rate * area_s / (each * slots)),
        (pool.database.commands / makespan_s + costs.beat_commands_per_s) * pools,
        (pool.database.done_s * pools / makespan_s + costs.beats(pools)) / costs.store_cores,
        pool.busy_s / makespan_s, pool.writing_s / makespan_s,
        costs.start_s(nodes, slots_per_node),
    )  # fmt: skip


def _middle(ends: Sequence[tuple[float, int]]) -> float:
    """Return the ends per second between the first and the third quarter of (time, ends by then); 0 if too few."""
    total = ends[-1][1]
    middle = [end for end in ends if total <= 4 * end[1] <= 3 * total]
    if len(middle) < 2:
        return 0.0
    (since, before), (until, after) = middle[0], middle[-1]
    return (after - before) / (until - since) if until > since else 0.0


class _Pool:
    """Rank 0 and its slots."""

    def __init__(self, nodes: Sequence[Node], work: Sequence[Task], database: Database, costs: Costs) -> None:
        self._costs = costs
        self.database = database
        self._slots = {slot: Slot() for node in nodes for slot in node.slots}
        self._hungry = dict.fromkeys(self._slots)  # in an order that does not depend on hashes
        self._idle = len(self._slots)
        self._plenty: dict[int, int] = {}
        """Slots with more than one task in hand."""
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self.now = self.busy_s = self.writing_s = 0.0
        self._free_at = self._recalled = 0.0
        self.ends: list[tuple[float, int]] = []
        self._tasks = len(work)
        self._looking = self._leasing = self._writing = False
        self._target = lifecycle.prefetch_target(None)
        self._mean_s: float | None = None
        self._inbox: list[tuple[int, list[float]]] = []
        self._returned: list[float] = []
        self._ready: deque[float] = deque()
        self._queued = deque(length for shape, length in work if not shape.wide)
        self._in_hand = self._unwritten = self._to_write = 0
        self._wide = Wide([one for one in work if one[0].wide], nodes, self._at, self._look)

    def run(self) -> None:
        """Go on until all has ended and is written."""
        self._lease()
        while self._events:
            self.now, _, act = heapq.heappop(self._events)
            act()
        written = self.ends[-1][1] if self.ends else 0
        if written != self._tasks:
            raise RuntimeError(f"{self._tasks - written} of {self._tasks} tasks are stuck in the model")

    def _at(self, when: float, act: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (when, self._number, act))

    # -- rank 0 ---------------------------------------------------------------------------------

    def _look(self) -> None:
        """Let rank 0 notice that something has come."""
        if not self._looking:
            self._looking = True
            self._at(self._free_at if self._free_at > self.now else self.now + self._costs.poll_s / 2, self._round)

    def _round(self) -> None:
        """Go round once: collect, place, feed, write, lease."""
        self._looking = False
        count = sum(len(lengths) for _, lengths in self._inbox)
        for slot, lengths in self._inbox:
            self._hold(slot, -len(lengths))
            for length in lengths:
                self._mean_s = length if self._mean_s is None else self._mean_s + 0.05 * (length - self._mean_s)
        self._inbox.clear()
        self._ready.extendleft(self._returned)
        self._returned.clear()
        count += self._wide.collect()
        cost_s = (self._costs.coordinator_us * count + self._costs.scan_us * len(self._slots)) * 1e-6
        cost_s += self._costs.place_us * 1e-6 * self._wide.start(self.now + cost_s)
        self._free_at = self.now + cost_s
        self.busy_s += cost_s
        self._aim(lifecycle.prefetch_target(self._mean_s))
        if self._ready:
            self._feed()
        elif self._idle and self._plenty and self.now - self._recalled > lifecycle.BORED_S:
            self._recall()
        self._commit(count)
        self._lease()

    def _hold(self, slot: int, more: int) -> None:
        """Count attempts in hand of a slot."""
        state = self._slots[slot]
        self._idle -= state.held == 0
        state.held += more
        self._in_hand += more
        self._idle += state.held == 0
        if state.held < self._target:
            self._hungry[slot] = None
        else:
            self._hungry.pop(slot, None)
        if state.held > 1:
            self._plenty[slot] = state.held
        else:
            self._plenty.pop(slot, None)
        if state.held:
            self._wide.busy(slot, self.now + 2 * state.held * (self._mean_s or 0.0))
        else:
            self._wide.idle(slot)

    def _aim(self, target: int) -> None:
        if target != self._target:
            self._target = target
            self._hungry = {slot: None for slot, state in self._slots.items() if state.held < target}

    def _feed(self) -> None:
        slots = self._wide.open_to(list(self._hungry), self._ready[0], self.now)
        load = {slot: self._slots[slot].held for slot in slots}
        for slot, count in placement.share(load, self._target, len(self._ready)).items():
            items = [self._ready.popleft() for _ in range(count)]
            self._hold(slot, count)
            self._at(self._free_at + self._costs.message_s, partial(self._arrive, slot, items))

    def _recall(self) -> None:
        """Take back from loaded slots when others are idle."""
        self._recalled = self.now
        load = self._plenty | {slot: 0 for slot in self._hungry if not self._slots[slot].held}
        for slot, count in placement.take_back(load).items():
            self._at(self._free_at + self._costs.message_s, partial(self._give_back, slot, count))

    def _lease(self) -> None:
        if self._leasing or self._unwritten > lifecycle.UNWRITTEN_MAX:
            return
        target = lifecycle.lease_target(len(self._slots), self._mean_s)
        wanted = lifecycle.lease_more(target, self._in_hand + len(self._ready))
        items = [self._queued.popleft() for _ in range(min(wanted, len(self._queued)))]
        wide = self._wide.wanted()
        if items or wide:
            self._leasing = True
            work_us = self._costs.lease_us * (len(items) + len(wide))
            answer = self.database.begin(self.now, self._costs.lease_commands, work_us)
            self._at(answer, partial(self._leased, items, wide))

    def _leased(self, items: list[float], wide: list[Task]) -> None:
        self.database.end(self.now)
        self._leasing = False
        self._ready.extend(items)
        self._wide.add(wide)
        self._look()

    def _commit(self, count: int) -> None:
        self._unwritten += count
        self._to_write += count
        if self._to_write and not self._writing:
            self._writing = True
            full = self._to_write >= self._costs.commit_max
            self._at(self.now if full else self.now + self._costs.commit_s, self._write)

    def _write(self) -> None:
        count = min(self._to_write, self._costs.commit_max)
        self._to_write -= count
        answer = self.database.begin(self.now, self._costs.commit_commands, self._costs.finish_us * count)
        self.writing_s += answer - self.now
        self._at(answer, partial(self._written, count))

    def _written(self, count: int) -> None:
        self.database.end(self.now)
        self._unwritten -= count
        self.ends.append((self.now, count + (self.ends[-1][1] if self.ends else 0)))
        self._writing = False
        self._commit(0)
        self._lease()

    # -- slots ----------------------------------------------------------------------------------

    def _arrive(self, slot: int, items: list[float]) -> None:
        state = self._slots[slot]
        state.queue.extend(items)
        if not state.running:
            state.running = True
            slept = min(self._costs.idle_s, (self.now - state.idle_since) / 3)
            self._at(self.now + slept / 2, partial(self._next, slot))

    def _next(self, slot: int) -> None:
        state = self._slots[slot]
        if state.queue:
            length = state.queue.popleft()
            self._at(self.now + length + self._costs.task_us * 1e-6, partial(self._done, slot, length))
        else:
            state.running = False
            state.idle_since = self.now

    def _done(self, slot: int, length: float) -> None:
        state = self._slots[slot]
        state.results.append(length)
        if len(state.results) == 1:
            kept_s = self._costs.report_s if state.queue else 0.0
            self._at(self.now + kept_s + self._costs.message_s, partial(self._report, slot))
        self._next(slot)

    def _report(self, slot: int) -> None:
        state = self._slots[slot]
        self._inbox.append((slot, state.results))
        state.results = []
        self._look()

    def _give_back(self, slot: int, count: int) -> None:
        queue = self._slots[slot].queue
        back = [queue.pop() for _ in range(min(count, len(queue)))]
        self._hold(slot, -len(back))
        self._returned += back
        self._look()
