"""The child's own side: take a task, run it, say how it ended, be as before.

The process' entry calls `inherit`, builds the object repository, and calls `serve`. What is imported up to
here is all that user code finds loaded, so it is kept light (no pymongo, click, pydantic, rich, mpi4py).
"""

from __future__ import annotations

import _socket
import os
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from pilot import context
from pilot.errors import PoolError
from pilot.executors.run import function
from pilot.executors.run.command import Commands, Ended
from pilot.executors.run.exchange import Exchange, Objects
from pilot.executors.run.failure import clipped, describe
from pilot.executors.run.frames import ENDS_VARIABLE, Inbox, Kind, Packet, send
from pilot.executors.run.function import Functions, Stale
from pilot.executors.run.guard import Guard, default_signals, die_with_parent
from pilot.executors.run.meter import Meter
from pilot.executors.run.position import Position
from pilot.executors.run.share import Share
from pilot.executors.run.wire import pack_result, unpack_work
from pilot.model import Blob, Failure, Result, Usage, Work
from pilot.states import Kind as TaskKind
from pilot.states import Outcome

if TYPE_CHECKING:
    from pilot.executors.run.nested import Nested

_NOTHING: Mapping[str, Any] = {}


class Ends(NamedTuple):
    """What a child inherits from its rank."""

    tasks: _socket.socket
    results: _socket.socket
    position: Position
    parent: int
    """The rank's process id."""


class Place(NamedTuple):
    """Where a child runs. Paths are absolute."""

    rank: int
    slot: int
    host: str
    project: str
    """Working directory of functions, and of commands that have none of their own."""
    scratch: str
    """Where commands' private working directories are made."""
    launchers: Mapping[str, Any] = _NOTHING
    """How MPI programs are started here, as plain data; see `launch.Launchers.of`."""
    config: str = ""
    """The pool's configuration file."""


def inherit() -> Ends:
    """Take over the rank's channels; the programs that tasks start do not inherit them.

    Raises:
        PoolError: this process was not started as a child.
    """
    try:
        tasks, results, position, parent = map(int, os.environ.pop(ENDS_VARIABLE).split())
    except (KeyError, ValueError):
        raise PoolError("this process was not started by a pool's rank: run `pilot up` instead") from None
    for number in (tasks, results, position):
        os.set_inheritable(number, False)
    return Ends(_socket.socket(fileno=tasks), _socket.socket(fileno=results), Position(position), parent)


def serve(ends: Ends, place: Place, objects: Objects) -> None:
    """Run tasks until the rank closes the queue. Call it on the main thread; the process belongs to it.

    Raises:
        OSError: the project directory cannot be entered, or user code closed the channels.
    """
    die_with_parent(ends.parent)
    default_signals()
    guard = Guard(place.project)
    runner = _Runner(place, objects, guard, ends.parent)
    inbox = Inbox(ends.tasks)
    send(ends.results, Packet(Kind.READY, 0, 0, b""))
    while (packet := inbox.receive()) is not None:
        if packet.kind is Kind.CODE:
            runner.functions.add(packet.body)
            continue
        kind, body = runner.run(unpack_work(packet.body))
        send(ends.results, Packet(kind, packet.number, ends.position.written(1), body))
        if kind is Kind.STALE:
            return


