"""Random histories of the queue: two pools, crashes at every step, late results, persons; against the model."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from pilot.store import dependants, invariants, pilots, tasks
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
        self.inside = False

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

    @rule(data=st.data(), limit=st.integers(1, 6), bucket=st.integers(0, 63), answer=st.sampled_from("mmmlx"))
    def lease(self, data: st.DataObject, limit: int, bucket: int, answer: str) -> None:
        """Lease; the answer may get lost, or the update; a pool that is dead may not know it yet."""
        pool = data.draw(st.sampled_from(self.anybody()))
        if answer == "m":
            with self.meanwhile(data, 1, but=pool):
                got = rig.lease(self.store, pool.token, limit, bucket)
        else:
            with rig.faulty(self.store, rig.answers_lost if answer == "l" else rig.never_sent):
                got = rig.lease(self.store, pool.token, limit, bucket)
            assert answer == "l" or not got
        self.leased(pool, got)

    def leased(self, pool: Pool, got: dict[str, int]) -> None:
        for name, attempt in got.items():
            self.model.lease(name, pool.token)
            assert self.model.tasks[name].attempt == attempt
            pool.held.add((name, attempt))
        assert got.items() <= tasks.held(self.store, pool.token).items()

    @rule(data=st.data(), outcome=OUTCOMES, steps=st.sampled_from([1, 2, 3, 3, 3, 3]))
    def work(self, data: st.DataObject, outcome: Outcome, steps: int) -> None:
        """Begin attempts, end them with one outcome, and commit: records, end states, dependants, or stop before."""
        pool = data.draw(st.sampled_from(self.anybody()))
        if pool.held:
            begun = set(data.draw(st.lists(st.sampled_from(sorted(pool.held)), unique=True), label="begun"))
            pool.held -= begun
            pool.begun |= begun
        if pool.begun:
            keys = data.draw(st.lists(st.sampled_from(sorted(pool.begun)), min_size=1, unique=True), label="ended")
            pool.begun -= set(keys)
            self.commit(data, pool, dict.fromkeys(keys, outcome), steps)

    def commit(self, data: st.DataObject, pool: Pool, ends: dict[Key, Outcome], steps: int) -> None:
        expected = {key: self.model.settle(key, outcome) for key, outcome in ends.items()}
        settled = rig.record_all(self.store, pool.token, ends)
        assert {(end.task, end.attempt): end.outcome for end in settled} == expected
        self.old += [(pool.token, end) for end in settled]
        if steps == 1:
            pool.recorded |= ends.keys()
            return
        self.finish(data, pool, settled)
        if steps == 3:
            with self.meanwhile(data):
                dependants.release(self.store, [end.task for end in settled])

    def finish(self, data: st.DataObject, pool: Pool, settled: list[End]) -> None:
        with self.meanwhile(data, 1):
            tasks.finish(self.store, settled, rig.NOW)
        for end in settled:
            self.model.finish((end.task, end.attempt), pool.token)

    @precondition(lambda self: any(pool.recorded for pool in self.anybody()))
    @rule(data=st.data())
    def go_on(self, data: st.DataObject) -> None:
        """Take the second step of a commit, however late."""
        pool = data.draw(st.sampled_from([pool for pool in self.anybody() if pool.recorded]))
        keys = data.draw(st.lists(st.sampled_from(sorted(pool.recorded)), min_size=1, unique=True))
        pool.recorded -= set(keys)
        self.finish(data, pool, [End(*key, pool.token, self.model.records[key], None) for key in keys])

    @precondition(lambda self: any(pool.held for pool in self.anybody()))
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        pool = data.draw(st.sampled_from([pool for pool in self.anybody() if pool.held]))
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
    @rule()
    def repeat(self) -> None:
        """Do all old ends of attempts once more, and the present ones with a token and a number that never was."""
        before = rig.whole(self.store)
        wrong = []
        for token, end in self.old:
            if not self.model.held(end.task, end.attempt, token):
                wrong.append(end._replace(outcome=self.model.records[end.task, end.attempt]))
                tasks.give_back(self.store, token, [(end.task, end.attempt)])
        for name, task in self.model.tasks.items():
            if task.own is State.LEASED:
                assert task.token is not None
                wrong.append(End(name, task.attempt, "nobody's", Outcome.SUCCEEDED, None))
                wrong.append(End(name, task.attempt + 1, task.token, Outcome.FAILED, None))
        tasks.finish(self.store, wrong, rig.NOW)
        assert rig.whole(self.store) == before

    # -- agents -----------------------------------------------------------------------------------

    @rule(data=st.data(), half=st.booleans())
    def reap(self, data: st.DataObject, half: bool) -> None:
        """Return what somebody dead has leased; or die after the records are in."""
        dead = pilots.dead_tokens(self.store)
        assert not {pool.token for pool in self.pools} & set(dead)
        for token in dead[:1] if half else dead:
            keys = [(name, task.attempt) for name, task in self.model.tasks.items() if task.token == token]

            def recorded(keys: list[Key] = keys) -> None:
                for key in keys:
                    self.model.settle(key, Outcome.LOST)

            if half:
                with rig.crash_after(self.store, 1):
                    pilots.reap(self.store, token, rig.lost_record)
                recorded()
            else:
                with self.meanwhile(data, first=recorded):
                    pilots.reap(self.store, token, rig.lost_record)
                self.model.reap([token])

    @rule(data=st.data(), what=st.sampled_from(["check", "release", "revive", "reconcile"]))
    def sweep(self, data: st.DataObject, what: str) -> None:
        writes = data.draw(st.sampled_from([99, 99, 1, 2, 3, 5]), label="writes")
        if writes == 99:
            with self.meanwhile(data):
                getattr(dependants, what)(self.store)
        else:
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

    @rule(data=st.data(), chosen=st.lists(names, min_size=1, max_size=3, unique=True))
    def retry(self, data: st.DataObject, chosen: list[str]) -> None:
        self.note_retry(chosen)
        writes = data.draw(st.sampled_from([99, 99, 1, 2, 4]), label="writes")
        if writes == 99:
            with self.meanwhile(data, since=2):
                dependants.retry(self.store, chosen)
        else:
            with rig.crash_after(self.store, writes):
                dependants.retry(self.store, chosen)

    def note_retry(self, chosen: list[str]) -> None:
        seen = self.seen()
        for name in chosen:
            self.model.retry(name, State(seen[name]["state"]))
        for name, doc in seen.items():  # what a parent's first end has released stays released
            self.model.tasks[name].pending &= set(doc.get("pending", ()))

    # -- something else in the midst of it --------------------------------------------------------------

    @contextmanager
    def meanwhile(
        self,
        data: st.DataObject,
        write: int = 0,
        since: int = 1,
        first: Callable[[], None] = lambda: None,
        but: Pool | None = None,
    ) -> Iterator[None]:
        """Perhaps let another actor do something right before a write of the body.

        Args:
            data: to draw from.
            write: which one; 0: any, from `since` on.
            since: see there.
            first: called when the first write is done.
            but: a pool that does not lease: no pool does two leases at once.
        """
        act = data.draw(st.sampled_from(["", "", "cancel", "retry", "lease", "work", "sweep", "submit"]), label="act")
        number = write or data.draw(st.integers(since, since + 4), label="before write")
        if self.inside or not act:
            yield
            first()
            return
        self.inside = True
        told: list[int] = []

        def meanwhile(now: int) -> None:
            if now == 2:
                told.append(now)
                first()
            if now == number:
                self.do(act, data, but)

        with rig.faulty(self.store, rig.calling(self.store, meanwhile)):
            yield
        self.inside = False
        if not told:
            first()

    def do(self, act: str, data: st.DataObject, but: Pool | None) -> None:
        name = data.draw(st.sampled_from(sorted(self.model.tasks)), label="name")
        if act == "cancel":
            self.model.cancel(name, State(self.seen()[name]["state"]))
            tasks.cancel(self.store, [name], rig.NOW)
        elif act == "retry":
            self.note_retry([name])
            dependants.retry(self.store, [name])
        elif act == "lease":
            pool = data.draw(st.sampled_from([pool for pool in self.anybody() if pool is not but]))
            self.leased(pool, rig.lease(self.store, pool.token, 4))
            if data.draw(st.booleans(), label="and gives back"):
                tasks.give_back(self.store, pool.token, sorted(pool.held))
                self.model.give_back(pool.held, pool.token)
                pool.held.clear()
        elif act == "work":
            pool = data.draw(st.sampled_from(self.anybody()))
            pool.begun |= pool.held
            pool.held.clear()
            if pool.begun:
                outcome = data.draw(OUTCOMES, label="outcome")
                keys, pool.begun = sorted(pool.begun), set()
                self.commit(data, pool, dict.fromkeys(keys, outcome), 3)
        elif act == "sweep":
            dependants.reconcile(self.store)
        elif act == "submit":
            self.add([[]], "done", 0, 99, [name])

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
