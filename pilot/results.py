"""What has ended, brought to the futures that wait for it: one thread per open project.

Hints say which tasks ended; long-spaced looks find what a hint missed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from pilot import records
from pilot.config import ProjectConfig
from pilot.errors import PilotError, StoreError, TaskFailed
from pilot.future import Future
from pilot.model import official_record
from pilot.states import ENDED, GOOD, State
from pilot.store import events, pilots, provenance, tasks
from pilot.store.mongo import Store

log = logging.getLogger(__name__)

SWEEP_S = 5.0
"""How often outstanding tasks are looked at without a hint, a chunk at a time."""
SOON_S = 0.25
"""The same for tasks that another session submitted, or that may have ended before: of these no hint comes."""
NO_PILOT_S = 20.0
"""A program that waits for so long with no pilot up is told so."""

_RESULT_FIELDS = (*records.VERIFIED_FIELDS, "name", "exception", "exit_code", "host", "rank", "output_log")


class Source(Protocol):
    """What the watcher needs of its project."""

    config: ProjectConfig
    session: str
    store: Store


class Watcher:
    """Follows the ends of tasks and completes their futures; one thread."""

    def __init__(self, project: Source) -> None:
        self._project = project
        self._mine: dict[str, Future] = {}
        self._more: dict[str, list[Future]] = {}
        """Further futures of the same tasks."""
        self._soon: set[str] = set()
        """Those of which perhaps no hint will come."""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="pilot-results", daemon=True)
        self._lock = threading.Lock()
        self._looked = self._looked_soon = 0.0
        self._position = 0
        self._warned = False

    def start(self) -> None:
        """Start following."""
        self._thread.start()

    def add(self, futures: Iterable[Future], new: bool = True) -> None:
        """Complete these futures when their tasks have ended.

        Args:
            futures: of tasks of this project.
            new: they are being submitted by this session, which will be told of their ends.
        """
        with self._lock:
            for future in futures:
                if self._mine.setdefault(future.id, future) is not future:
                    self._more.setdefault(future.id, []).append(future)
                if not new:
                    self._soon.add(future.id)

    def close(self) -> int:
        """Stop, and say so to those who wait for the others; return how many tasks had not ended."""
        self._closing.set()
        self._thread.join(5.0)
        with self._lock:
            left = list(self._mine)
        for task in left:
            for future in self._pop(task):
                if not future.done():
                    future.set_exception(
                        PilotError(
                            f"the project was closed before task {task!r} ended; the task goes on: open the project "
                            f"again, and project.task({task!r}) waits for it"
                        )
                    )
        return len(left)

    def _follow(self) -> None:
        project = self._project
        query = {"kind": events.ENDED, "client": project.session}
        began = time.monotonic()
        with events.tail(project.store, query, wait_ms=200) as tail:
            while not self._closing.is_set():
                try:
                    if not self._mine:
                        began = time.monotonic()
                    event = tail.next()
                    if event is not None:
                        began = time.monotonic()
                        self._take_records(event.get("records", ()))
                        self._look(event.get("tasks", ()))
                    self._sweep(event is None)
                    self._warn_if_alone(began)
                except StoreError as exc:
                    log.warning("waiting for results: %s", exc)
                    self._closing.wait(1.0)
                except Exception:  # a silent end of this thread would be a silent hang of the program
                    log.exception("results cannot be followed; this is a defect")
                    self._closing.wait(1.0)

    def _sweep(self, quiet: bool) -> None:
        """Look at outstanding tasks without a hint, one chunk at a time.

        Args:
            quiet: no hint has come: then a chunk that finds any ended is followed by the next one at once.
        """
        now = time.monotonic()
        if self._soon and now - self._looked_soon >= SOON_S:
            self._looked_soon = now
            with self._lock:
                soon = list(self._soon)
            for part in tasks.chunks(soon):
                self._look(part)
        if now - self._looked < SWEEP_S:
            return
        self._looked = now
        with self._lock:
            outstanding = list(self._mine)
        if self._position >= len(outstanding):
            self._position = 0
        chunk = outstanding[self._position : self._position + tasks.CHUNK]
        if self._look(chunk) and quiet:  # hints were lost, perhaps many
            self._looked = 0.0
        else:
            self._position += tasks.CHUNK

    def _warn_if_alone(self, began: float) -> None:
        if self._mine and not self._warned and time.monotonic() - began > NO_PILOT_S:
            self._warned = True
            if not pilots.listing(self._project.store, live_only=True, limit=1):
                log.warning(
                    "%d tasks wait and no pilot is up in %s; start one with `pilot up`",
                    len(self._mine), self._project.config.root,
                )  # fmt: skip

    def _take_records(self, ids: Sequence[str]) -> None:
        """Complete the futures of tasks by their records that succeeded: such a record is the official one."""
        wanted = [name for name in ids if name.rpartition(":")[0] in self._mine]
        if wanted:
            there = provenance.get_raw(self._project.store, wanted, records.VERIFIED_FIELDS, GOOD)
            for name, record in there.items():
                for future in self._pop(name.rpartition(":")[0]):
                    self._succeed(future, record)

    def _pop(self, task: str) -> list[Future]:
        with self._lock:
            self._soon.discard(task)
            future = self._mine.pop(task, None)
            return [] if future is None else [future, *self._more.pop(task, ())]

    def _succeed(self, future: Future, record: bytes) -> None:
        if not future.done():
            future.end_well(record)

    def _look(self, ids: Sequence[str]) -> int:
        """Fetch those of `ids` that have ended and complete their futures; return how many these are."""
        wanted = [task for task in ids if task in self._mine]
        if not wanted:
            return 0
        store = self._project.store
        docs = tasks.get(store, wanted, ["state", "official", "reason", "message", "attempt", "pending", "name"])
        ended = {task: doc for task, doc in docs.items() if doc["state"] in ENDED}
        officials = [name for doc in ended.values() if (name := official_record(doc))]
        there = provenance.get_raw(store, officials, _RESULT_FIELDS) if officials else {}
        for task, doc in ended.items():
            record = there.get(official_record(doc) or "")
            if doc["state"] == State.DONE and record is None:
                continue  # cannot be: the record comes first
            for future in self._pop(task):
                self._complete(future, doc, record)
        return len(ended)

    def _complete(self, future: Future, doc: dict[str, Any], record: bytes | None) -> None:
        if future.done():
            return
        if doc["state"] == State.CANCELLED:
            future.end_cancelled()
        elif doc["state"] == State.DONE and record is not None:
            self._succeed(future, record)
        else:
            future.set_exception(failure_of(doc, None if record is None else provenance.decode(record)))


def failure_of(doc: dict[str, Any], record: dict[str, Any] | None) -> TaskFailed:
    """Return the error that tells all about a failed task: remote traceback, host, task id."""
    task, reason = doc["_id"], doc.get("reason", "failed")
    head = f"task {doc['name']!r} ({task}) failed"
    if reason == "upstream":
        text = f"{head}: it needs the result of {_some(doc.get('pending', []))}, which did not succeed"
    elif record is None:
        text = f"{head}: {doc.get('message', reason)}"
    else:
        cause = record.get("exception") or {}
        rank = f"rank {cause['rank']}, " if cause.get("rank", -1) >= 0 else ""
        text = f"{head} on host {cause.get('host') or record.get('host', '?')}, {rank}"
        text += f"attempt {record['attempt']}: {record['outcome']}: {cause.get('type', '')}: {cause.get('message', '')}"
        if cause.get("traceback"):
            text += f"\n--- remote traceback ---\n{cause['traceback'].rstrip()}"
        tail = (record.get("output_log") or {}).get("tail")
        if tail and record["outcome"] != "failed":
            text += f"\n--- last output ---\n{tail.rstrip()}"
    return TaskFailed(task, reason, text, official_record(doc))


def _some(ids: Sequence[str]) -> str:
    shown = ", ".join(ids[:3])
    return f"{shown} and {len(ids) - 3} more" if len(ids) > 3 else shown or "another task"
