"""Dask distributed: a LocalCluster of single-threaded worker processes, without dashboard."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dask
from _harness import Settings, Workload, check_values, latency, main
from distributed import Client, LocalCluster, wait

NOTES = "worker processes with one thread each, no dashboard; "


def identity(index: int) -> int:
    """Do nothing."""
    return index


@contextmanager
def pool(settings: Settings) -> Iterator[Client]:
    """Start scheduler and workers, and run one task per worker."""
    dask.config.set({"temporary-directory": str(settings.folder)})
    with (
        LocalCluster(
            n_workers=settings.workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            local_directory=str(settings.folder),
        ) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(settings.workers)
        wait(client.map(identity, range(4 * settings.workers), pure=False))
        yield client


def noop(settings: Settings) -> dict[str, Any]:
    """Submit with one bulk `map` and collect with one bulk `gather`, the fastest way Dask offers."""
    with pool(settings) as client:
        start = time.perf_counter()
        values = client.gather(client.map(identity, range(settings.tasks), pure=False))
        seconds = time.perf_counter() - start
    check_values(values, settings.tasks)
    return {"seconds": seconds}


def one(settings: Settings) -> dict[str, Any]:
    """Submit one task at a time to idle workers."""
    with pool(settings) as client:
        return latency(lambda index: client.submit(identity, index, pure=False).result(), settings.tasks)


if __name__ == "__main__":
    main(
        "dask-distributed",
        "distributed",
        {
            "noop": Workload(noop, 5_000, NOTES + "client.map and client.gather in bulk"),
            "latency": Workload(one, 50, NOTES + "client.submit and result"),
        },
    )
