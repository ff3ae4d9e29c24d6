"""What a run costs: processor time and memory by role, from `/proc`, and the server's own count of its commands."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from _rig import await_idle

from pilot.client import Project
from pilot.executors.pool.identity import rank_from_environment
from pilot.store.mongo import Store

ROLES = ("mongod", "coordinator", "rank", "child", "agent", "launcher")
"""Roles of a project's processes, apart from the client, which is the process that measures."""

SETTLE_S = 0.3
"""After the last value is in hand, the pool may still be writing what nobody waits for."""

NOT_WORK = frozenset({"hello", "isMaster", "ismaster", "serverStatus"})
"""Commands that are not counted: the drivers' look at the server every 10 s, and this program's own question."""


@dataclass(frozen=True)
class Seen:
    """One process of the project that is measured."""

    pid: int
    role: str


def processes(root: Path) -> list[Seen]:
    """Return the processes of the project at `root`: each has a path below it in its command line."""
    found = []
    for process in psutil.process_iter():
        try:
            argv = process.cmdline()
            if process.pid != os.getpid() and any(str(root) in word for word in argv):
                found.append(Seen(process.pid, _role(process, argv)))
        except psutil.Error:  # it has just ended, or is not ours
            continue
    return found


def _role(process: psutil.Process, argv: list[str]) -> str:
    if process.name().startswith("mongod"):
        return "mongod"
    if "pilot.agent" in argv:
        return "agent"
    if "--child" in argv:
        return "child"
    rank = rank_from_environment(process.environ())
    return "launcher" if rank is None else "coordinator" if rank == 0 else "rank"


def cpu_s(root: Path) -> dict[str, float]:
    """Return the processor seconds that each role has used so far; `command` is what the children have waited for."""
    used: dict[str, float] = dict.fromkeys((*ROLES, "command"), 0.0)
    for seen in processes(root):
        try:
            times = psutil.Process(seen.pid).cpu_times()
        except psutil.Error:
            continue
        used[seen.role] += times.user + times.system
        if seen.role == "child":
            used["command"] += times.children_user + times.children_system
    mine = os.times()
    return {**used, "client": mine.user + mine.system}


def rss_mb(root: Path) -> dict[str, float]:
    """Return the resident memory of one process of each role, the largest one."""
    found: dict[str, float] = {}
    for seen in processes(root):
        try:
            size = psutil.Process(seen.pid).memory_info().rss / 1e6
        except psutil.Error:
            continue
        found[seen.role] = max(size, found.get(seen.role, 0.0))
    return {role: size for role, size in found.items() if role != "launcher"}


def run_time_s(pid: int) -> float:
    """Return the processor time of a process's living threads to the nanosecond, which ticks of 10 ms cannot tell."""
    threads = list(Path(f"/proc/{pid}/task").iterdir())
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def commands(store: Store) -> dict[str, int]:
    """Return how often the server has executed each command, for whomever: ``serverStatus().metrics.commands``.

    Exact and without cost: clients, pools and agents are all in it, failed commands and those of cursors
    (`getMore`) too. A bulk write is as many commands as the driver made of it.
    """
    status: Mapping[str, Any] = store.database.client.admin.command("serverStatus")
    counts = status["metrics"]["commands"].items()
    return {name: int(count["total"]) for name, count in counts if isinstance(count, dict) and "total" in count}


def written_kb(store: Store) -> float:
    """Return how much the server has written of its pages so far, the journal apart: cost that no processor shows."""
    status: Mapping[str, Any] = store.database.client.admin.command("serverStatus")
    return float(status["wiredTiger"]["cache"]["bytes written from cache"]) / 1000


def _mpi(store: Store) -> str:
    environment = store.environments.find_one() or {}
    return " ".join(str(environment.get("mpi", "")).split())


@dataclass
class Cost:
    """What the tasks of a block cost; filled when it ends."""

    fields: dict[str, Any] = field(default_factory=dict)


@contextmanager
def cost(opened: Project, tasks: int) -> Iterator[Cost]:
    """Count commands and processor time of the whole project during the block and shortly after it."""
    root = opened.config.root
    result = Cost()
    asked, used = commands(opened.store), cpu_s(root)
    yield result
    time.sleep(SETTLE_S)
    spent = {role: s - used.get(role, 0.0) for role, s in cpu_s(root).items()}
    counted = {name: count - asked.get(name, 0) for name, count in commands(opened.store).items()}
    counted = {name: count for name, count in counted.items() if count and name not in NOT_WORK}
    await_idle(opened)
    result.fields = {
        "db_commands_per_task": sum(counted.values()) / tasks,
        "db_commands": dict(sorted(counted.items(), key=lambda item: -item[1])),
        **{f"cpu_us_{role}": s / tasks * 1e6 for role, s in spent.items()},
        **{f"rss_mb_{role}": size for role, size in rss_mb(root).items()},
        "mongod": opened.store.database.client.server_info()["version"],
        "mpi": _mpi(opened.store),
    }
