"""When to signal and when to start a child: schedules as plain objects, with the time passed in."""

from __future__ import annotations

import signal
from dataclasses import dataclass

from pilot.executors.run.verdict import Item, Key
from pilot.states import Outcome

_DUMP_S = 0.1
"""Time for a function that is about to be stopped to print where it is (the child dumps on SIGQUIT)."""
_GONE_S = 5.0
"""After this long a killed process that will not die (a hung file system) is left to its fate."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Limits and times (seconds) of a handle."""

    most_items: int = 64
    """Attempts in hand, beyond which `offer` refuses."""
    most_bytes: int = 8 << 20
    """Their frames' size together; one item is taken whatever its size."""
    start_s: float = 60.0
    """Time in which a new child must report."""
    delays_s: tuple[float, ...] = (0.2, 1.0, 5.0)
    """Pauses after failed starts; when they are used up, `poll` raises."""
    rest_s: float = 30.0
    """Pause after `poll` raised, before the next series of starts."""
    grace_s: float = 2.0
    """Between SIGTERM and SIGKILL for an attempt that has reached its walltime."""
    cancel_grace_s: float = 1.0
    """The same for one that is cancelled: somebody waits."""
    hold_s: float = 1.0
    """How long an unexplained death by TERM or KILL waits for the news that the pilot is ending."""


class Stopping:
    """An attempt that is being stopped: asked where it is (at its walltime), then asked to end, then killed.

    Args:
        item: the attempt, which has begun.
        outcome: `timeout` or `cancelled`.
        settings: times between the signals.
        now: time of a monotonic clock.
    """

    def __init__(self, item: Item, outcome: Outcome, settings: Settings, now: float) -> None:
        self.key: Key = item.key
        self.outcome = outcome
        self.next_at = now
        """When `step` has something to do."""
        late = outcome is Outcome.TIMEOUT
        dump = [(signal.SIGQUIT, False, _DUMP_S)] if late and item.function else []
        grace_s = settings.grace_s if late else settings.cancel_grace_s
        self._steps = [*dump, (signal.SIGTERM, True, grace_s), (signal.SIGKILL, True, _GONE_S)]

    def step(self, now: float) -> tuple[int, bool] | None:
        """Return the signal to send now and whether to the whole group; None if all were sent in vain."""
        if not self._steps:
            return None
        number, group, pause_s = self._steps.pop(0)
        self.next_at = now + pause_s
        return number, group


class Starts:
    """Failed starts: slower each time, then a halt with the reason."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._failures = 0
        self._broken: str | None = None
        self.next_at = 0.0
        """No start before this time."""

    def succeeded(self) -> None:
        """Note that a child did some work: whatever was wrong is over."""
        self._failures = 0

    def failed(self, why: str, now: float) -> None:
        """Count a child that ended, or did not come up, without having done anything."""
        if self._failures < len(self._settings.delays_s):
            self.next_at = now + self._settings.delays_s[self._failures]
            self._failures += 1
        else:
            self._broken = f"tried {self._failures + 1} times to start a child process, last: {why}"
            self.next_at = now + self._settings.rest_s
            self._failures = 0

    def broken(self) -> str | None:
        """Return, once per series, why no child can be started."""
        why, self._broken = self._broken, None
        return why
