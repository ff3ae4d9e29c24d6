"""Tasks that misbehave, and documents that somebody has changed: the reason is visible, and nobody else is harmed."""

from __future__ import annotations

import os
import pickle
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pilot
from pilot import functions, signing
from pilot.errors import PilotError, SignatureError, TaskFailed
from pilot.model import SCHEMA
from pilot.prepare import code_document
from pilot.resources import TaskSpec
from pilot.states import Kind
from pilot.store import provenance
from tests import pilot_tasks
from tests.rig import LONG_S, Rig, ids, wait_until

pytestmark = pytest.mark.timeout(300)

good = pilot.task(pilot_tasks.double)


def among_good_ones(make: Callable[[], pilot.Future]) -> pilot.Future:
    """Submit a bad task between 20 good ones, which must go through at their first attempt; return it, ended."""
    before = good.map(range(10))
    bad = make()
    after = good.map(range(10, 20))
    assert [future.result(LONG_S) for future in before + after] == [2 * number for number in range(20)]
    bad.exception(LONG_S)
    for future in before + after:
        record = future.record()
        assert record
        assert record["attempt"] == 1
    return bad


def failure(future: pilot.Future) -> str:
    """Return what `result` says about a failed task, having checked that it names task and host."""
    with pytest.raises(TaskFailed) as caught:
        future.result(LONG_S)
    text = str(caught.value)
    assert future.id in text
    assert socket.gethostname() in text
    assert caught.value.task == future.id
    return text


# -- bad code -------------------------------------------------------------------------------------

