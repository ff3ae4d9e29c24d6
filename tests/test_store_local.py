"""The embedded server: started from anywhere, by anyone of us, killed at any moment."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import socketserver
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from pymongo import MongoClient
from pymongo.errors import OperationFailure

from pilot.errors import ServerError, ServerNotFound, StoreError
from pilot.store import local, mongod
from pilot.store.local import LocalServer, ServerStatus
from pilot.store.mongo import Store, connect, translating
from tests.conftest import SERVICES, need


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Give a place for a server; end whatever serves it afterwards."""
    place = tmp_path / "store"
    yield place
    if (process := mongod.running(place / "db")) is not None:
        kill(process.pid)


@pytest.fixture
def server(directory: Path) -> LocalServer:
    need("mongod")
    return LocalServer(directory)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    assert mongod.await_end(Path("/nowhere"), pid, time.monotonic() + 20)


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def record(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "server.json").read_text())
    return found


def change_record(directory: Path, **fields: object) -> None:
    (directory / "server.json").write_text(json.dumps({**record(directory), **fields}))


def another(method: str, directory: Path, **options: Any) -> subprocess.Popen[str]:
    """Call a method of the server from another process, which prints what it returns."""
    server = f"LocalServer(Path({str(directory)!r}))"
    code = f"from pathlib import Path; from pilot.store.local import LocalServer; print({server}.{method}())"
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, **options)


def serving(directory: Path) -> list[int]:
    """Return the pids of all servers on this directory; there must never be two."""
    everything = psutil.process_iter(["pid", "cmdline"])
    return [p.info["pid"] for p in everything if str(directory / "db") in (p.info["cmdline"] or [])]


def use(uri: str) -> int:
    """Write one document and count all."""
    with Store(uri, "p") as store:
        store.tasks.insert_one({})
        return store.tasks.count_documents({})


def fake(tmp_path: Path, script: str) -> Path:
    program = tmp_path / "fake-mongod"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return program


# -- one process ------------------------------------------------------------------------------------


def test_from_nothing_to_the_first_write(server: LocalServer, directory: Path) -> None:
    begun = time.monotonic()
    uri = server.start()
    with Store(uri, "p") as store:
        store.tasks.insert_one({})
        first = time.monotonic() - begun
    server.stop()
    begun = time.monotonic()
    assert use(server.start()) == 2
    print(f"start with first write: {first:.2f} s from nothing, {time.monotonic() - begun:.2f} s later on")
    assert first < 20


def test_status_start_and_stop_again_and_again(server: LocalServer, directory: Path) -> None:
    assert server.stop() is False
    status = server.status()
    assert (status.running, status.reason, status.pid, status.size_bytes) == (False, "never started", None, 0)
    with pytest.raises(ServerError, match=r"does not run; start it with `pilot store start`"):
        server.uri()

    uri = server.start()
    assert server.start() == uri == server.uri() == LocalServer(directory).start()
    status = server.status()
    assert status == ServerStatus(
        running=True,
        reason="",
        host=socket.gethostname(),
        pid=status.pid,
        port=int(re.findall(r":(\d+)/", uri)[0]),
        version=status.version,
        uptime_s=status.uptime_s,
        size_bytes=status.size_bytes,
    )
    assert status.pid is not None
    assert psutil.Process(status.pid).name() == "mongod"
    assert re.fullmatch(r"\d+\.\d+\.\d+", status.version)
    assert status.uptime_s is not None
    assert 0 <= status.uptime_s < 60
    assert 1_000_000 < status.size_bytes < 100_000_000

    assert server.stop() is True
    assert serving(directory) == []
    assert server.stop() is False
    status = server.status()
    assert (status.running, status.reason, status.pid, status.uptime_s) == (False, "stopped", None, None)
    assert server.start() == uri  # the same port and password


