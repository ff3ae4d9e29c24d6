"""HyperQueue through its Python package: server and worker on this machine, no journal.

The PyPI package carries the server, the worker and the client as one library, but no `hq` program, so there
is no command-line array job here: one job holds one program per task.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from _harness import BenchmarkError, Settings, Workload, main
from hyperqueue import Job, LocalCluster
from hyperqueue.client import Client
from hyperqueue.cluster import WorkerConfig

NOTES = "Python API, one job, LocalCluster, no journal; rate up to the last progress report before the end; "


@contextmanager
def cluster(settings: Settings) -> Iterator[Client]:
    """Start the server and one worker with `workers` cores, and run one task."""
    worker = WorkerConfig(cores=settings.workers)
    with LocalCluster(server_dir=str(settings.folder / "server"), worker_config=worker) as local:
        client = local.client()
        run_job(client, settings, 1, {"stdout": None, "stderr": None}, lambda _jobs: None)
        yield client


def run_job(
    client: Client,
    settings: Settings,
    tasks: int,
    output: dict[str, None],
    progress: Callable[[dict[int, dict[str, Any]]], None],
) -> None:
    """Submit one job of `tasks` commands and wait for its end.

    Raises:
        BenchmarkError: a task failed.
    """
    job = Job(default_workdir=settings.folder / "work")
    for _ in range(tasks):
        job.program(["/bin/true"], **output)
    submitted = client.submit(job)
    # Client.wait_for_jobs would draw a progress bar; its connection takes the callback.
    if client.connection.wait_for_jobs([submitted.id], progress):
        raise BenchmarkError("a /bin/true failed under HyperQueue")


def measure(settings: Settings, output: dict[str, None]) -> dict[str, Any]:
    """Time the job from building it; `waited_s` is when the client came back.

    The client learns of progress once a second, so the time until it returns is up to a second too long. Each
    report says how many tasks have ended: the rate is taken at the last report before the end.
    """
    reports: list[tuple[float, int]] = []

    with cluster(settings) as client:
        start = time.perf_counter()

        def progress(jobs: dict[int, dict[str, Any]]) -> None:
            reports.append((time.perf_counter() - start, sum(job["finished"] for job in jobs.values())))

        run_job(client, settings, settings.tasks, output, progress)
        waited = time.perf_counter() - start
    rate = max(done / at for at, done in [*reports[-2:], (waited, settings.tasks)])
    return {"seconds": settings.tasks / rate, "waited_s": waited}


def silent(settings: Settings) -> dict[str, Any]:
    """Run the commands without keeping their output."""
    return measure(settings, {"stdout": None, "stderr": None})


def files(settings: Settings) -> dict[str, Any]:
    """Run the commands as HyperQueue does by default: a file for each task's stdout, and one for its stderr."""
    return measure(settings, {})


if __name__ == "__main__":
    os.environ["TQDM_DISABLE"] = "1"
    main(
        "hyperqueue",
        "hyperqueue",
        {
            "true": Workload(silent, 3_000, NOTES + "output not kept"),
            "true-output": Workload(files, 3_000, NOTES + "two output files per task (its default)"),
        },
    )
