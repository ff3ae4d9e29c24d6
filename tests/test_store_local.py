"""The embedded server: started from anywhere, by anyone of us, by many at once."""

from __future__ import annotations

import os
import re
import signal
import socket
import socketserver
import stat
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from pymongo import MongoClient
from pymongo.errors import OperationFailure

from pilot.errors import ServerError
from pilot.store import mongod
from pilot.store.local import LocalServer, ServerStatus
from pilot.store.mongo import Store, connect
from tests.conftest import need
from tests.server_rig import another, record, serving, use, wait_for

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
        addresses=("127.0.0.1",),
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
        opened = set()
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                opened.add(os.readlink(link))
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
