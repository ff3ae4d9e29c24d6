"""The heat equation on a square, its rows divided among MPI ranks that exchange the rows at their borders.

u_t = u_xx + u_yy on the unit square, u = 0 on its edge, from u = sin(πx) sin(πy): exactly, that decays as
exp(-2π²t). Explicit steps of the five-point scheme.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

import pilot

if TYPE_CHECKING:
    from mpi4py import MPI


def step_length(n: int) -> float:
    """Return a stable time step for n × n points inside the square."""
    return 0.2 / (n + 1) ** 2


def mine(n: int, rank: int, size: int) -> tuple[int, int]:
    """Return which of the n rows a rank has: from the first to before the second; they differ by one row at most."""
    return n * rank // size, n * (rank + 1) // size


def initial(n: int, first: int, last: int) -> NDArray[np.float64]:
    """Return rows `first` to `last` of the first state, with a border all around."""
    points = np.arange(n + 2) / (n + 1)
    rows = points[first : last + 2]
    state = np.outer(np.sin(math.pi * rows), np.sin(math.pi * points))
    state[:, [0, -1]] = 0.0
    if first == 0:
        state[0] = 0.0
    if last == n:
        state[-1] = 0.0
    return state


def exchange(state: NDArray[np.float64], comm: MPI.Intracomm) -> None:
    """Fill the border rows with those of the neighbours."""
    from mpi4py import MPI

    rank, size = comm.Get_rank(), comm.Get_size()
    above = rank - 1 if rank > 0 else MPI.PROC_NULL
    below = rank + 1 if rank < size - 1 else MPI.PROC_NULL
    comm.Sendrecv(state[1], above, 0, state[-1], below, 0)
    comm.Sendrecv(state[-2], below, 1, state[0], above, 1)


@pilot.task(ranks=2, walltime="10m", tags=["heat"])
def solve(n: int, steps: int, comm: MPI.Intracomm | None) -> NDArray[np.float64] | None:
    """Return the state after so many steps, n × n points; None on all ranks but the first.

    Args:
        n: points inside the square along each axis.
        steps: of `step_length`.
        comm: of the ranks that share the work; None: this process does it alone.
    """
    rank, size = (0, 1) if comm is None else (comm.Get_rank(), comm.Get_size())
    first, last = mine(n, rank, size)
    state = initial(n, first, last)
    weight = step_length(n) * (n + 1) ** 2
    for _ in range(steps):
        if comm is not None:
            exchange(state, comm)
        inner = state[1:-1, 1:-1]
        around = state[:-2, 1:-1] + state[2:, 1:-1] + state[1:-1, :-2] + state[1:-1, 2:]
        inner += weight * (around - 4 * inner)
    own = np.ascontiguousarray(state[1:-1, 1:-1])
    if comm is None:
        return own
    whole = np.empty((n, n)) if rank == 0 else None
    counts = [n * (end - begin) for begin, end in (mine(n, other, size) for other in range(size))]
    comm.Gatherv(own, (whole, counts) if rank == 0 else None, root=0)
    return whole


def decay(n: int, steps: int) -> float:
    """Return by what the exact solution has shrunk at that time."""
    return math.exp(-2 * math.pi**2 * steps * step_length(n))
