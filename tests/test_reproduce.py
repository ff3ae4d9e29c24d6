"""Recorded results come out again: with the recorded code, whatever has become of it since."""

from __future__ import annotations

import importlib
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pilot
from pilot import recorded, reproduce
from pilot.cli.app import run as pilot_command
from pilot.compare import Verdict
from pilot.errors import InvalidInput, SignatureError, TaskFailed, TaskNotFound
from pilot.reproduce import Report
from pilot.source import own_text
from tests.rig import LONG_S, Rig

MODULE = """
import pilot
from . import helper

FACTOR = 2.0


@pilot.task
def scaled(numbers):
    return [FACTOR * helper.same(number) for number in numbers]


@pilot.task
def total(numbers):
    return sum(numbers)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Import a user's module inside of a package of theirs."""
    package = tmp_path / "code" / "users_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "helper.py").write_text("def same(x):\n    return x\n")
    (package / "sums.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    yield importlib.import_module("users_package.sums")
    for name in [name for name in sys.modules if name.startswith("users_package")]:
        del sys.modules[name]


def verdicts(report: Report) -> dict[str, str]:
    """Return what was said of each output."""
    return {f"{run.name}.{one.name}": one.verdict.value for run in report.runs for one in run.outputs}


def test_a_result_comes_out_again(project: pilot.Project, module: Any, tmp_path: Path) -> None:
    """By name with another text by now, by value, a command; what differs a little, and what differs."""

    @pilot.task(name="array")
    def array(total: float) -> Any:
        return {"a": np.linspace(0.1, total, 5), "n": total}

    @pilot.task(name="nearly")
    def nearly(total: float) -> list[float]:
        return [total, total * (1 + 1e-12 * random.random())]

    @pilot.task(name="now")
    def now(total: float) -> float:
        return total + random.random()

    @pilot.task(name="last")
    def last(*parts: Any) -> int:
        return len(parts)

    scaled = module.scaled.submit([1.5, 2.5])
    total = module.total.submit(scaled)
    text = pilot.command(
        ["sh", "-c", "tr a-z A-Z < in.txt > out.txt"], inputs={"in.txt": "hello"}, outputs={"out": "out.txt"}, name="tr"
    ).submit()
    parts = [array.submit(total), nearly.submit(total), now.submit({"x": total}["x"]), text["out"]]
    future = last.submit(*parts)
    assert future.result(timeout=LONG_S) == 4

    changed = Path(module.__file__)
    changed.write_text(MODULE.replace("FACTOR = 2.0", "FACTOR = 3.0"))
    report = project.reproduce(future)
    assert verdicts(report) == {
        "scaled.result": "identical", "total.result": "identical", "array.result": "identical", "tr.out": "identical",
        "tr.exit_code": "identical", "nearly.result": "close", "now.result": "different", "last.result": "identical",
    }  # fmt: skip
    (nearly_run,) = [run for run in report.runs if run.name == "nearly"]
    assert nearly_run.outputs[0].distance is not None
    assert 0 < nearly_run.outputs[0].distance.relative < 1e-9
    assert nearly_run.outputs[0].distance.where == "[1]"
    assert not report.good
    assert report.runs[0].name in ("scaled", "tr")
    assert report.runs[-1].name == "last"
    (code,) = report.code
    assert code.module == "users_package.sums"
    assert "-FACTOR = 2.0\n+FACTOR = 3.0\n" in code.difference
    assert [one.name for one in report.environment if one.name.startswith("packages")] == []
    assert not (project.config.folder / "scratch").exists()


def test_some_links_up_only(
    project: pilot.Project, rig: Rig, module: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @pilot.task(name="double")
    def twice(x: float) -> float:
        return 2 * x

    scaled = module.scaled.submit([1.5, 2.5])
    total = module.total.submit(scaled)
    double = twice.submit(total)
    assert double.result(timeout=LONG_S) == 16.0
    monkeypatch.chdir(rig.config.root)
    assert pilot_command(["reproduce", double.id, "--depth", "1", "--slots", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["good"]
    assert found["given"] == [f"{scaled.id}:1"]
    assert [(run["name"], run["outputs"][0]["verdict"]) for run in found["runs"]] == [
        ("total", "identical"), ("double", "identical"),
    ]  # fmt: skip


def test_an_mpi_function(project: pilot.Project) -> None:
    @pilot.task(ranks=2)
    def summed(n: int, comm: Any = None) -> int:
        total: int = comm.allreduce(sum(range(comm.rank * n, (comm.rank + 1) * n)))
        return total

    future = summed.submit(10)
    assert future.result(timeout=LONG_S) == 190
    report = project.reproduce(future)
    assert [(run.outcome, run.outputs[0].verdict) for run in report.runs] == [("succeeded", Verdict.IDENTICAL)]


def test_what_cannot_be_run(
    project: pilot.Project, rig: Rig, module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Each says why, and what does not need it runs."""
    flag = tmp_path / "flag"
    flag.touch()

    @pilot.task
    def fails_now(path: str) -> int:
        with open(path) as file:
            return len(file.read())

    @pilot.task
    def last(*parts: Any) -> int:
        return len(parts)

    total = module.total.submit([1.0])
    failing = fails_now.submit(str(flag))
    command = pilot.command(["true"], name="true").submit()
    future = last.submit(total, failing, command["exit_code"])
    assert future.result(timeout=LONG_S) == 3
    flag.unlink()
    Path(module.__file__).write_text(MODULE + "\n# changed\n")
    of_total = {"_id": rig.store.provenance.find_one({"task": total.id})["function"], "module_text": True}
    assert rig.store.functions.update_one(of_total, {"$unset": {"module_text": 1}}).modified_count == 1
    monkeypatch.chdir(rig.config.root)
    assert pilot_command(["reproduce", future.id]) == 1
    said = capsys.readouterr().out
    assert "not run: its module 'users_package.sums' is another one now" in said
    assert "failed: [Errno 2] No such file or directory" in said
    assert "its parent" in said
    assert "identical  exit_code" in said
    assert "4 tasks, 4 outputs: 1 identical, 3 missing" in said

    monkeypatch.setattr(reproduce, "PYTHON", "9.9")
    report = project.reproduce(failing)
    assert report.runs[0].outputs[0].verdict is Verdict.MISSING
    assert "start `pilot reproduce` with that one" in report.runs[0].reason


def test_what_is_refused(project: pilot.Project, rig: Rig) -> None:
    def broken(x: int) -> int:
        raise ValueError(x)

    bad = pilot.task(broken).submit(1)
    good = pilot.task(abs).submit(-1)
    with pytest.raises(TaskFailed):
        bad.result(timeout=LONG_S)
    assert good.result(timeout=LONG_S) == 1
    with pytest.raises(InvalidInput, match=r"cannot compare anything with .*: its outcome is 'failed'"):
        project.reproduce(bad)
    with pytest.raises(TaskNotFound):
        project.reproduce("nothing")
    (before,) = rig.store.provenance.find({"task": good.id})
    rig.store.provenance.update_one({"task": good.id}, {"$set": {"host": "elsewhere"}})
    try:
        with pytest.raises(SignatureError, match="somebody changed a field of it"):
            project.reproduce(good)
        assert not project.verify(good).good
    finally:
        rig.store.provenance.update_one({"task": good.id}, {"$set": {"host": before["host"]}})
    assert project.verify(good).good


def test_verify_on_the_command_line(
    project: pilot.Project, rig: Rig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = pilot.task(abs).submit(-1)
    second = pilot.task(abs).submit(first)
    assert second.result(timeout=LONG_S) == 1
    monkeypatch.chdir(rig.config.root)
    assert pilot_command(["verify", second.id]) == 0
    assert capsys.readouterr().out == "2 records, 4 values, 1 function, 1 environment: all as written\n"
    rig.store.environments.update_one({}, {"$set": {"new": 1}})
    try:
        assert pilot_command(["verify", f"{second.id}:1", "--depth", "0", "--json"]) == 1
        found = json.loads(capsys.readouterr().out)
        assert (found["good"], found["records"], found["cut"]) == (False, 1, "depth")
        assert found["problems"][0]["of"].startswith("environment ")
    finally:
        rig.store.environments.update_one({}, {"$unset": {"new": 1}})


# -- the recorded text ------------------------------------------------------------------------------


def test_recorded_text_beside_present_modules(module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = recorded.file_here("users_package.sums", str(tmp_path / "code"))
    assert here == Path(module.__file__)
    package = recorded.file_here("users_package", str(tmp_path / "code"))
    assert package == here.parent / "__init__.py"
    assert recorded.file_here("users_package.none.x", "") is None
    assert recorded.file_here("sys", "") is None
    assert not recorded.is_here(None, "0" * 64)
    target = tmp_path / "laid out"
    for _ in range(2):
        recorded.lay_out(target, "users_package.sums", b"FACTOR = 5\n", here)
        recorded.lay_out(target, "users_package", b"WHO = 'recorded'\n", package)
        recorded.lay_out(target, "gone.away", b"X = 1\n", None)
        recorded.lay_out(target, "top", b"X = 2\n", None)
    assert (target / "users_package/sums.py").read_text() == "FACTOR = 5\n"
    assert (target / "users_package/__init__.py").read_text() == "WHO = 'recorded'\n"
    assert (target / "users_package/helper.py").samefile(here.parent / "helper.py")
    assert not (target / "users_package/helper.py").read_text().startswith("FACTOR")
    assert (target / "gone/away.py").read_text() == "X = 1\n"
    assert here.read_text() == MODULE  # nothing was written through a link
    assert "+FACTOR = 2.0" in recorded.difference(b"FACTOR = 5\n", here)
    assert "not found here" in recorded.difference(b"FACTOR = 5\n", None)


def test_only_the_users_own_text_is_kept(module: Any) -> None:
    from pilot.source import file_digest

    digest = file_digest(module.__file__)
    assert own_text("users_package.sums", digest) == MODULE.encode()
    assert own_text("users_package.sums", "0" * 64) is None
    assert own_text("users_package.sums", "") is None
    assert own_text("json", file_digest(json.__file__)) is None
