"""Run one measuring script to its JSON line: in a session of its own, with a deadline, leaving nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

GRACE_S = 5.0


class RunError(Exception):
    """A script gave no result; its text is the one-line reason."""


def line_of(argv: Sequence[str], deadline_s: float, grace_s: float = GRACE_S) -> dict[str, Any]:
    """Run a script and return the JSON line that it wrote to its standard output.

    When this returns or raises, every process of the run has ended and its temporary files are gone.

    Args:
        argv: the interpreter, the script and its arguments.
        deadline_s: after so long it is told to end.
        grace_s: how long it may take to clean up by itself then.

    Raises:
        RunError: the run failed, gave no result, or was not finished by its deadline.
    """
    name = Path(argv[1]).stem
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
        code, output, errors = _run(argv, Path(folder), deadline_s, grace_s)
    reason = errors.strip().splitlines()
    if code is None:
        raise RunError(f"{name}: not finished within {deadline_s:g} s, killed")
    if code != 0:
        raise RunError(reason[-1] if reason else f"{name}: ended with code {code} and said nothing")
    try:
        result: dict[str, Any] = json.loads(output)
    except ValueError as exc:
        raise RunError(f"{name}: no JSON line on standard output but {output[:80]!r}") from exc
    return result


def _run(argv: Sequence[str], folder: Path, deadline_s: float, grace_s: float) -> tuple[int | None, str, str]:
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
            pass
        finally:
            try:
                if code is None:  # its deadline, or somebody ends us: the script still ends its own helpers
                    shared = _shared_memory(_members(program.pid, folder))
                    program.terminate()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        program.wait(grace_s)
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
