"""Walks along links, and graphs, over records that are written here by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pilot import mentions, records
from pilot.graph import How, graph_of
from pilot.store import lineage
from pilot.store.mongo import Store
from pilot.store.objects import Objects

pytestmark = pytest.mark.any_documents

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return Objects(tmp_path / "objects")


def record(task: str, *parents: str, attempt: int = 1, outcome: str = "succeeded") -> dict[str, Any]:
    """Return a record of a task with one result, which used those of these records."""
    inputs: list[dict[str, Any]] = [{"name": "x", "hash": "0" * 64, "size": 2, "value": 1}]
    inputs += [
        {"name": f"y[{i}]", "hash": "1" * 64, "size": 2, "source": {"record": parent, "output": "result"}}
        for i, parent in enumerate(parents)
    ]
    return {
        "_id": f"{task}:{attempt}", "task": task, "attempt": attempt, "name": task, "kind": "function",
        "outcome": outcome, "inputs": inputs, "outputs": [{"name": "result", "hash": "1" * 64, "size": 2, "value": 1}],
        "time": {"started": NOON, "finished": NOON + timedelta(seconds=1)},
    }  # fmt: skip


def test_up_and_down(store: Store, objects: Objects) -> None:
    #  a1 (lost), a2 → b, c;  b, c → d → e;  f apart
    store.provenance.insert_many(
        [
            record("a", attempt=1, outcome="lost"), record("a", attempt=2), record("b", "a:2"), record("c", "a:2"),
            record("d", "b:1", "c:1"), record("e", "d:1"), record("f"),
        ]
    )  # fmt: skip
    up = lineage.ancestors(store, objects.get, ["e:1"])
    assert up.distance == {"e:1": 0, "d:1": 1, "b:1": 2, "c:1": 2, "a:2": 3}
    assert up.cut == ""
    down = lineage.descendants(store, objects.get, ["a:2"])
    assert down.distance == {"a:2": 0, "b:1": 1, "c:1": 1, "d:1": 2, "e:1": 3}
    assert lineage.descendants(store, objects.get, ["a:1", "f:1"]).distance == {"a:1": 0, "f:1": 0}
    short = lineage.ancestors(store, objects.get, ["e:1"], depth=2)
    assert (set(short.distance), short.cut) == ({"e:1", "d:1", "b:1", "c:1"}, "depth")
    assert lineage.ancestors(store, objects.get, ["e:1"], depth=3).cut == ""
    few = lineage.descendants(store, objects.get, ["a:2"], limit=3)
    assert (len(few.distance), few.cut) == (3, "limit")


def test_inputs_too_many_for_a_document_are_links_as_well(store: Store, objects: Objects) -> None:
    parents = [record(f"p{number}") for number in range(3000)]
    join = record("join", *(one["_id"] for one in parents))
    join["inputs"] = records.pack(join["inputs"], objects.put, 1 << 30)
    assert list(mentions.objects(join, objects.get)) == [join["inputs"]["object"]]
    store.provenance.insert_many([*parents, join, record("after", "join:1")])
    assert len(lineage.ancestors(store, objects.get, ["after:1"]).distance) == 3002
    assert set(lineage.descendants(store, objects.get, ["p17:1"]).distance) == {"p17:1", "join:1", "after:1"}


def test_a_long_chain(store: Store, objects: Objects) -> None:
    chain = [record("t0"), *(record(f"t{number}", f"t{number - 1}:1") for number in range(1, 1001))]
    store.provenance.insert_many(chain)
    assert len(lineage.ancestors(store, objects.get, ["t1000:1"]).distance) == 1001
    assert len(lineage.descendants(store, objects.get, ["t0:1"]).distance) == 1001


def test_a_graph(objects: Objects) -> None:
    graph = graph_of([record("a"), record("b", "a:1")], objects.get)
    given = "value:" + "0" * 64
    assert set(graph.runs) == {"a:1", "b:1"}
    assert set(graph.values) == {given, "a:1/result", "b:1/result"}
    assert [tuple(link[:4]) for link in graph.links] == [
        (How.MADE, "a:1", "a:1/result", "result"), (How.USED, "a:1", given, "x"),
        (How.MADE, "b:1", "b:1/result", "result"), (How.USED, "b:1", given, "x"),
        (How.USED, "b:1", "a:1/result", "y[0]"),
    ]  # fmt: skip
    origin = graph.origin("a:1/result")
    assert origin is not None
    assert origin.task == "a"
    assert graph.origin(given) is None
