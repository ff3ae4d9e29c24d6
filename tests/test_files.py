"""Files as values, without a pilot: real files, real races, real damage."""

from __future__ import annotations

import copy
import errno
import json
import os
import pickle
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pilot import File, content, records, values
from pilot.context import repository
from pilot.errors import (
    EncodingError,
    InvalidInput,
    ObjectCorrupt,
    ObjectDropped,
    ObjectMissing,
)  # fmt: skip
from pilot.model import INLINE_VALUE_BYTES
from pilot.store import care, files
from pilot.store.objects import Objects
from pilot.values import decode, digest, encode


@pytest.fixture
def objects(tmp_path: Path) -> Iterator[Objects]:
    """Make a repository into which files are kept; afterwards no temporary file is left."""
    made = Objects(tmp_path / "objects")
    before = repository.set(made)
    yield made
    repository.reset(before)
    assert not list((tmp_path / "objects").glob("tmp/*"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a directory with all that may be in a tree."""
    made = tmp_path / "pseudo"
    (made / "sub" / "deep").mkdir(parents=True)
    (made / "empty").mkdir()
    (made / "Al.upf").write_text("aluminium")
    (made / "sub" / "Cu.upf").write_text("copper")
    (made / "sub" / "deep" / "same.upf").write_text("copper")
    (made / "sub.txt").write_text("")
    (made / "run.sh").write_text("#!/bin/sh\n")
    (made / "run.sh").chmod(0o755)
    return made


def there_and_back(value: Any) -> Any:
    """Return what another process gets of a value."""
    return decode(encode(value).data)


def kept(objects: Objects) -> set[str]:
    """Return the hashes of all objects."""
    return {one.hash for one in care.kept(objects)}


# -- as values ------------------------------------------------------------------------------------


def test_a_file_is_a_value(objects: Objects, tmp_path: Path) -> None:
    path = tmp_path / "scf.in"
    path.write_text("&control\n")
    sent = File(path)
    got = there_and_back(sent)
    assert (got.name, got.size, got.hash) == ("scf.in", 9, digest(b"&control\n"))
    assert got == sent
    assert got.keep is True
    path.unlink()
    assert got.read_text() == "&control\n"
    assert got.read_bytes() == b"&control\n"
    with got.open("r") as file:
        assert file.readline() == "&control\n"
    assert Path(got).read_bytes() == b"&control\n"
    assert stat.S_IMODE(os.stat(got.path).st_mode) == 0o400
    assert (repr(sent), repr(got)) == (f"File('{path}')", f"<file 'scf.in', 9 bytes, {got.hash[:10]}>")
    with pytest.raises(InvalidInput, match="read only"):
        got.open("w")


def test_its_encoding_is_readable_and_says_nothing_of_where_it_lay(objects: Objects, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    one, two = tmp_path / "a.dat", tmp_path / "elsewhere" / "a.dat"
    one.write_bytes(b"x")
    two.write_bytes(b"x")
    first, second = encode(File(one)), encode(File(two))
    assert first.data == second.data
    assert values.native(first.data) == {"~": ["file", {"hash": digest(b"x"), "name": "a.dat", "size": 1}]}
    assert encode(File(one, keep="in place")).hash == encode(File(two, keep="in place")).hash
    two.chmod(0o755)
    assert encode(File(two)).hash != first.hash  # a program is another thing
    assert kept(objects) == {digest(b"x")}


@pytest.mark.parametrize("wrap", [list, tuple, lambda items: {"x": {"y": list(items)}}, set, frozenset])
def test_files_stand_anywhere_in_values(objects: Objects, tmp_path: Path, wrap: Any) -> None:
    paths = [tmp_path / f"{n}.dat" for n in range(3)]
    for path in paths:
        path.write_text(path.name)
    value = wrap([File(path) for path in paths])
    encoded = encode(value)
    assert {form["hash"] for form in values.files_in(encoded.data)} == {digest(p.name.encode()) for p in paths}
    assert values.names_files(encoded)
    got = decode(encoded.data)
    assert got == value
    assert type(got) is type(value)


def test_a_file_goes_into_another_repository(objects: Objects, tmp_path: Path) -> None:
    path = tmp_path / "a.dat"
    path.write_text("x")
    got = there_and_back(File(path))
    other = Objects(tmp_path / "other")
    token = repository.set(other)
    again = there_and_back(got)
    repository.reset(token)
    assert kept(other) == kept(objects)
    assert again.path.startswith(other.root)
    assert there_and_back([got]) == [got]


def test_without_a_project_a_file_is_only_a_path(tmp_path: Path) -> None:
    (tmp_path / "a.dat").write_text("x")
    made = File(tmp_path / "a.dat", keep="in place")
    back = pickle.loads(pickle.dumps(made))
    assert (back.path, back.keep) == (made.path, "in place")
    assert copy.deepcopy(made) is copy.copy(made) is made
    with pytest.raises(EncodingError, match="no project is open"):
        encode(made)
    with pytest.raises(InvalidInput, match="neither True nor"):
        File("x", keep=False)  # type: ignore[arg-type]


def test_what_is_a_form_to_the_eye_only_is_no_file() -> None:
    text = json.dumps({"~": ["file", {"hash": "0" * 64}]}, separators=(",", ":"))
    for value in (text, {"a": text}, [1, "~"], b'j{"~":["file",'):
        assert values.files_in(encode(value).data) == []


# -- what cannot be a value -------------------------------------------------------------------------


def test_what_cannot_be_read_is_named(objects: Objects, tmp_path: Path) -> None:
    pipe, door = tmp_path / "pipe", tmp_path / "door"
    os.mkfifo(pipe)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(door))
        for path, why in ((tmp_path / "gone", "No such file"), (pipe, "is a pipe"), (door, "No such device")):
            with pytest.raises(EncodingError, match=why) as caught:
                encode(File(path))
            assert repr(str(path)) in str(caught.value)
    assert kept(objects) == set()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become somebody else")
def test_an_unreadable_file(objects: Objects, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("x")
    path.chmod(0)
    code = f"import os\nfrom pilot import content\nos.setuid(65534)\ncontent.of_file({str(path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"cannot read the file '{path}': Permission denied" in done.stderr


def test_a_file_that_changes_while_it_is_hashed(
    objects: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "growing.dat"
    path.write_bytes(b"x" * 100)
    read = content.read

    def slow(descriptor: int, *args: Any) -> str:
        found = read(descriptor, *args)
        with path.open("ab") as file:
            file.write(b"y")
        return found

    monkeypatch.setattr(content, "read", slow)
    for keep in (True, "in place"):
        with pytest.raises(EncodingError, match=r"growing.dat' changed while it was hashed; let its writer finish"):
            encode(File(path, keep))  # type: ignore[arg-type]
    assert kept(objects) == set()


def test_a_file_that_changes_between_hash_and_copy(
    objects: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "changing.dat"
    path.write_bytes(b"x" * 100)
    write = objects.write

    def late(hash: str, make: Any) -> None:
        path.write_bytes(b"y" * 100)
        write(hash, make)

    monkeypatch.setattr(objects.files._objects, "write", late)
    with pytest.raises(EncodingError, match="changed while it was hashed"):
        encode(File(path))
    assert kept(objects) == set()


@pytest.mark.parametrize("other", [lambda path: path.symlink_to("/etc/passwd"), os.mkfifo])
def test_a_tree_holds_files_and_directories_only(objects: Objects, folder: Path, other: Any) -> None:
    other(folder / "sub" / "odd")
    with pytest.raises(EncodingError, match=r"pseudo/sub/odd' is a (symbolic link|pipe); a directory that is a value"):
        encode(File(folder))


def test_names_that_are_no_text(objects: Objects, folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder / "name") + b"\xff")).write_text("x")
    with pytest.raises(EncodingError, match="is not UTF-8"):
        encode(File(folder))


# -- keeping --------------------------------------------------------------------------------------


def test_the_same_content_is_kept_once(objects: Objects, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"content")
        os.utime(tmp_path / name, (1, 1))
        encode(File(tmp_path / name))
    (hash,) = kept(objects)
    inode = os.stat(objects.path(hash)).st_ino
    os.utime(objects.path(hash), (1, 1))
    encode(File(tmp_path / "a"))
    status = os.stat(objects.path(hash))
    assert status.st_ino == inode
    assert status.st_mtime > time.time() - 60  # collection spares it
    os.utime(objects.path(hash), (1, 1))
    encode(there_and_back(File(tmp_path / "a")))
    assert os.stat(objects.path(hash)).st_mtime > time.time() - 60


def test_a_users_file_is_never_linked(objects: Objects, tmp_path: Path) -> None:
    path = tmp_path / "a.dat"
    path.write_bytes(b"before")
    got = there_and_back(File(path))
    with path.open("r+b") as file:
        file.write(b"edited")
    assert got.read_bytes() == b"before"


def owned(path: Path) -> File:
    """Return a file as a command has it that is about to remove its directory."""
    made = File(path)
    made.owned = True
    return made


def test_a_file_of_ours_is_linked(objects: Objects, tmp_path: Path) -> None:
    path = tmp_path / "rho.hdf5"
    path.write_bytes(b"x" * 1000)
    os.utime(path, (1, 1))
    got = there_and_back(owned(path))
    status = os.stat(got.path)
    assert status.st_ino == path.stat().st_ino
    assert stat.S_IMODE(status.st_mode) == 0o400
    assert status.st_mtime > time.time() - 60


def test_a_link_to_somebodys_file_is_copied(objects: Objects, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.dat"
    theirs.write_bytes(b"theirs")
    os.link(theirs, tmp_path / "hard")
    (tmp_path / "soft").symlink_to(theirs)
    for name in ("hard", "soft"):
        got = there_and_back(owned(tmp_path / name))
        assert os.stat(got.path).st_ino != theirs.stat().st_ino
    assert stat.S_IMODE(theirs.stat().st_mode) == 0o644


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_where_links_cannot_be_made_files_are_copied(
    objects: Objects, folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    got = there_and_back(owned(folder))
    assert (Path(got) / "Al.upf").read_text() == "aluminium"


def test_clones_are_asked_for(objects: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.dat"
    path.write_bytes(b"x" * 1000)
    asked = []

    def clone(target: int, request: int, source: int) -> None:
        asked.append(request)
        os.copy_file_range(source, target, 1000)

    monkeypatch.setattr(files.fcntl, "ioctl", clone)
    assert there_and_back(File(path)).read_bytes() == b"x" * 1000
    assert asked == [0x40049409]


FULL = """
import resource, sys
from pathlib import Path
from pilot import File
from pilot.context import repository
from pilot.errors import ObjectStoreFull
from pilot.store.objects import Objects
from pilot.values import encode
objects = Objects(sys.argv[1])
repository.set(objects)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    encode(File(sys.argv[2]))
except ObjectStoreFull as exc:
    print(exc)
"""


def test_no_room(objects: Objects, tmp_path: Path) -> None:
    path = tmp_path / "big"
    path.write_bytes(b"x" * 200_000)
    done = subprocess.run(
        [sys.executable, "-c", FULL, objects.root, str(path)], capture_output=True, text=True, check=True
    )
    assert "File too large; make room under" in done.stdout
    assert kept(objects) == set()


LARGE = """
import resource, sys
from pilot import File
from pilot.context import repository
from pilot.store.objects import Objects
from pilot.values import decode, encode
repository.set(Objects(sys.argv[1]))
import pilot.store.files
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
resource.setrlimit(resource.RLIMIT_DATA, (100 << 20, 100 << 20))
got = decode(encode(File(sys.argv[2])).data)
got.path
got.copy_to(sys.argv[3])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_a_large_file_is_never_in_memory(objects: Objects, tmp_path: Path) -> None:
    large, copied = tmp_path / "large", tmp_path / "copy"
    with large.open("wb") as file:
        file.truncate(256 << 20)
    argv = [sys.executable, "-c", LARGE, objects.root, str(large), str(copied)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 20  # MiB
    assert copied.stat().st_size == 256 << 20


WRITER = """
import sys
from pathlib import Path
from pilot import File
from pilot.context import repository
from pilot.store.objects import Objects
from pilot.values import decode, encode
repository.set(Objects(sys.argv[1]))
sys.stdin.readline()
for n in range(40):
    path = Path(sys.argv[2], f"{n}.dat")
    path.write_bytes(bytes([n]) * 50_000)
    made = File(path)
    made.owned = n % 2 == 0
    got = decode(encode(made).data)
    assert got.read_bytes() == bytes([n]) * 50_000
    path.unlink()
tree = decode(encode(File(sys.argv[3])).data)
assert sorted(p.name for p in Path(tree).iterdir()) == ["Al.upf", "empty", "run.sh", "sub", "sub.txt"]
"""


def test_racing_writers_agree(objects: Objects, folder: Path, tmp_path: Path) -> None:
    for n in range(4):
        (tmp_path / str(n)).mkdir()
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, objects.root, str(tmp_path / str(n)), str(folder)],
            stdin=subprocess.PIPE, text=True,
        )
        for n in range(4)
    ]  # fmt: skip
    try:
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write("go\n")
            writer.stdin.close()
        assert [writer.wait(60) for writer in writers] == [0] * len(writers)
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    assert all(care.verify_object(objects, hash) is None for hash in kept(objects))
    assert len(kept(objects)) == 40 + 4 + 1  # contents of the tree, its manifest


