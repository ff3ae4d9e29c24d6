"""The cache: what is taken instead of run, how that is turned on, and that no death of a pool comes in between."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest

import pilot
from pilot.cli import app
from pilot.errors import ConfigError, InvalidInput
from pilot.resources import parse_caching
from pilot.states import Outcome
from pilot.store import caching, dependants
from pilot.store.mongo import Store
from tests import pilot_tasks, queue_rig
from tests.cache_rig import double, hit, miss, record, same, total
from tests.rig import LONG_S, Rig, ids, kill, wait_until
from tests.rig import rig as new_rig

pytestmark = pytest.mark.timeout(120)

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


def test_as_fast_as_without(project: pilot.Project, unique: str) -> None:
    """A thousand hits take seconds at most on any machine, and come in large leases."""
    first = double.map([f"{unique}{number}" for number in range(1000)])
    for future in first:
        future.result(LONG_S)
    began = time.monotonic()
    for future, old in zip(double.map([f"{unique}{number}" for number in range(1000)]), first, strict=True):
        assert future.result(LONG_S) == old.result()
    assert time.monotonic() - began < LONG_S / 2
