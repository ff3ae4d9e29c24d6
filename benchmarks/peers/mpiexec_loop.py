"""The floor without a pilot: one `mpiexec -n 2` per task, each starting two Python processes that join an MPI program.

No queue and no record; the only result is a line of output.
"""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from _harness import BenchmarkError, Settings, Workload, check_values, last_line, main

PROGRAM = "import sys; from mpi4py import MPI; MPI.COMM_WORLD.rank or print(sys.argv[1])"
ONE = "mpiexec of the MPICH wheel, one at a time on both cores"
TWO = "mpiexec of the MPICH wheel, two at a time: four ranks on two cores"


def launch(settings: Settings, index: int) -> int:
    """Run one MPI program of two ranks and return the number that it printed.

    Raises:
        BenchmarkError: it failed.
    """
    launcher = Path(sys.executable).with_name("mpiexec")
    argv = [str(launcher), "-n", "2", sys.executable, "-c", PROGRAM, str(index)]
    log = settings.folder / f"{index}.err"
    with log.open("wb") as errors:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, check=False)
    if done.returncode != 0:
        raise BenchmarkError(f"mpiexec -n 2 ended with code {done.returncode}: {last_line(log)}")
    return int(done.stdout)


def loop(settings: Settings, at_once: int) -> dict[str, Any]:
    """Run all programs, so many at a time."""
    with ThreadPoolExecutor(at_once) as threads:
        list(threads.map(lambda index: launch(settings, index), range(at_once)))
        start = time.perf_counter()
        values = list(threads.map(lambda index: launch(settings, index), range(settings.tasks)))
        seconds = time.perf_counter() - start
    check_values(values, settings.tasks)
    return {"seconds": seconds}


def one(settings: Settings) -> dict[str, Any]:
    """Run one program at a time."""
    return loop(settings, 1)


def two(settings: Settings) -> dict[str, Any]:
    """Run two programs at a time."""
    return loop(settings, 2)


if __name__ == "__main__":
    main("mpiexec-loop", "mpich", {"mpi-noop": Workload(one, 50, ONE), "mpi-noop-two": Workload(two, 50, TWO)})
