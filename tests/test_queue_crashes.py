"""A crash after any write is taken up, and hints are only hints."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pilot.states import Outcome
from pilot.store import dependants, invariants, tasks
from pilot.store.mongo import Store
from tests import queue_rig as rig
from tests.queue_rig import NOW, commit, kill_pool, lease, open_pool, run, state, states, submit, task

# -- a crash after every write ----------------------------------------------------------------------


def _submit(store: Store) -> None:
    submit(store, task("p"), task("q"), task("c", "p"), task("d", "c", "q"), task("e", "d", waits="end"))


def _commit(outcome: Outcome) -> Callable[[Store], None]:
    def act(store: Store) -> None:
        commit(store, "pool-a", {("p", 1): outcome, ("q", 1): Outcome.SUCCEEDED})

    return act


def _cancel(store: Store) -> None:
    tasks.cancel(store, ["p", "q"], NOW)
    dependants.release(store, ["p", "q"])


def _retry(store: Store) -> None:
    dependants.retry(store, ["p", "c"])


def _nothing(store: Store) -> None: ...


def _leased(store: Store) -> None:
    _submit(store)
    open_pool(store, "pool-a")
    lease(store, "pool-a")


def _failed(store: Store) -> None:
    _leased(store)
    _commit(Outcome.FAILED)(store)


AT_FIRST = {"p": "ready", "q": "ready", "c": "waiting", "d": "waiting", "e": "waiting"}
STEPS: dict[str, tuple[Callable[[Store], None], Callable[[Store], None], dict[str, str]]] = {
    "submit": (_nothing, _submit, AT_FIRST),
    "commit": (_leased, _commit(Outcome.SUCCEEDED), AT_FIRST | {"p": "done", "q": "done", "c": "ready"}),
    "fail": (
        _leased,
        _commit(Outcome.FAILED),
        {"p": "failed", "q": "done", "c": "upstream", "d": "upstream", "e": "ready"},
    ),
    "cancel": (_submit, _cancel, {"p": "cancelled", "q": "cancelled", "c": "upstream", "d": "upstream", "e": "ready"}),
    "retry": (_failed, _retry, {"p": "ready", "q": "done", "c": "waiting", "d": "waiting", "e": "ready"}),
}


@pytest.mark.parametrize("how", ["again", "reconcile"])
@pytest.mark.parametrize("step", STEPS)
def test_a_crash_after_any_write_is_taken_up(store: Store, step: str, how: str) -> None:
    """By the same operation once more, or by a sweep of others if the first write went through."""
    before, act, after = STEPS[step]
    for writes in range(50):
        before(store)
        with rig.crash_after(store, writes) as crashed:
            act(store)
        if how == "again":
            act(store)
            rig.quiesce(store)  # a marker below what is repeated is for the sweep
        elif writes and step in ("cancel", "retry"):
            rig.quiesce(store)
        elif step == "submit":  # what had not been stored yet is submitted by nobody else
            rig.quiesce(store)
            assert states(store).items() <= after.items()
            _submit(store)
        elif step in ("commit", "fail"):
            kill_pool(store, "pool-a")  # the reaper finds the records; before the first write there are none
            if writes:
                rig.quiesce(store)
        if how == "again" or writes:
            assert states(store) == after, f"after {writes} writes"
            assert invariants.violations(store) == []
        for name in ("tasks", "provenance", "pools"):
            store.database[name].delete_many({})
        if not crashed:
            assert writes > 2
            return
    raise AssertionError("50 writes were not enough")


# -- hints are only hints ---------------------------------------------------------------------------


@pytest.mark.any_documents
@pytest.mark.parametrize("loss", ["empty", "dropped"])
def test_the_queue_works_without_hints(store: Store, a: str, loss: str) -> None:
    def lose() -> None:
        if loss == "empty":
            store.events.delete_many({})
        else:
            store.events.drop()

    lose()
    submit(store, task("p"), task("q"), task("c", "p"), task("d", "q"), task("e", "d"))
    lose()
    run(store, a, p=Outcome.SUCCEEDED, q=Outcome.FAILED)
    lose()
    tasks.cancel(store, ["c"], NOW)
    lose()
    dependants.retry(store, ["q", "c"])
    for names in ("pq", "cd", "e"):
        lose()
        run(store, a, **dict.fromkeys((n for n in names if state(store, n) == "ready"), Outcome.SUCCEEDED))
    assert states(store) == dict.fromkeys("pqcde", "done")
    assert invariants.violations(store) == []
