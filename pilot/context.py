"""What a running task can ask about itself, and where the files are that values name.

A child sets the context before each task and clears it afterwards; `pilot.current` reads it. Imports
nothing but the errors, so that every layer may use it.
"""

from __future__ import annotations

from _thread import _local  # as `threading` has it, which children need not import
from typing import Any, NamedTuple

from pilot.errors import PilotError


class Context(NamedTuple):
    """Where and as what the present task runs.

    Args:
        task: the task's id.
        attempt: number of this execution, from 1.
        name: what the submitter called the task.
        workdir: absolute path of the directory in which the task began.
        slot: number of the slot in its pool.
        rank: MPI rank of the process that supervises it.
        host: name of the node.
        comm: communicator of an MPI function, else None.
    """

    task: str
    attempt: int
    name: str
    workdir: str
    slot: int
    rank: int
    host: str
    comm: Any = None


class _Here(_local):
    """What each thread has of its own."""

    repository: Any = None
    """The object repository for which values are encoded and decoded: files in them are kept and found there.

    A child sets it once; a program, which may have several projects open, for each value.
    """


here = _Here()


_current: Context | None = None


def current() -> Context:
    """Return the context of the task that this process runs now.

    Raises:
        PilotError: no task runs here, e.g. in a script, or after the task ended (a thread it left behind).
    """
    if _current is None:
        raise PilotError("asked for the current task outside of one: pilot.current() works only while a task runs")
    return _current


def enter(context: Context | None) -> None:
    """Make `context` the present one; None says that no task runs. Only a child calls this."""
    global _current
    _current = context
