"""mpi4py with the settings this project needs, made before its `MPI` module loads. Import `MPI` from here.

Nothing starts at import: `world.start` initialises, `World.finish` finalises.
"""

from __future__ import annotations

import mpi4py

mpi4py.rc(
    initialize=False,
    finalize=False,
    thread_level="funneled",
    recv_mprobe=False,  # matched probes break on some libfabric providers
)

from mpi4py import MPI  # noqa: E402  the settings above must come first

__all__ = ["MPI"]
