"""A project as a user's program sees it: submit tasks, get their results, cancel and retry.

One thread per open project follows what ends; it starts with the first future that is waited for and stops
when the project is closed.
"""

from __future__ import annotations

import functools
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pilot import records, signing, values
from pilot.config import ProjectConfig, find_project
from pilot.errors import ForeignFuture, InvalidInput, PilotError, StoreError, TaskFailed, TaskNotFound
from pilot.future import Future, Output
from pilot.model import SCHEMA, Blob, FunctionCode, Input, TaskSpec, new_batch, new_token, official_record
from pilot.prepare import code_document
from pilot.states import ENDED, GOOD, State
from pilot.store import dependants, events, pilots, provenance, tasks
from pilot.store.access import checked, store_of
from pilot.store.mongo import Store
from pilot.store.objects import Objects

log = logging.getLogger(__name__)

SUBMIT_CHUNK = 2000
"""Tasks per round trip."""
SWEEP_S = 5.0
"""How often outstanding tasks are looked at without a hint, a chunk at a time."""
FOREIGN_S = 0.25
"""The same for tasks that another session submitted, of which no hint comes."""
NO_PILOT_S = 20.0
"""A program that waits for so long with no pilot up is told so."""

_RESULT_FIELDS = (*records.VERIFIED_FIELDS, "name", "exception", "exit_code", "host", "rank", "output_log")


