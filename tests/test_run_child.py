"""One child under everything that user code can do to it: functions. Real processes, no mocks."""

from __future__ import annotations

import os
import pickle
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import pilot.context
from pilot.errors import PilotError
from pilot.executors.run.handle import Child, Item
from pilot.functions import describe
from pilot.model import Blob
from pilot.states import Outcome
from pilot.values import encode, encode_argument
from tests import run_tasks
from tests.run_rig import Rig, alive, wait_for


@pytest.fixture
def rig(tmp_path: Path) -> Any:
    with Rig(tmp_path) as made:
        yield made


# -- values -----------------------------------------------------------------------------------------


def test_value_comes_back(rig: Rig) -> None:
    result = rig.one(rig.function(run_tasks.add, 2, b=3))
    assert (result.outcome, rig.value(result), result.failure, result.exit_code) == (Outcome.SUCCEEDED, 5, None, None)
    assert (result.rank, result.host, result.log) == (3, "testhost", None)
    assert result.started <= result.finished <= time.time()
    assert result.usage.max_rss_bytes > 1 << 20


def test_none_comes_back(rig: Rig) -> None:
    result = rig.one(rig.function(run_tasks.nothing))
    assert rig.value(result) is None


def test_lambda_and_closure(rig: Rig) -> None:
    offset = 10
    assert rig.value(rig.one(rig.function(lambda x: x + offset, 1))) == 11


def test_linked_values_are_put_in_place(rig: Rig) -> None:
    class Link:
        def __pilot_link__(self) -> tuple[str, str | None]:
            return "parent", None

    encoded, links = encode_argument([1, {"deep": Link()}], "a")
    assert len(links) == 1
    item = rig.function(
        run_tasks.add,
        inputs=(("a", Blob(encoded.hash, encoded.size, encoded.data)), ("b", rig.blob([9]))),
        linked={("parent", None): "from the parent"},
    )
    assert rig.value(rig.one(item)) == [1, {"deep": "from the parent"}, 9]


def test_missing_link_is_a_failure(rig: Rig) -> None:
    class Link:
        def __pilot_link__(self) -> tuple[str, str | None]:
            return "parent", "xml"

    encoded, _ = encode_argument([Link()], "a")
    item = rig.function(run_tasks.size, inputs=(("data", Blob(encoded.hash, encoded.size, encoded.data)),))
    result = rig.one(item)
    assert result.failure
    assert "ObjectMissing" in result.failure.type


def test_large_values_go_through_the_object_repository(rig: Rig) -> None:
    data = os.urandom(3 << 20)
    item = rig.function(run_tasks.add, data, b"end")
    assert len(item.frame) < 2000
    result = rig.one(item)
    blob = dict(result.outputs)["result"]
    assert blob.data is None
    assert rig.value(result) == data + b"end"


def test_damaged_inline_value_is_refused(rig: Rig) -> None:
    good = rig.blob(1)
    item = rig.function(run_tasks.add, inputs=(("a", good._replace(data=b"j2")),))
    result = rig.one(item)
    assert result.outcome is Outcome.FAILED
    assert result.failure
    assert "ObjectCorrupt" in result.failure.type


def test_missing_object_is_a_failure(rig: Rig) -> None:
    item = rig.function(run_tasks.size, inputs=(("data", Blob(encode(b"never stored").hash, 30000, None)),))
    result = rig.one(item)
    assert result.failure
    assert "ObjectMissing" in result.failure.type


def test_big_frames_both_ways(rig: Rig) -> None:
    """Many inline values make a frame that does not fit a packet; so does a result with a long traceback."""
    data = {f"x{i}": "y" * 10_000 for i in range(100)}
    inputs = tuple((name, rig.blob(value)) for name, value in data.items())
    items = [rig.function(lambda **kwargs: sum(map(len, kwargs.values())), inputs=inputs) for _ in range(8)]
    assert len(items[0].frame) > 1_000_000
    assert [rig.value(result) for result in rig.run(*items)] == [1_000_000] * 8
    failure = rig.one(rig.function(run_tasks.fail, "z" * 200_000)).failure
    assert failure
    assert 40_000 < len(failure.traceback) < 70_000


def test_pickled_function_from_the_object_repository(rig: Rig) -> None:
    table = list(range(20_000))
    code = describe(lambda i: table[i])
    assert code.pickle
    rig.objects.put(encode(lambda i: table[i]))
    item = rig.function(lambda i: table[i], 17)
    assert item.function
    rig.child.learn(code._replace(pickle=code.pickle._replace(data=None)))
    rig.objects.put(_encoded_like(code.pickle))
    assert rig.value(rig.one(item._replace(function=code.hash, frame=_renamed(item, code.hash)))) == 17


