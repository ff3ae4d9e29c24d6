"""Cancel, failure upstream and retry, clause by clause."""

from __future__ import annotations

import pytest

from pilot.states import Outcome
from pilot.store import dependants, events, provenance, tasks
from pilot.store.mongo import Store
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


# -- cancel -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["ready", "leased", "done", "failed", "cancelled"])
def test_cancel_in_every_state(store: Store, what: str) -> None:
    submit(store, task("t"), task("c", "t"))
    force(store, "t", what)
    repeated(store, lambda: tasks.cancel(store, ["t"], NOW))
    expected = {"ready": "cancelled"}.get(what, what)
    assert state(store, "t") == expected
    assert tasks.get(store, ["t"])["t"].get("cancel") == (True if what == "leased" else None)
    token = "pool-of-t"
    assert tasks.to_cancel(store, token) == ({"t": 1} if what == "leased" else {})
    dependants.release(store)
    ended = {"done": "ready", "failed": "upstream", "cancelled": "upstream"}
    assert state(store, "c") == ended.get(expected, "waiting")


def test_cancel_of_what_waits(store: Store, a: str) -> None:
    submit(store, task("p"), task("t", "p"), task("c", "t"), task("d", "c"))
    repeated(store, lambda: tasks.cancel(store, ["t"], NOW))
    repeated(store, lambda: dependants.release(store, ["t"]))
    assert states(store) == {"p": "ready", "t": "cancelled", "c": "upstream", "d": "upstream"}
    run(store, a, p=Outcome.SUCCEEDED)
    assert state(store, "t") == "cancelled"
    assert dependants.retry(store, ["t"]) == 1
    assert states(store) == {"p": "done", "t": "ready", "c": "waiting", "d": "waiting"}


@pytest.mark.parametrize("outcome", BAD)
def test_a_wish_to_cancel_turns_every_bad_end_into_cancelled(store: Store, a: str, outcome: Outcome) -> None:
    submit(store, task("t", retries=5))
    lease(store, a)
    tasks.cancel(store, ["t"], NOW)
    commit(store, a, {("t", 1): outcome})
    doc = tasks.get(store, ["t"])["t"]
    assert doc["state"] == "cancelled"
    assert "cancel" not in doc


def test_a_success_stands_whatever_was_asked(store: Store, a: str) -> None:
    submit(store, task("t"))
    lease(store, a)
    tasks.cancel(store, ["t"], NOW)
    commit(store, a, {("t", 1): Outcome.SUCCEEDED})
    assert state(store, "t") == "done"
    untouched(store, lambda: tasks.cancel(store, ["t"], NOW))
    assert tasks.to_cancel(store, a) == {}


def test_a_wish_to_cancel_and_a_dead_pool(store: Store, a: str) -> None:
    submit(store, task("t"), task("c", "t"))
    lease(store, a)
    tasks.cancel(store, ["t"], NOW)
    kill_pool(store, a)
    repeated(store, lambda: rig.reap(store))
    assert states(store) == {"t": "cancelled", "c": "upstream"}
    assert [doc["outcome"] for doc in provenance.attempts(store, "t")] == ["lost"]


def test_cancel_says_who_has_ended_and_whom_to_stop(store: Store, a: str) -> None:
    submit(store, task("r"), task("w", "r"), task("l"))
    lease(store, a)
    tasks.give_back(store, a, [("r", 1)])
    with events.tail(store, {}) as tail:
        assert tail.next() is None
        tasks.cancel(store, ["w", "r", "l"], NOW)
        told = [tail.next(), tail.next()]
    assert [(event["kind"], event.get("tasks")) for event in told if event] == [
        (events.ENDED, ["r", "w"]), (events.CANCEL, None),
    ]  # fmt: skip


# -- failure upstream, retry ------------------------------------------------------------------------


