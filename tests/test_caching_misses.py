"""Why an earlier result is not taken: edited code, results that are gone, forged or failed, another program."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import pilot
from pilot.cli import facts
from pilot.errors import TaskFailed
from pilot.explain import reasons
from pilot.store.objects import Objects
from tests import pilot_tasks
from tests.cache_rig import Record, double, fail, hit, miss, record, same
from tests.rig import LONG_S, Rig

pytestmark = pytest.mark.timeout(120)

# -- misses: code -------------------------------------------------------------------------------------

MODULE = """
    FACTOR = 2

    def helper(x):
        return FACTOR * x

    def work(x, times=1):
        return helper(x) * times
"""


@pytest.fixture
def module(tmp_path: Path, unique: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Return what writes a module, or edits it, and imports it anew."""
    name = f"module_{unique}"
    monkeypatch.syspath_prepend(tmp_path)

    def write(text: str) -> ModuleType:
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        importlib.invalidate_caches()
        sys.modules.pop(name, None)
        return importlib.import_module(name)

    yield write
    sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("old", "new", "value", "why"),
    [
        ("helper(x) * times", "helper(x) * times + 0", 6, "its source was edited"),
        ("times=1", "times=2", 12, "its source was edited"),
        ("FACTOR = 2", "FACTOR = 5", 15, "the file of its module module_"),
        ("return FACTOR * x", "return FACTOR * x + 1", 7, "the file of its module module_"),
    ],
)
def test_edited_code(
    project: pilot.Project, module: Callable[[str], ModuleType], old: str, new: str, value: int, why: str
) -> None:
    first = pilot.task(cache=True)(module(MODULE).work).submit(3)
    assert first.result(LONG_S) == 6
    edited = pilot.task(cache=True)(module(MODULE.replace(old, new)).work).submit(3)
    assert edited.result(LONG_S) == value
    assert why in miss(edited)
    assert f"{first.id}:1" in miss(edited)
    again = pilot.task(cache=True)(module(MODULE).work).submit(3)
    hit(again, first)


def test_closures_and_defaults_of_functions_by_value(project: pilot.Project, unique: str) -> None:
    def scaled(factor: int) -> Any:
        def scale(x: str, more: Any = factor) -> Any:
            return x * factor + str(more)

        return pilot.task(cache=True)(scale)

    first = scaled(2).submit(unique)
    assert first.result(LONG_S) == f"{unique}{unique}2"
    other = scaled(3).submit(unique)
    assert other.result(LONG_S) == f"{unique * 3}3"
    assert f"what it closes over, its defaults or the globals that it uses changed since {first.id}:1" in miss(other)
    hit(scaled(2).submit(unique), first)


BASE = """
    class Plugin:
        def run(self, x):
            return x * self.factor()
"""

PLUGINS = """
    from base_of_plugins import Plugin

    class Rocks(Plugin):
        def factor(self):
            return 2

    class Scissors(Plugin):
        def factor(self):
            return 3

    def apply(plugin, x):
        return plugin.run(x)
"""


def test_sibling_plugins(project: pilot.Project, module: Callable[[str], ModuleType], tmp_path: Path) -> None:
    """Their inputs are equal, their method is the same one; what it does is decided by their classes."""
    (tmp_path / "base_of_plugins.py").write_text(textwrap.dedent(BASE))
    plugins = module(PLUGINS)
    rocks, scissors = (pilot.task(cache=True)(cls().run) for cls in (plugins.Rocks, plugins.Scissors))
    first, other = rocks.submit(7), scissors.submit(7)
    assert (first.result(LONG_S), other.result(LONG_S)) == (14, 21)
    assert miss(other)
    hit(rocks.submit(7), first)
    hit(scissors.submit(7), other)
    apply = pilot.task(cache=True)(plugins.apply)  # the plugin as an argument
    given = [apply.submit(cls(), 7) for cls in (plugins.Rocks, plugins.Scissors)]
    assert [future.result(LONG_S) for future in given] == [14, 21]
    edited = module(PLUGINS.replace("return 2", "return 5"))
    assert pilot.task(cache=True, fresh=True)(edited.Rocks().run).submit(7).result(LONG_S) == 35
    del sys.modules["base_of_plugins"]


# -- misses: results ----------------------------------------------------------------------------------


def test_an_object_that_is_gone(rig: Rig, project: pilot.Project, unique: str) -> None:
    first = double.submit(unique * 5000)
    (output,) = record(first)["outputs"]
    path = Path(Objects(rig.config.objects_folder).path(output["hash"]))
    path.rename(path.with_suffix(".away"))
    reason = miss(double.submit(unique * 5000))
    assert f"{first.id}:1 has its result, but the object {output['hash']} of its outputs is gone" in reason
    path.unlink()
    path.with_suffix(".away").rename(path)
    assert record(double.submit(unique * 5000))["outcome"] == "cached"


def test_invalidated_results(rig: Rig, project: pilot.Project, unique: str) -> None:
    first = double.submit(unique)
    miss(first)
    taken = double.submit(unique)
    hit(taken, first)
    assert project.invalidate(taken, reason="wrong units") == [first.id], "of a hit, what it took is meant"
    second = double.submit(unique)
    assert miss(second) == f"{first.id}:1 has its result, but it was invalidated: wrong units"
    lines = reasons(facts.collect(project.store, first.id, record(first)["time"]["finished"]))
    assert "its result is not taken for equal tasks: it was invalidated: wrong units" in lines
    hit(double.submit(unique), second)
    project.invalidate(second)
    assert "it was invalidated" in miss(third := double.submit(unique))
    assert project.invalidate(third, second.id, first, undo=True) == [third.id, second.id, first.id]
    assert record(double.submit(unique))["cached_from"] == f"{third.id}:1", "the latest run comes first"


