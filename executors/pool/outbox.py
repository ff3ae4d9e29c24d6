"""Results on their way to rank 0: how many to collect before a message is worth sending. No clock, no MPI."""

from __future__ import annotations

import math
from collections.abc import Iterable

from pilot.executors.pool.messages import Results
from pilot.executors.run.verdict import Finished

ITEMS_MAX = 100
BYTES_MAX = 4 << 20
AGE_MAX_S = 5e-3


class Outbox:
    """A batch of results. Times are of one monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._batch: list[Finished] = []
        self._bytes = 0
        self._since = math.inf

    def __len__(self) -> int:
        return len(self._batch)

    def add(self, finished: Iterable[Finished], now: float) -> None:
        """Put results behind those that wait."""
        before = len(self._batch)
        self._batch += finished
        self._bytes += sum([len(one.body) for one in self._batch[before:]])
        if not before and self._batch:
            self._since = now

    @property
    def due(self) -> float:
        """When the batch must be sent at the latest; infinite if there is none."""
        return self._since + AGE_MAX_S

    def ready(self, now: float, load: int) -> bool:
        """Return whether to send now: enough is there, or some is old, or the slot runs low.

        Args:
            load: attempts that the slot has yet to end; with no more of these than results that wait, rank
                0 should know, so that more work is here before the child has nothing to do.
        """
        count = len(self._batch)
        return count > 0 and (count >= ITEMS_MAX or load <= count or self._bytes >= BYTES_MAX or now >= self.due)

    def take(self) -> Results:
        """Return the message to send and start a new batch."""
        message = Results(tuple(self._batch))
        self._batch, self._bytes, self._since = [], 0, math.inf
        return message