class _Runner:
    """Turns work into results."""

    def __init__(self, place: Place, objects: Objects, guard: Guard, parent: int) -> None:
        self._place = place
        self._guard = guard
        self._exchange = Exchange(objects)
        self.functions = Functions(self._exchange)
        self._commands = Commands(self._exchange, guard, place.project, place.scratch, parent, self._nested)
        self._share = Share(place.launchers.get("gpu_variable", ""))
        self._meter = Meter()
        self._pid = os.getpid()
        self._folder = ""

    def _enter_folder(self, folder: str) -> bool:
        """Put the submitter's folder last on the path; no if another one is there: equal names may differ in it."""
        if self._folder and folder:
            return False
        if folder:
            self._folder = folder
            if folder not in sys.path:
                sys.path.append(folder)
        return True

    def run(self, work: Work) -> tuple[Kind, bytes]:
        """Run one attempt; return what to answer. Whatever user code does, short of ending the process, ends here."""
        if work.kind is TaskKind.FUNCTION and work.function not in self.functions:
            return Kind.RETURNED, b""
        if work.folder != self._folder and not self._enter_folder(work.folder):
            return Kind.STALE, b""
        if not self._share.fits(work):
            return Kind.STALE, b""
        started = time.time()
        self._meter.start()
        outputs: tuple[tuple[str, Blob], ...] = ()
        ended: Ended | None = None
        failure: Failure | None = None
        outcome, exit_code = Outcome.SUCCEEDED, None
        try:
            with self._share.cpus(work):
                if work.kind is TaskKind.COMMAND:
                    ended = self._commands.run(work, self._meter, self._share.variables(work, self._guard.environment))
                elif work.isolated:
                    return Kind.RESULT, pack_result(self._alone(work))
                else:
                    outputs = self._call(work)
        except Stale:
            return Kind.STALE, b""
        except BaseException as error:  # noqa: BLE001  user code: nothing that it raises may end the child
            self._end_if_forked(error)
            outcome, failure, exit_code = Outcome.FAILED, self._failure(work, error), _exit_code(error)
        self._end_if_forked(None)
        context.enter(None)
        usage = self._meter.stop()
        if ended is None:
            self._guard.restore(work.task)
        else:
            self._guard.restore_pipe()
            self._guard.note_leftovers(work.task)
        place = self._place
        result = Result(
            work.task, work.attempt, outcome, outputs, failure, exit_code, started, time.time(), usage, place.rank,
            place.host,
        )  # fmt: skip
        if ended is not None:
            result = self._of_command(result, ended)
        return Kind.KILLED if ended is not None and ended.from_outside else Kind.RESULT, pack_result(result)

    def _call(self, work: Work) -> tuple[tuple[str, Blob], ...]:
        """Call the task's function; return its outputs."""
        self._commands.disarm()
        os.environ.update(self._share.variables(work, self._guard.environment))
        context.enter(self._context(work))
        return function.run(work, self.functions, self._exchange, self._meter)

    def _alone(self, work: Work) -> Result:
        """Run an MPI function in a program of its own."""
        from pilot.executors.run.alone import run_alone

        env, code = self._guard.environment, self.functions.code(work.function or "")
        result = run_alone(work, code, env, self._place.config, self._nested(), self._commands)
        self._guard.restore_pipe()
        return result._replace(rank=self._place.rank, host=self._place.host)

    def _nested(self) -> Nested:
        """Return what starts MPI programs; loaded when first needed."""
        from pilot.executors.run.launch import Launchers
        from pilot.executors.run.nested import Nested

        plain = self._place.launchers
        launchers = Launchers.of(plain) if plain else Launchers()
        return Nested(launchers, self._place.host, self._place.scratch)

    def _of_command(self, result: Result, ended: Ended) -> Result:
        """Return the result of a command."""
        rank, host = (self._place.rank, self._place.host) if ended.at is None else ended.at
        failure = Failure("CommandFailed", ended.why, "", rank, host) if ended.why else result.failure
        usage = Usage(result.usage.wall_s, ended.cpu_s, ended.max_rss_bytes)
        return result._replace(
            outcome=ended.outcome, outputs=ended.outputs, exit_code=ended.exit_code, usage=usage, failure=failure,
            program=ended.program, launcher=ended.launcher,
        )  # fmt: skip

    def _context(self, work: Work) -> context.Context:
        place = self._place
        return context.Context(
            work.task, work.attempt, work.name, place.project, place.slot, place.rank, place.host
        )  # fmt: skip

    def _end_if_forked(self, error: BaseException | None) -> None:
        """End a copy of the child that the task forked and that came back here: it must not answer for us."""
        if os.getpid() != self._pid:
            code = _exit_code(error) if error is not None else 0
            os._exit(1 if code is None else code & 0xFF)

    def _failure(self, work: Work, error: BaseException) -> Failure:
        failure = describe(error, self._place.rank, self._place.host)
        if isinstance(error, SystemExit):
            return failure._replace(message=clipped(f"the task called sys.exit({error.code!r})", 1000))
        if isinstance(error, MemoryError) and work.memory_bytes is not None:
            text = f"the task needs more than its memory limit of {work.memory_bytes / (1 << 20):.0f} MiB"
            return failure._replace(message=f"{text}: {failure.message}" if failure.message else text)
        return failure


def _exit_code(error: BaseException) -> int | None:
    """Return the exit code that a `SystemExit` would have given the process, None for any other error."""
    if not isinstance(error, SystemExit):
        return None
    return error.code if isinstance(error.code, int) else int(error.code is not None)
