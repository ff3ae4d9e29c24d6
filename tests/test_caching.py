"""The cache: what is taken instead of run, why something is not, and that nothing false is taken."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import pilot
from pilot import signing
from pilot.cachekey import content_of, keys_of
from pilot.cli import app, facts
from pilot.errors import ConfigError, InvalidInput, TaskFailed
from pilot.explain import reasons
from pilot.model import Blob, FunctionCode, Input, Link, new_token
from pilot.plain import Reference
from pilot.records import Source
from pilot.resources import TaskSpec, parse_caching
from pilot.states import Kind, Outcome
from pilot.store import caching, dependants
from pilot.store.mongo import Store
from pilot.store.objects import Objects
from pilot.values import encode_argument
from tests import pilot_tasks, queue_rig
from tests.rig import LONG_S, Rig, ids, kill, wait_until
from tests.rig import rig as new_rig

pytestmark = pytest.mark.timeout(120)

Record = dict[str, Any]

double = pilot.task(cache=True)(pilot_tasks.double)
total = pilot.task(cache=True)(pilot_tasks.total)
same = pilot.task(cache=True)(pilot_tasks.same)
fail = pilot.task(cache=True)(pilot_tasks.fail)


def record(future: pilot.Future) -> Record:
    """Wait for a task and return its record."""
    future.exception(LONG_S)
    found = future.record()
    assert found is not None
    return found


def hit(future: pilot.Future, of: pilot.Future) -> Record:
    """Make sure that a task took another's result; return its record."""
    found = record(future)
    assert (found["outcome"], found.get("cached_from")) == ("cached", f"{of.id}:1"), found.get("cache")
    assert "key" not in found["cache"]
    return found


def miss(future: pilot.Future) -> str:
    """Make sure that a task ran; return why it did."""
    found = record(future)
    assert "cached_from" not in found
    reason: str = found["cache"]["miss"]
    return reason


@pytest.fixture
def unique() -> str:
    """Return an input that no other test of this project has."""
    return new_token()


# -- hits ---------------------------------------------------------------------------------------------


def test_a_hit_has_a_record_of_its_own(rig: Rig, project: pilot.Project, unique: str, tmp_path: Path) -> None:
    note = pilot.task(cache=True)(pilot_tasks.note)
    trace = tmp_path / unique
    first = note.submit(1, str(trace))
    assert "no earlier run of note had these inputs and caching on" in miss(first)
    second = note.submit(1, str(trace))
    found = hit(second, first)
    assert second.result() == first.result() == 1
    assert len(trace.read_text().splitlines()) == 1, "it ran twice"
    assert project.state_of(second.id) == "done"
    origin = record(first)
    assert found["outputs"] == origin["outputs"]
    assert found["inputs"] == origin["inputs"]
    assert (found["rank"], found["usage"]["wall_s"]) == (0, 0.0)
    assert found["cache"]["saved_s"] == origin["usage"]["wall_s"]
    assert found["chain"]["token"] == found["token"]
    hit(note.submit(1, str(trace)), first)  # of the run, never of another hit
    assert len(set(origin["cache"])) == 3


def test_a_chain_of_hits_needs_no_slot(project: pilot.Project, unique: str) -> None:
    def chain() -> list[pilot.Future]:
        a, b = double.submit(unique), same.submit({"k": unique})
        c = same.submit({"both": [a, (b["k"], 1)], "~": a})
        return [a, b, c, total.submit([same.submit(number), 2])]

    number = int.from_bytes(unique.encode()[:6])

    first = chain()
    values = [future.result(LONG_S) for future in first]
    assert values[2] == {"both": [2 * unique, (unique, 1)], "~": 2 * unique}
    second = chain()
    for old, new in zip(first, second, strict=True):
        found = hit(new, old)
        assert found["rank"] == 0
    assert [future.result() for future in second] == values
    linked = record(second[2])["inputs"]
    assert {entry["source"]["record"] for entry in linked if "source" in entry} == {f"{f.id}:1" for f in second[:2]}


