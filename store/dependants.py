"""What waits for what: check new dependants, release those of ended tasks, revive those of retried ones.

Three markers in the task documents make every step repeatable by anybody at any time; `reconcile` looks at
the markers' indexes only:

* ``unchecked``: this task's parents must be looked at (set with every write that makes it wait or fail
  because of a parent).
* ``unreleased``: this task has ended and its dependants have not been told. Set by the write that ends it, if
  somebody has set ``awaited`` on it. Whoever submits a dependant stores it first, then sets ``awaited`` on the
  parents, then reads their states: so either the end of the parent sees ``awaited`` or the reader sees the end.
* ``revive``: this task is being retried and its dependants that failed upstream must wait again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from pymongo import UpdateMany

from pilot import lifecycle
from pilot.errors import InvalidInput
from pilot.lifecycle import Verdict
from pilot.model import PENDING_MAX, bucket_of
from pilot.states import ENDED, Kind, State
from pilot.store import events
from pilot.store.mongo import Store, translating
from pilot.store.tasks import BY_ID, IF_AWAITED, NEXT_REV, Document, batches, chunks, insert

SWEEP = 5000
"""Most tasks that one round of a release or a sweep touches."""

CHECKS = 100
"""Most looks at tasks that move while they are looked at: a join whose parents end just now moves with each batch."""

PARENTS = 100
"""Parents released in one update: their ids stand in a set that the server builds for every dependant."""

_IS_JOIN = {"$eq": ["$kind", Kind.JOIN.value]}


# -- wide joins -----------------------------------------------------------------------------------


def narrow(doc: Document) -> list[list[Document]]:
    """Split a join over more than `PENDING_MAX` parents; return the documents to insert, level by level.

    Each level's documents wait for those of the level before; the last level is `doc` itself. Join documents
    are internal: never leased, without a record, their release cascades. Their ids follow from the task's, so
    that a repeated submit makes the same ones.
    """
    levels = []
    pending: list[str] = doc.get("pending", [])
    level = 0
    while len(pending) > PENDING_MAX:
        joins = []
        for number, part in enumerate(chunks(pending, PENDING_MAX)):
            name = f"{doc['_id']}~{level}.{number}"
            same = {key: doc[key] for key in ("waits", "seq", "submitted", "class", "priority")}
            joins.append(
                {
                    "_id": name, "kind": Kind.JOIN.value, "name": "join", "state": State.WAITING.value,
                    "pending": list(part), "unchecked": True, "awaited": True, "bucket": bucket_of(name),
                    "attempt": 0, "tried": 0, "lost": 0, "rev": 0, "retries": 0, **same,
                }
            )  # fmt: skip
        levels.append(joins)
        pending = [join["_id"] for join in joins]
        level += 1
    return [*levels, [{**doc, "pending": pending}]]


def submit(store: Store, documents: Sequence[Document]) -> None:
    """Store new tasks with their dependencies: insert, then announce, then check.

    The documents stand in an order in which parents come before children, and are stored in it: no sweep can
    find a child before its parent and call the parent missing. Repeatable as a whole.

    Raises:
        InvalidInput: a parent comes after its child, or they make a cycle; nothing was stored.
        StoreUnavailable: repeat the call with the same documents.
        StoreFull: free space, then repeat.
    """
    awaited = {parent for doc in documents for parent in doc.get("pending", ())}
    documents = [{**doc, "awaited": True} if doc["_id"] in awaited else doc for doc in documents]  # spares `check` it
    roots = [doc for doc in documents if "pending" not in doc]
    others: list[Document] = []
    if awaited:
        place = {doc["_id"]: number for number, doc in enumerate(documents)}
        for number, doc in enumerate(documents):
            if "pending" in doc:
                for parent in doc["pending"]:
                    if place.get(parent, -1) >= number:
                        raise InvalidInput(f"task {doc['_id']!r} cannot wait for {parent!r}: submit that one before it")
                others += (part for level in narrow(doc) for part in level)
    if roots:
        insert(store, roots)
    if others:
        ids = [doc["_id"] for doc in others]
        insert(store, others, in_order=True)
        check(store, ids)
        release(store, ids)  # what has failed already, if it is awaited by others of these


# -- check ----------------------------------------------------------------------------------------


@translating("check dependants")
def check(store: Store, ids: Sequence[str] | None = None) -> int:
    """Correct tasks marked `unchecked` by what their parents are now; return how many were looked at.

    Args:
        store: the database.
        ids: only these; None: all that are marked.
    """
    looked = 0
    if ids is not None:
        for part in chunks(ids):
            for turn in range(CHECKS):
                done, missed = _check_chunk(store, part)
                looked += done
                if not done or (turn >= 3 and not missed):  # an upstream failure is checked once more
                    break
        return looked
    while True:
        marked = list(store.tasks.find({"unchecked": True}, ["_id"], limit=SWEEP, hint="unchecked"))
        looked += check(store, [doc["_id"] for doc in marked])
        if len(marked) < SWEEP:
            return looked


def _check_chunk(store: Store, ids: Sequence[str]) -> tuple[int, int]:
    """Look at marked tasks once; return how many there were, and how many of them have moved meanwhile."""
    fields = ("pending", "waits", "state", "reason", "rev", "kind", "client")
    docs = list(store.tasks.find({"_id": {"$in": list(ids)}, "unchecked": True}, fields, hint="unchecked"))
    if not docs:
        return 0, 0
    parents = list({parent for doc in docs for parent in doc.get("pending", ())})
    for part in chunks(parents):  # announce first, read after: see the head of this module
        query = {"_id": {"$in": list(part)}, "awaited": {"$ne": True}}
        store.tasks.update_many(query, {"$set": {"awaited": True}}, hint=BY_ID)
    states: dict[str, State] = {}
    for part in chunks(parents):
        for doc in store.tasks.find({"_id": {"$in": list(part)}}, {"state": 1}):
            states[doc["_id"]] = State(doc["state"])
    groups: dict[_Case, list[Document]] = defaultdict(list)
    for doc in docs:
        groups[_judge(doc, states)].append(doc)
    now = datetime.now(UTC)
    updates = []
    ready = False
    ended: list[Document] = []
    for case, group in groups.items():
        query = {"rev": case.rev, "state": case.state.value, "unchecked": True}
        names = {"_id": {"$in": [doc["_id"] for doc in group]}}
        updates.append(UpdateMany({**names, **query}, _correction(case, now), hint=BY_ID))
        ready |= case.verdict is Verdict.READY and not case.join
        if case.verdict in (Verdict.UPSTREAM, Verdict.MISSING) and case.state is State.WAITING:
            ended += group
    matched = store.tasks.bulk_write(updates, ordered=False).matched_count
    if ready:
        events.hint(store, events.READY)
    events.tell_ended(store, [(doc.get("client"), doc["_id"]) for doc in ended])
    return len(docs), len(docs) - matched


class _Case(NamedTuple):
    """Dependants that the same update corrects."""

    rev: int
    state: State
    join: bool
    verdict: Verdict
    blame: str | None
    gone: frozenset[str]
    """Parents that need not be waited for any more, while others are."""


def _judge(doc: Document, parents: Mapping[str, State]) -> _Case:
    """Decide what a task marked `unchecked` becomes, given the states of its parents."""
    state, waits, pending = State(doc["state"]), doc["waits"], doc.get("pending", ())
    verdict, blame = Verdict.WAIT, None  # if it has moved on, there is nothing to check any more
    if state is State.WAITING or (state is State.FAILED and doc.get("reason") == "upstream"):
        verdict, blame = lifecycle.settle(pending, waits, parents, state is State.FAILED)
    gone: frozenset[str] = frozenset()
    if verdict is Verdict.WAIT and state is State.WAITING:
        enough = ENDED if waits == "end" else {State.DONE}
        gone = frozenset(parent for parent in pending if parents[parent] in enough)
    named = blame if verdict is Verdict.MISSING else None
    return _Case(doc["rev"], state, doc["kind"] == Kind.JOIN, verdict, named, gone)


def _correction(case: _Case, now: datetime) -> list[Document]:
    """Return the update that makes checked tasks what the verdict says."""
    verdict, state = case.verdict, case.state
    clear: Document = {"$unset": ["unchecked"]}
    fields: Document = {"rev": NEXT_REV}
    if verdict is Verdict.READY:
        done = {"state": State.DONE.value, "unreleased": IF_AWAITED}
        fields |= done if case.join else {"state": State.READY.value}
        return [{"$set": fields}, {"$unset": ["unchecked", "pending"]}]
    if verdict is Verdict.MISSING:
        text = f"its parent {case.blame!r} does not exist"
        fields |= {"state": State.FAILED.value, "reason": "missing", "message": text, "ended": now}
        return [{"$set": fields | {"unreleased": IF_AWAITED}}, clear]
    if verdict is Verdict.UPSTREAM and state is State.WAITING:
        return _upstream(now)  # stays unchecked: the parent may be retried in this very moment
    if verdict is Verdict.WAIT and state is State.FAILED:  # no parent is to blame any more
        fields |= {"state": State.WAITING.value, "unchecked": True, "revive": IF_AWAITED}
        return [{"$set": fields}, {"$unset": ["reason", "ended", "unreleased"]}]
    if case.gone:
        fields["pending"] = {"$setDifference": ["$pending", list(case.gone)]}
    return [{"$set": fields}, clear]


def _upstream(now: datetime) -> list[Document]:
    fields = {"state": State.FAILED.value, "reason": "upstream", "ended": now, "unchecked": True}
    return [{"$set": {**fields, "unreleased": IF_AWAITED, "rev": NEXT_REV}}]


# -- release --------------------------------------------------------------------------------------


@translating("release dependants")
def release(store: Store, ids: Sequence[str] | None = None) -> int:
    """Tell the dependants of ended tasks (step 4 of the commit); return how many tasks were released.

    Goes on, level by level, through join documents and tasks that fail upstream, until no marker is left
    that this call has met. Safe to run anywhere at any time.

    Args:
        store: the database.
        ids: only these tasks (and what they set free); None: all that are marked.
    """
    released = 0
    if ids is None:
        while found := _marked(store, "unreleased"):
            _release_all(store, found)
            released += len(found)
        return released
    while ids:
        below: list[str] = []
        for part in chunks(ids, SWEEP):
            found = _marked(store, "unreleased", part)
            below += _release_all(store, found)
            released += len(found)
        ids = below
    return released


def _marked(store: Store, marker: str, ids: Sequence[str] | None = None) -> list[Document]:
    """Return the tasks that carry a marker: those of `ids`, or any, `SWEEP` at most."""
    query: Document = {marker: True} if ids is None else {marker: True, "_id": {"$in": list(ids)}}
    return list(store.tasks.find(query, ["state", "rev"], limit=SWEEP, hint=marker))


def _release_all(store: Store, found: Sequence[Document]) -> list[str]:
    """Tell the dependants of ended tasks and clear their markers; return what may have ended by it."""
    below: list[str] = []
    kids: list[Document] = []
    for state in ENDED:
        parents = [doc["_id"] for doc in found if doc["state"] == state]
        for part in chunks(parents):
            waiting: Document = {"pending": {"$in": list(part)}, "state": State.WAITING.value}
            if state is not State.DONE:
                below += _fail_dependants(store, {**waiting, "waits": "done"})
                waiting["waits"] = "end"
                if store.tasks.find_one(waiting, ["_id"], hint="pending") is None:
                    continue
            for few in chunks(part, PARENTS):
                kids += _free_dependants(store, few, {**waiting, "pending": {"$in": list(few)}})
    if kids:
        events.hint(store, events.READY)
    _clear(store, "unreleased", found)
    return below + [kid["_id"] for kid in kids if kid["kind"] == Kind.JOIN]


def _clear(store: Store, marker: str, found: Iterable[Document]) -> None:
    """Clear a marker, filtered on `rev`: a task that was retried or ended anew meanwhile keeps its new one."""
    by_rev: dict[int, list[str]] = defaultdict(list)
    for doc in found:
        by_rev[doc["rev"]].append(doc["_id"])
    for rev, ids in by_rev.items():
        store.tasks.update_many({"_id": {"$in": ids}, "rev": rev, marker: True}, {"$unset": {marker: ""}}, hint=BY_ID)


def _free_dependants(store: Store, parents: Sequence[str], waiting: Document) -> list[Document]:
    """Take `parents` out of the `pending` of what waits for them; return which these are."""
    freed: list[Document] = []
    left = {"$setDifference": ["$pending", list(parents)]}
    free = {"$eq": ["$pending", []]}
    update = [
        {"$set": {"pending": left, "rev": NEXT_REV}},
        {
            "$set": {
                "state": {"$cond": [free, {"$cond": [_IS_JOIN, State.DONE.value, State.READY.value]}, "$state"]},
                "unreleased": {"$cond": [{"$and": [free, _IS_JOIN]}, IF_AWAITED, "$$REMOVE"]},
                "unchecked": {"$cond": [free, "$$REMOVE", "$unchecked"]},
                "pending": {"$cond": [free, "$$REMOVE", "$pending"]},
            }
        },
    ]
    for kids in batches(store.tasks.find(waiting, ["kind"], hint="pending")):
        store.tasks.update_many({"_id": {"$in": [kid["_id"] for kid in kids]}, **waiting}, update, hint=BY_ID)
        freed += kids
    return freed


def _fail_dependants(store: Store, waiting: Document) -> list[str]:
    """Fail what waits, as data, for tasks that failed. The parent's id stays in `pending` for a retry."""
    ended: list[str] = []
    for kids in batches(store.tasks.find(waiting, ["client"], hint="pending")):
        ids = [kid["_id"] for kid in kids]
        store.tasks.update_many({"_id": {"$in": ids}, **waiting}, _upstream(datetime.now(UTC)), hint=BY_ID)
        events.tell_ended(store, [(kid.get("client"), kid["_id"]) for kid in kids])
        ended += ids
    return ended


