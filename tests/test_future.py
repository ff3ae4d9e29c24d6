"""Futures by themselves: light until somebody waits, and then all that `concurrent.futures` promises."""

from __future__ import annotations

import concurrent.futures
import gc
import threading
from typing import Any

import pytest

from pilot.errors import PilotError
from pilot.future import Future
from pilot.states import State

LONG_S = 30.0


class _Owner:
    def __init__(self) -> None:
        self.decoded = 0

    def record_of(self, task: str) -> None:
        return None

    def state_of(self, task: str) -> State:
        return State.READY

    def cancel(self, *tasks: str | Future) -> None:
        pass

    def value_of(self, record: bytes) -> Any:
        self.decoded += 1
        return [record.decode()]


@pytest.fixture
def owner() -> _Owner:
    return _Owner()


def test_it_is_one_object_until_somebody_waits(owner: _Owner) -> None:
    gc.collect()
    before = len(gc.get_objects())
    futures = [Future(str(number), owner) for number in range(1000)]
    for future in futures[:500]:
        future.end_well(b"x")
    assert len(gc.get_objects()) - before < 1100
    assert [future.done() for future in futures] == [True] * 500 + [False] * 500
    assert owner.decoded == 0
    assert futures[0].result() == ["x"]
    assert futures[0].result() is futures[0].result()
    assert owner.decoded == 1


def test_those_who_wait_are_told(owner: _Owner) -> None:
    futures = [Future(str(number), owner) for number in range(60)]
    called: list[Future] = []
    for future in futures[::2]:
        future.add_done_callback(called.append)  # type: ignore[arg-type]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        values = [pool.submit(future.result, LONG_S) for future in futures]
        watched = pool.submit(lambda: [f.result() for f in concurrent.futures.as_completed(futures, LONG_S)])
        for future in futures:
            future.end_well(future.id.encode())
        assert [value.result(LONG_S) for value in values] == [[str(number)] for number in range(60)]
        assert sorted(watched.result(LONG_S)) == sorted([str(number)] for number in range(60))
    assert called == futures[::2]
    assert concurrent.futures.wait(futures, LONG_S).not_done == set()


def test_all_who_ask_at_once_get_the_same_value(owner: _Owner) -> None:
    for _ in range(50):
        future = Future("t", owner)
        start = threading.Barrier(4)

        def ask(future: Future = future, start: threading.Barrier = start) -> Any:
            start.wait(LONG_S)
            return future.result(LONG_S)

        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            asked = [pool.submit(ask) for _ in range(3)]
            start.wait(LONG_S)
            future.end_well(b"v")
            first, *others = [one.result(LONG_S) for one in asked]
        assert all(value is first for value in others)


def test_failure_cancellation_and_impatience(owner: _Owner) -> None:
    waiting, failed, cancelled = (Future(name, owner) for name in ("waiting", "failed", "cancelled"))
    with pytest.raises(TimeoutError):
        waiting.result(0.01)
    failed.set_exception(PilotError("no"))
    cancelled.end_cancelled()
    for _ in range(2):
        with pytest.raises(PilotError, match="no"):
            failed.result()
        with pytest.raises(concurrent.futures.CancelledError):
            cancelled.result()
    assert isinstance(failed.exception(), PilotError)
    assert (cancelled.done(), cancelled.cancelled(), cancelled.state) == (True, True, State.CANCELLED)
    with pytest.raises(concurrent.futures.InvalidStateError):
        failed.set_result(b"")
