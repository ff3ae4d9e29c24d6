"""Random histories of the queue: two pools, crashes at every step, late results, persons; against the model."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pilot.states import Outcome, State
from pilot.store import dependants, invariants, pilots, provenance, tasks
from pilot.store.mongo import Store
from pilot.store.tasks import Document, End
from tests import queue_rig as rig
from tests.conftest import wipe
from tests.queue_model import Key, Model, Task

OUTCOMES = st.sampled_from([Outcome.SUCCEEDED] * 4 + [o for o in Outcome if o is not Outcome.SUCCEEDED])


class Pool:
    """What one coordinator knows. It may be dead without knowing it."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.begun: set[Key] = set()
        self.held: set[Key] = set()
        """Leased, not begun."""
        self.recorded: set[Key] = set()
        """The record is in, the task not moved yet: the next step of the commit, if the pool lives to see it."""


class Queue(RuleBasedStateMachine):
    """The real store beside the model."""

    names = Bundle("names")

    def __init__(self, store: Store) -> None:
        super().__init__()
        wipe(store)
        self.store = store
        self.model = Model()
        self.tokens = (f"token-{n}" for n in itertools.count())
        self.numbers = itertools.count()
        self.pools = [self.new_pool(), self.new_pool()]
        self.zombies: list[Pool] = []
        self.old: list[tuple[str, End]] = []

    def new_pool(self) -> Pool:
        return Pool(rig.open_pool(self.store, next(self.tokens)))

    def anybody(self) -> list[Pool]:
        return [*self.pools, *self.zombies]

    def seen(self) -> dict[str, Document]:
        return {doc["_id"]: doc for doc in self.store.tasks.find()}

    # -- submit ---------------------------------------------------------------------------------

    @initialize(target=names)
    def first(self) -> Any:
        return multiple(*self.add([[], [], [-1], [-1, -2]], "done", 0, 99))

    @rule(
        target=names,
        parents=st.lists(names, max_size=3, unique=True),
        shape=st.sampled_from([[[]], [[-1]], [[], [-1]], [[], [-1, -2], [-1]]]),
        waits=st.sampled_from(["done", "done", "end"]),
        retries=st.integers(0, 1),
        writes=st.sampled_from([99, 99, 99, 0, 1, 2, 3]),
    )
    def submit(self, parents: list[str], shape: list[list[int]], waits: str, retries: int, writes: int) -> Any:
        """Submit some tasks below `parents` and each other; the client may die on the way."""
        return multiple(*self.add(shape, waits, retries, writes, parents))

    @rule(target=names, waits=st.sampled_from(["done", "end"]))
    def submit_orphan(self, waits: str) -> Any:
        return multiple(*self.add([[]], waits, 0, 99, ["nobody"]))

    def add(self, shape: list[list[int]], waits: str, retries: int, writes: int, above: list[str] = []) -> list[str]:  # noqa: B006
        documents: list[Document] = []
        for place, offsets in enumerate(shape):
            parents = [documents[place + o]["_id"] for o in offsets if place + o >= 0] or above
            name = f"t{next(self.numbers)}"
            documents.append(rig.task(name, *parents, waits=waits, retries=retries, priority=place % 2))
        with rig.crash_after(self.store, writes):
            rig.submit(self.store, *documents)
        there = tasks.get(self.store, [doc["_id"] for doc in documents], ["_id"])
        for doc in documents:
            if doc["_id"] in there:
                self.model.tasks[doc["_id"]] = Task(set(doc.get("pending", ())), waits, retries)
        return list(there)

    # -- pools ------------------------------------------------------------------------------------

    @rule(which=st.integers(0, 3), limit=st.integers(1, 6), bucket=st.integers(0, 63), answer=st.sampled_from("ooolx"))
    def lease(self, which: int, limit: int, bucket: int, answer: str) -> None:
        """Lease; the answer may get lost, or the update; a pool that is dead may not know it yet."""
        pool = self.anybody()[which % len(self.anybody())]
        if answer == "o":
            got = rig.lease(self.store, pool.token, limit, bucket)
        else:
            with rig.faulty(self.store, rig.answers_lost if answer == "l" else rig.never_sent):
                got = rig.lease(self.store, pool.token, limit, bucket)
            assert answer == "l" or not got
        for name, attempt in got.items():
            self.model.lease(name, pool.token)
            assert self.model.tasks[name].attempt == attempt
            pool.held.add((name, attempt))
        assert got.items() <= tasks.held(self.store, pool.token).items()

    @rule(data=st.data(), outcome=OUTCOMES, steps=st.sampled_from([1, 2, 3, 3, 3, 3]))
    def work(self, data: st.DataObject, outcome: Outcome, steps: int) -> None:
        """Begin attempts, end them with one outcome, and commit: records, end states, dependants, or stop before."""
        for pool in self.anybody():
            if pool.held:
                begun = set(data.draw(st.lists(st.sampled_from(sorted(pool.held)), unique=True), label="begun"))
                pool.held -= begun
                pool.begun |= begun
            if pool.begun and data.draw(st.booleans(), label=f"{pool.token} commits"):
                keys = data.draw(st.lists(st.sampled_from(sorted(pool.begun)), min_size=1, unique=True), label="ended")
                pool.begun -= set(keys)
                self.commit(pool, dict.fromkeys(keys, outcome), steps)

    def commit(self, pool: Pool, ends: dict[Key, Outcome], steps: int) -> None:
        expected = {key: self.model.settle(key, outcome) for key, outcome in ends.items()}
        settled = rig.record_all(self.store, pool.token, ends)
        assert {(end.task, end.attempt): end.outcome for end in settled} == expected
        self.old += [(pool.token, end) for end in settled]
        if steps == 1:
            pool.recorded |= ends.keys()
            return
        self.finish(pool, settled)
        if steps == 3:
            dependants.release(self.store, [end.task for end in settled])

    def finish(self, pool: Pool, settled: list[End]) -> None:
        tasks.finish(self.store, settled, rig.NOW)
        for end in settled:
            self.model.finish((end.task, end.attempt), pool.token)

    @rule(data=st.data())
    def go_on(self, data: st.DataObject) -> None:
        """Take the second step of a commit, however late."""
        for pool in self.anybody():
            if pool.recorded:
                keys = data.draw(st.lists(st.sampled_from(sorted(pool.recorded)), min_size=1, unique=True))
                pool.recorded -= set(keys)
                self.finish(pool, [End(*key, pool.token, self.model.records[key], None) for key in keys])

    @rule(which=st.integers(0, 3))
    def give_back(self, which: int) -> None:
        pool = self.anybody()[which % len(self.anybody())]
        tasks.give_back(self.store, pool.token, sorted(pool.held))
        self.model.give_back(pool.held, pool.token)
        pool.held.clear()

    @rule(which=st.integers(0, 1), frozen=st.booleans())
    def die(self, which: int, frozen: bool) -> None:
        """Be declared dead: crashed for good, or frozen, to come back with late results."""
        pool = self.pools[which]
        assert pilots.fence(self.store, pool.token, 0, "its heartbeat stood still")
        self.pools[which] = self.new_pool()
        if frozen:
            self.zombies = [pool, *self.zombies][:2]

    @precondition(lambda self: self.old)
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        """Do an old end of an attempt once more, or with a token or number that never was."""
        token, end = data.draw(st.sampled_from(self.old))
        known = end._replace(outcome=self.model.records[end.task, end.attempt])
        wrong = [known._replace(token="nobody's"), known._replace(attempt=end.attempt + 9)]
        before = rig.whole(self.store)
        tasks.finish(self.store, wrong, rig.NOW)
        if not self.model.held(end.task, end.attempt, token):
            tasks.finish(self.store, [known], rig.NOW)
            tasks.give_back(self.store, token, [(end.task, end.attempt)])
        assert rig.whole(self.store) == before

    # -- agents -----------------------------------------------------------------------------------

    @rule(half=st.booleans())
    def reap(self, half: bool) -> None:
        """Return what the dead have leased; or die after the records are in."""
        dead = pilots.dead_tokens(self.store)
        live = {pool.token for pool in self.pools}
        assert not live & set(dead)
        if half:
            for doc in self.store.tasks.find({"lease": {"$in": dead}}):
                key = (doc["_id"], doc["attempt"])
                there = provenance.insert(self.store, [rig.lost_record(doc)])
                assert self.model.settle(key, Outcome.LOST) == there.get(f"{key[0]}:{key[1]}", Outcome.LOST)
        else:
            assert rig.reap(self.store) == sum(task.token in dead for task in self.model.tasks.values())
            self.model.reap(dead)

    @rule(what=st.sampled_from(["check", "release", "revive", "reconcile"]), writes=st.sampled_from([1, 2, 3, 5, 99]))
    def sweep(self, what: str, writes: int) -> None:
        with rig.crash_after(self.store, writes):
            getattr(dependants, what)(self.store)

    # -- persons ------------------------------------------------------------------------------------

    @rule(chosen=st.lists(names, min_size=1, max_size=3, unique=True), release=st.booleans())
    def cancel(self, chosen: list[str], release: bool) -> None:
        seen = self.seen()
        for name in chosen:
            self.model.cancel(name, State(seen[name]["state"]))
        tasks.cancel(self.store, chosen, rig.NOW)
        if release:
            dependants.release(self.store, chosen)

    @rule(chosen=st.lists(names, min_size=1, max_size=3, unique=True), writes=st.sampled_from([99, 99, 1, 2, 4]))
    def retry(self, chosen: list[str], writes: int) -> None:
        seen = self.seen()
        for name in chosen:
            self.model.retry(name, State(seen[name]["state"]))
        for name, doc in seen.items():  # what a parent's first end has released stays released
            self.model.tasks[name].pending &= set(doc.get("pending", ()))
        with rig.crash_after(self.store, writes):
            dependants.retry(self.store, chosen)

    # -- comparison ---------------------------------------------------------------------------------

    @rule()
    def compare(self) -> None:
        """Take up what is left half done, but leave the living alone, and compare."""
        dead = pilots.dead_tokens(self.store)
        rig.quiesce(self.store)
        self.model.reap(dead)
        self.same()

    def same(self) -> None:
        self.model.check()
        seen = self.seen()
        assert {name: State(doc["state"]) for name, doc in seen.items()} == self.model.states()
        for name, doc in seen.items():
            task = self.model.tasks[name]
            assert (doc["attempt"], doc["tried"], doc["lost"]) == (task.attempt, task.tried, task.lost), name
            assert (doc.get("lease"), doc.get("cancel", False)) == (task.token, task.cancel), name
        stored = {(doc["task"], doc["attempt"]): doc["outcome"] for doc in self.store.provenance.find()}
        assert stored == self.model.records
        assert invariants.violations(self.store) == []

    def teardown(self) -> None:
        """Let everybody die, take up all that is left, and compare."""
        assert invariants.violations(self.store) == []
        for pool in self.pools:
            rig.kill_pool(self.store, pool.token)
        self.compare()
        assert pilots.dead_tokens(self.store) == []


def test_random_histories_end_where_the_model_does(store: Store) -> None:
    machine: Callable[[], Queue] = lambda: Queue(store)  # noqa: E731
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip
