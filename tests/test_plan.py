"""Plans over time: generated pools that run wide tasks beside an endless stream of narrow ones."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilot.board import Board, Node, Shape, Spots, slots_of
from pilot.errors import PoolError
from pilot.fitting import GPU
from pilot.placement import REVIEW_S, Planner, Reservation, Waiting

NODES = (Node("a", (1, 2, 3, 4), 1), Node("b", (5, 6, 7, 8), 2), Node("c", (9, 10), 0))
PAIR, SINGLE = Shape(ranks=2, mpi=True), Shape()
SHAPES = (
    PAIR, Shape(ranks=8, mpi=True), Shape(ranks=10, mpi=True), Shape(ranks=4, layout="near", mpi=True),
    Shape(ranks=2, slots_per_rank=2, mpi=True), Shape(ranks=3, slots_per_rank=3), Shape(gpus=GPU), Shape(gpus=400),
    Shape(ranks=2, gpus=500, mpi=True), Shape(ranks=4, nodes=2, mpi=True), Shape(ranks=6, per_node=3, mpi=True),
    Shape(ranks=5, layout="contiguous", mpi=True), Shape(ranks=3, gpus=GPU, mpi=True),
)  # fmt: skip


@dataclass
class Pool:
    """A pool that runs what a planner decides; narrow work never ends."""

    draw: random.Random
    honest: bool
    """Whether walltimes are told; they are kept then."""
    planner: Planner = field(default_factory=lambda: Planner(Board(NODES)))
    waiting: list[Waiting] = field(default_factory=list)
    now: float = 0.0
    started: dict[str, float] = field(default_factory=dict)
    promised: dict[str, float] = field(default_factory=dict)
    running: dict[int, Spots] = field(default_factory=dict)
    narrow: set[int] = field(default_factory=set)
    events: list[tuple[float, int, bool]] = field(default_factory=list)
    reserved: Reservation | None = None

    def step(self) -> None:
        """Plan, start, feed, and go on to the next end."""
        kept = self.reserved
        plan = self.planner.plan(self.waiting, self.now)
        for start in plan.starts:
            self.start(start.key, start.spots, plan.reserved or kept)
        self.reserved = plan.reserved
        if self.reserved is not None and not plan.starts:  # else: what has begun just now is not in it
            self.keep(self.reserved)
        self.feed()
        self.now, number, wide = heapq.heappop(self.events)
        if wide:
            self.planner.end(self.running.pop(number))
        else:
            self.narrow.discard(number)
            self.planner.idle(number)

    def start(self, key: str, spots: Spots, reserved: Reservation | None) -> None:
        item = next(item for item in self.waiting if item.key == key)
        self.waiting.remove(item)
        if item.count > 1:
            self.waiting.append(item._replace(count=item.count - 1))
        slots = set(slots_of(spots))
        assert slots.isdisjoint(self.narrow)
        assert slots.isdisjoint(slots_of(spot for other in self.running.values() for spot in other))
        length = self.draw.uniform(0.1, 9.0)
        walltime_s = item.walltime_s or length
        if self.reserved is not None and reserved == self.reserved and item.key != reserved.key:
            inside = not slots.isdisjoint(reserved.slots)
            assert not inside or (reserved.at is not None and self.now + walltime_s <= reserved.at)
        self.planner.begin(spots, self.now + walltime_s if self.honest else None)
        number = 100 + len(self.started)
        self.started[f"{key}#{item.count}"] = self.now
        self.running[number] = spots
        heapq.heappush(self.events, (self.now + min(length, walltime_s), number, True))
        shares: Counter[tuple[int, int]] = Counter()
        for spot in [spot for other in self.running.values() for spot in other]:
            shares.update({(spot.node, gpu): spot.share for gpu in spot.gpus})
        assert max(shares.values(), default=0) <= GPU
        if self.honest and key in self.promised:
            assert self.now <= self.promised.pop(key) + 1e-6, "later than when its slots were to be free"

    def keep(self, reserved: Reservation) -> None:
        """Remember the first promise made to each; forget those of others: somebody came before them."""
        shape = next(item.shape for item in self.waiting if item.key == reserved.key)
        at = float("inf") if reserved.at is None or shape.gpus % GPU else reserved.at  # of shares it knows less
        self.promised = {reserved.key: self.promised.get(reserved.key, at)}

    def feed(self) -> None:
        walltime_s = self.draw.uniform(0.1, 20.0)
        told = walltime_s if self.honest else None
        idle = [slot for node in NODES for slot in node.slots if slot not in self.narrow]
        for slot in self.planner.open_to(told, self.now, idle):
            if self.planner.board.is_free(slot):
                self.narrow.add(slot)
                self.planner.busy(slot, None if told is None else self.now + told)
                heapq.heappush(self.events, (self.now + walltime_s * self.draw.choice([0.3, 1.0]), slot, False))


@settings(max_examples=100, deadline=None)
@given(st.randoms(use_true_random=False), st.booleans(), st.lists(st.sampled_from(SHAPES), min_size=1, max_size=6))
def test_every_wide_task_starts_when_promised_whatever_narrow_work_there_is(
    draw: random.Random, honest: bool, shapes: list[Shape]
) -> None:
    pool = Pool(draw, honest)
    for _ in range(draw.randrange(6)):  # narrow work is there first
        pool.step() if pool.events else pool.feed()
    for number, shape in enumerate(shapes):
        walltime_s = draw.uniform(9.0, 15.0) if honest else None
        pool.waiting.append(Waiting(f"w{number}", shape, walltime_s, draw.randrange(3), number, 2))
    steps = 0
    while pool.waiting:
        pool.feed()
        pool.step()
        steps += 1
        assert steps < 3000, f"still waiting: {pool.waiting}"


def test_what_begins_partly_inside_a_reservation_is_in_use_outside_of_it_too() -> None:
    planner = Planner(Board([Node("n", (1, 2, 3, 4))]))
    planner.busy(1, 5.0)
    planner.busy(3, 100.0)
    head = Waiting("head", Shape(ranks=3, mpi=True), None, 0, 0, 1)
    reserved = planner.plan([head], 0.0).reserved
    assert reserved is not None
    assert reserved.slots == {1, 2, 4}
    planner.idle(3)
    short = Waiting("short", Shape(slots_per_rank=2), 2.0, 0, 1, 1)
    plan = planner.plan([head, short], 0.0)
    assert [slots_of(start.spots) for start in plan.starts if start.key == "short"] == [[2, 3]] or [
        start.key for start in plan.starts
    ] == ["head"]
    for start in plan.starts:
        planner.begin(start.spots, 2.0)
    one = Waiting("one", Shape(mpi=True), 1.0, 0, 2, 4)
    for start in planner.plan([one], 0.0).starts:
        planner.begin(start.spots, 1.0)


def test_a_reservation_stays_where_it_is() -> None:
    planner = Planner(Board([Node("a", (1, 2)), Node("b", (3, 4))]))
    for slot, until in ((1, 9.0), (2, 9.5), (3, 11.0), (4, 12.0)):
        planner.busy(slot, until)
    pair = Waiting("pair", PAIR._replace(layout="near"), 1.0, 0, 0, 1)
    first = planner.plan([pair], 0.0).reserved
    assert first == Reservation("pair", 0, frozenset({1, 2}), 9.5)
    planner.busy(3, 1.0)
    planner.busy(4, 9.2)  # a little sooner is no reason to move
    assert planner.plan([pair], REVIEW_S + 1e-3).reserved == first._replace(at=None)
    planner.busy(2, REVIEW_S + 1.0)
    assert planner.plan([pair], REVIEW_S + 0.5).reserved == first._replace(at=REVIEW_S + 1.0)


def test_a_reservation_leaves_slots_that_are_overdue_for_long() -> None:
    planner = Planner(Board([Node("a", (1, 2)), Node("b", (3, 4))]))
    pair = Waiting("pair", PAIR._replace(layout="near"), 1.0, 0, 0, 1)
    for slot in (1, 2, 3, 4):
        planner.busy(slot, float(slot))
    reserved = planner.plan([pair], 0.0).reserved
    assert reserved is not None
    assert reserved.slots == {1, 2}
    planner.busy(3, 51.0)
    planner.busy(4, 51.0)
    now = 50.0  # 1 and 2 should have ended 48 s ago; 3 and 4 will in a second
    reserved = planner.plan([pair], now).reserved
    assert reserved == Reservation("pair", 0, frozenset({3, 4}), 51.0)


def test_a_lost_slot_is_reserved_no_longer() -> None:
    planner = Planner(Board([Node("a", (1, 2, 3))]))
    for slot in (1, 2, 3):
        planner.busy(slot, None)
    pair = Waiting("pair", PAIR, None, 0, 0, 1)
    reserved = planner.plan([pair], 0.0).reserved
    assert reserved is not None
    gone = min(reserved.slots)
    planner.remove(gone)
    again = planner.plan([pair], 0.0).reserved
    assert again is not None
    assert again.slots == {1, 2, 3} - {gone}
    planner.remove(2 if gone != 2 else 3)
    assert planner.plan([pair], 0.0).reserved is None  # it will never fit: nobody is kept waiting for it
    planner.restore(gone)
    assert planner.plan([pair], 0.0).reserved is not None


def test_narrow_work_ahead_has_free_slots_first() -> None:
    planner = Planner(Board([Node("a", (1, 2, 3))]))
    narrow, pair = Waiting("narrow", SINGLE, None, 0, 0, 2), Waiting("pair", PAIR, None, 0, 1, 1)
    plan = planner.plan([narrow, pair], 0.0)
    assert plan == ((), None)  # a reservation would take slots that are promised to narrow work
    assert planner.open_to(None, 0.0, [1, 2, 3]) == [1, 2, 3]
    assert [start.key for start in planner.plan([narrow._replace(count=1), pair], 0.0).starts] == ["pair"]
    planner.busy(1, None)
    planner.busy(2, None)
    plan = planner.plan([narrow._replace(count=9), pair], 0.0)
    assert plan.reserved is not None  # among equals it has what is free now, not all that becomes free
    assert plan.reserved.slots == {1, 2}
    assert planner.open_to(None, 0.0, [1, 2, 3]) == [3]


def test_sooner_narrow_work_may_use_what_is_reserved_when_nothing_else_is_empty() -> None:
    planner = Planner(Board([Node("a", (1, 2, 3))]))
    for slot in (1, 2, 3):
        planner.busy(slot, None)
    pair = Waiting("pair", PAIR, None, 5, 0, 1)
    reserved = planner.plan([pair], 0.0).reserved
    assert reserved is not None
    for slot in reserved.slots:
        planner.idle(slot)
    urgent = Waiting("urgent", SINGLE, None, 0, 1, 1)
    assert planner.plan([urgent, pair], 0.0).starts == ()
    assert planner.open_to(None, 0.0, [1, 2, 3], priority=0) == [1, 2, 3]
    assert planner.open_to(None, 0.0, [1, 2, 3], priority=5) == list({1, 2, 3} - reserved.slots)
    assert [start.key for start in planner.plan([pair], 0.0).starts] == ["pair"]


def test_reserved_gpus_are_kept_from_tasks_behind() -> None:
    planner = Planner(Board([Node("a", tuple(range(1, 9)), 2)]))
    one = Waiting("one", Shape(gpus=GPU), None, 0, 1, 5)
    first, second = planner.plan([one._replace(count=2)], 0.0).starts
    planner.begin(first.spots, None)
    planner.begin(second.spots, None)
    both = Waiting("both", Shape(gpus=2 * GPU), None, 0, 0, 1)
    assert planner.plan([both, one], 0.0).reserved is not None
    planner.end(first.spots)
    assert planner.plan([both, one], 0.0).starts == ()
    planner.end(second.spots)
    assert [start.key for start in planner.plan([both, one], 0.0).starts] == ["both"]


def test_a_defect_in_the_books_is_named() -> None:
    planner = Planner(Board(NODES))
    spots = planner.plan([Waiting("pair", PAIR, None, 0, 0, 1)], 0.0).starts[0].spots
    with pytest.raises(PoolError, match="does not have"):
        planner.end(spots)
    planner.begin(spots, None)
    with pytest.raises(PoolError, match="taken twice"):
        planner.begin(spots, None)
    with pytest.raises(PoolError, match="taken twice"):
        planner.busy(spots[0].slots[0], None)
    planner.idle(spots[0].slots[0])  # says that it holds no narrow work: it does not
    planner.end(spots)
    assert planner.board.free == 10


NEVER = (
    (Shape(slots_per_rank=5), "needs 5 slots on one node, the largest node here has 4"),
    (Shape(gpus=3 * GPU), "needs 3 GPUs on one node, the largest node here has 2"),
    (Shape(ranks=5, layout="near", mpi=True), "needs room for 5 ranks on one node, the best node here has it for 4"),
    (Shape(ranks=4, nodes=4, mpi=True), "needs 4 whole nodes with room for 1 ranks each, here are 3"),
    (Shape(ranks=12, per_node=4, mpi=True), "needs 3 nodes with room for 4 ranks each, here are 2"),
    (Shape(ranks=11, mpi=True), "needs room for 11 ranks, here it is for 10"),
)


@pytest.mark.parametrize(("shape", "said"), NEVER)
def test_what_never_fits_is_told_the_limit(shape: Shape, said: str) -> None:
    assert Board(NODES).why_never(shape) == said