BAD: dict[str, tuple[Any, dict[str, Any], tuple[Any, ...], str, list[str]]] = {
    "raises": (
        pilot_tasks.fail,
        {},
        ("me",),
        "failed",
        ["ValueError", "to fail with 'me'", "pilot_tasks.py", "in fail"],
    ),
    "os._exit": (pilot_tasks.exit_hard, {}, (), "crashed", ["exit code 3"]),
    "segfault": (pilot_tasks.segfault, {}, (), "crashed", ["SIGSEGV"]),
    "eats memory": (pilot_tasks.eat, {"memory": "200M"}, (), "failed", ["MemoryError", "200 MiB"]),
    "unpicklable result": (pilot_tasks.unpicklable, {}, (), "failed", ["cannot be pickled", "/dev/null"]),
    "unpicklable exception": (pilot_tasks.raise_stubborn, {}, (), "failed", ["Stubborn", "in raise_stubborn"]),
    "never ends": (pilot_tasks.spin, {"walltime": "1s"}, (), "timeout", ["walltime of 1 s"]),
    "never ends, deaf": (pilot_tasks.ignore_term, {"walltime": "1s"}, (), "timeout", ["walltime of 1 s"]),
    "sys.exit(0)": (pilot_tasks.leave, {}, (0,), "failed", ["sys.exit(0)"]),
    "sys.exit(text)": (pilot_tasks.leave, {}, ("bye",), "failed", ["sys.exit('bye')"]),
    "recursion": (pilot_tasks.dig, {}, (), "failed", ["RecursionError", "in dig"]),
    "KeyboardInterrupt": (pilot_tasks.interrupt, {}, (), "failed", ["KeyboardInterrupt", "from inside"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_code(rig: Rig, project: pilot.Project, name: str) -> None:
    function, options, args, outcome, words = BAD[name]
    future = among_good_ones(lambda: pilot.task(**options)(function).submit(*args))
    text = failure(future)
    for word in words:
        assert word in text
    assert outcome in text
    (record,) = rig.records(future.id)
    assert record["outcome"] == outcome
    assert record["exception"]["host"] == socket.gethostname()
    assert record["exception"]["rank"] in (1, 2)
    assert future.state == pilot.State.FAILED


def test_prints_a_hundred_megabytes(rig: Rig, project: pilot.Project) -> None:
    future = among_good_ones(lambda: pilot.task(pilot_tasks.shout).submit(100))
    assert future.result() == "said"
    record = future.record()
    assert record
    log = record["output_log"]
    assert log["length"] <= 100 << 20
    assert 0 < len(log["tail"]) <= 4096
    assert Path(log["file"]).stat().st_size >= log["offset"] + log["length"]


def test_changes_directory_and_environment(rig: Rig, project: pilot.Project) -> None:
    assert among_good_ones(lambda: pilot.task(pilot_tasks.wreck_surroundings).submit()).result() == "/"
    for future in [pilot.task(pilot_tasks.surroundings).submit() for _ in range(8)]:
        cwd, mask = future.result(LONG_S)
        assert cwd == str(rig.config.root)
        assert mask != 0o777


@pytest.mark.parametrize(("retries", "wins"), [(2, True), (1, False), (0, False)])
def test_retries_are_honoured(rig: Rig, project: pilot.Project, tmp_path: Path, retries: int, wins: bool) -> None:
    path = tmp_path / "tries"
    future = among_good_ones(lambda: pilot.task(retries=retries)(pilot_tasks.fail_until).submit(str(path), 2))
    if wins:
        assert future.result() == 3
    else:
        assert f"failing for the {retries + 1}. time" in failure(future)
    assert [doc["outcome"] for doc in rig.records(future.id)] == ["failed"] * min(2, retries + 1) + ["succeeded"] * wins
    assert path.stat().st_size == retries + 1


def test_crashes_are_retried(rig: Rig, project: pilot.Project) -> None:
    future = among_good_ones(lambda: pilot.task(retries=1)(pilot_tasks.exit_hard).submit())
    failure(future)
    assert [doc["outcome"] for doc in rig.records(future.id)] == ["crashed"] * 2


# -- cancelling -----------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [pilot_tasks.say_and_spin, pilot_tasks.say_and_ignore_term])
def test_cancel_while_running(rig: Rig, project: pilot.Project, tmp_path: Path, function: Callable[..., Any]) -> None:
    path = tmp_path / "began"
    future = pilot.task(function).submit(str(path))
    beside = good.map(range(20))
    wait_until(path.exists, LONG_S, "the task runs", rig.logs)
    asked = time.monotonic()
    assert future.cancel()
    pilot.wait([future], timeout=LONG_S)
    took = time.monotonic() - asked
    print(f"{function.__name__}: cancelled in {took:.3f} s")
    assert future.cancelled()
    assert took < 2.0
    assert future.state == pilot.State.CANCELLED
    assert [future.result(LONG_S) for future in beside] == [2 * number for number in range(20)]
    assert [doc["outcome"] for doc in rig.records(future.id)] == ["cancelled"]


def test_cancel_what_a_pool_holds_and_has_not_begun(rig: Rig, project: pilot.Project, gate: Path) -> None:
    """It does not wait for the task before it to end."""
    blockers = pilot.task(pilot_tasks.wait_for).map([str(gate)] * 2)
    wait_until(lambda: all(one.state == "leased" for one in blockers), LONG_S, "the slots are taken", rig.logs)
    waiting = good.map(range(30))
    wait_until(
        lambda: rig.store.tasks.count_documents({"_id": {"$in": ids(waiting)}, "state": "leased"}) >= 6,
        LONG_S, "some wait in the pool", rig.logs,
    )  # fmt: skip
    asked = time.monotonic()
    project.cancel(*waiting)
    pilot.wait(waiting, timeout=LONG_S)
    print(f"30 waiting tasks cancelled in {time.monotonic() - asked:.3f} s")
    assert not any(future.done() for future in blockers)
    assert all(future.cancelled() for future in waiting)
    assert rig.store.provenance.count_documents({"task": {"$in": ids(waiting)}}) == 0, "none of them has begun"
    gate.touch()
    assert [future.result(LONG_S) for future in blockers] == [str(gate)] * 2


# -- tampering ------------------------------------------------------------------------------------


def closed(gate: Path) -> pilot.Future:
    """Submit a task that waits for the file: what uses its result cannot be leased before."""
    return pilot.task(pilot_tasks.wait_for).submit(str(gate))


def refused(rig: Rig, future: pilot.Future, *words: str) -> None:
    """Check that a task was refused, by name, before anything of it ran."""
    text = failure(future)
    for word in words:
        assert word in text
    (record,) = rig.records(future.id)
    assert record["usage"]["wall_s"] == 0


def test_an_edited_command(rig: Rig, project: pilot.Project, gate: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    future = pilot.command(["cat", "x"], inputs={"x": closed(gate)}).submit()
    rig.store.tasks.update_one({"_id": future.id}, {"$set": {"command.argv": ["touch", str(marker)]}})
    gate.touch()
    refused(rig, future, "SignatureError")
    assert not marker.exists()


@pytest.mark.parametrize(
    "change",
    [{"class": "garbage"}, {"class": "c1m999999999"}, {"kind": "nonsense"}, {"inputs": 5}, {"signature": "none"},
     {"folder": "/tmp"}, {"fresh": True}, {"function": "0" * 64}],
    ids=str,
)  # fmt: skip
def test_an_edited_task(rig: Rig, project: pilot.Project, gate: Path, change: dict[str, Any]) -> None:
    future = pilot.task(pilot_tasks.add).submit(closed(gate), "!")
    rig.store.tasks.update_one({"_id": future.id}, {"$set": change})
    gate.touch()
    refused(rig, future, "SignatureError")


def test_swapped_payloads(rig: Rig, project: pilot.Project, gate: Path) -> None:
    key = closed(gate)
    one, two = (pilot.task(pilot_tasks.add).submit(key, text) for text in ("one", "two"))
    docs = {doc["_id"]: doc for doc in rig.store.tasks.find({"_id": {"$in": [one.id, two.id]}})}
    for mine, other in ((one, two), (two, one)):
        rig.store.tasks.update_one({"_id": mine.id}, {"$set": {"inputs": docs[other.id]["inputs"]}})
    gate.touch()
    refused(rig, one, "SignatureError")
    refused(rig, two, "SignatureError")


class Evil:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def test_a_value_changed_under_its_hash(rig: Rig, project: pilot.Project, gate: Path, tmp_path: Path) -> None:
    """The signature covers the hash, and the bytes are checked against it before they are unpickled."""
    evil = tmp_path / "evil"
    future = pilot.task(pilot_tasks.add).submit(closed(gate), {1, 2, 3})
    poison = {"inputs.1.data": b"p" + pickle.dumps(Evil(evil))}
    assert rig.store.tasks.update_one({"_id": future.id}, {"$set": poison}).modified_count
    gate.touch()
    assert "hash" in failure(future)
    assert not evil.exists()


def test_a_result_changed_under_its_hash(rig: Rig, project: pilot.Project, tmp_path: Path) -> None:
    evil = tmp_path / "evil"
    plain, pickled = good.submit(21), pilot.task(pilot_tasks.same).submit(range(3))
    assert (plain.result(LONG_S), pickled.result(LONG_S)) == (42, range(3))
    changes = {plain: {"outputs.0.value": 43}, pickled: {"outputs.0.data": b"p" + pickle.dumps(Evil(evil))}}
    with changed(rig, {future.record()["_id"]: change for future, change in changes.items()}):  # type: ignore[index]
        for future in changes:
            with pytest.raises(SignatureError):
                project.task(future.id).result(LONG_S)
            child = good.submit(future)
            assert "hash" in failure(child)
    assert not evil.exists()
    assert project.task(plain.id).result(LONG_S) == 42


class changed:
    """Change records, and put them back at the end."""

    def __init__(self, rig: Rig, changes: dict[str, dict[str, Any]]) -> None:
        self._records = rig.store.provenance
        self._changes = changes
        self._before = {name: self._records.find_one({"_id": name}) for name in changes}

    def __enter__(self) -> None:
        for name, change in self._changes.items():
            assert self._records.update_one({"_id": name}, {"$set": change}).modified_count == 1

    def __exit__(self, *_: object) -> None:
        for name, document in self._before.items():
            assert document
            self._records.replace_one({"_id": name}, document)


@pytest.mark.parametrize("whole", [False, True], ids=["outputs", "whole"])
def test_swapped_results(rig: Rig, project: pilot.Project, whole: bool) -> None:
    one, two = good.submit("one"), good.submit("two")
    docs = {future: future.record() for future in (one, two) if future.result(LONG_S)}
    swap = {}
    for mine, other in ((one, two), (two, one)):
        theirs, ours = docs[other], docs[mine]
        assert theirs
        assert ours
        names = theirs.keys() - {"_id"} if whole else ["outputs"]
        swap[ours["_id"]] = {name: theirs[name] for name in names}
    with changed(rig, swap):
        for future in (one, two):
            with pytest.raises(SignatureError):
                project.task(future.id).result(LONG_S)
            assert "SignatureError" in failure(good.submit(future))


def test_a_failed_attempt_made_official(rig: Rig, project: pilot.Project, tmp_path: Path) -> None:
    future = pilot.task(retries=1)(pilot_tasks.fail_until).submit(str(tmp_path / "tries"), 1)
    assert future.result(LONG_S) == 2
    rig.store.tasks.update_one({"_id": future.id}, {"$set": {"official": 1}})
    try:
        with pytest.raises(SignatureError):
            project.task(future.id).result(LONG_S)
        failure(good.submit(future))
    finally:
        rig.store.tasks.update_one({"_id": future.id}, {"$set": {"official": 2}})


def test_a_changed_function(rig: Rig, project: pilot.Project, gate: Path, tmp_path: Path) -> None:
    """Its pickle and its name are what runs; both are signed."""
    evil, salt = tmp_path / "evil", str(tmp_path)

    def by_value(x: Any) -> Any:
        return (x, salt)

    future = pilot.task(by_value).submit(closed(gate))
    digest = rig.store.tasks.find_one({"_id": future.id})["function"]  # type: ignore[index]
    poison = {"pickle.data": b"p" + pickle.dumps(Evil(evil))}
    assert rig.store.functions.update_one({"_id": digest}, {"$set": poison}).modified_count
    gate.touch()
    assert "hash" in failure(future)
    again = pilot.task(by_value).submit(1)
    rig.store.functions.update_one({"_id": digest}, {"$set": {"pickle.hash": "0" * 64}})
    failure(again)
    assert not evil.exists()


def test_a_list_of_inputs_that_is_a_pickle(rig: Rig, project: pilot.Project, gate: Path) -> None:
    """The list of inputs is needed to verify the signature: nothing in it may be unpickled before."""
    big = pilot.task(pilot_tasks.double).submit([range(3), "x" * 20_000])  # an object that is a pickle
    future = pilot.task(pilot_tasks.add).submit(closed(gate), 1)
    big.exception(LONG_S)
    (value,) = rig.store.tasks.find_one({"_id": big.id})["inputs"]  # type: ignore[index]
    rig.store.tasks.update_one({"_id": future.id}, {"$set": {"inputs": {"object": value["hash"], "count": 1}}})
    gate.touch()
    refused(rig, future, "SignatureError")


# -- keys and versions ----------------------------------------------------------------------------


def test_a_task_signed_with_another_key(rig: Rig, project: pilot.Project) -> None:
    project._signer = signing.Signer(bytes(32), rig.config.id)
    future = good.submit(1)
    refused(rig, future, "SignatureError", "another key")


def test_a_project_opened_with_another_key(rig: Rig) -> None:
    path = rig.config.key_file
    right = path.read_bytes()
    path.write_bytes(b"0" * 64 + b"\n")
    try:
        with pytest.raises(PilotError, match="key"):
            rig.open().__enter__()
    finally:
        path.write_bytes(right)


def test_another_python(rig: Rig, project: pilot.Project) -> None:
    code = functions.describe(pilot_tasks.double)._replace(hash="39" * 32, python="3.9")
    signature = project._signer.sign("function", SCHEMA, signing.function_fields(code))
    provenance.put_functions(rig.store, [code_document(code, signature)])
    spec = TaskSpec(project.new_id(), Kind.FUNCTION, "old", (project.encode_input("x", 1, "old"),), code.hash)
    (future,) = project.submit([spec])
    refused(rig, future, "PythonMismatch", "3.9", "`pilot retry`")


# -- objects --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["corrupted", "missing"])
def test_an_object_is(rig: Rig, project: pilot.Project, gate: Path, how: str) -> None:
    text = f"{how} {time.time_ns()} " * 10_000
    future = pilot.task(pilot_tasks.add).submit(closed(gate), text)
    result = good.submit(text)
    assert result.result(LONG_S) == 2 * text
    entries = [*rig.store.tasks.find_one({"_id": future.id})["inputs"], *result.record()["outputs"]]  # type: ignore[index]
    hashes = [entry["hash"] for entry in entries if entry["size"] > 100_000]
    assert len(hashes) == 2
    for digest in hashes:
        (path,) = [found for found in rig.config.objects_folder.rglob("*") if digest in str(found).replace("/", "")]
        if how == "missing":
            path.unlink()
        else:
            path.chmod(0o600)
            path.write_bytes(b"X" + path.read_bytes()[1:])
    gate.touch()
    assert {"corrupted": "ObjectCorrupt", "missing": "ObjectMissing"}[how] in failure(future)
    with pytest.raises(PilotError, match="object"):
        project.task(result.id).result(LONG_S)
