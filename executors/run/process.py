"""One spawned child as the rank holds it: its queue, its answers, its output, its death. Never blocks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import socket
import subprocess
from collections import deque
from collections.abc import Mapping, Sequence

from pilot.executors.run.frames import ENDS_VARIABLE, NO_WAIT, Inbox, Kind, Packet, send
from pilot.executors.run.orphans import find_orphans
from pilot.executors.run.output import PIPE_BYTES, Output, Stream
from pilot.executors.run.position import Position
from pilot.executors.run.verdict import Death, Item

PROCESS_VARIABLE = "PILOT_PROCESS"
"""Tells one child's descendants from all others, wherever they moved."""

_AT_ONCE = 64
_FULL = frozenset({errno.EAGAIN, errno.ETOOMANYREFS, errno.ENOBUFS})


class Process:
    """A child process and the rank's ends of its channels.

    The rank keeps the child's end of the task queue open too: reading from it takes packets back.

    Args:
        argv: the program; it must call `child.serve`.
        env: its whole environment, to which the channel's variables are added.
        output: where its stdout and stderr go.
        now: time of a monotonic clock, as everywhere here.
    """

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], output: Output, now: float) -> None:
        self.born = self.began = now
        """`began`: when the first of `sent` began at the latest."""
        self.ready = False
        self.served = 0
        """How many attempts it has ended."""
        self.exclusive = False
        """It was given a fresh item: nothing else goes to it."""
        self.silent_since: float | None = None
        """When it closed its end of the results; it is dead or soon will be."""
        self.sent: deque[tuple[int, Item]] = deque()
        """What it was given and has not answered, in order."""
        self.known: set[str] = set()
        """Functions it was given."""
        self._codes: dict[int, str] = {}
        self._number = 0
        self._token = os.urandom(8).hex()
        self._spawn(argv, env, output)

    def _spawn(self, argv: Sequence[str], env: Mapping[str, str], output: Output) -> None:
        self._tasks, self._untake = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._results, results_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        reading, writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(reading, False)
        with contextlib.suppress(OSError):
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        position = Position.create()
        ends = (self._untake.fileno(), results_end.fileno(), position.fd)
        variables = {ENDS_VARIABLE: " ".join(map(str, (*ends, os.getpid()))), PROCESS_VARIABLE: self._token}
        self.stream = Stream(reading, position, output)
        self._inbox, self._unread = Inbox(self._results), Inbox(self._untake)
        self._poller = select.poll()
        self._poller.register(self._results, select.POLLIN)
        self._poller.register(reading, select.POLLIN)
        try:
            self._popen = subprocess.Popen(
                argv, env={**env, **variables}, pass_fds=ends, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=writing, stderr=writing,
            )  # fmt: skip
        except OSError:
            self._close_ends()
            raise
        finally:
            results_end.close()
            os.close(writing)

    @property
    def pid(self) -> int:
        """Its process id, which is its session's and process group's too."""
        return self._popen.pid

    def filenos(self) -> tuple[int, ...]:
        """Return the descriptors that become readable when it has something to say."""
        if self.silent_since is not None:
            return (self.stream.pipe,)
        return self._results.fileno(), self.stream.pipe

    # -- its queue ------------------------------------------------------------------------------

    def give(self, item: Item, code: bytes | None) -> bool:
        """Put an item into its queue, before it its function's `code` if it has not been given that.

        Return False if the queue is full now.
        """
        try:
            if item.function and item.function not in self.known:
                self._codes[self._send(Kind.CODE, code or b"")] = item.function
                self.known.add(item.function)
            self.sent.append((self._send(Kind.WORK, item.frame), item))
        except OSError as error:
            if error.errno in _FULL:
                return False
            raise
        return True

    def _send(self, kind: Kind, body: bytes) -> int:
        send(self._tasks, Packet(kind, self._number + 1, 0, body), NO_WAIT)
        self._number += 1
        return self._number

    def take_back(self) -> list[Item]:
        """Return, in order, what it has not begun. Exact: after this at most one of `sent` is left, and has begun.

        (Or has ended: then its answer is on its way.)
        """
        numbers = set()
        with contextlib.suppress(BlockingIOError):
            while self.sent and (packet := self._unread.receive(NO_WAIT)):
                numbers.add(packet.number)
                if packet.kind is Kind.CODE:
                    self.known.discard(self._codes[packet.number])
        taken = [item for number, item in self.sent if number in numbers]
        self.sent = deque(pair for pair in self.sent if pair[0] not in numbers)
        self.exclusive = self.exclusive and bool(self.sent)
        return taken

    # -- its answers ----------------------------------------------------------------------------

    def receive(self, now: float) -> list[Packet]:
        """Return answers that have arrived, up to a bound, and move output from the pipe to the file."""
        events = self._poller.poll(0)
        answers: list[Packet] = []
        if any(fd == self.stream.pipe for fd, _ in events):
            self.stream.read()
        if any(fd != self.stream.pipe for fd, _ in events):
            with contextlib.suppress(BlockingIOError):
                while len(answers) < _AT_ONCE:
                    packet = self._inbox.receive(NO_WAIT)
                    if packet is None:
                        self.silent_since = now
                        self._poller.unregister(self._results)
                        break
                    answers.append(packet)
        return answers

    # -- its end --------------------------------------------------------------------------------

    def death(self) -> Death | None:
        """Return how it died, or None while it lives. It stays a zombie, so that its group's id stays its own."""
        status = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if status is None:
            return None
        return Death(status.si_status, 0) if status.si_code == os.CLD_EXITED else Death(0, status.si_status)

    def signal(self, number: int, group: bool = True) -> None:
        """Send a signal to it, and to its process group unless told otherwise."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number) if group else os.kill(self.pid, number)

    def kill(self, sweep: bool) -> None:
        """Kill it and its process group; with `sweep` also descendants that left the group. Does not wait."""
        self.signal(signal.SIGKILL)
        if sweep:
            for pid in find_orphans(PROCESS_VARIABLE, self._token):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)

    def reap(self, timeout_s: float = 0.0) -> bool:
        """Return whether the killed process is gone, waiting for it up to `timeout_s`."""
        if self._popen.returncode is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(timeout_s)
        return self._popen.returncode is not None

    def close(self) -> None:
        """Close the rank's ends. What was sent and not taken back is gone; so is what was not read."""
        self._close_ends()

    def _close_ends(self) -> None:
        for end in (self._tasks, self._untake, self._results):
            end.close()
        self.stream.close()