# -- trees ----------------------------------------------------------------------------------------


def test_a_tree(objects: Objects, folder: Path, tmp_path: Path) -> None:
    got = there_and_back(File(folder))
    assert (got.name, got.is_tree, got.size) == ("pseudo", True, 9 + 6 + 6 + 0 + 10)
    manifest = json.loads(bytes(objects.get(got.hash)))
    assert [row[0] for row in manifest] == [
        "Al.upf", "empty/", "run.sh", "sub.txt", "sub/Cu.upf", "sub/deep/same.upf",
    ]  # fmt: skip
    assert manifest[1] == ["empty/"]
    assert manifest[2] == ["run.sh", digest(b"#!/bin/sh\n"), 10, True]
    assert content.manifest(got.path)[0] == content.manifest(str(folder))[0] == got.content
    assert os.access(f"{got.path}/run.sh", os.X_OK)
    copied = Path(got.copy_to(tmp_path / "copy"))
    (copied / "Al.upf").write_text("edited")
    assert (Path(got) / "Al.upf").read_text() == "aluminium"
    assert there_and_back(got) == got


@pytest.mark.parametrize("harm", ["added", "edited", "removed"])
def test_a_tree_that_somebody_harmed_is_made_anew(objects: Objects, folder: Path, harm: str) -> None:
    got = there_and_back(File(folder))
    path = Path(got.path)
    if harm == "added":
        (path / "more").write_text("x")
    else:
        (path / "Al.upf").unlink()
    if harm == "edited":
        (path / "Al.upf").write_text("x")
    assert content.manifest(got.path)[0] == got.content


