"""Pilots as jobs of a batch system: what the tests of Slurm and of PBS have in common."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

import pilot
from pilot import fleet
from pilot.executors.batch import slurm
from pilot.executors.batch.scheduler import Scheduler
from pilot.site_files import load_site
from pilot.states import OVER, JobState
from pilot.store import pilots
from tests import pilot_tasks
from tests.conftest import need
from tests.rig import REPOSITORY, Rig
from tests.rig import wait_until as _wait_until

UP_S = 90.0
"""Slurm looks at its queue every second or so, and a node's first start of Python reads a cold disk."""


def fake_pbs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put stand-ins for a PBS first on the PATH; return the folder in which they keep jobs."""
    home = folder / "fake-pbs"
    (home / "bin").mkdir(parents=True)
    (home / "free").touch()
    for name in ("qsub", "qstat", "qdel", "qrun"):
        (home / "bin" / name).symlink_to(REPOSITORY / "tests" / "pbs" / "fake_pbs.py")
    monkeypatch.setenv("PATH", str(home / "bin"), prepend=os.pathsep)
    monkeypatch.setenv("FAKE_PBS", str(home))
    return home


wait_until = partial(_wait_until, pause_s=0.25)
"""Most looks here ask a batch system, and the machine has others to serve."""

CLUSTER = REPOSITORY / "tests" / "cluster"


def start_cluster(**settings: str) -> None:
    """Bring up what of the simulated cluster does not run; `settings` are those of its script."""
    env = os.environ | {"SLURM_SIM_SLURMD_TIMEOUT": "6"} | settings
    subprocess.run([CLUSTER / "slurm-up"], check=True, timeout=300, env=env)


SHORT_ADDRESSES = {"MPIR_CVAR_CH4_NETMOD": "ofi"}
"""For MPICH: Slurm's PMI-2 at times loses its place in UCX's long addresses of ranks; see docs/troubleshooting.md."""


@contextmanager
def cluster(**settings: str) -> Iterator[Scheduler]:
    """Run a real Slurm with simulated nodes; there can be one at a time on a machine, whoever runs the tests."""
    need("slurm")
    with Path(tempfile.gettempdir(), "pilot-test-cluster.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        start_cluster(**settings)
        try:
            yield Scheduler(slurm)
        finally:
            subprocess.run([CLUSTER / "slurm-down", "--purge"], check=False, timeout=120)


@contextmanager
def slurm_user(rig: Rig, scheduler: Scheduler, **site: Any) -> Iterator[User]:
    """Yield a user with a site file made of the generic one; cancel what is left afterwards."""
    data: dict[str, Any] = load_site("slurm").model_dump(mode="json", exclude_unset=True) | {"name": "sim"} | site
    data["batch"] |= {"queue": "debug", "options": []}  # the simulated nodes are one machine: two share its cores
    data["launcher"]["env"] |= SHORT_ADDRESSES
    path = rig.config.root / "sim.yaml"
    path.write_text(yaml.safe_dump(data))
    yield User(rig, path, scheduler)
    scheduler.cancel([path.read_text().strip() for path in rig.config.folder.glob("pilots/*/job.id")])


class User:
    """Somebody at a login node: runs `pilot`, and looks at what its batch system says."""

    def __init__(self, rig: Rig, site: Path, scheduler: Scheduler) -> None:
        self.rig = rig
        self.site = site
        self.scheduler = scheduler

    def run(self, *words: str, code: int = 0) -> str:
        """Run `pilot`; return what it prints."""
        ran = subprocess.run(
            [sys.executable, "-P", "-m", "pilot", *words], cwd=self.rig.config.root, capture_output=True, text=True,
            check=False, timeout=120,
        )  # fmt: skip
        assert ran.returncode == code, ran.stdout + ran.stderr
        return ran.stdout if "--json" in words else ran.stdout + ran.stderr

    def up(self, *words: str) -> dict[str, Any]:
        """Ask for a pilot."""
        said = self.run("up", "--site", str(self.site), "--walltime", "10m", "--json", *words)
        found: dict[str, Any] = json.loads(said)
        return found

    def scale(self, *words: str, code: int = 0) -> dict[str, Any]:
        """Do one round of `pilot scale`."""
        said = self.run("scale", "--once", "--json", "--site", str(self.site), "--walltime", "10m", *words, code=code)
        found: dict[str, Any] = json.loads(said)
        return found

    def change(self, **parts: dict[str, Any]) -> None:
        """Change keys of parts of the site's file."""
        data = yaml.safe_load(self.site.read_text())
        for part, keys in parts.items():
            data[part] |= keys
        self.site.write_text(yaml.safe_dump(data))

    def script(self, asked: dict[str, Any]) -> str:
        """Return a pilot's batch script."""
        return (self.rig.config.pilot_folder(asked["pilot"]) / "job.sh").read_text()

    def view(self, name: str) -> dict[str, Any]:
        """Return what `pilot pilots` says of a pilot, without a process for it."""
        views = fleet.look(self.rig.store, datetime.now(UTC))
        return next(view.document() for view in views if view.id == name)

    def state(self, job: str) -> JobState | None:
        """Return what the batch system says of a job."""
        found = self.scheduler.look([job]).get(job)
        return None if found is None else found.state

    def words(self, name: str) -> str:
        """Return everything that a pilot has left in its folder."""
        folder = self.rig.config.pilot_folder(name)
        logs = [path for path in sorted(folder.glob("*.*")) if path.suffix in (".log", ".out")]
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-2000:]}" for path in logs)

    def log(self, asked: dict[str, Any]) -> Callable[[], str]:
        """Return what tells everything of a pilot, for time-outs."""
        return lambda: self.words(asked["pilot"])

    def pilot(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Return a pilot's document."""
        (found,) = [doc for doc in pilots.listing(self.rig.store) if doc["_id"] == asked["pilot"]]
        return found

    def await_up(self, asked: dict[str, Any]) -> None:
        """Wait until a pilot takes work."""
        slots = asked["slots"]
        name = asked["pilot"]
        wait_until(lambda: self.view(name)["up"] == slots, UP_S, f"{name} is up", lambda: self.words(name))

    def await_over(self, job: str) -> JobState:
        """Wait until the batch system says that a job is over."""

        def over() -> JobState | None:
            found = self.state(job)
            return found if found in OVER else None

        found = wait_until(over, UP_S, f"job {job} is over", lambda: self.state(job))
        assert found is not None
        return found


def check_it_works(user: User, asked: dict[str, Any]) -> None:
    """Wait until a pilot is up, let it work, and end it."""
    user.await_up(asked)
    folder = user.rig.config.pilot_folder(asked["pilot"])
    assert (folder / "job.id").read_text().strip() == asked["job"]
    assert (folder / "job.sh").read_text().splitlines()[-1].startswith("exec ")
    with user.rig.open():
        futures = pilot.task(pilot_tasks.nap).map(range(40), seconds=0.01)
        assert [future.result(UP_S) for future in futures] == list(range(40))
        record = futures[0].record()
    assert (record["job"], record["site"]) == (asked["job"], "sim")
    view = user.view(asked["pilot"])
    assert (view["state"], view["job"], view["slots"]) == ("running", asked["job"], asked["slots"])
    assert user.state(asked["job"]) is JobState.RUNNING
    assert "ended" in user.run("down")
    assert user.await_over(asked["job"]) is JobState.COMPLETED


def check_it_is_given_up_when_its_job_fails(user: User) -> None:
    """Let the batch script end before there is an agent."""
    user.change(batch={"setup": ["echo no such machine", "exit 3"]})
    asked = user.up()
    user.await_over(asked["job"])
    view = wait_until(
        lambda: (seen := user.view(asked["pilot"]))["state"] == "lost" and seen, UP_S, "it is found to be lost"
    )
    assert view["reason"].startswith(f"its batch job {asked['job']} ended as ")
    assert "before its agent had reported" in view["reason"]
    assert re.search("exit code 3|NonZeroExitCode", view["reason"])
    assert "its job printed 'no such machine'" in view["reason"]


def check_a_module_that_is_not_there(user: User) -> None:
    """Let a module be missing: the job ends before there is an agent, and the site file's key is named."""
    user.change(batch={"modules": ["nosuch/1.0"], "setup": []})
    asked = user.up()
    user.await_over(asked["job"])
    view = wait_until(
        lambda: (seen := user.view(asked["pilot"]))["state"] == "lost" and seen, UP_S, "it is found to be lost"
    )
    assert "cannot load module nosuch/1.0: correct batch.modules in the site file" in view["reason"]


def check_its_work_is_given_back_when_it_is_cancelled(user: User, asked: dict[str, Any]) -> None:
    """Cancel a job whose pilot has a task at work."""
    user.await_up(asked)
    with user.rig.open():
        future = pilot.task(retries=0)(pilot_tasks.nap).submit(1, seconds=120.0)
        wait_until(lambda: future.state is pilot.State.LEASED, UP_S, "it is leased")
        user.scheduler.cancel([asked["job"]])
        assert user.await_over(asked["job"]) is JobState.CANCELLED
        wait_until(lambda: user.view(asked["pilot"])["state"] in ("ended", "lost"), UP_S, "the pilot is over")
        wait_until(lambda: future.state is pilot.State.READY, UP_S, "the task is back in the queue")
        future.cancel()
    assert "SIGTERM" in user.view(asked["pilot"])["reason"]


def check_it_ends_before_its_time(user: User, walltime: str) -> None:
    """Let a short walltime pass: the agent drains before its end, so that nobody kills it."""
    asked = json.loads(user.run("up", "--site", str(user.site), "--walltime", walltime, "--json"))
    user.await_up(asked)
    assert user.await_over(asked["job"]) is JobState.COMPLETED
    assert user.view(asked["pilot"])["state"] == "ended"
