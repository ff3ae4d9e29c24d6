"""Archives: what a real pool has run, exported and imported, from project to project."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bson
import pytest

from pilot import records, signing
from pilot.cli.app import run
from pilot.errors import InvalidInput, NotTrusted, ProjectError, SignatureError, TaskFailed
from pilot.manifest import Manifest
from pilot.store import exports, foreign, imports, invariants, lineage, provenance
from pilot.store.archive import Reader
from pilot.store.mongo import Store
from pilot.store.objects import Objects
from tests import archive_rig
from tests.archive_rig import LONG, NOW, Import, Made, double, total
from tests.queue_rig import whole
from tests.rig import Rig


@pytest.fixture(autouse=True)
def at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # `pilot -C` changes it


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return Objects(tmp_path / "objects")


def cli(root: Path, capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    """Run a command of the command line and return its JSON."""
    assert run(["-C", str(root), *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


# -- from project to project ------------------------------------------------------------------------


def test_results_of_another_project(made: Made, lobby: Rig, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    root, ids = lobby.config.root, made.ids
    before = whole(lobby.store)
    dry = cli(root, capsys, "import", made.path, "--dry-run")
    assert whole(lobby.store) == before
    found = cli(root, capsys, "import", made.path)
    assert found["new"] == {"environments": 1, "functions": 5, "records": 10, "tasks": 10, "objects": 4}
    assert dry["new"] == found["new"]
    assert (found["verified"], found["signed"]) == ({made.project: False}, False)
    assert lobby.store.provenance.count_documents({}) == found["new"]["records"] == 10
    assert invariants.violations(lobby.store) == []
    with lobby.open() as project:
        assert project.task(ids["sum"]).result(10) == 12
        assert project.task(ids["text"]).result(10) == LONG * 12
        assert project.task(ids["shell"]).result(10)["out"] == LONG.encode()
        with pytest.raises(NotTrusted, match=r"not data.*is not trusted here"):
            project.task(ids["odd"]).result(10)
        with pytest.raises(TaskFailed, match="ValueError: 12"):
            project.task(ids["bad"]).result(10)
        with pytest.raises(InvalidInput, match="was imported from the project"):
            project.retry(ids["bad"])
    assert run(["-C", str(root), "retry", "--all", "failed"]) == 0
    assert lobby.store.tasks.count_documents({"state": "failed"}) == 2
    official = f"{ids['text']}:1"
    up = lineage.ancestors(lobby.store, Objects(lobby.config.objects_folder).get, [official])
    assert up.distance == {official: 0, f"{ids['sum']}:1": 1} | {
        name: 2 for name in up.distance if name not in (official, f"{ids['sum']}:1")
    }
    assert len(up.distance) == 6
    assert run(["-C", str(root), "show", ids["odd"]]) == 0
    said = capsys.readouterr().out
    assert "is not trusted here" in said
    assert f"project {made.project}, imported by archive" in said


def test_what_is_trusted_can_be_used(
    made: Made, lobby: Rig, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    root, ids = lobby.config.root, made.ids
    cli(root, capsys, "import", made.path)
    wrong = tmp_path / "wrong"
    signing.create_key(wrong)
    assert run(["-C", str(root), "import", str(made.path), "--trust", str(wrong)]) == 1
    assert "is not that of the project" in capsys.readouterr().err
    lobby.start(slots=1)
    with lobby.open() as project:
        refused = total.submit([project.task(ids["sum"])])
        with pytest.raises(TaskFailed, match="is not trusted here"):
            refused.result(60)
        assert double.submit(21).result(60) == 42  # of this function a document was imported: ours replaced it
    again = cli(root, capsys, "import", made.path, "--trust", made.key_file)
    assert (again["verified"], again["signed"]) == ({made.project: True}, True)
    assert again["new"] == dict.fromkeys(again["new"], 0)
    assert (lobby.config.trusted_folder / made.project).stat().st_mode & 0o777 == 0o600
    with lobby.open() as project:
        assert project.task(ids["odd"]).result(10) == {12}
        assert total.submit([project.task(ids["sum"]), 1]).result(60) == 13
        ours = double.submit(5)
        ours.result(60)
        # Whoever writes to the database cannot pass off our record as an imported one.
        origin = {"project": "elsewhere", "archive": "a", "signature": b"x" * 32}
        record = lobby.store.provenance.find_one({"_id": f"{ours.id}:1"}) or {}
        with pytest.raises(SignatureError, match="does not fit"):
            project.value_of(bson.encode({**record, "from": origin}))
        with pytest.raises(SignatureError, match="does not say rightly"):
            project.value_of(bson.encode({**record, "from": {"project": "elsewhere"}}))
    lobby.drain()
    lobby.check()


def test_what_was_imported_goes_on_from_project_to_project(
    made: Made, bring: Import, store: Store, objects: Objects, tmp_path: Path
) -> None:
    bring(made.path)
    first = {raw_of(store, name) for name in ids_of(store)}
    about = head("importer")
    exports.export(store, objects, tmp_path / "on.zip", about, exports.asked_for(store))
    content = archive_rig.entries(tmp_path / "on.zip")
    assert {doc["from"]["project"] for doc in archive_rig.documents(content, "records")} == {made.project}
    # A third project, then the first one: there it is its own again, and the same bytes.
    database = store.database.client[f"{store.database.name}_third"]
    for signer, foreign_there in ((signing.Signer(b"z" * 32, "third"), True), (made.signer(), False)):
        third = Third(store, database.name)
        with Reader(tmp_path / "on.zip") as reader:
            found = imports.import_(third.store, objects, reader, signer, NOW)
        assert found.new["records"] == len(first)
        assert {raw_of(third.store, name) for name in ids_of(third.store)} == first
        docs = list(third.store.provenance.find())
        assert [("from" in doc) for doc in docs] == [foreign_there] * len(docs)
        assert found.verified == {made.project: not foreign_there}
        if foreign_there:
            with pytest.raises(NotTrusted):
                records.verify(docs[0], signer)
        else:
            for doc in docs:
                records.verify(doc, signer)
        assert invariants.violations(third.store) == []
        store.database.client.drop_database(database.name)


class Third:
    """A view of another database on the same server."""

    def __init__(self, store: Store, name: str) -> None:
        self.store = Store("mongodb://unused", name)
        self.store.database = store.database.client[name]
        for collection in ("tasks", "provenance", "functions", "environments", "archives"):
            setattr(self.store, collection, self.store.database[collection])


def head(project: str) -> Any:
    """Return the head of a manifest."""
    return Manifest("archive", project, project, "00", "0.1", "2026-03-01T12:00:00Z", "all")


def ids_of(store: Store) -> list[str]:
    return [doc["_id"] for doc in store.provenance.find({}, ["_id"])]


def raw_of(store: Store, name: str) -> bytes:
    """Return a stored record as it was where it was made."""
    (raw,) = foreign.raw(store.provenance, {"_id": name})
    return foreign.bare(raw, provenance.decode(raw))


def test_records_keep_their_bytes(made: Made, bring: Import, store: Store, shared_rig: Rig) -> None:
    bring(made.path)
    for name in ids_of(store):
        (there,) = foreign.raw(shared_rig.store.provenance, {"_id": name})
        assert raw_of(store, name) == there
        assert store.provenance.find_one({"_id": name})["from"]["project"] == made.project  # type: ignore[index]


def test_a_second_import_changes_nothing(made: Made, bring: Import, store: Store) -> None:
    first = bring(made.path)
    before = whole(store)
    again = bring(made.path)
    assert whole(store) == before
    assert again.new == dict.fromkeys(first.new, 0)
    assert again.same == first.new


def test_an_archive_that_knows_more_brings_tasks_up_to_date(
    made: Made, bring: Import, store: Store, shared_rig: Rig, tmp_path: Path
) -> None:
    bring(made.path)
    with shared_rig.open() as project:
        (again,) = project.retry(made.ids["bad"])
        with pytest.raises(TaskFailed):
            again.result(60)
    shared_rig.settled()
    later = tmp_path / "later.zip"
    assert run(["-C", str(shared_rig.config.root), "export", made.ids["bad"], "-o", str(later)]) == 0
    found = bring(later)
    assert (found.updated, found.new["records"]) == (1, 2)
    task = store.tasks.find_one({"_id": made.ids["bad"]}) or {}
    assert (task["attempt"], task["official"], task["state"]) == (4, 4, "failed")
    before = whole(store)
    assert bring(made.path).updated == 0  # the older one takes nothing back
    assert whole(store) == before


def test_a_tag_and_all(made: Made, shared_rig: Rig, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    root = shared_rig.config.root
    tagged = cli(root, capsys, "export", "--tag", "made", "-o", tmp_path / "tag.zip")
    assert tagged["tasks"] >= 5
    everything = cli(root, capsys, "export", "--all", "-o", tmp_path / "all.zip", "--no-objects")
    assert everything["tasks"] == shared_rig.store.tasks.count_documents({"kind": {"$ne": "join"}})
    assert everything["objects"] == 0
    assert everything["absent"] >= 2


def test_without_large_values(
    made: Made, bring: Import, store: Store, objects: Objects, shared_rig: Rig, tmp_path: Path
) -> None:
    path = tmp_path / "small.zip"
    words = ["export", made.ids["text"], "-o", str(path), "--no-objects"]
    assert run(["-C", str(shared_rig.config.root), *words]) == 0
    assert bring(path).new["objects"] == 0
    output = (store.provenance.find_one({"_id": f"{made.ids['text']}:1"}) or {})["outputs"][0]
    assert output["object"]
    assert not objects.exists(output["hash"])
    assert bring(made.path).new["objects"] == 4  # another archive brings them later
    assert objects.exists(output["hash"])


def test_inputs_too_many_for_a_document(
    store: Store, objects: Objects, shared_rig: Rig, bring: Import, tmp_path: Path
) -> None:
    with shared_rig.open():
        parts = double.map(range(2500))
        assert total.submit(parts).result(60) == 2499 * 2500
        join = total.submit(parts)
        join.result(60)
    shared_rig.settled()
    path = tmp_path / "wide.zip"
    assert run(["-C", str(shared_rig.config.root), "export", join.id, "-o", str(path), "--no-objects"]) == 0
    assert bring(path).new["records"] == 2501
    assert len(lineage.ancestors(store, objects.get, [f"{join.id}:1"]).distance) == 2501


def test_wrong_usage(made: Made, shared_rig: Rig, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    root = str(shared_rig.config.root)
    assert run(["-C", root, "export", "-o", "x.zip"]) == 2
    assert run(["-C", root, "export", "--all", "--tag", "x", "-o", "x.zip"]) == 2
    assert run(["-C", root, "export", "nonsense", "-o", str(tmp_path / "x.zip")]) == 1
    assert run(["-C", root, "export", "--all", "-o", str(made.path)]) == 1
    assert run(["-C", root, "export", "--all", "-o", str(tmp_path / "no" / "x.zip")]) == 1
    assert run(["-C", root, "import", str(tmp_path / "none.zip")]) == 1
    said = capsys.readouterr().err
    assert "exists already" in said
    assert "there is no archive" in said
    assert list(tmp_path.iterdir()) == []  # nothing is left of an archive that could not be written


# -- interrupted, and at once -----------------------------------------------------------------------


@pytest.mark.parametrize("until", ["functions", "records", "tasks"])
def test_an_interrupted_import_is_completed(
    made: Made, bring: Import, store: Store, monkeypatch: pytest.MonkeyPatch, until: str
) -> None:
    insert = imports._Import._insert

    def stop(self: Any, kind: str, *args: Any) -> None:
        if kind == until:
            raise KeyboardInterrupt
        insert(self, kind, *args)

    monkeypatch.setattr(imports._Import, "_insert", stop)
    with pytest.raises(KeyboardInterrupt):
        bring(made.path)
    assert invariants.violations(store) == []
    monkeypatch.undo()
    assert bring(made.path).new["tasks"] == 10
    assert store.provenance.count_documents({}) == 10


def test_two_imports_at_once(made: Made, bring: Import, store: Store) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(bring, [made.path] * 4))
    assert len(found) == 4
    assert store.provenance.count_documents({}) == store.tasks.count_documents({}) == 10
    before = whole(store)
    bring(made.path)
    assert whole(store) == before


# -- keys that are trusted --------------------------------------------------------------------------


UP = ".." + "/"


def test_trusted_keys(tmp_path: Path) -> None:
    folder = tmp_path / "trusted"
    signing.keep_trusted(folder, "other", b"o" * 32)
    signing.keep_trusted(folder, "other", b"o" * 32)
    with pytest.raises(ProjectError, match="another key of the project 'other' is trusted already"):
        signing.keep_trusted(folder, "other", b"p" * 32)
    signer = signing.Signer(b"k" * 32, "ours", folder)
    assert signer.of("ours") is signer
    assert signer.of("other").sign("a", 1, []) == signing.Signer(b"o" * 32, "other").sign("a", 1, [])
    for name in ("unknown", f"{UP}trusted/other", "", "x" * 100):
        with pytest.raises(NotTrusted):
            signer.of(name)
    (folder / "other").chmod(0o644)
    with pytest.raises(ProjectError, match="open to others"):
        signing.Signer(b"k" * 32, "ours", folder).of("other")
