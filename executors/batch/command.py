"""One command of a batch system: run with a deadline, at which it is killed, and its own words kept."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pilot.errors import SchedulerNotFound, SchedulerUnreachable
from pilot.executors.run.scrub import scrubbed

DEADLINE_S = 60.0
"""A controller under load answers within seconds, or not at all."""

_KILL_S = 5.0
_OPTIONS = ("SBATCH_", "SQUEUE_", "SACCT_", "SCANCEL_", "SALLOC_", "PBS_DPREFIX")
"""Beginnings of variables that stand for options: what we write is not to be overruled by a user's habits."""
_KEPT = ("SLURM_CONF", "SLURM_CLUSTERS")
"""Which batch system it is, among the variables by which one tells a job who it is."""
_WORDS_MAX = 2000


class Said(NamedTuple):
    """What a command answered."""

    code: int
    out: str
    err: str

    @property
    def words(self) -> str:
        """What it said of an error, on one line."""
        return " / ".join(line.strip() for line in (self.err.strip() or self.out.strip()).splitlines())[-_WORDS_MAX:]


def ask(
    argv: Sequence[str],
    unreachable: re.Pattern[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    deadline_s: float = DEADLINE_S,
) -> Said:
    """Run a command to its end and return what it said, whatever its exit code.

    Args:
        argv: its words; nothing goes through a shell.
        unreachable: what it says when its server is away.
        cwd: where it runs.
        env: its environment before it is cleaned; None: ours.
        deadline_s: when it is killed, with all that it has started.

    Raises:
        SchedulerNotFound: there is no such command.
        SchedulerUnreachable: it did not end in time, or says that its server is away.
    """
    try:
        process = subprocess.Popen(
            list(argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            errors="replace", cwd=cwd, env=environment(os.environ if env is None else env), start_new_session=True,
        )  # fmt: skip
    except FileNotFoundError as exc:
        raise SchedulerNotFound(
            f"cannot run {argv[0]!r}: it is not on the PATH; is this a login node of the site, or is a module to be "
            "loaded first?"
        ) from exc
    except OSError as exc:
        raise SchedulerNotFound(f"cannot run {argv[0]!r}: {exc.strerror}") from exc
    try:
        out, err = process.communicate(timeout=deadline_s)
    except BaseException as exc:
        _kill(process)
        if not isinstance(exc, subprocess.TimeoutExpired):
            raise
        raise SchedulerUnreachable(f"{argv[0]} did not answer within {deadline_s:g} s and was killed") from exc
    said = Said(process.returncode, out, err)
    if said.code and unreachable.search(err):
        raise SchedulerUnreachable(f"{argv[0]} says: {said.words}")
    return said


def environment(env: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a batch system's command, and of the job that it submits.

    Without what tells a process of another job who it is, and without variables that stand for options.
    """
    clean = {name: value for name, value in scrubbed(env).items() if not name.startswith(_OPTIONS)}
    return clean | {name: env[name] for name in _KEPT if name in env}


def _kill(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):  # one that the kernel does not let go holds our pipes
        process.communicate(timeout=_KILL_S)
