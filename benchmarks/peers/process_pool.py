"""The standard library's ProcessPoolExecutor: no queue on disk, no records, one machine."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

from _harness import Settings, Workload, burst, latency, main

NOTES = "submit per task, fork start method; keeps nothing and survives nothing"


def identity(index: int) -> int:
    """Do nothing."""
    return index


@contextmanager
def pool(settings: Settings) -> Iterator[ProcessPoolExecutor]:
    """Start the workers and run a few tasks."""
    with ProcessPoolExecutor(settings.workers) as executor:
        list(executor.map(identity, range(4 * settings.workers)))
        yield executor


def noop(settings: Settings) -> dict[str, Any]:
    """Submit all tasks, then take all results."""
    with pool(settings) as executor:
        return burst(lambda tasks: [executor.submit(identity, index) for index in range(tasks)], settings.tasks)


def one(settings: Settings) -> dict[str, Any]:
    """Submit one task at a time to idle workers."""
    with pool(settings) as executor:
        return latency(lambda index: executor.submit(identity, index).result(), settings.tasks)


if __name__ == "__main__":
    main("process-pool", None, {"noop": Workload(noop, 50_000, NOTES), "latency": Workload(one, 50, NOTES)})
