"""The queue: submit, lease, give back, finish and cancel tasks, each in bulk and each idempotent.

Every update filters on the state it leaves and, for a leased task, on lease token and attempt, so that a
late or repeated call changes nothing. What ended tasks set free is in `dependants`; who may reap whom is in
`pools`. The reasons are in design terms beside each clause; ``tests/model`` searches what happens without it.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

from pymongo.errors import BulkWriteError, PyMongoError

from pilot import lifecycle
from pilot.errors import TaskNotFound
from pilot.model import bucket_of, record_id
from pilot.resources import TaskSpec
from pilot.states import GOOD, Kind, Outcome, State
from pilot.store import events
from pilot.store.mongo import Store, duplicates, translating

Document = dict[str, Any]
T = TypeVar("T")

CHUNK = 1000
"""Ids in one query or update."""

IF_AWAITED = {"$cond": [{"$eq": ["$awaited", True]}, True, "$$REMOVE"]}
"""Value of the markers ``unreleased`` and ``revive``: set only where somebody has said that he waits."""

NEXT_REV = {"$add": ["$rev", 1]}

BY_ID = "_id_"
"""Hint of every write that names its ids: left to itself the server has chosen `ready`, and read the whole queue."""


def chunks(items: Sequence[T], size: int = CHUNK) -> Iterator[Sequence[T]]:
    """Cut a sequence in pieces of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def batches(items: Iterable[T], size: int = CHUNK) -> Iterator[list[T]]:
    """Take pieces of at most `size` from a cursor as it goes."""
    rest = iter(items)
    while part := list(itertools.islice(rest, size)):
        yield part


# -- submit ---------------------------------------------------------------------------------------


def shared_bucket(task: str) -> int:
    """Return the bucket of a task: a hundred that were submitted one after the other share it.

    They lie together in the collection and in each index, and so they are leased and ended together: a pool
    touches a few pages instead of one for every task. Pools still begin at places of their own.
    """
    return bucket_of(task[:-2])  # the last two digits of its number in the batch


def document(spec: TaskSpec, inputs: object, *, client: str, seq: int, now: datetime, signature: bytes) -> Document:
    """Return the task's document as it is stored.

    Args:
        spec: the task.
        inputs: its inputs as `records.pack_inputs` wrote them.
        client: session to tell when it ends.
        seq: place in the order of service, larger is later.
        now: time of submission (UTC).
        signature: over `signing.task_fields`.
    """
    pending = spec.parents
    doc: Document = {
        "_id": spec.id,
        "kind": spec.kind.value,
        "name": spec.name,
        "function": spec.function,
        "command": spec.command.document() if spec.command else None,
        "inputs": inputs,
        "class": spec.resources.key,
        "priority": -spec.priority,
        "bucket": shared_bucket(spec.id),
        "seq": seq,
        "retries": spec.retries,
        "waits": spec.waits,
        "state": (State.WAITING if pending else State.READY).value,
        "attempt": 0,
        "tried": 0,
        "lost": 0,
        "rev": 0,
        "client": client,
        "submitted": now,
        "signature": signature,
    }
    if spec.tags:
        doc["tags"] = list(spec.tags)
    if spec.folder:
        doc["folder"] = spec.folder
    if spec.fresh:
        doc["fresh"] = True
    if spec.gather:
        doc["gather"] = True
    if spec.cache:
        doc["cache"] = spec.cache
    if pending:
        doc["pending"] = pending
        doc["unchecked"] = True
    return doc


