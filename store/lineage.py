"""Walks from record to record along the links that their inputs name: up to what they used, down to what used them.

A record that is `cached` leads to the one whose outputs it took as if it had used them.

A walk goes level by level, with a query for thousands of records. A record whose inputs are too many for its document
keeps their list as an object, which no index knows: a walk down looks into all such lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from pilot.records import Get, unpack
from pilot.store import schema
from pilot.store.mongo import Store, translating
from pilot.store.tasks import Document, chunks

LIMIT = 100_000
"""Records of a walk, unless it is told otherwise."""

Links = Iterator[tuple[str, str]]
"""Pairs of a record and one whose output it used."""


@dataclass(slots=True)
class Walk:
    """What a walk came by."""

    distance: dict[str, int] = field(default_factory=dict)
    """Record → how many links away, those where it began being 0; nearest first, each once."""
    cut: str = ""
    """What ended it before there was nothing more: ``depth`` or ``limit``; empty: nothing."""


def ancestors(store: Store, get: Get, starts: Iterable[str], depth: int | None = None, limit: int = LIMIT) -> Walk:
    """Return the records whose outputs went, however indirectly, into these ones.

    Args:
        store: the database.
        get: reads an object.
        starts: ids of records.
        depth: so many links up at most.
        limit: so many records at most, `starts` included.

    Raises:
        ObjectMissing, ObjectCorrupt: a list of inputs is gone.
    """
    return _walk(lambda ids: _above(store, get, ids), starts, depth, limit)


def descendants(store: Store, get: Get, starts: Iterable[str], depth: int | None = None, limit: int = LIMIT) -> Walk:
    """Return the records that used, however indirectly, an output of these ones; as `ancestors`."""
    schema.ensure(store, "lineage", "joins", "copies")
    joins = _Joins(store, get)
    return _walk(lambda ids: ((parent, child) for child, parent in _below(store, joins, ids)), starts, depth, limit)


def _walk(step: Callable[[Sequence[str]], Links], starts: Iterable[str], depth: int | None, limit: int) -> Walk:
    """Follow links from level to level; `step` gives pairs of a record of this level and one that is next to it."""
    walk = Walk(dict.fromkeys(starts, 0))
    level, far = list(walk.distance), 0
    while level:
        if far == depth:
            walk.cut = "depth" if any(next_ not in walk.distance for _, next_ in step(level)) else ""
            break
        far += 1
        found: list[str] = []
        for _, next_ in step(level):
            if next_ in walk.distance:
                continue
            if len(walk.distance) >= limit:
                walk.cut = "limit"
                return walk
            walk.distance[next_] = far
            found.append(next_)
        level = found
    return walk


def sources(entries: Iterable[Document]) -> Iterator[str]:
    """Yield the record that each linked one of a record's inputs came from."""
    for entry in entries:
        if "source" in entry:
            yield entry["source"]["record"]


@translating("follow links")
def _above(store: Store, get: Get, ids: Sequence[str]) -> Links:
    found: list[tuple[str, str]] = []
    for part in chunks(ids):
        fields = ["inputs.source.record", "inputs.object", "inputs.count", "cached_from"]
        for doc in store.provenance.find({"_id": {"$in": list(part)}}, fields):
            stored = doc.get("inputs", [])
            entries = unpack(stored, get) if isinstance(stored, dict) else stored
            found += [(doc["_id"], record) for record in sources(entries)]
            if "cached_from" in doc:
                found.append((doc["_id"], doc["cached_from"]))
    return iter(found)


@translating("follow links")
def _below(store: Store, joins: _Joins, ids: Sequence[str]) -> Links:
    found: list[tuple[str, str]] = []
    for part in chunks(ids):
        wanted = set(part)
        query = {"inputs.source.record": {"$in": list(part)}}
        for doc in store.provenance.find(query, ["inputs.source.record"], hint="lineage"):
            found += [(doc["_id"], record) for record in sources(doc["inputs"]) if record in wanted]
        for doc in store.provenance.find({"cached_from": {"$in": list(part)}}, ["cached_from"], hint="copies"):
            found.append((doc["_id"], doc["cached_from"]))
        found += joins.below(wanted)
    return iter(found)


class _Joins:
    """The records that keep their inputs as objects, read once for a walk."""

    def __init__(self, store: Store, get: Get) -> None:
        self._store = store
        self._get = get
        self._sources: dict[str, frozenset[str]] | None = None

    def below(self, parents: set[str]) -> list[tuple[str, str]]:
        """Return them with those of these records that they used."""
        if self._sources is None:
            self._sources = {name: frozenset(sources(inputs)) for name, inputs in long_inputs(self._store, self._get)}
        return [(child, parent) for child, of in self._sources.items() for parent in parents & of]


def long_inputs(store: Store, get: Get) -> Iterator[tuple[str, list[Document]]]:
    """Yield each record that keeps its inputs as an object, and them (index `joins`, to be ensured before)."""
    with translating("follow links", store.where):
        for doc in store.provenance.find({"inputs.object": {"$type": "string"}}, ["inputs"], hint="joins"):
            if isinstance(doc["inputs"], dict):
                yield doc["_id"], unpack(doc["inputs"], get)
