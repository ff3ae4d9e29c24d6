"""An MPI function in an MPI program of its own: what ended a pool before must not end another; the child's side."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping

from pilot.executors.run.command import Commands
from pilot.executors.run.failure import signal_text
from pilot.executors.run.nested import Nested, Program, Ran
from pilot.executors.run.parts import Isolated, merge, part_file
from pilot.executors.run.scrub import command_environment
from pilot.executors.run.wire import unpack_result
from pilot.model import Failure, FunctionCode, Result, Usage, Work
from pilot.states import Outcome


def run_alone(
    work: Work, code: FunctionCode, env: Mapping[str, str], config: str, nested: Nested, commands: Commands
) -> Result:
    """Run the function over the task's placement, started by a launcher, and merge what its ranks leave.

    Args:
        work: a function with ranks.
        code: of the function.
        env: of the child.
        config: the pool's configuration file.
        nested: starts the program.
        commands: keeps signals away while it runs.

    Raises:
        LauncherNotFound: the launcher of the pool's MPI is not there.
        OSError: files cannot be written or read.
    """
    ranks, started = work.ranks or 1, time.time()
    env = command_environment(env, work.task, work.attempt, work.cores, {})
    with nested.folder(work) as folder:
        frame = os.path.join(folder, "frame")
        with open(frame, "wb") as file:
            file.write(Isolated(work, code).pack())
        argv = ("-P", "-m", "pilot.pool_main", "--isolated", config, frame, folder)
        with commands.supervised():
            ran = nested.run(work, Program(sys.executable, argv, env, {}, ""), folder)
        parts = {}
        for rank in range(ranks):
            if os.path.exists(path := part_file(folder, rank)):
                with open(path, "rb") as file:
                    parts[rank] = unpack_result(file.read())
    result = merge(parts, ranks, _what_ended(ran))
    if not ran.started:
        failure = Failure("LauncherFailed", ran.why, "", -1, "")
        result = result._replace(outcome=Outcome.LOST, failure=failure)
    if not parts:
        result = result._replace(started=started, finished=time.time(), usage=Usage(0.0, ran.cpu_s, ran.max_rss_bytes))
    if len(parts) < ranks:
        result = result._replace(exit_code=ran.code)
        if ran.started and ran.blamed is not None and result.failure is not None:
            blamed = ran.blamed
            result = result._replace(failure=result.failure._replace(rank=blamed.rank, host=blamed.host))
    return result._replace(task=work.task, attempt=work.attempt, launcher=ran.launcher)


def _what_ended(ran: Ran) -> str:
    """Say how the program ended, as the reason why parts are missing."""
    if not ran.started:
        return ran.why
    how = signal_text(-ran.code) if ran.code < 0 else f"ended with exit code {ran.code}"
    if ran.blamed is not None and ran.blamed.rank >= 0:
        return f"rank {ran.blamed.rank} on {ran.blamed.host} {how}"
    return f"the program {how}"
