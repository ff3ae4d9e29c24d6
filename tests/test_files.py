"""Files as values, without a pilot: what they are, and what becomes of them when somebody harms them."""

from __future__ import annotations

import copy
import json
import os
import pickle
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pilot import File, content, mentions, values
from pilot.context import here
from pilot.errors import (
    EncodingError,
    InvalidInput,
    ObjectCorrupt,
    ObjectMissing,
)  # fmt: skip
from pilot.store import care
from pilot.store.objects import Objects
from pilot.values import decode, digest, encode
from tests.file_rig import keeping, kept, make_tree, there_and_back


@pytest.fixture
def objects(tmp_path: Path) -> Iterator[Objects]:
    with keeping(tmp_path / "objects") as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "pseudo")


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
    here.repository = other
    again = there_and_back(got)
    here.repository = objects
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
    in_pickles = ({'{"~":["file",'}, {'{"~":["file",5]}'}, {'{"~":["file",{"name":1}]}'}, {text})
    for value in (text, {"a": text}, [1, "~"], b'j{"~":["file",', *in_pickles):
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
    for name in ("../tests", "/etc/x", "a/../../tests", "a//b", ".", ""):
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
    damage = care.verify(objects, mentions.Named(got["file"].hash, "file"))
    assert damage is not None
    assert "the file is damaged" in damage.why
    path.unlink()
    with pytest.raises(ObjectMissing, match=r"the file 'Al.upf': the object repository has no file .*objects verify"):
        _ = got["file"].path


# -- in place -------------------------------------------------------------------------------------


def test_a_file_in_place_is_hashed_and_found_there(objects: Objects, tmp_path: Path) -> None:
    path = tmp_path / "huge.dat"
    path.write_text("huge")
    got = there_and_back(File(path, keep="in place"))
    assert (got.path, got.read_text(), got.keep) == (str(path), "huge", "in place")
    assert kept(objects) == set()
    assert care.figures(objects).places == 1
    place = mentions.Named(got.hash, "file", place=True)
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