def test_what_a_future_stands_for_counts(project: pilot.Project, unique: str) -> None:
    first = same.submit(2 * unique)
    first.result(LONG_S)
    hit(same.submit(double.submit(unique)), first)
    assert miss(same.submit([double.submit(unique)]))


def test_a_link_that_only_pickle_can_open_counts_as_itself(project: pilot.Project, unique: str) -> None:
    parent = double.submit(unique)
    wrapped = same.submit({1: parent})  # a dictionary whose keys are no strings
    assert wrapped.result(LONG_S) == {1: 2 * unique}
    hit(same.submit({1: parent}), wrapped)
    assert miss(same.submit({1: double.submit(unique)}))


def test_large_values_and_lists(project: pilot.Project, unique: str) -> None:
    text = unique * 5000
    first = double.submit(text)
    assert first.result(LONG_S) == 2 * text
    second = double.submit(text)
    hit(second, first)
    assert second.result() == 2 * text
    many = [double.submit(n).id for n in range(2)] * 300
    links = [project.task(task) for task in many]
    first = same.submit([text, *links])
    miss(first)
    hit(same.submit([text, *links]), first)


@pytest.mark.parametrize("options", [{"ranks": 2, "gather": True}, {"cores": 2}])
def test_wide_tasks(project: pilot.Project, unique: str, options: dict[str, Any]) -> None:
    wide = same.with_options(**options)
    first = wide.submit([unique])
    miss(first)
    second = wide.submit([unique])
    assert "placement" not in hit(second, first)
    assert second.result() == first.result()
    if "gather" in options:
        assert "gather" in miss(same.with_options(ranks=2).submit([unique]))
    assert "it asks for other resources than" in miss(same.submit([unique]))


# -- switches -----------------------------------------------------------------------------------------


def test_switches(project: pilot.Project, unique: str) -> None:
    plain = pilot.task(pilot_tasks.double)
    assert "cache" not in record(plain.submit(unique))
    assert "had these inputs and caching on" in miss(double.submit(unique)), "only runs with caching on are found"
    off = double.with_options(cache=False)
    with pilot.cache():
        assert record(plain.submit(unique))["outcome"] == "cached"
        assert "cache" not in record(off.submit(unique))
        assert "cache" not in record(off.with_options(walltime="1m").submit(unique))
        with pilot.cache(enable=False):
            assert "cache" not in record(plain.submit(unique))
            assert record(double.submit(unique))["outcome"] == "cached"
        assert record(pilot.command(["true"]).submit())["cache"]
    assert "cache" not in record(pilot.command(["true"]).submit())
    project.config = dataclasses.replace(project.config, cache="inputs")
    assert record(plain.submit(unique))["outcome"] == "cached"
    with pilot.cache(enable=False):
        assert "cache" not in record(plain.submit(unique))


def test_bad_switches(rig: Rig, project: pilot.Project) -> None:
    for wrong in ("inputs?", 1, None):
        with pytest.raises(InvalidInput, match="is none of True, False"), pilot.cache(wrong):  # type: ignore[arg-type]
            pass
    with pytest.raises(InvalidInput, match="cache 'yes' is none of"):
        pilot.task(cache="yes")(pilot_tasks.double)
    assert [parse_caching(value) for value in (True, False, "environment")] == ["inputs", "", "environment"]
    file = rig.config.folder / "project.json"
    text = file.read_text()
    try:
        for value, expected in ((True, "inputs"), ("environment", "environment")):
            file.write_text(json.dumps({**json.loads(text), "cache": value}))
            assert pilot.open(rig.config.root).config.cache == expected
        file.write_text(json.dumps({**json.loads(text), "cache": "often"}))
        with pytest.raises(ConfigError, match=r"project.json.*cache 'often' is none of"):
            pilot.open(rig.config.root)
    finally:
        file.write_text(text)


