"""Decisions about tasks, leases, pools and pilots as pure functions: facts in, decision out.

Nothing here reads a clock, a file or the store; time is passed in. `store`, `coordinator` and `agent` act.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, NamedTuple, TypeVar

from pilot.model import LOST_BUDGET
from pilot.states import ENDED, GOOD, Outcome, State

# -- after an attempt -----------------------------------------------------------------------------


class Counters(NamedTuple):
    """What a task has spent and may spend."""

    tried: int
    lost: int
    retries: int
    cancel: bool


class Move(NamedTuple):
    """Where a task goes after an attempt."""

    state: State
    tried: int
    lost: int
    reason: str | None


def after_attempt(outcome: Outcome, task: Counters) -> Move:
    """Decide where a leased task goes when an attempt of it has ended with `outcome`.

    A success stands whatever was asked meanwhile; a wish to cancel turns every other end into `cancelled`;
    `lost` spends a budget of its own, so that dying pilots do not use up the user's retries.
    """
    tried, lost = task.tried, task.lost
    if outcome in GOOD:
        return Move(State.DONE, tried, lost, None)
    if outcome is Outcome.CANCELLED or task.cancel:
        return Move(State.CANCELLED, tried, lost, None)
    if outcome is Outcome.LOST:
        lost += 1
        over = lost > LOST_BUDGET
    else:
        tried += 1
        over = tried > task.retries
    return Move(State.FAILED if over else State.READY, tried, lost, outcome.value if over else None)


# -- waiting for parents --------------------------------------------------------------------------


class Verdict(StrEnum):
    """What a task that waits should become, seen its parents."""

    WAIT = "wait"
    READY = "ready"
    UPSTREAM = "upstream"
    MISSING = "missing"


def settle(
    pending: Iterable[str], waits: str, parents: Mapping[str, State], failed_upstream: bool = False
) -> tuple[Verdict, str | None]:
    """Decide what a dependant becomes; return the verdict and the parent that is to blame, if any.

    Args:
        pending: ids it still waits for.
        waits: ``"done"`` (as data: parents must succeed) or ``"end"`` (any end will do).
        parents: state of each parent that exists.
        failed_upstream: whether it is `failed` because of a parent now: then a parent that is no longer
            to blame makes it wait again.
    """
    verdict = Verdict.READY
    for parent in pending:
        state = parents.get(parent)
        if state is None:
            return Verdict.MISSING, parent
        if state is State.DONE or (waits == "end" and state in ENDED):
            continue
        if state in ENDED:
            return Verdict.UPSTREAM, parent
        verdict = Verdict.WAIT
    if failed_upstream:
        return Verdict.WAIT, None
    return verdict, None


# -- liveness -------------------------------------------------------------------------------------

Key = TypeVar("Key", bound=Hashable)


@dataclass
class Watch(Generic[Key]):
    """Judges heartbeats: counters that must change within `ttl_s` of the *observer's own* monotonic clock.

    Neither clock skew between hosts nor an outage of the store makes anybody look dead: a counter must have
    been seen unchanged for the whole time-to-live while every look succeeded. An observer that was itself
    stopped (a suspended batch job wakes all at once) has not seen anything meanwhile: looks more than half the
    time-to-live apart do not count together.
    """

    ttl_s: float
    _seen: dict[Key, tuple[int, float]] = field(default_factory=dict)
    _looked: float = float("-inf")

    def look(self, beats: Mapping[Key, int], now: float) -> list[Key]:
        """Take one successful look at all counters and return those that are stale, in no order."""
        if now - self._looked > self.ttl_s / 2:
            self._seen.clear()
        self._looked = now
        stale = []
        for key, beat in beats.items():
            old = self._seen.get(key)
            if old is None or old[0] != beat:
                self._seen[key] = (beat, now)
            elif now - old[1] >= self.ttl_s:
                stale.append(key)
        for key in self._seen.keys() - beats.keys():
            del self._seen[key]
        return stale

    def failed(self) -> None:
        """Note that a look failed: everybody's time starts anew."""
        self._seen.clear()


# -- pace -----------------------------------------------------------------------------------------


@dataclass
class Backoff:
    """Delays between repeats of what failed: one step further at each failure, back to the first on success.

    `next` returns None when there have been as many failures in a row as there are delays: give up then.
    """

    delays_s: Sequence[float] = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)
    failures: int = 0

    def next(self) -> float | None:
        """Count a failure and return how long to wait before the next try, or None to give up."""
        if self.failures >= len(self.delays_s):
            return None
        self.failures += 1
        return self.delays_s[self.failures - 1]

    def reset(self) -> None:
        """Note a success."""
        self.failures = 0


AHEAD_S = 1.0
AHEAD_MAX = 4000
UNWRITTEN_MAX = 20_000
"""With more results than this on their way to the store, a pool leases nothing more."""
BORED_S = 0.01
"""Shortest time between two recalls for idle slots."""
PREFETCH_S = 0.05
PREFETCH_MAX = 128
LONG_S = 2.0
"""After so long the time between two tasks is nothing, and what waits behind one may wait for long."""


def expected_s(mean_s: float | None, silent_s: float) -> float | None:
    """Return how long the next tasks will take at least, for a pool whose slots all work; None: nobody knows.

    Args:
        mean_s: mean duration of recent tasks, None before the first has ended.
        silent_s: since the last one ended: what runs takes that long at least, whatever those before it took.
    """
    return mean_s if silent_s < AHEAD_S else max(silent_s, mean_s or 0.0)


def lease_target(slots: int, mean_s: float | None) -> int:
    """Return how many attempts a pool should hold: one for each slot, and about a second of work.

    Little enough that other pools do not idle while work waits here, and that the end of a pilot strands little;
    enough that slots never wait for the store.

    Args:
        slots: that take work.
        mean_s: mean duration of tasks, None if nobody knows.
    """
    if mean_s is None:
        return 8 * slots
    if mean_s > AHEAD_S:
        return slots + max(1, int(slots * AHEAD_S / mean_s))
    return max(2 * slots, min(AHEAD_MAX, int(slots * AHEAD_S / max(mean_s, 1e-6))))


def lease_more(target: int, there: int) -> int:
    """Return how many more to lease: nothing until a quarter is missing, so that leases stay few and large."""
    missing = target - there
    return missing if missing >= max(1, target // 4) else 0


def lease_on(leased: int, cached: int) -> int:
    """Return how many to lease next at least, by how many of the last ones were `cached`: those need no slot.

    While nearly all are, twice as many as before, so that leases become large; else 0: as many as slots can use.
    """
    return min(AHEAD_MAX, 2 * leased) if cached > 0.9 * leased else 0


def lease_less(target: int, there: int) -> int:
    """Return how many to give back, which the pool has leased and will not begin soon: others may be idle."""
    spare = there - target
    return spare if spare >= max(1, target // 4) else 0


def prefetch_target(mean_s: float | None) -> int:
    """Return how many attempts one slot should hold: about 50 ms of work, one in reserve unless they take long."""
    if mean_s is None:
        return 2
    if mean_s > LONG_S:
        return 1
    return max(2, min(PREFETCH_MAX, int(PREFETCH_S / max(mean_s, 1e-6))))


def drain_at(end_at: float | None, margin_s: float) -> float | None:
    """Return when a pilot that ends at `end_at` should stop leasing (same clock)."""
    return None if end_at is None else end_at - margin_s


def fits_before(walltime_s: float | None, now: float, end_at: float | None) -> bool:
    """Say whether a task started now ends before its pilot does; one without a walltime may always start."""
    return end_at is None or walltime_s is None or now + walltime_s <= end_at
