"""RADICAL-Pilot's RAPTOR: MPI functions in the ranks of one MPIWorker on this machine.

As its tutorial "Executing MPI Tasks with RAPTOR" has it: a pilot on local.localhost, one master, one worker.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from _harness import BenchmarkError, Settings, Workload, main
from _mixed import SLOTS, TASKS, Job, fields, jobs

SAID = "one master, one MPIWorker, MPICH wheel; all tasks in one submit_tasks; "
NOOP = SAID + "both ranks for each task"
MIXED = SAID + "functions that sleep on all their ranks"
UP_S = 90
RESULTS_S = 300


def work(comm: Any, index: int, seconds: float) -> int:
    """Take the ranks for so long, which may be no time at all."""
    import time

    if seconds:
        time.sleep(seconds)
    return index


def prepare(home: Path) -> None:
    """Give RADICAL-Pilot a home and an mpiexec.

    It starts its pilot from a login shell and takes the venv off the path before it looks for mpiexec: without help
    it finds the system's, which may be of another MPI than the ranks'.
    """
    programs = home / "bin"
    programs.mkdir()
    launcher = programs / "mpiexec"
    launcher.write_text(f'#!/bin/sh\nexec {Path(sys.executable).with_name("mpiexec")} "$@"\n')
    launcher.chmod(0o755)
    (home / ".bash_profile").write_text(f"export PATH={programs}:$PATH\n")
    os.environ["HOME"] = os.environ["PWD"] = str(home)
    os.environ["VIRTUAL_ENV"] = sys.prefix


@contextmanager
def pool(settings: Settings) -> Iterator[Callable[[Sequence[Job]], float]]:
    """Start pilot, master and worker; yield what runs tasks, checks their values and returns the seconds they took."""
    prepare(settings.folder)
    import radical.pilot as rp  # it reads HOME

    function = rp.pythontask(work)
    session = rp.Session()
    try:
        pilots, tasks = rp.PilotManager(session=session), rp.TaskManager(session=session)
        pilot = pilots.submit_pilots(
            rp.PilotDescription({"resource": "local.localhost", "cores": settings.workers + 1, "runtime": 30})
        )
        tasks.add_pilots(pilot)
        if pilot.wait([rp.PMGR_ACTIVE, *rp.FINAL], timeout=UP_S) != rp.PMGR_ACTIVE:
            raise BenchmarkError(f"RADICAL-Pilot's pilot is {pilot.state} after {UP_S} s at most")
        master = pilot.submit_raptors([rp.TaskDescription({"mode": rp.RAPTOR_MASTER, "named_env": "rp"})])[0]
        worker = {"mode": rp.RAPTOR_WORKER, "ranks": settings.workers, "named_env": "rp", "raptor_class": "MPIWorker"}
        master.submit_workers([rp.TaskDescription(worker)])

        def run(wanted: Sequence[Job], deadline_s: float = RESULTS_S) -> float:
            start = time.perf_counter()
            calls = [
                {"mode": rp.TASK_FUNCTION, "ranks": job.width, "function": function(None, job.number, job.length_s)}
                for job in wanted
            ]
            submitted = master.submit_tasks([rp.TaskDescription(call) for call in calls])
            tasks.wait_tasks([task.uid for task in submitted], timeout=deadline_s)
            seconds = time.perf_counter() - start
            check(submitted, wanted)
            return seconds

        run([Job(index, 2, 0.0) for index in range(2)], UP_S)
        yield run
        master.rpc("stop")  # else its ranks are killed, and leave their shared memory
        tasks.wait_tasks([master.uid], timeout=20)
    finally:
        session.close(download=False)


def check(submitted: Sequence[Any], wanted: Sequence[Job]) -> None:
    """Refuse a measurement in which a task failed, or the value of a rank is missing.

    Raises:
        BenchmarkError: it is so.
    """
    for task, job in zip(submitted, wanted, strict=True):
        if task.state != "DONE":
            raise BenchmarkError(f"task {task.uid} is {task.state}: {task.exception or 'no reason given'}")
        if task.return_value != [job.number] * job.width:
            raise BenchmarkError(f"wrong result: task {job.number} on {job.width} ranks returned {task.return_value!r}")


def noop(settings: Settings) -> dict[str, Any]:
    """Run functions that do nothing on two ranks."""
    with pool(settings) as run:
        return {"seconds": run([Job(index, 2, 0.0) for index in range(settings.tasks)])}


def mixed(settings: Settings) -> dict[str, Any]:
    """Run the workload of mixed shapes."""
    wanted = jobs(settings.tasks, settings.workers)
    with pool(settings) as run:
        return fields(wanted, settings.workers, run(wanted))


if __name__ == "__main__":
    main(
        "radical-raptor",
        "radical.pilot",
        {"mpi-noop": Workload(noop, 600, NOOP), "mixed": Workload(mixed, TASKS, MIXED, workers=SLOTS)},
    )
