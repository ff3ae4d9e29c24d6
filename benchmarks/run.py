"""Measure pilot beside its peers, print the table, and write docs/performance.md.

    python benchmarks/run.py                       three rounds, all rows, all peers
    python benchmarks/run.py --only noop --rounds 1
    python benchmarks/run.py --quick               a look in half a minute: few tasks, one round, no peers

Round by round, and in each round ours and the peers in turn, so that a slow minute hits everybody. Each run is
a process of its own with a deadline; when it is over, its processes and files are gone, however it ended.
"""

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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import report
import run_peers
import running
from peers import _slurm

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
OUTPUT = ROOT / "docs" / "performance.md"
LINES = HERE / "results.jsonl"

GRACE_S = 40.0
"""A run of ours that is told to end drains its pilot and stops its server by itself."""


@dataclass(frozen=True)
class Measure:
    """One run of ours, and what stands beside it."""

    row: str
    """What `--only` takes."""
    workload: str
    quick: tuple[str, ...]
    """Arguments that make it short."""
    deadline_s: float
    peers: tuple[str, ...] = ()
    """Workloads of the peers that are run after it."""
    script: str = ""
    missing: Callable[[], str] = lambda: ""
    """Says why it cannot be measured on this machine; an empty string if it can."""

    @property
    def argv(self) -> list[str]:
        """The command that measures it."""
        script = HERE / "ours" / f"{self.script or self.row}.py"
        return [sys.executable, str(script), "--workload", self.workload]

    @property
    def head(self) -> dict[str, Any]:
        """Whose line it is."""
        return {"script": self.script or self.row, "workload": self.workload, "ours": True}


SLURM_JOBS = ("slurm-sbatch", "slurm-array", "slurm-steps", "slurm-steps-eight")
MEASURES = (
    Measure("noop", "noop", ("--tasks", "1000"), 180, ("noop", "noop-default")),
    Measure("cached", "cached", ("--tasks", "1000"), 180),
    Measure("commands", "true", ("--tasks", "100"), 180, ("true", "true-output")),
    Measure("mpi", "mpi-noop", ("--tasks", "50"), 180, ("mpi-noop", "mpi-noop-two"), script="mpi_functions"),
    Measure("mixed", "mixed", ("--tasks", "30", "--workers", "8"), 180, ("mixed",)),
    Measure("latency", "latency", ("--tasks", "10"), 120, ("latency",)),
    Measure("handover", "handover", ("--tasks", "3"), 120),
    Measure("busy", "busy", ("--tasks", "2", "--workers", "2"), 180),
    Measure("depth", "depth", ("--tasks", "500"), 300, ("queue-depth", "workflow-size")),
    Measure("idle", "idle", ("--tasks", "1"), 120),
    Measure("placement", "placement", ("--tasks", "1000"), 120),
    Measure("archive", "archive", ("--tasks", "1000"), 300),
    Measure("slurm", "slurm-pilot", ("--tasks", "20"), 180, SLURM_JOBS, "slurm_pilot", _slurm.missing),
)
QUERY = Measure("query", "query", ("--tasks", "3000"), 900)
DEEP = Measure("deep", "depth-million", ("--tasks", "20000"), 1800, script="depth")