@translating("submit tasks")
def insert(store: Store, documents: Sequence[Document], in_order: bool = False) -> None:
    """Store new tasks; those that are there already (a repeated call) are left as they are.

    Tasks without parents can be leased at once. The others wait, marked `unchecked`, until
    `dependants.check` has looked at their parents: call it next. A task's parents must have been stored
    before it, by an earlier call or `in_order`, or check names the missing one.

    Args:
        store: the database.
        documents: the tasks.
        in_order: whoever sees one of them sees those before it too.

    Raises:
        StoreUnavailable: repeat the call with the same documents.
        StoreFull: free space, then repeat.
    """
    for part in chunks(documents, 5000):
        missing = part
        while missing:
            try:
                store.tasks.insert_many(missing, ordered=in_order)
                break
            except BulkWriteError as exc:
                duplicates(exc)
                if not in_order:
                    break
                there = get(store, [doc["_id"] for doc in missing], ["_id"])  # the first of these ended the insert
                missing = [doc for doc in missing if doc["_id"] not in there]
    if any(doc["state"] == State.READY for doc in documents):
        events.hint(store, events.READY)


# -- lease ----------------------------------------------------------------------------------------


@translating("list the classes of ready tasks")
def ready_classes(store: Store) -> list[str]:
    """Return the resource classes of which tasks are ready (index `ready`, one step per class)."""
    found: list[str] = store.tasks.distinct("class", {"state": State.READY.value})
    return found


@translating("count ready tasks")
def ready_counts(store: Store, most: int = 0) -> dict[str, int]:
    """Return how many tasks of each class are ready; with `most`, no class is counted further (index `ready`)."""
    query = {"state": State.READY.value}
    limit: dict[str, Any] = {"limit": most} if most else {}
    return {
        name: store.tasks.count_documents({**query, "class": name}, hint="ready", **limit)
        for name in ready_classes(store)
    }


@translating("lease tasks")
def lease(store: Store, token: str, classes: Sequence[str], limit: int, bucket: int, now: datetime) -> list[Document]:
    """Take up to `limit` ready tasks of the given classes under `token` and return their documents.

    Order: priority across the classes, then buckets from `bucket` on and round, first come first served
    within a bucket (index `ready`). A task is leased only if it is still ready *at the attempt found*: between
    find and update it may have been leased, lost and returned, and then the holder would not know its number.

    Raises:
        StoreUnavailable: some may have been leased all the same; `held` finds them.
    """
    found = _find_ready(store, classes, limit, bucket)
    if not found:
        return []
    by_attempt: dict[int, list[str]] = defaultdict(list)
    for doc in found:
        by_attempt[doc["attempt"]].append(doc["_id"])
    certain = True
    leased = 0
    for attempt, ids in by_attempt.items():
        try:
            leased += store.tasks.update_many(
                {"_id": {"$in": ids}, "state": State.READY.value, "attempt": attempt},
                {
                    "$set": {"state": State.LEASED.value, "lease": token, "leased": now},
                    "$inc": {"attempt": 1, "rev": 1},
                },
                hint=BY_ID,
            ).modified_count
        except PyMongoError:  # whatever it was: what counts is what the store says now
            certain = False
    if certain and leased == len(found):
        mine = {doc["_id"]: doc["attempt"] + 1 for doc in found}
    else:
        ids = [doc["_id"] for doc in found]
        ours = store.tasks.find({"_id": {"$in": ids}, "lease": token, "state": State.LEASED.value}, {"attempt": 1})
        wanted = {doc["_id"]: doc["attempt"] + 1 for doc in found}
        mine = {doc["_id"]: doc["attempt"] for doc in ours if wanted[doc["_id"]] == doc["attempt"]}
    result = []
    for doc in found:
        attempt = mine.get(doc["_id"], 0)
        if attempt:
            doc["attempt"] = attempt
            doc["leased"] = now
            result.append(doc)
    return result


