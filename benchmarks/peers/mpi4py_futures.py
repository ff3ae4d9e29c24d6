"""mpi4py.futures: MPIPoolExecutor under `mpiexec -n workers+1`, rank 0 submitting.

The script starts itself a second time inside the MPI program; rank 0 leaves its measurement in a file.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from _harness import BenchmarkError, Settings, Workload, burst, last_line, latency, main, process

NOTES = "submit per task, chunk size 1, MPICH wheel, idle ranks back off; keeps nothing and survives nothing"
INSIDE = "PEER_BENCHMARK_INSIDE_MPI"


def identity(index: int) -> int:
    """Do nothing."""
    return index


def launch(settings: Settings) -> dict[str, Any]:
    """Start the MPI program, wait for it, and read what rank 0 measured."""
    log, answer = settings.folder / "mpiexec.log", settings.folder / "measured.json"
    launcher = Path(sys.executable).with_name("mpiexec")
    os.environ[INSIDE] = json.dumps([settings.workload, settings.tasks, settings.workers, str(answer)])
    ranks = str(settings.workers + 1)
    argv = [str(launcher), "-n", ranks, sys.executable, "-m", "mpi4py.futures", os.path.abspath(__file__)]
    with process(argv, log) as program:
        code = program.wait()
    if code != 0 or not answer.exists():
        raise BenchmarkError(f"mpiexec -n {ranks} ended with code {code}: {last_line(log)}")
    measured: dict[str, Any] = json.loads(answer.read_text())
    return measured


def inside(request: str) -> None:
    """Measure on rank 0 of the MPI program."""
    from mpi4py.futures import MPIPoolExecutor

    workload, tasks, workers, answer = json.loads(request)
    with MPIPoolExecutor() as executor:
        executor.bootup(wait=True)
        if executor.num_workers != workers:
            raise BenchmarkError(f"{executor.num_workers} MPI workers instead of {workers}")
        list(executor.map(identity, range(4 * workers)))
        if workload == "noop":
            measured = burst(lambda count: [executor.submit(identity, index) for index in range(count)], tasks)
        else:
            measured = latency(lambda index: executor.submit(identity, index).result(), tasks)
    Path(answer).write_text(json.dumps(measured))


if __name__ == "__main__":
    if INSIDE in os.environ:
        inside(os.environ[INSIDE])
    else:
        table = {"noop": Workload(launch, 20_000, NOTES), "latency": Workload(launch, 50, NOTES)}
        main("mpi4py-futures", "mpi4py", table)
