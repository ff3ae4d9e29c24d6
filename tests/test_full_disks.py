"""No room left: for objects, for the spool, for the database."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

import pilot
from pilot import client
from pilot.errors import ObjectStoreFull, StoreError, TaskFailed
from tests import pilot_tasks
from tests.conftest import need
from tests.rig import LONG_S, Rig, ids, wait_until

pytestmark = pytest.mark.timeout(300)

good = pilot.task(pilot_tasks.double)


# -- full disks -----------------------------------------------------------------------------------


@pytest.fixture
def own_rig(tmp_path: Path) -> Iterator[Rig]:
    """Make a project of its own, for a test that breaks it."""
    need("mongod")
    need("mpiexec")
    with Rig(tmp_path / "p") as made:
        yield made


class Disk:
    """A file system of few bytes, mounted where a directory is."""

    def __init__(self, path: Path, megabytes: int) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._size = megabytes

    def __enter__(self) -> Disk:
        argv = ["mount", "-t", "tmpfs", "-o", f"size={self._size}m", "tmpfs", str(self._path)]
        ran = subprocess.run(argv, capture_output=True, text=True, check=False)
        if ran.returncode:
            pytest.skip(f"cannot mount a small file system: {ran.stderr.strip()}")
        return self

    def fill(self) -> None:
        """Leave no room."""
        with (self._path / "filler").open("wb", 0) as file:
            try:
                while file.write(bytes(1 << 16)):
                    pass
            except OSError:
                pass

    def empty(self) -> None:
        """Make room again."""
        (self._path / "filler").unlink()

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "-l", str(self._path)], check=True)


def test_no_room_for_objects(own_rig: Rig) -> None:
    with Disk(own_rig.config.objects_folder, 4) as disk:
        own_rig.start()
        with own_rig.open() as project:
            assert good.submit(1).result(LONG_S) == 2
            disk.fill()
            with pytest.raises(ObjectStoreFull, match=r"full|space|room"):
                good.submit("x" * (8 << 20))
            result = pilot.task(pilot_tasks.large).submit(2)
            with pytest.raises(TaskFailed, match="ObjectStoreFull"):
                result.result(LONG_S)
            assert [future.result(LONG_S) for future in good.map(range(20))] == list(range(0, 40, 2))
            disk.empty()
            (again,) = project.retry(result.id)
            assert len(again.result(LONG_S)) == 2 << 20
        own_rig.settled()
        own_rig.check()
        own_rig.drain()
        own_rig.check_clean()


def test_no_room_for_the_spool(own_rig: Rig) -> None:
    """Results that find no room there wait in memory."""
    with Disk(own_rig.config.spool_folder, 1) as disk, own_rig.open():
        one = own_rig.start()
        futures = pilot.task(pilot_tasks.nap).map(range(300), seconds=0.01)
        wait_until(lambda: own_rig.counts().get("done"), LONG_S, "some are done", own_rig.logs)
        disk.fill()
        own_rig.server.stop()
        wait_until(lambda: "cannot spool" in one.words(), LONG_S, "the spool is full", own_rig.logs)
        own_rig.server.start()
        assert [future.result(LONG_S) for future in futures] == list(range(300))
        own_rig.settled()
        own_rig.check(ids(futures))
        assert own_rig.store.provenance.count_documents({}) == 300, "some ran twice"
        own_rig.drain()
        disk.empty()
        own_rig.check_clean()


def test_no_room_for_the_database(own_rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its server dies of it. The client is told, the pilot spools, and with room again nothing is lost."""
    monkeypatch.setattr(client, "store_of", partial(client.store_of, timeout_s=3.0))  # it is told after 20 s else
    own_rig.server.stop()
    store = own_rig.config.store_folder
    saved = store.with_name("saved")
    store.rename(saved)
    with Disk(store, 300) as disk:
        subprocess.run(["cp", "-a", f"{saved}/.", str(store)], check=True)
        own_rig.server.start()
        one = own_rig.start()
        with own_rig.open():
            futures = pilot.task(pilot_tasks.nap).map(range(1000), seconds=0.01)
            wait_until(lambda: own_rig.counts().get("done"), LONG_S, "some are done", own_rig.logs)
            disk.fill()
            with pytest.raises(StoreError) as caught:
                good.map(["x" * 10_000] * 1_000_000)
            print(f"the client was told: {caught.value}")
            wait_until(own_rig.spooled, LONG_S, "results are spooled", one.log)
            disk.empty()
            own_rig.server.start()
            assert [future.result(LONG_S) for future in futures] == list(range(1000))
        own_rig.settled(4 * LONG_S)
        own_rig.check(ids(futures))
        assert one.process.poll() is None
        own_rig.drain()
        own_rig.check_clean()
        own_rig.close()
