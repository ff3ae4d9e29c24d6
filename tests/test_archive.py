"""Archives: what a real pool has run, exported and imported; and archives that were altered, cut short or forged."""

from __future__ import annotations

import itertools
import json
import struct
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import bson
import pytest

import pilot
from pilot import records, signing
from pilot.cli.app import run
from pilot.errors import (
    ArchiveConflict,
    ArchiveError,
    InvalidInput,
    NotTrusted,
    ObjectStoreFull,
    PilotError,
    ProjectError,
    SignatureError,
    TaskFailed,
)
from pilot.manifest import MANIFEST, SIGNATURE
from pilot.store import exports, foreign, imports, invariants, lineage, provenance
from pilot.store.archive import Reader, last_whole_entry
from pilot.store.mongo import Store
from pilot.store.objects import Objects
from tests import archive_rig
from tests.archive_rig import Entries, altered, changing, told
from tests.queue_rig import whole
from tests.rig import Rig

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
LONG = "x" * 20_000


@pilot.task(tags=["made"])
def double(x: int) -> int:
    return 2 * x


@pilot.task
def total(parts: list[int]) -> int:
    return sum(parts)


@pilot.task
def repeated(text: str, count: int) -> str:
    return text * count


@pilot.task
def odd(x: int) -> set[int]:
    return {x}


@pilot.task(retries=1)
def bad(x: int) -> None:
    raise ValueError(x)


class Made(NamedTuple):
    """What a project has run, and the archive of it."""

    path: Path
    ids: dict[str, str]
    key_file: Path
    project: str


