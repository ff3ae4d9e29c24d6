"""What records name in the object repository, and what may go."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pilot import File, content, mentions, records
from pilot.errors import (
    InvalidInput,
    ObjectDropped,
    ObjectMissing,
)  # fmt: skip
from pilot.model import INLINE_VALUE_BYTES
from pilot.store import care
from pilot.store.objects import Objects
from pilot.values import encode
from tests.file_rig import keeping, kept, make_tree, there_and_back


@pytest.fixture
def objects(tmp_path: Path) -> Iterator[Objects]:
    with keeping(tmp_path / "objects") as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "pseudo")


# -- what records name ------------------------------------------------------------------------------


def entry(objects: Objects, value: Any) -> dict[str, Any]:
    """Return an output of a record."""
    return {"name": "result", **records._value_fields(records.blob_of(encode(value), objects.put))}


def test_records_name_files(objects: Objects, folder: Path) -> None:
    in_place, tree_in_place = File(folder / "Al.upf", keep="in place"), File(folder / "sub", keep="in place")
    kept_file, tree = File(folder / "sub.txt"), File(folder)
    tree_hashes = {row.hash for row in content.rows(content.manifest(str(folder))[1]) if row.hash}

    def names(value: Any) -> set[str]:
        return set(mentions.objects({"inputs": [], "outputs": [entry(objects, value)]}, objects.get))

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
    places = {named for named in mentions.of_record(record, objects.get) if named.place}
    assert places == {
        mentions.Named(in_place.hash, "file", True), mentions.Named(tree_in_place.hash, "tree", True),
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


# -- giving up bytes ---------------------------------------------------------------------------------


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
    assert care.verify(objects, mentions.Named(big.hash, "value")) is None
    assert care.figures(objects).dropped == 2
    encode(File(folder / "Al.upf"))
    assert got["file"].read_text() == "aluminium"
    assert care.figures(objects).dropped == 1