def test_the_environment_counts_if_it_should(project: pilot.Project, unique: str) -> None:
    strict = double.with_options(cache="environment")
    first = strict.submit(unique)
    miss(first)
    hit(strict.submit(unique), first)
    assert "what counts for the cache" in miss(double.submit(unique))
    task, code = {"function": "f", "command": None, "class": "c1", "cache": "environment"}, _code()
    one, other = (keys_of(task, (), {}, code, place, _no_object) for place in ("a", "b"))
    assert one.key != other.key
    assert one.like == other.like


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
    project.store.provenance.update_one({"_id": f"{third.id}:1"}, {"$set": {"command.digest": "0" * 64}})
    assert "it is not trusted" in miss(submit())


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


# -- the whole ----------------------------------------------------------------------------------------


def test_said_on_the_command_line(
    rig: Rig, project: pilot.Project, unique: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(rig.config.root)

    def said(*words: str) -> str:
        assert app.run(words) == 0
        return capsys.readouterr().out

    before = caching.tally(project.store)
    first = double.submit(unique)
    miss(first)
    second = double.submit(unique)
    hit(second, first)
    assert "it had to run although caching was on: no earlier run of double" in said("explain", first.id)
    assert f"it did not run: it took the result of {first.id}:1, which ended" in said("explain", second.id)
    assert f"took the result of {first.id}:1" in said("show", second.id)
    assert said("invalidate", second.id, "--reason", "a test").startswith(
        f"1 result will not be taken again: of {first.id}"
    )
    assert "its result is not taken for equal tasks: a test" in said("show", first.id)
    assert json.loads(said("invalidate", first.id, "--undo", "--json")) == {"invalid": False, "tasks": [first.id]}
    wait_until(lambda: caching.tally(project.store).hits > before.hits, LONG_S, "the pool has reported")
    assert json.loads(said("status", "--json"))["cache"]["hits"] > before.hits
    assert "took an earlier result; that saved" in said("status")
    assert app.run(["invalidate", "nonsense"]) == 1


def test_across_pools_and_their_deaths(tmp_path: Path) -> None:
    with new_rig(tmp_path) as made:
        one = made.start(slots=2)
        with made.open() as project:
            first = double.map(range(2000))
            assert [future.result(LONG_S) for future in first] == [2 * number for number in range(2000)]
            made.drain(one)
            tally = caching.tally(project.store)
            assert (tally.hits, tally.misses) == (0, 2000), "a pool says at its end what it has counted"
            second = double.map(list(range(2000)) * 3)
            other = made.start(slots=2)
            coordinator = other.rank(0)
            wait_until(lambda: made.counts().get("done", 0) > 2000, LONG_S, "some are done", made.logs, 0.001)
            kill(coordinator)
            assert [future.result(LONG_S) for future in second] == [2 * number for number in range(2000)] * 3
            outcomes = project.store.provenance.distinct("outcome", {"task": {"$in": ids(second)}})
            assert set(outcomes) <= {"cached", "lost"}
        made.settled()
        made.check(ids(first) + ids(second))
        made.drain()
        made.check_clean()


def test_a_pool_that_dies_after_the_record(store: Store, a: str) -> None:
    """The record decides: whoever finds the lease makes the task done."""
    queue_rig.submit(store, queue_rig.task("parent"), queue_rig.task("child", "parent"))
    held = queue_rig.lease(store, a)
    queue_rig.record_all(store, a, dict.fromkeys(held.items(), Outcome.CACHED))
    queue_rig.kill_pool(store, a)
    assert queue_rig.reap(store) == 1
    dependants.reconcile(store)
    assert queue_rig.states(store) == {"parent": "done", "child": "ready"}


def test_few_commands_for_many(raced: tuple[Store, queue_rig.Commands]) -> None:
    store, commands = raced
    caching.ensure(store)
    docs = [
        {"_id": f"t{n}:1", "task": f"t{n}", "outcome": "succeeded", "cache": {"key": f"k{n % 500}", "like": f"l{n}"}}
        for n in range(1000)
    ]
    store.provenance.insert_many(docs)
    try:
        with commands.at_most(1, "looking up 500 keys"):
            found = caching.runs(store, [f"k{n}" for n in range(500)])
        assert {len(several) for several in found.values()} == {2}
        with commands.at_most(3, "looking for 1000 likes"):
            assert len(caching.likes(store, [f"l{n}" for n in range(1000)], ["task"])) == 1000
        plan = store.provenance.find({"cache.key": "k1"}, hint="cache").explain()
        assert plan["executionStats"]["totalDocsExamined"] == 2
    finally:
        store.provenance.delete_many({})


# -- keys ---------------------------------------------------------------------------------------------


def _code() -> FunctionCode:
    return FunctionCode("f", "m", "q", "", "", "", None, "3.11")


def _no_object(name: str) -> bytes:
    raise AssertionError(f"nobody should read {name}")


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("c1", "c1m1024w60", True),
        ("c1", "c2", False),
        ("c1", "c1r1", False),
        ("c1r4", "c1r4n2", True),
        ("c1r4", "c1r4p2", True),
        ("c1r4", "c1r2", False),
        ("c1g1", "c1", False),
        ("c1r1xg0.5", "c1r1xg1", False),
    ],
)
def test_resources_that_count(one: str, other: str, equal: bool) -> None:
    def key(resources: str) -> str:
        task = {"function": "f", "command": None, "class": resources, "cache": "inputs"}
        return keys_of(task, (), {}, _code(), "", _no_object).key

    assert (key(one) == key(other)) is equal