def _find_ready(store: Store, classes: Sequence[str], limit: int, bucket: int) -> list[Document]:
    """Find ready tasks, most urgent priority first over all classes."""
    ready = State.READY.value
    heads: dict[str, int] = {}
    floor: dict[str, Any] = {}
    found: list[Document] = []
    todo = set(classes)
    while len(found) < limit:
        for name in todo:
            query = {"state": ready, "class": name, **floor.get(name, {})}
            head = store.tasks.find_one(query, {"priority": 1, "_id": 0}, sort=[("priority", 1)], hint="ready")
            if head is None:
                heads.pop(name, None)
            else:
                heads[name] = head["priority"]
        if not heads:
            break
        name = min(heads, key=lambda key: (heads[key], key))
        query = {"state": ready, "class": name, "priority": heads[name]}
        for part in ({"$gte": bucket}, {"$lt": bucket}):
            left = limit - len(found)
            if left > 0:
                found += store.tasks.find(
                    {**query, "bucket": part}, sort=[("bucket", 1), ("seq", 1)], limit=left, hint="ready"
                )
        floor[name] = {"priority": {"$gt": heads[name]}}
        todo = {name}
    return found


@translating("compare leases")
def held(store: Store, token: str) -> dict[str, int]:
    """Return task → attempt of everything leased under `token` (index `lease`)."""
    return {doc["_id"]: doc["attempt"] for doc in store.tasks.find({"lease": token}, {"attempt": 1})}


@translating("find tasks to cancel")
def to_cancel(store: Store, token: str) -> dict[str, int]:
    """Return task → attempt of what is leased under `token` and should be cancelled (index `cancel`)."""
    query = {"cancel": True, "lease": token}
    return {doc["_id"]: doc["attempt"] for doc in store.tasks.find(query, {"attempt": 1})}


@translating("give back leases")
def give_back(store: Store, token: str, keys: Iterable[tuple[str, int]]) -> None:
    """Return leases of attempts that have certainly not begun; no record, no blame.

    A task whose cancellation was asked for becomes `cancelled` instead of ready. The attempt's number stays:
    were it counted down, two executions could bear the same one.
    """
    by_attempt: dict[int, list[str]] = defaultdict(list)
    for task, attempt in keys:
        by_attempt[attempt].append(task)
    back = False
    for attempt, ids in by_attempt.items():
        query = {"_id": {"$in": ids}, "state": State.LEASED.value, "lease": token, "attempt": attempt}
        # In this order: a wish to cancel that comes between the two is seen by the second.
        again = store.tasks.update_many({**query, "cancel": {"$ne": True}}, _ready_again(), hint=BY_ID)
        back |= again.modified_count > 0
        ended = store.tasks.update_many({**query, "cancel": True}, _cancelled(datetime.now(UTC)), hint=BY_ID)
        if ended.modified_count:
            _tell(store, ids, [State.CANCELLED])
    if back:
        events.hint(store, events.READY)


def _ready_again() -> Document:
    return {"$set": {"state": State.READY.value}, "$unset": {"lease": "", "leased": ""}, "$inc": {"rev": 1}}


def _cancelled(now: datetime) -> list[Document]:
    fields = {"state": State.CANCELLED.value, "ended": now, "rev": NEXT_REV, "unreleased": IF_AWAITED}
    return [{"$set": fields}, {"$unset": ["lease", "leased", "cancel", "unchecked"]}]


def _tell(store: Store, ids: Sequence[str], states: Sequence[State]) -> None:
    """Tell the clients of those of `ids` that are now in one of `states`."""
    query = {"_id": {"$in": list(ids)}, "state": {"$in": [s.value for s in states]}}
    events.tell_ended(store, [(doc.get("client"), doc["_id"]) for doc in store.tasks.find(query, {"client": 1})])


# -- finish ---------------------------------------------------------------------------------------


class End(NamedTuple):
    """The outcome of an attempt as its stored record has it."""

    task: str
    attempt: int
    token: str
    outcome: Outcome
    client: str | None


