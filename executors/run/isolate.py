"""An MPI function in an MPI program of its own: it was running when a pool died, and may have been the reason.

The child starts the pool's own program for that on every rank of the placement. Each rank leaves its result in a file;
one that leaves none has crashed, and with it only this attempt.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from pilot.executors.run.failure import clipped, signal_text
from pilot.executors.run.launch import in_launch_order
from pilot.executors.run.nested import Nested, Program, Ran
from pilot.executors.run.parts import Isolated, merge, part_file
from pilot.executors.run.scrub import command_environment
from pilot.executors.run.wire import unpack_result
from pilot.model import Failure, FunctionCode, Placement, Result, Usage, Work
from pilot.states import Outcome

_FUNCTION_FILE = "function"


def run_isolated(work: Work, code: FunctionCode, nested: Nested, env: dict[str, str], entry: Sequence[str]) -> Result:
    """Run the function to its end and return its result; task, times and place are for the caller to fill in.

    Args:
        work: the attempt.
        code: its function.
        nested: starts the program.
        env: the child's environment.
        entry: the program that every rank is, to which the function's file and the folder are appended.

    Raises:
        LauncherNotFound: the launcher of the pool's own MPI is not there.
        OSError: files cannot be written or read.
    """
    ranks = work.ranks or 1
    if work.place is not None:
        work = work._replace(place=Placement(in_launch_order(work.place.ranks)))
    env = command_environment(env, work.task, work.attempt, work.cores, {})
    with nested.folder() as folder:
        file = os.path.join(folder, _FUNCTION_FILE)
        with open(file, "wb") as opened:
            opened.write(Isolated(work, code).pack())
        ran = nested.run(work, Program(entry[0], (*entry[1:], file, folder), env, {}, ""), folder)
        parts: dict[int, Result] = {}
        for rank in range(ranks):
            with contextlib.suppress(FileNotFoundError), open(part_file(folder, rank), "rb") as opened:
                parts[rank] = unpack_result(opened.read())
    result = merge(parts, ranks, _missing(ran))._replace(launcher=ran.launcher)
    if not parts:
        result = result._replace(usage=Usage(0.0, ran.cpu_s, ran.max_rss_bytes))
    if not ran.started:
        return result._replace(outcome=Outcome.LOST, failure=Failure("LauncherFailed", ran.why, "", -1, ""))
    if len(parts) < ranks and result.failure is not None:
        rank, host = (ran.blamed.rank, ran.blamed.host) if ran.blamed is not None else (-1, "")
        if rank >= 0 or ranks - len(parts) > 1:  # else the one that is missing is the one
            result = result._replace(failure=result.failure._replace(rank=rank, host=host))
        result = result._replace(exit_code=ran.code if ran.code else None)
    return result


def _missing(ran: Ran) -> str:
    """Say what is known of ranks that left no result."""
    how = signal_text(-ran.code) if ran.code < 0 else f"ended with exit code {ran.code}"
    who = "their program"
    if ran.blamed is not None and ran.blamed.rank >= 0:
        who = f"rank {ran.blamed.rank} on {ran.blamed.host}"
    last = f"; last output:\n{clipped(ran.words, 2000)}" if ran.words else ""
    return f"{who} {how}{last}"
