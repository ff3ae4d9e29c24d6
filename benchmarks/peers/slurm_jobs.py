"""Slurm without a pilot: each task is a job, an element of an array, or a step of an allocation.

Each run is on a new Slurm. Output is not kept; what is kept of a task is its row in Slurm's database.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import _slurm
from _harness import BenchmarkError, Settings, Workload, main

JOB = ("--parsable", "--ntasks=1", "--output=/dev/null", "--wrap", "exec /bin/true")
ENDS = "until squeue, asked once a second, shows none"
ONE = f"one sbatch after the other from one process, {ENDS}"
ARRAY = f"one sbatch --array, {ENDS}"
STEPS = "one srun after the other in an allocation of 4 nodes"
EIGHT = "srun in an allocation of 4 nodes, eight at a time"


def jobs(submit: Callable[[int], object]) -> Callable[[Settings], dict[str, Any]]:
    """Return what times jobs from the first submission until all are over."""

    def measure(settings: Settings) -> dict[str, Any]:
        with _slurm.cluster():
            with _slurm.watched() as load:
                start = time.perf_counter()
                submit(settings.tasks)
                submitted = time.perf_counter() - start
                _slurm.await_over()
                seconds = time.perf_counter() - start
            check("sim_job_table", settings.tasks)
        return {"seconds": seconds, "submitted_s": submitted, **load.fields}

    return measure


def one_by_one(tasks: int) -> None:
    """Submit a job for each task."""
    for _ in range(tasks):
        _slurm.run("sbatch", *JOB)


def array(tasks: int) -> None:
    """Submit one job array."""
    _slurm.run("sbatch", f"--array=1-{tasks}", *JOB)


def steps(at_once: int) -> Callable[[Settings], dict[str, Any]]:
    """Return what times steps, so many at a time, from asking for the nodes; `up_rate_per_s` is from having them."""

    def measure(settings: Settings) -> dict[str, Any]:
        with _slurm.cluster():
            with _slurm.watched() as load, ThreadPoolExecutor(at_once) as threads:
                start = time.perf_counter()
                said = _slurm.run("salloc", "--no-shell", f"--nodes={_slurm.NODES}", "--exclusive")
                granted = re.search(r"Granted job allocation (\d+)", said)
                if granted is None:
                    raise BenchmarkError(f"salloc gave no allocation: {said!r}")
                up = time.perf_counter()
                step = ("--jobid", granted[1], "--nodes=1", "--ntasks=1", "--exact", "--overlap", "/bin/true")
                list(threads.map(lambda _: _slurm.run("srun", *step), range(settings.tasks)))
                end = time.perf_counter()
                _slurm.run("scancel", granted[1])
            check("sim_step_table", settings.tasks)
        return {
            "seconds": end - start, "start_s": up - start, "up_rate_per_s": settings.tasks / (end - up), **load.fields,
        }  # fmt: skip

    return measure


def check(table: str, tasks: int) -> None:
    """Refuse a measurement after which the database does not know all tasks, and that they went well.

    Raises:
        BenchmarkError: one is missing, or failed.
    """
    with_exit_code_0 = f"{table} WHERE exit_code = 0 AND time_end > 0 AND state = 3"
    done = _slurm.count(with_exit_code_0)
    if done < tasks:
        raise BenchmarkError(f"{done} of {tasks} tasks completed, by Slurm's database")


CPUS = _slurm.NODES * _slurm.CPUS

if __name__ == "__main__":
    main(
        "slurm",
        None,
        {
            "slurm-sbatch": Workload(jobs(one_by_one), 1_000, ONE, CPUS),
            "slurm-array": Workload(jobs(array), 1_000, ARRAY, CPUS),
            "slurm-steps": Workload(steps(1), 1_000, STEPS, CPUS),
            "slurm-steps-eight": Workload(steps(8), 1_000, EIGHT, CPUS),
        },
    )
