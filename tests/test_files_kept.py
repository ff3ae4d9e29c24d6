"""How files get into the object repository: linked, cloned or copied, once, by many at a time, never through memory."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pilot import File
from pilot.store import care, files
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
from pilot.context import here
from pilot.errors import ObjectStoreFull
from pilot.store.objects import Objects
from pilot.values import encode
objects = Objects(sys.argv[1])
here.repository = objects
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
from pilot.context import here
from pilot.store.objects import Objects
from pilot.values import decode, encode
here.repository = Objects(sys.argv[1])
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
from pilot.context import here
from pilot.store.objects import Objects
from pilot.values import decode, encode
here.repository = Objects(sys.argv[1])
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