def main() -> None:
    """Measure what the command line asks for; exit 1 if a run of ours failed."""
    arguments = _arguments()
    # The runs are in sessions of their own: only a `finally` reaches them when this program is told to end.
    signal.signal(signal.SIGTERM, lambda _signal, _frame: sys.exit("terminated"))
    rounds = 1 if arguments.quick else arguments.rounds
    chosen = [measure for measure in MEASURES if arguments.only in (None, measure.row)]
    once = [QUERY] if arguments.only in (None, QUERY.row) else []
    once += [DEEP] if arguments.deep or arguments.only == DEEP.row else []
    lines: list[dict[str, Any]] = [{"facts": facts(rounds)}]
    begun = time.monotonic()
    write = arguments.write or not (arguments.quick or arguments.no_peers or arguments.only)
    peers = not (arguments.no_peers or arguments.quick)
    try:
        for line in session(chosen, once, rounds, quick=arguments.quick, peers=peers):
            lines.append(line)
            _tell(line, time.monotonic() - begun)
    finally:  # what an interrupted session has measured is worth a look
        _show(lines)
        if write:
            _add_versions(lines)
            if arguments.only and LINES.exists():
                lines = [dict(line) for line in report.merged(report.parse(LINES.read_text()), lines, arguments.only)]
            LINES.write_text("".join(json.dumps(line) + "\n" for line in lines))
    if write:
        OUTPUT.write_text(report.render(report.TEMPLATE.read_text(), lines))
        sys.stdout.write(f"\nwritten: {OUTPUT.relative_to(ROOT)}, {LINES.relative_to(ROOT)}\n")
    sys.exit(1 if any("error" in line and line["ours"] for line in lines[1:]) else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--only", choices=[measure.row for measure in (*MEASURES, QUERY, DEEP)], help="only this row")
    parser.add_argument("--rounds", type=int, default=3, choices=range(1, 100), metavar="N")
    parser.add_argument("--no-peers", action="store_true", help="measure pilot only")
    parser.add_argument("--quick", action="store_true", help="few tasks, one round, no peers: numbers mean little")
    parser.add_argument("--deep", action="store_true", help="also the rate at 10⁶ queued, once: three minutes more")
    parser.add_argument("--write", action="store_true", help="write docs/performance.md also for one row; others stay")
    return parser.parse_args()


# -- runs -----------------------------------------------------------------------------------------


def session(
    chosen: Sequence[Measure], once: Sequence[Measure], rounds: int, *, quick: bool, peers: bool
) -> Iterator[dict[str, Any]]:
    """Run everything, round by round, ours and the peers in turn; yield a line for each run, failed ones too.

    Args:
        chosen: what is run in each round.
        once: what is run a single time, at the end.
        rounds: how many.
        quick: with fewer tasks.
        peers: beside the peers.
    """
    no_venv = ""
    if peers and any(measure.peers for measure in chosen):
        try:
            run_peers.ensure_venv()  # of those that share one; the others make their own at their first run
        except run_peers.PeerError as exc:
            no_venv = f"the peers' environment cannot be made: {exc}"
    for number in range(1, rounds + 1):
        for measure in chosen:
            if reason := measure.missing():
                yield {"round": number, **measure.head, "missing": reason}
                continue
            yield {"round": number, **measure_ours(measure, quick=quick)}
            for run in run_peers.RUNS if peers else ():
                if run.workload in measure.peers:
                    yield {"round": number, **measure_peer(run, no_venv)}
    for measure in once:
        yield {"round": 1, **measure_ours(measure, quick=quick)}


def measure_ours(measure: Measure, *, quick: bool) -> dict[str, Any]:
    """Run one of our scripts; a failure is a line with an `error`."""
    try:
        argv = [*measure.argv, *(measure.quick if quick else ())]
        return {**running.line_of(argv, measure.deadline_s, GRACE_S), **measure.head}
    except running.RunError as exc:
        return {**measure.head, "error": str(exc)}


def measure_peer(run: run_peers.Run, no_venv: str) -> dict[str, Any]:
    """Run one peer; a failure is a line with an `error`, and no reason to stop."""
    head = {"script": run.peer, "workload": run.workload, "ours": False}
    if no_venv:
        return {**head, "error": no_venv}
    try:
        return {**run_peers.measure_once(run.peer, run.workload), **head}
    except run_peers.PeerError as exc:
        return {**head, "error": str(exc)}


def _show(lines: Sequence[dict[str, Any]]) -> None:
    """Write the tables to standard output."""
    results = report.Results(lines)
    parts = (
        report.promises(results),
        report.failures(results),
        report.comparison(results),
        report.costs(results, results.facts["cores"]),
        report.batch(results),
        report.queries(results),
    )
    sys.stdout.write("\n\n".join(part for part in parts if part) + "\n")
    sys.stdout.flush()


def _tell(line: dict[str, Any], seconds: float) -> None:
    """Say on standard error how a run went."""
    number = next((f"{key} {line[key]:,.4g}" for key in _HEADLINES if key in line), "")
    name = report.PEERS.get(line["script"], "pilot")
    said = f"failed: {line['error']}" if "error" in line else line.get("missing", number)
    sys.stderr.write(f"{seconds:6.0f} s  round {line['round']}  {line['workload']:14} {name:20} {said}\n")
    sys.stderr.flush()


_HEADLINES = ("slowest_ms", "us_per_task", "idle_pct", "busy_pct", "ratio", "median_ms", "rate_per_s")


# -- facts ----------------------------------------------------------------------------------------


def facts(rounds: int) -> dict[str, Any]:
    """Return what was measured on, with what and when."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        sync_ms = sync_time_ms(Path(folder))
    libraries = ("pymongo", "mpi4py", "mpich")
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}, {_system()}",
        "load average at the start (1, 5, 15 min)": ", ".join(f"{load:.2f}" for load in os.getloadavg()),
        "4 KiB written and synced to the disk (median)": f"{sync_ms:.2f} ms",
        "pilot": f"{metadata.version('hpc-pilot')}{_commit()}",
        "Python": platform.python_version(),
        **{name: _version(name) for name in libraries},
        "rounds": rounds,
    }


def sync_time_ms(folder: Path, times: int = 50) -> float:
    """Return how long the disk takes to make 4 KiB durable: no acknowledged write of a database can be faster."""
    took = []
    with (folder / "sync").open("wb", buffering=0) as file:
        for _ in range(times):
            start = time.perf_counter()
            file.write(b"x" * 4096)
            os.fdatasync(file.fileno())
            took.append(time.perf_counter() - start)
    return statistics.median(took) * 1000


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return "unknown distribution"


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _commit() -> str:
    argv = ["git", "-C", str(ROOT), "-c", "safe.directory=*", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return f", commit {done.stdout.strip()}" if done.returncode == 0 else ""


def _add_versions(lines: Sequence[dict[str, Any]]) -> None:
    """Put into the facts what only a run could tell."""
    for line in lines[1:]:
        if line["ours"] and "mongod" in line:
            lines[0]["facts"] |= {"MongoDB": line["mongod"], "MPI": line["mpi"]}
        if "slurm" in line:
            lines[0]["facts"] |= {"Slurm": line["slurm"]}


if __name__ == "__main__":
    main()
