"""Run MPI functions in a rank, as a child runs others: load, call, encode, and be as before.

What goes wrong before the call in one rank keeps all from calling, or they would wait for it inside MPI.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pilot import calls, context
from pilot.calls import COMM
from pilot.executors.pool.capture import Capture
from pilot.executors.pool.communicators import CommunicatorFailed, Communicators, copy_of, exhausted
from pilot.executors.pool.messages import Address, Begin, Free, Part
from pilot.executors.pool.mpi import MPI
from pilot.executors.pool.watch import CANCELLED, WALLTIME, Watch
from pilot.executors.run.exchange import Exchange, Objects
from pilot.executors.run.failure import describe, exit_code, explained
from pilot.executors.run.function import Functions, Stale
from pilot.executors.run.guard import Guard
from pilot.executors.run.meter import Meter
from pilot.executors.run.parts import WITH_OTHERS, output_name
from pilot.executors.run.verdict import Key
from pilot.executors.run.wire import pack_result, unpack_work
from pilot.model import Blob, Failure, FunctionCode, Result, Usage, Work
from pilot.states import Outcome
from pilot.values import encode

_HERE = os.path.dirname(__file__)


class Means(NamedTuple):
    """What a rank is given to run MPI functions."""

    objects: Objects
    project: str
    """Their working directory."""
    output: Path | None
    """Where to keep what they print; None: as the process does."""


class Ran(NamedTuple):
    """What has come of a function in one rank."""

    result: Result
    comm: MPI.Intracomm | None
    """The communicator that the function was given, if it was called; nobody has freed it."""
    worn: str
    """Why this rank should run no more of them; empty: it may."""


class _OthersFailed(Exception):
    """Nothing was called, because another rank cannot."""


class InRank:
    """Does what rank 0 orders.

    Args:
        parent: a communicator of the whole pool that carries nothing else.
        host: the name of this node.
        means: what functions need; None: refuse them.
        address: where nudges come.
    """

    def __init__(self, parent: MPI.Intracomm, host: str, means: Means | None, address: Address) -> None:
        self._rank, self._host = parent.Get_rank(), host
        self._communicators = Communicators(parent)
        self._codes: dict[str, FunctionCode] = {}
        self._runner = None if means is None else Runner(means, self._rank, host, Watch(address))

    def learn(self, code: FunctionCode) -> None:
        """Keep a function's code, before the first order that names it."""
        self._codes[code.hash] = code

    def free(self, order: Free) -> None:
        """Free communicators."""
        self._communicators.free(order.groups, order.numbers)

    def run(self, order: Begin) -> Part:
        """Run a function, together with the other members, to its end in this rank. Main thread only."""
        work, index = unpack_work(order.item.frame), order.members.index(self._rank)
        self._communicators.free((), order.free)
        if self._runner is None:
            return self._refused(order.item.key, index)
        self._runner.learn(self._codes[work.function or ""])
        ran = self._runner.run(
            work, index, order.item.walltime_s,
            lambda: self._communicators.group(order.group, order.members, order.new),
        )  # fmt: skip
        if ran.comm is not None:
            self._communicators.keep(order.number, ran.comm)
        log, body = ran.result.log, pack_result(ran.result)
        return Part(order.item.key, index, body, log, ran.worn)

    def _refused(self, key: Key, index: int) -> Part:
        why, now = "the ranks of this pool were not given what MPI functions need", time.time()
        failure = Failure("PoolError", why, "", index, self._host)
        result = Result(*key, Outcome.LOST, (), failure, None, now, now, Usage(0, 0, 0), self._rank, self._host)
        return Part(key, index, pack_result(result), None, why)


