"""A task's share of its node, taken by the child for as long as the task runs: CPUs, threads, GPUs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator

from pilot.executors.run.scrub import MARK
from pilot.model import RankPlace, Work
from pilot.states import Kind


def set_cpus(pid: int, cpus: Collection[int]) -> None:
    """Bind all threads of a process; those it starts later inherit that, as do processes.

    Raises:
        OSError: this node has none of these CPUs, or the process may not use them, or is gone.
    """
    for thread in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread), cpus)


def plain_place(work: Work) -> RankPlace | None:
    """Return where a task that is not told of MPI runs; None: on its slot's own cores."""
    return work.place.ranks[0] if work.place is not None and work.ranks is None else None


class Share:
    """Gives the child's process, one task after the other, what the task's placement says.

    Args:
        gpu_variable: tells a process its GPUs; empty: there are none.
    """

    def __init__(self, gpu_variable: str) -> None:
        self._gpu_variable = gpu_variable
        self._given: tuple[str, ...] | None = None
        """GPUs that functions of this process were given; None: no function has run."""

    def fits(self, work: Work) -> bool:
        """Return whether this process may run the task: what uses GPUs looks once, which ones these are."""
        if not self._gpu_variable or work.kind is not Kind.FUNCTION or work.isolated:
            return True
        place = plain_place(work)
        gpus = () if place is None else place.gpus
        if self._given is None:
            self._given = gpus
        return self._given == gpus

    def variables(self, work: Work, base: dict[str, str]) -> dict[str, str]:
        """Return the variables of a task that has a place of its own.

        Args:
            base: the child's environment; a number of threads that is the user's stands.
        """
        place = plain_place(work)
        if place is None:
            return {}
        threads = {"OMP_NUM_THREADS": str(work.cores), MARK: str(work.cores)} if MARK in base else {}
        return threads | ({self._gpu_variable: ",".join(place.gpus)} if self._gpu_variable else {})

    @contextlib.contextmanager
    def cpus(self, work: Work) -> Iterator[None]:
        """Bind this process to the task's CPUs and afterwards to what it had before.

        A task that cannot be bound runs all the same; its output says so.
        """
        place = plain_place(work)
        if place is None or not place.cpus:
            yield
            return
        before = os.sched_getaffinity(0)
        try:
            set_cpus(os.getpid(), place.cpus)
        except OSError as error:
            shown = ",".join(map(str, place.cpus))
            os.write(2, f"pilot: cannot be bound to CPUs {shown}: {error.strerror}; it runs unbound\n".encode())
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # another cpuset by now: nothing to go back to
                set_cpus(os.getpid(), before)