def _encoded_like(blob: Blob) -> Any:
    from pilot.values import Encoded

    assert blob.data is not None
    return Encoded.of((blob.data,))


def _renamed(item: Item, function: str) -> bytes:
    from pilot.executors.run.wire import pack_work, unpack_work

    return pack_work(unpack_work(item.frame)._replace(function=function))


def test_context(rig: Rig) -> None:
    item = rig.function(run_tasks.context)
    assert rig.value(rig.one(item)) == [
        item.task, 1, "context", str(rig.root / "project"), 1, 3, "testhost", None,
    ]  # fmt: skip


def test_no_context_outside_a_task() -> None:
    with pytest.raises(PilotError, match="outside of one"):
        pilot.context.current()


# -- failures that are only failures ----------------------------------------------------------------


def _same_child(rig: Rig, *bad: Item) -> list[Any]:
    """Run tasks and check that the child that ran them lives on."""
    before = rig.value(rig.one(rig.function(run_tasks.pid)))
    results = rig.run(*bad)
    assert rig.value(rig.one(rig.function(run_tasks.pid))) == before
    return results


def test_exception_carries_its_address(rig: Rig) -> None:
    (result,) = _same_child(rig, rig.function(run_tasks.fail, "bad number"))
    failure = result.failure
    assert result.outcome is Outcome.FAILED
    assert (failure.type, failure.message, failure.rank, failure.host) == ("ValueError", "bad number", 3, "testhost")
    assert "raise ValueError(text) from exc" in failure.traceback
    assert "direct cause" in failure.traceback
    assert failure.traceback.splitlines().count("Traceback (most recent call last):") == 2
    assert "executors/run" not in failure.traceback


def test_unpicklable_things_are_failures(rig: Rig) -> None:
    returned, raised = _same_child(rig, rig.function(run_tasks.unpicklable), rig.function(run_tasks.awkward))
    assert returned.outcome is raised.outcome is Outcome.FAILED
    assert "EncodingError" in returned.failure.type
    assert "result of 'unpicklable'" in returned.failure.message
    assert raised.failure.type == "tests.run_tasks.Awkward"
    assert "str() failed" in raised.failure.traceback


@pytest.mark.parametrize(("code", "expected"), [(3, 3), (None, 0), ("words", 1)])
def test_sys_exit_is_a_failure(rig: Rig, code: Any, expected: int) -> None:
    (result,) = _same_child(rig, rig.function(run_tasks.sys_exit, code))
    assert (result.outcome, result.exit_code) == (Outcome.FAILED, expected)
    assert result.failure.type == "SystemExit"
    assert f"sys.exit({code!r})" in result.failure.message


def test_keyboard_interrupt_and_recursion(rig: Rig) -> None:
    interrupt, recursion = _same_child(rig, rig.function(run_tasks.interrupt), rig.function(run_tasks.recurse))
    assert interrupt.failure.type == "KeyboardInterrupt"
    assert recursion.failure.type == "RecursionError"


def test_wrong_arguments_are_a_failure(rig: Rig) -> None:
    (result,) = _same_child(rig, rig.function(run_tasks.add, inputs=(("nonsense", rig.blob(1)),)))
    assert result.failure.type == "TypeError"


def test_memory_limit(rig: Rig) -> None:
    too_much, fits, unlimited = _same_child(
        rig,
        rig.function(run_tasks.eat, 300 << 20, memory_bytes=200 << 20),
        rig.function(run_tasks.eat, 100 << 20, memory_bytes=200 << 20),
        rig.function(run_tasks.eat, 300 << 20),
    )
    assert too_much.outcome is Outcome.FAILED
    assert too_much.failure.type == "MemoryError"
    assert "200 MiB" in too_much.failure.message
    assert rig.value(fits) == 100 << 20
    assert rig.value(unlimited) == 300 << 20


def test_usage_is_the_tasks_own(rig: Rig) -> None:
    eater, cpu, child_cpu, small = rig.run(
        rig.function(run_tasks.eat, 200 << 20),
        rig.function(run_tasks.use_cpu, 0.2),
        rig.function(run_tasks.use_cpu_in_child, 0.2),
        rig.function(run_tasks.nothing),
    )
    assert eater.usage.max_rss_bytes > 200 << 20
    assert small.usage.max_rss_bytes < 150 << 20
    assert 0.2 <= cpu.usage.cpu_s <= cpu.usage.wall_s + 0.05
    assert child_cpu.usage.cpu_s >= 0.2
    assert small.usage.cpu_s < 0.1


