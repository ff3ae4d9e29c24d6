"""The Python interface with a real pilot: futures, arguments, commands, dependants, errors, interruptions."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import pickle
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest

import pilot
from pilot.errors import InvalidInput, PilotError, TaskFailed, TaskNotFound
from tests import pilot_tasks
from tests.rig import LONG_S, Rig, ids, wait_until

pytestmark = pytest.mark.timeout(300)

double = pilot.task(pilot_tasks.double)
same = pilot.task(pilot_tasks.same)
add = pilot.task(pilot_tasks.add)
total = pilot.task(pilot_tasks.total)
fail = pilot.task(pilot_tasks.fail)
wait_for = pilot.task(pilot_tasks.wait_for)


# -- results --------------------------------------------------------------------------------------


def test_a_call_here_and_a_call_there(project: pilot.Project) -> None:
    assert double(21) == 42
    future = double.submit(x=21)
    assert future.result(LONG_S) == 42
    assert (future.done(), future.running(), future.cancelled(), future.exception()) == (True, False, False, None)
    assert future.state is pilot.State.DONE
    assert isinstance(future, concurrent.futures.Future)


def test_results_come_in_the_order_of_the_calls(project: pilot.Project) -> None:
    delays = [0.03 * (20 - number) / 20 for number in range(20)]
    assert [f.result(LONG_S) for f in pilot.task(pilot_tasks.nap).map(range(20), delays)] == list(range(20))
    assert [f.result(LONG_S) for f in add.map("abc", b="!")] == ["a!", "b!", "c!"]
    assert double.map([]) == []
    assert [f.result(LONG_S) for f in double.map(number for number in range(3))] == [0, 2, 4]


def test_a_lone_task_is_quick(project: pilot.Project) -> None:
    times = []
    for number in range(20):
        began = time.monotonic()
        assert double.submit(number).result(LONG_S) == 2 * number
        times.append(time.monotonic() - began)
    print(f"submit to result: median {statistics.median(times) * 1000:.1f} ms, worst {max(times) * 1000:.1f} ms")


@pytest.mark.parametrize(
    "value",
    [
        None, True, 0, -1, 2**63 - 1, 2**64, 10**30, 0.1, float("inf"), -0.0, "", "é\u2028\0", b"\0\xff", [], {},
        (1, 2), {1, 2}, 1 + 2j, [1, [2, {"$b": {"c.d": []}, "a": None}]], {1: "one"}, range(3), b"x" * (1 << 20),
        "y" * (1 << 20), ["z" * 1000] * 1000, "\ud800", Path("/tmp/x"), int, ValueError("v"),
    ],
    ids=lambda value: repr(value)[:20],
)  # fmt: skip
def test_values_in_and_out(project: pilot.Project, value: Any) -> None:
    result = same.submit(value).result(LONG_S)
    assert type(result) is type(value)
    assert repr(result) == repr(value)


def test_arrays(project: pilot.Project) -> None:
    small = numpy.arange(12, dtype="f4").reshape(3, 4)
    large = numpy.random.default_rng(1).random((500, 300))
    for array in (small, large, small.T, large[::2], numpy.array([]), numpy.array(3.0), numpy.array(["a", "bc"])):
        result = same.submit(array).result(LONG_S)
        numpy.testing.assert_array_equal(result, array)
        assert (result.dtype, result.shape) == (array.dtype, array.shape)
    numpy.testing.assert_array_equal(double.submit(large).result(LONG_S), 2 * large)
    assert isinstance(same.submit(numpy.float64(0.5)).result(LONG_S), numpy.float64)


def test_nan(project: pilot.Project) -> None:
    result = same.submit(float("nan")).result(LONG_S)
    assert result != result


# -- futures as arguments -------------------------------------------------------------------------


@dataclasses.dataclass
class Bag:
    label: str
    content: Any


def test_futures_anywhere_in_arguments(project: pilot.Project) -> None:
    one, two = double.submit(1), double.submit(2)
    assert add.submit(one, two).result(LONG_S) == 6
    assert add.submit(a=one, b=10).result(LONG_S) == 12
    assert total.submit([one, two, one]).result(LONG_S) == 8
    nested = same.submit({"list": [one, (two, {"deep": one})], "plain": 5})
    assert nested.result(LONG_S) == {"list": [2, (4, {"deep": 2})], "plain": 5}
    bag = same.submit(Bag("b", [one, {"two": two}])).result(LONG_S)
    assert (bag.label, bag.content) == ("b", [2, {"two": 4}])


def test_the_record_names_where_inputs_came_from(rig: Rig, project: pilot.Project) -> None:
    one, two = double.submit(1), double.submit(2)
    child = total.submit([one, 3, two])
    assert child.result(LONG_S) == 9
    record = child.record()
    assert record
    assert record["outcome"] == "succeeded"
    sources = {entry["name"]: entry["source"] for entry in record["inputs"] if "source" in entry}
    assert sources == {
        "values[0]": {"record": f"{one.id}:1", "output": "result"},
        "values[2]": {"record": f"{two.id}:1", "output": "result"},
    }
    assert one.record()["outputs"][0]["hash"] in [entry["hash"] for entry in record["inputs"]]  # type: ignore[index]


def test_items_of_results(project: pilot.Project) -> None:
    both = same.submit({"a": 1, "b": [2, 3]})
    assert add.submit(both["a"], 10).result(LONG_S) == 11
    assert total.submit(both["b"]).result(LONG_S) == 5
    assert both["b"].result(LONG_S) == [2, 3]
    text = str(double.submit(both["c"]).exception(LONG_S))
    assert "'c'" in text
    assert both.id in text
    assert "no item" in str(double.submit(double.submit(1)["a"]).exception(LONG_S))


def test_futures_are_not_what_they_stand_for(project: pilot.Project) -> None:
    future = double.submit(1)
    with pytest.raises(TypeError, match="cannot be iterated"):
        list(future)
    with pytest.raises(PilotError, match="pass it as an argument"):
        pickle.dumps(future)
    with pytest.raises(TypeError, match="named by a string"):
        future[0]  # type: ignore[index]
    assert future.id in repr(future)
    future.result(LONG_S)


# -- commands -------------------------------------------------------------------------------------


def test_commands(project: pilot.Project) -> None:
    future = pilot.command(
        ["sh", "-c", 'sort "$1" > out/sorted; echo "$TONE"; cat blob | wc -c > count', "sh", "names.txt"],
        inputs={"names.txt": same.submit("b\na\n"), "blob": b"\0" * 100_000, "out/made": ""},
        outputs={"sorted": "out/sort*", "count": "count"},
        env={"TONE": "high"},
    ).submit()
    result = future.result(LONG_S)
    assert result == {"exit_code": 0, "sorted": b"a\nb\n", "count": b"100000\n"}
    assert future["count"].result() == b"100000\n"
    assert future.record()["output_log"]["tail"] == "high\n"  # type: ignore[index]
    assert add.submit(b"<", future["sorted"]).result(LONG_S) == b"<a\nb\n"
    assert same.submit([future]).result(LONG_S) == [result]


def test_shell_and_directory(project: pilot.Project, tmp_path: Path) -> None:
    (tmp_path / "here").touch()
    future = pilot.command("ls | tee seen; exit 0", shell=True, cwd=str(tmp_path)).submit()
    assert future.result(LONG_S) == {"exit_code": 0}
    assert "here" in (tmp_path / "seen").read_text()
    assert [f.result(LONG_S)["exit_code"] for f in pilot.command(["true"]).map(20)] == [0] * 20


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: pilot.command(["sh", "-c", "echo oh dear >&2; exit 7"]), ["exit code 7", "oh dear"]),
        (lambda: pilot.command(["no-such-program"]), ["no-such-program"]),
        (lambda: pilot.command(["sh", "-c", "kill -SEGV $$"]), ["SIGSEGV"]),
        (lambda: pilot.command(["true"], outputs={"x": "nothing*"}), ["'x'", "nothing*"]),
        (lambda: pilot.command(["sleep", "1000"], walltime="1s"), ["walltime"]),
        (lambda: pilot.command(["cat", "x"], inputs={"x": 5}), ["'x'"]),
    ],
    ids=["exit code", "not found", "signal", "no output", "walltime", "no text"],
)  # fmt: skip
def test_commands_that_fail(project: pilot.Project, make: Callable[[], Any], words: list[str]) -> None:
    with pytest.raises(TaskFailed) as caught:
        make().submit().result(LONG_S)
    for word in words:
        assert word in str(caught.value)


# -- waiting --------------------------------------------------------------------------------------


def test_wait_and_as_completed(project: pilot.Project, gate: Path) -> None:
    slow = wait_for.submit(str(gate))
    quick = double.map(range(10))
    assert {future.result() for future in pilot.as_completed(quick, timeout=LONG_S)} == set(range(0, 20, 2))
    done, rest = pilot.wait([*quick, slow], timeout=0.1)
    assert (len(done), rest) == (10, {slow})
    done, rest = pilot.wait([*quick, slow], timeout=LONG_S, return_when=concurrent.futures.FIRST_COMPLETED)
    assert slow in rest
    with pytest.raises(TimeoutError):
        slow.result(timeout=0.05)
    with pytest.raises(TimeoutError):
        list(pilot.as_completed([slow], timeout=0.05))
    wait_until(lambda: slow.state is pilot.State.LEASED, LONG_S, "the slow one is leased")
    seen: list[pilot.Future] = []
    slow.add_done_callback(seen.append)  # type: ignore[arg-type]
    gate.touch()
    assert slow.result(LONG_S) == str(gate)
    wait_until(lambda: seen == [slow], LONG_S, "the callback has run")


def test_one_result_asked_for_by_many_threads(project: pilot.Project) -> None:
    """It is decoded once, and nobody sees it undecoded."""
    for _ in range(10):
        futures = double.map([[1.5] * 2000] * 20)
        pilot.wait(futures, timeout=LONG_S)
        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            asked = [threads.submit(future.result) for _ in range(8) for future in futures]
        assert {type(one.result()) for one in asked} == {list}


# -- failures, cancel, retry ----------------------------------------------------------------------


def test_exceptions(project: pilot.Project) -> None:
    future = fail.submit("x")
    error = future.exception(LONG_S)
    assert isinstance(error, TaskFailed)
    assert (error.task, error.reason, error.record) == (future.id, "failed", f"{future.id}:1")
    assert "ValueError: told to fail with 'x'" in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert future.state is pilot.State.FAILED
    record = future.record()
    assert record
    assert record["exception"]["type"] == "ValueError"


def test_cancel_before_it_begins(project: pilot.Project, gate: Path) -> None:
    parent = wait_for.submit(str(gate))
    child = double.submit(parent)
    grandchild = double.submit(child)
    assert child.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        child.result(LONG_S)
    text = str(grandchild.exception(LONG_S))
    assert child.id in text
    assert grandchild.exception().reason == "upstream"  # type: ignore[union-attr]
    assert child.cancelled()
    assert child.cancel()
    gate.touch()
    assert parent.result(LONG_S) == str(gate)
    assert not parent.cancel()
    assert child.record() is None


def test_retry(project: pilot.Project, tmp_path: Path) -> None:
    parent = pilot.task(pilot_tasks.fail_until).submit(str(tmp_path / "tries"), 1)
    child = double.submit(parent)
    assert parent.id in str(child.exception(LONG_S))
    (again,) = project.retry(parent)
    began = time.monotonic()
    assert again.result(LONG_S) == 2
    assert project.task(child.id).result(LONG_S) == 4
    print(f"retried results after {time.monotonic() - began:.2f} s")
    with pytest.raises(InvalidInput, match="it is done"):
        project.retry(parent.id)


def test_tasks_of_another_session(rig: Rig, project: pilot.Project, gate: Path) -> None:
    ended, slow, bad = double.submit(1), wait_for.submit(str(gate)), fail.submit("y")
    ended.result(LONG_S)
    with rig.open() as other:
        found = [other.task(future.id) for future in (ended, slow, bad)]
        assert found[0].result(LONG_S) == 2
        assert "told to fail with 'y'" in str(found[2].exception(LONG_S))
        assert found[1].state in (pilot.State.READY, pilot.State.LEASED)
        child = double.submit(found[0])
        assert child.result(LONG_S) == 4
        own = [other.task(child.id) for _ in range(3)]
        began = time.monotonic()
        assert [future.result(LONG_S) for future in own] == [4] * 3
        print(f"the result of a task that ended before, found in {time.monotonic() - began:.2f} s")
        gate.touch()
        assert found[1].result(LONG_S) == str(gate)
        assert other.task(ended.id).record() == ended.record()
        assert found[2].record()["outcome"] == "failed"  # type: ignore[index]
        with pytest.raises(TaskNotFound, match="fits several tasks"):
            other.task(ended.id[:2])  # all tasks of some months begin like it
    with pytest.raises(TaskNotFound, match="no task 'nonsense'"):
        project.task("nonsense")


# -- dependants -----------------------------------------------------------------------------------


def test_a_chain(project: pilot.Project) -> None:
    began = time.monotonic()
    future = double.submit(1)
    for _ in range(49):
        future = add.submit(future, 1)
    assert future.result(LONG_S) == 51
    print(f"a chain of 50 in {time.monotonic() - began:.2f} s")


def test_a_diamond(project: pilot.Project) -> None:
    top = double.submit(1)
    left, right = add.submit(top, 10), add.submit(top, 100)
    assert total.submit([left, right, top]).result(LONG_S) == 116


def test_a_fan_in_of_two_thousand(project: pilot.Project) -> None:
    began = time.monotonic()
    futures = double.map(range(2000))
    first = total.submit(futures)
    second = total.submit({"all": futures}["all"])
    assert first.result(LONG_S) == second.result(LONG_S) == sum(range(0, 4000, 2))
    print(f"two fan-ins of 2,000 in {time.monotonic() - began:.2f} s")
    record = first.record()
    assert record


def test_a_map_over_futures(project: pilot.Project) -> None:
    assert [f.result(LONG_S) for f in add.map(double.map(range(50)), double.map(range(50)))] == list(range(0, 200, 4))


def test_failure_upstream(rig: Rig, project: pilot.Project) -> None:
    parent = fail.submit("z")
    children = double.map([parent] * 20)
    grandchild = total.submit(children)
    beside = double.submit(1)
    for future in (*children, grandchild):
        error = future.exception(LONG_S)
        assert isinstance(error, TaskFailed)
        assert error.reason == "upstream"
        assert error.record is None
    assert all(parent.id in str(child.exception()) for child in children)
    assert children[0].id in str(grandchild.exception())
    assert beside.result(LONG_S) == 2
    assert rig.store.provenance.count_documents({"task": {"$in": ids(children)}}) == 0
    late = double.submit(parent)  # the parent has failed already
    assert parent.id in str(late.exception(LONG_S))


# -- many --------------------------------------------------------------------------------------------


def test_ten_thousand(project: pilot.Project) -> None:
    began = time.monotonic()
    futures = double.map(range(10_000))
    submitted = time.monotonic() - began
    assert [future.result(LONG_S) for future in futures] == list(range(0, 20_000, 2))
    print(f"10,000 tasks: submitted in {submitted:.2f} s, all results in {time.monotonic() - began:.2f} s")
    assert len(set(ids(futures))) == 10_000
