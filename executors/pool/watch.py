"""End an MPI function in its rank: at its walltime, or when somebody on the same node says so.

The rank's main thread is in the user's code then and hears nothing. A thread beside it sleeps on a socket until
the walltime, and sends the main thread a signal, whose handler raises `Interrupted` as soon as control is in
Python. Code that is inside MPI, or any other C, cannot be interrupted; what then happens is rank 0's to decide.
"""

from __future__ import annotations

import contextlib
import hmac
import math
import os
import secrets
import signal
import socket
import threading
import time
from types import FrameType

from pilot.executors.pool.bell import neighbourhood
from pilot.executors.pool.messages import Address
from pilot.executors.pool.waiting import wait_readable
from pilot.executors.pool.world import EXIT_ALONE
from pilot.executors.run.verdict import Key

SIGNAL = signal.SIGRTMIN + 9
"""No MPI library, debugger or scheduler uses it. Unlike an asynchronous exception, it interrupts system calls."""

AGAIN_S = 2.0
"""A function that swallowed the exception is interrupted again after so long."""
_TICK_S = 1.0

WALLTIME, CANCELLED, WITH_OTHERS = "walltime", "cancelled", "others"
"""Why a function is interrupted."""


class Interrupted(BaseException):
    """The MPI function in this rank is to end; `why` is one of the words above. Not an `Exception`: few catch it."""

    def __init__(self, why: str) -> None:
        super().__init__(f"interrupted: {why}")
        self.why = why


def new_address() -> Address:
    """Return an address for this process. Names of sockets can be seen by other users of a node, hence the secret."""
    return Address(neighbourhood(), b"\0pilot-watch-" + secrets.token_hex(8).encode(), secrets.token_bytes(16))


def nudge(address: Address, why: str, key: Key) -> None:
    """Interrupt the function `key` in a rank on this node. Does nothing if it does not run there any more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, contextlib.suppress(OSError):
        sender.setblocking(False)
        sender.sendto(_text(address, why, key), address.name)


def _text(address: Address, why: str, key: Key) -> bytes:
    return address.secret + f"{why} {key[1]} {key[0]}".encode()


class Watch:
    """The watch of one rank. The thread starts with the first function.

    The main thread calls `begin`, then sets `raising` while it is in code that may be interrupted, then `end`.

    Args:
        address: where to listen; None: walltimes only.
    """

    def __init__(self, address: Address | None) -> None:
        self._address = address
        self._lock = threading.Lock()
        self._key: Key | None = None
        self._due_at = math.inf
        """When to interrupt, or to do so again."""
        self._wakes_at = 0.0
        self.why = ""
        """Why the present function is to end; empty while it is not."""
        self._raising = False
        self._socket: socket.socket | None = None
        self._main = 0

    def start(self) -> None:
        """Start the thread, if it does not run. Main thread only."""
        if self._socket is not None:
            return
        self._main = threading.get_ident()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(self._address.name if self._address else b"")  # autobind, if nobody is to find it
        threading.Thread(target=self._run, args=(self._socket,), name="watch", daemon=True).start()

    def begin(self, key: Key, walltime_s: float | None) -> None:
        """Note that a function begins; it is not to be interrupted yet."""
        self.start()
        signal.signal(SIGNAL, self._on_signal)  # who knows what the last one did
        with self._lock:
            self._key, self.why, self._raising = key, "", False
            self._due_at = math.inf if walltime_s is None else time.monotonic() + walltime_s
            late = self._due_at < self._wakes_at
        if late:
            self._wake()

    def end(self) -> None:
        """Note that the function is over."""
        self._raising = False
        with self._lock:
            self._key, self._due_at = None, math.inf

    def allow(self) -> None:
        """Let the function be interrupted from here on.

        Raises:
            Interrupted: it is to end already.
        """
        self._raising = True
        if self.why:
            raise Interrupted(self.why)

    def forbid(self) -> None:
        """Let it not be interrupted until `allow`."""
        self._raising = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._raising and self._key is not None and self.why:
            raise Interrupted(self.why)

    def _wake(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.sendto(b"", self._socket.getsockname())

    # -- the thread -------------------------------------------------------------------------------

    def _run(self, listener: socket.socket) -> None:
        parent = os.getppid()
        while True:
            with self._lock:
                now = time.monotonic()
                if self._due_at <= now:
                    self._interrupt(self.why or WALLTIME, now)
                self._wakes_at = min(self._due_at, now + _TICK_S)
                wait_s = self._wakes_at - now
            if wait_readable((listener.fileno(),), wait_s):
                self._hear(listener)
            elif os.getppid() != parent and self._key is not None:
                os._exit(EXIT_ALONE)  # what the main thread would notice if it were not busy

    def _hear(self, listener: socket.socket) -> None:
        try:
            data = listener.recv(4096)
        except BlockingIOError:
            return
        with self._lock:
            if not data or self._key is None or self._address is None:
                return
            for why in (CANCELLED, WITH_OTHERS):
                if hmac.compare_digest(data, _text(self._address, why, self._key)):
                    self._interrupt(why, time.monotonic())

    def _interrupt(self, why: str, now: float) -> None:
        self.why = self.why or why
        self._due_at = now + AGAIN_S
        signal.pthread_kill(self._main, SIGNAL)