class Project:
    """An open project. Make it with `pilot.open`, use it with ``with``.

    Args:
        config: where it is.
    """

    def __init__(self, config: ProjectConfig) -> None:
        self.config = config
        self.session = new_token(6)
        self._ids = (new_batch(time.time(), self.session), itertools.count())
        self._functions: set[str] = set()
        self._objects = Objects(config.objects_folder)
        self._watcher: _Watcher | None = None
        self._lock = threading.Lock()
        self.store: Store
        self._signer: signing.Signer

    def __repr__(self) -> str:
        return f"<Project {self.config.name!r} at {str(self.config.root)!r}>"

    def __enter__(self) -> Self:
        """Open the store, which is started if need be.

        Raises:
            StoreError: it cannot be reached or started; the message says what to do.
            SchemaMismatch: another release made it.
            ProjectError: the project's key is missing or open to others.
        """
        self._signer = signing.Signer(signing.load_key(self.config.key_file), self.config.id)
        self.store = store_of(self.config).__enter__()
        try:
            checked(self.store, self.config)
        except BaseException:
            self.store.__exit__(None, None, None)
            raise
        _open_projects.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self in _open_projects:
            _open_projects.remove(self)
        if self._watcher is not None:
            left = self._watcher.close()
            if isinstance(error, KeyboardInterrupt) and left:
                error.add_note(
                    f"{left} tasks go on without this program; `pilot status` shows them, `pilot wait` waits for "
                    "them, `pilot cancel` ends them"
                )
        self.store.__exit__(None, None, None)

    # -- submit -----------------------------------------------------------------------------------

    def submit(self, specs: Iterable[TaskSpec], on_stored: Callable[[int], None] | None = None) -> list[Future]:
        """Store tasks, thousands per round trip, and return their futures in the same order.

        When it returns, the tasks are durable. Building one chunk overlaps with storing the one before.

        Args:
            specs: of `new_spec`; parents come before children.
            on_stored: told how many more are stored, for a progress bar.

        Raises:
            InvalidInput: a task is not acceptable; those of the chunks before it are stored.
            StoreUnavailable: the last chunk may or may not be stored.
        """
        futures: list[Future] = []
        self._begin_batch()
        with ThreadPoolExecutor(1, "submit") as pool:
            storing = None
            while chunk := self._build(specs := iter(specs), SUBMIT_CHUNK):
                if storing is not None:
                    storing.result()
                new = [Future(doc["_id"], self) for doc in chunk]
                self._watch(new)
                futures += new
                storing = pool.submit(self._store_chunk, chunk, on_stored)
                if len(chunk) < SUBMIT_CHUNK:
                    break
            if storing is not None:
                storing.result()
        return futures

    def _store_chunk(self, chunk: Sequence[dict[str, Any]], on_stored: Callable[[int], None] | None) -> None:
        dependants.submit(self.store, chunk)
        if on_stored is not None:
            on_stored(len(chunk))

    def _build(self, specs: Iterator[TaskSpec], most: int) -> list[dict[str, Any]]:
        now = datetime.now(UTC)
        sign, version = self._signer.sign, SCHEMA
        documents = []
        for spec in itertools.islice(specs, most):
            documents.append(
                tasks.document(
                    spec,
                    records.pack_inputs(spec.inputs, self._objects.put),
                    client=self.session,
                    seq=time.time_ns(),
                    now=now,
                    signature=sign("task", version, signing.task_fields(spec)),
                )
            )
        return documents

    def new_id(self) -> str:
        """Return an id for a new task: those of one `submit` have a beginning in common."""
        batch, numbers = self._ids
        return f"{batch}-{next(numbers)}"

    def _begin_batch(self) -> None:
        batch = new_batch(time.time(), self.session)
        with self._lock:
            if batch != self._ids[0]:
                self._ids = batch, itertools.count()

    def encode_input(self, name: str, value: object, function: str) -> Input:
        """Encode one argument; what is large goes to the object repository at once.

        Raises:
            EncodingError: it cannot be pickled; the message names it.
            ForeignFuture: it holds a future of another project.
        """
        encoded, links = values.encode_argument(value, name, function)
        if links:
            self._check_links(value, links, name)
        return Input(name, records.blob_of(encoded, self._objects.put), links)

    def _check_links(self, value: object, links: Sequence[Any], name: str) -> None:
        """Refuse futures of other projects; a task of ours exists, since `submit` made it durable."""
        if isinstance(value, Future | Output):
            foreign = value.project is not self and not self._knows([value.__pilot_link__()[0]])
        else:
            unknown = {link.task for link in links if not self.submitted(link.task)}
            foreign = bool(unknown) and not self._knows(sorted(unknown))
        if foreign:
            raise ForeignFuture(
                f"argument {name!r} holds a future of another project than {str(self.config.root)!r}; "
                "pass its result instead"
            )

    def submitted(self, task: str) -> bool:
        """Say whether this session submitted the task."""
        return task.partition("-")[0].endswith(self.session)

    def _knows(self, ids: Sequence[str]) -> bool:
        return len(tasks.get(self.store, ids, ["_id"])) == len(set(ids))

    def register_function(self, code: FunctionCode) -> None:
        """Store a function's code once; large pickles go to the object repository."""
        if code.hash in self._functions:
            return
        stored = code
        if code.pickle is not None and code.pickle.data is not None and code.pickle.size > 1 << 20:
            self._objects.put(values.Encoded(code.pickle.hash, code.pickle.size, (code.pickle.data,)))
            stored = code._replace(pickle=Blob(code.pickle.hash, code.pickle.size, None))
        signature = self._signer.sign("function", SCHEMA, signing.function_fields(stored))
        provenance.put_functions(self.store, [code_document(stored, signature)])
        self._functions.add(code.hash)

    # -- results ----------------------------------------------------------------------------------

    def task(self, task: str) -> Future:
        """Return a future for a task that exists; a shortened id will do.

        Raises:
            TaskNotFound: there is none, or several fit.
        """
        future = Future(tasks.resolve(self.store, task)["_id"], self)
        self._watch([future])
        return future

    def _watch(self, futures: Sequence[Future]) -> None:
        with self._lock:
            if self._watcher is None:
                self._watcher = _Watcher(self)
                self._watcher.start()
            self._watcher.add(futures)

    def decode_result(self, record: dict[str, Any]) -> Any:
        """Verify a record and return the value of its outputs: a function's result, a command's outputs by name.

        Raises:
            SignatureError: it is not what the pool wrote.
            DecodingError: a value does not load here.
            ObjectMissing, ObjectCorrupt: the object repository does not have what the record names.
        """
        records.verify(record, self._signer)
        outputs = records.unpack(record["outputs"], self._objects.get)
        loaded = {entry["name"]: self._load(entry) for entry in outputs}
        return loaded["result"] if loaded.keys() == {"result"} else loaded

    def _load(self, entry: dict[str, Any]) -> Any:
        blob = records.blob_from(entry)
        data = self._objects.get(blob.hash) if blob.data is None else blob.data
        return values.decode(data)

    def state_of(self, task: str) -> State:
        """Return a task's state as the store has it now.

        Raises:
            TaskNotFound: it does not exist.
        """
        found = tasks.get(self.store, [task], ["state"])
        if not found:
            raise TaskNotFound(f"no task {task!r} in this project; `pilot tasks` lists them")
        return State(found[task]["state"])

    def record_of(self, task: str) -> dict[str, Any] | None:
        """Return a task's official record, else its latest, else None."""
        found = tasks.get(self.store, [task], ["official"]).get(task)
        official = official_record(found) if found else None
        if official:
            return provenance.get(self.store, [official]).get(official)
        every = provenance.attempts(self.store, task)
        return every[-1] if every else None

    # -- control ----------------------------------------------------------------------------------

    def cancel(self, *tasks_: str | Future) -> None:
        """Cancel what has not begun, stop what runs; what has ended stays as it is.

        Its dependants fail, reason `upstream`.
        """
        ids = [t.id if isinstance(t, Future) else tasks.resolve(self.store, t)["_id"] for t in tasks_]
        tasks.cancel(self.store, ids, datetime.now(UTC))
        dependants.release(self.store, ids)

    def retry(self, *tasks_: str | Future) -> list[Future]:
        """Make failed or cancelled tasks, and what failed because of them, run again; return new futures.

        Raises:
            InvalidInput: one of them is neither failed nor cancelled.
        """
        ids = [t.id if isinstance(t, Future) else tasks.resolve(self.store, t)["_id"] for t in tasks_]
        for task, doc in tasks.get(self.store, ids, ["state"]).items():
            if doc["state"] not in (State.FAILED, State.CANCELLED):
                raise InvalidInput(f"cannot retry task {task!r}: it is {doc['state']}, not failed or cancelled")
        dependants.retry(self.store, ids)
        return [self.task(task) for task in ids]


