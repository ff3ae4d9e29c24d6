"""Measure the peers: each run is a process of its own, with a deadline, that leaves nothing behind.

Another program can import `ensure_venv`, `RUNS`, `measure_once` and `medians` to interleave the peers' runs with
its own. Run as a program, it measures every peer and writes one JSON line per run, then one with the medians.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import running

HERE = Path(__file__).resolve().parent
OWN_VENV = {"radical_raptor": "radical"}
"""Peers whose requirements do not go with the others', and the name of their venv."""
STAMP = "installed.sha256"
GRACE_S = 40.0
"""A Slurm with a thousand jobs is not ended at once."""


class PeerError(Exception):
    """A peer could not be installed or measured; its text is the one-line reason."""


@dataclass(frozen=True)
class Run:
    """A measurement that exists: script, workload, and the time after which it is given up."""

    peer: str
    workload: str
    deadline_s: float = 120.0


RUNS = (
    Run("parsl_htex", "noop"),
    Run("parsl_htex", "noop-default"),
    Run("dask_distributed", "noop"),
    Run("fireworks_rapidfire", "noop"),
    Run("mpi4py_futures", "noop"),
    Run("process_pool", "noop"),
    Run("hyperqueue_local", "true"),
    Run("hyperqueue_local", "true-output"),
    Run("spawn_loop", "true"),
    Run("parsl_htex", "latency"),
    Run("dask_distributed", "latency"),
    Run("mpi4py_futures", "latency"),
    Run("process_pool", "latency"),
    Run("fireworks_rapidfire", "queue-depth"),
    Run("fireworks_rapidfire", "workflow-size"),
    Run("mpiexec_loop", "mpi-noop"),
    Run("mpiexec_loop", "mpi-noop-two"),
    Run("parsl_mpi", "mpi-noop"),
    Run("parsl_mpi", "mpi-noop-two"),
    Run("radical_raptor", "mpi-noop"),
    Run("radical_raptor", "mixed", 180.0),
    Run("parsl_mpi", "mixed", 180.0),
    Run("slurm_jobs", "slurm-sbatch", 400.0),
    Run("slurm_jobs", "slurm-array", 400.0),
    Run("slurm_jobs", "slurm-steps", 400.0),
    Run("slurm_jobs", "slurm-steps-eight", 400.0),
)


def ensure_venv(peer: str = "") -> Path:
    """Return the Python of a peer's venv, creating it if it is missing or its requirements have changed.

    Without a peer, it is the venv that most of them share.

    Safe to call from several processes at once: the second waits for the first.

    Raises:
        PeerError: venv or pip failed.
    """
    name = OWN_VENV.get(peer, "peers")
    venv, requirements = HERE / f".venv-{name}", HERE / f"requirements-{name}.txt"
    python, stamp = venv / "bin" / "python", venv / STAMP
    wanted = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()
    with venv.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (stamp.exists() and stamp.read_text() == wanted and python.exists()):
            shutil.rmtree(venv, ignore_errors=True)
            _install([sys.executable, "-m", "venv", str(venv)])
            options = ["--quiet", "--disable-pip-version-check", "--no-input"]
            _install([str(python), "-m", "pip", "install", *options, "-r", str(requirements)])
            stamp.write_text(wanted)
    return python


def measure(peer: str, workload: str, tasks: int | None = None, repeats: int = 3) -> list[dict[str, Any]]:
    """Run a peer's workload `repeats` times, one after the other; see `measure_once`."""
    return [measure_once(peer, workload, tasks) for _ in range(repeats)]


def measure_once(
    peer: str, workload: str, tasks: int | None = None, workers: int | None = None, deadline_s: float | None = None
) -> dict[str, Any]:
    """Run a peer's workload once and return its JSON line.

    `tasks` and `workers` None are the script's own choice, `deadline_s` None the one in `RUNS`. When this returns or
    raises, every process of the run has ended and its temporary files are gone.

    Raises:
        PeerError: the run failed, gave no result, or was not finished by its deadline.
    """
    if deadline_s is None:
        deadline_s = next((run.deadline_s for run in RUNS if (run.peer, run.workload) == (peer, workload)), 120.0)
    argv = [str(ensure_venv(peer)), str(HERE / "peers" / f"{peer}.py"), "--workload", workload]
    if not Path(argv[1]).exists():
        raise PeerError(f"{peer}: no such peer, choose from {', '.join(sorted({run.peer for run in RUNS}))}")
    if tasks is not None:
        argv += ["--tasks", str(tasks)]
    if workers is not None:
        argv += ["--workers", str(workers)]
    try:
        return running.line_of(argv, deadline_s, GRACE_S)
    except running.RunError as exc:
        raise PeerError(str(exc)) from exc


def medians(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Merge the lines of repeated runs: numbers become medians, the rest is taken from the first line."""
    first = lines[0]
    merged = {key: _median(line[key] for line in lines) if _is_number(first[key]) else first[key] for key in first}
    return {**merged, "runs": len(lines)}


def _median(values: Iterable[float]) -> float:
    return round(statistics.median(values), 4)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _install(argv: list[str]) -> None:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no output"]
        raise PeerError(f"{' '.join(argv[1:4])} ended with code {done.returncode}: {lines[-1]}")


def main() -> None:
    """Measure what the command line asks for; exit 1 at the end if a run failed, with one line each on stderr."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--peer", choices=sorted({run.peer for run in RUNS}), help="only this one")
    parser.add_argument("--workload", choices=sorted({run.workload for run in RUNS}), help="only this one")
    parser.add_argument("--tasks", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    # The runs are in sessions of their own: only a `finally` reaches them when this program is told to end.
    signal.signal(signal.SIGTERM, lambda _signal, _frame: sys.exit(128 + signal.SIGTERM))
    failed = False
    chosen = [run for run in RUNS if arguments.peer in (None, run.peer) and arguments.workload in (None, run.workload)]
    results: dict[Run, list[dict[str, Any]]] = {run: [] for run in chosen}
    # Round by round, so that a slow minute of the machine does not hit one peer alone.
    for _ in range(arguments.repeats):
        for run in chosen:
            try:
                line = measure_once(run.peer, run.workload, arguments.tasks)
            except PeerError as exc:
                failed = True
                sys.stderr.write(f"{exc}\n")
            else:
                results[run].append(line)
                _write(line)
    for lines in results.values():
        if lines:
            _write(medians(lines))
    sys.exit(1 if failed or not chosen else 0)


def _write(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
