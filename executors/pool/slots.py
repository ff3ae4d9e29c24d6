"""Rank 0's side of the pool: dispatch, recall, cancel and poll over slots, without ever blocking in MPI.

All methods but `wake` belong to the thread that initialised MPI.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from pilot.errors import PoolError, WorldSizeMismatch
from pilot.executors.pool.bell import neighbourhood
from pilot.executors.pool.ledger import Event, Ledger, Lost, Slot
from pilot.executors.pool.messages import (
    Begin,
    Bind,
    Bye,
    Cancel,
    Dispatch,
    Ending,
    Functions,
    Message,
    Nudge,
    Part,
    Ping,
    Recall,
    Stop,
)
from pilot.executors.pool.together import Limits, Together
from pilot.executors.pool.transport import Transport
from pilot.executors.pool.waiting import Backoff, wait_readable
from pilot.executors.pool.watch import nudge
from pilot.executors.run.verdict import Item, Key
from pilot.model import FunctionCode

MESSAGE_BYTES = 4 << 20
"""Items beyond this go in a further message, so that no slot waits long for the first."""

WAITS_S = (50e-6, 10e-3)
"""Shortest and longest sleep between two looks for messages; see `Backoff`."""
BUSY_WAIT_S = 2e-3
"""Longest sleep while any attempt is in hand."""
NEAR_WAITS_S = (1e-3, 50e-3)
"""The same, busy or not, if every slot is on this host and rings when it sends something."""
SENDING_WAIT_S = 200e-6
"""Longest sleep while a large message is under way: it needs our progress."""

_MESSAGES_AT_ONCE = 256
_LOOK_PERIOD_S = 0.25


@dataclass(frozen=True, slots=True)
class Settings:
    """Times of rank 0's side, in seconds."""

    silence_s: float = 60.0
    """A slot that says nothing for so long is lost; slots beat every second."""
    ping_s: float = 5.0
    """A slot to which nothing was sent for so long is pinged, so that it knows we are alive."""
    together: Limits = Limits()  # noqa: RUF009  frozen
    """Of MPI functions."""


