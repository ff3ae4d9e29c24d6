"""Queries over records that are written here by hand: what they find, and which index leads them there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pilot import records, values
from pilot.errors import InvalidInput, TaskNotFound
from pilot.expression import parse_field
from pilot.search import Search
from pilot.store import answers, lineage, query, remarks, schema
from pilot.store.mongo import Store
from pilot.store.objects import Objects
from tests.test_lineage import record as linked

pytestmark = pytest.mark.any_documents

NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return Objects(tmp_path / "objects")


@pytest.fixture(autouse=True)
def without_indexes(store: Store) -> Iterator[None]:
    """Leave the database to the next test as this one got it."""
    yield
    store.provenance.drop_indexes()


def entry(name: str, value: Any) -> dict[str, Any]:
    """Return an input or output as a record has it."""
    encoded = values.encode(value)
    return records._value_fields(records.Blob(encoded.hash, encoded.size, encoded.data)) | {"name": name}


def record(
    number: int, result: Any = None, hours: float = 0.0, inputs: dict[str, Any] | None = None, **fields: Any
) -> Any:
    """Return a record that ended so many hours ago."""
    finished = NOW - timedelta(hours=hours)
    return {
        "_id": f"t-{number}:1", "task": f"t-{number}", "attempt": 1, "name": "f", "kind": "function",
        "outcome": "succeeded", "inputs": [entry(name, value) for name, value in (inputs or {}).items()],
        "outputs": [entry("result", result)],
        "time": {"submitted": finished, "started": finished, "finished": finished}, **fields,
    }  # fmt: skip


def found(store: Store, objects: Objects, wanted: Any, **how: Any) -> set[str]:
    return set(Search(store, objects.get, wanted, **how).ids())


# -- values in all their forms -----------------------------------------------------------------------


def test_values_are_found_in_the_forms_in_which_they_are_kept(store: Store, objects: Objects) -> None:
    import numpy

    results = [
        {"energy": -4.0}, {"energy": numpy.float64(-4.0)}, (-4.0, [1]), [-4.0, 2], -4.0, Path("/a/b"), "/a/b",
        {"energy": None}, {"energy": [1, -4]}, numpy.int64(-4), {"x": ({"y": -4},)}, True, numpy.zeros(3),
        {"energy": 4}, (numpy.float64(-4.0),),
    ]  # fmt: skip
    store.provenance.insert_many([record(number, result) for number, result in enumerate(results)])

    def numbers(expression: str) -> set[int]:
        return {int(name[2:-2]) for name in found(store, objects, expression)}

    for number in range(2):
        assert numbers("outputs.result.energy < -3") == {0, 1, 8}
        assert numbers("outputs.result.energy == -4") == {0, 1, 8}
        assert numbers("outputs.result.energy in [4, null]") == {7, 13}
        assert numbers("outputs.result.energy != -4") == {7, 13}
        assert numbers("outputs.result.energy exists") == {0, 1, 7, 8, 13}
        assert numbers("outputs.result < 0") == {2, 3, 4, 9}
        assert numbers("outputs.result[0] <= -4") == {2, 3, 14}
        assert numbers("outputs.result[1][0] == 1") == {2}
        assert numbers("outputs.result == [-4.0, 2]") == {3}
        assert numbers("outputs.result == [-4.0, [1]]") == {2}
        assert numbers("outputs.result.x[0].y == -4") == {10}
        assert numbers('outputs.result == "/a/b"') == {5, 6}
        assert numbers('outputs.result ~ "/a/*"') == {5, 6}
        assert numbers("outputs.result == true") == {11}
        assert numbers("not outputs.result exists") == set()
        assert numbers("outputs.other exists") == set()
        if not number:
            query.add_index(store, parse_field("outputs.result"))  # and the same again
    with pytest.raises(InvalidInput, match="four deep"):
        numbers("outputs.result[0][0][0][0][0] == 1")


def test_index_over_values_takes_any_value(store: Store, objects: Objects) -> None:
    """An index that refused a record would keep the attempt from ending."""
    query.add_index(store, parse_field("outputs.result"))
    query.add_index(store, parse_field("outputs.result.a"))
    odd = [
        {"": 1}, {"a.b": 1}, {"a": {"": {"": 2}}}, [[[1]]], {"0": [{"0": 1}]}, {"a": [{"0": 1}, [1]]},
        list(range(8000)), "x" * 16_000, {"a": {"~": ["tuple", 1]}}, None, {"a": "\0"}, {"a": [[{"b": 1}], {"b": [2]}]},
    ]  # fmt: skip
    deep: Any = 1
    for _ in range(49):
        deep = {"a": [deep]}
    store.provenance.insert_many([record(number, result) for number, result in enumerate([*odd, deep])])
    assert len(found(store, objects, "outputs.result exists")) == len(odd) + 1


def test_tags_are_those_of_now_and_groups_are_found(store: Store, objects: Objects) -> None:
    docs = [{**record(number, number), "tags": ["a"] if number < 3 else []} for number in range(6)]
    store.provenance.insert_many(docs)
    store.tasks.insert_many([{"_id": doc["task"], "attempt": 1, "tags": doc["tags"]} for doc in docs])

    def numbers(expression: str) -> set[int]:
        return {int(name[2:-2]) for name in found(store, objects, expression)}

    assert numbers("tags == a") == {0, 1, 2}
    assert numbers("group == paper") == set()
    remarks.tag(store, ["t-0", "t-4"], add=["b"], remove=["a"])
    remarks.tag(store, ["t-1", "t-5"], add=["a"])
    remarks.group(store, "paper", ["t-1", "t-4"])
    remarks.group(store, "paper 2", ["t-4", "t-5"])
    assert numbers("tags == a") == {1, 2, 5}
    assert numbers("tags == b or tags == c") == {0, 4}
    assert numbers("tags != a") == {0, 3, 4}
    assert numbers("tags ~ /^[ab]$/") == {0, 1, 2, 4, 5}
    assert numbers("group == paper") == {1, 4}
    assert numbers('group ~ "paper*" and not tags == b') == {1, 5}
    assert numbers("group != paper") == {0, 2, 3, 5}
    assert numbers("group exists") == {1, 4, 5}
    for expression in ("tags == a", "group == paper"):
        assert "COLLSCAN" not in explained(store, objects, expression)
    for wrong in ({"fields": ["group"]}, {"sort": "group"}):
        with pytest.raises(InvalidInput, match="group"):
            Search(store, objects.get, **wrong)


def test_sorted_by_a_value(store: Store, objects: Objects) -> None:
    import numpy

    results = [{"e": 3.0}, {"e": numpy.float64(-1.0)}, {"e": 2}, {"e": None}, "none", ({"e": 1},)]
    store.provenance.insert_many([record(number, result) for number, result in enumerate(results)])

    def order(sort: str, limit: int) -> list[Any]:
        rows = Search(store, objects.get, sort=sort, limit=limit, fields=["outputs.result.e"])
        return [row["outputs.result.e"] for row in rows]

    assert order("outputs.result.e", 3) == [-1.0, 2, 3.0]
    assert order("-outputs.result.e", 6) == [3.0, 2, -1.0, None, None, None]
    assert [doc["_id"] for doc in Search(store, objects.get, sort="-outputs.result.e", limit=1)] == ["t-0:1"]
    rows = Search(
        store, objects.get, "outputs.result[0] exists", sort="outputs.result[0].e", fields=["outputs.result[0].e"]
    )
    assert list(rows) == [{"outputs.result[0].e": 1}]


# -- fields of other documents ----------------------------------------------------------------------


def test_functions_and_environments(store: Store, objects: Objects) -> None:
    store.functions.insert_many(
        [{"_id": "h1", "module": "eos", "qualname": "energy", "source_hash": "s1", "git": {"commit": "c0ffee"}},
         {"_id": "h2", "module": "eos", "qualname": "fit", "source_hash": "s2"}]
    )  # fmt: skip
    packages = [
        {"numpy": "1.26.4", "typing_extensions": "4.1"},
        {"numpy": "2.1.0"},
        {"numpy": "2.1rc1", "odd": "unknown"},
    ]
    same = {"python": {"version": "3.11.7"}, "variables": {"OMP_NUM_THREADS": "4"}, "mpi": "MPICH", "container": None}
    store.environments.insert_many([{"_id": f"e{n}", "packages": one, **same} for n, one in enumerate(packages)])
    store.provenance.insert_many(
        [record(0, function="h1", environment="e0"), record(1, function="h2", environment="e1"),
         record(2, kind="command", environment="e2"), record(3, outcome="lost")]
    )  # fmt: skip
    for expression, expected in {
        "function == energy": {0}, 'function == "eos.fit"': {1}, "function != energy": {1},
        "function in [energy, fit]": {0, 1}, "function ~ *e*": {0, 1}, "function.module == eos": {0, 1},
        "function.hash == h2": {1}, "function exists": {0, 1},
        "function.git.commit ~ c0f*": {0}, "not function == energy": {1, 2, 3}, "function.source_hash == s2": {1},
        "env.packages.numpy >= 2": {1, 2}, "env.packages.numpy >= 2.1": {1}, "env.packages.numpy == 1.26.4": {0},
        "env.packages.typing-extensions exists": {0}, "env.packages.odd > 1": set(), "env.packages.odd ~ un*": {2},
        "env.packages.numpy != 2.1.0": {0, 2}, "env.python.version < 3.12": {0, 1, 2},
        "env.variables.OMP_NUM_THREADS == 4": {0, 1, 2},
        "env.container exists": set(), "environment == e1": {1}, "env.mpi ~ /mpich/i": {0, 1, 2},
    }.items():  # fmt: skip
        assert found(store, objects, expression) == {f"t-{n}:1" for n in expected}, expression
    fields = ["function", "env.packages.numpy", "env.packages.odd", "host"]
    rows = list(Search(store, objects.get, "task == t-0 or task == t-2", sort="task", fields=fields))
    assert rows == [
        {"function": "energy", "env.packages.numpy": "1.26.4", "env.packages.odd": None, "host": None},
        {"function": None, "env.packages.numpy": "2.1rc1", "env.packages.odd": "unknown", "host": None},
    ]


# -- lineage ----------------------------------------------------------------------------------------


def test_lineage(store: Store, objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    store.provenance.insert_many(
        [linked("a-0", attempt=1, outcome="lost"), linked("a-0", attempt=2), linked("b-1", "a-0:2"),
         linked("b-2", "a-0:2"), linked("d-0", "b-1:1", "b-2:1"), linked("e-0", "d-0:1")]
    )  # fmt: skip
    assert found(store, objects, "descends from a-0") == {"b-1:1", "b-2:1", "d-0:1", "e-0:1"}
    assert found(store, objects, "descends from a-0:1") == set()
    assert found(store, objects, "descends from a within 1") == {"b-1:1", "b-2:1"}
    assert found(store, objects, "ancestor of e and not task == b-1") == {"a-0:2", "b-2:1", "d-0:1"}
    assert found(store, objects, "task in [b-1, b-2] and descends from a-0") == {"b-1:1", "b-2:1"}
    for text, reason in {
        "descends from b": r"fits several tasks \(b-1, b-2, …\)", "ancestor of x": "no record of a task 'x'",
        "ancestor of a-0:7": "no record 'a-0:7'",
    }.items():  # fmt: skip
        with pytest.raises(TaskNotFound, match=reason):
            found(store, objects, text)
    monkeypatch.setattr(lineage, "LIMIT", 3)
    with pytest.raises(InvalidInput, match=r"more than 3 records are below 'a-0', too many: .* from a-0 within 3"):
        found(store, objects, "descends from a-0")


def test_values_by_their_hash(store: Store, objects: Objects) -> None:
    one, two = record(1, "made", inputs={"x": "used"}), record(2, 5, inputs={"x": "other", "y": "used"})
    join = record(3, 6)
    join["inputs"] = records.pack([entry("x[0]", "used"), entry("x[1]", 17)], objects.put, 1 << 30)
    store.provenance.insert_many([one, two, join])
    used, made, alone = (values.encode(value).hash for value in ("used", "made", 17))
    assert found(store, objects, f"uses value {used}") == {"t-1:1", "t-2:1", "t-3:1"}
    assert found(store, objects, f"uses value {used[:10]}") == {"t-1:1", "t-2:1", "t-3:1"}
    assert found(store, objects, f"uses value {alone[:10]}") == {"t-3:1"}
    assert found(store, objects, f"makes value {made[:10]}") == {"t-1:1"}
    assert found(store, objects, f"uses value {made}") == set()
    similar = [record(number, inputs={"x": 1}) for number in (4, 5)]
    for number, doc in enumerate(similar):
        doc["inputs"][0]["hash"] = f"abcdef{number}".ljust(64, "0")
    store.provenance.insert_many(similar)
    with pytest.raises(InvalidInput, match=r"'abcdef' fits several values \(abcdef0.*, abcdef1.*, …\)"):
        found(store, objects, "uses value abcdef")
    assert found(store, objects, "uses value abcdef1") == {"t-5:1"}


# -- answers ----------------------------------------------------------------------------------------


def test_an_answer(store: Store, objects: Objects) -> None:
    store.provenance.insert_many([record(n, n, hours=n, tags=["even"] if n % 2 == 0 else []) for n in range(300)])
    every = Search(store, objects.get)
    assert [doc["outputs"][0]["value"] for doc in every] == list(range(300))  # newest first
    assert every.count() == 300
    some = Search(store, objects.get, "tags == even and finished > 100h", sort="finished", limit=3)
    assert [doc["_id"] for doc in some] == ["t-98:1", "t-96:1", "t-94:1"]
    assert some.count() == 50
    first = some.first()
    assert first is not None
    assert first["_id"] == "t-98:1"
    assert Search(store, objects.get, "host == nowhere").first() is None
    assert found(store, objects, "not tags == even and finished < 297h") == {"t-299:1", "t-297:1"}
    rows = Search(store, objects.get, 'id == "t-7:1"', fields=["finished", "outputs.result", "tags"])
    assert list(rows) == [{"finished": NOW - timedelta(hours=7), "outputs.result": 7, "tags": []}]


def test_filter_of_mongodbs_own(store: Store, objects: Objects) -> None:
    store.provenance.insert_many([record(n, hours=n) for n in range(5)])
    assert found(store, objects, {"task": {"$in": ["t-1", "t-2"]}}) == {"t-1:1", "t-2:1"}
    since = (NOW - timedelta(hours=1.5)).isoformat()
    assert found(store, objects, answers.raw(f'{{"time.finished": {{"$gt": {{"$date": "{since}"}}}}}}')) == {
        "t-0:1",
        "t-1:1",
    }
    for text in ("{", "[1]", '{"a": {"$date": "yesterday"}}', "null"):
        with pytest.raises(InvalidInput, match="filter"):
            answers.raw(text)
    with pytest.raises(InvalidInput, match=r"does not understand the filter: unknown operator: \$nonsense"):
        found(store, objects, {"task": {"$nonsense": 1}})
    with pytest.raises(InvalidInput, match="the store does not understand the filter: Regular expression is invalid"):
        found(store, objects, {"name": {"$regex": "("}})


def test_slow_answer_is_waited_for(store: Store, mongod_uri: str, objects: Objects) -> None:
    """Without an index it may take longer than the store's other calls wait."""
    store.provenance.insert_many([record(n) for n in range(2)])
    slow = {"$where": "function() { return sleep(700) || true }"}
    with Store(mongod_uri, store.database.name, timeout_s=0.5) as hasty:
        assert found(hasty, objects, slow) == {"t-0:1", "t-1:1"}