def test_a_manifest_cannot_lead_out(objects: Objects) -> None:
    for name in ("../x", "/etc/x", "a/../../x", "a//b", ".", ""):
        with pytest.raises(ObjectCorrupt, match="manifest"):
            content.rows(json.dumps([[name, "0" * 64, 1]]).encode())
    for data in (b"", b"{}x", b"[1]", b"\xff"):
        with pytest.raises(ObjectCorrupt, match="manifest"):
            content.rows(data)


# -- damage ---------------------------------------------------------------------------------------


def test_damaged_files_are_never_served(objects: Objects, folder: Path, tmp_path: Path) -> None:
    got = there_and_back({"file": File(folder / "Al.upf"), "tree": File(folder)})
    assert got["file"].read_text() == "aluminium"
    path = Path(objects.path(got["file"].hash))
    path.chmod(0o600)
    path.write_text("aluminiun")
    for use in (got["file"].read_bytes, got["file"].open, lambda: got["file"].copy_to(tmp_path / "copy")):
        with pytest.raises(ObjectCorrupt, match=r"the file 'Al.upf': the object '.*' does not have the hash"):
            use()
    with pytest.raises(ObjectCorrupt, match=r"'Al.upf' of the tree 'pseudo'"):
        got["tree"].copy_to(tmp_path / "copies")
    with pytest.raises(ObjectCorrupt, match=r"'Al.upf' of the tree 'pseudo'"):
        _ = got["tree"].path
    damage = care.verify(objects, records.Named(got["file"].hash, "file"))
    assert damage is not None
    assert "has other bytes" in damage.why
    path.unlink()
    with pytest.raises(ObjectMissing, match=r"the file 'Al.upf': the object repository has no file .*objects verify"):
        _ = got["file"].path


