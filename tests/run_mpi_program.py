"""A small MPI program as tasks start it: says who and where it is, then does what it is told.

``run_mpi_program.py [WHAT [ARG]]``; one line of JSON per rank.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from mpi4py import MPI

SHOWN = ("PILOT_", "OMP_", "CUDA_", "MY_")


def main(what: str = "", arg: str = "") -> None:
    comm = MPI.COMM_WORLD
    said = {
        "rank": comm.rank, "size": comm.size, "sum": comm.allreduce(comm.rank), "cpus": sorted(os.sched_getaffinity(0)),
        "pid": os.getpid(), "cwd": os.getcwd(), "library": MPI.Get_library_version().split()[0],
        "env": {name: value for name, value in os.environ.items() if name.startswith(SHOWN)},
    }  # fmt: skip
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()
    comm.Barrier()
    last = comm.rank == comm.size - 1
    if what == "kill" and last:
        os.kill(os.getpid(), int(arg))
        time.sleep(300)
    elif what == "exit" and last:
        os._exit(int(arg))
    elif what == "abort" and last:
        comm.Abort(int(arg))
    elif what == "eat":
        bytearray(int(arg))
    elif what == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if last:
            Path(arg).touch()
        time.sleep(300)
    elif what == "sleep":
        time.sleep(float(arg))
    comm.Barrier()
    if what == "leave":
        sys.exit(int(arg))


if __name__ == "__main__":
    main(*sys.argv[1:])