# -- retry ----------------------------------------------------------------------------------------


@translating("retry tasks")
def retry(store: Store, ids: Sequence[str]) -> int:
    """Make failed and cancelled tasks run again; return how many. What was imported is never run: it is left.

    Their dependants that failed upstream wait again, transitively. A task that itself failed upstream goes
    back to waiting; if its parent is still failed, the check that follows says so again. Budgets start anew,
    attempts go on counting.
    """
    count = 0
    pending = {"$gt": [{"$size": {"$ifNull": ["$pending", []]}}, 0]}
    for part in chunks(ids):
        count += store.tasks.update_many(
            {
                "_id": {"$in": list(part)},
                "kind": {"$ne": Kind.JOIN.value},
                "state": {"$in": [State.FAILED.value, State.CANCELLED.value]},
                "from": {"$exists": False},
            },
            [
                {
                    "$set": {
                        "state": {"$cond": [pending, State.WAITING.value, State.READY.value]},
                        "unchecked": {"$cond": [pending, True, "$$REMOVE"]},
                        "revive": IF_AWAITED,
                        "tried": 0,
                        "lost": 0,
                        "rev": NEXT_REV,
                    }
                },
                {"$unset": ["official", "reason", "message", "ended", "unreleased", "cancel"]},
            ],
            hint=BY_ID,
        ).modified_count
        revive(store, part)
        check(store, part)
        release(store, part)
    events.hint(store, events.READY)
    return count


