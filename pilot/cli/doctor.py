"""`pilot doctor`: check everything, and say what to do about what is wrong."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import click

from pilot import fleet, reach, signing
from pilot.cli import queries, text
from pilot.cli.checkup import Check, examine, report
from pilot.cli.common import Command, json_option, now
from pilot.config import ProjectConfig, find_project
from pilot.executors.run.scrub import scrubbed
from pilot.findings import Finding, note, ok, wrong
from pilot.site_files import load_site
from pilot.states import PilotState
from pilot.store import access, dependants, invariants, mongod, pilots, spool
from pilot.store.mongo import Store
from pilot.store.objects import Objects
from pilot.verify import Audit

_STORE_S = 5.0
_LAUNCH_S = 30.0
_SKEW_S = 5.0
_FREE_BYTES = 1 << 30
_FREE_SHARE = 0.02


@dataclass
class _Patient:
    """What the checks look at."""

    config: ProjectConfig
    repair: bool
    store: Store | None = field(default=None)


@click.command(cls=Command)
@click.option("--site", metavar="S", help="See also whether this site's compute nodes will reach the store.")
@click.option("--repair", is_flag=True, help="Take up what a crash left half done, too.")
@click.option("--audit", is_flag=True, help="Look for records that were changed, taken out or put in, too.")
@click.option("--objects", is_flag=True, help="With --audit: compare the bytes of all objects with their hashes.")
@json_option
def doctor(site: str | None, repair: bool, audit: bool, objects: bool, as_json: bool) -> int:
    """Check project, key, store, invariants, disk, MPI and pilots; exit code 1 if anything is wrong.

    Changes nothing without --repair, but starts the store.
    """
    if objects and not audit:
        raise click.UsageError("--objects goes with --audit")
    patient = _Patient(find_project(), repair)
    checks = [*_CHECKS]
    if audit:
        checks.append(("audit", partial(_audit, deep=objects)))
    if site is not None:
        machine = load_site(site, patient.config)
        checks = [*checks, ("reach", lambda patient: reach.findings(machine, patient.config))]
    try:
        return report(examine(patient, checks), as_json)
    finally:
        if patient.store is not None:
            patient.store.__exit__(None, None, None)


# -- files ----------------------------------------------------------------------------------------


def _project(patient: _Patient) -> Iterator[Finding]:
    folder = patient.config.folder
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & 0o077:
        yield wrong("project", f"{folder} is open to others (mode {mode:04o}): `chmod 700 {folder}`")
    else:
        yield ok("project", f"{patient.config.name}, {folder}")


def _key(patient: _Patient) -> Iterator[Finding]:
    signing.load_key(patient.config.key_file)
    yield ok("key", "only you can read it")


def _objects(patient: _Patient) -> Iterator[Finding]:
    folder = patient.config.objects_folder
    there = folder if folder.is_dir() else patient.config.folder
    with tempfile.NamedTemporaryFile(dir=there, prefix=".doctor-") as file:
        file.write(b"x")
        file.flush()
        os.fsync(file.fileno())
    yield ok("objects", f"{folder} can be written")


def _disk(patient: _Patient) -> Iterator[Finding]:
    usage = shutil.disk_usage(patient.config.folder)
    said = f"{text.size(usage.free)} free of {text.size(usage.total)}"
    if usage.free < _FREE_BYTES:
        yield wrong("disk", f"{said}: make room, or the store stops")
    elif usage.free < _FREE_SHARE * usage.total:
        yield note("disk", f"{said}: that is little")
    else:
        yield ok("disk", said)


def _spool(patient: _Patient) -> Iterator[Finding]:
    waiting = spool.waiting(patient.config.spool_folder)
    if not waiting:
        yield ok("spool", "nothing waits for the store")
        return
    live = set(pilots.pool_beats(patient.store)) if patient.store is not None else set()
    dead = {token: count for token, count in waiting.items() if token not in live}
    if dead:
        what = (
            f"{text.count(sum(dead.values()), 'batch', 'batches')} of results of {text.count(len(dead), 'dead pool')}"
        )
        yield note("spool", f"{what}, not in the store yet: the next pilot that starts writes them (`pilot up`)")
    else:
        yield note("spool", f"{sum(waiting.values())} batches of results are on their way to the store")


# -- store ----------------------------------------------------------------------------------------


def _store(patient: _Patient) -> Iterator[Finding]:
    config = patient.config
    if config.embedded:
        yield ok("mongod", str(mongod.find()))
    store = access.store_of(config, timeout_s=_STORE_S)
    patient.store = store.__enter__()
    yield ok("store", f"MongoDB {queries.version(store)} answers")


def _schema(patient: _Patient) -> Iterator[Finding]:
    if patient.store is not None:
        access.checked(patient.store, patient.config)
        yield ok("schema", "fits this release and our key")


def _clock(patient: _Patient) -> Iterator[Finding]:
    if patient.store is None:
        return
    skew = abs((queries.clock(patient.store) - now()).total_seconds())
    if skew > _SKEW_S:
        yield wrong("clock", f"{text.span(skew)} apart from the store's: times in records are off; set the clock")
    else:
        yield ok("clock", "agrees with the store's")


def _invariants(patient: _Patient) -> Iterator[Finding]:
    if patient.store is None:
        return
    found = invariants.violations(patient.store, limit=10)
    for violation in found:
        yield wrong("invariants", f"{violation}; please report this")
    if not found:
        yield ok("invariants", "hold for all tasks and records")


def _audit(patient: _Patient, deep: bool) -> Iterator[Finding]:
    """Look at every record: about ten thousand in a second."""
    if patient.store is None:
        return
    signer = signing.signer_of(patient.config)
    audit = Audit(patient.store, Objects(patient.config.objects_folder), signer, deep)
    found = 0
    for problem in audit.problems():
        found += 1
        yield wrong("audit", f"{problem.of}: {problem.text}")
    if not found:
        seen, objects = text.count(audit.report.records, "record"), text.count(audit.report.values, "object")
        yield ok("audit", f"{seen} are as they were written, {objects} {'are whole' if deep else 'are there'}")


def _markers(patient: _Patient) -> Iterator[Finding]:
    """Look at what `reconcile` would take up, and let it if asked to."""
    if patient.store is None:
        return
    before = queries.marked(patient.store)
    if patient.repair:
        looked = dependants.reconcile(patient.store)
        yield ok("repair", f"{text.count(looked, 'task')} looked at")
    marked = {name: count for name, count in queries.marked(patient.store).items() if count}
    stuck = {name: count for name, count in marked.items() if before.get(name)}
    if stuck:
        words = ", ".join(f"{count:,} {name}" for name, count in stuck.items())
        yield note("markers", f"{words}: a pilot's agent takes this up within 30 s, or `pilot doctor --repair`")
    else:
        yield ok("markers", "nothing is half done")


# -- machine --------------------------------------------------------------------------------------

_PROBE = (
    "from mpi4py import MPI; c = MPI.COMM_WORLD; ranks = c.gather(c.rank); "
    "c.rank or print(len(ranks), MPI.Get_library_version().splitlines()[0].strip(chr(0)))"
)
"""Rank 0 says how many there are, and of which library."""


def _mpi(patient: _Patient) -> Iterator[Finding]:
    """Start two ranks as a pool is started: singletons are the most usual thing to go wrong."""
    launcher = load_site("local").launcher.command
    beside = Path(sys.executable).parent / launcher[0]
    program = str(beside) if beside.is_file() else shutil.which(launcher[0])
    install = "pip install 'hpc-pilot[mpich]', or load the machine's MPI module"
    if program is None:
        yield wrong("mpi", f"no launcher {launcher[0]!r} beside Python or on the PATH: {install}")
        return
    words = [part.format(ranks=2) for part in launcher[1:]]
    try:
        ran = subprocess.run(
            [program, *words, sys.executable, "-P", "-c", _PROBE], env=scrubbed(os.environ), stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=_LAUNCH_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        yield wrong("mpi", f"{program} did not start two ranks within {_LAUNCH_S:g} s: {install}")
        return
    said = ran.stdout.split(maxsplit=1)
    if ran.returncode or len(said) != 2:
        last = (ran.stderr or ran.stdout).strip().splitlines()[-1:] or [f"exit code {ran.returncode}"]
        yield wrong("mpi", f"{program} cannot start two ranks: {text.line(last[0], 200)}: {install}")
    elif said[0] != "2":
        what = f"{program} started two programs of one rank instead of one of two"
        yield wrong("mpi", f"{what}: it is not the launcher of mpi4py's library; {install}")
    else:
        yield ok("mpi", f"{text.line(said[1])}, {program}")


def _pilots(patient: _Patient) -> Iterator[Finding]:
    store = patient.store
    if store is None:
        return
    views = fleet.look(store, now(), live_only=True)
    for view in views:
        if view.state == "dead" and patient.repair:
            fleet.bury(store, view, now=False)
            yield note("pilots", f"{view.id}: its agent had died; written down as {PilotState.LOST.value}")
        elif view.state == "dead":
            yield wrong("pilots", f"{view.id}: its agent died: `pilot down {view.id}` clears it away")
        elif view.state == "silent":
            old = text.span(view.heartbeat_s or 0.0)
            yield wrong("pilots", f"{view.id} on {view.host}: no heartbeat for {old}: `pilot down {view.id}`")
    orphaned = pilots.dead_tokens(store)
    if orphaned:
        what = f"tasks are leased by {text.count(len(orphaned), 'pool')} that died"
        yield note("leases", f"{what}: the next agent to look returns them (`pilot up`)")
    live = [view.id for view in views if view.live]
    yield ok("pilots", f"up: {', '.join(live)}" if live else "none is up")


_CHECKS: list[tuple[str, Check[_Patient]]] = [
    ("project", _project), ("key", _key), ("store", _store), ("schema", _schema), ("clock", _clock),
    ("invariants", _invariants), ("markers", _markers), ("objects", _objects), ("disk", _disk), ("mpi", _mpi),
    ("spool", _spool), ("pilots", _pilots),
]  # fmt: skip
