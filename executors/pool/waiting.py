"""Waiting: sleep cheaply until something comes, and judge how long nothing came."""

from __future__ import annotations

import math
import select
from collections.abc import Sequence

_SELECT_MAX = 1024
"""`select` counts in microseconds but cannot watch descriptors from here on; `poll` counts in milliseconds."""


PAUSE_S = 2.0
"""A longer gap between two looks means that this process itself was not running: frozen, swapped out, blocked."""


class AwakeClock:
    """A clock that stands still while this process is away, so that its own absence is no one else's silence."""

    __slots__ = ("_away_s", "_looked")

    def __init__(self, now: float) -> None:
        self._looked = now
        self._away_s = 0.0

    def at(self, now: float) -> float:
        """Return this clock's time.

        Args:
            now: the time of a monotonic clock. Call it every second at least, after taking what has arrived.
        """
        gap_s, self._looked = now - self._looked, now
        if gap_s > PAUSE_S:
            self._away_s += gap_s
        return now - self._away_s


class Backoff:
    """How long to sleep next: from `shortest_s`, half as long again each time, up to `longest_s`.

    From there it creeps up to twice as long: 70 steps, so who is idle for a second is taken to stay so.
    """

    __slots__ = ("_longest_s", "_next_s", "_shortest_s")

    def __init__(self, shortest_s: float, longest_s: float) -> None:
        self._shortest_s = self._next_s = shortest_s
        self._longest_s = longest_s

    def reset(self) -> None:
        """Something happened: more is likely soon."""
        self._next_s = self._shortest_s

    def step(self) -> float:
        """Return the time to sleep now and lengthen the next one."""
        now_s = self._next_s
        if now_s < self._longest_s:
            self._next_s = min(now_s * 1.5, self._longest_s)
        elif now_s < 2 * self._longest_s:
            self._next_s = now_s * 1.01
        return now_s


def wait_readable(fds: Sequence[int], timeout_s: float) -> list[int]:
    """Sleep until one of `fds` can be read or the time is over; return those that can."""
    if not fds or max(fds) < _SELECT_MAX:
        return select.select(fds, (), (), max(0.0, timeout_s))[0]
    poller = select.poll()
    for fd in fds:
        poller.register(fd, select.POLLIN)
    return [fd for fd, _ in poller.poll(max(0, math.ceil(timeout_s * 1000)))]
