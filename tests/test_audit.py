"""Nothing of a stored record can be changed, taken out or put in unnoticed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from bson.raw_bson import RawBSONDocument

from pilot import audit, records, signing, values
from pilot.audit import Chains, Problem
from pilot.context import here
from pilot.file import File
from pilot.model import Blob, Failure, Input, Link, Log, Result, Usage
from pilot.states import Outcome
from pilot.store import care, provenance
from pilot.store.mongo import Store
from pilot.store.objects import Objects
from pilot.verify import Audit, lineage_of

pytestmark = pytest.mark.any_documents

SIGNER = signing.Signer(bytes(32), "project")
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
Document = dict[str, Any]


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return Objects(tmp_path / "objects")


def blob(value: object, put: records.Put) -> Blob:
    return records.blob_of(values.encode(value), put)


def made(task: str, token: str, put: records.Put, parents: list[Document] = [], attempt: int = 1) -> Document:  # noqa: B006
    """Return the record of an attempt, with something in every field, that is not sealed yet."""
    doc = {
        "_id": task, "attempt": attempt, "kind": "function", "name": "f", "class": "c1", "signature": b"s" * 32,
        "submitted": NOON, "leased": NOON, "tags": ["a"], "lease": token,
    }  # fmt: skip
    inputs = [Input("x", blob({"a": [1, 2.5, "ä"], "t": (1, 2)}, put), ()), Input("big", blob(bytes(50_000), put), ())]
    sources = {}
    for number, parent in enumerate(parents):
        inputs.append(Input(f"y{number}", blob(None, put), (Link(f"y{number}", parent["task"], None),)))
        (output,) = parent["outputs"]
        sources[parent["task"], None] = [records.Source(parent["_id"], "result", output["hash"], output["size"])]
    result = Result(
        task, attempt, Outcome.SUCCEEDED, (("result", blob([task, attempt], put)),), Failure("E", "m", "t", 1, "h"), 0,
        1e9, 1e9, Usage(0.1, 0.2, 1000), 1, "host", log=Log("file", 0, 3, "out"),
    )  # fmt: skip
    place = records.Place(token, {"pilot": "p", "site": "local"})
    return records.record(doc, inputs, sources, result, place, put)


def seal(doc: Document, chain: records.Chain | None = None) -> RawBSONDocument:
    return provenance.encode(doc, partial(records.seal, signer=SIGNER, chain=chain), records.minimal)[0]


def found(store: Store, objects: Objects, deep: bool = False) -> dict[str, str]:
    """Return what an audit finds: id → sentences."""
    texts: dict[str, str] = {}
    for problem in Audit(store, objects, SIGNER, deep).problems():
        texts[problem.of] = f"{texts[problem.of]}; {problem.text}" if problem.of in texts else problem.text
    return texts


@pytest.fixture
def chained(store: Store, objects: Objects) -> list[RawBSONDocument]:
    """Store two chains of records with links between them, and one record outside of any."""
    chains = {token: records.Chain(token) for token in ("pool-a", "pool-b")}
    raws: list[RawBSONDocument] = []
    docs: list[Document] = []
    for number in range(12):
        token = ("pool-a", "pool-b")[number % 2]
        docs.append(made(f"t{number}", token, objects.put, docs[-2:] if number > 3 else []))
        raws.append(seal(docs[-1], chains[token]))
    task = {"_id": "gone", "attempt": 1, "lease": "pool-a", "signature": b"s" * 32}
    raws.append(seal(records.lost_record(task, "pool-a", "its pool died", NOON)))
    assert provenance.insert(store, raws) == {}
    for token, chain in chains.items():
        store.pools.insert_one({"_id": token, "chain": records.tip(chain, SIGNER)})
    return raws


def put_back(store: Store, raw: RawBSONDocument) -> None:
    store.provenance.delete_one({"_id": raw["_id"]})
    store.provenance.insert_one(raw)


# -- tampering --------------------------------------------------------------------------------------


def test_the_server_keeps_the_bytes(store: Store, objects: Objects, chained: list[RawBSONDocument]) -> None:
    assert list(provenance.stream(store)) == [raw.raw for raw in chained]
    assert found(store, objects) == {}
    assert lineage_of(store, objects, SIGNER, ["t11:1"]).problems == []
    looked = Audit(store, objects, SIGNER, True)
    assert list(looked.problems()) == []
    assert (looked.report.records, looked.report.values) == (13, 1)


def paths(document: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every field and item of a document, however deep, in the server's notation."""
    items = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in items:
        yield f"{before}{key}", value
        if isinstance(value, dict | list):
            yield from paths(value, f"{before}{key}.")


