"""Shared memory that MPI libraries leave on a node when a program is killed. No MPI is needed here."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

SHARED = Path("/dev/shm")
PREFIXES = (
    "mpich_shm_",
    "mpich_shar_tmp",
    "Intel_MPI_",
    "ucx_shm_posix_",
    "sm_segment.",  # Open MPI 5
    "vader_segment.",  # Open MPI 4
    "psm2_shm.",
    "psm3_shm.",
)
AGE_MIN_S = 10.0
"""A younger file may belong to a program that is starting and has not mapped it yet."""


def remove_segments(folder: Path = SHARED, age_min_s: float = AGE_MIN_S) -> list[str]:
    """Remove this user's MPI segments on this node that no live process has mapped; return their names.

    Call it after a pool has died and before the next one starts: they are memory, and nothing else frees them.
    """
    old = time.time() - age_min_s
    candidates = [path for path in folder.iterdir() if path.name.startswith(PREFIXES) and _is_old(path, old)]
    mapped = _mapped(folder) if candidates else set()
    removed = []
    for path in candidates:
        if str(path) not in mapped:
            with contextlib.suppress(OSError):
                path.unlink()
                removed.append(path.name)
    return removed


def _is_old(path: Path, limit: float) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    return status.st_uid == os.getuid() and status.st_mtime < limit


def _mapped(folder: Path) -> set[str]:
    """Return the files of `folder` that any process whose maps may be read has mapped."""
    found: set[str] = set()
    wanted = f" {folder}/"
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                lines = (entry / "maps").read_text(errors="replace").splitlines()
                found.update(line[line.index(wanted) + 1 :] for line in lines if wanted in line)
    return found
