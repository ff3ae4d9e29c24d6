"""What people write on tasks afterwards: tags, notes, and the groups a task is in.

All of it lies in the task's document and may change at any time. No record and no signature knows of it; a record has
the tags that its task had when it was leased. The queue never writes these fields, and nothing here touches the
queue's: whatever comes first, both hold.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from pilot.errors import InvalidInput
from pilot.model import record_id
from pilot.states import Kind
from pilot.store import schema
from pilot.store.mongo import Store, translating
from pilot.store.tasks import BY_ID, chunks

WORD_CHARS = 100
"""Characters of a tag or of a group's name."""
WORDS = 100
"""Tags, or groups, of one task: its document, which pools read, stays small."""
NOTE_CHARS = 2000
NOTES = 50
"""Notes on one task."""

_WORD = re.compile(rf"[^\s\x00-\x1f\x7f](?:[^\x00-\x1f\x7f]{{0,{WORD_CHARS - 2}}}[^\s\x00-\x1f\x7f])?")


def word(text: str, what: str) -> str:
    """Return a tag or a group's name if it can be one.

    Raises:
        InvalidInput: it is empty, too long, or has line breaks or spaces around it.
    """
    if not isinstance(text, str) or not _WORD.fullmatch(text):
        raise InvalidInput(
            f"{text!r} cannot be a {what}: expected 1 to {WORD_CHARS} characters, on one line, no space around it"
        )
    return text


@translating("change tags")
def tag(store: Store, ids: Sequence[str], add: Collection[str] = (), remove: Collection[str] = ()) -> None:
    """Add tags to tasks, and remove others; what is so already stays so.

    Raises:
        InvalidInput: a word cannot be a tag, or a task has as many as it may; nothing is changed, or only the tasks
            before that one.
    """
    words = list(dict.fromkeys(word(one, "tag") for one in add))
    schema.ensure_remarks(store, "retagged")
    _change(store, ids, "tags", words, remove, {"retagged": True})


def group(store: Store, name: str, add: Sequence[str] = (), remove: Sequence[str] = ()) -> None:
    """Put tasks into a group, which is there as long as a task is in it, or take them out of it.

    Raises:
        InvalidInput: as of `tag`.
    """
    word(name, "group's name")
    with translating("change a group", store.where):
        if add:
            schema.ensure_remarks(store, "groups")  # whoever uses no groups does not pay for the index
            _change(store, add, "groups", [name], ())
        _change(store, remove, "groups", (), [name])


def _change(
    store: Store, ids: Sequence[str], field: str, add: Collection[str], remove: Collection[str],
    marks: Mapping[str, Any] = {},
) -> None:  # fmt: skip
    """Change a list of words, and set `marks`.

    A list that becomes empty goes, so that an index of those who have it forgets the task.

    `$literal`, since a word may begin with a dollar.
    """
    old = {"$ifNull": [f"${field}", []]}
    kept = {"$filter": {"input": old, "as": "one", "cond": {"$not": [{"$in": ["$$one", {"$literal": list(remove)}]}]}}}
    new = {"$filter": {"input": {"$literal": list(add)}, "as": "one", "cond": {"$not": [{"$in": ["$$one", old]}]}}}
    update: list[dict[str, Any]] = [
        {"$set": {field: {"$concatArrays": [kept, new]}, **marks}},
        {"$set": {field: {"$cond": [{"$eq": [f"${field}", []]}, "$$REMOVE", f"${field}"]}}},
    ]
    for part in chunks(list(dict.fromkeys(ids))):
        query: dict[str, Any] = {"_id": {"$in": list(part)}, "kind": {"$ne": Kind.JOIN.value}}
        if add:
            _refuse_full(store, {**query, f"{field}.{WORDS - len(add)}": {"$exists": True}}, field, WORDS)
        store.tasks.update_many(query, update, hint=BY_ID)


def _refuse_full(store: Store, query: dict[str, Any], field: str, most: int) -> None:
    full = store.tasks.find_one(query, ["_id"], hint=BY_ID)
    if full is not None:
        raise InvalidInput(f"task {full['_id']!r} cannot have more {field}: {most} at most; remove some first")


@translating("write a note")
def note(store: Store, ids: Sequence[str], text: str, user: str, now: datetime) -> None:
    """Add a note to tasks, with who wrote it and when (UTC); notes stay.

    Raises:
        InvalidInput: it is empty or too long, or a task has as many as it may.
    """
    if not text.strip() or len(text) > NOTE_CHARS:
        raise InvalidInput(f"a note of {len(text)} characters cannot be written: expected 1 to {NOTE_CHARS}")
    written = {"time": now, "user": user, "text": text.strip()}
    for part in chunks(list(dict.fromkeys(ids))):
        query: dict[str, Any] = {"_id": {"$in": list(part)}, "kind": {"$ne": Kind.JOIN.value}}
        _refuse_full(store, {**query, f"notes.{NOTES - 1}": {"$exists": True}}, "notes", NOTES)
        store.tasks.update_many(query, {"$push": {"notes": written}}, hint=BY_ID)


@translating("list groups")
def groups(store: Store) -> dict[str, int]:
    """Return the groups that there are, by name, and how many tasks each has (index `groups`)."""
    if not schema.has_remarks(store, "groups"):
        return {}
    pipeline: list[dict[str, Any]] = [
        {"$match": {"groups": {"$exists": True}}}, {"$unwind": "$groups"}, {"$sortByCount": "$groups"},
    ]  # fmt: skip
    return {doc["_id"]: doc["count"] for doc in sorted(store.tasks.aggregate(pipeline), key=lambda doc: doc["_id"])}


@translating("list a group")
def members(store: Store, name: str) -> list[str]:
    """Return the ids of a group's tasks, oldest first (index `groups`)."""
    if not schema.has_remarks(store, "groups"):
        return []
    return [doc["_id"] for doc in store.tasks.find({"groups": name}, ["_id"], sort=[("_id", 1)], hint="groups")]


@translating("look for tasks by what people say of them")
def records(store: Store, query: Mapping[str, Any]) -> list[str]:
    """Return the ids of all records that the tasks may have which fit a query, on their groups or with ``retagged``."""
    name = "retagged" if "retagged" in query else "groups"
    if not schema.has_remarks(store, name):
        return []
    marked = {"retagged": True} if name == "retagged" else {"groups": {"$exists": True}}
    found = store.tasks.find({"$and": [marked, query], "attempt": {"$gt": 0}}, ["attempt"], hint=name)
    return [record_id(doc["_id"], attempt) for doc in found for attempt in range(1, doc["attempt"] + 1)]