def other(value: Any) -> Any:
    """Return something else, if possible of the same kind."""
    return value + 1 if isinstance(value, int | float) and not isinstance(value, bool) else "something else"


def test_every_field_counts(store: Store, objects: Objects, chained: list[RawBSONDocument]) -> None:
    """Set each field of a stored record to something else, and remove each: the record is named."""
    victim = chained[6]
    doc, _ = provenance.opened(victim.raw)
    every = [path for path, _ in paths(doc) if path != "_id"]
    assert {"host", "usage.cpu_s", "time.started", "inputs.2.source.record", "exception.message", "chain.seq",
            "output_log.tail", "inputs.0.value.a.1", "site", "tags.0", "digest", "signature"} <= {*every}  # fmt: skip
    for path, value in paths(doc):
        for change in ({"$set": {path: other(value)}}, {"$unset": {path: 1}}):
            if path == "_id":
                continue
            store.provenance.update_one({"_id": victim["_id"]}, change)
            (raw,) = provenance.stream(store, ["t6:1"])
            changed, digest = provenance.opened(raw)
            assert audit.check_digest(changed, digest) or audit.check_signature(changed, SIGNER), (path, change)
            put_back(store, victim)
    for field in doc.keys() - {"_id"}:  # whatever is missing, others are still looked at
        for change in ({"$unset": {field: 1}}, {"$set": {field: 5}}):
            store.provenance.update_one({"_id": victim["_id"]}, change)
            assert "t6:1" in found(store, objects)
            assert "t6:1" in {problem.of for problem in lineage_of(store, objects, SIGNER, ["t8:1"]).problems}
            put_back(store, victim)
    for change in ({"$set": {"new": 1}}, {"$set": {"inputs.0.new": 1}}, {"$rename": {"host": "hosts"}}):
        store.provenance.update_one({"_id": victim["_id"]}, change)
        assert list(found(store, objects)) == ["t6:1"], change
        put_back(store, victim)
    store.provenance.update_one({"_id": victim["_id"]}, {"$set": {"host": "elsewhere"}})
    assert found(store, objects)["t6:1"].startswith("somebody changed a field")
    report = lineage_of(store, objects, SIGNER, ["t11:1"])
    assert [problem.of for problem in report.problems] == ["t6:1"]


def test_records_that_are_missing(store: Store, objects: Objects, chained: list[RawBSONDocument]) -> None:
    store.provenance.delete_many({"_id": {"$in": ["t4:1", "t6:1"]}})
    assert found(store, objects) == {
        "t8:1": "before it, the 2 records number 3 to 4 are missing, of token 'pool-a'",
    }
    texts = [problem.text for problem in lineage_of(store, objects, SIGNER, ["t8:1"]).problems]
    assert any("'t6:1', which does not exist" in text for text in texts)
    put_back(store, chained[4])
    put_back(store, chained[6])
    store.provenance.delete_one({"_id": "t11:1"})  # the end of a chain: its pool said how far it had come
    assert found(store, objects) == {"t9:1": "after it, record number 6 is missing, of token 'pool-b'"}
    put_back(store, chained[11])
    store.provenance.delete_many({"token": "pool-b"})
    assert (
        found(store, objects)["token pool-b"] == "after it, the 6 records number 1 to 6 are missing, of token 'pool-b'"
    )


def test_records_that_were_swapped(store: Store, objects: Objects, chained: list[RawBSONDocument]) -> None:
    first, second = dict(chained[2]), dict(chained[8])
    for a, b in ((first, second), (second, first)):
        store.provenance.replace_one({"_id": a["_id"]}, {**b, "_id": a["_id"]})
    assert {"t2:1", "t8:1"} <= found(store, objects).keys()
    for raw in (chained[2], chained[8]):
        put_back(store, raw)
    for a, b in ((first, second), (second, first)):  # only their places
        store.provenance.update_one({"_id": a["_id"]}, {"$set": {"chain": b["chain"]}})
    assert {"t2:1", "t8:1"} <= found(store, objects).keys()


def test_a_record_that_is_played_again(store: Store, objects: Objects, chained: list[RawBSONDocument]) -> None:
    store.provenance.insert_one({**dict(chained[2]), "_id": "t2:2", "attempt": 2})
    assert "t2:2" in found(store, objects)
    store.provenance.delete_one({"_id": "t2:2"})
    twin = seal(made("twin", "pool-a", objects.put), records.Chain("pool-a", 3, chained[6]["chain"]["prev"]))
    store.provenance.insert_one(twin)  # even one that was signed
    assert found(store, objects) == {"twin:1": "another record, too, is number 4 of token 'pool-a'"}