def test_dropped_bytes_are_told_from_lost_ones(objects: Objects, folder: Path) -> None:
    got = there_and_back({"file": File(folder / "Al.upf"), "tree": File(folder), "data": b"x" * INLINE_VALUE_BYTES})
    assert Path(got["tree"]).is_dir()
    big = encode(b"x" * 100_000)
    objects.put(big)
    care.drop(objects, {got["file"].hash, big.hash}, "me, yesterday")
    with pytest.raises(ObjectDropped, match=r"'Al.upf': the bytes .* were dropped by me, yesterday; only its hash"):
        got["file"].read_bytes()
    with pytest.raises(ObjectDropped, match="dropped by me"):
        objects.get(big.hash)
    with pytest.raises(ObjectDropped, match=r"'Al.upf' of the tree"):
        _ = got["tree"].path
    assert care.verify(objects, records.Named(big.hash, "value")) is None
    assert care.figures(objects).dropped == 2
    encode(File(folder / "Al.upf"))
    assert got["file"].read_text() == "aluminium"
    assert care.figures(objects).dropped == 1


# -- in place -------------------------------------------------------------------------------------


def test_a_file_in_place_is_hashed_and_found_there(objects: Objects, tmp_path: Path) -> None:
    path = tmp_path / "huge.dat"
    path.write_text("huge")
    got = there_and_back(File(path, keep="in place"))
    assert (got.path, got.read_text(), got.keep) == (str(path), "huge", "in place")
    assert kept(objects) == set()
    assert care.figures(objects).places == 1
    place = records.Named(got.hash, "file", place=True)
    assert care.verify(objects, place) is None
    path.write_text("edit")
    with pytest.raises(ObjectCorrupt, match=rf"'huge.dat' was left in place .* '{path}' has been changed"):
        got.read_bytes()
    found = care.verify(objects, place)
    assert found is not None
    assert str(path) in found.why
    path.unlink()
    with pytest.raises(ObjectMissing, match="No such file"):
        _ = got.path
    other = tmp_path / "moved.dat"
    other.write_text("huge")
    encode(File(other, keep="in place"))
    assert got.path == str(other)  # the same content, wherever it lies


