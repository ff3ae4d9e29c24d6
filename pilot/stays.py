"""What slots have in hand, by when it should end; where there is room soonest; what is held for a task. Pure."""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from pilot.board import Board, Shape, Spots, slots_of
from pilot.fitting import GPU


class Stay(NamedTuple):
    """Work in hand."""

    end: float
    """Infinity if nobody knows."""
    number: int
    spots: Spots

    def wait_s(self, now: float) -> float:
        """Return how long it may yet take: what is late by so much may well take as much again."""
        return abs(self.end - now)


def end_of(until: float | None) -> float:
    """Return it as a number: infinity for None."""
    return math.inf if until is None else until


class Stays:
    """All work in hand of a pool."""

    def __init__(self) -> None:
        self._sorted: list[Stay] = []
        self._by_slot: dict[int, Stay] = {}
        self._number = 0

    def __iter__(self) -> Iterator[Stay]:
        return iter(self._sorted)

    def of(self, slot: int) -> Stay | None:
        """Return what a slot has in hand."""
        return self._by_slot.get(slot)

    def add(self, spots: Spots, until: float | None) -> Stay:
        """Note work that has these slots until then; None: nobody knows."""
        self._number += 1
        stay = Stay(end_of(until), self._number, spots)
        insort(self._sorted, stay)
        for slot in slots_of(spots):
            self._by_slot[slot] = stay
        return stay

    def remove(self, stay: Stay) -> None:
        """Note that it has ended."""
        del self._sorted[bisect_left(self._sorted, stay)]
        for slot in slots_of(stay.spots):
            del self._by_slot[slot]

    def soonest(self, board: Board, shape: Shape, now: float, more: Sequence[Stay]) -> tuple[Spots, float] | None:
        """Return the place that is free soonest, and in how many seconds; None if there is none when all has ended.

        Lets end what should end first, then what is next, until there is room: so many that the number is found in
        twice the logarithm of it steps. `more` is taken on the board, but not noted here.
        """
        first = bisect_left(self._sorted, now, key=lambda stay: stay.end)
        future, late = self._sorted[first:], reversed(self._sorted[:first])
        order = heapq.merge(future, late, sorted(more), key=lambda stay: stay.wait_s(now))
        before = after = board
        stays: list[Stay] = []
        spots: Spots | None = None
        while spots is None:
            stays = list(islice(order, 2 * len(stays) or 1))
            if not stays:
                return None
            before, after = after, _without(after, stays)
            spots = after.place(shape)
        while len(stays) > 1:  # the last step may have been too long
            some, rest = stays[: len(stays) // 2], stays[len(stays) // 2 :]
            middle = _without(before, some)
            sooner = middle.place(shape)
            if sooner is None:
                before, stays = middle, rest
            else:
                spots, stays = sooner, some
        return spots, stays[0].wait_s(now)


def _without(board: Board, stays: Sequence[Stay]) -> Board:
    """Return the board as it will be when these have ended."""
    later = board.copy()
    later.release([spot for stay in stays for spot in stay.spots])
    return later


class Hold:
    """Slots and GPUs held for one class of tasks, in use at present or not.

    Args:
        key: of the class.
        priority: of the class.
        spots: what is held.
        board: of the pool.
        stays: of the pool.
    """

    def __init__(self, key: str, priority: int, spots: Spots, board: Board, stays: Stays) -> None:
        self.owner = (key, priority)
        self.spots = spots
        self.slots = frozenset(slots_of(spots))
        self.outside = board.copy()
        """The pool without what is held. It has to be told of all that begins and ends."""
        self.outside.hold(spots)
        self._gpus: dict[tuple[int, int], int] = {}
        for spot in spots:
            for gpu in spot.gpus:
                self._gpus[spot.node, gpu] = self._gpus.get((spot.node, gpu), 0) + spot.share
        if self._gpus:
            self._awaited = {stay for stay in stays if self._needs(stay.spots)}
        else:
            self._awaited = {stay for slot in self.slots if (stay := stays.of(slot)) is not None}
        self._latest: float | None = None

    def _needs(self, spots: Spots) -> bool:
        """Say whether nothing can begin here while these are in use. Of shares of a GPU each is looked at alone."""
        return any(
            not self.slots.isdisjoint(spot.slots)
            or any(self._gpus.get((spot.node, gpu), -GPU) + spot.share > GPU for gpu in spot.gpus)
            for spot in spots
        )

    def began(self, stay: Stay) -> None:
        """Note that work has begun somewhere."""
        if self._needs(stay.spots):
            self._awaited.add(stay)
            self._latest = None

    def ended(self, stay: Stay) -> None:
        """Note that work has ended."""
        if stay in self._awaited:
            self._awaited.discard(stay)
            self._latest = None

    def free(self, board: Board) -> bool:
        """Say whether all of it is free."""
        return not self._awaited and board.fits(self.spots)

    def at(self, now: float) -> float | None:
        """Return when all of it should be free; None: nobody knows."""
        if not self._awaited:
            return now
        if self._latest is None:
            self._latest = max([stay.end for stay in self._awaited])
        return self._latest if now <= self._latest < math.inf else None

    def wait_s(self, now: float) -> float:
        """Return how long that may yet take."""
        return max([stay.wait_s(now) for stay in self._awaited], default=0.0)
