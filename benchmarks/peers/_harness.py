"""What the peers' scripts and ours share: arguments, the clock, clean-up, and the one JSON line on standard output."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

IDLE_PAUSE_S = 0.05
"""Pause before each task of a latency run: long enough for every peer's back-off to reach its idle state."""


class BenchmarkError(Exception):
    """A run that cannot give a number; its text is the one-line reason."""


class Result(Protocol):
    """The part of a future that a measurement needs."""

    def result(self) -> Any:
        """Wait for the task and return its value."""


@dataclass(frozen=True)
class Settings:
    """One run: how much of what, and a temporary folder that is removed afterwards."""

    workload: str
    tasks: int
    workers: int
    folder: Path


@dataclass(frozen=True)
class Workload:
    """A way to measure: `run` returns at least `seconds`; `tasks` is the size that lasts 3-15 s on 2 cores."""

    run: Callable[[Settings], dict[str, Any]]
    tasks: int
    notes: str
    workers: int = 2


def main(peer: str, distribution: str | None, workloads: Mapping[str, Workload]) -> None:
    """Run the workload named on the command line and write its JSON line; exit 1 with a reason if it fails.

    Whatever the peer itself prints goes to a log in the temporary folder: standard output is only the line.
    `distribution` is the package whose version is reported; `None` stands for the standard library.
    """
    parser = argparse.ArgumentParser(description=f"measure {peer}")
    parser.add_argument("--workload", choices=list(workloads), default=next(iter(workloads)))
    parser.add_argument("--tasks", type=_positive, help="default: as many as last 3-15 s on 2 cores")
    parser.add_argument("--workers", type=_positive, help="default: 2, unless the workload says otherwise")
    parser.add_argument("--deadline", type=_positive, default=600, metavar="S", help="give up after so many seconds")
    parser.add_argument("--debug", action="store_true", help="traceback, and the peer's own output on stderr")
    arguments = parser.parse_args()
    workload = workloads[arguments.workload]
    # A terminated run must pass through every `finally`: signals become exceptions.
    signal.signal(signal.SIGTERM, _terminated)
    signal.signal(signal.SIGALRM, _terminated)
    signal.alarm(arguments.deadline)
    try:
        with tempfile.TemporaryDirectory(prefix="peer-", ignore_cleanup_errors=True) as name:
            tasks, workers = arguments.tasks or workload.tasks, arguments.workers or workload.workers
            settings = Settings(arguments.workload, tasks, workers, Path(name).resolve())
            with _inside(settings.folder, quiet=not arguments.debug):
                measured = workload.run(settings)
    except (Exception, KeyboardInterrupt) as exc:  # noqa: BLE001 (top of the process: any failure is one line)
        if arguments.debug:
            traceback.print_exc()
        said = isinstance(exc, BenchmarkError | KeyboardInterrupt)
        reason = (str(exc) or "interrupted") if said else f"{type(exc).__name__}: {exc}"
        sys.exit(f"{peer} {arguments.workload}: {' '.join(reason.split())}")
    line = {
        "peer": peer,
        "version": metadata.version(distribution) if distribution else f"Python {platform.python_version()}",
        "workload": settings.workload,
        "tasks": settings.tasks,
        "workers": settings.workers,
        "seconds": measured["seconds"],
        "rate_per_s": settings.tasks / measured["seconds"],
        **measured,
        "notes": workload.notes,
    }
    rounded = {key: round(value, 4) if isinstance(value, float) else value for key, value in line.items()}
    sys.stdout.write(json.dumps(rounded) + "\n")


def burst(submit_all: Callable[[int], Sequence[Result]], tasks: int) -> dict[str, Any]:
    """Time `tasks` calls of the identity function, from the first submission to the last value in hand."""
    start = time.perf_counter()
    values = [future.result() for future in submit_all(tasks)]
    seconds = time.perf_counter() - start
    check_values(values, tasks)
    return {"seconds": seconds}


def check_values(values: Sequence[Any], tasks: int) -> None:
    """Refuse a measurement whose results are not exactly 0, 1, ... in the order of submission.

    Raises:
        BenchmarkError: a value is missing or wrong.
    """
    if list(values) != list(range(tasks)):
        raise BenchmarkError(f"wrong results: {len(values)} values came back for {tasks} tasks")


def latency(call: Callable[[int], Any], tasks: int) -> dict[str, Any]:
    """Time single calls on an idle pool, with a pause before each; `seconds` is the sum of the calls alone."""
    times = []
    for index in range(tasks):
        time.sleep(IDLE_PAUSE_S)
        start = time.perf_counter()
        value = call(index)
        times.append(time.perf_counter() - start)
        if value != index:
            raise BenchmarkError(f"wrong result: task {index} returned {value!r}")
    ordered = sorted(times)
    return {
        "seconds": sum(times),
        "median_ms": statistics.median(times) * 1000,
        "p90_ms": ordered[int(0.9 * (len(ordered) - 1))] * 1000,
    }


@contextmanager
def process(argv: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a helper program for the length of the block; end it with SIGTERM, after 10 s with SIGKILL."""
    with log.open("ab") as output:
        program = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield program
    finally:
        if program.poll() is None:
            program.terminate()
        try:
            program.wait(timeout=10)
        except subprocess.TimeoutExpired:
            program.kill()
            program.wait()


def wait_until(ready: Callable[[], bool], what: str, timeout_s: float, period_s: float = 0.02) -> None:
    """Ask again and again until `ready` says yes.

    Raises:
        BenchmarkError: it did not within `timeout_s`.
    """
    end = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > end:
            raise BenchmarkError(f"{what}: nothing within {timeout_s:g} s")
        time.sleep(period_s)


def last_line(path: Path) -> str:
    """Return the last line of a log that says something, for a reason that fits on one line."""
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


@contextmanager
def _inside(folder: Path, *, quiet: bool) -> Iterator[None]:
    """Work in `folder`, let all temporary files go there, and keep the peer's words off standard output."""
    before = os.getcwd()
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    # Parsl looks for its own programs on PATH, and a venv that is not activated is not there.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    os.chdir(folder)
    sys.stdout.flush()
    kept = [os.dup(1), os.dup(2)]
    with (folder / "peer.log").open("ab") as log:
        os.dup2(log.fileno() if quiet else 2, 1)
        if quiet:
            os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in enumerate(kept, start=1):
            os.dup2(copy, number)
            os.close(copy)
        os.chdir(before)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def _terminated(number: int, _frame: object) -> None:
    signal.alarm(0)
    late = number == signal.SIGALRM
    raise KeyboardInterrupt("not finished by its deadline" if late else "terminated before it had finished")
