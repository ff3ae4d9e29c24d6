"""One block of a pilot's nodes, and the pool that is kept running over it: when to start one, and over which nodes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator
from itertools import accumulate, pairwise
from pathlib import Path

from pilot import lifecycle
from pilot.block import Block
from pilot.errors import PilotError
from pilot.layout import block_sizes
from pilot.pool_process import PoolProcess
from pilot.settings import PilotSettings

logger = logging.getLogger(__name__)

WORKED_S = 60.0
"""A pool that has lived for so long did work: its end does not say that the next start will fail."""


def divided(whole: Block, most: int, program_nodes: int) -> list[Block]:
    """Divide a pilot's nodes into blocks of at most `most`, but for the last ones, the first block's program nodes.

    They are not divided, so that a program may have them all; and so only that block's pool takes job steps.
    """
    count = min(program_nodes, max(0, len(whole.hosts) - 1))  # a pool needs one
    kept = len(whole.hosts) - count
    ends = accumulate(block_sizes(kept, most), initial=0)
    parts = [whole.hosts[begin:end] for begin, end in pairwise(ends)]
    of = 1 if count else len(parts)
    first, *others = [whole._replace(hosts=hosts, of=of) for hosts in parts]
    return [first._replace(program_hosts=whole.hosts[kept:]), *others]


class PoolKeeper:
    """Keeps a pool running over one block, with bounded restarts, on the nodes that are left.

    Args:
        settings: of the pilot.
        block: the nodes.
        folder: of the pilot.
        numbers: of the starts, over all blocks of the pilot.
        down: tells which of these nodes are dead.
    """

    def __init__(
        self,
        settings: PilotSettings,
        block: Block,
        folder: Path,
        numbers: Iterator[int],
        down: Callable[[Collection[str]], Collection[str]],
    ) -> None:
        self.block = block
        self.pool: PoolProcess | None = None
        self.over = False
        """Whether there will be no pool any more."""
        self.reason = ""
        """Why, if it is not because it was asked to end."""
        self.started_at = 0.0
        """When its last pool was started (monotonic)."""
        self.up = False
        """Whether that has registered."""
        self._settings = settings
        self._folder = folder
        self._numbers = numbers
        self._down = down
        self._backoff = lifecycle.Backoff(settings.restarts_s)
        self._start_at = 0.0
        self._died = False
        self._trouble = ""

    @property
    def trouble(self) -> str:
        """Why this block has no pool, or has not had one for long; "" if all is well."""
        if self.over:
            return self.reason
        working = self.pool is not None and time.monotonic() - self.started_at > WORKED_S
        return "" if working else self._trouble

    def start_if_due(self, wish: str) -> None:
        """Start a pool if it is time to; end for good if no pool is wanted any more."""
        if self.pool is not None or self.over:
            return
        if wish:
            self.over = True
        elif time.monotonic() >= self._start_at:
            self._start()

    def _start(self) -> None:
        if self._died and self.block.hosts:
            self._leave_out(self._down(self.block.hosts + self.block.program_hosts))
            if self.over:
                return
        pool = PoolProcess(self._settings, self.block, self._folder, next(self._numbers))
        try:
            pool.start()
        except PilotError as exc:
            logger.error("%s", exc)
            self.over, self.reason = True, str(exc)
            return
        self.pool = pool
        self.started_at = time.monotonic()
        self.up = False

    def _leave_out(self, down: Collection[str]) -> None:
        """Do without nodes that are dead; a batch system does not give them back to this job."""
        if not down:
            return
        logger.warning("nodes %s are down, and left out from now on", ", ".join(sorted(down)))
        hosts, program_hosts = (
            tuple(host for host in some if host not in down) for some in (self.block.hosts, self.block.program_hosts)
        )
        self.block = self.block._replace(hosts=hosts, program_hosts=program_hosts)
        if not hosts:
            self.over, self.reason = True, f"its nodes are down: {', '.join(sorted(down))}"

    def ended(self, code: int, wish: str) -> None:
        """Decide, after a pool has ended with this exit code, when the next one starts, if at all."""
        pool = self.pool
        assert pool is not None
        self.pool = None
        if wish:
            self.over = True
            return
        self._died = not pool.worn()
        if time.monotonic() - self.started_at > WORKED_S or pool.suspects() or pool.worn():
            self._backoff.reset()  # it worked, and its end has a reason that the next start does not share
        delay = self._backoff.next()
        if delay is None:
            self.over = True
            self.reason = f"its pool died {self._backoff.failures + 1} times in a row; last words:\n{pool.last_words()}"
            logger.error("pool %s is the last of its block: %s", pool.launch, self.reason)
            return
        self._start_at = time.monotonic() + delay
        if worn := pool.worn():
            self._trouble = ""
            logger.info("pool %s is started anew: %s", pool.launch, worn)
        else:
            self._trouble = f"a pool died (exit code {code}) and is started anew; last words:\n{pool.last_words()}"
            logger.warning("pool %s died (exit code %d); next start in %g s", pool.launch, code, delay)
