"""What the tasks of `pool_program` run."""

from __future__ import annotations

import os
import time


def nothing() -> None:
    """Return at once."""


def sleep(a0: float) -> None:
    """Sleep for some seconds."""
    time.sleep(a0)


def head(a0: bytes, a1: int) -> bytes:
    """Return the first bytes."""
    return a0[:a1]


def mark(a0: str, a1: str) -> None:
    """Append a word to a file, and take a little while."""
    fd = os.open(a0, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, f"{a1}\n".encode())
    os.close(fd)
    time.sleep(0.0005)


def mark_and_leave(a0: str, a1: str) -> None:
    """Append a word to a file and end the process without a word."""
    mark(a0, a1)
    os._exit(3)


def leave(a0: int) -> None:
    """End the process without a word."""
    os._exit(a0)


def die(a0: int) -> None:
    """Die of a signal."""
    os.kill(os.getpid(), a0)
