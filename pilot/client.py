"""A project as a user's program sees it: submit tasks, get their results, cancel and retry.

One thread per open project follows what ends; it starts with the first future that is waited for and stops
when the project is closed.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pilot import offers, records, signing, values
from pilot.compare import RTOL
from pilot.config import ProjectConfig, find_project, user_name
from pilot.context import here
from pilot.errors import ForeignFuture, InvalidInput, NotTrusted, PilotError, SignatureError, TaskNotFound
from pilot.future import Future, Output
from pilot.graph import Graph
from pilot.groups import Group
from pilot.model import SCHEMA, Blob, FunctionCode, Input, new_batch, new_token, official_record, whole_result
from pilot.prepare import code_document
from pilot.resources import Resources, TaskSpec
from pilot.results import Watcher
from pilot.search import Search
from pilot.source import own_text
from pilot.states import GOOD, State
from pilot.store import caching, dependants, foreign, graphs, provenance, remarks, tasks
from pilot.store.access import checked, store_of
from pilot.store.mongo import Store
from pilot.store.objects import Objects

if TYPE_CHECKING:
    from pilot.reproduce import Report as Reproduction
    from pilot.verify import Report as Verification

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
        self._signer = signing.signer_of(self.config)
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
        before, here.repository = here.repository, self._objects
        try:
            encoded, links = values.encode_argument(value, name, function)
        finally:
            here.repository = before
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
        text = own_text(code.module, code.module_hash)
        if text is not None:  # so that it can be run again when the file has changed
            self._objects.put(values.Encoded(code.module_hash, len(text), (text,)))
        signature = self._signer.sign("function", SCHEMA, signing.function_fields(stored))
        provenance.put_functions(self.store, [code_document(stored, signature, text is not None)])
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
            loaded[entry["name"]] = self._decoded(data)
        return whole_result(loaded)

    def _decoded(self, data: bytes | memoryview) -> Any:
        before, here.repository = here.repository, self._objects
        try:
            return values.decode(data)
        finally:
            here.repository = before

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

    def verify(self, task: str | Future, depth: int | None = None) -> Verification:
        """Check hashes, signatures and links of a task's record and of all that went into it, `depth` links up at most.

        Args:
            task: a future, a task's id, which may be shortened, or a record's.
            depth: None: as far as links go.

        Raises:
            TaskNotFound: there is none.
            RecordNotFound: no attempt of it has ended.
        """
        from pilot import verify

        ids = provenance.meant(self.store, task.id if isinstance(task, Future) else task)
        return verify.lineage_of(self.store, self._objects, self._signer, ids, depth)

    def reproduce(
        self, task: str | Future, *, depth: int | None = None, rtol: float = RTOL, atol: float = 0.0,
        slots: int | None = None, keep: bool = False,
    ) -> Reproduction:  # fmt: skip
        """Run a task, and all that went into it, again, and compare what comes out; see `pilot.reproduce`."""
        from pilot.reproduce import reproduce

        name = task.id if isinstance(task, Future) else task
        return reproduce(self.config, self.store, name, depth=depth, rtol=rtol, atol=atol, slots=slots, keep=keep)

    def find(
        self, wanted: str | Mapping[str, Any] | None = None, *, sort: str = "-finished", limit: int | None = None,
        fields: Sequence[str] | None = None,
    ) -> Search:  # fmt: skip
        """Return the records that fit, to iterate over; with `count`, `first`, `ids` and `dataframe`.

        Args:
            wanted: an expression, ``'outputs.result.energy < -3 and tags == "eos" and finished > 2d'``, or a filter
                of MongoDB's own; None: all records. Records of all attempts are there, however they ended.
            sort: a field, with ``-`` before it for the largest or latest first.
            limit: at most so many.
            fields: names of fields: then each record is a dict of these.

        Raises:
            ExpressionError: the expression, or a field's name, cannot be read; it points at the character.
        """
        return Search(self.store, self._objects.get, wanted, sort=sort, limit=limit, fields=fields)

    # -- control ----------------------------------------------------------------------------------

    def cancel(self, *tasks_: str | Future) -> None:
        """Cancel what has not begun, stop what runs; what has ended stays as it is.

        Its dependants fail, reason `upstream`.
        """
        ids = self._ids_of(*tasks_)
        tasks.cancel(self.store, ids, datetime.now(UTC))
        dependants.release(self.store, ids)

    def retry(self, *tasks_: str | Future) -> list[Future]:
        """Make failed or cancelled tasks, and what failed because of them, run again; return new futures.

        Raises:
            InvalidInput: one of them is neither failed nor cancelled.
        """
        ids = self._ids_of(*tasks_)
        for task, doc in tasks.get(self.store, ids, ["state", "from"]).items():
            foreign.refuse(doc)
            if doc["state"] not in (State.FAILED, State.CANCELLED):
                raise InvalidInput(f"cannot retry task {task!r}: it is {doc['state']}, not failed or cancelled")
        dependants.retry(self.store, ids)
        return [self.task(task) for task in ids]

    def invalidate(self, *tasks_: str | Future, reason: str = "", undo: bool = False) -> list[str]:
        """Let the results of these tasks not be taken for equal ones any more, or, with `undo`, again.

        What has been taken already stays as it is.

        Args:
            tasks_: ids, which may be shortened, or futures.
            reason: shown to whoever misses the result.
            undo: take back what an earlier call has done.

        Returns:
            the tasks that made these results: instead of one that was cached itself, that whose result it took.
        """
        return caching.invalidate(self.store, self._ids_of(*tasks_), None if undo else reason, datetime.now(UTC))

    def _ids_of(self, *tasks_: str | Future) -> list[str]:
        return [t.id if isinstance(t, Future) else tasks.resolve(self.store, t)["_id"] for t in tasks_]

    # -- where things came from, and what people say of them -----------------------------------------

    def graph(
        self, what: str | Future | Output, up: int | None = None, down: int | None = 0, *, siblings: bool = False,
        attempts: bool = False, limit: int = graphs.LIMIT,
    ) -> Graph:  # fmt: skip
        """Return the runs, values and links around a task, a record, a value or a hash.

        Args:
            what: a future, or one output of it; or the id of a task (may be shortened), of a record
                (``TASK:ATTEMPT``), of an output (``ID/OUTPUT``), or the hash of a value: then all runs that made or
                used this content.
            up: so many links towards what it came from; None: all.
            down: so many links towards what was made of it; None: all.
            siblings: with the runs it directly came from, and all others that used an output of them.
            attempts: with all attempts of every task, else each task has the one that counts.
            limit: so many runs at most, the nearest; `Graph.cut` is then ``limit``.

        Raises:
            TaskNotFound: no task has this id, or several fit.
            RecordNotFound: there is no such record or value.
        """
        if isinstance(what, Output):
            name = f"{what.future.id}/{what.name}"
        else:
            name = what.id if isinstance(what, Future) else what
        start = graphs.named(self.store, self._objects.get, name)
        return graphs.around(
            self.store, self._objects.get, start, up, down, siblings=siblings, attempts=attempts, limit=limit
        )

    def tag(self, *tasks_: str | Future, add: Collection[str] = (), remove: Collection[str] = ()) -> None:
        """Add tags to tasks and remove others. Records keep those that their task had when it was leased.

        Raises:
            TaskNotFound: one of the tasks does not exist.
            InvalidInput: a word cannot be a tag, or a task has as many as it may.
        """
        remarks.tag(self.store, self._ids_of(*tasks_), add, remove)

    def note(self, *tasks_: str | Future, text: str) -> None:
        """Write a note on tasks, with who wrote it and when; notes stay.

        Raises:
            TaskNotFound: one of the tasks does not exist.
            InvalidInput: it is empty or too long, or a task has as many as it may.
        """
        remarks.note(self.store, self._ids_of(*tasks_), text, user_name(), datetime.now(UTC))

    def group(self, name: str) -> Group:
        """Return the group of this name, which need not be there yet.

        Raises:
            InvalidInput: no group can have this name.
        """
        return Group(self.store, name, self._ids_of)


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