class Slots:
    """The slots of one pool: every rank of the program but this one.

    Args:
        transport: rank 0's.
        library: what this rank's MPI library calls itself; every slot must say the same.
        code: returns a function by its hash; called once per slot and function, before its first use.
        settings: times.

    The order at the end: `stop` (or `begin_stop` and polling until `stopped`), `close`, `World.finish`.
    """

    def __init__(
        self,
        transport: Transport,
        library: str,
        code: Callable[[str], FunctionCode],
        settings: Settings = Settings(),
    ) -> None:
        self._transport = transport
        self._library = library
        self._code = code
        self._settings = settings
        self._ledger = Ledger(range(1, transport.size), settings.silence_s, time.monotonic())
        self._together = Together(self._ledger, settings.together)
        self._place = neighbourhood()
        self._backoff = Backoff(*(NEAR_WAITS_S if transport.all_near else WAITS_S))
        self._looked = 0.0
        self._parent = os.getppid()
        self._woken = False
        self._early: list[Event] = []
        """Came while `wait_hello` waited."""

    # -- asking ---------------------------------------------------------------------------------

    @property
    def slots(self) -> dict[int, Slot]:
        """All slots by rank, the lost ones included. Read only."""
        return self._ledger.slots

    @property
    def stopped(self) -> bool:
        """Whether every slot has said goodbye, or will not: it is lost, or stuck in an MPI function."""
        return all(slot.gone or slot.lost is not None or slot.stuck for slot in self._ledger.slots.values())

    @property
    def recycle(self) -> str:
        """Why this pool should be drained and started anew soon; empty if it need not."""
        return self._together.recycle

    def able(self) -> list[int]:
        """Return the slots that take work."""
        return [slot.rank for slot in self._ledger.slots.values() if slot.able]

    def in_hand(self, slot: int) -> dict[Key, float]:
        """Return the attempts of a slot in the order of dispatch, with the (monotonic) time of dispatch. Read only."""
        return self._ledger.slots[slot].in_hand

    def load(self) -> int:
        """Return how many attempts all slots have in hand together; an MPI function counts once."""
        return self._ledger.total

    # -- telling --------------------------------------------------------------------------------

    def dispatch(self, slot: int, items: Sequence[Item]) -> None:
        """Queue work on a slot, behind what it has; code it does not know goes first.

        Raises:
            PoolError: the slot takes no work, or has one of these attempts in hand; nothing was sent.
        """
        if not items:
            return
        codes = tuple(self._code(name) for name in self._ledger.unknown(slot, items))
        self._ledger.dispatched(slot, items, time.monotonic())
        if codes:
            self._transport.send(slot, Functions(codes))
        for batch in _batches(items):
            self._transport.send(slot, Dispatch(batch))
        self._expect_more()

    def begin(self, item: Item, members: Sequence[int]) -> None:
        """Run an MPI function in these slots, which hold nothing, in the order of its ranks.

        It comes back as one result, in a `Finished` of its first slot. Until then no slot of it takes other work.

        Raises:
            PoolError: a slot takes no work, or has some; nothing was sent.
        """
        needing = [slot for slot in members if self._ledger.unknown(slot, (item,))]
        for to, order in self._together.begin(item, members, time.monotonic(), time.time()):
            if needing and order.__class__ is Begin:
                self._transport.send_all(needing, Functions((self._code(item.function or ""),)))
            self._transport.send_all(to, order)
        self._expect_more()

    def bind(self, slot: int, cpus: Sequence[int]) -> None:
        """Let what is dispatched to a slot run on these CPUs."""
        self._send(self._ledger.slots[slot], Bind(tuple(cpus)))

    def recall(self, slot: int, count: int | None = None) -> int:
        """Ask for up to `count` attempts (None: all) that have not begun: the last ones, in their order.

        Return the number that the one `Returned` answering it will carry. What began meanwhile comes as
        `Finished` as usual.
        """
        state = self._ledger.slots[slot]
        state.recalls += 1
        self._send(state, Recall(state.recalls, count))
        return state.recalls

    def cancel(self, task: str, attempt: int) -> bool:
        """End an attempt: it comes back `Returned` if it had not begun, else as a result of any outcome.

        An MPI function has always begun.

        Return whether a slot has it in hand.
        """
        key = (task, attempt)
        if self._together.cancel(key, time.monotonic()):
            self._nudge(time.monotonic())
            return True
        for state in self._ledger.slots.values():
            if key in state.in_hand:
                self._send(state, Cancel((key,)))
                return True
        return False

    # -- hearing --------------------------------------------------------------------------------

    def poll(self, timeout_s: float) -> list[Event]:
        """Return what the slots have reported, waiting up to `timeout_s` for the first of it.

        Returns early, with nothing, after `wake`. Pings slots and gives up silent ones on the way, so call it
        every second at least, and go on doing so until `close`: slots that hear nothing for minutes leave.

        Raises:
            PoolError: the launcher is gone.
        """
        if self._early:
            early, self._early = self._early, []
            return early
        deadline = time.monotonic() + timeout_s
        rung = False
        while True:
            events = list(self._heard())
            now = time.monotonic()
            if now - self._looked > _LOOK_PERIOD_S:
                self._looked = now
                events += self._look(now)
            if events:
                self._expect_more()
                return events
            if now >= deadline or self._woken:
                self._woken = False
                return []
            if rung:
                rung = False
                self._backoff.reset()  # the bell was faster than the message
            if wait_readable((self._transport.fileno(),), min(self._wait_s(), deadline - now)):
                self._transport.silence()
                rung = True

    def wake(self) -> None:
        """Make a `poll` that waits, or else the next one, return at once. Any thread may call this."""
        self._woken = True
        self._transport.wake()

    def wait_hello(self, timeout_s: float) -> None:
        """Wait until every slot is up. What they report meanwhile is left for `poll`.

        Raises:
            WorldSizeMismatch: a slot runs another MPI library or sees a program of another size.
            PoolError: some slots said nothing in time; the message names them.
        """
        deadline = time.monotonic() + timeout_s
        events: list[Event] = []
        while missing := [slot.rank for slot in self._ledger.slots.values() if slot.hello is None]:
            left_s = deadline - time.monotonic()
            if left_s < 0:
                raise PoolError(
                    f"waited {timeout_s:g} s for {len(self._ledger.slots)} slots to start: nothing from ranks "
                    f"{missing[:20]}; look at the pool's stderr for the reason"
                )
            events += self.poll(min(left_s, 0.5))
        self._early = events
        for slot in self._ledger.slots.values():
            if slot.hello and (slot.hello.library, slot.hello.size) != (self._library, self._transport.size):
                raise WorldSizeMismatch(
                    f"rank 0 runs {self._library!r} with {self._transport.size} ranks, rank {slot.rank} on "
                    f"{slot.hello.host} runs {slot.hello.library!r} with {slot.hello.size}"
                )

    # -- ending ---------------------------------------------------------------------------------

    def announce_end(self) -> None:
        """Tell every slot that the pilot is ending, so that it does not blame tasks for what the scheduler kills."""
        for slot in self._ledger.slots.values():
            self._send(slot, Ending())

    def begin_stop(self) -> None:
        """Tell every slot to begin nothing more, return what has not begun and say goodbye when it is done.

        Go on polling until `stopped`; cancel what should not be waited for.
        """
        for slot in self._ledger.slots.values():
            self._send(slot, Stop())
            slot.stopping = True

    def stop(self, timeout_s: float) -> list[Event]:
        """Stop every slot and return all that they still report; those that do not end in time are `Lost`."""
        self.begin_stop()
        deadline = time.monotonic() + timeout_s
        events: list[Event] = []
        while not self.stopped and (left_s := deadline - time.monotonic()) > 0:
            events += self.poll(min(left_s, 0.5))
        slots = self._ledger.slots.values()
        late = [slot.rank for slot in slots if not slot.gone and slot.lost is None and not slot.stuck]
        for rank in late:
            events += self._together.lose(self._ledger.lose(rank, f"it did not stop within {timeout_s:g} s"))
        return events

    def close(self, timeout_s: float = 10.0) -> bool:
        """Release the slots that have stopped; return whether MPI can be left in order.

        Call it when everything they reported is safe, and right after it `World.finish`, where the slots
        then wait; or `World.abort`, if this returned False.
        """
        for slot in self._ledger.slots.values():
            if slot.gone:
                self._transport.send(slot.rank, Bye())
        stuck = {slot.rank for slot in self._ledger.slots.values() if not slot.gone}
        return self._transport.flush(timeout_s, without=stuck) and not stuck

    # -- inside ---------------------------------------------------------------------------------

    def _send(self, slot: Slot, message: Message) -> None:
        """Send unless the slot is lost or has said goodbye."""
        if not slot.gone and slot.lost is None:
            slot.spoken = time.monotonic()
            self._transport.send(slot.rank, message)
            self._expect_more()

    def _expect_more(self) -> None:
        """Look for messages often for a while, unless all slots ring."""
        if not self._transport.all_near:
            self._backoff.reset()

    def _look(self, now: float) -> Iterator[Event]:
        """Give up silent slots, and let those to which we were silent know that we are here."""
        if os.getppid() != self._parent:
            raise PoolError(f"the launcher of this pool, process {self._parent}, is gone")
        for lost in self._ledger.look(now):
            # Should it come back: nobody wants what it has, and it must leave MPI with the others.
            self._transport.send(lost.slot, Cancel(tuple(lost.keys)))
            self._transport.send(lost.slot, Stop())
            yield lost
        yield from self._together.look(now)
        self._nudge(now)
        for rank in self._ledger.unspoken(now, self._settings.ping_s):
            self._transport.send(rank, Ping())

    def _heard(self) -> Iterator[Event]:
        """Take what has arrived, up to a bound that lets the caller have its turn."""
        for _ in range(_MESSAGES_AT_ONCE):
            received = self._transport.receive()
            if received is None:
                return
            rank, message = received
            if isinstance(message, Part):
                yield from self._together.take(rank, message, time.monotonic())
                continue
            event = self._ledger.take(rank, message)  # type: ignore[arg-type]
            if isinstance(event, Lost):
                yield from self._together.lose(event)
            elif event is not None:
                yield event

    def _nudge(self, now: float) -> None:
        """Have those interrupted that are in MPI functions which should end."""
        for rank, why, key in self._together.nudges(now):
            hello = self._ledger.slots[rank].hello
            address = hello.address if hello else None
            if address is None:
                continue
            if address.node == self._place:
                nudge(address, why, key)
            elif neighbour := self._ledger.neighbour(address.node):
                self._send(neighbour, Nudge(address, why, key))

    def _wait_s(self) -> float:
        if self._transport.sending or self._transport.arriving:
            return SENDING_WAIT_S
        wait_s = self._backoff.step()
        return min(wait_s, BUSY_WAIT_S) if self._ledger.total and not self._transport.all_near else wait_s


def _batches(items: Sequence[Item]) -> Iterable[tuple[Item, ...]]:
    """Split items so that no message is much over `MESSAGE_BYTES`."""
    start = size = 0
    for place, item in enumerate(items):
        size += len(item.frame)
        if size > MESSAGE_BYTES and place > start:
            yield tuple(items[start:place])
            start, size = place, len(item.frame)
    yield tuple(items[start:])
