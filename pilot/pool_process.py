"""One start of a pool, as its agent holds it: the MPI program, the control file, what the pool tells of its end."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from pilot import suspects
from pilot.block import Block
from pilot.pool_program import PoolProgram
from pilot.settings import PilotSettings, control_file, ranks_file, recycle_file


class PoolProcess(PoolProgram):
    """One start of the pool's MPI program, with its control file."""

    def __init__(self, settings: PilotSettings, block: Block, folder: Path, number: int) -> None:
        super().__init__(settings, block, folder, f"pool-{number}", f"{settings.pilot}.{number}")
        self.control = control_file(folder, self.launch)
        self._config = folder / f"pool-{number}.json"

    def start(self) -> None:
        """Start the pool.

        Raises:
            LauncherNotFound: the site's launcher is not there.
        """
        s = self._settings
        told = {
            "settings": asdict(s), "launch": self.launch, "control": str(self.control), "slots": self.ranks - 1,
            "job": self._block.job, "program_hosts": self._block.program_hosts,
            "steps_max": None if s.steps_max is None else max(1, s.steps_max // self._block.of),
        }  # fmt: skip
        self._config.write_text(json.dumps(told) + "\n")
        self.launch_ranks([sys.executable, "-P", "-m", "pilot.pool_main", str(self._config)])

    def suspects(self) -> set[suspects.Key]:
        """Return the MPI functions that ran in the ranks of this pool, now dead: one of them may have killed it."""
        return suspects.read(ranks_file(self.control))

    def worn(self) -> str:
        """Return why the pool, which has ended, wanted to be started anew; "" if it did not."""
        try:
            return recycle_file(self.control).read_text().strip()
        except OSError:
            return ""
