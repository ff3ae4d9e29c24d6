"""What rank 0 knows of its slots, as pure bookkeeping: reports and times in, events out, no MPI and no clock.

Every attempt that was dispatched leaves the ledger exactly once: in a `Finished`, a `Returned` or a `Lost`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from pilot.errors import PoolError
from pilot.executors.pool import messages
from pilot.executors.pool.waiting import AwakeClock
from pilot.executors.run.verdict import Finished as Ended
from pilot.executors.run.verdict import Item, Key


@dataclass(frozen=True, slots=True)
class Joined:
    """A slot takes work: it has said hello, or it was failing and has a child again."""

    slot: int


@dataclass(frozen=True, slots=True)
class Finished:
    """Attempts that ended on a slot, in the order of their ends."""

    slot: int
    results: Sequence[Ended]


@dataclass(frozen=True, slots=True)
class Returned:
    """Attempts that are confirmed not begun and off the slot.

    `recall` is the number that `Slots.recall` returned, or 0 if the slot gave them back by itself. `empty`
    says that the slot confirmed to hold nothing at all any more.
    """

    slot: int
    keys: Sequence[Key]
    recall: int
    empty: bool


@dataclass(frozen=True, slots=True)
class Lost:
    """A slot is given up. Its attempts may or may not have begun; nothing it says later is heard."""

    slot: int
    keys: Sequence[Key]
    reason: str


@dataclass(frozen=True, slots=True)
class Failing:
    """A slot cannot start children and takes no work for now; what it had not begun came as `Returned`."""

    slot: int
    reason: str


@dataclass(frozen=True, slots=True)
class Quarantined:
    """These slots take no work for now: they are stuck in an MPI function that has ended for everybody else, or worn.

    A slot that comes back after all says so with `Joined`.
    """

    slots: Sequence[int]
    reason: str


Event = Joined | Finished | Returned | Lost | Failing | Quarantined


@dataclass(slots=True)
class Slot:
    """One slot as rank 0 sees it. Times are of one monotonic clock, in seconds."""

    rank: int
    heard: float
    """When it last said something, on the ledger's `AwakeClock`."""
    spoken: float
    """When something was last sent to it."""
    hello: messages.Hello | None = None
    in_hand: dict[Key, float] = field(default_factory=dict)
    """Time of dispatch of every attempt that has not come back, in the order of dispatch."""
    functions: set[str] = field(default_factory=set)
    recalls: int = 0
    """Number of the last recall."""
    answered: int = 0
    """Number of the last recall that was answered."""
    failing: str | None = None
    stopping: bool = False
    """It was told to stop."""
    gone: bool = False
    """It has said goodbye."""
    inside: Key | None = None
    """The MPI function it is in: it neither hears nor says anything until that is over."""
    quarantine: str | None = None
    """Why it is given no work for now."""
    lost: str | None = None
    """Why it was given up. It may live, and is told to stop, but nothing it says counts."""

    @property
    def able(self) -> bool:
        """Whether it takes work."""
        up = self.hello is not None and self.lost is None and not self.gone
        free = self.inside is None and self.quarantine is None
        return up and free and self.failing is None and not self.stopping

    @property
    def stuck(self) -> bool:
        """Whether it has not come back from a function that has been given up."""
        return self.inside is not None and self.quarantine is not None

    @property
    def trouble(self) -> str:
        """Why it is not able, as far as that is known."""
        inside = f"in MPI function {self.inside[0]}" if self.inside else None
        return self.lost or self.quarantine or self.failing or inside or "not up, or stopping"


