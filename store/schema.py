"""Collections, indexes and the schema version: the one place that knows how the documents are found.

| collection | one document is | found by |
|---|---|---|
| tasks | a task, mutable and small | `_id` = task id; the indexes below, `groups` once there is one |
| provenance | the record of one attempt, never changed | `_id` = ``task:attempt`` |
| superseded | what a pool recorded of an attempt that had been given up as lost before | `_id` = ``task:attempt`` |
| functions, environments | content, written once | `_id` = hash |
| pilots, pools | a pilot; a pool, `_id` = its lease token | `_id` |
| archives | where imported documents came from | `_id` = the archive's id |
| scalers | what is held of asking for a site's pilots | `_id` = the site's name |
| events | capped; hints that save waiting and may be lost | tail |
| meta | the schema version | `_id` = ``schema`` |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pymongo
from pymongo import ASCENDING, IndexModel
from pymongo.errors import OperationFailure

from pilot.errors import SchemaMismatch, SignatureError
from pilot.fields import Field
from pilot.model import SCHEMA
from pilot.states import Kind, State
from pilot.store.mongo import Store, translating

EVENTS_BYTES = 8 * 1024 * 1024

_EXISTS = 48


def _marker(name: str) -> IndexModel:
    """Index only the documents that carry the marker: sweeps read nothing else, and some by id not even those."""
    return IndexModel([(name, ASCENDING), ("_id", ASCENDING)], name=name, partialFilterExpression={name: True})


# Every update of a task looks at every index, so there is none that could be done without: a listing goes by
# `_id`, which grows with time.
TASK_INDEXES = (
    IndexModel(
        [(key, ASCENDING) for key in ("state", "class", "priority", "bucket", "seq")],
        name="ready",
        partialFilterExpression={"state": State.READY.value},
    ),
    IndexModel([("lease", ASCENDING)], name="lease", partialFilterExpression={"lease": {"$exists": True}}),
    IndexModel([("pending", ASCENDING)], name="pending", partialFilterExpression={"pending": {"$exists": True}}),
    IndexModel(
        [("state", ASCENDING), ("seq", ASCENDING)],
        name="aside",
        partialFilterExpression={
            "$or": [
                {"state": {"$in": [State.WAITING.value, State.FAILED.value, State.CANCELLED.value]}},
                {"kind": Kind.JOIN.value},
            ]
        },
    ),
    _marker("unchecked"),
    _marker("unreleased"),
    _marker("revive"),
    _marker("cancel"),
)

REMARK_INDEXES: dict[str, IndexModel] = {
    model.document["name"]: model
    for model in (
        IndexModel(
            [("groups", ASCENDING), ("_id", ASCENDING)],
            name="groups",
            partialFilterExpression={"groups": {"$exists": True}},
        ),
        _marker("retagged"),
    )
}
"""Over tasks, by name: those in a group; those whose tags are not what they were at first. Made when needed first."""


def _of_records(name: str, field: str = "", rare: bool = False) -> IndexModel:
    """Index records by a field, and those in which it is the same by their end; `rare`: only those that have it."""
    field = field or name
    keys = [(field, ASCENDING)] if field == _FINISHED else [(field, ASCENDING), (_FINISHED, ASCENDING)]
    only = {"partialFilterExpression": {field: {"$exists": True}}} if rare else {}
    return IndexModel(keys, name=name, **only)


_FINISHED = "time.finished"

RECORD_INDEXES: dict[str, IndexModel] = {
    model.document["name"]: model
    for model in (
        IndexModel([("inputs.source.record", ASCENDING)], name="lineage", sparse=True),
        IndexModel(
            [("inputs.object", ASCENDING)], name="joins", partialFilterExpression={"inputs.object": {"$type": "string"}}
        ),
        IndexModel(
            [(key, ASCENDING) for key in ("cache.key", "outcome", "time.finished", "_id")],
            name="cache",
            partialFilterExpression={"cache.key": {"$exists": True}},
        ),
        IndexModel(
            [(key, ASCENDING) for key in ("cache.like", "time.finished", "_id")],
            name="like",
            partialFilterExpression={"cache.like": {"$exists": True}},
        ),
        IndexModel([("cached_from", ASCENDING)], name="copies", sparse=True),
        IndexModel([("outputs.hash", ASCENDING)], name="made"),
        IndexModel([("inputs.hash", ASCENDING)], name="used"),
        _of_records("finished", _FINISHED),
        _of_records("started", "time.started"),
        _of_records("submitted", "time.submitted"),
        _of_records("name"),
        _of_records("tags", rare=True),
        _of_records("function", rare=True),
        _of_records("outcome"),
        _of_records("exception.type", rare=True),
        _of_records("host"),
        _of_records("pilot"),
        _of_records("job", rare=True),
        _of_records("environment"),
    )
}
"""By name. Every record that is written pays for each, so that each is made when it is needed first; see `ensure`.

