"""Archives that were altered, cut short or forged: the entry is named, and nothing is stored."""

from __future__ import annotations

import itertools
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pilot import signing
from pilot.errors import ArchiveConflict, ArchiveError, ObjectStoreFull, PilotError, SignatureError
from pilot.manifest import MANIFEST, SIGNATURE
from pilot.store import foreign
from pilot.store.archive import last_whole_entry
from pilot.store.mongo import Store
from pilot.store.objects import Objects
from tests import archive_rig
from tests.archive_rig import Entries, Import, Made, altered, changing, told
from tests.queue_rig import whole


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return Objects(tmp_path / "objects")


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


UP = ".." + "/"
EVIL = f"{UP}{UP}evil"


@pytest.mark.usefixtures("nothing_stored")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (told(format=2), "format 2, this pilot knows format 1: release"),
        (told(schema=99), "schema 99, this pilot knows"),
        (told(format=0), "there is no format 0"),
        (told(format="1"), "names no format"),
        (told(objects=10**12), "4 objects, its manifest counts 1,000,000,000,000"),
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
        (adding(f"objects/{UP}{UP}x"), "does not belong"),
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
        ("tasks", {"groups": "paper"}, "tags, groups or notes"),
        ("tasks", {"notes": [{"text": "x"}]}, "tags, groups or notes"),
        ("tasks", {"from": {"project": f"{UP}x"}}, "which project it comes from"),
        ("records", {"_id": "x:1"}, "is not that of attempt"),
        ("records", {"outcome": "splendid"}, "the outcome 'splendid'"),
        ("records", {"outcome": "lost"}, "is done, and did not succeed"),
        ("records", {"inputs": {"object": f"{UP}{UP}x", "count": 1}}, "neither a list nor an object"),
        ("records", {"inputs": {"object": "0" * 64, "count": 1}}, "cannot be read"),
        ("records", {"outputs": [{"name": "result", "hash": "0" * 64, "size": 1, "object": True}]}, "names the object"),
        ("records", {"outputs": [7]}, "form that is not known"),
        ("records", {"time": None}, "has no proper 'time'"),
        ("records", {"from": {"project": "other"}}, "of a task that the archive does not hold"),
        ("functions", {"source": "evil"}, "is not what its hash says"),
        ("functions", {"pickle": {"hash": "0" * 64, "size": 1, "data": b"x"}}, "another hash than it says"),
        ("environments", {"mpi": "other"}, "is not what its hash says"),
        ("environments", {"mpi": {"~": ["type", "antigravity:x", 1]}}, "is not what its hash says"),
        ("environments", {"mpi": b"x"}, "cannot be read"),
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
        first, *rest = archive_rig.split(content["records/000000.bson"]) or [b""]
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
        bring(unsigned, made.signer())


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
        bring(made.path, made.signer())
    failed = next(doc for doc in archive_rig.documents(content, "tasks") if doc.get("pending"))
    store.tasks.delete_many({})
    store.tasks.insert_one({"_id": "mine", "state": "failed"})
    forge = changing("tasks", lambda doc: doc.update(pending=["mine"]), lambda doc: doc["_id"] == failed["_id"])
    with pytest.raises(ArchiveError, match="waits for 'mine', a task of this one"):
        bring(altered(made.path, made.path.with_name("pending.zip"), forge, honest=True))