@pytest.fixture(scope="module")
def made(shared_rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Run tasks on a real pool and export some of them by name, through the command line."""
    with shared_rig.open():
        parts = double.map(range(4))
        sum_ = total.submit(parts)
        text = repeated.submit(LONG, sum_)
        strange = odd.submit(sum_)
        failed = bad.submit(sum_)
        after = total.submit([failed])
        shell = pilot.command(
            ["sh", "-c", "cat in > out"], inputs={"in": LONG}, outputs={"out": "out"}, name="copy"
        ).submit()
        apart = double.submit(1000)
        assert text.result(60) == LONG * 12
        assert strange.result(60) == {12}
        assert shell.result(60)["out"] == LONG.encode()
        assert apart.result(60) == 2000
        with pytest.raises(TaskFailed):
            after.result(60)
    shared_rig.settled()
    ids = {
        "part": parts[1].id, "sum": sum_.id, "text": text.id, "odd": strange.id, "bad": failed.id, "after": after.id,
        "shell": shell.id, "apart": apart.id,
    }  # fmt: skip
    path = tmp_path_factory.mktemp("archive") / "some.pilot.zip"
    names = [ids[name] for name in ("text", "odd", "after", "shell")]
    assert run(["-C", str(shared_rig.config.root), "export", *names, "-o", str(path), "--sign"]) == 0
    return Made(path, ids, shared_rig.config.key_file, shared_rig.config.id)


@pytest.fixture(autouse=True)
def at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # `pilot -C` changes it


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return Objects(tmp_path / "objects")


SIGNER = signing.Signer(b"k" * 32, "importer")

Import = Callable[..., imports.Imported]


@pytest.fixture
def bring(store: Store, objects: Objects) -> Import:
    """Import an archive into the store of the test."""

    def call(path: Path, signer: signing.Signer = SIGNER, **options: Any) -> imports.Imported:
        with Reader(path) as reader:
            return imports.import_(store, objects, reader, signer, NOW, **options)

    return call


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
    assert found["new"] == {"environments": 1, "functions": 5, "records": 10, "tasks": 10, "objects": 3}
    assert dry["new"] == found["new"]
    assert found["verified"] == {made.project: False}
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
    assert "is not trusted here" in capsys.readouterr().out


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
    assert again["verified"] == {made.project: True}
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
    for signer, foreign_there in ((signing.Signer(b"z" * 32, "third"), True), (own(made), False)):
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


def own(made: Made) -> signing.Signer:
    """Return the signer of the project that made the archive."""
    return signing.Signer(signing.load_key(made.key_file), made.project)


class Third:
    """A view of another database on the same server."""

    def __init__(self, store: Store, name: str) -> None:
        self.store = Store("mongodb://unused", name)
        self.store.database = store.database.client[name]
        for collection in ("tasks", "provenance", "functions", "environments", "archives"):
            setattr(self.store, collection, self.store.database[collection])


def head(project: str) -> Any:
    """Return the head of a manifest."""
    from pilot.manifest import Manifest

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
    assert bring(made.path).new["objects"] == 3  # another archive brings them later
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


# -- altered archives -------------------------------------------------------------------------------


@pytest.fixture
def nothing_stored(store: Store) -> Iterator[None]:
    yield
    for name in ("tasks", "provenance", "functions", "environments", "archives"):
        assert store.database[name].count_documents({}) == 0


@pytest.mark.usefixtures("nothing_stored")
@pytest.mark.parametrize("kind", ["tasks", "records", "functions", "environments"])
def test_an_altered_entry_is_named(made: Made, bring: Import, tmp_path: Path, kind: str) -> None:
    def change(content: Entries) -> None:
        content[f"{kind}/000000.bson"] = content[f"{kind}/000000.bson"].replace(b"1", b"2", 1)

    with pytest.raises(ArchiveError, match=rf"'{kind}/000000\.bson' of the archive does not have the hash"):
        bring(altered(made.path, tmp_path / "x.zip", change))


@pytest.mark.usefixtures("nothing_stored")
def test_a_damaged_byte_names_the_entry(made: Made, bring: Import, tmp_path: Path) -> None:
    data = bytearray(made.path.read_bytes())
    with zipfile.ZipFile(made.path) as file:
        infos = file.infolist()
    for info in infos:
        if info.filename.endswith(".bson") or info.filename.startswith("objects/"):
            place = info.header_offset + 30 + len(info.filename) + info.compress_size // 2
            data[place] ^= 0xFF
            broken = tmp_path / "x.zip"
            broken.write_bytes(data)
            data[place] ^= 0xFF
            with pytest.raises(ArchiveError, match=info.filename.rpartition("/")[2][:20]):
                bring(broken)


@pytest.mark.usefixtures("nothing_stored")
def test_an_archive_that_was_cut_short_names_the_last_good_entry(made: Made, bring: Import, tmp_path: Path) -> None:
    with zipfile.ZipFile(made.path) as file:
        infos = file.infolist()
    data = made.path.read_bytes()
    assert last_whole_entry(made.path) == infos[-1].filename
    for before, info in itertools.pairwise(infos):
        cut = tmp_path / "x.zip"
        cut.write_bytes(data[: info.header_offset + 40])
        with pytest.raises(ArchiveError, match=f"last entry that is whole in it is {before.filename!r}"):
            bring(cut)
    for size in (0, 10, 100):
        cut.write_bytes(data[:size])
        with pytest.raises(ArchiveError, match="is not an archive"):
            bring(cut)


def test_an_altered_object_is_named_and_not_stored(
    made: Made, bring: Import, store: Store, objects: Objects, tmp_path: Path
) -> None:
    name, *_ = archive_rig.object_names(archive_rig.entries(made.path))

    def change(content: Entries) -> None:
        content[name] = content[name].replace(b"x", b"y")

    broken = altered(made.path, tmp_path / "x.zip", change)
    for dry_run in (True, False):
        with pytest.raises(ArchiveError, match=f"{name}"):
            bring(broken, dry_run=dry_run)
    assert not objects.exists(name.removeprefix("objects/").replace("/", ""))
    assert store.tasks.count_documents({}) == store.provenance.count_documents({}) == 0


def without(name: str) -> Any:
    return lambda content: content.pop(name)


def adding(name: str, data: bytes = b"x") -> Any:
    return lambda content: content.update({name: data})


EVIL = "../../evil"


@pytest.mark.usefixtures("nothing_stored")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (told(format=2), "format 2, this pilot knows format 1: release"),
        (told(schema=99), "schema 99, this pilot knows"),
        (told(format=0), "there is no format 0"),
        (told(format="1"), "names no format"),
        (told(objects=10**12), "3 objects, its manifest counts 1,000,000,000,000"),
        (told(object_bytes=10**18), "the objects have"),
        (told(counts={"tasks": 10**9}), "counts"),
        (told(entries=[{"name": EVIL, "size": 1, "blake2b": "0" * 64, "documents": 0}]), "in a form that is not known"),
        (told(entries=7), "expected list"),
        (adding(MANIFEST, b"[" * 10_000), "is not JSON"),
        (adding(MANIFEST, b"{}"), "is not that of an archive"),
        (without(MANIFEST), "has no entry 'manifest.json'"),
        (without("records/000000.bson"), "entry 'records/000000.bson' is missing"),
        (without("objects.txt"), "entry 'objects.txt' is missing"),
        (adding(EVIL), EVIL),
        (adding("/etc/passwd"), "/etc/passwd"),
        (adding("records/000001.bson"), "records/000001.bson"),
        (adding("objects/../../x"), "does not belong"),
    ],
)  # fmt: skip
def test_archives_that_are_none(made: Made, bring: Import, tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(ArchiveError, match=message):
        bring(altered(made.path, tmp_path / "x.zip", change))


@pytest.mark.usefixtures("nothing_stored")
def test_other_files_are_no_archives(bring: Import, tmp_path: Path) -> None:
    other = tmp_path / "x.zip"
    other.write_bytes(b"\0" * 100_000)
    with pytest.raises(ArchiveError, match="is not an archive"):
        bring(other)
    with pytest.raises(ArchiveError, match="has no entry"):
        bring(archive_rig.write(other, {"a": b"b"}))
    with pytest.raises(ArchiveError, match="cannot read"):
        bring(tmp_path)


@pytest.mark.usefixtures("nothing_stored")
def test_an_entry_with_more_bytes_than_it_declares(made: Made, bring: Import, tmp_path: Path) -> None:
    """The sizes that a zip declares are the forger's as well: no more than they say is ever read."""
    name = "records/000000.bson"
    path = altered(made.path, tmp_path / "x.zip", lambda content: content.update({name: content[name] * 1000}))
    data = path.read_bytes()
    with zipfile.ZipFile(path) as file:
        real = file.getinfo(name).file_size
    path.write_bytes(data.replace(struct.pack("<I", real), struct.pack("<I", real // 1000)))
    with pytest.raises(ArchiveError, match=r"'records/000000\.bson' of the archive is damaged"):
        bring(path)


@pytest.mark.usefixtures("nothing_stored")
def test_a_bomb(made: Made, bring: Import, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name = "records/000000.bson"
    path = altered(made.path, tmp_path / "x.zip", adding(name, b"\0" * (40 << 20)), honest=True)
    with pytest.raises(ArchiveError, match="bytes, at most"):
        bring(path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(ObjectStoreFull, match=r"has room for 1,000"):
        bring(made.path)


# -- forged ones: every hash in them fits -----------------------------------------------------------


def nested(levels: int) -> dict[str, Any]:
    return {"x": nested(levels - 1)} if levels else {}


@pytest.mark.usefixtures("nothing_stored")
@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("tasks", {"state": "ready"}, "which is no end"),
        ("tasks", {"kind": "join"}, "which is no end"),
        ("tasks", {"revive": True}, "has the field 'revive'"),
        ("tasks", {"unreleased": True}, "has the field 'unreleased'"),
        ("tasks", {"attempt": 7}, "does not name the attempt that ended it"),
        ("tasks", {"attempt": 7, "official": 7}, "succeeded and is not the one that its task names"),
        ("tasks", {"name": 7}, "has no proper 'name'"),
        ("tasks", {"pending": [7]}, "waits for something"),
        ("tasks", {"inputs": [7]}, "form that is not known"),
        ("tasks", {"from": {"project": "../x"}}, "which project it comes from"),
        ("records", {"_id": "x:1"}, "is not that of attempt"),
        ("records", {"outcome": "splendid"}, "the outcome 'splendid'"),
        ("records", {"outcome": "lost"}, "is done, and did not succeed"),
        ("records", {"inputs": {"object": "../../x", "count": 1}}, "neither a list nor an object"),
        ("records", {"inputs": {"object": "0" * 64, "count": 1}}, "cannot be read"),
        ("records", {"outputs": [{"name": "result", "hash": "0" * 64, "size": 1, "object": True}]}, "names the object"),
        ("records", {"outputs": [7]}, "form that is not known"),
        ("records", {"time": None}, "has no proper 'time'"),
        ("records", {"from": {"project": "other"}}, "of a task that the archive does not hold"),
        ("functions", {"source": "evil"}, "is not what its hash says"),
        ("functions", {"pickle": {"hash": "0" * 64, "size": 1, "data": b"x"}}, "another hash than it says"),
        ("environments", {"mpi": "other"}, "is not what its hash says"),
    ],
)  # fmt: skip
def test_forged_documents(
    made: Made, bring: Import, tmp_path: Path, kind: str, change: dict[str, Any], message: str
) -> None:
    first = {"records": lambda doc: doc["outcome"] == "succeeded", "tasks": lambda doc: doc["state"] == "done"}
    forge = changing(kind, lambda doc: doc.update(change), first.get(kind, bool))
    path = altered(made.path, tmp_path / "x.zip", forge, honest=True)
    with pytest.raises(PilotError, match=rf"entry '\w+/000000.bson' of the archive: .*{message}"):
        bring(path)


@pytest.mark.usefixtures("nothing_stored")
def test_a_document_that_says_two_things(made: Made, bring: Import, tmp_path: Path) -> None:
    def change(content: Entries) -> None:
        first, *rest = archive_rig.split(content["records/000000.bson"]) or ()
        twice = foreign.stamp(first, {"project": "a"})
        content["records/000000.bson"] = b"".join([foreign.stamp(twice, {"project": "b"}), *rest])

    with pytest.raises(ArchiveError, match="not in the form in which pilot writes"):
        bring(altered(made.path, tmp_path / "x.zip", change, honest=True))


@pytest.mark.usefixtures("nothing_stored")
@pytest.mark.parametrize("kind", ["tasks", "records", "functions"])
def test_what_does_not_verify_is_refused_if_the_key_is_here(
    made: Made, bring: Import, tmp_path: Path, kind: str
) -> None:
    signer = signing.Signer(b"k" * 32, "importer")
    signer.trust(made.project, signing.load_key(made.key_file))
    change = changing(kind, lambda doc: doc.update(signature=b"x" * 32))
    path = altered(made.path, tmp_path / "x.zip", change, honest=True)
    with pytest.raises(SignatureError, match=r"signature of a archive|signature of a"):
        bring(path, signer)
    unsigned = altered(path, tmp_path / "y.zip", without(SIGNATURE))
    with pytest.raises(SignatureError, match=rf"entry '{kind}/000000.bson' of the archive: the signature"):
        bring(unsigned, signer)
    with pytest.raises(SignatureError):  # nor does its own project take it back
        bring(unsigned, own(made))


def test_other_content_under_the_same_id(made: Made, bring: Import, store: Store, tmp_path: Path) -> None:
    bring(made.path)
    before = whole(store)
    host = altered(made.path, tmp_path / "x.zip", changing("records", lambda doc: doc.update(host="moon")), honest=True)
    with pytest.raises(ArchiveConflict, match=r"record '.*' is here already with other content; nothing was imported"):
        bring(host)
    named = altered(made.path, tmp_path / "y.zip", changing("tasks", lambda doc: doc.update(name="z")), honest=True)
    with pytest.raises(ArchiveConflict, match=r"task '.*' is here already with another 'name'"):
        bring(named)
    assert whole(store) == before


@pytest.mark.any_documents
def test_tasks_of_ours_are_not_another_projects(made: Made, bring: Import, store: Store) -> None:
    content = archive_rig.entries(made.path)
    ours = next(doc for doc in archive_rig.documents(content, "tasks") if doc["state"] == "done")
    store.tasks.insert_one(ours)
    with pytest.raises(ArchiveConflict, match="is here already, and is another project's"):
        bring(made.path)
    store.tasks.update_one({"_id": ours["_id"]}, {"$set": {"attempt": 0}})
    with pytest.raises(ArchiveConflict, match="older than the archive"):
        bring(made.path, own(made))
    failed = next(doc for doc in archive_rig.documents(content, "tasks") if doc.get("pending"))
    store.tasks.delete_many({})
    store.tasks.insert_one({"_id": "mine", "state": "failed"})
    forge = changing("tasks", lambda doc: doc.update(pending=["mine"]), lambda doc: doc["_id"] == failed["_id"])
    with pytest.raises(ArchiveError, match="waits for 'mine', a task of this one"):
        bring(altered(made.path, made.path.with_name("pending.zip"), forge, honest=True))


# -- keys that are trusted --------------------------------------------------------------------------


def test_trusted_keys(tmp_path: Path) -> None:
    folder = tmp_path / "trusted"
    signing.keep_trusted(folder, "other", b"o" * 32)
    signing.keep_trusted(folder, "other", b"o" * 32)
    with pytest.raises(ProjectError, match="another key of the project 'other' is trusted already"):
        signing.keep_trusted(folder, "other", b"p" * 32)
    signer = signing.Signer(b"k" * 32, "ours", folder)
    assert signer.of("ours") is signer
    assert signer.of("other").sign("a", 1, []) == signing.Signer(b"o" * 32, "other").sign("a", 1, [])
    for name in ("unknown", "../trusted/other", "", "x" * 100):
        with pytest.raises(NotTrusted):
            signer.of(name)
    (folder / "other").chmod(0o644)
    with pytest.raises(ProjectError, match="open to others"):
        signing.Signer(b"k" * 32, "ours", folder).of("other")
