"""Signals that a rank takes note of and nothing more: agent and coordinator decide what they mean."""

from __future__ import annotations

import signal
from types import FrameType

NOTED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Flags:
    """What signals came. A scheduler's TERM hits every process of a job at once, so it ends no rank.

    These are handlers, not SIG_IGN, so that a child starts with the default.
    """

    def __init__(self) -> None:
        self.seen: set[int] = set()

    def install(self) -> None:
        """Take the signals from now on, for good. Main thread only."""
        for number in NOTED:
            signal.signal(number, self._note)

    @property
    def ending(self) -> bool:
        """Whether somebody has asked this process to end."""
        return signal.SIGTERM in self.seen

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.seen.add(number)
