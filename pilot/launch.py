"""Start a local pilot and wait until it can work; the part that `pilot up`, `pilot run` and scalers share."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pilot import signing
from pilot.allocation import agent_argv, make_folder, pilot_settings
from pilot.config import ProjectConfig
from pilot.errors import PilotDied
from pilot.executors.batch import local
from pilot.executors.run.orphans import end_pool
from pilot.settings import PilotSettings
from pilot.site_files import load_site
from pilot.store import pilots
from pilot.store.mongo import Store

UP_S = 60.0
"""How long a local pilot may take to come up."""
TRIES = 2
"""A pool that dies so often before it is up will not come up."""
_LAST_LINES = 15
_GRACE_S = 5.0
"""How long a pilot that cannot come up may take to end by itself."""


@dataclass(frozen=True, slots=True)
class Local:
    """A pilot that was started on this machine."""

    id: str
    pid: int
    started: float
    """When its agent started (seconds since the epoch)."""
    folder: Path
    slots: int
    slot_cores: int

    @property
    def alive(self) -> bool:
        """Whether its agent still runs."""
        return local.alive(self.pid, self.started)

    @property
    def starts(self) -> int:
        """How often its pool was started."""
        return len(list(self.folder.glob("pool-*.json")))

    def kill(self) -> None:
        """End the agent and every process of its pools at once; what they held is run again by the next pilot."""
        local.stop(self.pid, self.started, kill=True)
        for number in range(self.starts):
            end_pool(f"{self.id}.{number + 1}", 0.0)

    def agent_said(self) -> str:
        """Return the last line that the agent wrote before there was a log, which is why it could not begin."""
        try:
            lines = (self.folder / "agent.out").read_text(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return lines[-1].removeprefix(f"pilot {self.id}: ") if lines else ""

    def last_words(self) -> list[str]:
        """Return the end of what its latest pool said."""
        for path in sorted(self.folder.glob("pool-*.log"), key=lambda path: path.stat().st_mtime, reverse=True):
            lines = path.read_text(errors="replace").strip().splitlines()
            if lines:
                return lines[-_LAST_LINES:]
        return []


def start(
    config: ProjectConfig,
    *,
    site: str | None = None,
    slots: int | None = None,
    slot_cores: int | None = None,
    walltime_s: float | None = None,
    idle_s: float | None = None,
    env: Mapping[str, str] = os.environ,
) -> Local:
    """Start an agent, detached, with this interpreter; its pool is not up when this returns.

    Args:
        config: the project.
        site: see `load_site`; None: the project's.
        slots: worker ranks; None: the site's number, or as many as the cores allow.
        slot_cores: cores of each; None: the site's number.
        walltime_s: end the pilot after so long.
        idle_s: end it after so long without work.
        env: its environment.

    Raises:
        ConfigError: there is no such site.
        ProjectError: the project's key is missing or open to others.
    """
    machine = load_site(site or config.site, config)
    return begin(config, pilot_settings(config, machine, slots, slot_cores, walltime_s, idle_s), env)


def begin(config: ProjectConfig, settings: PilotSettings, env: Mapping[str, str] = os.environ) -> Local:
    """Start an agent that is told this, as `start` does.

    Raises:
        ProjectError: the project's key is missing or open to others.
    """
    signing.load_key(config.key_file)  # else its agent would find out, and be asked for its last words
    if settings.walltime_s is not None:
        settings = replace(settings, end_at=time.time() + settings.walltime_s)
    folder = make_folder(config, settings)
    pid = local.start(agent_argv(folder), folder / "agent.out", env)
    started = local.started_at(pid)
    return Local(
        settings.pilot, pid, 0.0 if started is None else started, folder, settings.slots, settings.slot_cores
    )  # fmt: skip


def await_up(store: Store, pilot: Local, deadline_s: float = UP_S, stopped: Callable[[], bool] = lambda: False) -> bool:
    """Wait until the pilot's pool takes work; False if `stopped` said to give up first.

    Raises:
        PilotDied: its agent ended, its pool died again and again, or nothing happened in time; it is
            stopped, and `Local.last_words` tells more.
    """
    deadline = time.monotonic() + deadline_s
    while not any(pool.get("slots") for pool in pilots.pools(store, pilot.id)):
        if stopped():
            return False
        problem = ""
        if not pilot.alive:
            problem = reason_of(store, pilot) or pilot.agent_said() or "its agent ended"
        elif pilot.starts > TRIES:
            problem = f"its pool died {TRIES} times"
        elif time.monotonic() > deadline:
            problem = f"its pool did not come up within {deadline_s:g} s"
        if problem:
            end(pilot)
            log = pilot.folder / "agent.log"
            raise PilotDied(f"cannot start pilot {pilot.id}: {problem.splitlines()[0]}; see {log}")
        time.sleep(0.05)
    return True


def end(pilot: Local, patience_s: float = _GRACE_S) -> None:
    """End a pilot, in order if it can within so long; what it runs then is killed."""
    deadline = time.monotonic() + patience_s
    local.stop(pilot.pid, pilot.started)
    while pilot.alive and time.monotonic() < deadline:
        time.sleep(0.05)
    pilot.kill()


def reason_of(store: Store, pilot: Local) -> str:
    """Return why a pilot ended, by its own account; empty if it gave none."""
    found = [doc for doc in pilots.listing(store, limit=1000) if doc["_id"] == pilot.id]
    return str(found[0].get("reason", "")) if found else ""
