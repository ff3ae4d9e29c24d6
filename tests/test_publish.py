"""Records as W3C PROV and as RO-Crates: what a real pilot left, and odd ones that are written here by hand."""

from __future__ import annotations

import json
import os
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from prov.model import (
    ProvActivity,
    ProvAssociation,
    ProvDerivation,
    ProvDocument,
    ProvEntity,
    ProvGeneration,
    ProvMembership,
    ProvUsage,
)
from rocrate.rocrate import ROCrate

import pilot
from pilot import records, values
from pilot.cli.app import run
from pilot.config import ProjectConfig
from pilot.errors import InvalidInput, ObjectCorrupt, PackageMissing, RecordNotFound, TaskNotFound
from pilot.integrations import prov, published
from pilot.integrations import rocrate as crates
from pilot.store.mongo import Store
from pilot.store.objects import Objects
from tests import pilot_tasks
from tests.publish_rig import Graph, attributes, judged, read_back, relations
from tests.rig import Rig

UP = os.pardir
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def judge() -> Iterator[Callable[[Path], None]]:
    """Take crates, and let the validator see them all when the tests are over: it takes a second to start."""
    folders: list[Path] = []
    yield folders.append
    broken = Path(shutil.copytree(folders[0], f"{folders[0]}-broken"))
    metadata = broken / "ro-crate-metadata.json"
    metadata.write_text(metadata.read_text().replace('"workExample"', '"name"'))
    found = judged(*folders, broken)
    assert [line for line in found if str(broken) not in line] == []
    assert any(line.startswith("REQUIRED") for line in found)


# -- a real run -------------------------------------------------------------------------------------


class Ran(NamedTuple):
    """Tasks that ran."""

    project: pilot.Project
    numbers: str
    total: str
    printed: str
    failed: str


@pytest.fixture(scope="module")
def ran(shared_rig: Rig) -> Iterator[Ran]:
    """Run functions that feed each other and a command, and one that fails at its second attempt too."""
    with shared_rig.open() as project:
        numbers = pilot.task(pilot_tasks.double).submit(np.arange(4000.0))
        total = pilot.task(name="größe ☃")(pilot_tasks.add).submit(numbers, 1.5)
        text = pilot.task(pilot_tasks.same).submit("secret of nobody\n")
        printed = pilot.command(
            ["cp", "in.txt", "out.txt"], inputs={"in.txt": text}, outputs={"copy": "out.txt"},
            env={"MY_TOKEN": "hidden", "MODE": "fast"},
        ).submit()  # fmt: skip
        failed = pilot.task(retries=1)(pilot_tasks.fail).submit(printed["copy"])
        pilot.wait([total, failed], timeout=60)
        assert total.result(timeout=60)[-1] == 7999.5
        yield Ran(project, numbers.id, total.id, printed.id, failed.id)


def test_prov_of_a_real_run(ran: Ran) -> None:
    document = read_back(prov.document(ran.project, [ran.total, ran.failed], author="Ada <https://example.org/ada>"))
    activities = {str(one.identifier): one for one in document.get_records(ProvActivity)}
    assert set(activities) >= {
        f"project:run/{ran.numbers}/1",
        f"project:run/{ran.total}/1",
        f"project:run/{ran.failed}/2",
    }
    assert f"project:run/{ran.failed}/1" not in activities  # only what the result came from
    total = activities[f"project:run/{ran.total}/1"]
    record = ran.project.record_of(ran.total)
    assert record is not None
    assert (total.get_startTime(), total.get_endTime()) == (record["time"]["started"], record["time"]["finished"])
    assert attributes(total)["prov:label"] == "größe ☃"
    assert attributes(activities[f"project:run/{ran.failed}/2"])["pilot:error"].startswith("ValueError: told to fail")
    used = relations(document, ProvUsage)
    assert (str(total.identifier), f"project:output/{ran.numbers}/1/result", "a") in used
    assert (f"project:run/{ran.failed}/2", f"project:output/{ran.printed}/1/copy", "x") in used
    made = relations(document, ProvGeneration)
    assert (f"project:output/{ran.total}/1/result", str(total.identifier), "result") in made
    plans = {one[0]: document.get_record(one[2])[0] for one in relations(document, ProvAssociation)}
    assert "return a + b" in attributes(plans[str(total.identifier)])["pilot:source"]
    copied = plans[f"project:run/{ran.printed}/1"]
    assert attributes(copied)["prov:label"] == "cp in.txt out.txt"
    assert json.loads(attributes(copied)["pilot:env"]) == [["MODE", "fast"]]
    given = next(one for one in document.get_records(ProvEntity) if attributes(one).get("prov:value") == 1.5)
    assert attributes(given)["prov:label"] == "b"
    assert "hidden" not in document.serialize(format="json")


