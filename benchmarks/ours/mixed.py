"""Tasks of mixed widths and lengths: how much longer they take together than the best that is possible."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from _harness import Settings, Workload, check_values, main
from _mixed import SLOTS, TASKS, WIDTHS, Job, fields, jobs
from _rig import NOTES, RESULT_S, ready

import pilot
from pilot.future import Future

if TYPE_CHECKING:
    from mpi4py import MPI


@pilot.task
def alone(index: int, seconds: float) -> int:
    """Take a slot and next to none of a processor."""
    time.sleep(seconds)
    return index


@pilot.task(ranks=2)
def together(index: int, seconds: float, comm: MPI.Intracomm) -> int:
    """Take the slots of all ranks; these end at once."""
    time.sleep(seconds)
    return index


def submit(job: Job) -> Future:
    """Submit one task of the workload: a function, or an MPI function if it is wider than a slot."""
    if job.width == 1:
        return alone.with_options(walltime=job.walltime_s).submit(job.number, job.length_s)
    task = together.with_options(ranks=job.width, walltime=job.walltime_s)
    return task.submit(job.number, job.length_s)


def mixed(settings: Settings) -> dict[str, Any]:
    """Submit all tasks one by one in the workload's order, then take all results."""
    work = jobs(settings.tasks, settings.workers)
    with ready(settings):
        for future in [submit(Job(0, min(width, settings.workers), 0.0)) for width in WIDTHS]:
            future.result(RESULT_S)
        start = time.perf_counter()
        values = [future.result(RESULT_S) for future in [submit(job) for job in work]]
        seconds = time.perf_counter() - start
    check_values(values, settings.tasks)
    return fields(work, settings.workers, seconds)


if __name__ == "__main__":
    notes = NOTES + "; narrow tasks in children, wide ones MPI functions in the ranks; walltime of each task given"
    main("pilot", "hpc-pilot", {"mixed": Workload(mixed, TASKS, notes, workers=SLOTS)})
