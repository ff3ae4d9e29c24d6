"""The embedded server killed at any moment, on other machines, and where it cannot run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from pilot.errors import ServerError, ServerNotFound, StoreError
from pilot.store import mongod
from pilot.store.local import LocalServer
from pilot.store.mongo import Store, translating
from pilot.store.server_record import boot_id
from tests.conftest import SERVICES, need
from tests.server_rig import another, change_record, fake, kill, record, serving, use, wait_for

# -- kills ------------------------------------------------------------------------------------------


def test_a_killed_server_comes_back_with_its_data(server: LocalServer, directory: Path) -> None:
    assert use(server.start()) == 1
    for round_ in range(2, 5):
        os.kill(record(directory)["pid"], signal.SIGKILL)
        wait_for(lambda: mongod.running(directory / "db") is None)  # it may hold its files and port for longer
        assert use(server.start()) == round_
    kill(record(directory)["pid"])
    status = server.status()
    assert not status.running
    assert status.reason.startswith("it ended without being stopped (killed")
    assert server.stop() is False
    assert server.status().reason == "stopped"


@pytest.mark.slow
def test_a_server_that_was_terminated_comes_back_at_its_port(server: LocalServer, directory: Path) -> None:
    server.start()
    before = server.status()
    os.kill(before.pid or 0, signal.SIGTERM)
    while server.runs:  # at once: it has let go of its data, and not of its port
        pass
    server.start()
    assert server.status().port == before.port


def test_a_killed_starter_leaves_nothing_that_does_not_heal(server: LocalServer, directory: Path) -> None:
    moments = random.Random(0)
    count = 0
    for _ in range(12):
        with another("start", directory, stderr=subprocess.DEVNULL) as process:
            time.sleep(moments.uniform(0.1, 1.0))
            process.kill()
        if moments.random() < 0.3 and (process_ := mongod.running(directory / "db")):
            kill(process_.pid)
        status = server.status()
        assert status.running or status.reason
        if moments.random() < 0.5:
            count += 1
            assert use(server.start()) == count
            server.stop()
    count += 1
    assert use(server.start()) == count
    assert serving(directory) == [record(directory)["pid"]]


def test_a_server_left_by_its_killed_starter_is_adopted(server: LocalServer, directory: Path) -> None:
    server.start()
    pid = record(directory)["pid"]
    (directory / "server.json").unlink()
    assert server.status().reason.startswith("it is being started, or was left half started")
    assert use(server.start()) == 1
    assert record(directory)["pid"] == pid
    (directory / "server.json").unlink()
    assert server.stop() is True


def test_a_pid_that_is_somebody_elses_now(server: LocalServer, directory: Path) -> None:
    uri = server.start()
    kill(record(directory)["pid"])
    (directory / "db" / "mongod.lock").write_text(f"{os.getpid()}\n")
    change_record(directory, pid=os.getpid())
    assert not server.status().running
    assert server.stop() is False  # and we live
    change_record(directory, pid=os.getpid())
    assert server.start() == uri
    assert use(uri) == 1


def test_a_copied_project_starts_a_server_of_its_own(server: LocalServer, directory: Path, tmp_path: Path) -> None:
    server.start()
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", directory, copy], check=True)
    assert not LocalServer(copy).status().running


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"pid": 1}', '{"addresses": 3}', '{"addresses": [], "new": 1}'])
def test_a_damaged_record_heals(server: LocalServer, directory: Path, damage: str) -> None:
    uri = server.start()
    (directory / "server.json").write_text(damage)
    assert server.start() == uri
    assert server.status().running


# -- other machines ---------------------------------------------------------------------------------


def test_a_server_of_another_host(server: LocalServer, directory: Path) -> None:
    server.start()
    change_record(directory, host="far", boot="other")
    for call in (server.start, server.uri, server.stop):
        with pytest.raises(ServerError, match=r"runs on host 'far' .*listens only to that host itself.*server\.json"):
            call()
    status = server.status()
    assert (status.running, status.host) == (False, "far")
    assert "runs on host 'far'" in status.reason
    change_record(directory, boot=boot_id())  # the same machine under a new name
    assert server.status().running


def test_a_server_of_another_host_that_we_can_reach(server: LocalServer, directory: Path) -> None:
    other = "127.0.0.2"  # as good as an interface
    uri = LocalServer(directory, addresses=[other]).start()
    assert "@127.0.0.1:" in uri
    change_record(directory, host="far", boot="other")
    assert server.start() == server.uri() == uri.replace("@127.0.0.1:", f"@{other}:")
    assert use(server.uri()) == 1
    assert server.status().running
    kill(record(directory)["pid"])
    with pytest.raises(ServerError, match=r"runs on host 'far' .*does not answer there"):
        server.uri()
    assert not server.status().running


def test_an_address_that_is_not_ours(directory: Path) -> None:
    need("mongod")
    with pytest.raises(ServerError, match=r"port to listen on at 127\.0\.0\.1, 192\.0\.2\.1: .*interfaces"):
        LocalServer(directory, addresses=["192.0.2.1"]).start()


# -- servers that do not run ------------------------------------------------------------------------


def test_no_mongod_anywhere(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PILOT_MONGOD", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ServerNotFound) as caught:
        LocalServer(directory).start()
    for way in ("pip install 'hpc-pilot[mongod]'", "module load", "pilot init --store mongodb://"):
        assert way in str(caught.value)


def test_where_mongod_is_looked_for(tmp_path: Path) -> None:
    program = fake(tmp_path, "exit 0").rename(tmp_path / "mongod")
    assert mongod.find({"PATH": str(tmp_path)}) == program
    assert mongod.find({"PILOT_MONGOD": str(program), "PATH": "/nowhere"}) == program
    for bad in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ServerNotFound, match="cannot use PILOT_MONGOD="):
            mongod.find({"PILOT_MONGOD": str(bad)})


def test_the_wheel_is_found_without_importing_it() -> None:
    code = "import sys; from pilot.store import mongod; print(mongod.find({})); assert 'fiftyone' not in sys.modules"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if "ServerNotFound" in ran.stderr:
        pytest.skip("the wheel is not installed")
    assert ran.stdout.strip().endswith("fiftyone/db/bin/mongod")


@pytest.mark.parametrize(
    ("library", "says"),
    [
        ("libcurl.so.4", r"libcurl\.so\.4 is missing; on Debian and Ubuntu install `apt-get install libcurl4`"),
        ("libcrypto.so.3", r"libcrypto\.so\.3 is missing; .*`apt-get install libssl3`"),
        (
            "libodd.so.7",
            r"libodd\.so\.7 is missing; .*`apt-file search libodd\.so\.7`.*dnf provides '\*/libodd\.so\.7'",
        ),
    ],
)
def test_a_missing_library_is_named_with_its_package(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, says: str
) -> None:
    words = f"$0: error while loading shared libraries: {library}: cannot open shared object file: No such file"
    script = f'echo "{words}" >&2; exit 127'
    monkeypatch.setenv("PILOT_MONGOD", str(fake(tmp_path, script)))
    with pytest.raises(ServerError, match=says):
        LocalServer(directory).start()


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (
            'echo "$0: /lib/libc.so.6: version `GLIBC_2.34\' not found (required by $0)" >&2; exit 1',
            "it needs GLIBC_2.34",
        ),
        ("kill -ILL $$", "lacks an instruction"),
        ("echo Unknown option >&2; exit 2", r"ended with code 2: Unknown option; its log is .*mongod\.log"),
        ("exit 0", "ended with code 0"),
    ],
)
def test_other_reasons_are_named(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, says: str
) -> None:
    monkeypatch.setenv("PILOT_MONGOD", str(fake(tmp_path, script.replace("`", "\\`"))))
    with pytest.raises(ServerError, match=says):
        LocalServer(directory).start()


def test_a_full_disk_is_named(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        {"s": "E", "id": 22435, "msg": "WiredTiger error", "attr": {"message": "pwrite: No space left on device"}},
        {"s": "F", "id": 23089, "msg": "Fatal assertion", "attr": {"error": "WT_PANIC"}},
    ]
    text = "\n".join(json.dumps(line) for line in lines)
    script = f"cat >> {directory}/mongod.log <<'END'\n{text}\nEND\nexit 14\n"
    monkeypatch.setenv("PILOT_MONGOD", str(fake(tmp_path, script)))
    with pytest.raises(ServerError, match=r"ended with code 14: the disk is full \(No space left on device\)"):
        LocalServer(directory).start()
    change = {"s": "I", "id": 20698, "msg": "***** SERVER RESTARTED *****"}
    with (directory / "mongod.log").open("a") as log:
        log.write(json.dumps(change) + "\n" + json.dumps(lines[1]) + "\n")
    assert mongod.why(directory) == "Fatal assertion: WT_PANIC"


@translating("fill it")
def fill(store: Store) -> None:
    for _ in range(100):
        store.tasks.insert_one({"x": os.urandom(100_000)})


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system, which needs root")
def test_a_disk_that_is_full_indeed(directory: Path, tmp_path: Path) -> None:
    need("mongod")
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount")
    server = LocalServer(small / "store")
    try:
        with Store(server.start(), "p", timeout_s=5) as store, pytest.raises(StoreError):
            fill(store)
        wait_for(lambda: not server.status().running)
        assert server.status().reason.startswith("it ended without being stopped (the disk is full (")
        with pytest.raises(ServerError, match=r"the disk is full|No space left on device"):
            server.start()
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_one_that_never_listens(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILOT_MONGOD", str(fake(tmp_path, "sleep 600")))
    begun = time.monotonic()
    with pytest.raises(ServerError, match=r"does not listen yet .*try again, or read .*mongod\.log"):
        LocalServer(directory).start(deadline_s=0.3)
    assert time.monotonic() - begun < 5
    assert serving(directory) == []


def test_data_that_another_process_holds(server: LocalServer, directory: Path) -> None:
    server.start()
    pid = record(directory)["pid"]
    moved = directory.rename(directory.with_name("moved"))  # the running server has its old path in mind
    try:
        with pytest.raises(ServerError, match=r"cannot start .*ended with code"):
            LocalServer(moved).start()
    finally:
        kill(pid)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ServerError, match="cannot start the store in"):
        LocalServer(tmp_path / "store").start()


def test_a_file_where_the_directory_should_be(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    with pytest.raises(ServerError, match=r"(start|read) the store"):
        LocalServer(tmp_path / "store").start()


def test_it_dies_while_it_is_being_prepared(
    server: LocalServer, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def doomed(self: LocalServer, client: MongoClient[Any], port: int) -> None:
        process = mongod.running(directory / "db")
        assert process is not None
        kill(process.pid)
        client.admin.command("hello")

    with monkeypatch.context() as patch:
        patch.setattr(LocalServer, "_make_user", doomed)
        with pytest.raises(ServerError, match=r"cannot start the store in .*: it ended: .*see .*mongod\.log"):
            server.start()
    assert use(server.start()) == 1


# -- the test suite itself --------------------------------------------------------------------------


def test_a_missing_service_skips_here_and_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SERVICES, "abacus", lambda: "nobody sells them")
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="abacus is missing: nobody sells them"):
        need("abacus")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="CI must have it: nobody sells them"):
        need("abacus")
    monkeypatch.setitem(SERVICES, "abacus", lambda: "")
    need("abacus")
