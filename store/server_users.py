"""Who on this host uses the embedded server: locks that die with their holders, so that nobody has to be counted."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def show(directory: Path) -> Callable[[], None]:
    """Show that this process uses the server of a directory, until what is returned is called; twice does no harm.

    Where that cannot be shown nothing happens: the server may then be stopped while it is used, and is started again.
    """
    held: list[int] = []
    with suppress(OSError):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        held.append(_opened(directory))
        fcntl.flock(held[0], fcntl.LOCK_SH)  # `none` keeps others out for no longer than a file takes to write

    def end() -> None:
        while held:
            os.close(held.pop())

    return end


@contextmanager
def none(directory: Path) -> Iterator[bool]:
    """Say whether no process of this host uses it; whoever wants to waits until the end of this."""
    descriptor = _opened(directory)
    try:
        yield lock(descriptor)
    finally:
        os.close(descriptor)


def lock(descriptor: int) -> bool:
    """Lock a file for this descriptor alone; False if another has it locked."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _opened(directory: Path) -> int:
    return os.open(directory / "users", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