def test_content_of_arguments() -> None:
    def argument(value: object) -> Input:
        encoded, links = encode_argument(value, "x")
        return Input("x", Blob(encoded.hash, encoded.size, encoded.data), links)

    def content(value: object, **sources: list[Source]) -> str:
        found = {tuple(name.split("__")) if "__" in name else (name, None): s for name, s in sources.items()}
        return content_of(argument(value), found, _no_object)  # type: ignore[arg-type]

    zero = argument(0).blob.hash
    result, code = [Source("a:1", "result", zero, 2)], [Source("a:1", "exit_code", zero, 2)]
    whole = Reference("a", None)
    assert content(0) == zero
    assert content(whole, a=result) == zero
    assert content(Reference("b", None), b=result) == zero
    assert content(whole, a=code) != zero, "all of a command's outputs are a dictionary"
    assert content(Reference("a", "exit_code"), a__exit_code=code) == zero
    assert content(Reference("a", "k"), a__k=result) not in (zero, content(Reference("a", "l"), a__l=result))
    nested = content([whole, {"~": whole}, (1, whole)], a=result)
    assert nested == content([Reference("b"), {"~": Reference("b")}, (1, Reference("b"))], b=result)
    assert nested != content([whole, {"~": whole}, (1, whole)], a=code)
    assert nested != content([0, {"~": 0}, (1, 0)])
    both = [Source("a:1", "x", zero, 1), Source("a:1", "y", "1" * 64, 1)]
    assert content(whole, a=both) == content(whole, a=both[::-1])


def test_nothing_more_is_signed_of_tasks_without_caching() -> None:
    spec = TaskSpec("t", Kind.FUNCTION, "n", (Input("x", Blob("0" * 64, 1, None), (Link("x", "p", None),)),))
    plain, cached = signing.task_fields(spec), signing.task_fields(spec._replace(cache="inputs"))
    assert cached == [*plain, ["cache", "inputs"]]
    doc = {
        "task": "t",
        "attempt": 1,
        "token": "k",
        "outcome": "cached",
        "task_signature": b"",
        "inputs": [],
        "outputs": [],
    }
    fields = signing.record_fields(doc)
    assert signing.record_fields({**doc, "cached_from": "x:1"}) == [*fields, [None, "x:1", None]]
    assert signing.record_fields({**doc, "cache": {"key": "k", "miss": "why"}}) == [*fields, ["k", None, None]]


def test_as_fast_as_without(project: pilot.Project, unique: str) -> None:
    """A thousand hits take seconds at most on any machine, and come in large leases."""
    first = double.map([f"{unique}{number}" for number in range(1000)])
    for future in first:
        future.result(LONG_S)
    began = time.monotonic()
    for future, old in zip(double.map([f"{unique}{number}" for number in range(1000)]), first, strict=True):
        assert future.result(LONG_S) == old.result()
    assert time.monotonic() - began < LONG_S / 2
