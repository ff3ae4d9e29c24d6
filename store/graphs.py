"""From what a person names, a task, a record, a value or a hash, to the graph of records around it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from pilot.errors import RecordNotFound
from pilot.graph import FIELDS, Graph, graph_of
from pilot.model import official_record, record_id
from pilot.records import Get, unpack
from pilot.store import lineage, provenance, schema, tasks
from pilot.store.mongo import Store, translating

LIMIT = 10_000
"""Records of a graph, unless it is told otherwise: whoever asks holds them in memory."""

_HASH = re.compile(r"[0-9a-f]{64}")
_RECORD = re.compile(r"(.+):([0-9]+)")


class Named(NamedTuple):
    """Where a graph begins. For a task or a record both lists are the one record."""

    makers: tuple[str, ...]
    """Records from which to go up."""
    users: tuple[str, ...]
    """Records from which to go down."""
    output: str = ""
    """If one output of the maker is meant: its name. Its users are not looked up yet."""


def named(store: Store, get: Get, text: str) -> Named:
    """Return where the graph of what `text` names begins.

    Args:
        store: the database.
        get: reads an object.
        text: a task's id, which may be shortened (its official record, else the latest); a record's, ``TASK:ATTEMPT``;
            an output of one of these, ``ID/OUTPUT``; or a hash (all records that made or used this content).

    Raises:
        TaskNotFound: no task has this id, or several fit.
        RecordNotFound: there is no such record or output, or nobody made or used the content.
    """
    if _HASH.fullmatch(text):
        return _of_content(store, get, text)
    owner, slash, output = text.partition("/")
    record = _record(store, owner)
    if not slash:
        return Named((record,), (record,))
    made = [entry["name"] for entry in unpack(provenance.get(store, [record], ["outputs"])[record]["outputs"], get)]
    if output not in made:
        raise RecordNotFound(f"record {record!r} has no output {output!r}, only {sorted(made)[:10]}")
    return Named((record,), (), output)


def _record(store: Store, text: str) -> str:
    attempt = _RECORD.fullmatch(text)
    task = tasks.resolve(store, attempt[1] if attempt else text)
    if attempt:
        name = record_id(task["_id"], int(attempt[2]))
        if name not in provenance.get(store, [name], ["_id"]):
            raise RecordNotFound(f"task {task['_id']!r} has no record of attempt {attempt[2]}; `pilot show` lists them")
        return name
    if official := official_record(task):
        return official
    every = provenance.attempts(store, task["_id"])
    if not every:
        raise RecordNotFound(
            f"task {task['_id']!r} is {task['state']} and has no record yet, so there is no graph of it; "
            f"`pilot explain {task['_id']}` says why"
        )
    return str(every[-1]["_id"])


@translating("look for a value")
def _of_content(store: Store, get: Get, digest: str) -> Named:
    """Return the records that made or used this content (indexes `made`, `used`, `joins`)."""
    schema.ensure(store, "made", "used", "joins")
    made = store.provenance.find({"outputs.hash": digest}, {"_id": 1}, hint="made")
    used = store.provenance.find({"inputs.hash": digest}, {"_id": 1}, hint="used")
    makers, users = ([doc["_id"] for doc in found] for found in (made, used))
    users += [name for name, inputs in lineage.long_inputs(store, get) if any(e["hash"] == digest for e in inputs)]
    if not makers and not users:
        raise RecordNotFound(f"no record made or used a value with the hash {digest!r}")
    return Named(tuple(sorted(makers)), tuple(sorted(users)))


@translating("follow links")
def _users_of(store: Store, get: Get, record: str, output: str) -> list[str]:
    """Return the records that used one output of a record (indexes `lineage`, `joins`)."""
    schema.ensure(store, "lineage", "joins")
    source = {"record": record, "output": output}
    query = {"inputs": {"$elemMatch": {f"source.{key}": value for key, value in source.items()}}}
    near = [doc["_id"] for doc in store.provenance.find(query, {"_id": 1}, hint="lineage")]
    far = lineage.long_inputs(store, get)
    return near + [name for name, inputs in far if any(e.get("source", {}).items() >= source.items() for e in inputs)]


# -- around it ------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Found:
    """The records of a graph that is being put together, those that were found first in front."""

    limit: int
    ids: dict[str, None] = field(default_factory=dict)
    cut: str = ""

    def add(self, ids: Iterable[str]) -> None:
        """Take in records while there is room."""
        for name in ids:
            if name not in self.ids and len(self.ids) >= self.limit:
                self.cut = "limit"
                return
            self.ids[name] = None

    def walk(self, step: Callable[..., lineage.Walk], starts: Iterable[str], depth: int | None) -> list[str]:
        """Take in what a walk finds, and return it without its starts."""
        first = dict.fromkeys(starts)
        if not first:
            return []
        walk = step(first, depth, self.limit + 1)
        self.add(walk.distance)
        self.cut = self.cut or walk.cut
        return [name for name in walk.distance if name not in first]


def around(
    store: Store, get: Get, start: Named, up: int | None = None, down: int | None = 0, *, siblings: bool = False,
    attempts: bool = False, limit: int = LIMIT,
) -> Graph:  # fmt: skip
    """Return the graph around what was named; runs nearest first, those above before those below.

    Args:
        store: the database.
        get: reads an object.
        start: of `named`.
        up: so many links towards what it came from; None: all.
        down: so many links towards what was made of it; None: all.
        siblings: with the records that it directly came from, and all others that used an output of them.
        attempts: with the records of all attempts of every task in it; of those that failed or were lost, nothing was
            used.
        limit: so many records at most; the graph says if it was `cut`.

    Raises:
        ObjectMissing, ObjectCorrupt: a list of inputs is gone.
    """
    found = _Found(limit)
    starts = tuple(dict.fromkeys((*start.makers, *start.users)))
    found.add(starts)

    def above(ids: Iterable[str], depth: int | None, most: int) -> lineage.Walk:
        return lineage.ancestors(store, get, ids, depth, most)

    def below(ids: Iterable[str], depth: int | None, most: int) -> lineage.Walk:
        return lineage.descendants(store, get, ids, depth, most)

    found.walk(above, start.makers, up)
    if start.output and down != 0:
        users = _users_of(store, get, start.makers[0], start.output)
        found.add(users)
        found.walk(below, users, None if down is None else down - 1)
    elif down != 0:
        found.walk(below, start.users, down)
    if siblings:
        cut = found.cut
        parents = found.walk(above, starts, 1)
        found.walk(below, parents, 1)
        found.cut = found.cut if found.cut == "limit" else cut
    if attempts:
        found.add(_other_attempts(store, found.ids))
    there = provenance.get(store, found.ids, FIELDS)
    return graph_of((there[name] for name in found.ids if name in there), get, found.cut, starts)


def _other_attempts(store: Store, ids: Iterable[str]) -> Iterator[str]:
    """Return those records of the same tasks that exist, of whatever attempt."""
    latest = tasks.get(store, [name.rpartition(":")[0] for name in ids], ["attempt"])
    wanted = [record_id(task, attempt) for task, doc in latest.items() for attempt in range(1, doc["attempt"] + 1)]
    return iter(provenance.get(store, wanted, ["_id"]))
