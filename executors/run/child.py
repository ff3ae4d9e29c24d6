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
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

from pilot import context
from pilot.errors import PoolError
from pilot.executors.run import function
from pilot.executors.run.command import Commands, Ended
from pilot.executors.run.exchange import Exchange, Objects
from pilot.executors.run.failure import describe, exit_code, explained
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

_NO_SITE: Mapping[str, Any] = {}


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
    """Where commands' private working directories are made, and the files of MPI programs; all nodes see it."""
    site: Mapping[str, Any] = _NO_SITE
    """What the site says about MPI programs and GPUs, from `pilot.sites.launchers`."""
    isolated: tuple[str, ...] = ()
    """Program of which each rank runs one MPI function alone: ``python -P -m pilot.pool_main --isolated CONFIG``."""


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
    if variable := place.site.get("gpu_variable"):
        os.environ[variable] = ""  # who was given no GPU sees none
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


class _Done(NamedTuple):
    """What running a task came to."""

    outcome: Outcome = Outcome.SUCCEEDED
    outputs: tuple[tuple[str, Blob], ...] = ()
    failure: Failure | None = None
    exit_code: int | None = None
    elsewhere: tuple[float, int] | None = None
    """CPU seconds and peak bytes of the processes it ran in; None: it ran in this one, which is to be tidied."""
    program: tuple[str, str] | None = None
    launcher: tuple[str, ...] | None = None
    from_outside: bool = False
    """It was ended by TERM or KILL, not necessarily for anything it did."""


_ITS_SLOT = nullcontext()


class _Runner:
    """Turns work into results."""

    def __init__(self, place: Place, objects: Objects, guard: Guard, parent: int) -> None:
        self._place = place
        self._guard = guard
        self._exchange = Exchange(objects)
        self.functions = Functions(self._exchange)
        self._nested: Nested | None = None
        self._commands = Commands(
            self._exchange, guard, place.project, place.scratch, parent, self._open_nested
        )  # fmt: skip
        self._share = Share(place.site.get("gpu_variable", ""))
        self._meter = Meter()
        self._pid = os.getpid()
        self._folder = ""

    def _open_nested(self) -> Nested:
        """Return what starts MPI programs; most children never need it, nor what it imports."""
        if self._nested is None:
            from pilot.executors.run.launch import Launchers
            from pilot.executors.run.nested import Nested

            place = self._place
            folder = f"{place.scratch}/{os.environ.get('PILOT_POOL', '')}.{place.rank}.mpi"
            self._nested = Nested(Launchers.of(place.site), place.host, folder)
        return self._nested

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
        try:
            with self._share.cpus(work) if work.place is not None else _ITS_SLOT:
                done = self._perform(work)
        except Stale:
            return Kind.STALE, b""
        except BaseException as error:  # noqa: BLE001  user code: nothing that it raises may end the child
            self._end_if_forked(error)
            done = _Done(Outcome.FAILED, (), self._failure(work, error), exit_code(error))
        self._end_if_forked(None)
        context.enter(None)
        usage = self._meter.stop()
        if done.elsewhere is None:
            self._guard.restore(work.task)
        else:
            usage = Usage(usage.wall_s, *done.elsewhere)
            self._guard.restore_pipe()
            self._guard.note_leftovers(work.task)
        result = Result(
            work.task, work.attempt, done.outcome, done.outputs, done.failure, done.exit_code, started, time.time(),
            usage, self._place.rank, self._place.host, done.program, None, done.launcher,
        )  # fmt: skip
        return Kind.KILLED if done.from_outside else Kind.RESULT, pack_result(result)

    def _perform(self, work: Work) -> _Done:
        """Do what the task says."""
        base = self._guard.environment
        if work.kind is TaskKind.COMMAND:
            return self._of_command(self._commands.run(work, self._meter, self._share.variables(work, base)))
        if work.isolated:
            return self._isolated(work)
        self._commands.disarm()
        if work.place is not None:
            os.environ.update(self._share.variables(work, base))
        context.enter(self._context(work))
        return _Done(outputs=function.run(work, self.functions, self._exchange, self._meter))

    def _of_command(self, ended: Ended) -> _Done:
        failure = None
        if ended.why:
            rank, host = ended.at or (self._place.rank, self._place.host)
            failure = Failure("CommandFailed", ended.why, "", rank, host)
        return _Done(
            ended.outcome, ended.outputs, failure, ended.exit_code, (ended.cpu_s, ended.max_rss_bytes), ended.program,
            ended.launcher, ended.from_outside,
        )  # fmt: skip

    def _isolated(self, work: Work) -> _Done:
        """Run a function that may crash its ranks in ranks of its own."""
        from pilot.executors.run.isolate import run_isolated

        code = self.functions.code(work.function or "")
        with self._commands.supervised():
            result = run_isolated(work, code, self._open_nested(), self._guard.environment, self._place.isolated)
        failure = result.failure
        if failure is not None and not failure.host:
            failure = failure._replace(host=self._place.host)
        used = result.usage.cpu_s, result.usage.max_rss_bytes
        outside = result.outcome is not Outcome.SUCCEEDED and self._commands.terminated
        return _Done(
            result.outcome, result.outputs, failure, result.exit_code, used, None, result.launcher, outside
        )  # fmt: skip

    def _context(self, work: Work) -> context.Context:
        place = self._place
        return context.Context(
            work.task, work.attempt, work.name, place.project, place.slot, place.rank, place.host
        )  # fmt: skip

    def _end_if_forked(self, error: BaseException | None) -> None:
        """End a copy of the child that the task forked and that came back here: it must not answer for us."""
        if os.getpid() != self._pid:
            code = exit_code(error) if error is not None else 0
            os._exit(1 if code is None else code & 0xFF)

    def _failure(self, work: Work, error: BaseException) -> Failure:
        return explained(describe(error, self._place.rank, self._place.host), error, work.memory_bytes)