def test_what_did_not_succeed(project: pilot.Project, unique: str) -> None:
    first = fail.submit(unique)
    with pytest.raises(TaskFailed):
        first.result(LONG_S)
    miss(first)
    second = fail.submit(unique)
    assert miss(second) == f"its last run, {first.id}:1, did not succeed: failed"
    (again,) = project.retry(first)
    again.exception(LONG_S)
    last = project.record_of(first.id)
    assert last is not None
    assert last["cache"]["miss"] == f"its last run, {second.id}:1, did not succeed: failed"


def test_a_person_retries_what_another_task_has_done(project: pilot.Project, unique: str, tmp_path: Path) -> None:
    flaky = pilot.task(cache=True)(pilot_tasks.fail_until)
    first = flaky.submit(str(tmp_path / unique), 1)
    first.exception(LONG_S)
    second = flaky.submit(str(tmp_path / unique), 1)
    assert second.result(LONG_S) == 2
    (again,) = project.retry(first)
    assert again.result(LONG_S) == 2
    last = project.record_of(first.id)
    assert last is not None
    assert last["cached_from"] == f"{second.id}:1"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"signature": b"x" * 32}, "it is not trusted: the signature of a record"),
        ({"outputs.0.hash": "0" * 64}, "it is not trusted: the signature of a record"),
        ({"outputs.0.value": "forged"}, "its output 'result' is not what was signed"),
        ({"outputs": "gone"}, "it is not trusted"),
        ({"cache.key": ""}, "no earlier run|gather, or what counts"),
        ({"time.finished": "noon"}, "a record could not be read|"),
        ({"outcome": "well"}, "a record could not be read: ValueError"),
    ],
)
def test_records_that_somebody_changed(project: pilot.Project, unique: str, change: Record, why: str) -> None:
    first = same.submit(unique)
    before = record(first)
    query = {"_id": f"{first.id}:1"}
    project.store.provenance.update_one(query, {"$set": change})
    try:
        second = same.submit(unique)
        found = record(second)
        assert second.result() == unique
        if found["outcome"] != "cached":
            assert any(part in found["cache"]["miss"] for part in why.split("|"))
        else:
            assert why.endswith("|")
    finally:
        project.store.provenance.replace_one(query, before)


def test_a_result_cannot_be_passed_off_as_another(project: pilot.Project, unique: str) -> None:
    """A record that is signed, put under the key of another task."""
    wanted, other = same.submit(unique), same.submit(f"{unique} forged")
    before = record(wanted), record(other)
    table = project.store.provenance
    table.update_one({"_id": f"{wanted.id}:1"}, {"$unset": {"cache": ""}})
    table.update_one({"_id": f"{other.id}:1"}, {"$set": {"cache": before[0]["cache"]}})
    try:
        third = same.submit(unique)
        assert f"{other.id}:1 has its result, but it is not trusted" in miss(third)
        assert third.result() == unique
    finally:
        for doc in before:
            table.replace_one({"_id": doc["_id"]}, doc)


def test_nobody_turns_the_cache_on_for_a_task_of_ours(project: pilot.Project, unique: str, gate: Path) -> None:
    parent = pilot.task(pilot_tasks.wait_for).submit(str(gate))
    child = pilot.task(pilot_tasks.same).submit([parent, unique])
    project.store.tasks.update_one({"_id": child.id}, {"$set": {"cache": "inputs"}})
    gate.touch()
    with pytest.raises(TaskFailed, match="signature"):
        child.result(LONG_S)


# -- commands -----------------------------------------------------------------------------------------


def test_commands(rig: Rig, project: pilot.Project, unique: str, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\n# {unique}\ncat text\n")
    program.chmod(0o755)

    def submit(text: str = "a", **options: Any) -> pilot.Future:
        return pilot.command(
            [str(program)], inputs={"text": text}, stdout="out", outputs={"out": "out"}, cache=True, **options
        ).submit()

    first = submit()
    assert "no earlier run" in miss(first)
    second = submit()
    found = hit(second, first)
    assert second.result() == first.result() == {"exit_code": 0, "out": b"a"}
    assert "executable" not in found["command"]
    assert "exit_code" not in found
    assert "no earlier run" in miss(submit("b"))
    assert f"env of the command differs from that of {first.id}:1" in miss(submit(env={"A": "1"}))
    program.write_text(f"#!/bin/sh\n# {unique}\ncat text text\n")
    third = submit()
    assert third.result(LONG_S)["out"] == b"aa"
    assert f"the program {program} is not the one that it ran" in miss(third)
    hit(submit(), third)
    before = record(third)
    project.store.provenance.update_one({"_id": before["_id"]}, {"$set": {"command.digest": "0" * 64}})
    try:
        assert "it is not trusted" in miss(submit())
    finally:
        project.store.provenance.replace_one({"_id": before["_id"]}, before)


def test_the_program_may_be_an_input_or_a_shell_line(project: pilot.Project, unique: str) -> None:
    text = f"# {unique}\necho hello > out"
    made = [
        pilot.command(["sh", "./run.sh"], inputs={"run.sh": text}, outputs={"out": "out"}, cache=True),
        pilot.command(f"echo {unique} > out", shell=True, outputs={"out": "out"}, cache=True),
    ]
    for command in made:
        first = command.submit()
        miss(first)
        hit(command.submit(), first)
