"""What a rank prints while it runs an MPI function: straight into a file of its own."""

from __future__ import annotations

import os
from pathlib import Path

from pilot.model import TAIL_BYTES, Log


class Capture:
    """Puts a file in the place of this process' stdout and stderr, from `begin` to `end`.

    A child's output goes through a pipe that its rank reads; a rank has nobody to read its own. The file is made
    at the first `begin`. If that fails, the output goes nowhere, and the log says so.

    Args:
        file: appended to by this process only.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._fd = -1
        self._saved = (-1, -1)
        self._start = 0
        self._why = ""

    def begin(self) -> None:
        """Print into the file from now on."""
        if self._fd < 0:
            self._saved = (os.dup(1), os.dup(2))
            self._fd = self._open()
        self._start = os.lseek(self._fd, 0, os.SEEK_END)
        os.dup2(self._fd, 1)
        os.dup2(self._fd, 2)

    def end(self) -> Log | None:
        """Print where it was before; return what came since `begin`, None if nothing did. Flush before."""
        for number, saved in enumerate(self._saved, 1):
            os.dup2(saved, number)
        if self._why:
            return Log("", 0, 0, f"[pilot: the output of MPI functions on this slot is not kept: {self._why}]")
        length = os.lseek(self._fd, 0, os.SEEK_END) - self._start
        if length <= 0:
            return None
        size = min(length, TAIL_BYTES)
        data = os.pread(self._fd, size, self._start + length - size)
        tail = data.decode(errors="replace").encode()[-TAIL_BYTES:].decode(errors="ignore")
        return Log(str(self._file), self._start, length, tail)

    def _open(self) -> int:
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            return os.open(self._file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            self._why = str(exc)
            return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
