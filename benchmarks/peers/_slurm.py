"""A Slurm for one run, four simulated nodes on this machine, and what its controllers had to do.

The daemons are Debian's; `tests/cluster/slurm-up` starts them. Needs only the standard library.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NODES = 4
CPUS = 4
"""What each node claims to have."""

SCRIPTS = Path(__file__).resolve().parents[2] / "tests" / "cluster"
CONF = Path("/etc/slurm/slurm.conf")
STATE = Path("/var/lib/slurm-bench")
"""Apart from that of the tests' cluster: it is new for each run, and deleted after it."""

PROGRAMS = ("munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd", "scontrol")
CONTROLLERS = {"slurmctld": "run/slurmctld.pid", "slurmdbd": "run/slurmdbd.pid", "mariadbd": "mysql/mariadbd.pid"}
"""Whose processor time is counted, and where their numbers stand."""

OWN_REQUEST = "REQUEST_STATS_INFO"
"""What `sdiag` itself asks."""

POLL_S = 1.0
"""Pause between two questions whether a job is over."""
DEADLINE_S = 60.0


class SlurmError(Exception):
    """Slurm cannot be brought up, or does not do what it should; its text is the one-line reason."""


def missing() -> str:
    """Say why no Slurm can be brought up on this machine; empty if one can."""
    if os.geteuid() != 0:
        return "only root can bring up a Slurm"
    if CONF.exists() and "slurm-sim" not in CONF.read_text():
        return f"this machine has a Slurm of its own: {CONF}"
    lacking = [name for name in PROGRAMS if shutil.which(name, path="/usr/sbin:/usr/bin") is None]
    if lacking:
        return f"not installed: {', '.join(lacking)}; tests/cluster/slurm-up installs them"
    if STATE.exists():
        return ""
    pings = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, check=False, timeout=DEADLINE_S)
    return "a Slurm is up already; tests/cluster/slurm-down ends it" if "is UP" in pings.stdout else ""


@contextmanager
def cluster() -> Iterator[None]:
    """Bring up a new Slurm; at the end its jobs, its daemons and all that it has kept are gone.

    Raises:
        SlurmError: it cannot be brought up.
    """
    if reason := missing():
        raise SlurmError(reason)
    settings = {"SLURM_SIM_DIR": str(STATE), "SLURM_SIM_INSTALL": "0", "SLURM_SIM_GPUS": "0"}
    settings |= {"SLURM_SIM_NODES": str(NODES), "SLURM_SIM_CPUS": str(CPUS)}
    # The database's user may not write in a run's folder; by its name `running` finds daemons that a killed run left.
    env = os.environ | settings | {"TMPDIR": "/tmp", "RUN_TMPDIR": os.environ.get("TMPDIR", "")}
    down = [str(SCRIPTS / "slurm-down"), "--purge"]
    try:
        if STATE.exists():  # of a run that was killed
            _run(down, env)
        _run([str(SCRIPTS / "slurm-up")], env)
        yield
    finally:
        _run(down, env)


def run(*words: str) -> str:
    """Run a command of Slurm's and return what it wrote, `salloc` on standard error.

    Raises:
        SlurmError: it failed.
    """
    return _run(words, dict(os.environ))


def _run(argv: Sequence[str], env: dict[str, str]) -> str:
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        timeout=2 * DEADLINE_S, env=env,
    )  # fmt: skip
    if done.returncode != 0:
        said = done.stdout.strip().splitlines() or ["it said nothing"]
        raise SlurmError(f"{Path(argv[0]).name} ended with code {done.returncode}: {said[-1]}")
    return done.stdout


def await_over() -> None:
    """Wait until no job is queued or runs; who calls it has a deadline."""
    while run("squeue", "--noheader", "--format=%i").strip():
        time.sleep(POLL_S)


def count(what: str) -> int:
    """Return a number from Slurm's database: what stands between `SELECT COUNT(*) FROM` and the end."""
    argv = ["mariadb", "--no-defaults", f"--socket={STATE}/mysql/sock", "--user=root", "--batch", "--skip-column-names"]
    return int(run(*argv, "slurm_acct_db", f"--execute=SELECT COUNT(*) FROM {what}"))


# -- load -----------------------------------------------------------------------------------------


def requests(sdiag: str) -> dict[str, int]:
    """Return how many requests of each kind the controller has answered, by the words of `sdiag`; its own are left out.

    Raises:
        SlurmError: it does not say.
    """
    _, head, rest = sdiag.partition("Remote Procedure Call statistics by message type")
    if not head:
        raise SlurmError("sdiag does not count requests by message type")
    by_type, _, _ = rest.partition("Remote Procedure Call statistics by user")
    found = re.findall(r"^\s*(\S+)\s*\(\s*\d+\)\s*count:(\d+)", by_type, re.MULTILINE)
    return {name: int(number) for name, number in found if name != OWN_REQUEST}


def settled(sdiag: str) -> bool:
    """Return whether the controller has told the database everything."""
    return re.search(r"^DBD Agent queue size:\s*0$", sdiag, re.MULTILINE) is not None


@dataclass
class Load:
    """What the controllers did during a block; filled when it ends."""

    fields: dict[str, Any] = field(default_factory=dict)


@contextmanager
def watched() -> Iterator[Load]:
    """Count requests, database rows and processor time of the controllers, until all jobs of the block are over."""
    result = Load()
    asked, rows, used = requests(run("sdiag")), _rows(), _cpu_s()
    yield result
    await_over()
    _await_settled()
    counted = {name: number - asked.get(name, 0) for name, number in requests(run("sdiag")).items()}
    result.fields = {
        "requests": sum(counted.values()),
        "rows": _rows() - rows,
        "controllers_cpu_s": _cpu_s() - used,
        "slurm": run("sinfo", "--version").strip(),
        "by_type": {name: number for name, number in sorted(counted.items(), key=lambda item: -item[1]) if number},
    }


def _await_settled() -> None:
    end = time.monotonic() + DEADLINE_S
    while not settled(run("sdiag")) or count("sim_job_table WHERE time_end = 0"):
        if time.monotonic() > end:
            raise SlurmError(f"the database did not learn of all jobs within {DEADLINE_S:g} s")
        time.sleep(POLL_S)


def _rows() -> int:
    return count("sim_job_table") + count("sim_step_table")


def _cpu_s() -> float:
    ticks = 0
    for file in CONTROLLERS.values():
        pid = (STATE / file).read_text().strip()
        # The name, in parentheses, may hold anything; user and system time are the 12th and 13th field after it.
        after = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(after[11]) + int(after[12])
    return ticks / os.sysconf("SC_CLK_TCK")
