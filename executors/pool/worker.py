"""A slot: the loop of a rank above 0, between rank 0 and the slot's child.

But for MPI functions, which are called in the rank itself, it never computes and never waits in MPI. It sleeps on
its child's descriptors, so that a result wakes it at once, and looks for messages after a time that grows while
nothing happens.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pilot.errors import PoolError
from pilot.executors.pool import identity, messages
from pilot.executors.pool.inrank import InRank, Means
from pilot.executors.pool.outbox import Outbox
from pilot.executors.pool.signals import Flags
from pilot.executors.pool.waiting import AwakeClock, Backoff, wait_readable
from pilot.executors.pool.watch import new_address, nudge
from pilot.executors.pool.world import EXIT_ALONE, World, start
from pilot.executors.run.handle import Child, Item, Key
from pilot.executors.run.share import set_cpus

WAITS_S = (200e-6, 10e-3)
"""Shortest and longest sleep between two looks for messages; see `Backoff`."""
NEAR_WAITS_S = (1e-3, 50e-3)
"""The same if rank 0 is on this host and rings when it sends something."""
SENDING_WAIT_S = 1e-3
"""Longest sleep while a large message is under way: it needs our progress."""

BEAT_S = 1.0

QUICK_S = 300e-6
"""Tasks shorter than this are collected several at a time while the child has `NAP_ITEMS` in hand."""
NAP_S = 1e-3
NAP_ITEMS = 4


@dataclass(frozen=True, slots=True)
class Settings:
    """What may differ from pool to pool."""

    silence_s: float = 300.0
    """Rank 0 is taken for dead when it has said nothing for so long; it pings every few seconds."""
    doorbell: bool = True
    """See `Transport`; rank 0 must use the same."""


class Alone(PoolError):
    """Rank 0 or the launcher is gone: nobody will ever take this slot's results."""


def run(
    child: Child, expected_ranks: int, host: str, settings: Settings = Settings(), means: Means | None = None
) -> int:
    """Be a slot until rank 0 lets go; return the exit code of the process.

    Args:
        child: already started: nothing may be forked between MPI's start and end but what it must replace.
        expected_ranks: size of the program that the launcher was asked for.
        host: name of this node, or the name under which it pretends to be one.
        settings: what may differ from pool to pool.
        means: what MPI functions need; None: refuse them.

    Raises:
        WorldSizeMismatch: see `world.start`.
        PoolError: MPI cannot be used, or the protocol was broken. The caller aborts the program.
    """
    flags = Flags()
    flags.install()
    with contextlib.closing(child):
        world = start(expected_ranks, settings.doorbell)
        try:
            Slot(world, child, host, flags, settings, means).serve()
        except Alone as exc:
            child.close()  # abort does not return
            world.abort(EXIT_ALONE, str(exc))
    world.finish()
    return 0


