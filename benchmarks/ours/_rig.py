"""What our scripts measure on: a project in the run's folder, its embedded server, and pilots that are cleaned up.

Everything goes the way of a user: `pilot.open`, and the start of a pilot that `pilot up` takes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from _harness import BenchmarkError, Settings, check_values, wait_until

import pilot
from pilot import launch, signing
from pilot.client import Project
from pilot.config import ProjectConfig, create_project
from pilot.errors import PilotDied
from pilot.executors.batch import local
from pilot.executors.run.orphans import kill_orphans
from pilot.store import access
from pilot.store.local import LocalServer

UP_S = 90.0
DRAIN_S = 20.0
RESULT_S = 60.0
"""How long one result may take to come; the run as a whole has its own deadline."""

NOTES = "embedded mongod, journaled, full signed records"


@pilot.task
def identity(index: int) -> int:
    """Do nothing."""
    return index


@contextmanager
def project(settings: Settings, name: str = "project") -> Iterator[ProjectConfig]:
    """Make a project with its embedded server; at the end the server is stopped."""
    root = settings.folder / name
    root.mkdir()
    config = create_project(root)
    signing.create_key(config.key_file)
    try:
        access.create(config)
        yield config
    finally:
        LocalServer(config.store_folder).stop(deadline_s=30.0)


@contextmanager
def pool(config: ProjectConfig, slots: int) -> Iterator[launch.Local]:
    """Keep a pilot up for the length of the block, which begins when it takes work."""
    up = launch.start(config, slots=slots, slot_cores=1)
    try:
        try:
            with access.store_of(config) as store:
                launch.await_up(store, up, UP_S)
        except PilotDied as exc:
            raise BenchmarkError(f"{exc}: {last_words(up)}") from exc
        yield up
    finally:
        end(up)


def last_words(up: launch.Local) -> str:
    """Return the end of the pilot's log, for a reason that fits on one line."""
    return " ".join(" ".join(up.last_words()[-3:]).split())[-400:] or "its logs are empty"


def end(up: launch.Local) -> None:
    """Drain a pilot; what is left of it after `DRAIN_S` is killed."""
    local.stop(up.pid, up.started)
    deadline = time.monotonic() + DRAIN_S
    while up.alive and time.monotonic() < deadline:
        time.sleep(0.02)
    if up.alive:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(up.pid, signal.SIGKILL)
        for number in range(1, up.starts + 1):
            kill_orphans("PILOT_POOL", f"{up.id}.{number}", grace_s=0.0)


@contextmanager
def ready(settings: Settings) -> Iterator[Project]:
    """Open a project whose pilot has run some tasks already; its slots are `settings.workers`."""
    with project(settings) as config, pool(config, settings.workers) as up, pilot.open(config.root) as opened:
        try:
            warm_up(settings.workers)
            yield opened
        except TimeoutError as exc:
            raise BenchmarkError(f"no result within {RESULT_S:g} s: {last_words(up)}") from exc


def warm_up(slots: int) -> None:
    """Have some tasks run, so that the slots' children are up and know the function."""
    futures = identity.map(range(4 * slots))
    check_values([future.result(RESULT_S) for future in futures], 4 * slots)


def await_idle(opened: Project) -> None:
    """Wait until no task is leased and none is ready, so that what a run has caused is over."""
    tasks = opened.store.tasks
    states = {"state": {"$in": ["ready", "leased", "waiting"]}}
    wait_until(lambda: tasks.count_documents(states, limit=1) == 0, "the end of the last task", RESULT_S)
