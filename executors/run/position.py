"""How far into a child's captured output a task reaches, exactly and without waiting.

The rank reads the pipe whenever it likes; the child must say at the end of a task how many bytes had been
written by then. That is what the rank has read plus what lies in the pipe, if no read happened between
the two looks. The rank publishes its count in one shared 8-byte word, with the lowest bit set while it
reads; the child looks at the word, at the pipe, and at the word again, and repeats unless it is the same
and even. (Asking the rank to drain instead would cost every printing task a rank's polling interval.)
"""

from __future__ import annotations

import fcntl
import mmap
import os
import termios
import time
from array import array

_SIZE = mmap.PAGESIZE
_TRIES_BEFORE_SLEEP = 50
_SLEEP_S = 50e-6


class Position:
    """The shared word. The rank makes it with `create`, the child opens the inherited descriptor.

    Args:
        fd: descriptor of the shared memory; owned by this object from now on.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._map = mmap.mmap(fd, _SIZE)
        self._word = memoryview(self._map).cast("Q")
        self._in_pipe = array("i", [0])

    @classmethod
    def create(cls) -> Position:
        """Make a new word that says 0."""
        fd = os.memfd_create("pilot-position", os.MFD_CLOEXEC)
        os.ftruncate(fd, _SIZE)
        return cls(fd)

    def begin_read(self) -> None:
        """Say that a read of the pipe may be under way. Rank only."""
        self._word[0] |= 1

    def end_read(self, count: int) -> None:
        """Say that the read took `count` bytes. Rank only; after every `begin_read`."""
        self._word[0] = (self._word[0] & ~1) + 2 * count

    def written(self, pipe: int) -> int:
        """Return how many bytes have been written to `pipe` since it was made. Child only.

        Waits at most for the rank's read that is under way.
        """
        word = self._word
        tries = 0
        while True:
            before = word[0]
            fcntl.ioctl(pipe, termios.FIONREAD, self._in_pipe)
            if word[0] == before and not before & 1:
                return before // 2 + self._in_pipe[0]
            tries += 1
            if tries > _TRIES_BEFORE_SLEEP:
                time.sleep(_SLEEP_S)

    def close(self) -> None:
        """Free the memory and the descriptor."""
        self._word.release()
        self._map.close()
        os.close(self.fd)
