"""Tasks of many shapes for the tests of the whole system; imported by ranks and children."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any


def ranks(x: Any, comm: Any) -> list[Any]:
    """Return what every rank sees: its number, the size, its process and node."""
    return comm.allgather((comm.Get_rank(), comm.Get_size(), os.getpid(), x))


def mine(comm: Any) -> int:
    return int(comm.Get_rank())


def fails_on_one(comm: Any) -> None:
    if comm.Get_rank() == 1:
        raise ValueError("rank 1 does not like this")
    comm.Barrier()


def crash(path: str, comm: Any) -> str:
    """Kill rank 1 the first time; afterwards say how many ranks there are."""
    file = Path(path)
    if comm.Get_rank() == 1 and not file.exists():
        file.touch()
        os.kill(os.getpid(), signal.SIGSEGV)
    comm.Barrier()
    return f"{comm.Get_size()} ranks"


def crash_always(comm: Any) -> None:
    if comm.Get_rank() == 1:
        print("last words", flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    comm.Barrier()


def cpus() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def together(seconds: float, comm: Any) -> int:
    time.sleep(seconds)
    return int(comm.Get_size())


def spin(comm: Any) -> None:
    while True:
        time.sleep(0.01)


def cpus_of_two(seconds: float) -> list[int]:
    """Return its CPUs after long enough for another task to run beside it."""
    time.sleep(seconds)
    return sorted(os.sched_getaffinity(0))