def test_a_tree_in_place(objects: Objects, folder: Path, tmp_path: Path) -> None:
    got = there_and_back(File(folder, keep="in place"))
    assert (got.path, got.is_tree) == (str(folder), True)
    assert kept(objects) == {got.hash}  # only its manifest
    got.copy_to(tmp_path / "copy")
    assert content.manifest(str(tmp_path / "copy"))[0] == got.content
    (folder / "sub" / "Cu.upf").write_text("Copper")
    with pytest.raises(ObjectCorrupt, match="has been changed"):
        _ = got.path


def test_a_file_whose_place_nobody_knows(objects: Objects, tmp_path: Path) -> None:
    got = File.read({"name": "x", "hash": "0" * 64, "size": 1, "keep": "in place"})
    with pytest.raises(ObjectMissing, match="nobody here knows where it lies"):
        _ = got.path


# -- what records name ------------------------------------------------------------------------------


def entry(objects: Objects, value: Any) -> dict[str, Any]:
    """Return an output of a record."""
    return {"name": "result", **records._value_fields(records.blob_of(encode(value), objects.put))}


def test_records_name_files(objects: Objects, folder: Path) -> None:
    in_place, tree_in_place = File(folder / "Al.upf", keep="in place"), File(folder / "sub", keep="in place")
    kept_file, tree = File(folder / "sub.txt"), File(folder)
    tree_hashes = {row.hash for row in content.rows(content.manifest(str(folder))[1]) if row.hash}

    def names(value: Any) -> set[str]:
        return set(records.objects_named({"inputs": [], "outputs": [entry(objects, value)]}, objects.get))

    assert names(in_place) == set()
    assert names([kept_file, 1]) == {kept_file.hash}
    assert names({kept_file}) == {kept_file.hash}  # in a pickle
    assert names(tree) == {tree.hash, *tree_hashes}
    assert names(tree_in_place) == {tree_in_place.hash}
    large = {"file": kept_file, "text": "x" * INLINE_VALUE_BYTES}
    assert names(large) == {encode(large).hash, kept_file.hash}
    assert entry(objects, large)["files"] is True
    assert "files" not in entry(objects, "x" * INLINE_VALUE_BYTES)
    record = {"inputs": [], "outputs": [entry(objects, [in_place, tree_in_place])]}
    places = {named for named in records.contents_named(record, objects.get) if named.place}
    assert places == {
        records.Named(in_place.hash, "file", True), records.Named(tree_in_place.hash, "tree", True),
    }  # fmt: skip


