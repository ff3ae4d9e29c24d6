"""Queries find what the same expressions, evaluated in plain Python, are true of."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packaging.version import Version

from pilot import values
from pilot.expression import parse_field
from pilot.fields import Type
from pilot.store import query
from pilot.store.mongo import Store
from pilot.store.objects import Objects
from pilot.terms import ORDER, And, Compare, Not, Or, Pattern, Tree, compares, positive
from tests.test_query import NOW, record

pytestmark = pytest.mark.any_documents

HOSTS, WORDS = ("n1", "n2", "n10"), ("a", "b")
VALUES: tuple[Any, ...] = (
    1, 2.5, -3, "n1", "x", True, None, [1, 2], ["x", None], {"x": 1}, {"x": [2.5, "n1"]}, [{"x": 1}, {"x": "x"}],
    (1, "x"), (({"x": -3}),), Path("x"), [], {}, {"x": {"x": True}}, {"x": (1, 2.5)},
)  # fmt: skip


def small_set() -> list[dict[str, Any]]:
    """Return records that differ in every way the expressions below ask for."""
    docs = []
    for number, (value, host, exit_code) in enumerate(itertools.product(VALUES, (*HOSTS, None), (0, 1, None))):
        fields: dict[str, Any] = {"host": host} if host else {}
        fields |= {} if exit_code is None else {"exit_code": exit_code}
        fields |= {"tags": list(WORDS[: number % 3])} if number % 4 else {}
        fields |= {"environment": f"e{number % 3}"} if number % 5 else {}
        inputs = {"a": value} if number % 7 else {"b": value}
        docs.append(record(number, value, number % 50, inputs, **fields))
    return docs


ENVIRONMENTS = {"e0": "1.26.4", "e1": "2.0"}

VERSIONS = [Version("2"), Version("1.26.4")]
LEAVES = [1, 2.5, -3, "n1", "x", True, None, [1, 2], [], ["x", None]]
LISTS = st.lists(st.sampled_from(LEAVES), min_size=1, max_size=3)


def terms(names: Sequence[str], ops: Sequence[str], wanted: st.SearchStrategy[Any] | None = None) -> Any:
    """Return terms on one of these fields."""
    fields = st.sampled_from([parse_field(name) for name in names])
    return st.builds(Compare, fields, st.sampled_from(ops), st.none() if wanted is None else wanted)


INSIDE = ("inputs.a", "outputs.result", "outputs.result.x", "outputs.result[0]")
TERMS = st.one_of(
    terms(["host"], ["==", "!=", "<", ">="], st.sampled_from(HOSTS)),
    terms(["host"], ["in", "not in"], st.lists(st.sampled_from(HOSTS), min_size=1)),
    terms(["host", *INSIDE], ["~"], st.sampled_from([Pattern("^n1"), Pattern("X", any_case=True)])),
    terms(["tags"], ["==", "!="], st.sampled_from(WORDS)),
    terms(["exit_code"], ["==", "!=", "<", ">="], st.integers(-1, 2)),
    terms(["finished"], list(ORDER), st.integers(-1, 51).map(lambda hours: NOW - timedelta(hours=hours))),
    terms(INSIDE, ["==", "!="], st.sampled_from(LEAVES)),
    terms(INSIDE, ["in", "not in"], LISTS),
    terms(INSIDE, list(ORDER), st.sampled_from([1, 2.5, -3, "n1", "x"])),
    terms(["host", "tags", "exit_code", "env.packages.numpy", *INSIDE], ["exists"]),
    terms(["env.packages.numpy"], ["==", "!=", *ORDER], st.sampled_from(VERSIONS)),
)
TREES = st.recursive(
    TERMS,
    lambda parts: st.one_of(
        st.builds(Not, parts), st.builds(And, st.tuples(parts, parts)), st.builds(Or, st.tuples(parts, parts))
    ),
    max_leaves=5,
)


def true(tree: Tree, doc: dict[str, Any]) -> bool:
    """Say whether a tree is true of a record, in plain Python."""
    match tree:
        case And(parts):
            return all(true(part, doc) for part in parts)
        case Or(parts):
            return any(true(part, doc) for part in parts)
        case Not(part):
            return not true(part, doc)
    assert isinstance(tree, Compare)
    opposite = positive(tree)
    if opposite is not None:
        return (tree.field.name == "tags" or true(Compare(tree.field, "exists"), doc)) and not true(opposite, doc)
    if tree.field.type is Type.VERSION:
        return compares(tree, ENVIRONMENTS.get(doc.get("environment", "")))
    if tree.field.of_value:
        name, *steps = tree.field.path
        entries = [one for one in doc[tree.field.home] if one["name"] == name]
        if tree.op == "exists" and not steps:
            return bool(entries)
        found_ = [leaf for one in entries for leaf in leaves(values.from_native(one["value"]), steps)]
    else:
        place: Any = doc
        for step in tree.field.path:
            place = place.get(step) if place else None
        found_ = [] if place is None else [place]
    wanted = tree.value if tree.op == "in" else [tree.value]
    return bool(found_) if tree.op == "exists" else any(fits(tree.op, leaf, one) for leaf in found_ for one in wanted)


def leaves(value: Any, steps: Sequence[str]) -> Iterator[Any]:
    """Yield what stands at the end of some steps; items of lists that are not numbered are all meant."""
    if not steps:
        yield value
    elif isinstance(value, dict):
        if steps[0] in value:
            yield from leaves(value[steps[0]], steps[1:])
    elif isinstance(value, list | tuple):
        if steps[0].isdigit() and int(steps[0]) < len(value):
            yield from leaves(value[int(steps[0])], steps[1:])
        if isinstance(value, list):
            for item in value:
                if isinstance(item, dict):
                    yield from leaves(item, steps)


def kind(value: Any) -> type:
    return float if isinstance(value, int | float) and not isinstance(value, bool) else type(value)


def fits(op: str, leaf: Any, wanted: Any) -> bool:
    """Say whether a leaf, or one of its items, compares so with a value of the same kind."""
    if isinstance(leaf, list | tuple) and any(
        fits(op, item, wanted) for item in leaf if not isinstance(item, list | tuple)
    ):
        return True
    leaf = list(leaf) if isinstance(leaf, tuple) else str(leaf) if isinstance(leaf, Path) else leaf
    if op == "~":
        return isinstance(leaf, str) and re.search(wanted.regex, leaf, re.I if wanted.any_case else 0) is not None
    kinds = [
        bool if isinstance(one, bool) else float if isinstance(one, int | float) else type(one)
        for one in (leaf, wanted)
    ]
    if kinds[0] is not kinds[1]:
        return False
    return ORDER[op](leaf, wanted) if op in ORDER else leaf == wanted


@given(tree=TREES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
def test_same_as_plain_python(store: Store, tmp_path: Path, tree: Tree) -> None:
    docs = small_set()
    if store.provenance.estimated_document_count() == 0:
        store.provenance.insert_many(docs)
        store.environments.insert_many(
            [{"_id": name, "packages": {"numpy": one}} for name, one in ENVIRONMENTS.items()]
        )
    filter_ = query.compiled(store, Objects(tmp_path).get, tree).filter
    there = {doc["_id"] for doc in store.provenance.find(filter_, ["_id"])}
    assert there == {doc["_id"] for doc in docs if true(tree, doc)}
