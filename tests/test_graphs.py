"""Graphs around what a person names: tasks, records, outputs, contents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pilot import graph as graph_module
from pilot import records
from pilot.errors import RecordNotFound, TaskNotFound
from pilot.graph import Graph, How, Link
from pilot.store import graphs, lineage
from pilot.store.mongo import Store
from pilot.store.objects import Objects
from tests.test_lineage import record

pytestmark = pytest.mark.any_documents


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return Objects(tmp_path / "objects")


def made(task: str, value: int, *used: tuple[str, str, str | None, int], attempt: int = 1) -> dict[str, Any]:
    """Return a record that made a value of those of (record, output, item, value)."""
    doc = record(task, attempt=attempt)
    doc["outputs"] = [entry("result", value)]
    doc["inputs"] = [
        {**entry(f"y[{number}]", one), "source": {"record": name, "output": output} | ({"item": item} if item else {})}
        for number, (name, output, item, one) in enumerate(used)
    ]
    for one in doc["inputs"]:
        del one["value"]
    return doc


def entry(name: str, value: Any, number: int | None = None) -> dict[str, Any]:
    digits = number if number is not None else value
    return {"name": name, "hash": f"{digits:064x}", "size": 2, "value": value}


def tasks(store: Store, **officials: int | None) -> None:
    """Store tasks, each with the number of its official attempt, or of none but with two attempts."""
    store.tasks.insert_many(
        {"_id": name, "kind": "function", "name": name, "state": "done" if n else "leased", "attempt": n or 2}
        | ({"official": n} if n else {})
        for name, n in officials.items()
    )


def family(store: Store) -> None:
    """a (twice: lost, then good) → b, c, d;  b → e;  k is cached from b;  k → f."""
    tasks(store, a=2, b=1, c=1, d=2, e=1, k=1, f=1)
    copy = record("k", "a:2", outcome="cached") | {"cached_from": "b:1"}
    store.provenance.insert_many(
        [
            record("a", outcome="lost"), record("a", attempt=2), record("b", "a:2"), record("c", "a:2"),
            record("d", "a:2", outcome="failed"), record("d", "a:2", attempt=2), record("e", "b:1"),
            copy, record("f", "k:1"),
        ]
    )  # fmt: skip


def around(store: Store, objects: Objects, text: str, *args: Any, **options: Any) -> Graph:
    return graphs.around(store, objects.get, graphs.named(store, objects.get, text), *args, **options)


# -- where to and how far -------------------------------------------------------------------------


def test_up_and_down(store: Store, objects: Objects) -> None:
    family(store)
    assert list(around(store, objects, "e").runs) == ["e:1", "b:1", "a:2"]
    assert set(around(store, objects, "b", 0, None).runs) == {"b:1", "e:1", "k:1", "f:1"}
    assert set(around(store, objects, "b", 1, 1).runs) == {"b:1", "a:2", "e:1", "k:1"}
    near = around(store, objects, "e", 1)
    assert (set(near.runs), near.cut, near.starts) == ({"e:1", "b:1"}, "depth", ("e:1",))
    assert near.values["a:2/result"].creator == "a:2"  # named, though its run is not here
    few = around(store, objects, "a", None, None, limit=3)
    assert (len(few.runs), few.cut) == (3, "limit")
    exact = around(store, objects, "e", limit=3)
    assert (len(exact.runs), exact.cut) == (3, "")


def test_only_the_attempt_that_counts_unless_all_are_wanted(store: Store, objects: Objects) -> None:
    family(store)
    below = around(store, objects, "a", 0, 1)
    assert set(below.runs) == {"a:2", "b:1", "c:1", "d:2", "k:1"}
    every = around(store, objects, "a", 0, 1, attempts=True)
    assert set(every.runs) == {*below.runs, "a:1", "d:1"}
    assert not [link for link in every.links if link.value == "a:1/result" and link.how is How.USED]
    assert set(around(store, objects, "a:1").runs) == {"a:1"}  # named by whoever wants this one


def test_a_task_that_has_not_ended_shows_its_latest_attempt(store: Store, objects: Objects) -> None:
    tasks(store, a=None, b=None)
    store.provenance.insert_many([record("a", outcome="failed"), record("a", outcome="lost", attempt=2)])
    assert list(around(store, objects, "a").runs) == ["a:2"]
    with pytest.raises(RecordNotFound, match=r"'b' is leased and has no record yet.*pilot explain b"):
        around(store, objects, "b")


def test_a_cached_run_leads_to_the_one_it_was_taken_from(store: Store, objects: Objects) -> None:
    family(store)
    up = around(store, objects, "f")
    assert set(up.runs) == {"f:1", "k:1", "b:1", "a:2"}
    assert up.runs["k:1"].cached_from == "b:1"
    assert up.runs["b:1"].cached_from is None
    assert up.origin("k:1/result") == up.runs["k:1"]  # every value has one creator, cached or not
    assert lineage.ancestors(store, objects.get, ["f:1"]).distance["b:1"] == 2
    assert lineage.descendants(store, objects.get, ["b:1"]).distance == {"b:1": 0, "e:1": 1, "k:1": 1, "f:1": 2}


def test_siblings(store: Store, objects: Objects) -> None:
    family(store)
    found = around(store, objects, "c", 0, siblings=True)
    assert set(found.runs) == {"c:1", "a:2", "b:1", "d:2", "k:1"}
    assert found.cut == "depth"
    assert around(store, objects, "c", siblings=True).cut == ""
    assert set(around(store, objects, "c", siblings=True, limit=2).runs) == {"c:1", "a:2"}


# -- what may be named ----------------------------------------------------------------------------


def test_an_output_leads_to_those_that_used_it_and_no_other(store: Store, objects: Objects) -> None:
    tasks(store, p=1, one=1, two=1, whole=1, after=1)
    parent = made("p", 7)
    parent["outputs"] = [entry("left", 1), entry("right", 2)]
    store.provenance.insert_many(
        [
            parent, made("one", 3, ("p:1", "left", None, 1)), made("two", 4, ("p:1", "right", None, 2)),
            made("whole", 5, ("p:1", "left", None, 1), ("p:1", "right", None, 2)),
            made("after", 6, ("one:1", "result", None, 3)),
        ]
    )  # fmt: skip
    assert set(around(store, objects, "p/left", down=1).runs) == {"p:1", "one:1", "whole:1"}
    assert set(around(store, objects, "p:1/right", down=None).runs) == {"p:1", "two:1", "whole:1"}
    assert set(around(store, objects, "p/left", down=2).runs) == {"p:1", "one:1", "whole:1", "after:1"}
    with pytest.raises(RecordNotFound, match=r"'p:1' has no output 'middle', only \['left', 'right'\]"):
        around(store, objects, "p/middle")


def test_an_item_of_a_result_leads_to_those_that_used_it_or_all_of_it(store: Store, objects: Objects) -> None:
    tasks(store, p=1, half=1, double=1, all=1)
    parent = made("p", 7)
    parent["outputs"] = [entry("result", {"half": 1, "double": 2}, 9)]
    store.provenance.insert_many(
        [
            parent, made("half", 1, ("p:1", "result", "half", 9)), made("double", 2, ("p:1", "result", "double", 9)),
            made("all", 3, ("p:1", "result", None, 9)),
        ]
    )  # fmt: skip
    found = around(store, objects, "p/half", down=1)
    assert set(found.runs) == {"p:1", "half:1", "all:1"}
    assert Link(How.USED, "half:1", "p:1/result", "y[0]", "half") in found.links
    with pytest.raises(RecordNotFound, match="no output 'third'"):
        around(store, objects, "p/third")


def test_a_hash_leads_to_all_that_made_or_used_the_content(store: Store, objects: Objects) -> None:
    tasks(store, a=1, b=1, c=1, u=1, g=1, join=1)
    join = made("join", 9, ("a:1", "result", None, 5))
    join["inputs"] = records.pack(join["inputs"], objects.put, 1 << 30)
    given = made("g", 6)
    given["inputs"] = [entry("x", 5)]
    store.provenance.insert_many(
        [
            made("a", 5, ("c:1", "result", None, 4)), made("b", 5), made("c", 4),
            made("u", 6, ("a:1", "result", None, 5)), given, join,
        ]
    )  # fmt: skip
    found = around(store, objects, f"{5:064x}")
    assert found.starts == ("a:1", "b:1", "g:1", "join:1", "u:1")
    assert set(found.runs) == {"a:1", "b:1", "u:1", "g:1", "join:1", "c:1"}
    assert [value.id for value in found.values.values() if value.hash == f"{5:064x}"] == [
        "a:1/result", "b:1/result", f"value:{5:064x}",
    ]  # fmt: skip
    with pytest.raises(RecordNotFound, match="made or used"):
        around(store, objects, "f" * 64)


def test_ids_may_be_shortened(store: Store, objects: Objects) -> None:
    tasks(store, alpha=1, beta=1)
    store.provenance.insert_many([record("alpha"), record("beta")])
    assert list(around(store, objects, "alp").runs) == ["alpha:1"]
    assert list(around(store, objects, "alp:1").runs) == ["alpha:1"]
    assert list(around(store, objects, "alp/result").runs) == ["alpha:1"]
    with pytest.raises(RecordNotFound, match=r"no record of attempt 3"):
        around(store, objects, "alpha:3")
    with pytest.raises(TaskNotFound, match="'gamma'"):
        around(store, objects, "gamma")


def test_as_a_document(store: Store, objects: Objects) -> None:
    family(store)
    found = around(store, objects, "e", 1).document()
    assert found.keys() == {"starts", "cut", "runs", "values", "links"}
    assert (found["starts"], found["cut"]) == (["e:1"], "depth")
    run = {"id", "task", "attempt", "name", "kind", "outcome", "started", "finished", "cached_from"}
    assert {frozenset(one) for one in found["runs"]} == {frozenset(run)}
    ids = {one["id"] for one in found["values"]}
    assert {link["value"] for link in found["links"]} == ids
    assert {"how": "used", "run": "e:1", "value": "b:1/result", "label": "y[0]"} in found["links"]
    assert {one["id"]: one for one in found["values"]}["b:1/result"] == {
        "id": "b:1/result", "hash": "1" * 64, "size": 2, "creator": "b:1", "output": "result", "value": 1,
    }  # fmt: skip
    assert set(graph_module.FIELDS) >= {"cached_from", "inputs", "outputs"}
