"""What the tests of the queue share: tasks to submit, pools that commit, a store that counts, fails or is raced."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any

from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient
from pymongo.errors import AutoReconnect
from pymongo.monitoring import CommandFailedEvent, CommandListener, CommandStartedEvent, CommandSucceededEvent

from pilot import records
from pilot.model import Blob, Input, Link, record_id
from pilot.resources import Resources, TaskSpec
from pilot.states import Kind, Outcome, PoolState
from pilot.store import dependants, mongo, pilots, provenance, tasks
from pilot.store.mongo import Store
from pilot.store.tasks import Document, End

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

Key = tuple[str, int]

_places = itertools.count()


# -- tasks ------------------------------------------------------------------------------------------


def task(
    name: str,
    *parents: str,
    waits: str = "done",
    priority: int = 0,
    retries: int = 0,
    cores: int = 1,
    client: str = "client",
) -> Document:
    """Return a task's document as a client submits it; later calls stand later in the order of service."""
    links = tuple(Link(f"x[{place}]", parent, None) for place, parent in enumerate(parents))
    spec = TaskSpec(
        name, Kind.FUNCTION, "f", (Input("x", Blob("0" * 64, 5, b"jnull"), links),), function="f" * 64,
        resources=Resources(cores), priority=priority, retries=retries, waits=waits,
    )  # fmt: skip
    return tasks.document(spec, [], client=client, seq=next(_places), now=NOW, signature=b"signed")


def submit(store: Store, *documents: Document) -> None:
    """Store tasks as a client does."""
    dependants.submit(store, documents)


def states(store: Store) -> dict[str, str]:
    """Return what each task is, joins left out; with the reason of those that no attempt of theirs has failed."""
    found = {}
    for doc in store.tasks.find({"kind": {"$ne": "join"}}, ["state", "reason"]):
        reason = doc.get("reason")
        found[doc["_id"]] = reason if reason in ("upstream", "missing") else doc["state"]
    return found


def state(store: Store, name: str) -> str:
    """Return what one task is, as `states` says it."""
    return states(store)[name]


def whole(store: Store) -> dict[str, list[Document]]:
    """Return all that must not change when an operation is repeated."""
    names = ("tasks", "provenance", "pools", "pilots")
    return {name: sorted(store.database[name].find(), key=lambda doc: doc["_id"]) for name in names}


# -- pools ------------------------------------------------------------------------------------------


def open_pool(store: Store, token: str) -> str:
    """Make a live pool and return its token."""
    pilots.open_pool(store, token, "pilot", {})
    return token


def kill_pool(store: Store, token: str) -> None:
    """Declare a pool dead."""
    pilots.close_pool(store, token, PoolState.DEAD, "killed")


def lease(store: Store, token: str, limit: int = 1000, bucket: int = 0, classes: Iterable[str] = ()) -> dict[str, int]:
    """Lease, and return task → attempt in the order of service."""
    wanted = list(classes) or tasks.ready_classes(store)
    return {doc["_id"]: doc["attempt"] for doc in tasks.lease(store, token, wanted, limit, bucket, NOW)}


def record(name: str, attempt: int, token: str, outcome: Outcome) -> RawBSONDocument:
    """Return the record of one attempt, as small as can be."""
    doc: Document = {
        "_id": record_id(name, attempt), "task": name, "attempt": attempt, "token": token,
        "outcome": outcome.value, "inputs": [], "outputs": [],
    }  # fmt: skip
    return provenance.encode(doc, unsealed, records.minimal)[0]


def unsealed(doc: Document, digest: str) -> Document:
    """Be the seal of a store without a key."""
    return {"chain": {"token": doc["token"], "seq": 0, "prev": ""}, "digest": digest, "signature": b"signed"}


def lost_record(doc: Document) -> RawBSONDocument:
    """Return the record that a reaper writes."""
    made = records.lost_record(doc, doc["lease"], "its pool died", NOW)
    return provenance.encode(made, unsealed, records.minimal)[0]


def record_all(store: Store, token: str, ends: Mapping[Key, Outcome]) -> list[End]:
    """Insert the records of attempts (step 2 of the commit) and return the ends as the store has them."""
    made = [record(name, attempt, token, outcome) for (name, attempt), outcome in ends.items()]
    mine = [End(name, attempt, token, outcome, "client") for (name, attempt), outcome in ends.items()]
    return provenance.settle(store, made, mine)


def commit(store: Store, token: str, ends: Mapping[Key, Outcome]) -> list[End]:
    """Commit attempts as a pool does: records, end states, dependants."""
    settled = record_all(store, token, ends)
    tasks.finish(store, settled, NOW)
    dependants.release(store, [end.task for end in settled])
    return settled


def end_all(store: Store, token: str, held: Mapping[str, int], outcome: Outcome = Outcome.SUCCEEDED) -> None:
    """Commit all that was leased with one outcome."""
    commit(store, token, dict.fromkeys(held.items(), outcome))


def run(store: Store, token: str, **outcomes: Outcome) -> None:
    """Lease what is ready and end the tasks named, each with its outcome; give back the others."""
    held = lease(store, token)
    assert outcomes.keys() <= held.keys(), f"{sorted(outcomes)} should be ready, but ready are {sorted(held)}"
    commit(store, token, {(name, held[name]): outcome for name, outcome in outcomes.items()})
    tasks.give_back(store, token, [key for key in held.items() if key[0] not in outcomes])


def reap(store: Store) -> int:
    """Reap all that the dead have leased; return how many attempts."""
    return sum(pilots.reap(store, token, lost_record) for token in pilots.dead_tokens(store))