def test_authentication_is_on(server: LocalServer, directory: Path) -> None:
    uri = server.start()
    place = f"mongodb://127.0.0.1:{record(directory)['port']}/?directConnection=true"
    with connect(place, 5) as anonymous:
        anonymous.admin.command("hello")
        with pytest.raises(OperationFailure) as caught:
            anonymous["p"].tasks.find_one()
        assert caught.value.code == 13
        # No localhost exception either: on a login node it would be everybody's.
        with pytest.raises(OperationFailure) as caught:
            anonymous.admin.command("createUser", "mallory", pwd="x", roles=["root"])
        assert caught.value.code == 13
    with connect(uri.replace("pilot:", "pilot:x"), 5) as wrong, pytest.raises(OperationFailure) as caught:
        wrong.admin.command("ping")
    assert caught.value.code == 18


def test_it_listens_on_loopback_only(server: LocalServer, directory: Path) -> None:
    server.start()
    ours = record(directory)
    listening = [c for c in psutil.Process(ours["pid"]).net_connections() if c.status == psutil.CONN_LISTEN]
    assert {(c.laddr.ip, c.laddr.port) for c in listening} == {("127.0.0.1", ours["port"])}


def test_secrets_are_private(server: LocalServer, directory: Path) -> None:
    directory.mkdir(mode=0o755)
    old = os.umask(0)
    try:
        uri = server.start()
    finally:
        os.umask(old)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [directory, *directory.iterdir()]}
    assert modes["store"] == modes["db"] == 0o700
    assert modes["password"] == modes["keyfile"] == modes["server.json"] == modes["mongod.log"] == 0o600
    assert not {name for name, mode in modes.items() if name not in ("mongod.out",) and mode & 0o077}

    secrets = [(directory / name).read_text() for name in ("password", "keyfile")]
    assert secrets[0] in uri
    assert len(secrets[0]) >= 32
    shown = "\n".join(" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"]))
    shown += repr(server) + repr(server.status())
    for path in (directory / name for name in ("server.json", "mongod.log", "mongod.out")):
        shown += path.read_text()
    assert not any(secret in shown for secret in secrets)
    assert "--dbpath" in shown


def test_each_project_has_secrets_of_its_own(server: LocalServer, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = LocalServer(tmp_path / "other")
    try:
        assert server.start().split("@")[0] != other.start().split("@")[0]
        assert use(server.uri()) == use(other.uri()) == 1
    finally:
        other.stop()


def test_it_outlives_its_starter_and_its_terminal(server: LocalServer, directory: Path) -> None:
    with another("start", directory, start_new_session=True) as process:
        assert process.stdout is not None
        pipe = os.readlink(f"/proc/self/fd/{process.stdout.fileno()}")
        uri = process.communicate(timeout=60)[0].strip()
        assert use(uri) == 1
        pid = record(directory)["pid"]
        assert os.getsid(pid) != process.pid
        opened = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}
        assert not opened & {pipe, str(directory / "lock")}
        assert not [name for name in opened if name.startswith(("/dev/pts", "/dev/tty"))]
    assert psutil.Process(pid).ppid() == 1


def test_its_port_may_be_taken_in_the_meantime(server: LocalServer, directory: Path) -> None:
    assert use(server.start()) == 1
    server.stop()
    old = record(directory)["port"]
    with socketserver.ThreadingTCPServer(("127.0.0.1", old), socketserver.BaseRequestHandler) as thief:
        threading.Thread(target=thief.serve_forever, kwargs={"poll_interval": 0.01}).start()
        uri = server.start()
        thief.shutdown()
    assert record(directory)["port"] != old
    assert use(uri) == 2