def test_a_crate_of_a_real_run(ran: Ran, tmp_path: Path, judge: Callable[[Path], None]) -> None:
    folder = tmp_path / "crate"
    what = crates.write(ran.project, [ran.total, ran.failed], folder, author="Ada <https://example.org/ada>")
    assert len(what.graph.runs) == 5
    judge(folder)
    graph = Graph(folder)
    total = f"#run-{ran.total}%3A1"
    (result,) = graph.refs(total, "result")
    assert np.load(folder / result)[-1] == 7999.5
    (numbers,) = graph.refs(f"#run-{ran.numbers}%3A1", "result")
    assert numbers in graph.refs(total, "object")
    source = folder / graph.refs(total, "instrument")[0]
    assert "return a + b" in source.read_text()
    copied = graph[f"#run-{ran.printed}%3A1"]
    (copy,) = [id for id in graph.refs(copied["@id"], "result") if graph[id].get("name") == "copy"]
    assert graph[copy]["@type"] == "PropertyValue" or (folder / copy).read_bytes() == b"secret of nobody\n"
    assert copied["description"] == "cp in.txt out.txt"
    assert {graph[id]["name"] for id in graph.refs(copied["@id"], "environment")} >= {"MODE"}
    failed = graph[f"#run-{ran.failed}%3A2"]
    assert failed["actionStatus"].endswith("FailedActionStatus")
    assert "ValueError: told to fail" in failed["error"]
    assert failed["@type"] == "ActivateAction"
    order = {graph[id]["name"]: int(graph[id]["position"]) for id in graph.refs("workflow.json", "step")}
    assert order["double"] < order["größe ☃"]
    assert order["same"] < order["cp"] < order["fail"]
    pinned = (folder / graph.refs(f"#step-{ran.total}", "buildInstructions")[0]).read_text()
    assert f"numpy=={np.__version__}\n" in pinned
    everything = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert b"hidden" not in everything
    assert ran.project.config.key_file.read_bytes().strip() not in everything
    assert ROCrate(folder).mainEntity.id == "workflow.json"


def test_on_the_command_line(
    ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ran.project.config.root)

    def publish(*words: object, code: int = 0) -> tuple[str, str]:
        assert run(["publish", *map(str, words)]) == code
        return capsys.readouterr()

    out, _ = publish(ran.total, "--as", "prov")
    assert ProvDocument.deserialize(content=out, format="json").get_records(ProvActivity)
    _, err = publish(ran.total, "--as", "prov", "-o", tmp_path / "p.json")
    assert "statements to" in err
    assert ProvDocument.deserialize(str(tmp_path / "p.json")) == ProvDocument.deserialize(content=out, format="json")
    _, err = publish(f"{ran.failed}:1", f"{ran.failed}:2", "--as", "ro-crate", "-o", tmp_path / "c.zip", "--no-data")
    assert "wrote 4 runs" in err
    assert "no license" in err
    with zipfile.ZipFile(tmp_path / "c.zip") as file:
        assert file.testzip() is None
        names = file.namelist()
        assert "ro-crate-metadata.json" in names
        assert not any(name.endswith(".npy") for name in names)
    _, err = publish(ran.total, "--as", "ro-crate", "-o", tmp_path / "c.zip", code=1)
    assert "it exists" in err
    _, err = publish(ran.total, "--as", "prov", "-o", tmp_path / "p.json", code=1)
    assert "it exists" in err
    _, err = publish(ran.total, "--as", "ro-crate", code=2)
    assert "-o PATH" in err
    _, err = publish(ran.total, "--as", "ro-crate", "-o", tmp_path / "no" / "such" / "folder.zip", code=1)
    assert "No such file" in err
    _, err = publish(ran.total, "--as", "prov", "--no-data", code=2)
    assert "--as ro-crate" in err
    _, err = publish(ran.total, "--as", "prov", "--limit", 1, code=1)
    assert "more than 1 records" in err
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