def test_a_failure_goes_down_level_by_level(store: Store, a: str) -> None:
    submit(
        store,
        task("p"), task("c", "p"), task("d", "c"), task("e", "d"), task("q"), task("x", "q", "d"),
        task("flow", "e", waits="end"), task("after", "flow"),
    )  # fmt: skip
    run(store, a, p=Outcome.FAILED)
    down = dict.fromkeys("cdex", "upstream")
    assert states(store) == {"p": "failed", "q": "ready", "flow": "ready", "after": "waiting", **down}
    kept = {doc["_id"]: doc["pending"] for doc in store.tasks.find({"reason": "upstream"})}
    assert kept == {"c": ["p"], "d": ["c"], "e": ["d"], "x": ["q", "d"]}
    rig.quiesce(store)
    assert states(store)["x"] == "upstream"


def test_a_flow_goes_on_after_any_end(store: Store, a: str) -> None:
    submit(store, task("p"), task("q"), task("r"), task("flow", "p", "q", "r", waits="end"))
    run(store, a, p=Outcome.FAILED)
    assert state(store, "flow") == "waiting"
    tasks.cancel(store, ["q"], NOW)
    dependants.release(store, ["q"])
    assert state(store, "flow") == "waiting"
    run(store, a, r=Outcome.SUCCEEDED)
    assert state(store, "flow") == "ready"


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_retry_revives_transitively(store: Store, a: str, end: str) -> None:
    submit(store, task("p"), task("c", "p"), task("d", "c"), task("e", "d", "p"), task("z"))
    force(store, "p", end)
    dependants.release(store, ["p"])
    assert set(states(store).values()) == {end, "upstream", "ready"}
    repeated(store, lambda: dependants.retry(store, ["p"]))
    assert states(store) == {"p": "ready", "z": "ready"} | dict.fromkeys("cde", "waiting")
    for name in "pcde":
        run(store, a, **{name: Outcome.SUCCEEDED})
    assert states(store) == dict.fromkeys("pcde", "done") | {"z": "ready"}


def test_retry_gives_new_budgets_and_goes_on_counting_attempts(store: Store, a: str) -> None:
    submit(store, task("t", retries=1))
    for _ in range(2):
        run(store, a, t=Outcome.FAILED)
    assert state(store, "t") == "failed"
    assert dependants.retry(store, ["t"]) == 1
    doc = tasks.get(store, ["t"])["t"]
    assert (doc["tried"], doc["lost"], doc["attempt"]) == (0, 0, 2)
    assert not doc.keys() & {"official", "reason", "message", "ended", "unreleased", "cancel"}
    for _ in range(2):
        run(store, a, t=Outcome.FAILED)
    assert tasks.get(store, ["t"])["t"]["attempt"] == 4
    assert [doc["attempt"] for doc in provenance.attempts(store, "t")] == [1, 2, 3, 4]


@pytest.mark.parametrize("what", ["ready", "leased", "done"])
def test_only_what_failed_or_was_cancelled_is_retried(store: Store, what: str) -> None:
    submit(store, task("t"), task("c", "t"))
    force(store, "t", what)
    untouched(store, lambda: dependants.retry(store, ["t", "nobody"]))
    assert dependants.retry(store, ["t"]) == 0


def test_retry_of_what_failed_upstream_of_a_parent_that_is_still_failed(store: Store, a: str) -> None:
    submit(store, task("p"), task("c", "p"), task("d", "c"), task("e", "d"))
    run(store, a, p=Outcome.FAILED)
    assert dependants.retry(store, ["d"]) == 1
    assert states(store) == {"p": "failed"} | dict.fromkeys("cde", "upstream")
    assert dependants.retry(store, ["e", "c"]) == 2
    assert states(store) == {"p": "failed"} | dict.fromkeys("cde", "upstream")
    rig.quiesce(store)
    assert dependants.retry(store, ["p"]) == 1
    assert states(store) == {"p": "ready"} | dict.fromkeys("cde", "waiting")