class Runner:
    """Runs MPI functions in this process, one after the other.

    Args:
        means: what they need.
        rank: of this process in its MPI program.
        host: the name of this node.
        watch: what interrupts them.
    """

    def __init__(self, means: Means, rank: int, host: str, watch: Watch) -> None:
        self._means, self._rank, self._host, self._watch = means, rank, host, watch
        self._exchange = Exchange(means.objects)
        self._functions = Functions(self._exchange)
        self._capture = Capture(means.output) if means.output else None
        self._meter = Meter()
        self._guard: Guard | None = None
        self._pid = os.getpid()
        self._folder = ""
        self._called = 0
        self._comm: MPI.Intracomm | None = None

    def learn(self, code: FunctionCode) -> None:
        """Take a function's code, unless it is here."""
        if code.hash not in self._functions:
            self._functions.add(pickle.dumps(code, 5))

    def run(self, work: Work, index: int, walltime_s: float | None, group: Callable[[], MPI.Intracomm]) -> Ran:
        """Run a function to its end, whatever it does, short of ending the process.

        Args:
            work: its place names the CPUs of this rank, or none.
            index: this rank's number in the task.
            walltime_s: when to interrupt it.
            group: returns the communicator of its ranks, in all of them; the function gets a copy of that.
        """
        guard = self._enter(work, index)
        self._watch.begin((work.task, work.attempt), walltime_s)
        started = time.time()
        self._meter.stop()  # what the slot's children have used meanwhile is not the function's
        self._meter.start()
        outputs: tuple[tuple[str, Blob], ...] = ()
        outcome, failure, worn = Outcome.SUCCEEDED, None, ""
        code: int | None = None
        try:
            outputs = self._attempt(work, index, group)
        except BaseException as error:  # noqa: BLE001  user code: nothing that it raises may end the rank
            self._watch.forbid()
            self._end_if_forked()
            outcome, failure, worn = self._judge(error, work, index)
            code = exit_code(error)
        self._end_if_forked()
        self._watch.end()
        context.enter(None)
        usage = self._meter.stop()
        guard.restore(work.task)
        result = Result(
            work.task, work.attempt, outcome, outputs, failure, code, started, time.time(), usage,
            self._rank, self._host, log=self._capture.end() if self._capture else None,
        )  # fmt: skip
        comm, self._comm = self._comm, None
        return Ran(result, comm, worn)

    # -- steps ------------------------------------------------------------------------------------

    def _enter(self, work: Work, index: int) -> Guard:
        """Make ready to run: from here on, what is printed is the function's."""
        self._watch.start()  # before the guard counts threads
        if self._capture:
            self._capture.begin()
        if self._guard is None:
            self._guard = Guard(self._means.project)
        threads = str(work.cores)
        if os.environ.get("OMP_NUM_THREADS") != threads:
            os.environ["OMP_NUM_THREADS"] = threads
        return self._guard

    def _attempt(self, work: Work, index: int, group: Callable[[], MPI.Intracomm]) -> tuple[tuple[str, Blob], ...]:
        """Call the function when all ranks are ready to; return the output that this one has to give.

        Raises:
            BaseException: whatever the function raises, and what kept it from being called.
        """
        comm = group()
        cpus = work.place.ranks[index].cpus if work.place else ()
        with _affinity(cpus), self._limit(work):
            function = self._ready(work, comm)
            self._comm = copy_of(comm)
            context.enter(self._context(work))
            self._called += 1
            try:
                self._watch.allow()
                value = function(self._comm)
                name = output_name(index, work.gather)
                return (
                    ()
                    if name is None
                    else ((name, self._exchange.keep(encode(value, f"the {name} of {work.name!r}"))),)
                )
            finally:
                self._watch.forbid()

    def _ready(self, work: Work, comm: MPI.Intracomm) -> Callable[[MPI.Intracomm], Any]:
        """Load the function and its arguments; return what to call when all ranks have done so.

        Raises:
            _OthersFailed: another rank could not.
            BaseException: this one could not.
        """
        why: BaseException = _OthersFailed("not called, because another rank could not load it or its arguments")
        call = None
        try:
            self._watch.allow()
            call = self._load(work)
        except BaseException as error:  # noqa: BLE001  the others wait to hear of it
            why = error
        finally:
            self._watch.forbid()
        all_ready = array("i", [call is not None])
        comm.Allreduce(MPI.IN_PLACE, all_ready, MPI.MIN)
        if call is None or not all_ready[0]:
            raise why
        return call

    def _load(self, work: Work) -> Callable[[MPI.Intracomm], Any]:
        self._enter_folder(work.folder)
        function = self._functions.load(work.function or "")
        named = self._exchange.inputs(work)
        if calls.takes(function, COMM):
            return lambda comm: calls.call(function, [*named, (COMM, comm)])
        return lambda comm: calls.call(function, named)

    def _enter_folder(self, folder: str) -> None:
        """Put the submitter's folder last on the path.

        Raises:
            Stale: another one is there, and equal names may differ in it.
        """
        if not folder or folder == self._folder:
            return
        if self._folder:
            raise Stale(f"this rank has run functions from {self._folder!r} before, and this one is from {folder!r}")
        self._folder = folder
        if folder not in sys.path:
            sys.path.append(folder)

    def _limit(self, work: Work) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if work.memory_bytes is None else self._meter.limit(work.memory_bytes)

    def _context(self, work: Work) -> context.Context:
        return context.Context(
            work.task, work.attempt, work.name, self._means.project, self._rank, self._rank, self._host, self._comm
        )

    # -- failures ---------------------------------------------------------------------------------

    def _judge(self, error: BaseException, work: Work, index: int) -> tuple[Outcome, Failure, str]:
        """Return how the attempt ended in this rank, why, and whether the rank is worn."""
        failure = self._describe(error, index)
        if isinstance(error, _OthersFailed):
            return Outcome.FAILED, failure._replace(type=WITH_OTHERS, traceback=""), ""
        if isinstance(error, Stale | CommunicatorFailed):
            return Outcome.LOST, failure, f"{failure.type}: {failure.message}"
        if exhausted(error) and self._called > 1:  # in a fresh rank it is the function's own doing
            why = "MPI has no communicator left, because functions before did not free theirs"
            return Outcome.LOST, failure._replace(message=f"{why}: {failure.message}"), why
        why = self._watch.why
        if why:
            return self._interrupted(why, failure, work)
        return Outcome.FAILED, explained(failure, error, work.memory_bytes), ""

    def _interrupted(self, why: str, failure: Failure, work: Work) -> tuple[Outcome, Failure, str]:
        if why == WALLTIME:
            outcome, kind, text = Outcome.TIMEOUT, "WalltimeReached", f"task {work.task} was ended at its walltime"
        elif why == CANCELLED:
            outcome, kind, text = Outcome.CANCELLED, "Cancelled", f"task {work.task} was ended on request"
        else:
            outcome, kind, text = Outcome.FAILED, WITH_OTHERS, "ended, because another rank had failed"
        return outcome, failure._replace(type=kind, message=text), ""

    def _describe(self, error: BaseException, index: int) -> Failure:
        trace = error.__traceback__
        while trace is not None and os.path.dirname(trace.tb_frame.f_code.co_filename) == _HERE:
            trace = trace.tb_next
        return describe(error.with_traceback(trace or error.__traceback__), index, self._host)

    def _end_if_forked(self) -> None:
        """End a copy of the rank that the function forked and that came back here: it must not speak MPI."""
        if os.getpid() != self._pid:
            os._exit(1)


@contextlib.contextmanager
def _affinity(cpus: tuple[int, ...]) -> Iterator[None]:
    """Run on these CPUs, if any are named and the system lets us; threads made meanwhile stay there."""
    if not cpus:
        yield
        return
    before = os.sched_getaffinity(0)
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
