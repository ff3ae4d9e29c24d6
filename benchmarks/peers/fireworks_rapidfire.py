"""FireWorks: `rapidfire` worker processes on a MongoDB server of their own.

The server is a standalone one with its defaults, as FireWorks' documentation sets it up; FireWorks does not
ask it to wait for the journal.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sysconfig
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

from _harness import BenchmarkError, Settings, Workload, last_line, main, process, wait_until
from fireworks import Firework, FWorker, LaunchPad, PyTask, Workflow
from fireworks.core.rocket_launcher import rapidfire
from pymongo import MongoClient, monitoring
from pymongo.errors import PyMongoError

NOTES = "bulk_add_wfs, PyTask, one rapidfire process per worker, standalone MongoDB 6.0.5; "
DEPTH_NOTES = "rate over 100 tasks or 25 s, first of 200 queued tasks, then of so many; "
SPAWN = multiprocessing.get_context("spawn")
DATABASE = "fireworks"
SHALLOW, WINDOW, WINDOW_S = 200, 100, 25.0


class CountCommands(monitoring.CommandListener):
    """Counts the commands that this process sends to the server."""

    def __init__(self, counter: Synchronized[int]) -> None:
        self.counter = counter

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        """Count one command."""
        with self.counter.get_lock():
            self.counter.value += 1

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        """Counted when it started."""

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        """Counted when it started."""


@dataclass(frozen=True)
class Service:
    """A running server with an empty FireWorks database."""

    port: int
    launchpad: LaunchPad
    folder: Path

    def submit(self, tasks: int, *, together: bool = False) -> None:
        """Insert `tasks` single-task workflows in bulk, or `together` as one workflow without dependencies."""
        task = PyTask(func="builtins.abs", args=[1])
        fireworks = [Firework([task]) for _ in range(tasks)]
        if together:
            self.launchpad.add_wf(Workflow(fireworks))
        else:
            self.launchpad.bulk_add_wfs(fireworks)

    def completed(self) -> int:
        """Count the tasks that have ended well."""
        done: int = self.launchpad.fireworks.count_documents({"state": "COMPLETED"})
        return done

    def wait_completed(self, count: int, timeout_s: float) -> None:
        """Wait until `count` tasks in all have ended well."""
        wait_until(lambda: self.completed() >= count, f"{count} completed FireWorks", timeout_s)


@contextmanager
def service(settings: Settings) -> Iterator[Service]:
    """Start mongod on a free loopback port with an empty folder, and make FireWorks' indexes."""
    mongod = Path(sysconfig.get_path("purelib")) / "fiftyone" / "db" / "bin" / "mongod"
    data, log = settings.folder / "db", settings.folder / "mongod.log"
    data.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mongod.chmod(0o755)
    argv = [str(mongod), "--dbpath", str(data), "--port", str(port), "--bind_ip", "127.0.0.1", "--nounixsocket"]
    client: MongoClient[dict[str, Any]] = MongoClient(port=port, serverSelectionTimeoutMS=200)
    with process(argv, log) as server, client:

        def answers() -> bool:
            if server.poll() is not None:
                raise BenchmarkError(f"mongod ended with code {server.returncode}: {last_line(log)}")
            try:
                return bool(client.admin.command("ping"))
            except PyMongoError:
                return False

        wait_until(answers, "mongod", 30)
        launchpad = LaunchPad(host="127.0.0.1", port=port, name=DATABASE, strm_lvl="CRITICAL")
        launchpad.reset("", require_password=False)
        try:
            yield Service(port, launchpad, settings.folder)
        finally:
            launchpad.connection.close()


@contextmanager
def workers(store: Service, count: int, counter: Synchronized[int] | None = None) -> Iterator[None]:
    """Keep `count` rapidfire processes pulling tasks for the length of the block."""
    with ExitStack() as stack:
        for number in range(count):
            folder = store.folder / f"worker-{number}"
            folder.mkdir(exist_ok=True)
            worker = SPAWN.Process(target=work, args=(store.port, str(folder), counter), daemon=True)
            worker.start()
            stack.callback(worker.join)
            stack.callback(worker.kill)
        yield