_open_projects: list[Project] = []


def open_project(path: Path | str | None = None) -> Project:
    """Return the project of `path` or of the nearest directory above it, to be used with ``with``.

    Raises:
        ProjectNotFound: there is none.
    """
    return Project(find_project(path))


def current_project() -> Project:
    """Return the project that was opened last and is still open.

    Raises:
        PilotError: none is open.
    """
    if not _open_projects:
        raise PilotError("no project is open here; write `with pilot.open() as project:` around this call")
    return _open_projects[-1]


class _Watcher:
    """Follows the ends of tasks and completes their futures; one thread."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._mine: dict[str, list[Future]] = {}
        self._foreign: set[str] = set()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="pilot-results", daemon=True)
        self._lock = threading.Lock()
        self._looked = 0.0
        self._position = 0
        self._warned = False

    def start(self) -> None:
        """Start following."""
        self._thread.start()

    def add(self, futures: Iterable[Future]) -> None:
        """Complete these futures when their tasks have ended."""
        submitted = self._project.submitted
        with self._lock:
            for future in futures:
                self._mine.setdefault(future.id, []).append(future)
                if not submitted(future.id):
                    self._foreign.add(future.id)

    def close(self) -> int:
        """Stop; return how many tasks had not ended."""
        self._closing.set()
        self._thread.join(5.0)
        return len(self._mine)

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
                    self._sweep()
                    self._warn_if_alone(began)
                except StoreError as exc:
                    log.warning("waiting for results: %s", exc)
                    self._closing.wait(1.0)
                except Exception:  # a silent end of this thread would be a silent hang of the program
                    log.exception("results cannot be followed; this is a defect")
                    self._closing.wait(1.0)

    def _sweep(self) -> None:
        """Look at outstanding tasks without a hint, one chunk at a time."""
        now = time.monotonic()
        if now - self._looked < (FOREIGN_S if self._foreign else SWEEP_S):
            return
        self._looked = now
        with self._lock:
            outstanding = [*self._foreign] or list(self._mine)
        if self._position >= len(outstanding):
            self._position = 0
        chunk = outstanding[self._position : self._position + tasks.CHUNK]
        self._position += tasks.CHUNK
        self._look(chunk)

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
        for record in provenance.get(self._project.store, wanted, _RESULT_FIELDS).values() if wanted else ():
            if record["outcome"] in GOOD:
                for future in self._pop(record["task"]):
                    self._succeed(future, record)

    def _pop(self, task: str) -> list[Future]:
        with self._lock:
            self._foreign.discard(task)
            return self._mine.pop(task, [])

    def _succeed(self, future: Future, record: dict[str, Any]) -> None:
        if not future.done():
            future.set_result(functools.partial(self._project.decode_result, record))

    def _look(self, ids: Sequence[str]) -> None:
        """Fetch those of `ids` that have ended and complete their futures."""
        wanted = [task for task in ids if task in self._mine]
        if not wanted:
            return
        store = self._project.store
        docs = tasks.get(store, wanted, ["state", "official", "reason", "message", "attempt", "pending", "name"])
        ended = {task: doc for task, doc in docs.items() if doc["state"] in ENDED}
        officials = [name for doc in ended.values() if (name := official_record(doc))]
        there = provenance.get(store, officials, _RESULT_FIELDS) if officials else {}
        for task, doc in ended.items():
            record = there.get(official_record(doc) or "")
            if doc["state"] == State.DONE and record is None:
                continue  # cannot be: the record comes first
            for future in self._pop(task):
                self._complete(future, doc, record)

    def _complete(self, future: Future, doc: dict[str, Any], record: dict[str, Any] | None) -> None:
        if future.done():
            return
        if doc["state"] == State.CANCELLED:
            future.end_cancelled()
        elif doc["state"] == State.DONE and record is not None:
            self._succeed(future, record)
        else:
            future.set_exception(failure_of(doc, record))


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
        text = f"{head} on host {cause.get('host') or record.get('host', '?')}, rank {cause.get('rank', '?')}, "
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