# -- records by hand --------------------------------------------------------------------------------


class Hand(NamedTuple):
    """A project whose records are written by hand; as much of one as publishing needs."""

    store: Store
    config: ProjectConfig

    @property
    def objects(self) -> Objects:
        return Objects(self.config.objects_folder)

    def entry(self, name: str, value: Any, large: bool = False) -> dict[str, Any]:
        """Return an input or output as a record has it."""
        encoded = values.encode(value)
        entry = {"name": name, "hash": encoded.hash, "size": encoded.size}
        native = values.NOT_NATIVE if large else values.native(encoded.data)
        if large:
            self.objects.put(encoded)
            return {**entry, "object": True}
        return {**entry, "data": encoded.data} if native is values.NOT_NATIVE else {**entry, "value": native}

    def add(self, task: str, attempt: int = 1, outcome: str = "succeeded", **fields: Any) -> dict[str, Any]:
        """Store a record, and its task if it is the first attempt; return it."""
        record = {
            "_id": f"{task}:{attempt}", "task": task, "attempt": attempt, "name": task, "kind": "function",
            "outcome": outcome, "function": "f" * 64, "environment": "e" * 64, "pilot": "p1", "site": "local",
            "host": "n1", "inputs": [], "outputs": [], "usage": {"wall_s": 1.0, "cpu_s": 0.5, "max_rss_bytes": 5 << 30},
            "time": {"submitted": NOON, "started": NOON, "finished": NOON + timedelta(seconds=1)}, **fields,
        }  # fmt: skip
        self.store.provenance.insert_one(dict(record))
        state = {"state": "done", "official": attempt, "kind": "function", "name": task}
        self.store.tasks.update_one({"_id": task}, {"$set": state}, upsert=True)
        return record


def source(of: dict[str, Any], output: int = 0) -> dict[str, Any]:
    """Return the fields of an input that is an output of another record."""
    entry = of["outputs"][output]
    return {"hash": entry["hash"], "size": entry["size"], "source": {"record": of["_id"], "output": entry["name"]}}


@pytest.fixture
def hand(store: Store, tmp_path: Path) -> Hand:
    folder = tmp_path / "project"
    (folder / ".pilot").mkdir(parents=True)
    made = Hand(store, ProjectConfig(folder, "id of it", "by hand", embedded=True))
    store.functions.insert_one(
        {"_id": "f" * 64, "module": "m", "qualname": "f", "source": "def f(x):\n    return x\n", "python": "3.11"}
    )
    store.environments.insert_one({"_id": "e" * 64, "python": {"version": "3.11.7"}, "packages": {"numpy": "2.0"}})
    return made


Publish = Callable[..., tuple[Any, Graph]]


@pytest.fixture
def publish(hand: Hand, tmp_path: Path, judge: Callable[[Path], None]) -> Publish:
    """Publish in both ways; check that others can read it; return the document of PROV and the crate's entities."""

    def both(*ids: str, data: bool = True) -> tuple[Any, Graph]:
        folder = tmp_path / f"crate-{len(list(tmp_path.iterdir()))}"
        crates.write(hand, ids, folder, data=data, author="Ada")  # type: ignore[arg-type]
        judge(folder)
        ROCrate(folder)
        return read_back(prov.document(hand, ids)), Graph(folder)  # type: ignore[arg-type]

    return both