@translating("revive dependants")
def revive(store: Store, ids: Sequence[str] | None = None) -> int:
    """Make what failed upstream of retried tasks wait again, level by level; return how many.

    Each level carries the marker before the level above loses it, so a crash at any point is taken up by the
    next sweep.
    """
    revived: list[str] = []
    if ids is None:
        while found := _marked(store, "revive"):
            revived += _revive_all(store, found)
    while ids:
        below: list[str] = []
        for part in chunks(ids, SWEEP):
            below += _revive_all(store, _marked(store, "revive", part))
        revived += below
        ids = below
    check(store, revived)
    release(store, revived)  # what has failed again, because of another parent
    return len(revived)


def _revive_all(store: Store, found: Sequence[Document]) -> list[str]:
    """Make the dependants of retried tasks wait again, and clear the markers; return what was revived."""
    revived: list[str] = []
    for part in chunks(found):
        revived += _revive_level(store, [doc["_id"] for doc in part])
    _clear(store, "revive", found)
    return revived


def _revive_level(store: Store, parents: Sequence[str]) -> list[str]:
    fallen: Document = {"pending": {"$in": list(parents)}, "state": State.FAILED.value, "reason": "upstream"}
    fields = {"state": State.WAITING.value, "unchecked": True, "revive": IF_AWAITED, "rev": NEXT_REV}
    update: list[Document] = [{"$set": fields}, {"$unset": ["reason", "ended", "unreleased", "official"]}]
    revived: list[str] = []
    for kids in batches(store.tasks.find(fallen, ["_id"], hint="pending")):
        ids = [kid["_id"] for kid in kids]
        store.tasks.update_many({"_id": {"$in": ids}, **fallen}, update, hint=BY_ID)
        revived += ids
    return revived


def reconcile(store: Store) -> int:
    """Take up whatever a crash left half done; return how many tasks were looked at.

    Reads only the markers' indexes. Every agent calls it at its start and every 30 s.
    """
    return revive(store) + check(store) + release(store)
