"""The object repository: real files, real races, real full disks."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pilot.errors import EncodingError, InvalidInput, ObjectCorrupt, ObjectMissing, ObjectStoreFull
from pilot.store import objects as module
from pilot.store.objects import Objects
from pilot.values import Encoded, decode, encode

SOMEBODY = "0" * 64


@pytest.fixture
def objects(tmp_path: Path) -> Iterator[Objects]:
    """Make a repository; afterwards no temporary file is left and every object has its hash."""
    made = Objects(tmp_path / "objects")
    yield made
    files = [path for path in Path(made.root).rglob("*") if path.is_file()]
    for path in files:
        assert path.parent.name != "tmp"
        if not path.name.endswith("damaged"):
            made.get(path.parent.name + path.name)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary())
def test_what_is_put_is_got(objects: Objects, data: bytes) -> None:
    encoded = encode(data)
    name = objects.put(encoded)
    assert name == encoded.hash
    assert objects.get(name) == encoded.data
    assert objects.exists(name)
    assert objects.size(name) == encoded.size
    assert decode(objects.get(name)) == data


def test_nothing_is_made_before_the_first_object(objects: Objects) -> None:
    assert not objects.exists(SOMEBODY)
    assert not Path(objects.root).exists()


def test_only_the_owner_reads(objects: Objects) -> None:
    before = os.umask(0)
    try:
        path = Path(objects.path(objects.put(encode(b"secret"))))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o400
    for directory in (path.parent, Path(objects.root), Path(objects.root) / "tmp"):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_large_objects_are_mapped(objects: Objects) -> None:
    array = np.arange(1 << 18, dtype=float)
    name = objects.put(encode(array))
    data = objects.get(name)
    assert isinstance(data, memoryview)
    assert data.readonly
    back = decode(data)
    back += 1  # the user's own copy
    assert np.array_equal(decode(objects.get(name)), array)


def test_parts_are_written_in_pieces(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PIECE", 7)
    for parts in ((b"b", b"0123456789" * 5), (b"b", memoryview(bytearray(b"0123456789" * 5)))):
        name = objects.put(Encoded.of(parts))
        assert objects.get(name) == b"b" + b"0123456789" * 5
        Path(objects.path(name)).unlink()


@pytest.mark.parametrize("hash", ["", "ab", "../" * 20 + "etc/passwd", "A" * 64, "0" * 63 + "\n", "0" * 65, "0/" * 32])
def test_only_hashes_become_paths(objects: Objects, hash: str) -> None:
    for use in (objects.path, objects.get, objects.exists, objects.size):
        with pytest.raises(InvalidInput, match="is not the hash of an object"):
            use(hash)


def test_a_missing_object(objects: Objects) -> None:
    for use in (objects.get, objects.size):
        with pytest.raises(ObjectMissing, match=f"no file '.*{SOMEBODY[2:]}'"):
            use(SOMEBODY)


# -- deduplication --------------------------------------------------------------------------------


def test_an_object_is_written_once_and_touched_again(objects: Objects) -> None:
    path = Path(objects.path(objects.put(encode(b"x"))))
    os.utime(path, (1, 1))
    inode = path.stat().st_ino
    objects.put(encode(b"x"))
    assert path.stat().st_ino == inode
    assert path.stat().st_mtime > time.time() - 60


def test_an_object_that_was_cut_short_is_written_again(objects: Objects) -> None:
    encoded = encode(b"x" * 100)
    path = Path(objects.path(objects.put(encoded)))
    path.chmod(0o600)
    os.truncate(path, 10)
    with pytest.raises(ObjectCorrupt):
        objects.get(encoded.hash)
    objects.put(encoded)
    assert objects.get(encoded.hash) == encoded.data


# -- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [100, 3 << 20])
@pytest.mark.parametrize("how", ["flip", "truncate", "extend", "empty"])
def test_damaged_bytes_are_never_served(objects: Objects, size: int, how: str) -> None:
    name = objects.put(encode(b"x" * size))
    path = Path(objects.path(name))
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    changed = {"truncate": data[:-1], "extend": data + b"x", "empty": b""}.get(how)
    if changed is None:
        data[size // 2] ^= 1
        changed = data
    path.write_bytes(changed)
    with pytest.raises(ObjectCorrupt, match=f"'{path}' does not have the hash"):
        objects.get(name)
    assert bytes(objects.get(name, verify=False)) == bytes(changed)
    path.unlink()


def test_a_value_that_changes_while_it_is_stored_is_refused(objects: Objects) -> None:
    array = np.zeros(1 << 16)
    encoded = encode(array)
    array[5] = 1
    with pytest.raises(EncodingError, match="changed while it was stored"):
        objects.put(encoded)
    assert not objects.exists(encoded.hash)


# -- full -----------------------------------------------------------------------------------------


FULL = """
import resource, sys
from pathlib import Path
from pilot.errors import ObjectStoreFull
from pilot.store.objects import Objects
from pilot.values import encode
objects = Objects(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
small, large = encode(b"x" * 1000), encode(b"y" * 200_000)
objects.put(small)
try:
    objects.put(large)
except ObjectStoreFull as exc:
    print(exc)
else:
    sys.exit("stored")
assert objects.get(small.hash) == small.data and not objects.exists(large.hash)
"""


def test_a_limit_on_file_size_is_a_full_store(objects: Objects) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, objects.root], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "File too large; make room under" in done.stdout


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 1 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root; the limit on file size is tested in its place")
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("this root may not mount file systems (a container)")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_leaves_nothing_behind(small_disk: Path) -> None:
    objects = Objects(small_disk / "objects")
    kept = [objects.put(encode(bytes([n]) * 100_000)) for n in range(8)]
    with pytest.raises(ObjectStoreFull, match="No space left on device; make room under"):
        objects.put(encode(bytes(400_000)))
    assert list((Path(objects.root) / "tmp").iterdir()) == []
    for name in kept:
        objects.get(name)
    Path(objects.path(kept[0])).unlink()
    assert objects.put(encode(b"z" * 50_000))  # room was made


# -- races ----------------------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
from pilot.store.objects import Objects
from pilot.values import encode
objects = Objects(Path(sys.argv[1]))
sys.stdin.readline()
for n in range(60):
    name = objects.put(encode(bytes([n]) * 50_000))
    objects.get(name)
"""


def test_racing_writers_agree(objects: Objects) -> None:
    argv = [sys.executable, "-c", WRITER, objects.root]
    writers = [subprocess.Popen(argv, stdin=subprocess.PIPE, text=True) for _ in range(5)]
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
    for n in range(60):
        assert decode(objects.get(encode(bytes([n]) * 50_000).hash)) == bytes([n]) * 50_000


def test_writers_and_a_collector(objects: Objects) -> None:
    """What `put` says is stored is there, unless it was removed after `put` had touched it."""
    encoded = encode(b"x" * 1000)
    path = Path(objects.path(encoded.hash))
    stop = threading.Event()
    problems: list[str] = []

    def collect() -> None:
        while not stop.is_set():
            path.unlink(missing_ok=True)

    def write() -> None:
        try:
            for _ in range(200):
                objects.put(encoded)
        except OSError as exc:
            problems.append(repr(exc))

    threads = [threading.Thread(target=collect), threading.Thread(target=write), threading.Thread(target=write)]
    for thread in threads:
        thread.start()
    for thread in threads[1:]:
        thread.join()
    stop.set()
    threads[0].join()
    assert problems == []
    objects.put(encoded)
    assert objects.get(encoded.hash) == encoded.data


def test_a_killed_writer_leaves_no_object(objects: Objects) -> None:
    code = f"import sys; sys.stdin = open(0)\n{WRITER}"
    for delay in (0.0, 0.005, 0.01, 0.02):
        writer = subprocess.Popen([sys.executable, "-c", code, objects.root], stdin=subprocess.PIPE, text=True)
        assert writer.stdin is not None
        with writer.stdin:
            writer.stdin.write("go\n")
        while not Path(objects.root).exists() and writer.poll() is None:
            time.sleep(0.001)
        time.sleep(delay)
        writer.kill()
        writer.wait()
    for path in (Path(objects.root) / "tmp").iterdir():
        path.unlink()  # a temporary file may stay; the fixture checks that every object is whole
