"""Embedded servers for tests: a place, a server, and eyes and hands for what runs there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from pilot.store.mongo import Store


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: _gone(pid))


def _gone(pid: int) -> bool:
    try:
        process = psutil.Process(pid)
        return process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1  # else it may hold its port
    except psutil.NoSuchProcess:
        return True


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def record(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "server.json").read_text())
    return found


def change_record(directory: Path, **fields: object) -> None:
    (directory / "server.json").write_text(json.dumps({**record(directory), **fields}))


def another(method: str, directory: Path, **options: Any) -> subprocess.Popen[str]:
    """Call a method of the server from another process, which prints what it returns."""
    server = f"LocalServer(Path({str(directory)!r}))"
    code = f"from pathlib import Path; from pilot.store.local import LocalServer; print({server}.{method}())"
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, **options)


def serving(directory: Path) -> list[int]:
    """Return the pids of all servers on this directory; there must never be two."""
    everything = psutil.process_iter(["pid", "cmdline"])
    return [p.info["pid"] for p in everything if str(directory / "db") in (p.info["cmdline"] or [])]


def use(uri: str) -> int:
    """Write one document and count all."""
    with Store(uri, "p") as store:
        store.tasks.insert_one({})
        return store.tasks.count_documents({})


def fake(tmp_path: Path, script: str) -> Path:
    program = tmp_path / "fake-mongod"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return program
