"""Measure the peers: each run is a process of its own, with a deadline, that leaves nothing behind.

Another program can import `ensure_venv`, `RUNS`, `measure_once` and `medians` to interleave the peers' runs with
its own. Run as a program, it measures every peer and writes one JSON line per run, then one with the medians.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
VENV = HERE / ".venv-peers"
REQUIREMENTS = HERE / "requirements-peers.txt"
STAMP = "installed.sha256"
GRACE_S = 5.0


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
)


def ensure_venv() -> Path:
    """Return the Python of the peers' venv, creating it if it is missing or its requirements have changed.

    Safe to call from several processes at once: the second waits for the first.

    Raises:
        PeerError: venv or pip failed.
    """
    python = VENV / "bin" / "python"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()
    stamp = VENV / STAMP
    with VENV.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (stamp.exists() and stamp.read_text() == wanted and python.exists()):
            shutil.rmtree(VENV, ignore_errors=True)
            _install([sys.executable, "-m", "venv", str(VENV)])
            options = ["--quiet", "--disable-pip-version-check", "--no-input"]
            _install([str(python), "-m", "pip", "install", *options, "-r", str(REQUIREMENTS)])
            stamp.write_text(wanted)
    return python


def measure(peer: str, workload: str, tasks: int | None = None, repeats: int = 3) -> list[dict[str, Any]]:
    """Run a peer's workload `repeats` times, one after the other; see `measure_once`."""
    return [measure_once(peer, workload, tasks) for _ in range(repeats)]


def measure_once(
    peer: str, workload: str, tasks: int | None = None, workers: int = 2, deadline_s: float | None = None
) -> dict[str, Any]:
    """Run a peer's workload once and return its JSON line.

    `tasks` None is the script's own choice, `deadline_s` None the one in `RUNS`. When this returns or raises,
    every process of the run has ended and its temporary files are gone.

    Raises:
        PeerError: the run failed, gave no result, or was not finished by its deadline.
    """
    if deadline_s is None:
        deadline_s = next((run.deadline_s for run in RUNS if (run.peer, run.workload) == (peer, workload)), 120.0)
    argv = [str(ensure_venv()), str(HERE / "peers" / f"{peer}.py"), "--workload", workload, "--workers", str(workers)]
    if not Path(argv[1]).exists():
        raise PeerError(f"{peer}: no such peer, choose from {', '.join(sorted({run.peer for run in RUNS}))}")
    if tasks is not None:
        argv += ["--tasks", str(tasks)]
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
        code, output, errors = _run(argv, Path(folder), deadline_s)
    if code is None:
        raise PeerError(f"{peer} {workload}: not finished within {deadline_s:g} s, killed")
    reason = errors.strip().splitlines()
    if code != 0:
        raise PeerError(reason[-1] if reason else f"{peer} {workload}: ended with code {code} and said nothing")
    try:
        result: dict[str, Any] = json.loads(output)
    except ValueError as exc:
        raise PeerError(f"{peer} {workload}: no JSON line on standard output but {output[:80]!r}") from exc
    return result


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


def _run(argv: list[str], folder: Path, deadline_s: float) -> tuple[int | None, str, str]:
    """Run in a session of its own; exit code (None after the deadline), standard output, standard error."""
    output, errors = folder / "stdout", folder / "stderr"
    with output.open("wb") as out, errors.open("wb") as err:
        program = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            cwd=folder,
            env={**os.environ, "TMPDIR": str(folder)},
            start_new_session=True,
        )
        code: int | None = None
        shared: set[Path] = set()
        try:
            code = program.wait(deadline_s)
        except subprocess.TimeoutExpired:
            shared = _shared_memory(_members(program.pid, folder))
            program.terminate()  # the script still ends its own helpers
            with contextlib.suppress(subprocess.TimeoutExpired):
                program.wait(GRACE_S)
        finally:
            _kill_rest(program, folder, shared)
    return code, output.read_text(errors="replace"), errors.read_text(errors="replace")


def _kill_rest(program: subprocess.Popen[bytes], folder: Path, shared: set[Path]) -> None:
    """Kill every process that a run left, and remove the shared memory that only they would have removed."""
    end = time.monotonic() + GRACE_S
    while (left := _members(program.pid, folder)) and time.monotonic() < end:
        shared |= _shared_memory(left)
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
        program.poll()
    program.wait()
    for path in shared:
        path.unlink(missing_ok=True)


def _shared_memory(pids: Iterable[int]) -> set[Path]:
    """Name the files in /dev/shm that these processes have mapped."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                _, slash, name = line.partition(" /dev/shm/")
                if slash and not name.endswith(" (deleted)"):
                    found.add(Path("/dev/shm") / name)
    return found


def _members(session: int, folder: Path) -> list[int]:
    """List the live processes of a run: all of its session, and whoever left the session but uses its folder."""
    numbers = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in numbers if _belongs(pid, session, folder)]


def _belongs(pid: int, session: int, folder: Path) -> bool:
    """Say whether a live process is in the session, works inside the folder, or was told to use it for its files."""
    process = Path("/proc") / str(pid)
    try:
        # The name, in parentheses, may hold anything; after it come state, parent, group and session.
        state, _, _, its_session = (process / "stat").read_text().rpartition(")")[2].split()[:4]
        if state == "Z":
            return False
        if int(its_session) == session or (process / "cwd").resolve().is_relative_to(folder):
            return True
        return f"TMPDIR={folder}".encode() in (process / "environ").read_bytes()
    except (OSError, ValueError):
        return False


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
