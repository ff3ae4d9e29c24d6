"""/bin/true through one pilot on all nodes of a Slurm, from `pilot up` to the last exit code in hand."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import _slurm
import yaml
from _harness import BenchmarkError, Settings, Workload, last_line, main, wait_until
from _rig import NOTES, RESULT_S, UP_S, project

import pilot
from pilot.config import ProjectConfig
from pilot.site_files import load_site
from pilot.store import pilots


def site_file(config: ProjectConfig, slots: int) -> Path:
    """Make a site file for the simulated nodes out of the generic one; return its path."""
    data = load_site("slurm").model_dump(mode="json", exclude_unset=True)
    data |= {"name": "sim", "slots": slots, "node": {"cores": _slurm.CPUS}}
    data["batch"] |= {"queue": "debug"}
    path = config.root / "sim.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def cli(config: ProjectConfig, *words: str) -> str:
    """Run `pilot` and return what it printed.

    Raises:
        BenchmarkError: it failed.
    """
    log = config.root / "cli.log"
    with log.open("wb") as errors:
        argv = [sys.executable, "-P", "-m", "pilot", *words]
        done = subprocess.run(argv, cwd=config.root, stdout=subprocess.PIPE, stderr=errors, check=False, timeout=UP_S)
    if done.returncode != 0:
        raise BenchmarkError(f"pilot {words[0]} ended with code {done.returncode}: {last_line(log)}")
    return done.stdout.decode()


@contextmanager
def queued(config: ProjectConfig, site: Path) -> Iterator[str]:
    """Ask for a pilot on all nodes and yield its name; at the end it is told to end, and has."""
    words = ("--site", str(site), "--nodes", str(_slurm.NODES), "--walltime", "10m", "--json")
    asked = json.loads(cli(config, "up", *words))
    try:
        yield asked["pilot"]
    finally:
        cli(config, "down")


def through_one(settings: Settings) -> dict[str, Any]:
    """Time from `pilot up`: the first result, all slots up, and then all tasks."""
    command = pilot.command(["/bin/true"])
    with project(settings) as config, _slurm.cluster(), pilot.open(config.root) as opened:
        site = site_file(config, settings.workers // _slurm.NODES)
        with _slurm.watched() as load:
            start = time.perf_counter()
            with queued(config, site) as name:
                command.submit().result(UP_S)
                first = time.perf_counter()
                wait_until(lambda: up_slots(opened, name) == settings.workers, "all slots", UP_S)
                up = time.perf_counter()
                codes = [future.result(RESULT_S)["exit_code"] for future in command.map(settings.tasks)]
                end = time.perf_counter()
    if codes != [0] * settings.tasks:
        raise BenchmarkError("a /bin/true failed under pilot")
    return {
        "seconds": end - start, "start_s": first - start, "up_rate_per_s": settings.tasks / (end - up), **load.fields,
    }  # fmt: skip


def up_slots(opened: pilot.Project, name: str) -> int:
    """Return how many slots of a pilot take work."""
    return sum(int(pool.get("slots", 0)) for pool in pilots.pools(opened.store, name))


if __name__ == "__main__":
    notes = NOTES + ", output kept; pilot up on 4 nodes, first result, all slots up, then all tasks"
    slots = _slurm.NODES * _slurm.CPUS
    main("pilot", "hpc-pilot", {"slurm-pilot": Workload(through_one, 1_000, notes, slots)})