@translating("finish tasks")
def finish(store: Store, ends: Sequence[End], now: datetime) -> None:
    """Move leased tasks to where the outcome of their attempt takes them (step 3 of the commit).

    The record of each attempt must be stored already and `outcome` be what it says: the record decides. An
    attempt whose task has moved on is passed over. Afterwards `dependants.release` frees the dependants.
    """
    good: dict[tuple[str, int], list[str]] = defaultdict(list)
    other: dict[tuple[str, int, Outcome], list[str]] = defaultdict(list)
    for end in ends:
        if end.outcome in GOOD:
            good[end.token, end.attempt].append(end.task)
        else:
            other[end.token, end.attempt, end.outcome].append(end.task)
    for (token, attempt), ids in good.items():
        _finish_well(store, ids, token, attempt, now)
    succeeded = [(end.client, record_id(end.task, end.attempt)) for end in ends if end.outcome in GOOD]
    events.tell_ended(store, succeeded, records=True)
    for (token, attempt, outcome), ids in other.items():
        _finish_badly(store, ids, token, attempt, outcome, now)


def _leased(ids: Sequence[str], token: str, attempt: int) -> Document:
    return {"_id": {"$in": list(ids)}, "state": State.LEASED.value, "lease": token, "attempt": attempt}


def _finish_well(store: Store, ids: Sequence[str], token: str, attempt: int, now: datetime) -> None:
    """Make leased tasks `done`: first those that nobody awaits, which are most, then the others.

    ``awaited`` is only ever set, so what the first update passes over for it, the second one takes.
    """
    leased = _leased(ids, token, attempt)
    fields = {"state": State.DONE.value, "official": attempt, "ended": now}
    leave: Document = {"$unset": dict.fromkeys(("lease", "leased", "cancel"), ""), "$inc": {"rev": 1}}
    leaf = store.tasks.update_many({**leased, "awaited": {"$ne": True}}, {"$set": fields, **leave}, hint=BY_ID)
    if leaf.modified_count < len(ids):
        fields["unreleased"] = True
        store.tasks.update_many({**leased, "awaited": True}, {"$set": fields, **leave}, hint=BY_ID)


def _finish_badly(store: Store, ids: Sequence[str], token: str, attempt: int, outcome: Outcome, now: datetime) -> None:
    """Read what the decision needs, decide, write filtered on what was read; again for what moved meanwhile."""
    fields = dict.fromkeys(("tried", "lost", "retries", "cancel", "rev", "client"), 1)
    while True:
        moves: dict[tuple[int, lifecycle.Move], list[str]] = defaultdict(list)
        clients = {}
        for doc in store.tasks.find(_leased(ids, token, attempt), fields):
            counters = lifecycle.Counters(doc["tried"], doc["lost"], doc["retries"], doc.get("cancel", False))
            moves[doc["rev"], lifecycle.after_attempt(outcome, counters)].append(doc["_id"])
            clients[doc["_id"]] = doc.get("client")
        if not moves:
            return
        for (rev, move), group in moves.items():
            query = {**_leased(group, token, attempt), "rev": rev}
            store.tasks.update_many(query, _moved(move, now), hint=BY_ID)
            if move.state is State.READY:
                events.hint(store, events.READY)
            else:
                events.tell_ended(store, [(clients[task], task) for task in group])


def _moved(move: lifecycle.Move, now: datetime) -> list[Document]:
    fields: Document = {"state": move.state.value, "tried": move.tried, "lost": move.lost, "rev": NEXT_REV}
    if move.state is not State.READY:
        fields |= {"official": "$attempt", "ended": now, "unreleased": IF_AWAITED}
        if move.reason:
            fields["reason"] = move.reason
        return [{"$set": fields}, {"$unset": ["lease", "leased", "cancel"]}]
    return [{"$set": fields}, {"$unset": ["lease", "leased"]}]


# -- cancel ---------------------------------------------------------------------------------------


