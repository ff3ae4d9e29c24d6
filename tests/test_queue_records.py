"""The record of an attempt decides how it ended, and a bad one harms nobody else."""

from __future__ import annotations

from typing import Any

import pytest
from bson.raw_bson import RawBSONDocument

from pilot import records
from pilot.errors import (
    DuplicateKey,
    StoreRejected,
    StoreUnavailable,
)
from pilot.model import record_id
from pilot.states import Outcome
from pilot.store import provenance, tasks
from pilot.store.mongo import Store
from pilot.store.tasks import End
from tests import queue_rig as rig
from tests.queue_rig import NOW, commit, kill_pool, lease, repeated, state, states, submit, task, untouched

BAD = (Outcome.FAILED, Outcome.TIMEOUT, Outcome.CRASHED, Outcome.LOST, Outcome.CANCELLED)


# -- the record decides -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "outcome", [Outcome.SUCCEEDED, Outcome.CACHED, Outcome.FAILED, Outcome.TIMEOUT, Outcome.CRASHED, Outcome.CANCELLED]
)
def test_a_reaper_applies_the_record_it_finds(store: Store, a: str, outcome: Outcome) -> None:
    submit(store, task("t"), task("c", "t"))
    lease(store, a)
    rig.record_all(store, a, {("t", 1): outcome})  # and the pool dies before the second step
    kill_pool(store, a)
    repeated(store, lambda: rig.reap(store))
    expected = {Outcome.SUCCEEDED: "done", Outcome.CACHED: "done", Outcome.CANCELLED: "cancelled"}.get(
        outcome, "failed"
    )
    assert states(store) == {"t": expected, "c": "ready" if expected == "done" else "upstream"}
    assert [doc["outcome"] for doc in provenance.attempts(store, "t")] == [outcome]


@pytest.mark.parametrize("outcome", [Outcome.SUCCEEDED, *BAD])
def test_a_pool_that_finds_lost_drops_its_result(store: Store, a: str, outcome: Outcome) -> None:
    submit(store, task("t"))
    lease(store, a)
    kill_pool(store, a)
    assert rig.reap(store) == 1
    (settled,) = rig.record_all(store, a, {("t", 1): outcome})
    assert settled.outcome is Outcome.LOST
    untouched(store, lambda: commit(store, a, {("t", 1): outcome}))
    doc = tasks.get(store, ["t"])["t"]
    assert (doc["state"], doc["lost"]) == ("ready", 1)
    assert [doc["outcome"] for doc in provenance.attempts(store, "t")] == ["lost"]


def test_a_pool_completes_a_reap_that_got_half_way(store: Store, a: str) -> None:
    submit(store, task("t"))
    lease(store, a)
    kill_pool(store, a)
    with rig.crash_after(store, 1):
        rig.reap(store)
    assert state(store, "t") == "leased"
    commit(store, a, {("t", 1): Outcome.SUCCEEDED})
    assert tasks.get(store, ["t"])["t"]["lost"] == 1
    assert state(store, "t") == "ready"


def test_duplicate_records_are_told_apart_from_other_errors(store: Store) -> None:
    first = [rig.record("t", 1, "x", Outcome.SUCCEEDED), rig.record("u", 1, "x", Outcome.LOST)]
    assert provenance.insert(store, first) == {}
    again = [
        rig.record("t", 1, "y", Outcome.LOST),
        rig.record("u", 1, "y", Outcome.SUCCEEDED),
        rig.record("v", 1, "y", Outcome.FAILED),
    ]
    assert provenance.insert(store, again) == {"t:1": Outcome.SUCCEEDED, "u:1": Outcome.LOST}
    assert [doc["token"] for doc in provenance.attempts(store, "t")] == ["x"]
    assert provenance.get(store, ["t:1", "u:1", "v:1", "w:1"]).keys() == {"t:1", "u:1", "v:1"}
    store.provenance.delete_many({})


@pytest.mark.any_documents
def test_a_duplicate_in_another_index_is_a_defect(store: Store) -> None:
    store.provenance.create_index("token", unique=True)
    provenance.insert(store, [rig.record("t", 1, "x", Outcome.SUCCEEDED)])
    with pytest.raises(StoreRejected) as caught:
        provenance.insert(store, [rig.record("u", 1, "x", Outcome.SUCCEEDED)])
    assert not isinstance(caught.value, DuplicateKey)


def test_a_duplicate_that_cannot_be_read_decides_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    submit(store, task("t"))
    lease(store, "gone")
    provenance.insert(store, [rig.record("t", 1, "gone", Outcome.LOST)])
    with monkeypatch.context() as patch:
        patch.setattr(store.provenance, "find", lambda *_, **__: iter(()), raising=False)
        with pytest.raises(StoreUnavailable, match="repeat"):
            rig.record_all(store, "gone", {("t", 1): Outcome.SUCCEEDED})


# -- records that cannot be stored ------------------------------------------------------------------


def nested(depth: int) -> list[Any]:
    """Return a list in a list in a list."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


POISON: dict[str, Any] = {
    "too large": "x" * (provenance.RECORD_BYTES + 1),
    "int of 65 bits": 2**64,
    "negative int of 65 bits": -(2**63) - 1,
    "lone surrogate": "a\ud800b",
    "key with NUL": {"a\0b": 1},
    "key that is no text": {1: 2},
    "lone surrogate in a key": {"\udfff": 1},
    "endless nesting": nested(100_000),
    "no BSON type": object(),
}


def test_one_poison_record_does_not_block_the_others(store: Store, a: str) -> None:
    good = [f"good{n}" for n in range(5)]
    submit(store, *(task(name) for name in [*POISON, *good]))
    held = lease(store, a)
    raws: list[RawBSONDocument] = []
    ends = []
    for name, attempt in held.items():
        outputs = [{"name": "result", "hash": "0", "size": 1, "value": POISON.get(name, 1)}]
        doc = {
            "_id": record_id(name, attempt), "task": name, "attempt": attempt, "token": a, "kind": "function",
            "name": "f", "outcome": "succeeded", "time": {"submitted": NOW}, "host": "h", "inputs": [],
            "outputs": outputs, "task_signature": b"",
        }  # fmt: skip
        raw, stored = provenance.encode(doc, rig.unsealed, records.minimal)
        raws.append(raw)
        ends.append(End(name, attempt, a, Outcome(stored["outcome"]), None))
    tasks.finish(store, provenance.settle(store, raws, ends), NOW)
    assert states(store) == dict.fromkeys(POISON, "failed") | dict.fromkeys(good, "done")
    for name in POISON:
        (stored,) = provenance.attempts(store, name)
        assert (stored["outcome"], stored["reason"]) == ("failed", "record")
        assert stored["exception"]["type"] == "RecordRejected"
        assert "record" in stored["exception"]["message"]
        assert stored["time"] == {"submitted": NOW}