def quiesce(store: Store) -> None:
    """Reap and reconcile until there is nothing more to do; every round does some of it."""
    for _ in range(1000):
        if reap(store) + dependants.reconcile(store) == 0:
            return
    marked = list(store.tasks.find({"$or": [{m: True} for m in ("unchecked", "unreleased", "revive")]}).limit(3))
    raise AssertionError(f"after 1000 rounds there is still something to reconcile: {marked}")


# -- operations that may be repeated ---------------------------------------------------------------


def repeated(store: Store, operation: Callable[[], object]) -> None:
    """Do something, do it again, and make sure that the second time changed nothing."""
    operation()
    once = whole(store)
    operation()
    assert whole(store) == once


def untouched(store: Store, operation: Callable[[], object]) -> None:
    """Make sure that an operation changes nothing."""
    before = whole(store)
    operation()
    assert whole(store) == before


def force(store: Store, name: str, what: str) -> None:
    """Bring a task that is ready into a state, through a pool of its own; `cancelled` as a person does."""
    if what == "cancelled":
        tasks.cancel(store, [name], NOW)
    elif what != "ready":
        token = open_pool(store, f"pool-of-{name}")
        held = lease(store, token)
        tasks.give_back(store, token, [key for key in held.items() if key[0] != name])
        if what != "leased":
            commit(store, token, {(name, held[name]): {"done": Outcome.SUCCEEDED, "failed": Outcome.FAILED}[what]})


# -- a store that counts, fails, is raced --------------------------------------------------------------


class Commands(CommandListener):
    """Counts the commands that a client sends, and calls `before` with the name of each one first."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        self.before: Callable[[str], object] = lambda _: None
        self.errors: list[Exception] = []
        """What `before` raised: the driver would only print it."""

    def started(self, event: CommandStartedEvent) -> None:
        if event.command_name in ("find", "getMore", "insert", "update", "delete", "aggregate", "distinct", "count"):
            self.count[event.command_name] += 1
            try:
                self.before(event.command_name)
            except Exception as exc:  # noqa: BLE001
                self.errors.append(exc)

    def succeeded(self, event: CommandSucceededEvent) -> None: ...

    def failed(self, event: CommandFailedEvent) -> None: ...

    @contextmanager
    def at_most(self, limit: float, what: str) -> Iterator[None]:
        """Fail if the body takes more than `limit` commands."""
        before = self.count.copy()
        yield
        used = self.count - before
        assert used.total() <= limit, f"{what} took {used.total()} commands, at most {limit:g}: {dict(used)}"

    def once(self, command: str, action: Callable[[], object]) -> None:
        """Do something else right before the next `command` goes out."""

        def before(name: str) -> None:
            if name == command:
                self.before = lambda _: None
                action()

        self.before = before


@contextmanager
def listening(uri: str, database: str, monkeypatch: Any) -> Iterator[tuple[Store, Commands]]:
    """Open a store on a database a second time, with a listener."""
    commands = Commands()
    with monkeypatch.context() as patch:
        patch.setattr(mongo, "MongoClient", partial(MongoClient, event_listeners=[commands]))
        opened = Store(uri, database)
        opened.__enter__()
    try:
        yield opened, commands
        assert commands.errors == []
    finally:
        opened.__exit__()


class Crash(Exception):
    """The process has died here: nobody in the product catches this."""


_WRITES = frozenset({"insert_one", "insert_many", "update_one", "update_many", "bulk_write"})


class Faulty:
    """A collection whose writes go wrong: `fault` is called with the number of each, before and after it."""

    def __init__(self, real: Any, numbers: Iterator[int], fault: Callable[[int, str], None]) -> None:
        self._real = real
        self._numbers = numbers
        self._fault = fault

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._real, name)
        if name not in _WRITES:
            return method

        def write(*args: Any, **kwargs: Any) -> Any:
            number = next(self._numbers)
            self._fault(number, "before")
            result = method(*args, **kwargs)
            self._fault(number, "after")
            return result

        return write


@contextmanager
def faulty(store: Store, fault: Callable[[int, str], None]) -> Iterator[None]:
    """Let the writes of tasks and records, numbered from 1, go wrong."""
    real = store.tasks, store.provenance
    numbers = itertools.count(1)
    store.tasks, store.provenance = (Faulty(one, numbers, fault) for one in real)  # type: ignore[assignment]
    try:
        yield
    finally:
        store.tasks, store.provenance = real


def calling(store: Store, action: Callable[[int], object]) -> Callable[[int, str], None]:
    """Return a fault that is none: `action` happens before each write, and may use the store itself."""
    real = store.tasks, store.provenance

    def fault(number: int, when: str) -> None:
        if when == "before":
            slow = store.tasks, store.provenance
            store.tasks, store.provenance = real
            try:
                action(number)
            finally:
                store.tasks, store.provenance = slow

    return fault


@contextmanager
def crash_after(store: Store, writes: int) -> Iterator[list[bool]]:
    """Die when so many writes of tasks and records have gone through; the list tells whether it came to that."""
    crashed: list[bool] = []

    def fault(number: int, when: str) -> None:
        if when == "before" and number > writes:
            crashed.append(True)
            raise Crash

    with faulty(store, fault), suppress(Crash):
        yield crashed


def answers_lost(number: int, when: str) -> None:
    """Be a network that loses the answer to each write after the server has done it."""
    if when == "after":
        raise AutoReconnect("connection closed")


def never_sent(number: int, when: str) -> None:
    """Be a network that loses each write on its way."""
    if when == "before":
        raise AutoReconnect("connection closed")