@pytest.mark.any_documents
def test_values_of_all_kinds(hand: Hand, publish: Publish, tmp_path: Path) -> None:
    odd = {
        "x": 1, "größe ü/..": float("nan"), "big": 1 << 62, "yes": True, "nothing": None, "tuple": (1, 2), "empty": "",
        "quoted": 'a "b"\n\\c\r\0', "bytes": b"xyz", "nested": {"k": [1, {"~": 2}]}, "set": {1, 2},
        "-inf": float("-inf"),
    }  # fmt: skip
    inputs = [hand.entry(name, value) for name, value in odd.items()]
    outputs = [
        hand.entry(f"{UP}/{UP}/out.txt", b"one"), hand.entry("out.txt", b"two"), hand.entry("a b<c>", np.eye(3)),
        hand.entry("none", b""), hand.entry("text", "t" * 20_000, large=True), hand.entry("result", 3),
    ]  # fmt: skip
    hand.add("a", inputs=inputs, outputs=outputs, name="ü\t☃\n", tags=["t ü", "x:y"])
    document, graph = publish("a")
    plain = {
        attributes(one)["prov:label"]: attributes(one).get("prov:value") for one in document.get_records(ProvEntity)
    }
    assert (plain["x"], plain["yes"], plain["quoted"], plain["big"]) == (1, True, odd["quoted"], 1 << 62)
    assert (plain["größe ü/.."], plain["-inf"], plain["nothing"]) == ("NaN", "-Infinity", "null")
    assert plain["nested"] == '{"k":[1,{"~":["dict",{"~":2}]}]}'
    assert plain["bytes"] is None
    told = {one["name"]: one for one in graph.values() if one["@type"] == "PropertyValue"}
    assert (told["x"]["value"], told["yes"]["value"], told["quoted"]["value"]) == (1, True, odd["quoted"])
    assert told["größe ü/.."]["value"] == "NaN"
    (folder,) = tmp_path.glob("crate-*")
    assert (folder / "data/a-1/out.txt").read_bytes() == b"one"
    assert (folder / "data/a-1/out-2.txt").read_bytes() == b"two"
    assert graph["data/a-1/out.txt"]["alternateName"] == f"{UP}/{UP}/out.txt"
    assert graph["data/a-1/out.txt"]["encodingFormat"] == "text/plain"
    assert (np.load(folder / "data/a-1/a_b_c.npy") == np.eye(3)).all()
    assert (folder / "data/a-1/none.bin").read_bytes() == b""
    assert json.loads((folder / "data/a-1/text.json").read_text()) == "t" * 20_000
    for id, entity in graph.items():
        if "sha256" in entity:
            assert values.digest((folder / id).read_bytes())
            assert entity.get("contentSize") in (None, str((folder / id).stat().st_size))


@pytest.mark.any_documents
def test_files(hand: Hand, publish: Publish, tmp_path: Path) -> None:
    bytes_of_it = values.Encoded.of((b"&CONTROL\n/\n",))
    hand.objects.put(bytes_of_it)
    facts = {"hash": bytes_of_it.hash, "size": bytes_of_it.size}
    forms = {
        "kept": {"name": "scf.in", **facts}, "lying": {"name": "big.h5", **facts, "keep": "in place"},
        "tree": {"name": "out.save", **facts, "tree": True}, "gone": {"name": "x.txt", "hash": "0" * 64, "size": 3},
    }  # fmt: skip
    hand.add("a", outputs=[{**hand.entry(name, 0), "value": {"~": ["file", form]}} for name, form in forms.items()])
    document, graph = publish("a")
    told = {attributes(one)["prov:label"]: attributes(one) for one in document.get_records(ProvEntity)}
    assert {name: told[name]["pilot:kind"] for name in forms} == {**dict.fromkeys(forms, "file"), "tree": "tree"}
    assert (told["kept"]["pilot:file-name"], told["kept"]["pilot:file-hash"]) == ("scf.in", bytes_of_it.hash)
    (folder,) = tmp_path.glob("crate-*")
    assert (folder / "data/a-1/scf.in").read_bytes() == b"&CONTROL\n/\n"
    assert graph["data/a-1/scf.in"]["contentSize"] == "11"
    assert {graph[f"#value-a%3A1%2F{name}"]["@type"] for name in ("lying", "tree", "gone")} == {"CreativeWork"}
    assert graph["#value-a%3A1%2Flying"]["identifier"] == f"blake2b-256:{bytes_of_it.hash}"