def test_a_port_taken_behind_our_back(server: LocalServer, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as thief:
        thief.bind(("127.0.0.1", 0))
        thief.listen()
        taken = thief.getsockname()[1]
        honest = mongod.free_port
        answers = iter([taken])
        monkeypatch.setattr(mongod, "free_port", lambda *args: next(answers, None) or honest(*args))
        assert use(server.start()) == 1
    assert record(directory)["port"] != taken


def test_lost_secrets_are_made_anew(server: LocalServer, directory: Path) -> None:
    assert use(server.start()) == 1
    server.stop()
    (directory / "password").unlink()
    (directory / "keyfile").unlink()
    assert use(server.start()) == 2


def test_settings_of_the_server(server: LocalServer, directory: Path) -> None:
    with connect(LocalServer(directory, cache_gb=0.5).start(), 5) as client:
        status = client.admin.command("serverStatus")
        assert status["wiredTiger"]["cache"]["maximum bytes configured"] == 512 * 1024 * 1024
        assert status["storageEngine"]["name"] == "wiredTiger"
        assert client.admin.command("getCmdLineOpts")["parsed"]["security"]["keyFile"]
    journal = [path.stat().st_size for path in (directory / "db" / "journal").iterdir()]
    assert journal
    assert max(journal) <= 32 * 1024 * 1024
    soft, hard = psutil.Process(record(directory)["pid"]).rlimit(psutil.RLIMIT_NOFILE)
    assert soft == hard


def test_a_large_log_is_put_aside(server: LocalServer, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.start()
    server.stop()
    monkeypatch.setattr(mongod, "_LOG_ROTATE_BYTES", 1)
    server.start()
    assert (directory / "mongod.log.1").stat().st_size > 1000


def test_a_replica_set_of_the_users_own_will_do(tmp_path: Path) -> None:
    need("mongod")
    port = mongod.free_port(["127.0.0.1"])
    paths = ["--dbpath", str(tmp_path), "--logpath", str(tmp_path / "log"), "--replSet", "theirs"]
    argv = [str(mongod.find()), *paths, "--port", str(port), "--nounixsocket"]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL) as server:
        try:
            with MongoClient(f"mongodb://127.0.0.1:{port}/?directConnection=true") as client:
                members = [{"_id": 0, "host": f"127.0.0.1:{port}"}]
                client.admin.command("replSetInitiate", {"_id": "theirs", "members": members})
            assert use(f"mongodb://127.0.0.1:{port}/?replicaSet=theirs") == 1
        finally:
            server.kill()


# -- many processes ---------------------------------------------------------------------------------


def test_processes_that_start_it_at_the_same_moment(server: LocalServer, directory: Path) -> None:
    starters = [another("start", directory) for _ in range(4)]
    uris = {process.communicate(timeout=90)[0].strip() for process in starters}
    assert [process.returncode for process in starters] == [0, 0, 0, 0]
    assert len(uris) == 1
    assert use(uris.pop()) == 1
    assert serving(directory) == [record(directory)["pid"]]


def test_start_waits_for_a_stop(server: LocalServer, directory: Path) -> None:
    server.start()
    first = record(directory)["pid"]
    os.kill(first, signal.SIGSTOP)  # its end takes as long as we like
    with another("stop", directory) as stopper:
        wait_for(lambda: record(directory)["pid"] == 0)
        with pytest.raises(ServerError, match="another process is still starting or stopping"):
            server.start(deadline_s=0.1)
        os.kill(first, signal.SIGCONT)
        assert use(server.start()) == 1
        assert record(directory)["pid"] not in (0, first)
        assert stopper.communicate(timeout=60)[0].strip() == "True"


def test_a_stop_that_takes_too_long(server: LocalServer, directory: Path) -> None:
    server.start()
    pid = record(directory)["pid"]
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(ServerError, match=f"has not ended in time: .*kill -9 {pid}"):
        server.stop(deadline_s=0.1)
    os.kill(pid, signal.SIGCONT)
    assert server.stop() is True


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
def test_a_killed_starter_leaves_nothing_that_does_not_heal(server: LocalServer, directory: Path) -> None:
    moments = random.Random(0)
    count = 0
    for _ in range(12):
        with another("start", directory, stderr=subprocess.DEVNULL) as process:
            time.sleep(moments.uniform(0.1, 1.0))
            process.kill()
        if moments.random() < 0.3 and (process_ := mongod.running(directory / "db")):
            os.kill(process_.pid, signal.SIGKILL)
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
    change_record(directory, boot=local._boot_id())  # the same machine under a new name
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
