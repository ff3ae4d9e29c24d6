"""The embedded server: a private mongod per project, started on first use, for one user, safe to start from anywhere.

In its directory (mode 0700) lie `db/`, `keyfile` (with which we administrate), `password` (of the user `pilot`),
`server.json` (what runs where), `lock` (held only while starting or stopping), `users` (held by all who use it),
`mongod.log` and `mongod.out`.
"""

from __future__ import annotations

import base64
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from pymongo import MongoClient

from pilot.errors import ServerError, StoreDenied, StoreError, StoreUnavailable
from pilot.store import mongod, server_users
from pilot.store.mongo import Document, connect, translating
from pilot.store.server_record import LOOPBACK, Record, boot_id, own, silent, write_private

_USER = "pilot"
_STOP_S = 60.0


@dataclass(frozen=True)
class ServerStatus:
    """What is known of an embedded server."""

    running: bool
    reason: str
    """Why it does not run, or runs but cannot be used; empty if all is well."""
    host: str
    """Where it runs or ran last."""
    pid: int | None
    port: int | None
    version: str
    uptime_s: float | None
    addresses: tuple[str, ...]
    """At which it listens, or listened last."""
    size_bytes: int
    """What its directory takes on the disk."""


class LocalServer:
    """One project's server, seen from one process; holds nothing open, so it needs no closing.

    Any number of processes may call anything at the same moment: starting and stopping are serialised by a lock
    that dies with its holder, and whoever is late uses the other's server.

    Args:
        directory: where everything of it is kept.
        addresses: to listen at besides loopback, used at the next start; None: those of the last one, as far as they
            are this host's.
        cache_gb: memory for the storage engine, used at the next start.
    """

    def __init__(self, directory: Path, *, addresses: Sequence[str] | None = None, cache_gb: float = 1.0) -> None:
        self._directory = directory.resolve()
        self._db = self._directory / "db"
        self._addresses = addresses
        self._cache_gb = cache_gb

    def __repr__(self) -> str:
        return f"LocalServer({str(self._directory)!r})"

    def uri(self) -> str:
        """Return the URI, password included, of the server that runs.

        Raises:
            ServerError: it does not run, or not where this machine can reach it.
        """
        uri = self._found()
        if uri is None:
            raise ServerError(f"the store in {self._directory} does not run; start it with `pilot store start`")
        return uri

    def start(self, deadline_s: float = 60.0) -> str:
        """Make sure that the server runs and return its URI, password included; half a second or so is usual.

        Raises:
            ServerNotFound: there is no mongod.
            ServerError: it cannot run here, runs elsewhere, or is not ready in time; the message has its own words.
        """
        deadline = time.monotonic() + deadline_s
        with self._trying("start"):
            if uri := self._found():
                return uri
            with self._locked(deadline):  # by now it may run, thanks to whom we have waited for
                return self._found() or self._start(deadline)

    def use(self, deadline_s: float = 60.0) -> tuple[str, Callable[[], None]]:
        """Start it if need be; return its URI, and what to call when done.

        One that is promised to a pilot is stopped by the last process of this host that is done with it.

        Raises:
            ServerError: as `start` does.
        """
        end = server_users.show(self._directory)

        def done() -> None:
            end()
            self.leave()

        try:
            return self.start(deadline_s), done
        except BaseException:
            end()
            raise

    def stop(self, deadline_s: float = 60.0) -> bool:
        """Shut the server down cleanly; False if it did not run.

        Raises:
            ServerError: it runs on another host, is not ours to stop, or did not end in time.
        """
        if not self._directory.is_dir():
            return False
        deadline = time.monotonic() + deadline_s
        with self._trying("stop"), self._locked(deadline):
            record = self._read()
            if not record.here:
                raise ServerError(self._elsewhere(record))
            return self._halt(record, deadline)

    def status(self) -> ServerStatus:
        """Look at the server, without starting it or asking it anything.

        Raises:
            ServerError: its directory cannot be read.
        """
        record = self._read()
        process = mongod.running(self._db) if record.here else None
        up = self._ready(record) is not None if record.here else record.answering() is not None
        since = datetime.fromisoformat(record.started) if record.started and (up or not record.here) else None
        return ServerStatus(
            running=up,
            reason="" if up else self._reason(record, process),
            host=record.host or socket.gethostname(),
            pid=process.pid if process else record.pid or None,
            port=process.port if process else record.port or None,
            version=record.version,
            uptime_s=max(0.0, (datetime.now(UTC) - since).total_seconds()) if since else None,
            addresses=record.addresses,
            size_bytes=_size(self._directory),
        )

    def listen(self, address: str, deadline_s: float = 60.0) -> bool:
        """Make sure that it runs and listens at this address of the host too; False if nothing had to be done.

        A server that runs is started anew; who uses it repeats what it was at.

        Raises:
            ServerError: as `start` and `stop` do.
        """
        deadline = time.monotonic() + deadline_s
        with self._trying("start"), self._locked(deadline):
            record = self._read()
            if record.here:
                return self._listen(record, address, deadline)
        self.uri()
        return False

    # -- inside of a pilot ------------------------------------------------------------------------

    @property
    def home(self) -> str:
        """The pilot in which it is to run, or runs; "": none. Until that begins it runs where it is needed."""
        return self._read().home

    @property
    def inside(self) -> str:
        """The pilot inside of which it runs; "": inside of none."""
        record = self._read()
        return record.home if record.moved else ""

    @property
    def runs(self) -> bool:
        """Whether it runs on this host, ready for use."""
        return self._ready(self._read()) is not None

    def promise(self, pilot: str, instead_of: str | None = None) -> None:
        """Write that it is to run inside of this pilot ("": of none), unless it runs inside of one on another host.

        With `instead_of` only if it is that pilot to which it is promised.
        """
        with self._trying("promise"), self._locked(time.monotonic() + _STOP_S):
            record = self._read()
            if instead_of in (None, record.home) and (record.here or not record.moved):
                replace(record, home=pilot, moved=False).write(self._directory)

    def leave(self) -> None:
        """Stop it on this host if it is promised to a pilot, and no process of this host uses it."""
        record = self._read()
        if not record.promised or self._ready(record) is None:
            return
        deadline = time.monotonic() + _STOP_S
        with self._trying("stop"), self._locked(deadline):
            record = self._read()
            if not record.promised or self._ready(record) is None:
                return
            with server_users.none(self._directory) as unused:
                if unused:  # who begins to use it after this finds it stopped
                    replace(record, pid=0).write(self._directory)
            if unused:
                self._halt(record, deadline)

    def take(self, pilot: str, address: str, patience_s: float = 120.0) -> bool:
        """Run it on this host, for the pilot inside of which it is to run.

        If it runs on another host, it is waited for to be stopped there.

        Returns:
            False: it has not been, or another pilot has it; it stays there, and is used from here.

        Raises:
            ServerError: it cannot run here, or stays where this host cannot reach it.
        """
        late_at = time.monotonic() + patience_s
        while True:
            late = time.monotonic() > late_at
            deadline = time.monotonic() + _STOP_S
            with self._trying("start"), self._locked(deadline):
                record = self._read()
                others = record.moved and record.home != pilot
                if record.here and not (others and self._ready(record)):
                    self._listen(record, address, deadline)
                    replace(self._read(), home=pilot, moved=True).write(self._directory)
                    return True
                if late and record.promised:  # else whoever is done with it there would stop it
                    replace(record, home="").write(self._directory)
            if late or others:
                self.uri()
                return False
            time.sleep(0.5)

    def give_up(self, pilot: str) -> None:
        """Stop it at the end of a pilot, if it runs inside of that; from then on it runs where it is needed.

        It stays promised to the pilot, which may be started again; see `access.checked`.
        """
        deadline = time.monotonic() + _STOP_S
        with self._trying("stop"), self._locked(deadline):
            record = self._read()
            if record.here and record.home in (pilot, ""):  # none, if somebody saw the pilot's end before it was over
                self._halt(replace(record, moved=False), deadline)

    # -- starting ---------------------------------------------------------------------------------

    def _found(self) -> str | None:
        """Return the URI of the server that runs, here or on another host; None if there is none, or it just ends."""
        record = self._read()
        if not record.here:
            return self._remote_uri(record)
        process = self._ready(record)
        if process is None:
            return None
        if silent(LOOPBACK, process.port):  # a container, or a network of its own, on the same machine
            return self._remote_uri(record) if record == self._read() else None
        return self._uri(LOOPBACK, process.port)

    def _ready(self, record: Record) -> mongod.Process | None:
        process = mongod.running(self._db)
        return process if process is not None and process.pid == record.pid else None

    def _listen(self, record: Record, address: str, deadline: float) -> bool:
        if self._ready(record) is not None and address in record.addresses:
            return False
        self._halt(record, deadline)
        addresses = [address, *own(record.addresses)]  # others look at the latest first
        LocalServer(self._directory, addresses=addresses, cache_gb=self._cache_gb)._start(deadline)
        return True

    def _start(self, deadline: float) -> str:
        self._db.mkdir(mode=0o700, exist_ok=True)
        # mongod wants letters of base64 in it; 48 bytes give 64 of them and no padding.
        self._secret("keyfile", base64.b64encode(secrets.token_bytes(48)).decode())
        self._secret("password", secrets.token_urlsafe(32))
        process, version = self._bring_up(deadline)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        made = Record(process.pid, process.port, self._listening(), socket.gethostname(), boot_id(), version, started)
        before = self._read()
        replace(made, home=before.home, moved=before.moved).write(self._directory)
        return self._uri(LOOPBACK, process.port)

    def _bring_up(self, deadline: float) -> tuple[mongod.Process, str]:
        """Return a server that is ready, and its version; one may run, left by a starter that was killed."""
        while process := mongod.found(self._db, deadline):
            if version := self._adopt(process, deadline):
                return process, version
        # One that shut down in order lets go of its data first and of its port last, at which its users look for it.
        mongod.await_end(self._db, self._read().pid, deadline)
        process = self._launch(deadline)
        return process, self._prepare(process, deadline)

    def _listening(self) -> tuple[str, ...]:
        """Return the addresses to listen at, loopback first."""
        wanted = own(self._read().addresses) if self._addresses is None else self._addresses
        return (LOOPBACK, *dict.fromkeys(address for address in wanted if address != LOOPBACK))

    def _adopt(self, process: mongod.Process, deadline: float) -> str | None:
        """Prepare a server that somebody else started; None if it ended meanwhile."""
        try:
            return self._prepare(process, deadline)
        except ServerError:
            if mongod.running(self._db) == process:
                raise
            return None

    def _launch(self, deadline: float) -> mongod.Process:
        program = mongod.find()
        preferred = self._read().port
        addresses = self._listening()
        while True:
            port = mongod.free_port(addresses, preferred)
            process = mongod.launch(program, self._directory, port, addresses, self._cache_gb, deadline)
            if process is not None:
                return process
            if time.monotonic() > deadline:
                raise ServerError(
                    f"cannot start the store in {self._directory}: others take port after port; try again"
                )
            preferred = 0

    def _prepare(self, process: mongod.Process, deadline: float) -> str:
        """Bring a running server to "with our user", from wherever an earlier start got to."""
        key = quote(self._secret("keyfile"), safe="")
        options = "authSource=local&authMechanism=SCRAM-SHA-256&directConnection=true"
        system = f"mongodb://__system:{key}@{LOOPBACK}:{process.port}/?{options}"
        while True:
            try:
                with connect(system, 5.0) as client, translating("prepare it"):
                    self._make_user(client, process.port)
                    return str(client.server_info()["version"])
            except StoreError as exc:
                alive = mongod.running(self._db) == process
                if alive and isinstance(exc, StoreUnavailable) and time.monotonic() < deadline:
                    continue  # not listening yet: it had been left while it recovered
                problem = str(exc) if alive else f"it ended: {mongod.why(self._directory) or 'without a word'}"
                raise ServerError(
                    f"cannot start the store in {self._directory}: {problem}; see {self._directory / 'mongod.log'}"
                ) from exc

    def _make_user(self, client: MongoClient[Document], port: int) -> None:
        password = self._secret("password")
        command = "createUser"
        if client.admin.command("usersInfo", _USER)["users"]:
            try:
                with connect(self._uri(LOOPBACK, port), 5.0) as user, translating("try the password"):
                    user.admin.command("ping")
                return
            except StoreDenied:  # its file was lost and made anew
                command = "updateUser"
        client.admin.command(command, _USER, pwd=password, roles=["root"], mechanisms=["SCRAM-SHA-256"])

    # -- stopping ---------------------------------------------------------------------------------

    def _halt(self, record: Record, deadline: float) -> bool:
        """End what runs on this host; write `record` first, so that nobody takes the ending one for ready."""
        record = replace(record, pid=0)
        if record != self._read():
            record.write(self._directory)
        process = mongod.running(self._db)
        if process is not None:
            self._end(process, deadline)
        return process is not None

    def _end(self, process: mongod.Process, deadline: float) -> None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)
        if not mongod.await_end(self._db, process.pid, deadline):
            words = mongod.why(self._directory) or "it gives no reason"
            raise ServerError(
                f"cannot stop the store in {self._directory}: mongod has not ended in time: {words}; wait, "
                f"or as a last resort `kill -9 {process.pid}`, after which it recovers from its journal"
            )

    # -- files ------------------------------------------------------------------------------------

    @contextmanager
    def _locked(self, deadline: float) -> Iterator[None]:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory.chmod(0o700)
        path = self._directory / "lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while not server_users.lock(descriptor):
                if time.monotonic() > deadline:
                    raise ServerError(
                        f"another process is still starting or stopping the store in {self._directory}; "
                        f"try again, or see with `fuser {path}` who it is"
                    )
                time.sleep(0.02)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def _trying(self, verb: str) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise ServerError(f"cannot {verb} the store in {self._directory}: {exc}") from exc

    def _secret(self, name: str, fresh: str | None = None) -> str:
        path = self._directory / name
        if fresh is not None and not path.exists():
            write_private(path, fresh)
        return path.read_text("ascii")

    def _uri(self, host: str, port: int) -> str:
        host = f"[{host}]" if ":" in host else host
        password = quote(self._secret("password"), safe="")
        return f"mongodb://{_USER}:{password}@{host}:{port}/?authSource=admin&directConnection=true"

    def _remote_uri(self, record: Record) -> str:
        address = record.answering()
        if address is None:
            raise ServerError(self._elsewhere(record))
        return self._uri(address, record.port)

    def _elsewhere(self, record: Record) -> str:
        places = ", ".join(f"{one}:{record.port} ({silent(one, record.port)})" for one in record.open)
        found = (
            f"does not answer there, at {places}"
            if places
            else "listens only to that host itself (`pilot store start --interface NAME` there changes that, "
            "`pilot up --store-in-pilot` does without)"
        )
        if record.moved:
            return (
                f"the store runs inside of pilot {record.home} on host {record.host!r} and {found}; it is back when "
                "that pilot has ended"
            )
        return (
            f"the store in {self._directory} runs on host {record.host!r} (since {record.started}) and {found}; "
            "work on that host, or stop it there with `pilot store stop`; "
            f"if the host is gone for good, remove {self._directory / 'server.json'}"
        )

    def _reason(self, record: Record, process: mongod.Process | None) -> str:
        if not record.here:
            return self._elsewhere(record)
        if process is not None:
            return "it is being started, or was left half started: `pilot store start` completes that"
        if record.pid:
            words = mongod.why(self._directory, fatal=True) or "killed, or its host went down"
            return f"it ended without being stopped ({words}); `pilot store start` brings it back"
        return "stopped" if record.started else "never started"

    def _read(self) -> Record:
        return Record.read(self._directory)


def _size(directory: Path) -> int:
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with suppress(OSError):  # the server renames and removes while we look
                total += os.lstat(os.path.join(folder, name)).st_blocks * 512
    return total
