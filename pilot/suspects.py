"""Which MPI functions were running in the ranks when a pool died: one of them may be what killed it.

The coordinator notes each before it begins and when it has ended, in a file beside the pool's log; its agent
reads that after the pool's death. An attempt that was noted and had not ended is a suspect: its task runs in an
MPI program of its own from then on. A file, as the coordinator dies with the rank that crashes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

Key = tuple[str, int]


class Journal:
    """The coordinator's side.

    Args:
        path: of the file; made at the first note.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    def began(self, keys: Iterable[Key]) -> None:
        """Note attempts that are about to begin."""
        self._write("+", keys)

    def ended(self, keys: Iterable[Key]) -> None:
        """Note attempts that have ended."""
        self._write("-", keys)

    def close(self) -> None:
        """Close the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _write(self, sign: str, keys: Iterable[Key]) -> None:
        text = "".join([f"{sign}{task}:{attempt}\n" for task, attempt in keys])
        if self._fd is None:
            self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.write(self._fd, text.encode())


def read(path: Path) -> set[Key]:
    """Return the attempts that began and did not end; a line that a crash cut short does not count."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return set()
    running: set[Key] = set()
    for line in lines:
        task, colon, attempt = line[1:].rpartition(":")
        if colon and attempt.isdecimal():
            (running.add if line[0] == "+" else running.discard)((task, int(attempt)))
    return running