def test_bad_questions(store: Store, objects: Objects) -> None:
    for how, reason in (
        ({"sort": "-function"}, "cannot sort by function"), ({"sort": "hots"}, "near: host"),
        ({"fields": ["hots"]}, "near: host"), ({"limit": 0}, "limit 0"), ({"wanted": "hots == 1"}, "near: host"),
    ):  # fmt: skip
        with pytest.raises(InvalidInput, match=reason):
            Search(store, objects.get, **how)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match=r"exit_code has no index; environment, .* can have one"):
        query.add_index(store, parse_field("exit_code"))
    with pytest.raises(InvalidInput, match="over the list itself"):
        query.add_index(store, parse_field("outputs.result[0]"))


def test_table(store: Store, objects: Objects) -> None:
    pytest.importorskip("pandas")
    import numpy

    results = [{"e": numpy.float64(-1.5), "s": {"x": (1, 2)}}, 7]
    store.provenance.insert_many(
        [record(n, result, n, inputs={"p": Path("/x"), "z": 1j}) for n, result in enumerate(results)]
    )
    table = Search(store, objects.get).dataframe()
    assert table["outputs.result.e"][0] == -1.5
    assert table["outputs.result.s.x"][0] == [1, 2]
    assert table["outputs.result"][1] == 7
    assert list(table["inputs.p"]) == ["/x", "/x"]
    assert list(table["inputs.z"]) == [1j, 1j]
    assert table["finished"][0] == NOW
    small = Search(store, objects.get, fields=["task", "outputs.result.e"]).dataframe()
    assert list(small.columns) == ["task", "outputs.result.e"]
    assert list(small["task"]) == ["t-0", "t-1"]