class Slot:
    """The state of one slot. `serve` is the loop; everything else is one step of it."""

    def __init__(
        self, world: World, child: Child, host: str, flags: Flags, settings: Settings, means: Means | None
    ) -> None:
        self._world = world
        self._address = new_address()
        self._in_rank = InRank(world.parent, host, means, self._address)
        self._transport = world.transport()
        self._child = child
        self._host = host
        self._flags = flags
        self._settings = settings
        self._queue: deque[Item] = deque()
        """What the child does not take yet."""
        self._outbox = Outbox()
        self._backoff = Backoff(*(NEAR_WAITS_S if self._transport.all_near else WAITS_S))
        self._look_child = True
        self._rung = False
        self._nap_s = 0.0
        self._collected = 0.0
        self._wake_at = math.inf
        """When the child wants to be polled at the latest, as it said since it was."""
        self._failing = self._stopping = self._left = self._released = False
        now = self._said = self._heard = self._awake = time.monotonic()
        self._clock = AwakeClock(now)
        self._minded = now
        self._parent = os.getppid()

    def serve(self) -> None:
        """Work until rank 0 releases this slot.

        Raises:
            Alone: rank 0 has been silent for too long, or the launcher is gone.
        """
        w = self._world
        self._say(
            messages.Hello(self._host, os.getpid(), identity.node(), w.library, w.standard, w.size, self._address)
        )
        while True:
            now = time.monotonic()
            self._hear()
            if self._released:
                return
            self._feed()
            self._collect(now)
            self._report(now)
            self._mind(now)
            self._sleep(now)

    # -- steps ----------------------------------------------------------------------------------

    def _hear(self) -> None:
        """Take what rank 0 has sent."""
        rung, self._rung = self._rung, False
        while received := self._transport.receive():
            self._heard, rung = self._awake, False
            self._expect_more()
            message: Any = received[1]
            self._HANDLERS[type(message)](self, message)
        if rung:
            self._backoff.reset()  # the bell was faster than the message

    def _feed(self) -> None:
        """Give the child what it takes."""
        queue, offer = self._queue, self._child.offer
        while queue and offer(queue[0]):
            queue.popleft()

    def _collect(self, now: float) -> None:
        """Take what the child has ended."""
        if not self._look_child and now < self._wake_at:
            return
        self._look_child = False
        self._wake_at = math.inf
        try:
            ended = self._child.poll(now)
        except PoolError as exc:
            self._failing = True
            self._say(messages.Failing(str(exc)))  # first, or it would be given the same work again
            self._give_back(0, self._unbegun(None))
            return
        if self._failing and self._child.up:
            self._failing = False
            self._say(messages.Able())
        if ended:
            self._look_child = not self._child.up  # it raises only when nothing has ended
            self._outbox.add(ended, now)
            self._plan_nap(len(ended), now)
            self._feed()

    def _report(self, now: float) -> None:
        """Send results when enough are there, or some are old, or rank 0 should know that work runs low."""
        if self._outbox.ready(now, len(self._queue) + self._child.load):
            self._send_results()
        if self._stopping and not self._left and not self._load():
            self._left = True
            self._say(messages.Bye())
        if now - self._said >= BEAT_S and not self._left:
            self._say(messages.Beat(self._load()))

    def _mind(self, now: float) -> None:
        """Notice signals and the absence of rank 0 or the launcher."""
        if self._flags.ending:
            self._child.ending = True
        self._awake = self._clock.at(now)
        if self._awake - self._heard > self._settings.silence_s:
            raise Alone(f"slot {self._world.rank} has heard nothing from rank 0 for {self._settings.silence_s:g} s")
        if now - self._minded > BEAT_S:
            self._minded = now
            if os.getppid() != self._parent:
                raise Alone(f"slot {self._world.rank} has lost its launcher, process {self._parent}")

    def _sleep(self, now: float) -> None:
        """Wait for the child, or until it is time to look for messages or to do what is due."""
        transport = self._transport
        timeout_s = SENDING_WAIT_S if transport.sending or transport.arriving else self._backoff.step()
        wake_at = self._child.next_wake(now)
        if wake_at is not None:
            self._wake_at = min(self._wake_at, wake_at)
        bell = transport.fileno()
        if self._nap_s:
            ready = wait_readable((bell,), min(timeout_s, self._nap_s))
            self._nap_s, self._look_child = 0.0, True
        else:
            due = min(self._wake_at, self._outbox.due)
            ready = wait_readable((bell, *self._child.filenos()), min(timeout_s, due - now))
        for fd in ready:
            if fd == bell:
                transport.silence()
                self._rung = True
            else:
                self._look_child = True

    def _plan_nap(self, count: int, now: float) -> None:
        """Sleep through results that come fast if the child has enough to do: a wake costs as much as a task."""
        each_s, self._collected = (now - self._collected) / count, now
        load = self._child.load
        if each_s < QUICK_S and load >= NAP_ITEMS:
            self._nap_s = min(NAP_S, each_s * load / 2)

    def _expect_more(self) -> None:
        """Look for messages often for a while, unless rank 0 rings."""
        if not self._transport.all_near:
            self._backoff.reset()

    # -- what rank 0 says -------------------------------------------------------------------------

    def _on_functions(self, message: messages.Functions) -> None:
        for code in message.codes:
            self._child.learn(code)
            self._in_rank.learn(code)

    def _on_dispatch(self, message: messages.Dispatch) -> None:
        self._queue.extend(message.items)
        if self._stopping or self._failing:
            self._give_back(0, self._unbegun(None))

    def _on_begin(self, message: messages.Begin) -> None:
        """Be a rank of an MPI function; nothing is heard or said until it has ended here."""
        self._say(self._in_rank.run(message))
        self._look_child = True
        self._expect_more()

    def _on_bind(self, message: messages.Bind) -> None:
        """Take these CPUs, for MPI functions too; children started from now on inherit that."""
        with contextlib.suppress(OSError):  # not ours to use: nothing is bound
            set_cpus(os.getpid(), message.cpus)
            self._child.bind(message.cpus)

    def _on_nudge(self, message: messages.Nudge) -> None:
        nudge(message.address, message.why, message.key)

    def _on_recall(self, message: messages.Recall) -> None:
        self._give_back(message.number, self._unbegun(message.count))

    def _on_cancel(self, message: messages.Cancel) -> None:
        dropped = [key for key in message.keys if self._cancel(key)]
        if dropped:
            self._give_back(0, dropped)
        self._look_child = True

    def _on_ending(self, message: messages.Ending) -> None:
        self._child.ending = True
        self._look_child = True

    def _on_stop(self, message: messages.Stop) -> None:
        self._stopping = True
        self._give_back(0, self._unbegun(None))

    def _on_bye(self, message: messages.Bye) -> None:
        self._released = True

    _HANDLERS: dict[type, Callable[[Slot, Any], None]] = {  # noqa: RUF012  never changed
        messages.Functions: _on_functions,
        messages.Dispatch: _on_dispatch,
        messages.Begin: _on_begin,
        messages.Free: lambda slot, message: slot._in_rank.free(message),
        messages.Nudge: _on_nudge,
        messages.Bind: _on_bind,
        messages.Recall: _on_recall,
        messages.Cancel: _on_cancel,
        messages.Ping: lambda slot, message: None,  # that it came is all it says
        messages.Ending: _on_ending,
        messages.Stop: _on_stop,
        messages.Bye: _on_bye,
    }

    # -- inside -----------------------------------------------------------------------------------

    def _load(self) -> int:
        """Return how many attempts are here, results not yet sent included."""
        return len(self._queue) + self._child.load + len(self._outbox)

    def _unbegun(self, count: int | None) -> list[Key]:
        """Take back up to `count` attempts that have not begun, the last ones, in their order."""
        wanted = len(self._queue) if count is None else min(count, len(self._queue))
        keys = [self._queue.pop().key for _ in range(wanted)][::-1]
        if count is None or count > wanted:
            back = self._child.take_back(None if count is None else count - wanted)
            keys = [*(item.key for item in back), *keys]
            self._look_child = True
        return keys

    def _cancel(self, key: Key) -> bool:
        """Cancel one attempt; return whether it had not begun."""
        for item in self._queue:
            if item.key == key:
                self._queue.remove(item)
                return True
        return self._child.cancel(*key)

    def _give_back(self, number: int, keys: Iterable[Key]) -> None:
        """Confirm that attempts have not begun; results go first, so that what rank 0 then has in hand is true."""
        self._send_results()
        self._say(messages.Returned(number, tuple(keys), self._load()))

    def _send_results(self) -> None:
        if len(self._outbox):
            self._say(self._outbox.take())
            self._expect_more()

    def _say(self, report: messages.Report) -> None:
        self._transport.send(0, report)
        self._said = time.monotonic()
