"""What the documents of a project name in its object repository.

Everything is read, and not at one moment: whoever removes what is not named looks twice, and spares what is new.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from pilot import mentions
from pilot.errors import PilotError, SignatureError
from pilot.mentions import Named
from pilot.model import official_record
from pilot.records import Get, unpack
from pilot.states import ENDED
from pilot.store import provenance, spool, tasks
from pilot.store.mongo import Store, translating
from pilot.store.tasks import Document, batches

_CONTENTS = ["inputs", "outputs", "placement"]


class Use(NamedTuple):
    """One document that names something, or of which that cannot be told."""

    by: str
    """``record ID``, ``task ID`` …, for people."""
    named: Named | None
    problem: PilotError | None = None
    """Why a list, a large value or a manifest of it cannot be read."""


def _uses(by: str, named: Iterator[Named]) -> Iterator[Use]:
    try:
        for one in named:
            yield Use(by, one)
    except PilotError as exc:
        yield Use(by, None, exc)
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        yield Use(by, None, SignatureError(f"its document is spoilt: {exc!r}"))


def of_records(store: Store, get: Get, ids: Iterable[str] | None = None) -> Iterator[Use]:
    """Yield what records name; of all, or of those with these ids."""
    query: Document = {} if ids is None else {"_id": {"$in": list(ids)}}
    with translating("read what records name", store.where):
        for doc in store.provenance.find(query, _CONTENTS, batch_size=1000):
            yield from _uses(f"record {doc['_id']}", mentions.of_record(doc, get))


def of_tasks(store: Store, get: Get) -> Iterator[Use]:
    """Yield what tasks name; also of those that have ended, which may be retried."""
    with translating("read what tasks name", store.where):
        for doc in store.tasks.find({"inputs": {"$exists": True}}, ["inputs"], batch_size=1000):
            yield from _uses(f"task {doc['_id']}", mentions.of_task(doc, get))


def of_functions(store: Store) -> Iterator[Use]:
    """Yield the large pickles of functions, and the texts of their modules."""
    large = {"pickle.hash": {"$exists": True}, "pickle.data": {"$exists": False}}
    query = {"$or": [large, {"module_text": True}]}
    with translating("read what functions name", store.where):
        for doc in store.functions.find(query, ["pickle", "module_text", "module_hash", "qualname"]):
            yield from _uses(f"function {doc.get('qualname', doc['_id'])}", mentions.of_function(doc))


def of_spool(folder: Path, get: Get) -> Iterator[Use]:
    """Yield what results name that wait for the store."""
    for record in spool.records(folder):
        yield from _uses(f"spooled record {record['_id']}", mentions.of_record(record, get))


def everything(store: Store, get: Get, spool_folder: Path) -> Iterator[Use]:
    """Yield all that anything names.

    The spool is read first: what moves from there into the store meanwhile is seen there.
    """
    yield from of_spool(spool_folder, get)
    yield from of_records(store, get)
    yield from of_tasks(store, get)
    yield from of_functions(store)


def needed(store: Store, get: Get) -> set[str]:
    """Return the hashes of what tasks that have not ended will read: their inputs, and outputs that they link to."""
    found: set[str] = set()
    parents: set[str] = set()
    with translating("read what tasks need", store.where):
        unended = {"state": {"$nin": [state.value for state in ENDED]}, "inputs": {"$exists": True}}
        for doc in store.tasks.find(unended, ["inputs"]):
            found.update(named.hash for named in mentions.of_task(doc, get))
            parents.update(link[1] for entry in unpack(doc["inputs"], get) for link in entry.get("links", ()))
    for part in batches(parents):
        docs = tasks.get(store, part, ["official"])
        officials = [name for doc in docs.values() if (name := official_record(doc))]
        for record in provenance.get(store, officials, _CONTENTS).values():
            found.update(named.hash for named in mentions.of_record({"outputs": record["outputs"]}, get))
    return found
