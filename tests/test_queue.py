"""The queue's operations, clause by clause: what each does, and that doing it again or too late does nothing."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from pymongo.errors import AutoReconnect

from pilot.errors import (
    InvalidInput,
    StoreUnavailable,
)
from pilot.model import BUCKETS, LOST_BUDGET
from pilot.states import Outcome
from pilot.store import dependants, events, tasks
from pilot.store.mongo import Store
from pilot.store.tasks import Document, End
from tests import queue_rig as rig
from tests.queue_rig import (
    NOW,
    Commands,
    commit,
    force,
    kill_pool,
    lease,
    repeated,
    run,
    state,
    states,
    submit,
    task,
    untouched,
)

BAD = (Outcome.FAILED, Outcome.TIMEOUT, Outcome.CRASHED, Outcome.LOST, Outcome.CANCELLED)


# -- submit -----------------------------------------------------------------------------------------


def test_roots_are_ready_and_children_wait(store: Store) -> None:
    submit(store, task("p"), task("q"), task("c", "p", "q"))
    assert states(store) == {"p": "ready", "q": "ready", "c": "waiting"}
    child = store.tasks.find_one({"_id": "c"})
    assert child is not None
    assert child["pending"] == ["p", "q"]
    assert "unchecked" not in child
    assert store.tasks.count_documents({"awaited": True}) == 2


def test_submit_again_changes_nothing_however_far_the_tasks_are(store: Store, a: str) -> None:
    documents = [task("p"), task("q"), task("c", "p"), task("d", "c", "q")]
    repeated(store, lambda: submit(store, *documents))
    run(store, a, p=Outcome.SUCCEEDED)
    run(store, a, q=Outcome.FAILED)
    rig.quiesce(store)
    untouched(store, lambda: submit(store, *documents))


@pytest.mark.parametrize("there", [["c"], ["c", "e"], ["e"], ["d", "f"], ["c", "d", "e", "f"]])
def test_a_submit_that_got_half_way_is_completed_by_the_next(store: Store, there: list[str]) -> None:
    documents = [task("p"), task("c", "p"), task("d", "c"), task("e", "d"), task("f", "p")]
    submit(store, task("p"))
    tasks.insert(store, [doc for doc in documents if doc["_id"] in there])
    submit(store, *documents)
    assert states(store) == {"p": "ready", "c": "waiting", "d": "waiting", "e": "waiting", "f": "waiting"}
    assert store.tasks.count_documents({"unchecked": True}) == 0


@pytest.mark.parametrize(
    ("parent", "waits", "child"),
    [
        ("ready", "done", "waiting"), ("ready", "end", "waiting"),
        ("leased", "done", "waiting"), ("leased", "end", "waiting"),
        ("done", "done", "ready"), ("done", "end", "ready"),
        ("failed", "done", "upstream"), ("failed", "end", "ready"),
        ("cancelled", "done", "upstream"), ("cancelled", "end", "ready"),
    ],
)  # fmt: skip
def test_a_child_becomes_what_its_parent_calls_for(store: Store, parent: str, waits: str, child: str) -> None:
    submit(store, task("p"))
    force(store, "p", parent)
    submit(store, task("c", "p", waits=waits))
    assert states(store) == {"p": parent, "c": child}


@pytest.mark.parametrize("waits", ["done", "end"])
def test_a_child_waits_only_for_those_that_have_not_ended(store: Store, a: str, waits: str) -> None:
    submit(store, task("p"), task("q"), task("r"))
    run(store, a, p=Outcome.SUCCEEDED, q=Outcome.SUCCEEDED if waits == "done" else Outcome.FAILED)
    submit(store, task("c", "p", "q", "r", waits=waits))
    assert tasks.get(store, ["c"])["c"]["pending"] == ["r"]
    run(store, a, r=Outcome.SUCCEEDED)
    assert state(store, "c") == "ready"


@pytest.mark.parametrize("waits", ["done", "end"])
def test_a_missing_parent_is_named(store: Store, waits: str) -> None:
    submit(store, task("p"), task("c", "p", "nobody", waits=waits), task("d", "c"), task("e", "d", waits="end"))
    found = tasks.get(store, ["c"])["c"]
    assert (found["state"], found["reason"]) == ("failed", "missing")
    assert "'nobody'" in found["message"]
    assert states(store) == {"p": "ready", "c": "missing", "d": "upstream", "e": "ready"}


def test_a_missing_parent_is_missing_still_after_a_retry(store: Store) -> None:
    submit(store, task("c", "nobody"), task("d", "c"))
    assert dependants.retry(store, ["c"]) == 1
    assert states(store) == {"c": "missing", "d": "upstream"}
    submit(store, task("nobody"))
    assert dependants.retry(store, ["c"]) == 1
    assert states(store) == {"nobody": "ready", "c": "waiting", "d": "waiting"}


@pytest.mark.parametrize(
    "order", [[("p", "c"), ("c", "p")], [("c", "p"), ("p",)], [("c", "c")], [("c", "d"), ("d", "e"), ("e", "c")]]
)
def test_no_cycle_can_be_made(store: Store, order: list[tuple[str, ...]]) -> None:
    with pytest.raises(InvalidInput, match="cannot wait for"):
        submit(store, task("root"), *(task(*names) for names in order))
    assert states(store) == {}


def test_a_sweep_during_submit_finds_no_parent_missing(store: Store, raced: tuple[Store, Commands]) -> None:
    """Others sweep between any two commands of the submit: each child that they see has its parents."""
    slow, commands = raced
    commands.before = lambda _: dependants.reconcile(store)
    submit(slow, task("t0"), *(task(f"t{n}", f"t{n - 1}", *["t0"] * (n % 3 == 0)) for n in range(1, 40)))
    assert states(store) == {"t0": "ready"} | {f"t{n}": "waiting" for n in range(1, 40)}


def test_a_sweep_between_the_pieces_of_a_large_submit(store: Store, raced: tuple[Store, Commands]) -> None:
    """What does not fit one command is stored parents first: a sweep in between sees no orphan."""
    slow, commands = raced
    total = 5200
    sweeps: list[int] = []
    commands.before = lambda name: sweeps.append(dependants.reconcile(store)) if name == "insert" else None
    submit(slow, task("t0"), *(task(f"t{n}", f"t{n // 2}") for n in range(1, total)))
    assert max(sweeps) >= 5000
    assert states(store) == {"t0": "ready"} | {f"t{n}": "waiting" for n in range(1, total)}


# -- lease ------------------------------------------------------------------------------------------


def test_lease_gives_each_task_once(store: Store, a: str, b: str) -> None:
    submit(store, *(task(f"t{n}") for n in range(10)))
    first = lease(store, a, 6)
    second = lease(store, b, 6)
    assert len(first) == 6
    assert len(second) == 4
    assert set(first) | set(second) == {f"t{n}" for n in range(10)}
    assert set(first.values()) | set(second.values()) == {1}
    assert lease(store, a) == {}
    assert tasks.held(store, a) == first
    assert tasks.held(store, b) == second


def test_lease_returns_documents_as_they_are_leased(store: Store, a: str) -> None:
    submit(store, task("t"))
    (doc,) = tasks.lease(store, a, ["c1"], 5, 0, NOW)
    assert (doc["attempt"], doc["leased"], doc["client"], doc["signature"]) == (1, NOW, "client", b"signed")
    assert store.tasks.find_one({"_id": "t"}, ["attempt", "lease", "leased"]) == {
        "_id": "t", "attempt": 1, "lease": a, "leased": NOW,
    }  # fmt: skip


def test_lease_takes_the_classes_it_is_given(store: Store, a: str) -> None:
    submit(store, task("one"), task("two", cores=2), task("four", cores=4))
    assert sorted(tasks.ready_classes(store)) == ["c1", "c2", "c4"]
    assert set(lease(store, a, classes=["c2", "c4", "c8"])) == {"two", "four"}
    assert tasks.ready_classes(store) == ["c1"]


def test_priority_counts_within_and_across_classes(store: Store, a: str) -> None:
    submit(
        store,
        task("low1", priority=-1), task("mid1"), task("high1", priority=7), task("low2", cores=2, priority=-1),
        task("mid2", cores=2), task("high2", cores=2, priority=7), task("top2", cores=2, priority=8),
    )  # fmt: skip
    order = list(lease(store, a))
    assert order[0] == "top2"
    assert set(order[1:3]) == {"high1", "high2"}
    assert set(order[3:5]) == {"mid1", "mid2"}
    assert set(order[5:]) == {"low1", "low2"}


def test_urgent_tasks_go_first_when_not_all_fit(store: Store, a: str, b: str) -> None:
    submit(store, *(task(f"t{n}", cores=1 + n % 2, priority=n % 5) for n in range(50)))
    first = lease(store, a, 20)
    assert {int(name[1:]) % 5 for name in first} == {3, 4}
    assert {int(name[1:]) % 5 for name in lease(store, b, 10)} == {2}


def test_buckets_are_taken_from_the_given_one_on_and_round(store: Store, a: str) -> None:
    submit(store, *(task(f"t{n}") for n in range(10_000, 20_000, 100)))
    start = 40
    buckets = [tasks.shared_bucket(name) for name in lease(store, a, bucket=start)]
    assert len(buckets) == 100
    assert buckets == sorted(buckets, key=lambda bucket: (bucket < start, bucket))
    assert buckets[0] >= start > buckets[-1]


def test_neighbours_share_a_bucket_and_none_has_too_many() -> None:
    names = [f"batch-{n}" for n in range(20_000)]
    assert len({tasks.shared_bucket(name) for name in names}) == BUCKETS
    for start in range(100, 20_000, 100):
        assert len({tasks.shared_bucket(name) for name in names[start : start + 100]}) == 1
    assert max(Counter(map(tasks.shared_bucket, names)).values()) < 5 * len(names) / BUCKETS


def test_first_come_first_served_within_a_bucket(store: Store, a: str, b: str) -> None:
    names = [name for n in range(2000) if tasks.shared_bucket(name := f"t{n}") == tasks.shared_bucket("t100")]
    assert len(names) > 10
    start = tasks.shared_bucket("t100")
    submit(store, *(task(name) for name in names))
    early = list(lease(store, a, 4, bucket=start))
    assert early == names[:4]
    tasks.give_back(store, a, [(name, 1) for name in early])  # and they keep their place
    assert list(lease(store, b, bucket=start)) == names


def test_an_attempt_between_find_and_update_is_not_taken_for_ours(
    store: Store, raced: tuple[Store, Commands], a: str, b: str
) -> None:
    """The task is ready again when the update arrives, but at another attempt than the one found."""
    slow, commands = raced
    submit(store, task("t"), task("u"))
    commands.once("update", lambda: run(store, b) or kill_pool(store, b))
    assert lease(slow, a) == {}
    assert state(store, "t") == "ready"
    assert lease(slow, a) == {"t": 2, "u": 2}


def test_what_others_took_between_find_and_update_is_left_to_them(
    store: Store, raced: tuple[Store, Commands], a: str, b: str
) -> None:
    slow, commands = raced
    submit(store, *(task(f"t{n}") for n in range(6)))
    theirs: dict[str, int] = {}
    commands.once("update", lambda: theirs.update(lease(store, b, 2)))
    ours = lease(slow, a)
    assert len(theirs) == 2
    assert len(ours) == 4
    assert not ours.keys() & theirs.keys()
    assert tasks.held(store, a) == ours


def test_a_lease_whose_answer_is_lost_is_read_back(store: Store, a: str) -> None:
    submit(store, task("t"), task("u"))
    with rig.faulty(store, rig.answers_lost):
        assert lease(store, a) == {"t": 1, "u": 1}
    assert tasks.held(store, a) == {"t": 1, "u": 1}


def test_a_lease_that_never_arrived_is_read_back(store: Store, a: str) -> None:
    submit(store, task("t"))
    with rig.faulty(store, rig.never_sent):
        assert lease(store, a) == {}
    assert state(store, "t") == "ready"


def test_a_lease_that_cannot_be_read_back_is_found_by_the_comparison(
    store: Store, a: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(store, task("t"))
    real = store.tasks.find

    def find(query: Document, *args: Any, **options: Any) -> Any:
        if "lease" in query:
            raise AutoReconnect("connection closed")
        return real(query, *args, **options)

    with rig.faulty(store, rig.answers_lost), monkeypatch.context() as patch:
        patch.setattr(store.tasks, "find", find, raising=False)
        with pytest.raises(StoreUnavailable):
            lease(store, a)
    assert tasks.held(store, a) == {"t": 1}
    repeated(store, lambda: tasks.give_back(store, a, [("t", 1)]))
    assert lease(store, a) == {"t": 2}


def test_tasks_of_several_attempts_are_leased_together(store: Store, a: str) -> None:
    submit(store, *(task(f"t{n}", retries=9) for n in range(3)))
    run(store, a, t0=Outcome.FAILED, t1=Outcome.LOST)
    run(store, a, t0=Outcome.FAILED)
    assert lease(store, a) == {"t0": 3, "t1": 3, "t2": 3}


# -- give back --------------------------------------------------------------------------------------


def test_what_is_given_back_is_ready_and_its_number_is_used_up(store: Store, a: str, b: str) -> None:
    submit(store, task("t"), task("u"))
    held = lease(store, a)
    untouched(store, lambda: tasks.give_back(store, b, held.items()))
    untouched(store, lambda: tasks.give_back(store, a, [("t", 2), ("u", 0), ("nobody", 1)]))
    repeated(store, lambda: tasks.give_back(store, a, [("t", 1)]))
    assert states(store) == {"t": "ready", "u": "leased"}
    assert lease(store, b) == {"t": 2}
    untouched(store, lambda: tasks.give_back(store, a, [("t", 1), ("t", 2)]))
    doc = tasks.get(store, ["t"])["t"]
    assert (doc["tried"], doc["lost"]) == (0, 0)


def test_what_is_given_back_and_should_be_cancelled_is_cancelled(store: Store, a: str) -> None:
    submit(store, task("t"), task("c", "t"))
    held = lease(store, a)
    tasks.cancel(store, ["t"], NOW)
    assert states(store) == {"t": "leased", "c": "waiting"}
    with events.tail(store, {"client": "client"}) as tail:
        assert tail.next() is None
        repeated(store, lambda: tasks.give_back(store, a, held.items()))
        told = tail.next()
    assert told is not None
    assert told["tasks"] == ["t"]
    assert state(store, "t") == "cancelled"
    dependants.release(store, ["t"])
    assert state(store, "c") == "upstream"


@pytest.mark.parametrize("update", [1, 2])
def test_a_cancel_during_give_back_is_heard(store: Store, a: str, update: int) -> None:
    submit(store, task("t"))
    held = lease(store, a)

    def meanwhile(write: int) -> None:
        if write == update:
            tasks.cancel(store, ["t"], NOW)

    with rig.faulty(store, rig.calling(store, meanwhile)):
        tasks.give_back(store, a, held.items())
    assert state(store, "t") == "cancelled"


# -- finish -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", [Outcome.SUCCEEDED, Outcome.CACHED])
def test_a_success_is_done(store: Store, a: str, outcome: Outcome) -> None:
    submit(store, task("t"), task("c", "t"))
    lease(store, a)
    repeated(store, lambda: commit(store, a, {("t", 1): outcome}))
    doc = tasks.get(store, ["t"])["t"]
    assert (doc["state"], doc["official"], doc["attempt"]) == ("done", 1, 1)
    assert "lease" not in doc
    assert "unreleased" not in doc
    assert state(store, "c") == "ready"


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.TIMEOUT, Outcome.CRASHED])
def test_retries_are_spent_and_then_it_has_failed(store: Store, a: str, outcome: Outcome) -> None:
    submit(store, task("t", retries=2), task("c", "t"))
    for tried in (1, 2):
        run(store, a, t=outcome)
        doc = tasks.get(store, ["t"])["t"]
        assert (doc["state"], doc["tried"], doc["lost"]) == ("ready", tried, 0)
        assert "official" not in doc
    run(store, a, t=outcome)
    doc = tasks.get(store, ["t"])["t"]
    assert (doc["state"], doc["reason"], doc["official"], doc["attempt"]) == ("failed", outcome.value, 3, 3)
    assert state(store, "c") == "upstream"


def test_lost_has_a_budget_of_its_own(store: Store, a: str) -> None:
    submit(store, task("t", retries=1))
    run(store, a, t=Outcome.FAILED)
    for lost in range(1, LOST_BUDGET + 1):
        run(store, a, t=Outcome.LOST)
        doc = tasks.get(store, ["t"])["t"]
        assert (doc["state"], doc["tried"], doc["lost"]) == ("ready", 1, lost)
    run(store, a, t=Outcome.LOST)
    doc = tasks.get(store, ["t"])["t"]
    assert (doc["state"], doc["reason"], doc["tried"]) == ("failed", "lost", 1)


@pytest.mark.parametrize("outcome", [Outcome.SUCCEEDED, *BAD])
def test_a_late_or_foreign_end_changes_nothing(store: Store, a: str, b: str, outcome: Outcome) -> None:
    submit(store, task("t", retries=3))
    lease(store, a)
    rig.record_all(store, a, {("t", 1): outcome})
    end = End("t", 1, a, outcome, "client")
    for wrong in (end._replace(token=b), end._replace(attempt=2), end._replace(attempt=0), end._replace(task="x")):
        untouched(store, lambda wrong=wrong: tasks.finish(store, [wrong], NOW))  # type: ignore[misc]
    repeated(store, lambda: tasks.finish(store, [end], NOW))
    if state(store, "t") == "ready":
        assert lease(store, b) == {"t": 2}
    untouched(store, lambda: tasks.finish(store, [end], NOW))


def test_ends_of_all_kinds_in_one_batch(store: Store, a: str) -> None:
    submit(store, *(task(f"t{n}", retries=n % 2) for n in range(14)), *(task(f"c{n}", f"t{n}") for n in range(14)))
    held = lease(store, a)
    outcomes = (Outcome.SUCCEEDED, *BAD, Outcome.CACHED)
    ends = {(f"t{n}", held[f"t{n}"]): outcomes[n % 7] for n in range(14)}
    commit(store, a, ends)
    found = states(store)
    for n in range(14):
        outcome = outcomes[n % 7]
        again = outcome is Outcome.LOST or (n % 2 and outcome in (Outcome.FAILED, Outcome.TIMEOUT, Outcome.CRASHED))
        good = outcome in (Outcome.SUCCEEDED, Outcome.CACHED)
        ended = "done" if good else "ready" if again else "cancelled" if outcome is Outcome.CANCELLED else "failed"
        assert found[f"t{n}"] == ended, (n, outcome)
        assert found[f"c{n}"] == ("ready" if good else "waiting" if again else "upstream"), (n, outcome)


def test_a_task_that_moves_while_its_end_is_decided_is_decided_again(
    store: Store, raced: tuple[Store, Commands], a: str
) -> None:
    slow, commands = raced
    submit(store, task("t", retries=5))
    lease(store, a)
    ends = rig.record_all(store, a, {("t", 1): Outcome.FAILED})
    commands.once("update", lambda: tasks.cancel(store, ["t"], NOW))
    tasks.finish(slow, ends, NOW)
    assert state(store, "t") == "cancelled"