def test_what_is_no_record_at_all(store: Store, objects: Objects, chained: list[RawBSONDocument]) -> None:
    store.provenance.insert_many(
        [{"_id": "bare:1"}, {"_id": "far:1", "chain": {"seq": 1 << 60, "prev": "", "token": "x"}}]
    )
    assert found(store, objects).keys() == {"bare:1", "far:1"}


# -- what may happen --------------------------------------------------------------------------------


def test_a_record_that_came_too_late(store: Store, objects: Objects) -> None:
    """A pool that was taken for dead lives: one of its records finds `lost` there, and its chain goes on through it."""
    chain = records.Chain("pool")
    raws = [seal(made(f"t{number}", "pool", objects.put), chain) for number in range(3)]
    task = {"_id": "t1", "attempt": 1, "lease": "pool", "signature": b"s" * 32}
    lost = seal(records.lost_record(task, "pool", "its heartbeat stood still", NOON))
    provenance.insert(store, [lost])
    assert provenance.insert(store, raws) == {"t1:1": Outcome.LOST}
    assert provenance.insert(store, raws).keys() == {"t0:1", "t1:1", "t2:1"}  # an answer was lost
    assert provenance.insert(store, [lost]) == {"t1:1": Outcome.LOST}
    assert [doc["_id"] for doc in store.superseded.find()] == ["t1:1"]
    assert found(store, objects) == {}
    store.superseded.delete_many({})
    assert found(store, objects) == {"t2:1": "before it, record number 2 is missing, of token 'pool'"}


def test_a_record_that_cannot_be_stored_has_its_place(store: Store, objects: Objects) -> None:
    chain = records.Chain("pool")
    docs = [made(f"t{number}", "pool", objects.put) for number in range(3)]
    docs[1]["rank"] = 1 << 70
    provenance.insert(store, [seal(doc, chain) for doc in docs])
    assert store.provenance.find_one({"_id": "t1:1"}, ["reason"]) == {"_id": "t1:1", "reason": "record"}
    assert found(store, objects) == {}


def test_chains_in_any_order() -> None:
    docs = []
    for token in ("a", "b"):
        chain = records.Chain(token)
        for number in range(50):
            doc = {"_id": f"{token}{number}", "chain": chain.link(), "signature": bytes([number])}
            chain.close(bytes([number]))
            docs.append(doc)
    rng = random.Random(5)
    for _ in range(20):
        rng.shuffle(docs)
        chains = Chains()
        assert [problem for doc in docs for problem in chains.add(doc)] == []
        assert list(chains.close({})) == []
        chains = Chains()
        removed = next(number for number, doc in enumerate(docs) if doc["chain"]["seq"] not in (1, 50))
        assert [problem for doc in docs[:removed] + docs[removed + 1 :] for problem in chains.add(doc)] == []
        assert len(list(chains.close({}))) == 1
        index = rng.randrange(len(docs))
        chains = Chains()
        bent = [{**doc, "chain": {**doc["chain"], "prev": "x"}} if n == index else doc for n, doc in enumerate(docs)]
        wrong = [problem for doc in bent for problem in chains.add(doc)]
        assert docs[index]["_id"] in {problem.of for problem in wrong}


# -- objects, functions, environments ---------------------------------------------------------------


def test_objects(store: Store, objects: Objects, chained: list[RawBSONDocument]) -> None:
    path = Path(objects.path(chained[0]["inputs"][1]["hash"]))
    kept = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(kept[:-1] + b"x")
    assert found(store, objects) == {}  # it is there
    assert "does not have the hash that names it" in found(store, objects, deep=True)["t0:1"]
    assert "does not have the hash" in lineage_of(store, objects, SIGNER, ["t0:1"]).problems[0].text
    path.unlink()
    assert len(found(store, objects)) == 12
    assert "has no file" in found(store, objects)["t0:1"]


def test_links_of_a_lineage(store: Store, objects: Objects) -> None:
    parent = made("p", "pool", objects.put)
    wrong = made("q", "pool", objects.put)
    wrong["outcome"] = "failed"
    child = made("c", "pool", objects.put, [parent, wrong])
    child["inputs"][-1]["source"]["output"] = "other"
    child["inputs"][-2]["hash"] = "0" * 64
    provenance.insert(store, [seal(doc) for doc in (parent, wrong, child)])
    store.tasks.insert_one({"_id": "p", "official": 2})
    report = lineage_of(store, objects, SIGNER, ["c:1"])
    assert report.records == 3
    assert sorted(report.problems) == [
        Problem("c:1", "input 'y0' came from record 'p:1', which is not the official one of its task"),
        Problem("c:1", "input 'y0' is not what record 'p:1' has as output 'result': the hashes differ"),
        Problem("c:1", "input 'y1' came from record 'q:1', which has no output 'other'"),
        Problem("c:1", "input 'y1' came from record 'q:1', which says 'failed'"),
    ]
    assert lineage_of(store, objects, SIGNER, ["p:1"]).good
    assert lineage_of(store, objects, SIGNER, ["none:1"]).problems == [Problem("none:1", "there is no such record")]


