"""Rank 0's side of MPI functions: who is in which, what has come of it, and when it is given up.

Pure bookkeeping over the ledger: messages and times in, events and messages out, no MPI calls and no clock.

A function that fails in one rank usually leaves the others in a collective, where nothing can interrupt them. It
ends all the same, with what is known, and these slots are in quarantine until they come back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pilot.executors.pool.communicators import Groups
from pilot.executors.pool.ledger import Event, Finished, Joined, Ledger, Lost, Quarantined
from pilot.executors.pool.messages import Begin, Free, Message, Part
from pilot.executors.pool.watch import CANCELLED, WITH_OTHERS
from pilot.executors.run import parts
from pilot.executors.run.verdict import Finished as Ended
from pilot.executors.run.verdict import Item, Key
from pilot.executors.run.wire import pack_result, unpack_result
from pilot.model import Failure, Result, Usage
from pilot.states import Outcome

NUDGE_AGAIN_S = 2.0
WORN_SHARE = 0.1
"""With a larger share of its slots in quarantine, a pool should be started anew."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Times in seconds, and when a pool has had enough."""

    grace_s: float = 2.0
    """So long after a rank has failed the others are interrupted."""
    deadline_s: float = 10.0
    """So long after a failure, a cancellation or the walltime nobody waits for a rank any more."""
    functions_max: int = 100_000
    """After so many MPI functions a pool should be started anew: libraries and users leak."""


@dataclass(slots=True)
class _Running:
    """One MPI function in its ranks."""

    item: Item
    members: tuple[int, ...]
    number: int
    begun: float
    wall_began: float
    parts: dict[int, Result] = field(default_factory=dict)
    worn: dict[int, str] = field(default_factory=dict)
    """By slot: why it cannot run another."""
    failed_at: float | None = None
    cancelled_at: float | None = None
    nudged_at: float | None = None

    def ends_since(self) -> float | None:
        """Return since when all its ranks should come to an end; None if they need not."""
        times = [at for at in (self.failed_at, self.cancelled_at) if at is not None]
        if self.item.walltime_s is not None:
            times.append(self.begun + self.item.walltime_s)
        return min(times, default=None)

    def absent(self) -> list[int]:
        """Return the slots whose part has not come."""
        return [slot for index, slot in enumerate(self.members) if index not in self.parts]