@translating("cancel tasks")
def cancel(store: Store, ids: Sequence[str], now: datetime) -> None:
    """Cancel what has not begun; ask the pools that hold the rest. Ended tasks stay as they are.

    One pipeline update per thousand, so that a task which is being leased gets either the one or the other. A
    success that comes first stands.
    """
    idle = {"$in": ["$state", [State.WAITING.value, State.READY.value]]}
    for part in chunks(list(ids)):
        query = {
            "_id": {"$in": list(part)},
            "kind": {"$ne": Kind.JOIN.value},
            "state": {"$in": [State.WAITING.value, State.READY.value, State.LEASED.value]},
            "cancel": {"$ne": True},
        }
        store.tasks.update_many(
            query,
            [
                {"$set": {"cancel": {"$cond": [idle, "$$REMOVE", True]}, "rev": NEXT_REV}},
                {
                    "$set": {
                        "unreleased": {"$cond": [idle, IF_AWAITED, "$$REMOVE"]},
                        "unchecked": {"$cond": [idle, "$$REMOVE", "$unchecked"]},
                        "ended": {"$cond": [idle, now, "$$REMOVE"]},
                        "state": {"$cond": [idle, State.CANCELLED.value, "$state"]},
                    }
                },
            ],
            hint=BY_ID,
        )
        _tell(store, part, [State.CANCELLED])
    events.hint(store, events.CANCEL)


# -- read -----------------------------------------------------------------------------------------


@translating("read tasks")
def get(store: Store, ids: Iterable[str], fields: Sequence[str] | None = None) -> dict[str, Document]:
    """Return the documents of those ids that exist, by id."""
    wanted = list(dict.fromkeys(ids))
    projection = None if fields is None else list(fields)
    found: dict[str, Document] = {}
    for part in chunks(wanted):
        for doc in store.tasks.find({"_id": {"$in": list(part)}}, projection):
            found[doc["_id"]] = doc
    return found


@translating("look up a task")
def resolve(store: Store, text: str) -> Document:
    """Return the task whose id is `text`, or whose only id begins with it.

    Raises:
        TaskNotFound: none, or several (their ids are listed).
    """
    exact: Document | None = store.tasks.find_one({"_id": text})
    if exact is not None:
        return exact
    beginning = {"$gte": text, "$lt": text + "\uffff"}
    several = list(store.tasks.find({"_id": beginning, "kind": {"$ne": Kind.JOIN.value}}, limit=4)) if text else []
    if len(several) == 1:
        return several[0]
    if several:
        names = ", ".join(doc["_id"] for doc in several[:3])
        raise TaskNotFound(f"{text!r} fits several tasks ({names}, …): give more of the id")
    raise TaskNotFound(f"no task {text!r} in this project; `pilot tasks` lists them")


@translating("list tasks")
def listing(
    store: Store, state: State | None = None, tag: str | None = None, limit: int = 50, fields: Sequence[str] = (),
    group: str | None = None,
) -> list[Document]:  # fmt: skip
    """Return the newest tasks first, join documents left out."""
    query: Document = {"kind": {"$ne": Kind.JOIN.value}}
    if state is not None:
        query["state"] = state.value
    if tag is not None:
        query["tags"] = tag
    if group is not None:
        query["groups"] = group
    return list(store.tasks.find(query, list(fields) or None, sort=[("_id", -1)], limit=limit))


@translating("count tasks")
def counts(store: Store) -> dict[State, int]:
    """Return how many tasks are in each state; ``done`` is what the small indexes do not hold."""
    total = store.tasks.estimated_document_count()
    found = {State.LEASED: store.tasks.count_documents({"lease": {"$exists": True}}, hint="lease")}
    found[State.READY] = store.tasks.count_documents({"state": State.READY.value}, hint="ready")
    for state in (State.WAITING, State.FAILED, State.CANCELLED):
        found[state] = store.tasks.count_documents({"state": state.value}, hint="aside")
    found[State.DONE] = max(0, total - sum(found.values()))
    for state in (State.WAITING, State.DONE, State.FAILED):
        found[state] -= store.tasks.count_documents({"state": state.value, "kind": Kind.JOIN.value}, hint="aside")
    return {state: max(0, found[state]) for state in State}
