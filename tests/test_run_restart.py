"""Schedules and verdicts of the rank: pure, with the time passed in."""

from __future__ import annotations

import signal

import pytest

from pilot.executors.run import verdict
from pilot.executors.run.restart import Settings, Starts, Stopping
from pilot.executors.run.verdict import Death, Finished, Item, Span
from pilot.executors.run.wire import pack_result, pack_work, unpack_result, unpack_work
from pilot.model import Blob, Command, Failure, Log, Result, Usage, Work
from pilot.states import Kind, Outcome

FUNCTION = Item("task", 2, "f" * 64, 5.0, False, b"")
COMMAND = FUNCTION._replace(function=None)
SPAN = Span(100.0, 105.0, 3, "node")
DUMP, TERM, KILL = (signal.SIGQUIT, False), (signal.SIGTERM, True), (signal.SIGKILL, True)


@pytest.mark.parametrize(
    ("item", "outcome", "expected"),
    [
        (FUNCTION, Outcome.TIMEOUT, [(0.0, DUMP), (0.1, TERM), (2.1, KILL), (7.1, None)]),
        (COMMAND, Outcome.TIMEOUT, [(0.0, TERM), (2.0, KILL), (7.0, None)]),
        (FUNCTION, Outcome.CANCELLED, [(0.0, TERM), (1.0, KILL), (6.0, None)]),
    ],
)
def test_signals_in_turn(item: Item, outcome: Outcome, expected: list[tuple[float, object]]) -> None:
    stopping = Stopping(item, outcome, Settings(), 0.0)
    seen = []
    for _ in expected:
        seen.append((round(stopping.next_at, 3), stopping.step(stopping.next_at)))
    assert seen == expected


def test_starts_slow_down_then_halt_then_begin_anew() -> None:
    starts = Starts(Settings(delays_s=(1.0, 10.0), rest_s=60.0))
    waits = []
    for _ in range(2):
        for i in range(3):
            assert starts.broken() is None
            starts.failed(f"reason {i}", 1000.0)
            waits.append(starts.next_at - 1000.0)
        assert starts.broken() == "tried 3 times to start a child process, last: reason 2"
    assert waits == [1.0, 10.0, 60.0] * 2
    starts.failed("once", 1000.0)
    starts.succeeded()
    starts.failed("again", 1000.0)
    assert starts.next_at == 1001.0


def test_success_that_came_first_stands() -> None:
    good = _result(Outcome.SUCCEEDED)
    assert verdict.stopped(FUNCTION, Outcome.TIMEOUT, SPAN, pack_result(good)) == pack_result(good)


def test_stopped_keeps_what_was_reported() -> None:
    failure = Failure("CommandFailed", "it said why", "", 3, "node")
    bad = _result(Outcome.CRASHED)._replace(failure=failure)
    result = unpack_result(verdict.stopped(COMMAND, Outcome.CANCELLED, SPAN, pack_result(bad)))
    assert (result.outcome, result.usage, result.exit_code) == (Outcome.CANCELLED, bad.usage, None)
    assert result.failure
    assert result.failure.message == "task task was killed on request: it said why"


@pytest.mark.parametrize(
    ("death", "ending", "outcome", "exit_code"),
    [
        (Death(3, 0), False, Outcome.CRASHED, 3),
        (Death(3, 0), True, Outcome.CRASHED, 3),
        (Death(0, signal.SIGKILL), False, Outcome.CRASHED, -9),
        (Death(0, signal.SIGKILL), True, Outcome.LOST, -9),
        (Death(0, signal.SIGTERM), True, Outcome.LOST, -15),
        (Death(0, signal.SIGBUS), True, Outcome.CRASHED, -7),
        (Death(0, 40), False, Outcome.CRASHED, -40),
    ],
)
def test_died(death: Death, ending: bool, outcome: Outcome, exit_code: int) -> None:
    result = unpack_result(verdict.died(FUNCTION, death, SPAN, ending))
    assert (result.task, result.attempt, result.outcome, result.exit_code) == ("task", 2, outcome, exit_code)
    assert (result.started, result.finished, result.usage.wall_s, result.rank) == (100.0, 105.0, 5.0, 3)


def test_work_and_results_come_back_as_they_were() -> None:
    blob, far = Blob("0" * 64, 5, b"jnull"), Blob("1" * 64, 50_000, None)
    work = Work(
        "task", 1, Kind.COMMAND, "name", None, Command(("a", "b"), env={"x": "y"}), (("in", blob),),
        {("parent", None): far, ("parent", "xml"): blob}, 1 << 30, 4,
    )  # fmt: skip
    assert unpack_work(pack_work(work)) == work
    result = _result(Outcome.FAILED)._replace(outputs=(("a", blob), ("b", far)), failure=Failure("T", "m", "t", 1, "h"))
    assert unpack_result(pack_result(result)) == result
    log = Log("file", 1, 2, "x")
    assert Finished("task", 2, pack_result(result), log).result() == result._replace(log=log)


def _result(outcome: Outcome) -> Result:
    return Result("task", 2, outcome, (), None, 0, 101.0, 104.0, Usage(3.0, 2.0, 1000), 3, "node")
