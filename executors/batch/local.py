"""The `local` site: a pilot is a process group on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

_children: dict[int, subprocess.Popen[bytes]] = {}
"""What was started from here: until somebody has asked for its exit code, it stays a zombie."""


def start(argv: Sequence[str], log: Path, env: Mapping[str, str]) -> int:
    """Start an agent in a session of its own, its output appended to `log`; return its pid.

    It survives the caller, its terminal and a Ctrl-C there.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            list(argv), stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=dict(env), start_new_session=True
        )
    _children[process.pid] = process
    return process.pid


def started_at(pid: int) -> float | None:
    """Return when this process started (seconds since the epoch), which tells it from a later one of its number."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None


def alive(pid: int, started: float) -> bool:
    """Say whether the process that started then is still there."""
    if pid in _children and _children[pid].poll() is not None:
        del _children[pid]
    now = started_at(pid)
    return now is not None and abs(now - started) < 1.0


def stop(pid: int, started: float, kill: bool = False) -> bool:
    """Signal the agent: SIGTERM drains it, SIGKILL (`kill`) ends its process group; return whether it was there."""
    if not alive(pid, started):
        return False
    try:
        if kill:
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return False
    return True
