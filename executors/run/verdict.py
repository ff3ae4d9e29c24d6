"""Results that the rank writes because the child could not: pure functions, no process and no clock."""

from __future__ import annotations

import signal
from typing import NamedTuple

from pilot.executors.run.failure import signal_text
from pilot.executors.run.wire import pack_result, unpack_result
from pilot.model import Failure, Log, Result, Usage
from pilot.states import Outcome

Key = tuple[str, int]
"""Task id and attempt."""


class Item(NamedTuple):
    """One attempt on its way to a child; `frame` is from `wire.pack_work`, opened by the child only."""

    task: str
    attempt: int
    function: str | None
    """Hash of the function; None for a command."""
    walltime_s: float | None
    fresh: bool
    """Runs in a process that has run nothing before and runs nothing after."""
    frame: bytes

    @property
    def key(self) -> Key:
        """Task and attempt."""
        return self.task, self.attempt


class Finished(NamedTuple):
    """One attempt that ended; `body` is the packed `Result` without its log, as a rule unopened by ranks."""

    task: str
    attempt: int
    body: bytes
    log: Log | None

    @property
    def key(self) -> Key:
        """Task and attempt."""
        return self.task, self.attempt

    def result(self) -> Result:
        """Open the body and put the log in."""
        result = unpack_result(self.body)
        return result if self.log is None else result._replace(log=self.log)


class Death(NamedTuple):
    """How a child ended: by `signal`, or if that is 0 with exit code `code`."""

    code: int
    signal: int

    @property
    def by_outsider(self) -> bool:
        """Whether it was TERM or KILL: a batch system that ends the job sends these, and so does the kernel."""
        return self.signal in (signal.SIGTERM, signal.SIGKILL)

    @property
    def text(self) -> str:
        """Say it in words."""
        if self.signal:
            return signal_text(self.signal)
        return f"ended without a result, with exit code {self.code} (os._exit?)"


class Span(NamedTuple):
    """When an attempt ran as the rank saw it (seconds since the epoch), and where."""

    started: float
    finished: float
    rank: int
    host: str


def died(item: Item, death: Death, span: Span, ending: bool) -> bytes:
    """Return the body for an attempt whose process died; `lost` if the pilot is ending and may be the reason."""
    lost = ending and death.by_outsider
    what = f"the process of task {item.task} {'was ended with its pilot' if lost else death.text}"
    exit_code = -death.signal if death.signal else death.code
    return pack_result(_result(item, Outcome.LOST if lost else Outcome.CRASHED, "ProcessDied", what, span, exit_code))


def stopped(item: Item, outcome: Outcome, span: Span, body: bytes | None) -> bytes:
    """Return the body for an attempt that was killed at its walltime (`timeout`) or on request (`cancelled`).

    Args:
        body: what the child still reported meanwhile, if it did. A success that came first stands; of
            anything else the usage and the words are taken.
    """
    if outcome is Outcome.TIMEOUT:
        kind, what = "WalltimeReached", f"task {item.task} was killed at its walltime of {item.walltime_s:g} s"
    else:
        kind, what = "Cancelled", f"task {item.task} was killed on request"
    result = _result(item, outcome, kind, what, span, None)
    if body is not None:
        reported = unpack_result(body)
        if reported.outcome is Outcome.SUCCEEDED:
            return body
        result = result._replace(usage=reported.usage, started=reported.started)
        if reported.failure is not None:
            words = f"{what}: {reported.failure.message}"
            result = result._replace(failure=reported.failure._replace(type=kind, message=words))
    return pack_result(result)


def killed(body: bytes, ending: bool) -> bytes:
    """Return the body of a command that TERM or KILL from outside ended: `lost` if the pilot is ending."""
    return pack_result(unpack_result(body)._replace(outcome=Outcome.LOST)) if ending else body


def _result(item: Item, outcome: Outcome, kind: str, what: str, span: Span, exit_code: int | None) -> Result:
    failure = Failure(kind, what, "", span.rank, span.host)
    usage = Usage(max(0.0, span.finished - span.started), 0.0, 0)
    return Result(
        item.task, item.attempt, outcome, (), failure, exit_code, span.started, span.finished, usage,
        span.rank, span.host,
    )  # fmt: skip
