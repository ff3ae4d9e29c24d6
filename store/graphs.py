"""From what a person names, a task, a record, a value or a hash, to the graph of records around it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from pilot.errors import RecordNotFound
from pilot.graph import FIELDS, Graph, graph_of
from pilot.model import official_record, record_id
from pilot.records import Get, unpack
from pilot.store import lineage, provenance, schema, tasks
from pilot.store.mongo import Store, translating
from pilot.store.tasks import Document

LIMIT = 10_000
"""Records of a graph, unless it is told otherwise: whoever asks holds them in memory."""

_HASH = re.compile(r"[0-9a-f]{64}")


class Named(NamedTuple):
    """Where a graph begins. For a task or a record both lists are the one record."""

    makers: tuple[str, ...]
    """Records from which to go up."""
    users: tuple[str, ...]
    """Records from which to go down."""
    output: str = ""
    """If one output of the maker is meant: its name. Its users are not looked up yet."""
    item: str = ""
    """If one item of that output is meant: its name."""


def named(store: Store, get: Get, text: str) -> Named:
    """Return where the graph of what `text` names begins.

    Args:
        store: the database.
        get: reads an object.
        text: a task's id, which may be shortened (its official record, else the latest); a record's, ``TASK:ATTEMPT``;
            an output of one of these, ``ID/OUTPUT``, or an item of a function's result, ``ID/ITEM``; or a hash: all
            records that made or used this content.

    Raises:
        TaskNotFound: no task has this id, or several fit.
        RecordNotFound: there is no such record or output, or nobody made or used the content.
    """
    if _HASH.fullmatch(text):
        return _of_content(store, get, text)
    owner, slash, output = text.partition("/")
    record = provenance.meant(store, owner)[-1]
    if not slash:
        return Named((record,), (record,))
    stored = provenance.get(store, [record], ["outputs"])[record]["outputs"]
    made = {entry["name"]: entry for entry in unpack(stored, get)}
    if output in made:
        return Named((record,), (), output)
    result = made.get("result", {"value": None})
    if "value" not in result or (isinstance(result["value"], dict) and output in result["value"]):
        return Named((record,), (), "result", output)
    raise RecordNotFound(f"record {record!r} has no output {output!r}, only {sorted(made)[:10]}")


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
def _users_of(store: Store, get: Get, start: Named) -> list[str]:
    """Return the records that used the output that was named (indexes `lineage`, `joins`)."""
    schema.ensure(store, "lineage", "joins")
    items = [start.item, None] if start.item else None  # whoever used all of it used the item

    def uses(entry: Document) -> bool:
        source = entry.get("source", {})
        if source.get("record") != start.makers[0] or source.get("output") != start.output:
            return False
        return items is None or source.get("item") in items

    near = store.provenance.find({"inputs.source.record": start.makers[0]}, ["inputs"], hint="lineage")
    found = [doc["_id"] for doc in near if any(map(uses, doc["inputs"]))]
    return found + [name for name, inputs in lineage.long_inputs(store, get) if any(map(uses, inputs))]


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
        attempts: with the records of all attempts of every task in it; else each task has the one that counts.
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
        users = _users_of(store, get, start)
        found.add(users)
        found.walk(below, users, None if down is None else down - 1)
    elif down != 0:
        found.walk(below, start.users, down)
    if siblings:
        cut = found.cut
        parents = found.walk(above, starts, 1)
        found.walk(below, parents, 1)
        found.cut = found.cut if found.cut == "limit" else cut
    docs = tasks.get(store, [_task_of(name) for name in found.ids], ["attempt", "official"])
    if attempts:
        every = [record_id(task, n) for task, doc in docs.items() for n in range(1, doc["attempt"] + 1)]
        found.add(provenance.get(store, every, ["_id"]))
    superseded = set() if attempts else {name for name in found.ids if _superseded(name, docs)} - set(starts)
    there = provenance.get(store, found.ids, FIELDS)
    kept = (there[name] for name in found.ids if name in there and name not in superseded)
    return graph_of(kept, get, found.cut, starts)


def _task_of(record: str) -> str:
    return record.rpartition(":")[0]


def _superseded(record: str, docs: Mapping[str, Document]) -> bool:
    """Say whether another attempt of the task counts: one that ended it, or one that began after this one."""
    doc = docs.get(_task_of(record))
    if doc is None:  # nothing is known of the task but its records
        return False
    return record != (official_record(doc) or record_id(_task_of(record), doc["attempt"]))