class Ledger:
    """All slots of a pool.

    Args:
        ranks: the ranks that are slots.
        silence_s: a slot that says nothing for so long is lost.
        now: the time of a monotonic clock, as in every method here.
    """

    def __init__(self, ranks: Iterable[int], silence_s: float, now: float) -> None:
        self.slots: dict[int, Slot] = {rank: Slot(rank, now, now) for rank in ranks}
        self.total = 0
        """Attempts in hand of all slots together."""
        self._silence_s = silence_s
        self._clock = AwakeClock(now)
        self._awake = now

    def unknown(self, rank: int, items: Sequence[Item]) -> list[str]:
        """Return hashes of the functions that a slot needs before these items, each once."""
        known = self.slots[rank].functions
        return [name for name in {item.function: None for item in items} if name and name not in known]

    def dispatched(self, rank: int, items: Sequence[Item], now: float) -> None:
        """Note that these items, and the functions they name, go to a slot.

        Raises:
            PoolError: the slot does not take work, or has one of these attempts already; nothing is noted.
        """
        slot = self.slots[rank]
        if not slot.able:
            raise PoolError(f"slot {rank} takes no work: {slot.trouble}")
        new = {(item.task, item.attempt): now for item in items}
        if len(new) != len(items) or not slot.in_hand.keys().isdisjoint(new):
            raise PoolError(f"an attempt was dispatched twice to slot {rank}")
        slot.in_hand.update(new)
        self.total += len(new)
        slot.spoken = now
        slot.functions.update(item.function for item in items if item.function)

    def begun(self, item: Item, members: Sequence[int], now: float) -> None:
        """Note that an MPI function goes to these slots.

        Raises:
            PoolError: they are not distinct, or one of them takes no work or has some; nothing is noted.
        """
        for rank in members:
            slot = self.slots[rank]
            if not slot.able or slot.in_hand:
                why = f"it has {len(slot.in_hand)} attempts in hand" if slot.able else slot.trouble
                raise PoolError(f"slot {rank} cannot take part in task {item.task}: {why}")
        if len(set(members)) != len(members) or not members:
            raise PoolError(f"task {item.task} was begun on slots {list(members)[:20]}, which are not distinct")
        for rank in members:
            slot = self.slots[rank]
            slot.in_hand[item.key] = slot.spoken = now
            slot.inside = item.key
            if item.function:
                slot.functions.add(item.function)
        self.total += 1

    def over(self, key: Key, members: Sequence[int], back: Collection[int]) -> None:
        """Note, once, that an MPI function has ended, and which of its slots have come back from it."""
        self.total -= 1
        for rank in members:
            slot = self.slots[rank]
            slot.in_hand.pop(key, None)
            if rank in back:
                slot.inside = None

    def hear(self, rank: int) -> None:
        """Note that a slot has said something."""
        self.slots[rank].heard = self._awake

    def take(self, rank: int, report: messages.Report) -> Event | None:
        """Note what a slot reports and return what the coordinator should know, if anything."""
        slot = self.slots[rank]
        slot.heard = self._awake
        if isinstance(report, messages.Bye):
            slot.gone = True
            left = slot.in_hand.keys() - {slot.inside}  # of an MPI function it may be the first to have ended
            return self.lose(rank, "it said goodbye with work in hand; this is a defect") if left else None
        if slot.lost is not None:
            return None
        if isinstance(report, messages.Results):
            ended = [one for one in report.finished if self._drop(slot, one.key)]
            return Finished(rank, ended)
        if isinstance(report, messages.Returned):
            keys = [key for key in report.keys if self._drop(slot, key)]
            slot.answered = max(slot.answered, report.number)
            return Returned(rank, keys, report.number, report.left == 0 and not slot.in_hand)
        if isinstance(report, messages.Failing):
            slot.failing = report.reason
            return Failing(rank, report.reason)
        if isinstance(report, messages.Able):
            slot.failing = None
            return Joined(rank)
        if isinstance(report, messages.Hello):
            slot.hello = report
            return Joined(rank)
        return None

    def lose(self, rank: int, reason: str) -> Lost:
        """Give a slot up, with everything it has in hand. Call `over` if an MPI function is among that."""
        slot = self.slots[rank]
        keys = list(slot.in_hand)
        self.total -= len(keys) - (slot.inside in slot.in_hand)
        slot.in_hand.clear()
        slot.lost = reason
        return Lost(rank, keys, reason)

    def neighbour(self, node: str) -> Slot | None:
        """Return a slot on this node that listens, if there is one."""
        for slot in self.slots.values():
            listens = slot.inside is None and slot.lost is None and not slot.gone
            if listens and slot.hello and slot.hello.address and slot.hello.address.node == node:
                return slot
        return None

    def look(self, now: float) -> list[Lost]:
        """Give up the slots that were silent for too long while rank 0 was there to hear them.

        Call it every second at least, after all waiting messages were taken: silence is judged last.
        """
        self._awake = self._clock.at(now)
        return [
            self.lose(slot.rank, f"it was silent for {self._awake - slot.heard:.0f} s")
            for slot in self.slots.values()
            if self._awake - slot.heard > self._silence_s
            and slot.lost is None
            and not slot.gone
            and slot.inside is None  # nobody expects a word from it
        ]

    def unspoken(self, now: float, period_s: float) -> list[int]:
        """Return the slots to which nothing was sent for `period_s`, and note that something will be now.

        Those that have said goodbye, or are lost, are among them: they wait to be released.
        """
        quiet = [slot for slot in self.slots.values() if now - slot.spoken > period_s]
        for slot in quiet:
            slot.spoken = now
        return [slot.rank for slot in quiet]

    def _drop(self, slot: Slot, key: Key) -> bool:
        if slot.in_hand.pop(key, None) is None:
            return False
        self.total -= 1
        return True
