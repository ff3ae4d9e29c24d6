"""MPI functions that tests run in the ranks of a pool."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import pilot

_kept: list[Any] = []


def nothing(comm: Any) -> None:
    """Return at once."""


def where(comm: Any) -> list[int]:
    """Return rank and size, as both ways to the communicator tell."""
    assert pilot.current().comm is comm
    return [comm.Get_rank(), comm.Get_size()]


def current() -> int:
    """Take the communicator from the context."""
    return pilot.current().comm.Get_size()


def buffers(comm: Any, n: int) -> list[float]:
    """Send and receive numpy buffers in a ring, and reduce them."""
    import numpy as np

    rank, size = comm.Get_rank(), comm.Get_size()
    mine, other = np.full(n, float(rank)), np.empty(n)
    comm.Sendrecv(mine, (rank + 1) % size, recvbuf=other, source=(rank - 1) % size)
    total = np.empty(n)
    comm.Allreduce(mine, total)
    return [float(other.sum() / n), float(total[-1])]


def split(comm: Any) -> list[int]:
    """Split by parity, and sum in each half."""
    half = comm.Split(comm.Get_rank() % 2, -comm.Get_rank())
    answer = [half.Get_rank(), half.Get_size(), half.allreduce(comm.Get_rank())]
    half.Free()
    return answer


def window(comm: Any) -> float:
    """Put a number into the next rank's window."""
    import numpy as np
    from mpi4py import MPI

    rank, size = comm.Get_rank(), comm.Get_size()
    memory = np.zeros(1)
    win = MPI.Win.Create(memory, comm=comm)
    win.Fence()
    win.Put(np.array([10.0 + rank]), (rank + 1) % size)
    win.Fence()
    win.Free()
    return float(memory[0])


def nonblocking(comm: Any) -> list[int]:
    """Receive from all, in whatever order they come."""
    requests = [comm.irecv(source=other) for other in range(comm.Get_size())]
    sends = [comm.isend(comm.Get_rank() * 10, other) for other in range(comm.Get_size())]
    answer = [request.wait() for request in requests]
    for request in sends:
        request.wait()
    return answer


def says(comm: Any, who: int, text: str) -> None:
    """Print in one rank, through Python and not."""
    if comm.Get_rank() == who:
        print(text)
        os.write(2, f"raw {text}\n".encode())


def fails(comm: Any, who: int, wait: bool) -> None:
    """Raise in one rank; the others wait for it in a collective, or return."""
    if comm.Get_rank() == who:
        raise ValueError(f"rank {who} does not like it")
    if wait:
        comm.Barrier()


def fails_everywhere(comm: Any) -> None:
    """Raise in all ranks."""
    raise ValueError("nobody likes it")


def holds(comm: Any, file: str) -> None:
    """Fail in rank 1; rank 0 comes to no end before `file` is there, whatever happens."""
    if comm.Get_rank() == 1:
        raise ValueError("rank 1 is gone")
    while not os.path.exists(file):
        try:
            time.sleep(0.1)
        except BaseException:  # noqa: BLE001
            continue


def fails_late(comm: Any) -> None:
    """Raise in rank 0 while rank 1 loops in Python."""
    if comm.Get_rank() == 0:
        raise ValueError("rank 0 is tired")
    forever()


def forever() -> None:
    """Loop in Python, with a sleep that a signal has to interrupt."""
    while True:
        time.sleep(30)


def loops(comm: Any) -> None:
    """Run until interrupted."""
    forever()


def stubborn(comm: Any) -> None:
    """Swallow the first interruption."""
    try:
        forever()
    except BaseException:  # noqa: BLE001
        forever()


def waits_in_mpi(comm: Any) -> None:
    """Wait inside MPI for what never comes."""
    comm.recv(source=0, tag=77)


def leaves(comm: Any, code: int) -> None:
    """Call sys.exit in every rank."""
    sys.exit(code)


def leaks(comm: Any, count: int) -> int:
    """Make communicators and free none."""
    for _ in range(count):
        _kept.append(comm.Dup())
    return len(_kept)


def dies(comm: Any) -> None:
    """Crash rank 1."""
    if comm.Get_rank() == 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    comm.Barrier()


def litters(comm: Any) -> None:
    """Leave everything changed."""
    os.chdir("/")
    os.environ["LITTER"] = "1"
    os.umask(0o077)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def finds(comm: Any) -> list[Any]:
    """Return what `litters` would have changed."""
    mask = os.umask(0)
    os.umask(mask)
    ignored = signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    return [os.getcwd(), "LITTER" in os.environ, mask == 0o077, ignored, os.environ["OMP_NUM_THREADS"]]


def bound(comm: Any) -> list[int]:
    """Return the CPUs of this rank."""
    return sorted(os.sched_getaffinity(0))


def unsent(comm: Any) -> None:
    """Leave a message under way that nobody receives."""
    if comm.Get_rank() == 1:
        comm.isend("stale", 0)


def hears(comm: Any) -> str:
    """Receive one message from rank 1."""
    if comm.Get_rank() == 1:
        comm.send("fresh", 0)
        return ""
    return comm.recv(source=1)


def uses(comm: Any) -> float:
    """Use some CPU time in every rank."""
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    return time.process_time()


def grows(comm: Any, size: int) -> bytes:
    """Return something large from every rank."""
    return bytes([comm.Get_rank()]) * size


def sleeps(comm: Any, seconds: float) -> None:
    """Sleep."""
    time.sleep(seconds)


def hangs(comm: Any, file: str) -> None:
    """Say that it is there, and wait inside MPI for ever."""
    if comm.Get_rank() == 0:
        with open(file, "w"):
            pass
    comm.recv(source=0, tag=77)


def needs(comm: Any, size: int) -> int:
    """Take some memory."""
    return len(bytearray(size))


def forks(comm: Any) -> int:
    """Come back twice."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
    return comm.Get_rank()
