"""Who gets which slots. Pure: time is passed in.

For narrow work (one slot, no MPI, no GPU): how many tasks each slot gets. For wide tasks: which start where, and which
slots are kept free for the next one.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from itertools import chain, islice
from typing import NamedTuple

from pilot.board import Board, Shape, Spot
from pilot.fitting import GPU
from pilot.resources import Resources

REVIEW_S = 10.0
"""How long slots stay reserved for a task before others are considered; doubled each time they are exchanged."""

Spots = tuple[Spot, ...]

# -- narrow work ----------------------------------------------------------------------------------


def fits(resources: Resources, slot_cores: int) -> bool:
    """Say whether a task with these resources can run in one slot."""
    return resources.cores <= slot_cores


def share(load: Mapping[int, int], target: int, count: int) -> dict[int, int]:
    """Share `count` tasks among slots so that the least loaded fill first; no slot gets above `target`.

    Args:
        load: slot → tasks in hand, of the slots that take work.
        target: most that a slot should hold.
        count: how many tasks there are.

    Returns:
        slot → how many more it gets; slots that get none are left out. Differences of load above one are
        levelled before any slot gets further work.
    """
    heap = [(held, slot) for slot, held in load.items() if held < target]
    heapq.heapify(heap)
    given: dict[int, int] = {}
    while heap and count > 0:
        held, slot = heapq.heappop(heap)
        level = min(heap[0][0] + 1 if heap else target, target)
        more = min(max(1, level - held), count)
        given[slot] = given.get(slot, 0) + more
        count -= more
        if held + more < target:
            heapq.heappush(heap, (held + more, slot))
    return given


def take_back(load: Mapping[int, int]) -> dict[int, int]:
    """Say what to recall from loaded slots when others are idle and nothing else is there to give them.

    Returns:
        slot → how many to recall, latest first; together as many as there are idle slots, from the fullest
        slots first, and never a slot's only task.
    """
    idle = sum(1 for held in load.values() if held == 0)
    wanted: dict[int, int] = {}
    heap = [(-held, slot) for slot, held in load.items() if held > 1]
    heapq.heapify(heap)
    while heap and idle > 0:
        held, slot = heapq.heappop(heap)
        wanted[slot] = wanted.get(slot, 0) + 1
        idle -= 1
        if -held - 1 > 1:
            heapq.heappush(heap, (held + 1, slot))
    return wanted


# -- wide tasks -----------------------------------------------------------------------------------


class Waiting(NamedTuple):
    """What is leased and waits for room, of one class and priority."""

    key: str
    shape: Shape
    walltime_s: float | None
    priority: int
    """The smaller, the sooner."""
    seq: int
    """Of the oldest task; it decides among equal priorities."""
    count: int  # type: ignore[assignment]  # of tasks; nobody asks a request how often a value is in it


class Start(NamedTuple):
    """One task that can start now."""

    key: str
    priority: int
    spots: Spots


class Reservation(NamedTuple):
    """Slots kept for the first wide task that cannot start."""

    key: str
    priority: int
    slots: frozenset[int]
    at: float | None
    """When all of them should be free; None: nobody knows."""


class Plan(NamedTuple):
    """What to do now."""

    starts: tuple[Start, ...]
    reserved: Reservation | None
    """To be kept free: give these slots no narrow work but what `Planner.open_to` allows, and recall what they
    have not begun."""


class _Stay(NamedTuple):
    """Work in hand, by its expected end."""

    end: float
    number: int
    spots: Spots


class _Hold(NamedTuple):
    """A reservation in detail."""

    key: str
    priority: int
    spots: Spots
    slots: frozenset[int]
    gpus: Mapping[tuple[int, int], int]
    """(node, GPU) → thousandths."""
    outside: Board
    """The pool without what is reserved."""

    def needs(self, spots: Spots) -> bool:
        """Say whether it cannot begin while these are in use."""
        return any(
            not self.slots.isdisjoint(spot.slots)
            or any(self.gpus.get((spot.node, gpu), -GPU) + spot.share > GPU for gpu in spot.gpus)
            for spot in spots
        )


class Planner:
    """Decides which wide tasks start, and keeps slots for the next one so that narrow work never starves it.

    It must be told of everything that slots have in hand: `busy` and `idle` for narrow work, `begin` and `end` for
    wide tasks. Only `begin` carries out what `plan` proposes.
    """

    def __init__(self, board: Board) -> None:
        self.board = board
        """Read only; change it by the methods here."""
        self._stays: list[_Stay] = []
        """Sorted; those of unknown end last."""
        self._by_slot: dict[int, _Stay] = {}
        self._wide: set[int] = set()
        self._number = 0
        self._hold: _Hold | None = None
        self._in_force = True
        self._awaited: set[_Stay] = set()
        """What the reservation waits for."""
        self._patience_s = REVIEW_S
        self._review_at = 0.0
        self._never: set[Shape] = set()

    # -- facts ----------------------------------------------------------------------------------

    def busy(self, slot: int, until: float | None) -> None:
        """Note that a slot has narrow work in hand, which should end at `until`; None: nobody knows. Repeatable.

        An estimate is better than None: what is overdue is seen as such.
        """
        stay = self._by_slot.get(slot)
        spots: Spots
        if stay is None:
            spots = (Spot(self.board.where[slot], (slot,)),)
            self._take(spots)
        elif stay.end == _end(until):
            return
        else:
            spots = stay.spots
            self._leave(stay)
        self._stay(spots, until)

    def idle(self, slot: int) -> None:
        """Note that a slot holds no narrow work. Repeatable."""
        stay = self._by_slot.get(slot)
        if stay is not None and slot not in self._wide:
            self._leave(stay)
            self._release(stay.spots)

    def begin(self, spots: Spots, until: float | None) -> None:
        """Note that a wide task has begun, which should end at `until`; None: nobody knows.

        Raises:
            PoolError: one of the slots is in use; this is a defect.
        """
        self._take(spots)
        self._stay(spots, until)
        self._wide.update(_slots(spots))

    def end(self, spots: Spots) -> None:
        """Note that a wide task has ended."""
        self._leave(self._by_slot[spots[0].slots[0]])
        self._wide.difference_update(_slots(spots))
        self._release(spots)

    def remove(self, slot: int) -> None:
        """Count out a slot that is lost or quarantined, whatever it has in hand. Repeatable."""
        self.board.remove(slot)
        if self._hold is not None:
            self._hold.outside.remove(slot)
            if slot in self._hold.slots:
                self._drop_hold()
        self._never.clear()

    def restore(self, slot: int) -> None:
        """Count in again what was removed. Repeatable."""
        self.board.restore(slot)
        if self._hold is not None:
            self._hold.outside.restore(slot)
        self._never.clear()

    # -- decisions ------------------------------------------------------------------------------

    def plan(self, waiting: Sequence[Waiting], now: float) -> Plan:
        """Decide what starts now and what is kept free, in the order of priority, then age.

        The first wide class that cannot start gets a reservation: the slots that are free soonest. What is behind it
        starts outside of these, or on them if its walltime has passed before. Narrow work ahead keeps as many free
        slots as it has tasks. Nothing changes but the reservation.
        """
        tried: list[Spots] = []
        starts: list[Start] = []
        claimed: set[int] = set()
        settled, self._in_force = False, True
        for item in sorted(waiting, key=lambda item: (item.priority, item.seq)):
            if not item.shape.wide:
                claims = self._claim(item, settled)
                claimed.update(_slots(claims))
                tried.append(claims)
                continue
            left = item.count
            while left and (spots := self._room(item, now, settled)):
                self._take(spots)
                tried.append(spots)
                starts.append(Start(item.key, item.priority, spots))
                left -= 1
            if left and not settled:
                settled = self._reserve(item, now, tried, claimed)
        if not settled:
            self._drop_hold()
        for spots in tried:
            self._release(spots)
        return Plan(tuple(starts), self._reservation(now) if self._in_force else None)

    def open_to(
        self, walltime_s: float | None, now: float, slots: Sequence[int], priority: int | None = None
    ) -> list[int]:
        """Return those of `slots` that may get narrow work of this walltime.

        Slots of wide tasks may not. Reserved ones may if they are empty and it ends in time, or if its priority comes
        before that of the task they are reserved for and no other slot is empty.
        """
        reserved = self._reservation(now) if self._in_force else None
        if self._hold is None or reserved is None:
            return [slot for slot in slots if slot not in self._wide]
        if priority is not None and priority < reserved.priority and not self._hold.outside.free:
            return [slot for slot in slots if slot not in self._wide]
        in_time = _in_time(walltime_s, now, reserved)
        return [
            slot
            for slot in slots
            if slot not in self._wide and (slot not in reserved.slots or (in_time and self.board.is_free(slot)))
        ]

    # -- choosing -------------------------------------------------------------------------------

    def _claim(self, item: Waiting, settled: bool) -> Spots:
        """Return the free slots that narrow work takes before what is behind it."""
        hold = self._hold
        if hold is None:
            return tuple(self.board.crumbs(item.count))
        claims = hold.outside.crumbs(item.count)
        left = item.count - sum(len(spot.slots) for spot in claims)
        if left and not settled and item.priority < hold.priority:
            claims += [spot for spot in self.board.crumbs(self.board.free) if hold.needs((spot,))][:left]
        return tuple(claims)

    def _room(self, item: Waiting, now: float, settled: bool) -> Spots | None:
        """Return where a task can start now; `settled`: the reservation is for somebody ahead of it."""
        hold = self._hold
        if hold is None:
            return self.board.place(item.shape)
        spots = hold.outside.place(item.shape)
        if spots or (settled and not _in_time(item.walltime_s, now, self._reservation(now))):
            return spots
        if settled or (hold.key, hold.priority) != (item.key, item.priority):
            return self.board.place(item.shape)
        spots = hold.spots if self.board.fits(hold.spots) else self.board.place(item.shape)
        if spots:
            self._drop_hold()
        return spots

    def _reserve(self, item: Waiting, now: float, tried: Sequence[Spots], claimed: set[int]) -> bool:
        """See to it that slots are reserved for this class; say whether it is possible."""
        hold = self._hold
        if hold is not None and (hold.key, hold.priority) != (item.key, item.priority):
            hold = None
        if hold is not None and now < self._review_at:
            return True
        if item.shape in self._never:
            return False
        found = self._soonest(item.shape, now, tried)
        if found is None:
            if self.board.why_never(item.shape):
                self._never.add(item.shape)
            return hold is not None
        spots, wait_s = found
        if hold is not None:
            self._review_at = now + self._patience_s
            if 2 * wait_s >= max((_overdue(stay.end, now) for stay in self._awaited), default=0.0):
                return True
            self._patience_s *= 2
        else:
            self._patience_s = REVIEW_S
        self._review_at = now + self._patience_s
        self._set_hold(item, spots)
        self._in_force = claimed.isdisjoint(_slots(spots))  # work ahead has these first, and once
        return True

    def _soonest(self, shape: Shape, now: float, tried: Sequence[Spots]) -> tuple[Spots, float] | None:
        """Return the place that is free soonest, and in how many seconds; what this plan has given away comes last."""
        first = bisect_left(self._stays, (now,))
        order = chain(
            heapq.merge(
                self._stays[first:], reversed(self._stays[:first]), key=lambda stay: _overdue(stay.end, now)
            ),
            (_Stay(math.inf, 0, spots) for spots in tried),
        )  # fmt: skip
        before = board = self.board
        stays, spots = [_Stay(now, 0, ())], self.board.place(shape)
        size = 1
        while not spots:
            stays = list(islice(order, size))
            if not stays:
                return None
            before, board = board, _without(board, stays)
            spots = board.place(shape)
            size *= 2
        while len(stays) > 1:  # the last step was too long by up to half
            half = len(stays) // 2
            middle = _without(before, stays[:half])
            sooner = middle.place(shape)
            if sooner:
                spots, stays = sooner, stays[:half]
            else:
                before, stays = middle, stays[half:]
        return spots, _overdue(stays[0].end, now)

    # -- books ----------------------------------------------------------------------------------

    def _take(self, spots: Spots) -> None:
        self.board.take(spots)
        if self._hold is not None:
            self._hold.outside.take([spot for spot in spots if self._hold.slots.isdisjoint(spot.slots)])

    def _release(self, spots: Spots) -> None:
        self.board.release(spots)
        if self._hold is not None:
            self._hold.outside.release([spot for spot in spots if self._hold.slots.isdisjoint(spot.slots)])

    def _stay(self, spots: Spots, until: float | None) -> None:
        self._number += 1
        stay = _Stay(_end(until), self._number, spots)
        insort(self._stays, stay)
        for slot in _slots(spots):
            self._by_slot[slot] = stay
        if self._hold is not None and self._hold.needs(spots):
            self._awaited.add(stay)

    def _leave(self, stay: _Stay) -> None:
        del self._stays[bisect_left(self._stays, stay)]
        for slot in _slots(stay.spots):
            del self._by_slot[slot]
        self._awaited.discard(stay)

    def _set_hold(self, item: Waiting, spots: Spots) -> None:
        slots = frozenset(_slots(spots))
        gpus: dict[tuple[int, int], int] = {}
        for spot in spots:
            for gpu in spot.gpus:
                gpus[spot.node, gpu] = gpus.get((spot.node, gpu), 0) + spot.share
        outside = self.board.copy()
        outside.hold(spots)
        self._hold = _Hold(item.key, item.priority, spots, slots, gpus, outside)
        self._awaited = {stay for stay in self._stays if self._hold.needs(stay.spots)}

    def _drop_hold(self) -> None:
        self._hold = None
        self._awaited = set()

    def _reservation(self, now: float) -> Reservation | None:
        hold = self._hold
        if hold is None:
            return None
        at = max((stay.end for stay in self._awaited), default=now)
        return Reservation(hold.key, hold.priority, hold.slots, at if now <= at < math.inf else None)


def _slots(spots: Sequence[Spot]) -> list[int]:
    return [slot for spot in spots for slot in spot.slots]


def _end(until: float | None) -> float:
    return math.inf if until is None else until


def _overdue(end: float, now: float) -> float:
    """Return in how many seconds work should end; what is late may take as long again as it is late."""
    return end - now if end >= now else now - end


def _in_time(walltime_s: float | None, now: float, reserved: Reservation | None) -> bool:
    """Say whether work of this walltime ends before the reservation begins."""
    known = walltime_s is not None and reserved is not None and reserved.at is not None
    return known and now + walltime_s <= reserved.at  # type: ignore[operator, union-attr]


def _without(board: Board, stays: Sequence[_Stay]) -> Board:
    """Return the board as it is when all of this has ended."""
    later = board.copy()
    for stay in stays:
        later.release(stay.spots)
    return later
