"""One MPI function as a program of its own, started by a launcher: if it crashes, nothing else does.

Every rank leaves its part in a folder; who started the program merges them. An exception is a part as any other,
and a rank that has crashed leaves none.
"""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

from pilot.executors.pool.communicators import copy_of
from pilot.executors.pool.inrank import Means, Runner
from pilot.executors.pool.mpi import MPI
from pilot.executors.pool.waiting import Backoff
from pilot.executors.pool.watch import Watch
from pilot.executors.pool.world import EXIT_STUCK, abort, finalise, initialise
from pilot.executors.run.exchange import Objects
from pilot.executors.run.parts import WITH_OTHERS, Isolated, part_file
from pilot.executors.run.wire import pack_result
from pilot.model import Failure, Result, Usage
from pilot.states import Outcome

DEADLINE_S = 10.0
"""So long after it has failed, a rank waits for the others to come back."""
WAITS_S = (1e-3, 0.25)


def main(frame_path: str, folder: str, objects: Objects, deadline_s: float = DEADLINE_S) -> int:
    """Be one rank of the program, in the working directory of functions; return its exit code.

    Args:
        frame_path: file with a packed `parts.Isolated`.
        folder: where the parts go, see `parts.part_file`.
        objects: the object repository.
        deadline_s: see `DEADLINE_S`.

    Raises:
        WorldSizeMismatch: see `world.initialise`.
        PoolError: MPI cannot be used.
    """
    work, code = Isolated.unpack(Path(frame_path).read_bytes())
    ranks = work.ranks or 1
    initialise(ranks)
    parent = copy_of(MPI.COMM_WORLD)
    rank = parent.Get_rank()
    place = work.place.ranks[rank] if work.place else None
    slot, host = (place.slots[0], place.host) if place else (rank, platform.node())
    runner = Runner(Means(objects, os.getcwd(), None), slot, host, Watch(None))
    runner.learn(code)
    result = runner.run(work, rank, None, lambda: parent).result
    _leave(folder, rank, rank, result)
    if not _all_come(parent, None if result.outcome is Outcome.SUCCEEDED else deadline_s):
        for other in range(ranks):
            if not os.path.exists(part_file(folder, other)):
                _leave(folder, other, rank, _stuck(result, other, deadline_s))
        abort(EXIT_STUCK, f"rank {rank} has failed, and others did not come back within {deadline_s:g} s")
    finalise()
    return 0


def _leave(folder: str, rank: int, writer: int, part: Result) -> None:
    """Write a part, whole or not at all."""
    draft = Path(folder, f".part-{rank}-{writer}")
    draft.write_bytes(pack_result(part))
    draft.replace(part_file(folder, rank))


def _all_come(comm: MPI.Intracomm, deadline_s: float | None) -> bool:
    """Wait until all ranks have come here, without a deadline unless this one has failed."""
    until = None if deadline_s is None else time.monotonic() + deadline_s
    backoff = Backoff(*WAITS_S)
    request = comm.Ibarrier()
    while not request.Test():
        if until is not None and time.monotonic() > until:
            return False
        time.sleep(backoff.step())
    return True


def _stuck(failed: Result, rank: int, deadline_s: float) -> Result:
    """Return the part of a rank that is not back; `failed` is that of the one which says so."""
    why = f"rank {rank} did not come back within {deadline_s:g} s of the failure of another rank"
    failure = Failure(WITH_OTHERS, f"{why}: it is probably inside an MPI call", "", rank, "")
    return failed._replace(
        outcome=Outcome.FAILED, outputs=(), failure=failure, exit_code=None, finished=time.time(), usage=Usage(0, 0, 0)
    )
