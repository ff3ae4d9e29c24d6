"""A doorbell between processes of one host: it wakes a sleeper at once, and carries nothing.

MPI has no descriptor to sleep on, so a rank must look for messages now and then. With a bell it may look
rarely: who sends a message rings as well. A ring that is lost, or comes from a stranger, does no harm.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Bell:
    """An unconnected datagram socket with a name in the kernel's abstract namespace; `fileno` is readable when it rang.

    Any thread may ring. Closed with the process; children do not inherit it.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self.name = b"\0pilot-" + secrets.token_hex(8).encode()
        self._socket.bind(self.name)

    def fileno(self) -> int:
        """Return the descriptor to sleep on."""
        return self._socket.fileno()

    def ring(self, name: bytes) -> None:
        """Wake the owner of the bell `name`, if it is on this host and alive."""
        with contextlib.suppress(OSError):  # full: it has rung already; refused: it is gone
            self._socket.sendto(b"", name)

    def silence(self) -> None:
        """Forget the rings so far."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self._socket.recv(1)


def neighbourhood() -> str:
    """Return a word that is the same for two processes exactly if their bells can reach each other."""
    return f"{_BOOT_ID.read_text().strip()} {os.readlink('/proc/self/ns/net')}"
