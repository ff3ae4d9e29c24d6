"""Waiting that costs little: sleep until a descriptor is ready, a little longer each time nothing came."""

from __future__ import annotations

import math
import select
from collections.abc import Sequence

_SELECT_MAX = 1024
"""`select` counts in microseconds but cannot watch descriptors from here on; `poll` counts in milliseconds."""


class Backoff:
    """How long to sleep next: from `shortest_s`, half as long again each time, up to `longest_s`."""

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
        self._next_s = min(now_s * 1.5, self._longest_s)
        return now_s


def wait_readable(fds: Sequence[int], timeout_s: float) -> list[int]:
    """Sleep until one of `fds` can be read or the time is over; return those that can."""
    if not fds or max(fds) < _SELECT_MAX:
        return select.select(fds, (), (), max(0.0, timeout_s))[0]
    poller = select.poll()
    for fd in fds:
        poller.register(fd, select.POLLIN)
    return [fd for fd, _ in poller.poll(max(0, math.ceil(timeout_s * 1000)))]
