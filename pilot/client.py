"""A project as a user's program sees it: submit tasks, get their results, cancel and retry.

One thread per open project follows what ends; it starts with the first future that is waited for and stops
when the project is closed.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pilot import offers, records, signing, values
from pilot.config import ProjectConfig, find_project
from pilot.errors import ForeignFuture, InvalidInput, NotTrusted, PilotError, SignatureError, TaskNotFound
from pilot.future import Future, Output
from pilot.model import SCHEMA, Blob, FunctionCode, Input, new_batch, new_token, official_record, whole_result
from pilot.prepare import code_document
from pilot.resources import Resources, TaskSpec
from pilot.results import Watcher
from pilot.states import GOOD, State
from pilot.store import dependants, provenance, tasks
from pilot.store.access import checked, store_of
from pilot.store.mongo import Store
from pilot.store.objects import Objects

FIRST_CHUNK = 250
"""Tasks in the first round trip, twice as many in each further one: idle pools begin with it at once."""
SUBMIT_CHUNK = 2000
"""Tasks per round trip."""


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
        self._checked: set[str] = set()
        """Resource classes that were compared with what pilots offer."""
        self._objects = Objects(config.objects_folder)
        self._watcher: Watcher | None = None
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
        key = signing.load_key(self.config.key_file)
        self._signer = signing.Signer(key, self.config.id, self.config.trusted_folder)
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
                    "them, `pilot cancel --all` ends them"
                )
        self.store.__exit__(None, None, None)

    # -- submit -----------------------------------------------------------------------------------

    def check_offer(self, needs: Resources) -> None:
        """See that somebody can run tasks with these needs; looks once for each class.

        Raises:
            InvalidInput: the project's site never could; the message names its limit.
        """
        if needs.key not in self._checked and needs._replace(walltime_s=None) != Resources():
            offers.check(self.store, self.config, needs)
            self._checked.add(needs.key)

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
        size = FIRST_CHUNK
        self._begin_batch()
        with ThreadPoolExecutor(1, "submit") as pool:
            storing = None
            while chunk := self._build(specs := iter(specs), size):
                if storing is not None:
                    storing.result()
                new = [Future(doc["_id"], self) for doc in chunk]
                self._watch(new)
                futures += new
                storing = pool.submit(self._store_chunk, chunk, on_stored)
                if len(chunk) < size:
                    break
                size = min(2 * size, SUBMIT_CHUNK)
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
        self._watch([future], new=False)
        return future

    def _watch(self, futures: Sequence[Future], new: bool = True) -> None:
        with self._lock:
            if self._watcher is None:
                self._watcher = Watcher(self)
                self._watcher.start()
            self._watcher.add(futures, new)

    def value_of(self, record: bytes) -> Any:
        """Verify a record and return the value of its outputs: a function's result, a command's outputs by name.

        What was imported from a project whose key is not trusted is returned if it is data, and never unpickled.

        Args:
            record: as `provenance.get_raw` returns it.

        Raises:
            SignatureError: it is not what the pool wrote.
            NotTrusted: it was imported, and cannot be read without running code.
            DecodingError: a value does not load here.
            ObjectMissing, ObjectCorrupt: the object repository does not have what the record names.
        """
        doc = provenance.decode(record)
        untrusted = None
        try:
            records.verify(doc, self._signer)
        except NotTrusted as exc:
            untrusted = exc
        if doc["outcome"] not in GOOD:
            raise SignatureError(f"record {doc['_id']!r} says {doc['outcome']!r}, its task says done")
        loaded = {}
        for entry in records.unpack(doc["outputs"], self._objects.get):
            data = self._bytes_of(entry)
            if untrusted is not None and not values.is_data(data):
                raise NotTrusted(f"output {entry['name']!r} of record {doc['_id']!r} is not data: {untrusted}")
            loaded[entry["name"]] = values.decode(data)
        return whole_result(loaded)

    def _bytes_of(self, entry: dict[str, Any]) -> bytes | memoryview:
        """Return the encoding of an output, which has the hash that was signed."""
        blob = records.blob_from(entry)
        if blob.data is None:
            return self._objects.get(blob.hash)
        if values.digest(blob.data) != blob.hash:
            raise SignatureError(f"output {entry['name']!r} of a record is not what was signed: somebody changed it")
        return blob.data

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
        for task, doc in tasks.get(self.store, ids, ["state", "from"]).items():
            tasks.refuse_imported(doc)
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
