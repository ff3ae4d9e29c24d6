"""Keep one child alive and at work: give it attempts, hear its answers, stop it, bury it, start the next.

The inner half of `handle.Child`, which says what the rest may rely on. Work goes through three places:
`waiting` (here), the process' own queue (`Process.sent`, can be taken back until begun), `ended`.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from pilot.errors import PoolError
from pilot.executors.run import verdict
from pilot.executors.run.frames import Kind, Packet
from pilot.executors.run.process import Process
from pilot.executors.run.restart import Settings, Starts, Stopping
from pilot.executors.run.share import set_cpus
from pilot.executors.run.verdict import Death, Finished, Item, Key, Span
from pilot.model import Log
from pilot.states import Outcome

_LOOK_S = 0.25
"""Longest time between two looks at a child that has work: its death is silent while a grandchild lives on."""
_RETRY_S = 0.05
_SILENT_S = 1.0
"""A child whose channel is closed but which does not end within this time is killed."""


class _Held(NamedTuple):
    """An end by TERM or KILL from outside, waiting to be explained."""

    due: float
    item: Item
    body: Callable[[bool], bytes]
    """Makes the body, given whether the pilot is ending."""
    log: Log | None


class Keeper:
    """Runs what is in `waiting`, one after the other, in as many processes as it takes.

    Args:
        spawn: starts a process, given the time.
        rank: MPI rank, for results written here.
        host: node name, likewise.
        settings: limits and times.

    Every `now` is the time of one monotonic clock.
    """

    def __init__(self, spawn: Callable[[float], Process], rank: int, host: str, settings: Settings) -> None:
        self.ending = False
        self.codes: dict[str, bytes] = {}
        self.waiting: deque[Item] = deque()
        """What no process has, in order."""
        self.held: list[_Held] = []
        self.ended: list[Finished] = []
        """What `Child.poll` returns next."""
        self.starts = Starts(settings)
        self.process: Process | None = None
        self._make = spawn
        self._rank, self._host, self._settings = rank, host, settings
        self._stopping: Stopping | None = None
        self._graves: list[Process] = []
        self._cpus: tuple[int, ...] = ()

    # -- one turn -------------------------------------------------------------------------------

    def turn(self, now: float) -> None:
        """Do all that is due."""
        p = self.process
        if p is not None:
            if not self._hear(p, now) and self.process is p:
                self._watch(p, now)
        elif now >= self.starts.next_at:
            self.spawn(now)
        self.pump(now)
        if self.held:
            self._release(now)
        if self._graves:
            self._graves = [grave for grave in self._graves if not grave.reap()]

    def next_wake(self, now: float) -> float | None:
        """Return when `turn` has something to do that no descriptor tells, or None."""
        times = [held.due for held in self.held]
        p = self.process
        if p is None:
            times.append(self.starts.next_at)
        elif self._stopping:
            times.append(self._stopping.next_at)
        elif not p.ready:
            times.append(p.born + self._settings.start_s)
        elif p.sent:
            times.append(now + _LOOK_S)
            walltime_s = p.sent[0][1].walltime_s
            if walltime_s is not None:
                times.append(p.began + walltime_s)
        if self.waiting and p and not p.sent and not self._stopping:
            times.append(now + _RETRY_S)  # the system had no room for a packet
        if self._graves or (p and p.silent_since is not None):
            times.append(now + 0.01)
        return min(times, default=None)

    def bind(self, cpus: Sequence[int]) -> None:
        """Bind the process, and all that come after it, to these CPUs.

        Raises:
            OSError: this node has none of them, or processes may not use them.
        """
        if cpus and self.process and self.process.death() is None:
            set_cpus(self.process.pid, cpus)
        self._cpus = tuple(cpus)

    # -- queue ----------------------------------------------------------------------------------

    def pump(self, now: float) -> None:
        """Give the process what it may have."""
        p = self.process
        if p is None or self._stopping or p.silent_since is not None:
            return
        while self.waiting:
            item = self.waiting[0]
            if p.exclusive or (item.fresh and (p.served or p.sent)):
                if not p.sent:
                    self.retire(p)
                    self.spawn(now)
                return
            if not p.sent:
                p.began = now
            if not p.give(item, self.codes.get(item.function or "")):
                return
            p.exclusive = item.fresh
            self.waiting.popleft()

    def unsend(self) -> None:
        """Take all that has not begun from the process back into `waiting`."""
        if self.process:
            self.waiting.extendleft(reversed(self.process.take_back()))

    def _finish(self, item: Item, body: bytes, log: Log | None) -> None:
        self.ended.append(Finished(item.task, item.attempt, body, log))

    # -- answers --------------------------------------------------------------------------------

    def _hear(self, p: Process, now: float) -> bool:
        """Take what the process has said; return whether it said anything."""
        answers = p.receive(now)
        for packet in answers:
            if packet.kind is Kind.READY:
                p.ready, p.began = True, now
            else:
                self._answer(p, packet, now)
        return bool(answers)

    def _answer(self, p: Process, packet: Packet, now: float) -> None:
        number, item = p.sent.popleft()
        if number != packet.number:
            raise PoolError(f"a child answered {packet.number} when {number} was due; this is a defect")
        if self._stopping:  # then it is the only one that was left to the process
            ran = packet.kind in (Kind.RESULT, Kind.KILLED)
            span, said = self._span(p, now), packet.body if ran else None
            body = verdict.stopped(item, self._stopping.outcome, span, said)
            self._finish(item, body, p.stream.finish(packet.end if ran else None))
            self._replace(p, now)
            return
        p.began = now
        if packet.kind is Kind.RESULT:
            p.served += 1
            self.starts.succeeded()
            self._finish(item, packet.body, p.stream.finish(packet.end))
        elif packet.kind is Kind.KILLED:
            p.served += 1
            due, log = now + self._settings.hold_s, p.stream.finish(packet.end)
            self.held.append(_Held(due, item, partial(verdict.killed, packet.body), log))
        else:  # not begun
            p.known.discard(item.function or "")
            self.waiting.appendleft(item)
        if p.exclusive or packet.kind is Kind.STALE:
            self.retire(p)
            self.spawn(now)

    # -- ends -----------------------------------------------------------------------------------

    def _watch(self, p: Process, now: float) -> None:
        """See to a process that has said nothing this time."""
        death = p.death()
        if death:
            self._bury(p, death, now)
        elif p.silent_since is not None and now > p.silent_since + _SILENT_S:
            p.kill(sweep=True)
        elif self._stopping:
            if now >= self._stopping.next_at:
                self._step(p, self._stopping, now)
        elif not p.ready:
            if now > p.born + self._settings.start_s:
                self.starts.failed(f"it said nothing for {self._settings.start_s:g} s{_words(p)}", now)
                self._replace(p, now)
        elif p.sent:
            item = p.sent[0][1]
            if item.walltime_s is not None and now >= p.began + item.walltime_s:
                self.stop(item.key, Outcome.TIMEOUT, now)

    def stop(self, key: Key, outcome: Outcome, now: float) -> bool:
        """Begin to stop the attempt `key`; return whether it is being stopped: it had begun and not ended.

        Otherwise it is in `waiting`, in `ended`, or not here. Its end may still be a success that came first.
        """
        p = self.process
        if p is None or self._stopping:
            return self._stopping is not None and self._stopping.key == key
        self.unsend()  # or the signal might hit the attempt behind it
        while self._hear(p, now):
            if self.process is not p:
                return False
        if not p.sent or p.sent[0][1].key != key:
            return False
        self._stopping = Stopping(p.sent[0][1], outcome, self._settings, now)
        self._step(p, self._stopping, now)
        return True

    def _step(self, p: Process, stopping: Stopping, now: float) -> None:
        step = stopping.step(now)
        if step:
            p.signal(*step)
            return
        _, item = p.sent.popleft()
        body = verdict.stopped(item, stopping.outcome, self._span(p, now), None)
        self._finish(item, body, p.stream.finish())
        self._replace(p, now)

    def _bury(self, p: Process, death: Death, now: float) -> None:
        """Settle the affairs of a dead process."""
        p.signal(signal.SIGKILL)  # what is left of its group must not go on writing
        while self._hear(p, now):
            if self.process is not p:
                return
        self.unsend()
        if p.sent:
            _, item = p.sent.popleft()
            span, log = self._span(p, now), p.stream.finish()
            self.starts.succeeded()
            if self._stopping:
                self._finish(item, verdict.stopped(item, self._stopping.outcome, span, None), log)
            else:
                due = now + self._settings.hold_s if death.by_outsider else now
                self.held.append(_Held(due, item, partial(verdict.died, item, death, span), log))
        elif not p.served:
            self.starts.failed(f"it {death.text}{_words(p)}", now)
        self._replace(p, now)

    def _release(self, now: float) -> None:
        """Report deaths that are explained, or will not be."""
        for held in [held for held in self.held if self.ending or held.due <= now]:
            self.held.remove(held)
            self._finish(held.item, held.body(self.ending), held.log)

    def _replace(self, p: Process, now: float) -> None:
        """Put another process in the place of one that ended badly."""
        self._stopping = None
        self.retire(p, sweep=True)
        if now >= self.starts.next_at:
            self.spawn(now)

    def retire(self, p: Process, sweep: bool = False) -> None:
        """Kill a process; what it has not begun waits for the next one."""
        self.unsend()
        p.kill(sweep)
        p.close()
        self._graves.append(p)
        self.process = None

    def spawn(self, now: float) -> None:
        """Start a process, or note why that cannot be done."""
        try:
            self.process = self._make(now)
            if self._cpus:
                set_cpus(self.process.pid, self._cpus)
        except OSError as error:
            self.starts.failed(f"it cannot be run: {error}", now)

    def wait_gone(self, timeout_s: float) -> None:
        """Wait until all killed processes are gone, within limits."""
        deadline = time.monotonic() + timeout_s
        self._graves = [grave for grave in self._graves if not grave.reap(max(0.0, deadline - time.monotonic()))]

    def _span(self, p: Process, now: float) -> Span:
        """Return when and where the running attempt ran, to the precision of polling."""
        wall = time.time()
        return Span(wall - (now - p.began), wall, self._rank, self._host)


def _words(p: Process) -> str:
    """Return what a process that did nothing has printed."""
    log = p.stream.finish()
    return f"; it printed:\n{log.tail.strip()}" if log and log.tail.strip() else ""
