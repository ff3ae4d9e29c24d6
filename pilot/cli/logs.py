"""`pilot logs`: what a task wrote to its output."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import psutil

from pilot.cli import queries
from pilot.cli.common import Command, Opened, opened, tell
from pilot.cli.completion import tasks as complete_tasks
from pilot.errors import InvalidInput
from pilot.executors.run.orphans import find_orphans
from pilot.executors.run.output import slot_file
from pilot.model import official_record
from pilot.states import ENDED, State
from pilot.store import provenance, tasks

Document = dict[str, Any]

_PIECE = 1 << 20
_POLL_S = 0.5


@click.command(cls=Command)
@click.argument("task", metavar="ID", shell_complete=complete_tasks)
@click.option("-f", "--follow", is_flag=True, help="Go on until the task has ended.")
@click.option(
    "--attempt", type=click.IntRange(1), metavar="N", help="Of this attempt; default: the official or latest."
)
def logs(task: str, follow: bool, attempt: int | None) -> int:
    """Print what a task wrote to stdout and stderr. ID may be shortened.

    Exit code 1 if it is not known yet, or no longer whole.
    """
    with opened() as project:
        doc = tasks.resolve(project.store, task)
        if attempt is not None:
            return _print_record(_record(project, doc, attempt))
        record = _record(project, doc)
        if record is not None and (doc["state"] in ENDED or not follow):
            if doc["state"] not in ENDED:
                tell(f"task {doc['_id']} is {doc['state']}; this is the output of its attempt {record['attempt']}")
            return _print_record(record)
        if follow:
            return _follow(project, doc)
        if doc["state"] != State.LEASED:
            tell(f"task {doc['_id']} is {doc['state']} and has written nothing; `pilot explain {doc['_id']}` says why")
            return 1
        return _print_running(project, doc)


def _record(project: Opened, doc: Document, attempt: int | None = None) -> Document | None:
    """Return the record whose output is meant.

    Raises:
        InvalidInput: there is none of that attempt.
    """
    name = official_record(doc) if attempt is None else f"{doc['_id']}:{attempt}"
    found = provenance.get(project.store, [name] if name else (), ["attempt", "outcome", "output_log", "host"])
    if attempt is None and not found:
        every = provenance.attempts(project.store, doc["_id"])
        return every[-1] if every else None
    if not found:
        raise InvalidInput(
            f"task {doc['_id']} has no record of attempt {attempt}; `pilot show {doc['_id']}` lists them"
        )
    return next(iter(found.values()))


def _print_record(record: Document | None, since: int = 0) -> int:
    """Print an attempt's output from the slot's file, or what its record keeps of it."""
    log = (record or {}).get("output_log")
    if record is None or log is None:
        return 0  # it printed nothing
    start = max(log["offset"], since)
    end = log["offset"] + log["length"]
    if start >= end:
        return 0
    try:
        with open(log["file"], "rb") as file:
            whole = os.fstat(file.fileno()).st_size >= end
            if whole:
                _copy(file.fileno(), start, end)
                return 0
    except OSError:
        whole = False
    _write(log["tail"].encode())
    if log["length"] > len(log["tail"].encode()):
        host = f" on {record['host']}" if record.get("host") else ""
        tell(f"cannot read {log['file']!r}{host}: this is the end that the record keeps, of {log['length']:,} bytes")
        return 1
    return 0


def _copy(descriptor: int, start: int, end: int) -> int:
    """Write a part of a file to stdout; return up to where there was something."""
    while start < end:
        data = os.pread(descriptor, min(_PIECE, end - start), start)
        if not data:
            break
        _write(data)
        start += len(data)
    return start


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


# -- running tasks --------------------------------------------------------------------------------


def _print_running(project: Opened, doc: Document) -> int:
    """Print what a running task has written so far, if that can be known."""
    where = _slot(project, doc)
    if where is None:
        return 1
    file, start = where
    with file.open("rb") if file.exists() else open(os.devnull, "rb") as output:
        _copy(output.fileno(), start, os.fstat(output.fileno()).st_size)
    return 0


def _slot(project: Opened, doc: Document) -> tuple[Path, int] | None:
    """Return the file of the slot that runs the task, and where in it the task began; None if nobody can tell."""
    pool = queries.pool(project.store, doc.get("lease", ""))
    if pool is None:
        tell(f"task {doc['_id']} is held by a pool that is gone; `pilot explain {doc['_id']}` says more")
        return None
    folder = project.config.pilot_folder(pool["pilot"]) / "output"
    slot = 1 if pool.get("slots") == 1 else _slot_of_command(doc["_id"])
    if slot is None:
        host = pool.get("host", "*")
        tell(
            f"task {doc['_id']} is running, and which slot runs it is known when it has ended; the output of all is in "
            f"{folder / host / 'slot-*.out'} (`pilot logs -f` waits for the end)"
        )
        return None
    file = slot_file(folder, pool["host"], slot)
    return file, queries.written_until(project.store, str(file))


def _slot_of_command(task: str) -> int | None:
    """Return the slot of a command that runs on this machine: its processes carry the task's id."""
    for pid in find_orphans("PILOT_TASK", task):
        try:
            lines = [process.cmdline() for process in psutil.Process(pid).parents()]
        except psutil.Error:
            continue
        for argv in lines:
            if "--child" in argv[:-3]:
                return int(argv[argv.index("--child") + 2])
    return None


def _follow(project: Opened, doc: Document) -> int:
    """Print a task's output until its end; before it runs, wait.

    What the slot's file holds is printed one look later: by then the store would know if the task had ended, and
    what follows in the file were another's.
    """
    task, told, printed, safe = doc["_id"], "", 0, 0
    place: tuple[str, int] | None = None
    file: Path | None = None
    for doc in _watch(project, task):
        here = (doc["lease"], doc["attempt"]) if doc["state"] == State.LEASED else None
        if here is None and doc["state"] not in ENDED and told != doc["state"]:
            told = doc["state"]
            tell(f"task {task} is {told}; waiting for it to run")
        if here != place:
            place, file = here, file if doc["state"] in ENDED else None
            if here is not None and (where := _slot(project, doc)) is not None:
                file, printed = where
                safe = printed
        if file is not None and here is not None and file.exists():
            with file.open("rb") as output:
                printed = _copy(output.fileno(), printed, safe)
                safe = os.fstat(output.fileno()).st_size
    record = _record(project, doc)
    log = (record or {}).get("output_log") or {}
    return _print_record(record, printed if file is not None and log.get("file") == str(file) else 0)


def _watch(project: Opened, task: str) -> Iterator[Document]:
    while True:
        doc = tasks.get(project.store, [task], ["state", "lease", "attempt", "official"])[task]
        yield doc
        if doc["state"] in ENDED:
            return
        time.sleep(_POLL_S)
