"""Where launchers of Open MPI keep their sessions: in folders of ours.

Left to itself Open MPI 5 names the folder of a session by the number of the launcher's process. That of a launcher
which was killed stays, and a later launcher that gets the same number does not start ("The PMIx server's listener
thread failed to start", exit code 213).
"""

from __future__ import annotations

import os

_VARIABLES = ("PRTE_MCA_prte_tmpdir_base", "OMPI_MCA_orte_tmpdir_base")
"""Of Open MPI 5, and of 4."""


def sessions(pool: str, *parts: str) -> str:
    """Return the folder, on this node, for sessions of this start of a pool, or of a program that it started."""
    return os.path.join(os.environ.get("TMPDIR") or "/tmp", f"pilot-{pool}", *parts)


def variables(folder: str) -> dict[str, str]:
    """Return what tells a launcher to use a folder; on every node it is made when needed."""
    return dict.fromkeys(_VARIABLES, folder)


def remove(folder: str) -> None:
    """Remove what is left of sessions on this node."""
    import shutil  # few children need it

    shutil.rmtree(folder, ignore_errors=True)