def work(port: int, folder: str, counter: Synchronized[int] | None) -> None:
    """Pull and run tasks for ever; look again 20 ms after finding the queue empty (FireWorks' default: 60 s)."""
    if counter is not None:
        monitoring.register(CountCommands(counter))
    os.chdir(folder)
    launchpad = LaunchPad(host="127.0.0.1", port=port, name=DATABASE, strm_lvl="CRITICAL")
    rapidfire(launchpad, FWorker(), m_dir=folder, nlaunches=-1, sleep_time=0.02, strm_lvl="CRITICAL")


def warm_up(store: Service, count: int) -> None:
    """Have the workers run some tasks each, so that all of them are up."""
    before = store.completed()
    store.submit(10 * count)
    store.wait_completed(before + 10 * count, 60)


def noop(settings: Settings) -> dict[str, Any]:
    """Time the tasks from bulk submission to the last completion, and count the workers' database commands."""
    counter: Synchronized[int] = SPAWN.Value("q", 0)
    with service(settings) as store, workers(store, settings.workers, counter):
        warm_up(store, settings.workers)
        done, commands = store.completed(), counter.value
        start = time.perf_counter()
        store.submit(settings.tasks)
        store.wait_completed(done + settings.tasks, 300)
        seconds = time.perf_counter() - start
        commands = counter.value - commands
    return {"seconds": seconds, "db_commands_per_task": commands / settings.tasks}


def queue_depth(settings: Settings) -> dict[str, Any]:
    """Compare the rate with few tasks queued with the rate with `tasks` queued, each over a short window."""
    return compare_rates(settings, together=False)


def workflow_size(settings: Settings) -> dict[str, Any]:
    """Compare the rate in a small workflow with the rate in one of `tasks` tasks, each over a short window."""
    return compare_rates(settings, together=True)


def compare_rates(settings: Settings, *, together: bool) -> dict[str, Any]:
    """Measure with `SHALLOW` tasks queued and then with `settings.tasks`; the ratio is the second over the first."""
    with service(settings) as store:
        with workers(store, settings.workers):
            warm_up(store, settings.workers)
            store.submit(SHALLOW, together=together)
            shallow, _, _ = window_rate(store)
            store.wait_completed(store.launchpad.fireworks.count_documents({}), 60)
        start = time.perf_counter()
        store.submit(settings.tasks, together=together)
        fill_s = time.perf_counter() - start
        with workers(store, settings.workers):
            store.wait_completed(store.completed() + 2 * settings.workers, 30)
            deep, seconds, ended = window_rate(store)
    return {
        "seconds": seconds,
        "rate_per_s": deep,
        "measured_tasks": ended,
        "rate_shallow_per_s": shallow,
        "ratio": deep / shallow,
        "fill_s": fill_s,
    }


def window_rate(store: Service) -> tuple[float, float, int]:
    """Watch until `WINDOW` tasks have ended or `WINDOW_S` are over: rate, seconds, tasks."""
    before = store.completed()
    start = time.perf_counter()
    ended = 0
    while ended < WINDOW and time.perf_counter() - start < WINDOW_S:
        time.sleep(0.05)
        ended = store.completed() - before
    seconds = time.perf_counter() - start
    return ended / seconds, seconds, ended


if __name__ == "__main__":
    main(
        "fireworks",
        "FireWorks",
        {
            "noop": Workload(noop, 300, NOTES + "idle poll 20 ms"),
            "queue-depth": Workload(queue_depth, 5_000, DEPTH_NOTES + "workflows of one task"),
            "workflow-size": Workload(workflow_size, 5_000, DEPTH_NOTES + "all in one workflow"),
        },
    )
