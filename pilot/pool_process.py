"""One start of a pool's MPI program, as its agent holds it: the launcher, the log, the control file, the end."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from pilot import suspects
from pilot.errors import LauncherNotFound
from pilot.executors.run.scrub import scrubbed
from pilot.settings import PilotSettings, ranks_file, recycle_file

logger = logging.getLogger(__name__)

TERM_S = 1.0
"""So long a launcher has to end its ranks before it is killed itself."""


class Block(NamedTuple):
    """The nodes over which one pool runs."""

    hosts: tuple[str, ...] = ()
    """As the batch system calls them; none: this machine."""
    job: str | None = None
    """The batch job that they belong to."""
    env: Mapping[str, str] = {}
    """What the launcher needs to know of that job."""
    of: int = 1
    """Over how many of the pilot's blocks its job steps are divided."""
    program_hosts: tuple[str, ...] = ()
    """Its program nodes, which have no ranks of the pool."""


def host_lines(settings: PilotSettings, hosts: Sequence[str]) -> list[str]:
    """Return the lines that tell a launcher the nodes: the first has a rank more, the coordinator."""
    lines = []
    for number, host in enumerate(hosts):
        ranks = settings.slots + (number == 0)
        line = settings.host_line.format(host=host, ranks=ranks)
        lines += [line] * (ranks if settings.line_per_rank else 1)
    return lines


class PoolProcess:
    """One start of the pool's MPI program: launcher, log, control file."""

    def __init__(self, settings: PilotSettings, block: Block, folder: Path, number: int) -> None:
        self.launch = f"{settings.pilot}.{number}"
        self.control = folder / f"pool-{number}.control"
        self.log = folder / f"pool-{number}.log"
        self._config = folder / f"pool-{number}.json"
        self._hostfile = folder / f"pool-{number}.hosts"
        self._settings = settings
        self._block = block
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the program in a session of its own.

        Raises:
            LauncherNotFound: the site's launcher is not there.
        """
        s, hosts = self._settings, self._block.hosts
        slots = s.slots * max(1, len(hosts))
        told = {
            "settings": asdict(s), "launch": self.launch, "control": str(self.control), "slots": slots,
            "job": self._block.job, "program_hosts": self._block.program_hosts,
            "steps_max": None if s.steps_max is None else max(1, s.steps_max // self._block.of),
        }  # fmt: skip
        self._config.write_text(json.dumps(told) + "\n")
        self._hostfile.write_text("".join(f"{line}\n" for line in host_lines(s, hosts)))
        places = {"ranks": slots + 1, "nodes": max(1, len(hosts)), "hostfile": self._hostfile}
        words = [*s.launcher, *(s.one_node if len(hosts) == 1 else ())]
        program = [part.format(**places) for part in words]
        here = Path(sys.executable).parent / program[0]
        found = str(here) if here.is_file() else shutil.which(program[0])
        if found is None:
            raise LauncherNotFound(
                f"cannot start a pool: launcher {program[0]!r} of site {s.site!r} is neither beside "
                f"{sys.executable!r} nor on the PATH; install an MPI, e.g. pip install 'hpc-pilot[mpich]'"
            )
        argv = [found, *program[1:], sys.executable, "-P", "-m", "pilot.pool_main", str(self._config)]
        own = {name: value.format(**places) for name, value in s.launcher_env.items()}
        env = {**scrubbed(os.environ), **self._block.env, **own, "PILOT_POOL": self.launch}
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env, start_new_session=True
            )
        logger.info("pool %s: started as process %d", self.launch, self._process.pid)

    def poll(self) -> int | None:
        """Return the launcher's exit code, or None while it runs."""
        return None if self._process is None else self._process.poll()

    def ask(self, wish: str) -> None:
        """Tell the coordinator what to do, through its control file: signals would kill the program."""
        partial = self.control.with_suffix(".partial")
        partial.write_text(wish)
        partial.rename(self.control)

    def kill(self) -> None:
        """End the launcher's process group at once.

        SIGTERM comes first: by that `srun` ends the ranks on other nodes too, which would live on without it.
        """
        for number, patience_s in ((signal.SIGTERM, TERM_S), (signal.SIGKILL, 10.0)):
            if self._process is None or self._process.poll() is not None:
                return
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(patience_s)

    def last_words(self) -> str:
        """Return the end of the pool's log, for messages."""
        try:
            lines = self.log.read_text(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return "\n".join(lines[-15:])

    def suspects(self) -> set[suspects.Key]:
        """Return the MPI functions that ran in the ranks of this pool, now dead: one of them may have killed it."""
        return suspects.read(ranks_file(self.control))

    def worn(self) -> str:
        """Return why the pool, which has ended, wanted to be started anew; "" if it did not."""
        try:
            return recycle_file(self.control).read_text().strip()
        except OSError:
            return ""
