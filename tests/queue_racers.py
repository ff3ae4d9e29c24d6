"""Processes that work on one database at the same time; each function here is one."""

from __future__ import annotations

import time
import zlib
from collections import Counter
from threading import BrokenBarrierError
from typing import Any

from pilot.model import bucket_of
from pilot.states import Outcome
from pilot.store import dependants, events, pilots, provenance, remarks, tasks
from pilot.store.mongo import Store
from tests import queue_rig as rig
from tests.queue_rig import Key, task

DEADLINE_S = 90.0

_start: Any = None


def join(barrier: Any) -> None:
    """Remember, in a new process, the barrier at which all wait for each other."""
    global _start
    _start = barrier


def _together() -> None:
    try:
        _start.wait(DEADLINE_S)
    except BrokenBarrierError as exc:
        raise AssertionError(f"after {DEADLINE_S:.0f} s some of the processes had not started") from exc


def _tally(store: Store) -> str:
    counted = Counter(doc["state"] for doc in store.tasks.find({}, ["state"]))
    return ", ".join(f"{n} {state}" for state, n in sorted(counted.items()))


def drain(uri: str, database: str, token: str, total: int, honest: bool = True) -> list[Key]:
    """Lease and commit until `total` tasks are done; return what was leased. If not honest, some attempts fail."""
    leased: list[Key] = []
    with Store(uri, database) as store, events.tail(store, {"kind": events.READY}, wait_ms=100) as tail:
        rig.open_pool(store, token)
        _together()
        deadline = time.monotonic() + DEADLINE_S
        while True:
            assert time.monotonic() < deadline, f"{total} tasks should be done; last seen: {_tally(store)}"
            held = rig.lease(store, token, 150, bucket_of(token))
            leased += held.items()
            if held:
                rig.commit(store, token, {key: Outcome.SUCCEEDED if honest else _luck(key) for key in held.items()})
            elif store.tasks.count_documents({"state": "done", "kind": {"$ne": "join"}}) == total:
                return leased
            else:
                tail.next()


def _luck(key: Key) -> Outcome:
    """Return an outcome that looks random and is the same every time."""
    outcomes = [Outcome.SUCCEEDED] * 6 + [Outcome.FAILED, Outcome.LOST, Outcome.CRASHED, Outcome.CANCELLED]
    return outcomes[zlib.crc32(repr(key).encode()) % len(outcomes)]


def submit_families(uri: str, database: str, name: str, families: int) -> None:
    """Submit parents, and right after them, in another call, children: those may find them in any state."""
    with Store(uri, database) as store:
        _together()
        before: list[str] = []
        for family in range(families):
            parents = [f"{name}.p{family}.{n}" for n in range(20)]
            rig.submit(store, *map(task, parents))
            pool = parents + before
            children = [
                task(f"{name}.c{family}.{n}", pool[n], pool[(n * 7 + 3) % len(pool)], waits=("done", "end")[n % 2])
                for n in range(20)
            ]
            rig.submit(store, *children)
            before = [child["_id"] for child in children]


def sweep(uri: str, database: str, total: int) -> int:
    """Reconcile over and over until `total` tasks are done; return how many rounds."""
    rounds = 0
    with Store(uri, database) as store:
        _together()
        deadline = time.monotonic() + DEADLINE_S
        while store.tasks.count_documents({"state": "done", "kind": {"$ne": "join"}}) < total:
            assert time.monotonic() < deadline, f"{total} tasks should be done; last seen: {_tally(store)}"
            dependants.reconcile(store)
            rounds += 1
    return rounds


def reap(uri: str, database: str) -> int:
    """Reap all that the dead have leased."""
    with Store(uri, database) as store:
        _together()
        return sum(pilots.reap(store, token, rig.lost_record) for token in pilots.dead_tokens(store))


def commit_late(uri: str, database: str, token: str) -> int:
    """Commit all that a dead pool holds, last first; return how many results were accepted."""
    with Store(uri, database) as store:
        held = sorted(tasks.held(store, token).items(), reverse=True)
        _together()
        accepted = 0
        for start in range(0, len(held), 50):
            ends = rig.commit(store, token, dict.fromkeys(held[start : start + 50], Outcome.SUCCEEDED))
            accepted += sum(end.outcome is Outcome.SUCCEEDED for end in ends)
        return accepted


def meddle(uri: str, database: str, rounds: int, total: int) -> None:
    """Cancel some tasks, and retry all that failed or was cancelled; in the end until `total` are done."""
    with Store(uri, database) as store:
        _together()
        deadline = time.monotonic() + DEADLINE_S
        number = 0
        while store.tasks.count_documents({"state": "done", "kind": {"$ne": "join"}}) < total:
            assert time.monotonic() < deadline, f"{total} tasks should be done; last seen: {_tally(store)}"
            number += 1
            if number <= rounds:
                chosen = [doc["_id"] for doc in store.tasks.aggregate([{"$sample": {"size": 10}}])]
                tasks.cancel(store, chosen, rig.NOW)
                dependants.release(store, chosen)
            bad = store.tasks.find({"state": {"$in": ["failed", "cancelled"]}}, ["_id"]).limit(500)
            dependants.retry(store, [doc["_id"] for doc in bad])


def claim(uri: str, database: str, token: str, names: list[str]) -> list[str]:
    """Insert records of the same attempts as others do, each with a result of one's own; return which counted."""
    with Store(uri, database) as store:
        made = [rig.record(name, 1, token, Outcome.SUCCEEDED) for name in names]
        ends = [tasks.End(name, 1, token, Outcome.SUCCEEDED, None) for name in names]
        _together()
        mine: list[str] = []
        for start in range(0, len(names), 20):
            raws = made[start : start + 20]
            there = provenance.insert(store, raws)
            assert provenance.settle(store, raws, ends[start : start + 20]) == ends[start : start + 20]  # and again
            mine += [name for name in names[start : start + 20] if f"{name}:1" not in there]
        return mine


def remark(uri: str, database: str, name: str, ids: list[str]) -> None:
    """Write tags, notes and groups on the same tasks as others do, and take back every second one."""
    with Store(uri, database) as store:
        _together()
        for number in range(10):
            remarks.tag(store, ids, add=[f"{name}.{number}"])
            remarks.group(store, f"{name}.{number}", add=ids)
            remarks.note(store, ids[:1], f"{name} {number}", name, rig.NOW)
            if number % 2:
                remarks.tag(store, ids, remove=[f"{name}.{number}"])
                remarks.group(store, f"{name}.{number}", remove=ids)
