"""Who this process is, asked before MPI is imported: its rank by the launcher's variables, and its machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path

from pilot.executors.pool.messages import Node

RANK_VARIABLES = (
    "PMI_RANK",  # Hydra (MPICH, Intel MPI), srun --mpi=pmi2, ALPS
    "PMIX_RANK",  # prterun (Open MPI), srun --mpi=pmix
    "OMPI_COMM_WORLD_RANK",
    "PALS_RANKID",  # HPE Cray mpiexec
    "FLUX_TASK_RANK",
    "MV2_COMM_WORLD_RANK",
    "JSM_NAMESPACE_RANK",  # jsrun
    "SLURM_PROCID",  # last: a batch script has it as well, and there it names no MPI rank
)
"""Variables by which launchers tell a process its rank, nearest launcher first.

Never `MPI_LOCALRANKID`, `SLURM_LOCALID` and the like: they count within one node.
"""

SIZE_VARIABLES = (
    "PMI_SIZE",
    "OMPI_COMM_WORLD_SIZE",
    "PALS_SIZE",
    "FLUX_JOB_SIZE",
    "MV2_COMM_WORLD_SIZE",
    "JSM_NAMESPACE_SIZE",
    "SLURM_NTASKS",
)


def rank_from_environment(env: Mapping[str, str]) -> int | None:
    """Return this process's rank in the program its launcher started, or None if no launcher says.

    A value that is not a number does not count. MPI itself has the last word: `world.start` compares.
    """
    for name in RANK_VARIABLES:
        value = env.get(name, "")
        if value.isdecimal():
            return int(value)
    return None


def launcher_says(env: Mapping[str, str]) -> str:
    """Return what the environment tells about the launcher, for the text of an error."""
    names = [name for name in (*RANK_VARIABLES, *SIZE_VARIABLES) if name in env]
    return ", ".join(f"{name}={env[name]}" for name in names) or "no variable of any known launcher"


def node() -> Node:
    """Describe this machine as this process may use it."""
    return Node(
        cpus=tuple(sorted(os.sched_getaffinity(0))),
        cpu_model=_cpu_model(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        kernel=platform.release(),
    )


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.machine()
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "cpu model", "Hardware"):
            return value.strip()
    return platform.machine()
