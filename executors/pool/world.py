"""The MPI program as a whole: start it, check that it is one, end it in order or at once.

Exit codes of a rank are told apart for people who read a launcher's log; a pool's exit code alone never
assigns blame to a task.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from pilot.errors import PoolError, WorldSizeMismatch
from pilot.executors.pool.identity import launcher_says, rank_from_environment
from pilot.executors.pool.mpi import MPI
from pilot.executors.pool.transport import Transport

EXIT_WORLD = 81
"""The launcher and the MPI library do not fit: wrong world size, rank or library. Nothing was run."""

EXIT_ERROR = 82
"""Unhandled exception in a rank; its traceback is on stderr, and MPI aborted every rank."""

EXIT_LEFTOVER = 83
"""Ended, but a slot did not say goodbye, so the program was aborted instead of finalised. Nothing else is wrong."""

EXIT_ALONE = 84
"""A slot heard nothing from rank 0 past its deadline, or its launcher is gone."""

EXIT_STUCK = 85
"""An MPI function in a program of its own failed in some ranks, and others did not come back; their parts say so."""

EXIT_FINALIZE = 1
"""MPI's own finalize hung past its deadline (the code is `faulthandler`'s); a traceback is on stderr."""

FINALIZE_TIMEOUT_S = 30.0
LAST_WORDS_S = 0.3
"""Time for the launcher to pass on what was printed: Hydra forgets what it has not read when a rank aborts."""


@dataclass(frozen=True, slots=True)
class World:
    """A started MPI program, seen from one rank."""

    comm: MPI.Intracomm
    """A private copy of the world, for the pool's messages only."""
    messages: Transport
    """The message transport over `comm`."""
    parent: MPI.Intracomm
    """Another private copy, of which the communicators of MPI functions are made."""
    rank: int
    size: int
    library: str
    """First line of the MPI library's own description."""
    standard: tuple[int, int]
    """Version of the MPI standard."""

    def transport(self) -> Transport:
        """Return the message transport."""
        return self.messages

    def finish(self) -> None:
        """Leave MPI in order; every rank must come here, with no message unmatched."""
        self.parent.Free()
        self.comm.Free()
        finalise()

    def abort(self, code: int, why: str) -> NoReturn:
        """Say why on stderr and end every rank of the program at once."""
        abort(code, why)


def start(expected_ranks: int, doorbell: bool = True) -> World:
    """Initialise MPI as `initialise` does, and make what the ranks of a pool need.

    Waits for all ranks, inside MPI. They must be given equal arguments.

    Args:
        expected_ranks: how many ranks the launcher was asked for.
        doorbell: see `Transport`.
    """
    library = initialise(expected_ranks)
    comm, parent = MPI.COMM_WORLD.Dup(), MPI.COMM_WORLD.Dup()
    return World(
        comm, Transport(comm, doorbell), parent, comm.Get_rank(), comm.Get_size(), library, MPI.Get_version()
    )  # fmt: skip


def initialise(expected_ranks: int) -> str:
    """Initialise MPI on the main thread and check that the launcher made one program of all ranks.

    Return what the library calls itself.

    Raises:
        WorldSizeMismatch: the program has another size or this rank another number than the launcher said.
        PoolError: the MPI library cannot be called from a process with threads.
    """
    said = rank_from_environment(os.environ)
    provided = MPI.Init_thread(MPI.THREAD_FUNNELED)
    library = _library()
    rank, size = MPI.COMM_WORLD.Get_rank(), MPI.COMM_WORLD.Get_size()
    if size != expected_ranks or said not in (None, rank):
        raise WorldSizeMismatch(
            f"started an MPI program of {expected_ranks} ranks, but rank {rank} finds {size} and its launcher says "
            f"rank {said}: launcher and MPI library do not understand each other; the library is {library!r}, the "
            f"launcher set {launcher_says(os.environ)}; use the launcher of that library, or set MPI4PY_LIBMPI to the "
            "library of that launcher, or give srun the right --mpi"
        )
    if provided < MPI.THREAD_FUNNELED:
        raise PoolError(f"asked {library!r} for MPI_THREAD_FUNNELED, got level {provided}: threads are not allowed")
    return library


def finalise() -> None:
    """Leave MPI; every rank must come here soon.

    Finalize waits for all ranks inside C, so a watchdog that needs no interpreter ends the process if one of them
    never comes.
    """
    faulthandler.dump_traceback_later(FINALIZE_TIMEOUT_S, exit=True)
    MPI.Finalize()
    faulthandler.cancel_dump_traceback_later()


def abort(code: int, why: str) -> NoReturn:
    """Say why on stderr and end every rank of the program at once."""
    _complain(f"{why}\n")
    _abort(code)


def guarded(program: Callable[[], int]) -> NoReturn:
    """Run the program of one rank and exit with what it returns.

    Whatever escapes it is printed with the rank and ends every rank of the MPI program, since the others
    would wait for this one for ever. A program that left MPI in order (or never entered it) only exits.
    """
    code = EXIT_ERROR
    try:
        code = program()
    except WorldSizeMismatch as exc:
        code = EXIT_WORLD
        _complain(f"{exc}\n")
    except BaseException:  # noqa: BLE001  the one handler at the top of the process
        _complain(traceback.format_exc())
    if MPI.Is_initialized() and not MPI.Is_finalized():
        _abort(code or EXIT_ERROR)
    sys.exit(code)


def _library() -> str:
    return " ".join(MPI.Get_library_version().rstrip("\0").partition("\n")[0].split())


def _complain(text: str) -> None:
    rank = rank_from_environment(os.environ)
    with contextlib.suppress(OSError):
        sys.stderr.write(f"pool rank {'?' if rank is None else rank}: {text}")
        sys.stderr.flush()


def _abort(code: int) -> NoReturn:
    """Abort through MPI, which kills the other ranks, and make sure that this one ends."""
    faulthandler.dump_traceback_later(FINALIZE_TIMEOUT_S, exit=True)
    time.sleep(LAST_WORDS_S)
    if MPI.Is_initialized() and not MPI.Is_finalized():
        MPI.COMM_WORLD.Abort(code)
    os._exit(code)
