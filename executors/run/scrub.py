"""The environment of children: an outer launcher's identity removed, tuning kept.

A rank is told by its launcher who it is through variables. A program started by a task must not believe
them: it would take itself for rank 3 of the pool, or attach to the pool's process manager and hang.
"""

from __future__ import annotations

from collections.abc import Mapping

IDENTITY_PREFIXES = (
    "PMI",  # PMI_RANK, PMI_FD, PMI2_…, PMIX_…
    "PALS_",
    "ALPS_APP_",
    "HYDRA_",
    "HYDI_",
    "HYD_",
    "MPISPAWN_",
    "MV2_COMM_WORLD_",
    "GFORKER",
    "SLURM_",
    "SLURMD_",
    "SRUN_",
    "PRTE_",
    "PRRTE_",
    "ORTE_",
    "OMPI_COMM_",
    "OMPI_UNIVERSE_",
    "OMPI_APP_",
    "OMPI_FIRST_",
    "OMPI_ARGV",
    "OMPI_COMMAND",
    "OMPI_NUM_APP",
    "OMPI_FILE_LOCATION",
    # Open MPI 4 passes these, and only these, as if they were tuning:
    "OMPI_MCA_ess",
    "OMPI_MCA_orte_hnp_uri",
    "OMPI_MCA_orte_local_daemon_uri",
    "OMPI_MCA_orte_parent_uri",
    "OMPI_MCA_orte_ess_",
    "OMPI_MCA_orte_num_",
    "OMPI_MCA_orte_app_num",
    "OMPI_MCA_orte_launch",
    "OMPI_MCA_orte_precondition_transports",
    "OMPI_MCA_orte_bound_at_launch",
    "OMPI_MCA_orte_top_session_dir",
    "OMPI_MCA_orte_jobfam_session_dir",
    "OMPI_MCA_initial_wdir",
    "OMPI_MCA_shmem_RUNTIME_QUERY_hint",
)
"""Beginnings of names by which launchers tell a rank who it is, or where its process manager listens."""

IDENTITY_NAMES = frozenset(
    {
        "MPI_LOCALRANKID",
        "MPI_LOCALNRANKS",
        "MPIEXEC_HOSTNAME",
        "MPIEXEC_PORT",
        "OMPI_MCA_pmix",
        "PBS_TASKNUM",
        "PBS_NODENUM",
        "PBS_VNODENUM",
    }
)
"""Single names of the same kind."""

OURS = frozenset({"PILOT_POOL", "PILOT_PROCESS", "PILOT_CHILD", "PILOT_TASK", "PILOT_ATTEMPT"})
"""Names that a pilot gives to its children; a pilot inside a task must not pass them on as its own."""

MARK = "PILOT_OMP_NUM_THREADS"
"""Set beside OMP_NUM_THREADS when the value is ours: a command with more cores may then replace it."""


def is_identity(name: str) -> bool:
    """Return whether a launcher uses the variable `name` to tell a rank who it is."""
    return name in IDENTITY_NAMES or name.startswith(IDENTITY_PREFIXES)


def scrubbed(env: Mapping[str, str]) -> dict[str, str]:
    """Return `env` without a launcher's identity and without what an outer pilot set.

    Variables with which a user or site tunes MPI (``MPICH_*``, ``FI_*``, ``UCX_*``, ``OMPI_MCA_*`` …) stay.
    """
    clean = {name: value for name, value in env.items() if not is_identity(name) and name not in OURS}
    mark = clean.pop(MARK, None)
    if mark is not None and clean.get("OMP_NUM_THREADS") == mark:
        del clean["OMP_NUM_THREADS"]
    return clean


def child_environment(env: Mapping[str, str], pool: str, cores: int) -> dict[str, str]:
    """Return the environment of a slot's child: scrubbed, with the pool's token and a thread count.

    Args:
        env: the rank's own environment.
        pool: token by which orphans of this pool are found (`PILOT_POOL`).
        cores: OMP_NUM_THREADS, unless the user set it.
    """
    clean = scrubbed(env)
    clean["PILOT_POOL"] = pool
    if "OMP_NUM_THREADS" not in clean:
        clean["OMP_NUM_THREADS"] = clean[MARK] = str(cores)
    return clean


def command_environment(
    base: Mapping[str, str], task: str, attempt: int, cores: int, extra: Mapping[str, str]
) -> dict[str, str]:
    """Return the environment of one command: the child's, the task's identity, threads, then `extra`."""
    env = {**base, "PILOT_TASK": task, "PILOT_ATTEMPT": str(attempt)}
    if MARK in env:
        env["OMP_NUM_THREADS"] = env[MARK] = str(cores)
    env.update(extra)
    return env
