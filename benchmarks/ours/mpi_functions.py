"""MPI functions on two ranks that do nothing, from submission to result in hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from _harness import Settings, Workload, burst, check_values, main
from _observe import cost
from _rig import NOTES, RESULT_S, ready

import pilot

if TYPE_CHECKING:
    from mpi4py import MPI

RANKS = 2


@pilot.task(ranks=RANKS)
def together(index: int, comm: MPI.Intracomm) -> int:
    """Do nothing, on every rank."""
    return index


def noop(settings: Settings) -> dict[str, Any]:
    """Submit all tasks with `map`, then take all results."""
    with ready(settings) as project:
        check_values([future.result(RESULT_S) for future in together.map(range(4))], 4)
        with cost(project, settings.tasks) as spent:
            measured = burst(lambda tasks: together.map(range(tasks)), settings.tasks)
        return measured | spent.fields


if __name__ == "__main__":
    main("pilot", "hpc-pilot", {"mpi-noop": Workload(noop, 2_000, NOTES + "; both slots for each task", workers=RANKS)})