def test_two_failed_parents_are_retried_one_by_one(store: Store, a: str) -> None:
    submit(store, task("p"), task("q"), task("c", "p", "q"), task("d", "c"))
    run(store, a, p=Outcome.FAILED, q=Outcome.CRASHED)
    dependants.retry(store, ["p"])
    assert states(store) == {"p": "ready", "q": "failed", "c": "upstream", "d": "upstream"}
    dependants.retry(store, ["q"])
    assert states(store) == {"p": "ready", "q": "ready", "c": "waiting", "d": "waiting"}
    run(store, a, p=Outcome.SUCCEEDED, q=Outcome.SUCCEEDED)
    assert states(store) == {"p": "done", "q": "done", "c": "ready", "d": "waiting"}


def test_a_retry_between_the_steps_of_a_release_is_not_undone_for_good(
    store: Store, raced: tuple[Store, Commands], a: str
) -> None:
    """A slow releaser read that p failed, p is retried, and only then the releaser fails the child."""
    slow, commands = raced
    submit(store, task("p"), task("c", "p"), task("d", "c"))
    lease(store, a)
    ends = rig.record_all(store, a, {("p", 1): Outcome.FAILED})
    tasks.finish(store, ends, NOW)
    commands.once("update", lambda: dependants.retry(store, ["p"]))
    dependants.release(slow, ["p"])
    rig.quiesce(store)
    assert states(store) == {"p": "ready", "c": "waiting", "d": "waiting"}


def test_a_marker_set_anew_is_not_cleared_by_who_saw_the_old_one(store: Store, a: str) -> None:
    """A slow releaser has told of the failure of p; before it clears the marker, p is retried and done."""
    submit(store, task("p"), task("c", "p"))
    run_without_release(store, a, "p", Outcome.FAILED)

    def meanwhile(write: int) -> None:
        if write == 2:  # the first has made c fail, the second clears the marker
            assert state(store, "c") == "upstream"
            dependants.retry(store, ["p"])
            run_without_release(store, a, "p", Outcome.SUCCEEDED)

    with rig.faulty(store, rig.calling(store, meanwhile)):
        dependants.release(store, ["p"])
    assert states(store) == {"p": "done", "c": "waiting"}
    rig.quiesce(store)
    assert states(store) == {"p": "done", "c": "ready"}


def run_without_release(store: Store, token: str, name: str, outcome: Outcome) -> None:
    """Lease and end one task, and die before its dependants are told."""
    attempt = lease(store, token)[name]
    tasks.finish(store, rig.record_all(store, token, {(name, attempt): outcome}), NOW)


def test_a_correction_does_not_fit_a_child_that_has_moved(store: Store, a: str) -> None:
    """A slow check read that p is ready; p fails, c fails, c is retried by who dies on the way, the check goes on."""
    submit(store, task("p"))

    def meanwhile(write: int) -> None:
        if write == 3:  # after the insert and the announcement, the correction
            run(store, a, p=Outcome.FAILED)
            assert state(store, "c") == "upstream"
            with rig.crash_after(store, 1):
                dependants.retry(store, ["c"])
            assert state(store, "c") == "waiting"

    with rig.faulty(store, rig.calling(store, meanwhile)):
        submit(store, task("c", "p"))
    rig.quiesce(store)
    assert states(store) == {"p": "failed", "c": "upstream"}


def test_a_parent_that_ends_between_announcement_and_look_is_seen(store: Store, a: str) -> None:
    """Whichever comes first, the end of p or the look at p: one of the two sees the other."""
    for write in (1, 2, 3):
        submit(store, task(f"p{write}"))

        def meanwhile(number: int, write: int = write) -> None:
            if number == write:
                run(store, a, **{f"p{write}": Outcome.SUCCEEDED})

        with rig.faulty(store, rig.calling(store, meanwhile)):
            submit(store, task(f"c{write}", f"p{write}"))
        rig.quiesce(store)
        assert state(store, f"c{write}") == "ready", f"p ended before write {write}"
        run(store, a, **{f"c{write}": Outcome.SUCCEEDED})
