"""The schema's version, and the invariants themselves."""

from __future__ import annotations

import itertools
import re
import threading

import pytest

from pilot.errors import (
    SchemaMismatch,
)
from pilot.model import SCHEMA
from pilot.states import Outcome
from pilot.store import invariants, schema, tasks
from pilot.store.mongo import Store
from pilot.store.tasks import Document
from tests import queue_rig as rig
from tests.conftest import PROJECT, wipe
from tests.queue_rig import NOW, lease, run, state, submit, task

# -- schema -----------------------------------------------------------------------------------------


def test_the_schema_is_made_once_by_whoever_comes_first(mongod_uri: str) -> None:
    with Store(mongod_uri, "test_schema_race") as one, Store(mongod_uri, "test_schema_race") as two:
        try:
            errors: list[BaseException] = []
            barrier = threading.Barrier(2)

            def make(store: Store) -> None:
                barrier.wait(10)
                try:
                    schema.create(store, PROJECT)
                except BaseException as exc:  # noqa: BLE001  shown below
                    errors.append(exc)

            for _ in range(3):
                one.database.client.drop_database(one.database.name)
                threads = [threading.Thread(target=make, args=(store,)) for store in (one, two)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join(30)
            assert errors == []
            schema.create(one, PROJECT)
            assert one.events.options()["capped"] is True
            assert {index.document["name"] for index in schema.TASK_INDEXES} < one.tasks.index_information().keys()
        finally:
            one.database.client.drop_database(one.database.name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": SCHEMA + 1}, rf"has schema {SCHEMA + 1}, this pilot knows {SCHEMA}: .*install that release"),
        ({"version": SCHEMA - 1}, rf"has schema {SCHEMA - 1}, this pilot needs {SCHEMA}: .*release that made it"),
        ({"project": "other"}, r"belongs to project 'other', not to .*a database of its own"),
        (None, r"has no pilot schema; .*pilot init"),
    ],
)
def test_another_schema_is_refused(store: Store, change: Document | None, message: str) -> None:
    before = store.meta.find_one_and_delete({"_id": "schema"})
    assert before is not None
    try:
        if change is not None:
            store.meta.insert_one({**before, **change})
            with pytest.raises(SchemaMismatch, match=message):
                schema.create(store, PROJECT)
        with pytest.raises(SchemaMismatch, match=message):
            schema.check(store, PROJECT)
    finally:
        store.meta.replace_one({"_id": "schema"}, before, upsert=True)
    schema.check(store, PROJECT)


# -- the invariants themselves ----------------------------------------------------------------------


def _source(record: str, digest: str) -> Document:
    item = {"name": "x", "hash": digest, "size": 1, "source": {"record": record, "output": "result"}}
    return {"$set": {"inputs": [item]}}


