"""One MPI program over the nodes of a pool, started by the site's launcher: the ranks, the log, the end.

A pool is such a program, and so is what `pilot site check` starts in its place: there is one way to start them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pilot.block import Block
from pilot.errors import LauncherNotFound
from pilot.executors.run.launch import host_lines
from pilot.executors.run.scrub import scrubbed
from pilot.executors.run.sessions import sessions, variables
from pilot.settings import PilotSettings

logger = logging.getLogger(__name__)

TERM_S = 1.0
"""So long a launcher has to end its ranks before it is killed itself."""


def ranks_by_host(settings: PilotSettings, hosts: Sequence[str]) -> dict[str, int]:
    """Return how many ranks each host gets: one for each slot; the first has the coordinator too."""
    return {host: settings.slots + (number == 0) for number, host in enumerate(hosts)}


def find_launcher(name: str) -> str | None:
    """Return the path of a launcher: beside Python, else on the PATH; None if it is not there."""
    here = Path(sys.executable).parent / name
    return str(here) if here.is_file() else shutil.which(name)


class PoolProgram:
    """One start of an MPI program over a block.

    Args:
        settings: of the pilot.
        block: the nodes.
        folder: where its files lie; every node sees it.
        name: of these files.
        launch: stands as ``PILOT_POOL`` in the environment of every process of it.
    """

    def __init__(self, settings: PilotSettings, block: Block, folder: Path, name: str, launch: str) -> None:
        self.launch = launch
        self.log = folder / f"{name}.log"
        self._hostfile = folder / f"{name}.hosts"
        self._settings = settings
        self._block = block
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def ranks(self) -> int:
        """How many ranks it has."""
        return self._settings.slots * max(1, len(self._block.hosts)) + 1

    def launch_ranks(self, argv: Sequence[str]) -> None:
        """Start the program, its output appended to the log, in a session of its own.

        Args:
            argv: what every rank runs.

        Raises:
            LauncherNotFound: the site's launcher is not there.
        """
        s, hosts = self._settings, self._block.hosts
        self._hostfile.write_text(host_lines(s.host_line, s.line_per_rank, ranks_by_host(s, hosts)))
        places = {"ranks": self.ranks, "nodes": max(1, len(hosts)), "hostfile": self._hostfile}
        words = [*s.launcher, *(s.one_node if len(hosts) == 1 else ())]
        program = [part.format(**places) for part in words]
        found = find_launcher(program[0])
        if found is None:
            raise LauncherNotFound(
                f"cannot start a pool: launcher {program[0]!r} of site {s.site!r} is neither beside "
                f"{sys.executable!r} nor on the PATH; install an MPI, e.g. pip install 'hpc-pilot[mpich]'"
            )
        own = {name: value.format(**places) for name, value in s.launcher_env.items()}
        kept = variables(sessions(self.launch))
        env = {**scrubbed(os.environ), **self._block.env, **kept, **own, "PILOT_POOL": self.launch}
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [found, *program[1:], *argv], stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env,
                start_new_session=True,
            )  # fmt: skip
        logger.info("pool %s: started as process %d", self.launch, self._process.pid)

    def poll(self) -> int | None:
        """Return the launcher's exit code, or None while it runs."""
        return None if self._process is None else self._process.poll()

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
        """Return the end of its log, for messages."""
        try:
            lines = self.log.read_text(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return "\n".join(lines[-15:])
