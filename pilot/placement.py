"""Who gets which slots. Pure: time is passed in.

For narrow work (one slot, no MPI, no GPU): how many tasks each slot gets. For wide tasks: which start where, and which
slots are kept free for the next one.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from itertools import islice
from operator import attrgetter
from typing import NamedTuple

from pilot.board import Board, Shape, Spot, Spots, slots_of
from pilot.errors import PoolError
from pilot.stays import Hold, Stay, Stays, end_of

REVIEW_S = 10.0
"""How long slots stay reserved for a task before others are considered; doubled each time they are exchanged."""

# -- narrow work ----------------------------------------------------------------------------------


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


_IN_TURN = attrgetter("priority", "seq")


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


class Planner:
    """Decides which wide tasks start, and keeps slots for the next one so that narrow work never starves it.

    It must be told of everything that slots have in hand: `busy` and `idle` for narrow work, `begin` and `end` for
    wide tasks.
    """

    def __init__(self, board: Board) -> None:
        self.board = board
        """Read only; change it by the methods here."""
        self._stays = Stays()
        self._wide: set[int] = set()
        self._proposed: list[Spots] = []
        """Taken by the last plan, not begun yet."""
        self._hold: Hold | None = None
        self._in_force = True
        self._patience_s = REVIEW_S
        self._review_at = 0.0
        self._never: set[Shape] = set()

    # -- facts ----------------------------------------------------------------------------------

    def busy(self, slot: int, until: float | None) -> None:
        """Note that a slot has narrow work in hand, which should end at `until`; None: nobody knows. Repeatable.

        An estimate is better than None: what is overdue is seen as such.

        Raises:
            PoolError: a wide task has the slot; this is a defect.
        """
        stay = self._stays.of(slot)
        spots: Spots
        if stay is None or slot in self._wide:
            self._void()
            spots = (Spot(self.board.where[slot], (slot,)),)
            self._take(spots)
        elif stay.end == end_of(until):
            return
        else:
            spots = stay.spots
            self._leave(stay)
        self._stay(spots, until)

    def idle(self, slot: int) -> None:
        """Note that a slot holds no narrow work. Repeatable."""
        stay = self._stays.of(slot)
        if stay is not None and slot not in self._wide:
            self._leave(stay)
            self._release(stay.spots)

    def begin(self, spots: Spots, until: float | None) -> None:
        """Note that a wide task has begun, which should end at `until`; None: nobody knows.

        Raises:
            PoolError: one of the slots is in use; this is a defect.
        """
        if spots in self._proposed:
            self._proposed.remove(spots)
        else:
            self._take(spots)
        self._stay(spots, until)
        self._wide.update(slots_of(spots))

    def end(self, spots: Spots) -> None:
        """Note that a wide task has ended.

        Raises:
            PoolError: none has begun there; this is a defect.
        """
        stay = self._stays.of(spots[0].slots[0])
        if stay is None or stay.spots != spots:
            raise PoolError(f"a task was to end on slots {slots_of(spots)} that it does not have; please report this")
        self._leave(stay)
        self._wide.difference_update(slots_of(spots))
        self._release(spots)

    def remove(self, slot: int) -> None:
        """Count out a slot that is lost or quarantined, whatever it has in hand. Repeatable."""
        self.board.remove(slot)
        if self._hold is not None:
            self._hold.outside.remove(slot)
            if slot in self._hold.slots:
                self._hold = None
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
        slots as it has tasks. What starts here is to `begin` before the next plan, or its place is given to others.
        """
        self._void()
        tried: list[Stay] = []
        starts: list[Start] = []
        claimed: list[Spots] = []
        at: float | None = None
        settled, self._in_force = False, True
        for item in sorted(waiting, key=_IN_TURN):
            slots = item.shape.ranks * item.shape.slots_per_rank
            if settled and slots > self.board.free:
                continue
            if not item.shape.wide:
                claims = self._claim(item, settled)
                self._take(claims)
                claimed.append(claims)
                tried.append(Stay(math.inf, 0, claims))  # back again when nobody knows
                continue
            left = item.count
            inside = not settled or _in_time(item.walltime_s, now, at)
            while left and slots <= self.board.free and (spots := self._room(item, inside, settled)):
                self._take(spots)
                tried.append(Stay(end_of(item.walltime_s and now + item.walltime_s), 0, spots))
                starts.append(Start(item.key, item.priority, spots))
                left -= 1
            if left and not settled:
                settled = self._reserve(item, now, tried, claimed)
                at = self._hold.at(now) if self._hold is not None else None
        if not settled:
            self._hold = None
        for claims in claimed:
            self._release(claims)
        self._proposed = [start.spots for start in starts]
        return Plan(tuple(starts), self._reservation(now))

    def open_to(
        self, walltime_s: float | None, now: float, slots: Sequence[int], priority: int | None = None
    ) -> list[int]:
        """Return those of `slots` that may get narrow work of this walltime.

        Slots of wide tasks may not. Reserved ones may if they are empty and it ends in time, or if its priority comes
        before that of the task they are reserved for and no other slot is empty.
        """
        reserved = self._reservation(now)
        if self._hold is None or reserved is None:
            return [slot for slot in slots if slot not in self._wide]
        if priority is not None and priority < reserved.priority and not self._hold.outside.free:
            return [slot for slot in slots if slot not in self._wide]
        in_time = _in_time(walltime_s, now, reserved.at)
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
        if left and not settled and item.priority < hold.owner[1]:
            free = (slot for slot in hold.slots if self.board.is_free(slot))
            claims += [Spot(self.board.where[slot], (slot,)) for slot in islice(free, left)]
        return tuple(claims)

    def _room(self, item: Waiting, inside: bool, settled: bool) -> Spots | None:
        """Return where a task can start now.

        Args:
            item: the task's class.
            inside: whether it may have what is reserved.
            settled: whether the reservation is for somebody ahead of it.
        """
        hold = self._hold
        if hold is None:
            return self.board.place(item.shape)
        spots = hold.outside.place(item.shape)
        if spots or not inside:
            return spots
        if settled or hold.owner != (item.key, item.priority):
            return self.board.place(item.shape)
        spots = hold.spots if hold.free(self.board) else self.board.place(item.shape)
        if spots:
            self._hold = None
        return spots

    def _reserve(self, item: Waiting, now: float, tried: Sequence[Stay], claimed: Sequence[Spots]) -> bool:
        """See to it that slots are reserved for this class; say whether it is possible."""
        hold = self._hold
        if hold is not None and hold.owner != (item.key, item.priority):
            hold = None
        if hold is not None and now < self._review_at:
            return True
        if item.shape in self._never:
            return False
        found = self._stays.soonest(self.board, item.shape, now, tried)
        if found is None:
            if self.board.why_never(item.shape):
                self._never.add(item.shape)
            return hold is not None
        spots, wait_s = found
        if hold is not None:
            self._review_at = now + self._patience_s
            if 2 * wait_s >= hold.wait_s(now):
                return True
            self._patience_s *= 2
        else:
            self._patience_s = REVIEW_S
        self._review_at = now + self._patience_s
        self._hold = Hold(item.key, item.priority, spots, self.board, self._stays)
        first = {slot for claims in claimed for slot in slots_of(claims)}
        self._in_force = first.isdisjoint(slots_of(spots))  # work ahead has these first, and once
        return True

    # -- books ----------------------------------------------------------------------------------

    def _take(self, spots: Spots) -> None:
        self.board.take(spots, *self._outside())

    def _release(self, spots: Spots) -> None:
        self.board.release(spots, *self._outside())

    def _outside(self) -> tuple[Board, ...]:
        return () if self._hold is None else (self._hold.outside,)

    def _void(self) -> None:
        """Free what was to begin and has not."""
        for spots in self._proposed:
            self._release(spots)
        self._proposed.clear()

    def _stay(self, spots: Spots, until: float | None) -> None:
        stay = self._stays.add(spots, until)
        if self._hold is not None:
            self._hold.began(stay)

    def _leave(self, stay: Stay) -> None:
        self._stays.remove(stay)
        if self._hold is not None:
            self._hold.ended(stay)

    def _reservation(self, now: float) -> Reservation | None:
        hold = self._hold
        return None if hold is None or not self._in_force else Reservation(*hold.owner, hold.slots, hold.at(now))


def _in_time(walltime_s: float | None, now: float, at: float | None) -> bool:
    """Say whether work started now ends before reserved slots are needed."""
    return at is not None and walltime_s is not None and now + walltime_s <= at