NO = "task w: waits for "
BROKEN: dict[str, tuple[str, Document, str]] = {
    "done without a record": ("p:1", {}, "task p: done, but its official record 'p:1' says None"),
    "done by a failure": ("p:1", {"$set": {"outcome": "failed"}}, "task p: .* says 'failed'"),
    "done at another attempt": ("p", {"$set": {"attempt": 2}}, "task p: done at attempt 2, but .*'p:1'"),
    "ended without a record": ("bad:1", {}, "task bad: failed, but .*'bad:1' does not exist"),
    "a success lost": (
        "p",
        {"$set": {"state": "cancelled"}, "$unset": {"official": ""}},
        "task p: cancelled, but its record p:1 succeeded",
    ),
    "leased by nobody": ("held", {"$unset": {"lease": ""}}, "task held: leased, and without a lease"),
    "a lease left over": ("p", {"$set": {"lease": "x"}}, "task p: done, and leased under 'x'"),
    "waiting for nothing": ("w", {"$set": {"pending": []}}, "task w: waiting for nothing"),
    "waiting for the missing": ("w", {"$set": {"pending": ["no"]}}, NO + "'no', which does not exist"),
    "waiting for the done": ("w", {"$set": {"pending": ["p"]}}, NO + "'p', which is done, and nobody"),
    "waiting for the failed": ("w", {"$set": {"pending": ["bad"]}}, NO + "'bad', which is failed, and"),
    "ready, but pending": ("c", {"$set": {"pending": ["p"]}}, r"task c: ready, but pending \['p'\]"),
    "upstream of nobody": ("u", {"$set": {"pending": ["p"]}}, "task u: failed upstream, but no parent"),
    "a source that is missing": ("p:1", _source("no:1", "h"), "task p: .*'no:1', which does not exist"),
    "a source not official": ("p:1", _source("r:1", "h"), "task p: .*'r:1', which is not the official one"),
    "two outputs of one name": (
        "p:1",
        {"$push": {"outputs": {"name": "result", "hash": "h"}}},
        "task p: record p:1 has two inputs, or two outputs, of one name",
    ),
    "two inputs of one name": (
        "p:1",
        {"$set": {"inputs": [{"name": "x", "hash": "h"}, {"name": "x", "hash": "i"}]}},
        "task p: record p:1 has two inputs, or two outputs, of one name",
    ),
    "a record under another's id": ("p:1", {"$set": {"attempt": 2}}, "task p: record p:1 is of another attempt"),
    "a record that came from itself": ("p:1", _source("p:1", "h"), "task p: its record came from itself: p:1 ← p:1"),
    "another content": ("bad:1", _source("p:1", "other"), "task bad: .*'p:1' has no output 'result' with hash other"),
}
"""What is changed (a record, if there is a colon in its id; deleted, if there is no update), and what is said of it."""


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_is_found(store: Store, a: str, name: str) -> None:
    submit(
        store,
        task("p"), task("r", retries=1), task("bad"), task("held"),
        task("c", "p"), task("w", "held"), task("u", "bad"),
    )  # fmt: skip
    run(store, a, p=Outcome.SUCCEEDED, bad=Outcome.FAILED, r=Outcome.FAILED)
    store.provenance.update_one({"_id": "p:1"}, {"$set": {"outputs": [{"name": "result", "hash": "h"}]}})
    lease(store, a, classes=["c1"])
    tasks.give_back(store, a, [(n, k) for n, k in tasks.held(store, a).items() if n != "held"])
    rig.quiesce(store)
    assert invariants.violations(store) == []
    _id, update, message = BROKEN[name]
    collection = store.provenance if ":" in _id else store.tasks
    if update:
        collection.update_one({"_id": _id}, update)
    else:
        collection.delete_one({"_id": _id})
    found = invariants.violations(store)
    wipe(store)
    assert any(re.match(message, line) for line in found), found


def test_markers_excuse_what_is_being_seen_to(store: Store, a: str) -> None:
    submit(store, task("p"), task("c", "p"), task("d", "c"))
    lease(store, a)
    ends = rig.record_all(store, a, {("p", 1): Outcome.FAILED})
    assert invariants.violations(store) == []
    tasks.finish(store, ends, NOW)
    assert state(store, "c") == "waiting"
    assert invariants.violations(store) == []


def test_a_cycle_is_found_wherever_it_begins(store: Store, a: str) -> None:
    """And a chain is none, though half of its links lead from one task to another whose id is larger."""
    names = ["t-9", "t-10", "s-3", "u-1", "t-2"]
    submit(store, *map(task, names))
    run(store, a, **dict.fromkeys(names, Outcome.SUCCEEDED))
    store.provenance.update_many({}, {"$set": {"outputs": [{"name": "result", "hash": "h"}]}})
    for name, parent in itertools.pairwise(names):
        store.provenance.update_one({"_id": f"{name}:1"}, _source(f"{parent}:1", "h"))
    assert invariants.violations(store) == []
    store.provenance.update_one({"_id": "t-2:1"}, _source("t-10:1", "h"))
    found = invariants.violations(store)
    wipe(store)
    assert len(found) == 1
    assert re.match(r"task \S+: its record came from itself: (\S+:1 ← ){4}\S+:1$", found[0]), found
