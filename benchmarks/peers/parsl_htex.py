"""Parsl's HighThroughputExecutor: one block on this machine, set up for speed.

Prefetch, no encryption, no log file and no monitoring: each is faster than Parsl's default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import parsl
from _harness import Settings, Workload, burst, latency, main
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider

NOTES = "one python_app call per task; local block, prefetch_capacity=100, encrypted=False, logging off"


@parsl.python_app
def identity(index: int) -> int:
    """Do nothing."""
    return index


@contextmanager
def pool(settings: Settings) -> Iterator[Callable[[int], Any]]:
    """Start the interchange and the workers, and run one task per worker."""
    executor = HighThroughputExecutor(
        label="htex",
        address="127.0.0.1",
        max_workers_per_node=settings.workers,
        prefetch_capacity=100,
        encrypted=False,
        worker_logdir_root=str(settings.folder),
        provider=LocalProvider(init_blocks=1, min_blocks=1, max_blocks=1),
    )
    config = Config(
        executors=[executor],
        run_dir=str(settings.folder / "runinfo"),
        strategy="none",
        usage_tracking=0,
        initialize_logging=False,
    )
    with parsl.load(config):
        for future in [identity(index) for index in range(4 * settings.workers)]:
            future.result()
        yield identity


def noop(settings: Settings) -> dict[str, Any]:
    """Submit all tasks, then take all results."""
    with pool(settings) as submit:
        return burst(lambda tasks: [submit(index) for index in range(tasks)], settings.tasks)


def one(settings: Settings) -> dict[str, Any]:
    """Submit one task at a time to idle workers."""
    with pool(settings) as submit:
        return latency(lambda index: submit(index).result(), settings.tasks)


if __name__ == "__main__":
    main("parsl-htex", "parsl", {"noop": Workload(noop, 10_000, NOTES), "latency": Workload(one, 50, NOTES)})
