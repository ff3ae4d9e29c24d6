"""One rank of an MPI function in a program of its own: ``python -P mpi_alone.py FRAME FOLDER [DEADLINE_S]``."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    from pilot.executors.pool.isolated import main
    from pilot.executors.pool.world import guarded
    from tests.pool_child import Folder

    frame, folder, deadline_s = sys.argv[1], sys.argv[2], float(sys.argv[3])
    guarded(lambda: main(frame, folder, Folder(Path(folder)), deadline_s))
