"""What the cache asks of the store: records by their keys, and which of them are not to be served again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from pilot.model import official_record
from pilot.states import Outcome
from pilot.store import provenance, schema, tasks
from pilot.store.mongo import Store, translating
from pilot.store.tasks import BY_ID, Document, chunks

_BATCH = 10_000
"""What is read here is small: all of it in one answer."""
_EPOCH = datetime.fromtimestamp(0, UTC)


class Run(NamedTuple):
    """One attempt under a key."""

    record: str
    outcome: Outcome


def ensure(store: Store) -> None:
    """Make sure that records can be found by their keys."""
    schema.ensure(store, "cache", "like")


@translating("look for equal tasks")
def runs(store: Store, keys: Iterable[str]) -> dict[str, list[Run]]:
    """Return the attempts under each of these keys, the latest first; keys without any are left out (index `cache`)."""
    found: dict[str, list[tuple[datetime, Run]]] = {}
    fields = {"cache.key": 1, "outcome": 1, "time.finished": 1, "_id": 1}
    for part in chunks(list(dict.fromkeys(keys))):
        query = {"cache.key": {"$in": list(part)}}
        for doc in store.provenance.find(query, fields, hint="cache", batch_size=_BATCH):
            run = Run(doc["_id"], Outcome(doc["outcome"]))
            found.setdefault(doc["cache"]["key"], []).append((doc.get("time", {}).get("finished", _EPOCH), run))
    return {key: [run for _, run in sorted(several, reverse=True)] for key, several in found.items()}


@translating("look for similar tasks")
def likes(store: Store, likes: Iterable[str], fields: Sequence[str]) -> dict[str, Document]:
    """Return the latest record of each of these looser keys, if there is one, with `fields` (index `like`)."""
    latest: dict[str, tuple[datetime, str]] = {}
    keyed = {"cache.like": 1, "time.finished": 1, "_id": 1}
    for part in chunks(list(dict.fromkeys(likes))):
        query = {"cache.like": {"$in": list(part)}}
        for doc in store.provenance.find(query, keyed, hint="like", batch_size=_BATCH):
            this = doc.get("time", {}).get("finished", _EPOCH), doc["_id"]
            latest[doc["cache"]["like"]] = max(this, latest.get(doc["cache"]["like"], this))
    docs: dict[str, Document] = {}
    for part in chunks([name for _, name in latest.values()]):
        docs |= {doc["_id"]: doc for doc in store.provenance.find({"_id": {"$in": list(part)}}, list(fields))}
    return {like: docs[name] for like, (_, name) in latest.items() if name in docs}


@translating("read functions")
def codes(store: Store, hashes: Iterable[str], fields: Sequence[str]) -> dict[str, Document]:
    """Return `fields` of those functions that exist, by hash."""
    return {doc["_id"]: doc for doc in store.functions.find({"_id": {"$in": list(hashes)}}, list(fields))}


# -- not to be served again -----------------------------------------------------------------------


@translating("invalidate results")
def invalidate(store: Store, ids: Sequence[str], reason: str | None, now: datetime) -> list[str]:
    """Mark tasks, so that their results are not taken for others any more; a `reason` of None takes that back.

    Repeatable.

    Returns:
        the tasks that made these results: instead of one that was cached itself, that whose result it took.
    """
    made = _makers(store, ids)
    mark = {"$unset": {"invalid": ""}} if reason is None else {"$set": {"invalid": {"at": now, "reason": reason}}}
    for part in chunks(made):
        store.tasks.update_many({"_id": {"$in": list(part)}}, mark, hint=BY_ID)
    return made


def _makers(store: Store, ids: Sequence[str]) -> list[str]:
    found = tasks.get(store, ids, ["official"])
    officials = {task: official_record(found[task]) or "" for task in ids if task in found}
    docs = provenance.get(store, officials.values(), ["cached_from"])
    taken = {task: docs.get(record, {}).get("cached_from") for task, record in officials.items()}
    return list(dict.fromkeys(record.rpartition(":")[0] if record else task for task, record in taken.items()))


@translating("look for invalidated results")
def invalid(store: Store, ids: Iterable[str]) -> dict[str, str]:
    """Return those of these tasks whose results must not be taken, and why."""
    found: dict[str, str] = {}
    for part in chunks(list(dict.fromkeys(ids))):
        query = {"_id": {"$in": list(part)}, "invalid": {"$exists": True}}
        found |= {doc["_id"]: doc["invalid"]["reason"] for doc in store.tasks.find(query, {"invalid.reason": 1})}
    return found


# -- how well it does -----------------------------------------------------------------------------


class Tally(NamedTuple):
    """Of all ended attempts of tasks with caching on."""

    hits: int
    misses: int
    saved_s: float
    """Seconds that the attempts took whose results were taken."""


@translating("count cached tasks")
def tally(store: Store) -> Tally:
    """Return what the project's pools have counted."""
    sums: Document = {name: {"$sum": f"$cache.{name}"} for name in Tally._fields}
    for doc in store.pools.aggregate([{"$match": {"cache": {"$exists": True}}}, {"$group": {"_id": None, **sums}}]):
        return Tally(int(doc["hits"]), int(doc["misses"]), float(doc["saved_s"]))
    return Tally(0, 0, 0.0)