# -- collection -----------------------------------------------------------------------------------


def old(objects: Objects, data: bytes) -> str:
    """Store an object that was touched last in 1970."""
    hash = objects.put(encode(data))
    os.utime(objects.path(hash), (1, 1))
    return hash


def test_collection_goes_through_the_trash(objects: Objects) -> None:
    named, unnamed, touched, late = (old(objects, bytes([n]) * 10) for n in range(4))
    new = objects.put(encode(b"new"))
    now = time.time()
    found = list(care.unnamed(objects, {named}, now - 3600))
    assert {one.hash for one in found} == {unnamed, touched, late}
    objects.put(encode(bytes([2]) * 10))  # somebody wrote it again after it had been found
    assert {one.hash for one in care.throw_away(objects, found, now - 3600, now)} == {unnamed, late}
    assert kept(objects) == {named, touched, new}
    assert (care.figures(objects).trash_objects, care.figures(objects).trash_bytes) == (2, 22)
    # A record that names one of them was written meanwhile.
    assert care.empty_trash(objects, {named, late}, now - care.TRASH_S).objects == 0
    assert kept(objects) == {named, touched, new, late}
    assert care.empty_trash(objects, {named}, now + 1).objects == 1
    assert care.figures(objects).trash_objects == 0
    objects.get(late)
    with pytest.raises(InvalidInput, match="less than 3600 s cannot be collected"):
        care.check_age(60)


def test_collectors_and_writers(objects: Objects) -> None:
    """What a writer was told is stored can be read, however many collectors are at work."""
    encoded = encode(b"x" * 1000)
    stop = threading.Event()
    problems: list[str] = []

    def collect() -> None:
        while not stop.is_set():
            with_old = [one._replace(touched=0.0) for one in care.kept(objects)]
            care.throw_away(objects, with_old, time.time() - 3600, time.time())

    def write() -> None:
        for _ in range(100):
            objects.put(encoded)
            try:
                objects.get(encoded.hash)
            except ObjectMissing:
                time.sleep(0.001)  # a collector looks at it, and puts it back
        stop.set()

    threads = [threading.Thread(target=collect), threading.Thread(target=collect), threading.Thread(target=write)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    objects.get(encoded.hash)


def test_tidying(objects: Objects, folder: Path, tmp_path: Path) -> None:
    tree, place = there_and_back(File(folder)), there_and_back(File(folder / "Al.upf", keep="in place"))
    assert Path(tree).is_dir()
    draft = tmp_path / "objects" / "tmp" / "left"
    draft.write_text("x")
    os.utime(draft, (1, 1))
    for note in (tmp_path / "objects" / "places").glob("*/*"):
        os.utime(note, (1, 1))
    care.tidy(objects, {tree.hash, place.hash}, time.time() - 3600)
    assert (len(list((tmp_path / "objects" / "trees").iterdir())), care.figures(objects).places) == (1, 1)
    assert not draft.exists()
    care.tidy(objects, set(), time.time() - 3600)
    assert (len(list((tmp_path / "objects" / "trees").iterdir())), care.figures(objects).places) == (0, 0)