Queries find those of one field under its name (`query`); each goes on by the time of the end, by which they are sorted.
"""

_INDEX_S = 3600.0
"""How long making an index may take: on a busy file system a minute for some millions of records."""


def value_index(field: Field) -> IndexModel:
    """Return the index over one input or output, or a part of it, with all that is inside; named as it is written.

    Only records that have one of this name are in it.
    """
    name, *steps = field.path
    key = ".".join((field.home, "value", *steps, "$**"))
    only = {f"{field.home}.name": name}
    return IndexModel([(key, ASCENDING)], name=field.plain_name, partialFilterExpression=only)


@translating("list the indexes over records")
def record_indexes(store: Store) -> list[str]:
    """Return the names of the indexes over records that there are, apart from that of `_id`."""
    return sorted(name for name in store.provenance.index_information() if name != "_id_")


@translating("make an index")
def ensure(store: Store, *names: str) -> None:
    """Make sure that these indexes over the records exist; the first time may take minutes for millions of records.

    Records can be written meanwhile.
    """
    make(store, [RECORD_INDEXES[name] for name in names])


@translating("make an index")
def make(store: Store, models: Sequence[IndexModel]) -> None:
    """Make indexes over records that do not exist yet, and wait for them; records can be written meanwhile."""
    if models:
        with pymongo.timeout(_INDEX_S):
            store.provenance.create_indexes(list(models))


@translating("drop an index")
def drop(store: Store, name: str) -> None:
    """Remove an index over records, so that none has to pay for it any more."""
    store.provenance.drop_index(name)


@translating("make an index")
def ensure_remarks(store: Store, name: str) -> None:
    """Make sure that this one of the `REMARK_INDEXES` exists."""
    store.tasks.create_indexes([REMARK_INDEXES[name]])


def has_remarks(store: Store, name: str) -> bool:
    """Say whether anybody has needed this one of the `REMARK_INDEXES` yet."""
    with translating("look for an index", store.where):
        return name in store.tasks.index_information()


@translating("create the collections and indexes")
def create(store: Store, project: str, proof: bytes = b"") -> None:
    """Make collections and indexes and write the version; harmless where they are.

    Args:
        store: the database.
        project: id of the project whose it is.
        proof: what only the project's key can sign; `check` compares it.

    Raises:
        SchemaMismatch: the database holds another version or another project.
        SignatureError: another key made it.
    """
    if "events" not in store.database.list_collection_names():
        try:
            store.database.create_collection("events", capped=True, size=EVENTS_BYTES, check_exists=False)
        except OperationFailure as exc:
            if exc.code != _EXISTS:  # another process made it a moment ago
                raise
    store.tasks.create_indexes(list(TASK_INDEXES))
    store.pools.create_indexes([IndexModel([("pilot", ASCENDING)], name="pilot")])
    first = {"version": SCHEMA, "project": project, "proof": proof}
    store.meta.update_one({"_id": "schema"}, {"$setOnInsert": first}, upsert=True)
    check(store, project, proof)


@translating("read the schema version")
def check(store: Store, project: str, proof: bytes = b"") -> None:
    """Make sure that this code and the database speak of the same documents, and that our key made it.

    Raises:
        SchemaMismatch: the version is newer, older or absent, or the database is another project's.
        SignatureError: another key made it: nothing in it would verify.
    """
    found: dict[str, Any] | None = store.meta.find_one({"_id": "schema"})
    if found is None:
        raise SchemaMismatch(
            f"database {store.database.name!r} has no pilot schema; if it is new, run `pilot init` with its URI"
        )
    version = found["version"]
    if version > SCHEMA:
        raise SchemaMismatch(
            f"database {store.database.name!r} has schema {version}, this pilot knows {SCHEMA}: "
            "it was made by a newer release; install that release (pip install -U hpc-pilot)"
        )
    if version < SCHEMA:
        raise SchemaMismatch(
            f"database {store.database.name!r} has schema {version}, this pilot needs {SCHEMA}: "
            "go on with the release that made it, or start a new project with this one"
        )
    if found["project"] != project:
        raise SchemaMismatch(
            f"database {store.database.name!r} belongs to project {found['project']!r}, not to {project!r}; "
            "give each project a database of its own"
        )
    if proof and found.get("proof") not in (None, b"", proof):
        raise SignatureError(
            f"database {store.database.name!r} was made with another key than this project's; "
            "put the right file back as .pilot/key (mode 600)"
        )


@translating("look into the database")
def empty(store: Store) -> bool:
    """Say whether nobody has made a schema here yet."""
    return store.meta.count_documents({}, limit=1) == 0
