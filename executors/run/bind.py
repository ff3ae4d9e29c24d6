"""What every rank of an MPI program is started through: take this rank's share of the node, become the program.

``python -S -E -P bind.py FILE PROGRAM ARG...`` with FILE from `nested`. Launchers' own binding is off, and one
program's launcher knows nothing of the next one's: only the pilot can keep two programs off the same cores. Imports
nothing that is a file: thousands of ranks start at once.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LOCAL_RANK_VARIABLES = (
    "MPI_LOCALRANKID",  # Hydra
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "PALS_LOCAL_RANKID",
    "FLUX_TASK_LOCAL_ID",
    "MV2_COMM_WORLD_LOCAL_RANK",
    "JSM_NAMESPACE_LOCAL_RANK",
    "SLURM_LOCALID",
)
"""Variables by which launchers tell a process its rank among those on its node, nearest launcher first."""

RANK_VARIABLES = (
    "PMI_RANK",
    "PMIX_RANK",
    "OMPI_COMM_WORLD_RANK",
    "PALS_RANKID",
    "FLUX_TASK_RANK",
    "MV2_COMM_WORLD_RANK",
    "JSM_NAMESPACE_RANK",
    "SLURM_PROCID",
)
"""The same for its rank in the program; equal to `pilot.executors.pool.identity.RANK_VARIABLES`."""


def main(file: str, program: str, argv: list[str]) -> None:
    """Become the program; return only by exiting, with a shell's code, if that cannot be done."""
    import marshal  # built in, like all that follows

    with open(file, "rb") as opened:
        told = marshal.load(opened)
    host, rank = os.uname().nodename, _number(RANK_VARIABLES)
    _mark(told["started"], rank, host)
    os.environ.update(told["env"])
    share = _share(told["ranks"], host, rank)
    if share is None:
        _complain(f"rank {rank} on {host} finds no share for itself: it runs unbound")
    else:
        _take(share, told["gpu_variable"], host, rank)
    if told["memory_bytes"] is not None:
        import resource

        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        most = told["memory_bytes"] if hard == resource.RLIM_INFINITY else min(told["memory_bytes"], hard)
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
    import _signal  # type: ignore[import-not-found]

    for number in (_signal.SIGPIPE, _signal.SIGXFSZ):  # Python ignores them; programs should not
        _signal.signal(number, _signal.SIG_DFL)
    try:
        os.execv(program, argv)
    except OSError as error:
        _complain(f"rank {rank} on {host} cannot run the program {program!r}: {error.strerror}")
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


def _number(names: tuple[str, ...]) -> int | None:
    for name in names:
        value = os.environ.get(name, "")
        if value.isdecimal():
            return int(value)
    return None


def _mark(path: str, rank: int | None, host: str) -> None:
    """Show that the launcher has started something; the line tells which process is which rank."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(descriptor, f"{-1 if rank is None else rank} {os.getpid()} {host}\n".encode())
    os.close(descriptor)


def _share(ranks: list[Any], host: str, rank: int | None) -> Any:
    """Return this rank's share: by host and local rank, for a launcher may count otherwise than it was told."""
    here, local = [share for share in ranks if share[0] == host], _number(LOCAL_RANK_VARIABLES)
    if local is not None and local < len(here):
        return here[local]
    return ranks[rank] if rank is not None and rank < len(ranks) else None


def _take(share: Any, gpu_variable: str, host: str, rank: int | None) -> None:
    _, cpus, gpus = share
    if gpu_variable:
        os.environ[gpu_variable] = ",".join(gpus)
    if cpus:
        try:
            os.sched_setaffinity(0, cpus)
        except OSError as error:
            shown = ",".join(map(str, cpus))
            _complain(f"rank {rank} on {host} cannot be bound to CPUs {shown}: {error.strerror}; it runs unbound")


def _complain(text: str) -> None:
    sys.stderr.write(f"pilot: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[2:])
