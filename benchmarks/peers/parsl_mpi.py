"""Parsl's MPIExecutor: one block on this machine, each task an MPI program that its launch prefix starts.

It hands out whole nodes, which it takes from the batch system's list; here that list names this machine once for each
node that is pretended.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from typing import Any

import parsl
from _harness import BenchmarkError, Settings, Workload, check_values, main
from _mixed import SLOTS, TASKS, Job, fields, jobs
from parsl.config import Config
from parsl.executors import MPIExecutor
from parsl.launchers import SimpleLauncher
from parsl.providers import LocalProvider

SAID = "local block, mpiexec of the MPICH wheel, logging off; "
ONE = SAID + "bash_app with mpiexec -n 2, one pretended node of two ranks"
TWO = SAID + "bash_app with mpiexec -n 2, two pretended nodes of two ranks: four ranks on two cores"
MIXED = SAID + "python_app that sleeps in the worker, one pretended node per slot, num_nodes as wide as the task"
PROGRAM = "from mpi4py import MPI; MPI.COMM_WORLD.rank or print({index})"
STALLED_S = 20.0


@parsl.bash_app
def program(index: int, code: str, stdout: str = "", parsl_resource_specification: dict[str, int] = {}) -> str:  # noqa: B006
    """Start an MPI program of two ranks."""
    return f"$PARSL_MPI_PREFIX python -c '{code}'"


@parsl.python_app
def nap(index: int, seconds: float, parsl_resource_specification: dict[str, int] = {}) -> int:  # noqa: B006
    """Take a worker, and the nodes that were asked for."""
    import time

    time.sleep(seconds)
    return index


@contextmanager
def pool(settings: Settings, nodes: int) -> Iterator[None]:
    """Start the interchange and as many workers as there are pretended nodes."""
    hosts = settings.folder / "nodes"
    hosts.write_text("localhost\n" * nodes)
    os.environ["PBS_NODEFILE"] = str(hosts)
    executor = MPIExecutor(
        label="mpi",
        address="127.0.0.1",
        max_workers_per_block=nodes,
        mpi_launcher="mpiexec",
        worker_logdir_root=str(settings.folder),
        provider=LocalProvider(launcher=SimpleLauncher(), init_blocks=1, min_blocks=1, max_blocks=1),
    )
    config = Config(
        executors=[executor],
        run_dir=str(settings.folder / "runinfo"),
        strategy="none",
        usage_tracking=0,
        initialize_logging=False,
    )
    with parsl.load(config):
        yield


def programs(settings: Settings, nodes: int) -> dict[str, Any]:
    """Submit all programs, wait for them, and read what they printed."""

    def run(count: int) -> list[int]:
        outputs = [settings.folder / f"{index}.out" for index in range(count)]
        futures = [
            program(
                index,
                PROGRAM.format(index=index),
                stdout=f"{output}",
                parsl_resource_specification={"num_nodes": 1, "ranks_per_node": 2, "num_ranks": 2},
            )
            for index, output in enumerate(outputs)
        ]
        for future in futures:
            future.result()
        values = [int(output.read_text()) for output in outputs]
        for output in outputs:
            output.unlink()
        return values

    with pool(settings, nodes):
        run(nodes)
        start = time.perf_counter()
        values = run(settings.tasks)
        seconds = time.perf_counter() - start
    check_values(values, settings.tasks)
    return {"seconds": seconds}


def one(settings: Settings) -> dict[str, Any]:
    """Run one program at a time."""
    return programs(settings, 1)


def two(settings: Settings) -> dict[str, Any]:
    """Run two programs at a time."""
    return programs(settings, 2)


def mixed(settings: Settings) -> dict[str, Any]:
    """Submit the workload of mixed shapes and wait for all results."""
    work = jobs(settings.tasks, settings.workers)

    def submit(job: Job) -> Future[Any]:
        wanted = {"num_nodes": job.width, "ranks_per_node": 1}
        return nap(job.number, job.length_s, parsl_resource_specification=wanted)

    with pool(settings, settings.workers):
        await_all(settings, [submit(Job(0, 1, 0.0)) for _ in range(settings.workers)])
        start = time.perf_counter()
        futures = [submit(job) for job in work]
        await_all(settings, futures)
        seconds = time.perf_counter() - start
        check_values([future.result() for future in futures], settings.tasks)
    return fields(work, settings.workers, seconds)


def await_all(settings: Settings, futures: Sequence[Future[Any]]) -> None:
    """Wait for all; give up when nothing has ended for `STALLED_S`, which no task lasts.

    Raises:
        BenchmarkError: results are missing; the message has what the executor's manager says of it.
    """
    left = set(futures)
    while left:
        ended, left = wait_for(left, timeout=STALLED_S, return_when="FIRST_COMPLETED")
        if not ended:
            logs = [path.read_text(errors="replace") for path in settings.folder.rglob("manager.log")]
            said = [line for log in logs for line in log.splitlines() if "Error: " in line]
            reason = f"; its manager.log: {said[-1]}" if said else ""
            raise BenchmarkError(f"{len(left)} of {len(futures)} results were lost by the MPIExecutor{reason}")


if __name__ == "__main__":
    main(
        "parsl-mpi",
        "parsl",
        {
            "mpi-noop": Workload(one, 50, ONE),
            "mpi-noop-two": Workload(two, 50, TWO),
            "mixed": Workload(mixed, TASKS, MIXED, workers=SLOTS),
        },
    )
