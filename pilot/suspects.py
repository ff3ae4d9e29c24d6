"""Which MPI functions were running in the ranks when a pool died: one of them may be what killed it.

The coordinator notes each before it begins and when it has ended, in a file beside the pool's log; its agent
reads that after the pool's death. An attempt that was noted and had not ended is a suspect: its task runs in an
MPI program of its own from then on. A file, as the coordinator dies with the rank that crashes.
"""

from __future__ import annotations

import os
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
        self._running: set[Key] = set()

    def began(self, key: Key) -> None:
        """Note an attempt that is about to begin."""
        self._running.add(key)
        self._write("+", key)

    def ended(self, key: Key) -> None:
        """Note that an attempt has ended, if its begin was noted."""
        if key in self._running:
            self._running.discard(key)
            self._write("-", key)

    def close(self) -> None:
        """Close the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _write(self, sign: str, key: Key) -> None:
        task, attempt = key
        if self._fd is None:
            self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.write(self._fd, f"{sign}{task}:{attempt}\n".encode())


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
