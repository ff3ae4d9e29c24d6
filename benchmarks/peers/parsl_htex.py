"""Parsl's HighThroughputExecutor: one block on this machine, set up for speed, and as it comes.

Prefetch, no encryption, no log file and no monitoring: each is as fast as Parsl's default, or faster.
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
DEFAULT = "one python_app call per task; Parsl's defaults, but for max_workers_per_node=2"


@parsl.python_app
def identity(index: int) -> int:
    """Do nothing."""
    return index


@contextmanager
def pool(settings: Settings, config: Config) -> Iterator[Callable[[int], Any]]:
    """Start the interchange and the workers, and run some tasks."""
    with parsl.load(config):
        for future in [identity(index) for index in range(4 * settings.workers)]:
            future.result()
        yield identity


def tuned(settings: Settings) -> Config:
    """Return what is fastest."""
    executor = HighThroughputExecutor(
        label="htex",
        address="127.0.0.1",
        max_workers_per_node=settings.workers,
        prefetch_capacity=100,
        encrypted=False,
        worker_logdir_root=str(settings.folder),
        provider=LocalProvider(init_blocks=1, min_blocks=1, max_blocks=1),
    )
    return Config(
        executors=[executor],
        run_dir=str(settings.folder / "runinfo"),
        strategy="none",
        usage_tracking=0,
        initialize_logging=False,
    )


def default(settings: Settings) -> Config:
    """Return what a user gets who sets nothing but the number of workers."""
    return Config(executors=[HighThroughputExecutor(max_workers_per_node=settings.workers)])


def noop(settings: Settings) -> dict[str, Any]:
    """Submit all tasks, then take all results."""
    return burst_on(settings, tuned(settings))


def noop_default(settings: Settings) -> dict[str, Any]:
    """Do the same with Parsl's defaults."""
    return burst_on(settings, default(settings))


def burst_on(settings: Settings, config: Config) -> dict[str, Any]:
    """Submit all tasks, then take all results."""
    with pool(settings, config) as submit:
        return burst(lambda tasks: [submit(index) for index in range(tasks)], settings.tasks)


def one(settings: Settings) -> dict[str, Any]:
    """Submit one task at a time to idle workers."""
    with pool(settings, tuned(settings)) as submit:
        return latency(lambda index: submit(index).result(), settings.tasks)


if __name__ == "__main__":
    table = {
        "noop": Workload(noop, 10_000, NOTES),
        "noop-default": Workload(noop_default, 10_000, DEFAULT),
        "latency": Workload(one, 50, NOTES),
    }
    main("parsl-htex", "parsl", table)