# -- indexes ----------------------------------------------------------------------------------------

PAGE = Path(__file__).parent.parent / "docs" / "concepts" / "query.md"
DOCUMENTED = re.findall(r"^\| `(.+?)` \| (.+) \|$", PAGE.read_text().partition("## Indexes")[2], re.MULTILINE)
"""Queries of the page with what it says that they go by."""

BY_VALUE = (
    "outputs.result.energy < -4.99",
    "outputs.result.energy in [1, 2]",
    'inputs.symbol == "Cu"',
    "inputs.symbol ~ C*",
)


def stages(plan: Any) -> set[str]:
    """Return the names of the stages of a plan, with those below."""
    below = [plan[key] for key in ("inputStage", "queryPlan") if key in plan] + plan.get("inputStages", [])
    return {plan["stage"]}.union(*map(stages, below)) if "stage" in plan else set().union(*map(stages, below))


def explained(store: Store, objects: Objects, expression: str) -> set[str]:
    search = Search(store, objects.get, expression, limit=50)
    assert not search.reads_all
    search.prepare()
    assert search.missing() == []
    plan = answers.cursor(store, search._query.filter, answers.NEWEST, 50).explain()
    return stages(plan["queryPlanner"]["winningPlan"])


def test_documented_queries_go_by_an_index(store: Store, objects: Objects) -> None:
    names = ["energy", "fit", "eos-1", "other"]
    store.functions.insert_many([{"_id": f"h{n}", "module": "eos", "qualname": name} for n, name in enumerate(names)])
    store.environments.insert_many([{"_id": f"e{n}", "packages": {"numpy": f"{n}.1"}} for n in range(3)])
    chain = [f"01nrs4becb2na7-{n}" for n in range(10)]
    store.provenance.insert_many(linked(task, *(f"{one}:1" for one in chain[:n][-1:])) for n, task in enumerate(chain))
    store.provenance.insert_many(
        record(n, {"energy": n / 100 - 5}, n / 10, {"symbol": "Cu" if n % 2 else "Al"}, name=names[n % 4],
               tags=["eos", f"t{n % 10}"], host=f"n{n % 20}", pilot=f"p{n % 5}", job=f"{n % 7}", function=f"h{n % 4}",
               environment=f"e{n % 3}", outcome="failed" if n % 9 == 0 else "succeeded",
               exception={"type": "ValueError"})
        for n in range(1000)
    )  # fmt: skip
    assert len(DOCUMENTED) > 15
    for expression, index in DOCUMENTED:
        assert "COLLSCAN" not in explained(store, objects, expression), expression
        known = set(re.findall("`(.+?)`", index)) - {"lineage"}  # the walk goes by that, the query by ids
        assert Search(store, objects.get, expression)._query.indexes == known, expression
    for expression in BY_VALUE:
        assert Search(store, objects.get, expression).reads_all
    query.add_index(store, parse_field("outputs.result.energy"))
    query.add_index(store, parse_field("inputs.symbol"))
    for expression in BY_VALUE:
        assert "COLLSCAN" not in explained(store, objects, expression), expression
    for expression in ("exit_code == 1", "not host == n3", "host != n3", "name ~ *x", "host == n3 or exit_code == 1"):
        assert Search(store, objects.get, expression).reads_all


def test_one_index_is_made_for_several_terms(store: Store, objects: Objects) -> None:
    expression = 'outputs.result.energy < -3 and tags == "eos" and finished > 2d and outcome == failed'
    search = Search(store, objects.get, expression)
    assert search.missing() == ["tags"]
    list(search)
    assert schema.record_indexes(store) == ["tags"]
    assert Search(store, objects.get, sort="host").missing() == ["host"]
    assert Search(store, objects.get, sort="-usage.wall_s").missing() == []
    assert Search(store, objects.get).missing(sorted_=False) == []
    schema.drop(store, "tags")
    assert schema.record_indexes(store) == []
    assert set(schema.RECORD_INDEXES) >= {"finished", "used", "made", "lineage", "joins"}