@pytest.mark.any_documents
def test_directories_and_values_with_files_in_them(
    hand: Hand, publish: Publish, tmp_path: Path, judge: Callable[[Path], None]
) -> None:
    one, empty = values.Encoded.of((b"one",)), values.Encoded.of((b"",))
    manifest = [["a.txt", one.hash, 3], ["sub/ü b", empty.hash, 0], ["x/"], ["z", "0" * 64, 9]]
    tree = values.Encoded.of((json.dumps(manifest, separators=(",", ":"), ensure_ascii=False).encode(),))
    for encoded in (one, empty, tree):
        hand.objects.put(encoded)
    whole = {"~": ["file", {"name": "out.save", "hash": tree.hash, "size": 12, "tree": True}]}
    single = {"~": ["file", {"name": "a.txt", "hash": one.hash, "size": 3}]}
    both = {"n": 1, "f": [single, whole]}
    outputs = [{**hand.entry(name, 0), "value": value} for name, value in (("tree", whole), ("result", both))]
    hand.add("a", outputs=outputs)
    document, graph = publish("a")
    (folder,) = tmp_path.glob("crate-*")
    judge(folder)
    assert graph["data/a-1/out.save/"]["@type"] == "Dataset"
    assert (folder / "data/a-1/out.save/a.txt").read_bytes() == b"one"
    assert (folder / "data/a-1/out.save/sub/b").read_bytes() == b""
    assert {graph[id]["@type"] for id in graph.refs("data/a-1/out.save/", "hasPart")} == {"File", "CreativeWork"}
    made = graph["#value-a%3A1%2Fresult"]
    assert (made["@type"], json.loads(made["description"])["n"]) == ("Collection", 1)
    assert graph.refs(made["@id"], "hasPart") == ["data/a-1/result/a.txt", "data/a-1/result/out.save/"]
    assert (folder / "data/a-1/result/out.save/sub/b").is_file()
    members = relations(document, ProvMembership)
    assert ("project:output/a/1/tree", f"project:file/{one.hash}/a.txt", "") in members
    assert ("project:output/a/1/result", f"project:file/{tree.hash}/out.save", "") in members
    assert ("project:file/" + tree.hash + "/out.save", f"project:file/{one.hash}/a.txt", "") in members


@pytest.mark.any_documents
def test_attempts_that_failed_and_were_lost(hand: Hand, publish: Publish) -> None:
    first = hand.add("a", outputs=[hand.entry("result", 1)])
    used = [{"name": "y[0]", **source(first)}]
    error = {"type": "ValueError", "message": "mongodb://user:word@host is bad", "traceback": "secret"}
    hand.add("b", inputs=used, outcome="failed", exception=error)
    hand.store.provenance.insert_one(
        {
            "_id": "b:2", "task": "b", "attempt": 2, "name": "b", "kind": "function", "outcome": "lost", "inputs": [],
            "outputs": [], "time": {"finished": NOON},
        }
    )  # fmt: skip
    hand.add("b", 3, inputs=used, outputs=[hand.entry("result", 2)])
    document, graph = publish("b:1", "b:2", "b:3")
    assert {str(one.identifier) for one in document.get_records(ProvActivity)} == {
        "project:run/a/1", "project:run/b/1", "project:run/b/2", "project:run/b/3",
    }  # fmt: skip
    assert "word" not in document.serialize(format="json")
    assert graph.refs("#control-b", "object") == ["#run-b%3A1", "#run-b%3A2", "#run-b%3A3"]
    assert graph["#control-b"]["actionStatus"].endswith("CompletedActionStatus")
    assert graph["#run-b%3A2"]["error"] == "lost"
    assert graph["#workflow-run"]["actionStatus"].endswith("FailedActionStatus")


@pytest.mark.any_documents
def test_more_inputs_than_a_record_holds(hand: Hand, publish: Publish) -> None:
    parents = [hand.add(f"p{number}", outputs=[hand.entry("result", number)]) for number in range(40)]
    entries = [{"name": f"parts[{number}]", **source(one)} for number, one in enumerate(parents)]
    hand.add("join", inputs=records.pack(entries, hand.objects.put, 1 << 30), outputs=[hand.entry("result", 780)])
    document, graph = publish("join")
    assert len(relations(document, ProvUsage)) == 40 + 41  # and the environment of each
    assert len([id for id in graph.refs("#run-join%3A1", "object") if id.startswith("#value-")]) == 40
    assert [graph[id]["name"] for id in graph.refs("functions/ffffffffffffffff.py", "input")] == ["parts"]
    with pytest.raises(InvalidInput, match=r"more than 40 records went into it; allow more with --limit"):
        prov.document(hand, ["join"], limit=40)  # type: ignore[arg-type]


