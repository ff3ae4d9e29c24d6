"""What travels between a rank and its child: packets over SOCK_SEQPACKET pairs.

The kernel keeps packet borders and gives each packet to exactly one reader. So the rank, which holds a
copy of the child's end of the queue, can take back what the child has not taken, and both know exactly
what has begun. A body that does not fit a packet lies in a memory file whose descriptor travels in the
packet: it has the same single reader.

Both ends are processes of one user started by one another: pickle crosses no trust boundary here.
"""

from __future__ import annotations

import _socket  # `socket` makes enums of all constants: 5 ms in every child, and slow flags
import array
import os
import struct
from enum import IntEnum
from typing import NamedTuple

ENDS_VARIABLE = "PILOT_CHILD"
"""Tells a child its descriptors and its rank's process id; it removes the variable at once."""

INLINE_BYTES = 48 * 1024
"""Bodies up to this travel in the packet: it must fit the default send buffer (208 KiB) several times."""

NO_WAIT = _socket.MSG_DONTWAIT
"""For `send` and `receive`."""

_CLOEXEC = _socket.MSG_CMSG_CLOEXEC
_BIG = 0x80
_HEADER = struct.Struct("<BxxxIQ")
_ROOM = INLINE_BYTES + _HEADER.size
_ANCILLARY = _socket.CMSG_SPACE(array.array("i").itemsize)


class Kind(IntEnum):
    """What a packet says."""

    CODE = 1
    """To the child: a pickled `FunctionCode`, before the first work that may need it."""
    WORK = 2
    """To the child: a packed `Work`."""
    READY = 3
    """From the child: it has started and takes work."""
    RESULT = 4
    """From the child: a packed `Result`; `end` is how far into the output pipe the task reaches."""
    RETURNED = 5
    """From the child: not begun, its function is not here (the rank took the packet with the code back)."""
    STALE = 6
    """From the child: not begun, an older version of its module is loaded; the child ends itself now."""

    KILLED = 7
    """From the child: a packed `Result` of a command that was ended from outside (TERM or KILL)."""


class Packet(NamedTuple):
    """One packet. `number` is the rank's count of what it sent; an answer carries that of its work."""

    kind: Kind
    number: int
    end: int
    body: bytes


def send(sock: _socket.socket, packet: Packet, flags: int = 0) -> None:
    """Send one packet, all of it or nothing.

    Raises:
        BlockingIOError: with NO_WAIT, the queue is full.
        OSError: the other side is gone, or a memory file cannot be made.
    """
    kind, number, end, body = packet
    if len(body) <= INLINE_BYTES:
        sock.send(_HEADER.pack(kind, number, end) + body, flags)
        return
    memory = os.memfd_create("pilot-packet", os.MFD_CLOEXEC)
    try:
        view = memoryview(body)
        while view:
            view = view[os.write(memory, view) :]
        rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", [memory]))
        sock.sendmsg([_HEADER.pack(kind | _BIG, number, end)], [rights], flags)
    finally:
        os.close(memory)


class Inbox:
    """The reading side of one end: a buffer that is used again and again (a new one costs 14 us a packet)."""

    def __init__(self, sock: _socket.socket) -> None:
        self._sock = sock
        self._view = memoryview(bytearray(_ROOM))
        self._buffers = [self._view]

    def receive(self, flags: int = 0) -> Packet | None:
        """Return the next packet, or None when the other side is gone and nothing is left to read.

        Raises:
            BlockingIOError: with NO_WAIT, nothing is there.
            OSError: the socket is broken, e.g. closed by user code.
        """
        count, rights, _, _ = self._sock.recvmsg_into(self._buffers, _ANCILLARY, flags | _CLOEXEC)
        if not count:
            return None
        kind, number, end = _HEADER.unpack_from(self._view)
        if not kind & _BIG:
            return Packet(_KINDS[kind], number, end, bytes(self._view[_HEADER.size : count]))
        (memory,) = array.array("i", rights[0][2])
        with open(memory, "rb") as file:
            file.seek(0)
            return Packet(_KINDS[kind & ~_BIG], number, end, file.read())


_KINDS = {kind.value: kind for kind in Kind}