# -- what a task must not leave to the next -----------------------------------------------------------


def test_everything_is_put_back(rig: Rig, tmp_path: Path) -> None:
    before, untidy, after = rig.run(
        rig.function(run_tasks.state), rig.function(run_tasks.untidy, str(tmp_path)), rig.function(run_tasks.state)
    )
    assert untidy.log
    assert untidy.log.tail == "printed before"
    assert rig.value(after) == rig.value(before)
    assert after.log is None


def test_replaced_environ_is_put_back(rig: Rig) -> None:
    before, _, after = rig.run(
        rig.function(run_tasks.state), rig.function(run_tasks.replace_environ), rig.function(run_tasks.state)
    )
    assert rig.value(after) == rig.value(before)


def test_leftovers_are_noted_and_end_with_the_child(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        results = _same_child(
            rig,
            rig.function(run_tasks.spawn, 3, 300.0, False),
            rig.function(run_tasks.spawn, 2, 300.0, True),
            rig.function(run_tasks.leave_thread),
        )
        assert [f"left {threads} threads and {n} processes" in result.log.tail for result, threads, n in zip(
            results, (0, 0, 1), (3, 5, 5), strict=True
        )] == [True] * 3  # fmt: skip
        pids = rig.value(results[0]) + rig.value(results[1])
        assert all(map(alive, pids))
    wait_for(lambda: not any(map(alive, pids)))


def test_forked_copy_does_not_answer(rig: Rig) -> None:
    results = _same_child(rig, *[rig.function(run_tasks.fork_and_return) for _ in range(5)])
    assert [rig.value(result) for result in results] == [0] * 5
    parent, again = _same_child(rig, rig.function(run_tasks.fork_and_exit), rig.function(run_tasks.fork_and_exit))
    assert rig.value(parent) == rig.value(again) == os.getpid()


# -- deaths -------------------------------------------------------------------------------------------


def test_os_exit(rig: Rig) -> None:
    result = rig.between(rig.function(run_tasks.leave, 7))
    assert (result.outcome, result.exit_code) == (Outcome.CRASHED, 7)
    assert "exit code 7" in rig.why(result)


def test_death_is_seen_though_a_copy_lives(rig: Rig) -> None:
    result = rig.between(rig.function(run_tasks.leave_and_fork, 60.0))
    assert (result.outcome, result.exit_code) == (Outcome.CRASHED, 5)


def test_segfault_shows_where(rig: Rig) -> None:
    result = rig.between(rig.function(run_tasks.segfault))
    assert (result.outcome, result.exit_code) == (Outcome.CRASHED, -signal.SIGSEGV)
    assert "SIGSEGV" in rig.why(result)
    assert rig.tail(result).startswith("before the crash\n")
    assert "in segfault" in rig.tail(result)


def test_killed_from_outside_is_crashed_unless_the_pilot_ends(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        item = rig.function(run_tasks.kill_self, int(signal.SIGKILL))
        following = rig.function(run_tasks.add, 1)
        killed, _ = rig.run(item, following)
        assert (killed.outcome, killed.exit_code) == (Outcome.CRASHED, -9)
        assert killed.failure
        assert "out-of-memory" in killed.failure.message
        rig.child.ending = True
        ended = rig.one(rig.function(run_tasks.kill_self, int(signal.SIGTERM)))
        assert ended.outcome is Outcome.LOST
        fault = rig.one(rig.function(run_tasks.kill_self, int(signal.SIGSEGV)))
        assert fault.outcome is Outcome.CRASHED


def test_task_that_closes_our_descriptors(rig: Rig) -> None:
    result = rig.one(rig.function(run_tasks.close_descriptors))
    assert result.outcome is Outcome.CRASHED
    assert rig.value(rig.one(rig.function(run_tasks.add, 1))) == 2


def test_idle_child_that_dies_is_replaced_without_blame(rig: Rig) -> None:
    old = rig.value(rig.one(rig.function(run_tasks.pid)))
    os.kill(old, signal.SIGKILL)
    wait_for(lambda: not alive(old))
    assert rig.value(rig.one(rig.function(run_tasks.pid))) != old


def test_finished_travels(rig: Rig) -> None:
    item = rig.function(run_tasks.print_text, "hello\n")
    rig.offer([item])
    ended = wait_for(lambda: rig.child.poll(time.monotonic()))
    (one,) = pickle.loads(pickle.dumps(ended))
    assert one.key == item.key
    assert one.result().log.tail == "hello\n"
    assert isinstance(rig.child, Child)