@pytest.mark.any_documents
def test_what_was_taken_from_a_cache(hand: Hand, publish: Publish) -> None:
    first = hand.add("a", outputs=[hand.entry("result", 1)])
    again = hand.add("b", outcome="cached", cached_from="a:1", outputs=[hand.entry("result", 1)])
    hand.add("c", inputs=[{"name": "x", **source(again)}], outputs=first["outputs"])
    document, graph = publish("c")
    ((taken, origin, by, _),) = relations(document, ProvDerivation)
    assert (taken, origin, by) == ("project:output/b/1/result", "project:output/a/1/result", "project:run/b/1")
    assert graph["#run-b%3A1"]["description"] == "not run: its outputs were taken from a:1"


@pytest.mark.any_documents
def test_what_is_gone_is_named_by_its_hash(hand: Hand, publish: Publish, tmp_path: Path) -> None:
    lost = hand.entry("result", np.arange(5000), large=True)
    kept = hand.entry("result", np.arange(6000), large=True)
    first = hand.add("a", outputs=[lost], function="0" * 64)  # whose function is gone too
    hand.store.provenance.delete_one({"_id": "a:1"})
    second = hand.add("b", outputs=[kept])
    hand.add("c", inputs=[{"name": "x", **source(first)}, {"name": "y", **source(second)}], outputs=[lost])
    Path(hand.objects.path(lost["hash"])).unlink()
    document, graph = publish("c", data=False)
    assert "project:run/a/1" in {str(one.identifier) for one in document.get_records(ProvActivity)}
    assert ("project:output/a/1/result", "project:run/a/1", "result") in relations(document, ProvGeneration)
    missing = graph["#value-a%3A1%2Fresult"]
    assert missing["identifier"] == f"blake2b-256:{lost['hash']}"
    assert missing["description"] == "bytes that were not to be had"
    assert graph["#value-b%3A1%2Fresult"]["description"] == "bytes that are not in this crate"
    Path(hand.objects.path(kept["hash"])).chmod(0o600)
    Path(hand.objects.path(kept["hash"])).write_bytes(b"n damaged")
    with pytest.raises(ObjectCorrupt):
        crates.write(hand, ["c"], tmp_path / "damaged")  # type: ignore[arg-type]
    assert not [path for path in tmp_path.iterdir() if "damaged" in path.name]


@pytest.mark.any_documents
def test_what_cannot_be_published(hand: Hand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    any_project: Any = hand
    hand.store.tasks.insert_one({"_id": "w", "state": "waiting", "kind": "function"})
    hand.add("a")
    with pytest.raises(RecordNotFound, match="is waiting and has no record yet"):
        prov.document(any_project, ["w"])
    with pytest.raises(RecordNotFound, match="no record of attempt 2"):
        prov.document(any_project, ["a:2"])
    with pytest.raises(TaskNotFound, match="no task 'nonsense'"):
        prov.document(any_project, ["nonsense"])
    with pytest.raises(RecordNotFound, match="no record of attempt x"):
        prov.document(any_project, ["a:x"])
    with pytest.raises(InvalidInput, match="nothing to publish"):
        prov.document(any_project, [])
    for name in ("prov.model", "rocrate.rocrate", "rocrate.model"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(PackageMissing, match=r"package 'prov': .* pip install 'hpc-pilot\[standards\]'"):
        prov.document(any_project, ["a"])
    with pytest.raises(PackageMissing, match="package 'rocrate'"):
        crates.write(any_project, ["a"], tmp_path / "crate")


def test_contents_are_told_without_running_anything(tmp_path: Path) -> None:
    objects = Objects(tmp_path)
    entry = {"name": "x", "hash": "0" * 64, "size": 1}
    assert published.content_of({**entry, "object": True}, objects).kind == "unknown"
    assert published.content_of({**entry, "data": b"?from a newer pilot"}, objects).kind == "unknown"
    evil = b"p" + b"cos\nsystem\n(S'exit 1'\ntR."
    assert published.content_of({**entry, "data": evil}, objects).kind == "pickle"
    assert published.content_of({**entry, "value": [1]}, objects).plain == [1]
