"""Captured output, the rank's side: one file per slot, and which part of it belongs to which task.

A child's stdout and stderr are one pipe. Everything read from it is appended to the slot's file, which is
made at the first byte; nothing is kept in memory. A task is a range of positions in that stream: the child
says at which position each task ended (see `position`), and the range is looked up in the file afterwards.
"""

from __future__ import annotations

import os
from pathlib import Path

from pilot.executors.run.position import Position
from pilot.model import TAIL_BYTES, Log

_CHUNK = 1 << 18
_TURN = 4 << 20
"""Most bytes taken in one turn, so that a child that prints without end does not starve the rank."""
PIPE_BYTES = 1 << 18
"""Size asked for a child's pipe. More would soon spend the 64 MiB that a user's pipes may have on a node:
beyond that every new pipe, a shell's in a task too, has 8 KiB."""
_PIPE_MOST = 1 << 21
"""More than a pipe can hold."""


def slot_file(root: Path, node: str, slot: int) -> Path:
    """Return the path of a slot's captured output."""
    return root / node / f"slot-{slot}.out"


class Output:
    """The file of one slot. A full disk costs output, never the rank.

    Positions count all bytes that were read, kept or not, over all children of the slot.

    Args:
        file: where to append; its folder is made with it at the first byte.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.total = 0
        """Position behind the last byte read."""
        self._fd: int | None = None
        self._shift = 0
        """Offset in the file minus position, where nothing was lost in between."""
        self._gaps: list[tuple[int, int]] = []
        """Positions that could not be written and that no `log` has passed yet."""
        self._dropping = False
        self._why = ""

    def append(self, data: bytes) -> None:
        """Add bytes to the file; if that fails, drop all until the task that printed them ends."""
        start, self.total = self.total, self.total + len(data)
        view = memoryview(data)
        if not self._dropping:
            try:
                fd = self._open(start) if self._fd is None else self._fd
                while view:
                    view = view[os.write(fd, view) :]
            except OSError as error:
                self._dropping = True
                self._why = error.strerror or str(error)
                self._gaps.append((self.total, self.total))
        if view:
            self._gaps[-1] = (min(self._gaps[-1][0], self.total - len(view)), self.total)

    def log(self, start: int, end: int) -> Log | None:
        """Return what the record of a task keeps of the positions `start` to `end`; None if it printed nothing.

        Ranges must be asked for in order, each once.
        """
        if end <= start:
            return None
        lost = self._lost(start, end)
        offset = start + self._shift - self._lost(0, start)
        length = end - start - lost
        tail = self._tail(offset, length)
        if lost:
            note = f"[pilot: {lost} bytes of output were dropped: {self._why}]"
            tail = f"{tail[len(note) + 1 :]}\n{note}" if tail else note
        self._shift -= self._lost(0, end)
        self._gaps = [(max(first, end), last) for first, last in self._gaps if last > end]
        self._dropping = False
        return Log(str(self.file), offset if length else 0, length, tail)

    def close(self) -> None:
        """Close the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _open(self, start: int) -> int:
        """Open the file so that position `start` is its present end."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(self.file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._shift = os.lseek(self._fd, 0, os.SEEK_END) - start + self._lost(0, start)
        return self._fd

    def _lost(self, start: int, end: int) -> int:
        return sum(max(0, min(last, end) - max(first, start)) for first, last in self._gaps)

    def _tail(self, offset: int, length: int) -> str:
        if not length or self._fd is None:
            return ""
        size = min(length, TAIL_BYTES)
        try:
            data = os.pread(self._fd, size, offset + length - size)
        except OSError as error:
            return f"[pilot: the output cannot be read back: {error.strerror}]"
        return data.decode(errors="replace").encode()[-TAIL_BYTES:].decode(errors="ignore")


class Stream:
    """The output of one child: takes what lies in its pipe and turns the child's positions into the slot's.

    Args:
        pipe: non-blocking reading end; owned by this object from now on.
        position: the word shared with the child; owned too.
        output: where the bytes go.
    """

    def __init__(self, pipe: int, position: Position, output: Output) -> None:
        self.pipe = pipe
        self._position = position
        self._output = output
        self._base = self._done = output.total

    def read(self, most: int = _TURN) -> int:
        """Take what is there, up to about `most` bytes; return how much. Never waits."""
        taken = 0
        while taken < most:
            self._position.begin_read()
            count = 0
            try:
                data = os.read(self.pipe, _CHUNK)
                count = len(data)
            except BlockingIOError:
                break
            finally:
                self._position.end_read(count)
            if not data:
                break
            self._output.append(data)
            taken += count
        return taken

    def finish(self, end: int | None = None) -> Log | None:
        """Return the log of the task that ended at the child's position `end`, or, without one, of all that is left."""
        if end is None:
            self.read(_PIPE_MOST)
            to = self._output.total
        else:
            to = self._base + end
            if to > self._output.total:
                self.read(to - self._output.total)
            to = min(to, self._output.total)
        start, self._done = self._done, max(self._done, to)
        return self._output.log(start, to)

    def close(self) -> None:
        """Close the pipe and the shared word; what was not read is gone."""
        os.close(self.pipe)
        self._position.close()