def test_a_cached_record_has_the_outputs_of_its_original(store: Store, objects: Objects) -> None:
    original, failed = made("p", "pool", objects.put), made("q", "pool", objects.put)
    failed["outcome"] = "failed"
    copies = [made(name, "pool", objects.put) for name in "abcd"]
    for copy, source in zip(copies, ("p:1", "p:1", "q:1", "none:1"), strict=True):
        copy |= {"outcome": "cached", "outputs": original["outputs"], "cached_from": source, "cache": {"saved_s": 1.0}}
    copies[1]["outputs"] = failed["outputs"]
    provenance.insert(store, [seal(doc) for doc in (original, failed, *copies)])
    problems = lineage_of(store, objects, SIGNER, ["a:1", "b:1", "c:1", "d:1"]).problems
    assert sorted(problems) == [
        Problem("b:1", "its outputs were taken from record 'p:1', which has others"),
        Problem("c:1", "its outputs were taken from record 'q:1', which says 'failed'"),
        Problem("d:1", "its outputs were taken from record 'none:1', which does not exist"),
        Problem("none:1", "there is no such record"),
    ]


def test_files_are_compared_and_what_was_dropped_is_no_fault(store: Store, objects: Objects, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a").write_bytes(bytes(100))
    (tmp_path / "in_place").write_bytes(b"here")
    task = made("f", "pool", objects.put)
    here.repository = objects
    try:
        value = [File(tmp_path / "tree"), File(tmp_path / "in_place", keep="in place"), bytes(90_000)]
        encoded = values.encode(value)
    finally:
        here.repository = None
    objects.put(encoded)
    task["outputs"] = [{"name": "result", "hash": encoded.hash, "size": encoded.size, "object": True, "files": True}]
    provenance.insert(store, [seal(task)])
    report = lineage_of(store, objects, SIGNER, ["f:1"])
    assert (report.problems, report.dropped) == ([], 0)
    file = values.digest(bytes(100))
    care.drop(objects, {file}, "somebody")
    report = lineage_of(store, objects, SIGNER, ["f:1"])
    assert (report.problems, report.dropped) == ([], 1)
    assert found(store, objects, deep=True) == {}
    (tmp_path / "in_place").write_bytes(b"other")
    assert "was left in place and is not as it was" in lineage_of(store, objects, SIGNER, ["f:1"]).problems[0].text
    assert "was left in place" in found(store, objects, deep=True)["f:1"]
    Path(objects.path(task["inputs"][1]["hash"])).unlink()
    assert "has no file" in found(store, objects)["f:1"]


def test_a_list_that_is_gone(store: Store, objects: Objects) -> None:
    parent = made("p", "pool", objects.put)
    child = made("c", "pool", objects.put, [parent])
    parent["outputs"] = records.pack(parent["outputs"], objects.put, 1 << 30)
    provenance.insert(store, [seal(doc) for doc in (parent, child)])
    assert lineage_of(store, objects, SIGNER, ["c:1"]).good
    Path(objects.path(parent["outputs"]["object"])).unlink()
    texts = [f"{problem.of}: {problem.text}" for problem in lineage_of(store, objects, SIGNER, ["c:1"]).problems]
    assert [text.partition(" the object")[0] for text in texts] == [
        "p:1: its list of outputs cannot be read:",
        "c:1: input 'y0' came from record 'p:1', whose list of outputs cannot be read:",
    ]
    assert "its lists of values cannot be read" in found(store, objects)["p:1"]


def test_an_environment_is_what_its_name_says(store: Store, objects: Objects) -> None:
    content = {"python": {"version": "3.11"}, "packages": {"a": "1"}, "container": None, "n": 1.5}
    doc = {"_id": values.encode(content).hash, **content}
    provenance.put_environment(store, doc)
    assert found(store, objects) == {}
    store.environments.update_one({}, {"$set": {"packages.a": "2"}})
    assert list(found(store, objects)) == [f"environment {doc['_id']}"]


def test_more_records_than_one_batch(store: Store, objects: Objects) -> None:
    chain = records.Chain("pool")
    provenance.insert(store, [seal(made(f"t{number}", "pool", objects.put), chain) for number in range(2000)])
    assert found(store, objects) == {}
    store.provenance.delete_one({"_id": "t1234:1"})
    assert found(store, objects) == {"t1235:1": "before it, record number 1235 is missing, of token 'pool'"}