class Together:
    """All MPI functions of a pool.

    Args:
        ledger: of the same slots; noted there is who is inside a function.
        limits: when to give up.
    """

    def __init__(self, ledger: Ledger, limits: Limits) -> None:
        self._ledger = ledger
        self._limits = limits
        self._groups = Groups()
        self._running: dict[Key, _Running] = {}
        self._numbers = 0
        self._spent: dict[int, int] = {}
        """By slot: its last function, if that ended well everywhere and its communicator is still to be freed."""
        self._spenders: dict[int, tuple[int, ...]] = {}
        self._worn = ""

    @property
    def recycle(self) -> str:
        """Why the pool should be started anew soon; empty if it need not."""
        if self._worn:
            return self._worn
        if self._numbers >= self._limits.functions_max:
            return f"it has run {self._numbers} MPI functions"
        quarantined = sum(1 for slot in self._ledger.slots.values() if slot.quarantine is not None)
        if quarantined > WORN_SHARE * len(self._ledger.slots):
            return f"{quarantined} of {len(self._ledger.slots)} slots are in quarantine"
        return ""

    # -- telling ----------------------------------------------------------------------------------

    def begin(
        self, item: Item, members: Sequence[int], now: float, wall_now: float
    ) -> list[tuple[tuple[int, ...], Message]]:
        """Note that a function begins; return what to send to whom, in this order.

        Raises:
            PoolError: a member takes no work, or holds some; nothing is noted.
        """
        members = tuple(members)
        self._ledger.begun(item, members, now)
        self._numbers += 1
        number = self._numbers
        group, new = self._groups.use(members, number)
        self._running[item.key] = _Running(item, members, number, now, wall_now)
        orders: list[tuple[tuple[int, ...], Message]] = []
        mine: list[int] = []
        for spent in sorted({self._spent[slot] for slot in members if slot in self._spent}):
            spenders = self._spenders.pop(spent)
            for slot in spenders:
                del self._spent[slot]
            if spenders == members:
                mine.append(spent)
            else:
                orders.append((spenders, Free((), (spent,))))
        busy = {slot.rank for slot in self._ledger.slots.values() if slot.inside is not None or slot.lost is not None}
        orders += [(idle, Free((name,), ())) for idle, name in self._groups.surplus(busy)]
        orders.append((members, Begin(item, members, number, group, new, tuple(mine))))
        return orders

    def cancel(self, key: Key, now: float) -> bool:
        """Note that a function is to end; return whether it runs. `nudges` tells whom to interrupt."""
        running = self._running.get(key)
        if running is not None and running.cancelled_at is None:
            running.cancelled_at, running.nudged_at = now, None
        return running is not None

    def nudges(self, now: float) -> Iterator[tuple[int, str, Key]]:
        """Yield which slots to interrupt now, why, and in which function. Call it often, and after `cancel`."""
        for key, running in self._running.items():
            failed_at, nudged_at = running.failed_at, running.nudged_at
            late = failed_at is not None and now >= failed_at + self._limits.grace_s
            if (late or running.cancelled_at is not None) and (nudged_at is None or now >= nudged_at + NUDGE_AGAIN_S):
                running.nudged_at = now
                why = WITH_OTHERS if running.cancelled_at is None else CANCELLED
                yield from [(slot, why, key) for slot in running.absent()]

    # -- hearing ----------------------------------------------------------------------------------

    def take(self, rank: int, part: Part, now: float) -> list[Event]:
        """Note that a rank has come out of a function; return what the coordinator should know."""
        self._ledger.hear(rank)
        slot = self._ledger.slots[rank]
        running = self._running.get(part.key)
        if running is None or part.index in running.parts:
            return self._take_late(rank, part)
        if slot.lost is not None:
            return []
        result = unpack_result(part.body)._replace(log=part.log)
        running.parts[part.index] = result
        if part.worn:
            running.worn[rank] = part.worn
        if result.outcome is not Outcome.SUCCEEDED and running.failed_at is None:
            running.failed_at = now
        return self._finish(running, 0.0) if len(running.parts) == len(running.members) else []

    def _take_late(self, rank: int, part: Part) -> list[Event]:
        """Take a slot back that was stuck."""
        slot = self._ledger.slots[rank]
        if slot.inside != part.key:
            return []
        slot.inside = None
        slot.quarantine = part.worn or None
        return [Joined(rank)] if slot.able else []

    def look(self, now: float) -> list[Event]:
        """Give up the functions whose ranks should have come back long ago."""
        events: list[Event] = []
        for running in list(self._running.values()):
            since = running.ends_since()
            if since is not None and now >= since + self._limits.deadline_s:
                events += self._finish(running, now - since)
        return events

    def lose(self, lost: Lost) -> list[Event]:
        """Note that a slot is lost; return this event, and what follows for those that were in a function with it."""
        events: list[Event] = [lost]
        for key in lost.keys:
            running = self._running.pop(key, None)
            if running is not None:
                self._ledger.over(key, running.members, self._back(running))
                events += self._quarantine(running.absent(), f"slot {lost.slot} of the same MPI function was lost")
        return events

    # -- ending -----------------------------------------------------------------------------------

    def _finish(self, running: _Running, waited_s: float) -> list[Event]:
        """End a function with the parts that came; those that did not are replaced by words."""
        key, members = running.item.key, running.members
        del self._running[key]
        absent, back = running.absent(), self._back(running)
        for index, slot in enumerate(members):
            if index not in running.parts:
                running.parts[index] = self._stuck(running, index, slot, waited_s)
        result = parts.merge(running.parts, len(members), "")
        self._ledger.over(key, members, back)
        if all(part.outcome is Outcome.SUCCEEDED for part in running.parts.values()):
            self._spent |= dict.fromkeys(members, running.number)
            self._spenders[running.number] = members
        if absent or running.worn:
            self._groups.forget(members)
        events: list[Event] = [Finished(members[0], [Ended(*key, pack_result(result), result.log)])]
        events += self._quarantine(absent, f"not back from MPI function {key[0]} {waited_s:.0f} s after it should end")
        for slot, why in running.worn.items():
            self._worn = self._worn or f"slot {slot} is worn: {why}"
            events += self._quarantine([slot], why)
        return events

    def _quarantine(self, slots: Sequence[int], reason: str) -> list[Event]:
        for rank in slots:
            self._ledger.slots[rank].quarantine = reason
        return [Quarantined(tuple(slots), reason)] if slots else []

    def _back(self, running: _Running) -> list[int]:
        return [running.members[index] for index in running.parts]

    def _stuck(self, running: _Running, index: int, slot: int, waited_s: float) -> Result:
        """Return the part of a rank that does not come back."""
        item, hello = running.item, self._ledger.slots[slot].hello
        where = f"rank {index} did not come back within {waited_s:.0f} s"
        if running.cancelled_at is not None:
            outcome, kind, why = Outcome.CANCELLED, "Cancelled", f"{where} of its cancellation"
        elif running.failed_at is not None:
            outcome, kind, why = Outcome.FAILED, parts.WITH_OTHERS, f"{where} of the failure of another rank"
        else:
            outcome, kind = Outcome.TIMEOUT, "WalltimeReached"
            why = f"{where} of task {item.task}'s walltime of {item.walltime_s:g} s"
        host = hello.host if hello else ""
        failure = Failure(kind, f"{why}: it is probably inside an MPI call", "", index, host)
        wall_s = running.ends_since() or running.begun
        finished = running.wall_began + (wall_s - running.begun) + waited_s
        usage = Usage(finished - running.wall_began, 0.0, 0)
        return Result(*item.key, outcome, (), failure, None, running.wall_began, finished, usage, slot, host)
