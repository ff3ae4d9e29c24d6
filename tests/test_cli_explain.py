"""Why a task is not running: the conclusions, case by case, and the facts from a real store."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pilot.cli import facts as reading
from pilot.cli import queries, text
from pilot.explain import Attempt, Facts, Other, Pilot, held_up, reasons, refusal
from pilot.resources import Resources
from pilot.states import State
from pilot.store import tasks
from pilot.store.mongo import Store

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
UP = Pilot("p1", "n1", slots=4, slot_cores=2, busy=1, heartbeat_s=1.0)


def task(state: str = "ready", **fields: Any) -> dict[str, Any]:
    """Return a task's document, as far as it matters here."""
    return {
        "_id": "t-0", "name": "fit", "state": state, "class": "c1", "priority": 0, "attempt": 0, "retries": 0,
        "kind": "function", **fields,
    }  # fmt: skip


def ready(needs: str = "c1", **facts: Any) -> str:
    """Return the reasons of a ready task as one text."""
    return "\n".join(reasons(Facts(task(**{"class": needs}), 60.0, **facts)))


# -- ready ------------------------------------------------------------------------------------------


def test_no_pilot_is_up() -> None:
    assert ready() == "it is ready, and no pilot is up: start one with `pilot up`"
    assert "`pilot up --cores-per-slot 8 --walltime 60m`" in ready("c8w1800")


def test_a_pilot_that_waits_for_nodes() -> None:
    words = "pilot p2 is not up yet: job 7 waits in the queue: Resources (PENDING)"
    assert ready(queued=[words]) == f"it is ready, and no pilot is up yet\n{words}"
    assert words in ready("c9", pilots=[UP], queued=[words])
    assert held_up({"c1": 3}, [], [words]) == [f"3 tasks are ready and no pilot is up yet: {words}"]


def test_a_pilot_that_is_starting() -> None:
    assert "pilot p1 is up, but its pool is not yet" in ready(pilots=[Pilot("p1", "n1", 0, 1, 0, 0.5)])


def test_more_cores_than_any_slot_has() -> None:
    said = ready("c9", pilots=[UP])
    assert said == (
        "pilot p1 cannot run it: needs 5 slots on one node, the largest node here has 4\n"
        "start a pilot that can: `pilot up --cores-per-slot 9`"
    )


def test_a_walltime_that_does_not_fit() -> None:
    soon = Pilot("p2", "n1", 4, 2, 0, 1.0, left_s=600.0)
    assert "a walltime of 2 h is needed, the pilot ends in 10 min" in ready("c1w7200", pilots=[soon])
    assert "nothing keeps it" in ready("c1w300", pilots=[soon])
    assert "cannot run it" not in ready("c1", pilots=[soon])  # without a walltime it may always begin


def test_a_pilot_that_drains() -> None:
    said = ready(pilots=[Pilot("p1", "n1", 4, 2, 0, 1.0, draining=True)])
    assert "the pilot is ending and takes nothing new" in said
    assert "`pilot up`" in said


def test_an_old_heartbeat() -> None:
    silent = Pilot("p3", "n7", 4, 1, 4, heartbeat_s=47.0)
    said = ready(pilots=[silent])
    assert "the heartbeat of pilot p3 on n7 is 47 s old" in said
    assert "no other pilot is up: start one with `pilot up`" in said
    assert "nothing keeps it" in ready(pilots=[silent, UP])


def test_all_slots_are_busy() -> None:
    full = Pilot("p1", "n1", 4, 1, 4, 1.0)
    said = ready(pilots=[full], before=1200, beside=7)
    assert said == "all 4 slots of p1 are busy; 1,200 ready tasks of higher priority come first, 7 are of the same"
    assert "it waits its turn on p1" in ready(pilots=[UP], before=3, beside=9)
    assert ready(pilots=[UP]) == "nothing keeps it: p1 has 3 free slots and takes it within seconds"


def test_one_pilot_of_two_can_run_it() -> None:
    wide = Pilot("p9", "n2", 2, 16, 2, 1.0)
    said = ready("c9", pilots=[UP, wide])
    assert "pilot p1 cannot run it: needs 5 slots on one node, the largest node here has 4" in said
    assert "all 2 slots of p9 are busy" in said


# -- waiting and upstream ---------------------------------------------------------------------------


def test_waits_for_one() -> None:
    parent = Facts(task("leased", _id="a-0", lease="tok"), 5.0, pool={"pilot": "p1", "host": "n1", "state": "live"})
    lines = reasons(
        Facts(task("waiting"), 9.0, parents={State.LEASED: 1}, named=[Other("a-0", "scf", State.LEASED)], root=parent)
    )
    assert lines == [
        "it waits for the result of a-0 (scf, leased)",
        "a-0 (fit): it is held by pool tok of pilot p1 on host n1 since 5 s: it runs, or is next on one of its slots",
    ]


def test_waits_for_many() -> None:
    named = [Other(f"a-{k}", "scf", State.READY) for k in range(3)]
    lines = reasons(Facts(task("waiting"), 9.0, parents={State.READY: 1000, State.WAITING: 234}, named=named))
    assert lines[0].startswith("it waits for 1,234 tasks (1,000 ready, 234 waiting): a-0 (scf, ready)")
    assert lines[0].endswith(" and 1,231 more")


def test_what_it_waited_for_has_ended() -> None:
    assert "within 30 s" in reasons(Facts(task("waiting"), 9.0))[0]
    named = [Other("a-0", "scf", State.DONE)]
    assert "`pilot doctor --repair`" in reasons(Facts(task("waiting"), 9.0, parents={State.DONE: 1}, named=named))[-1]


def test_failed_upstream_names_the_first_cause() -> None:
    cause = Facts(
        task("failed", _id="a-0", reason="failed"), 9.0, attempts=[Attempt(1, "failed", 9.0, "n1", "ValueError: no")]
    )
    named = [Other("b-0", "scf", State.FAILED, "upstream")]
    lines = reasons(Facts(task("failed", reason="upstream"), 9.0, parents={State.FAILED: 1}, named=named, root=cause))
    assert lines == [
        "it needs the result of b-0 (scf, failed), which did not succeed",
        "it began with a-0 (fit): attempt 1 failed on n1 9 s ago: ValueError: no",
        "`pilot retry a-0` runs that again, and then this",
    ]


# -- leased and ended -------------------------------------------------------------------------------


def test_held_by_a_dead_pool() -> None:
    lines = reasons(Facts(task("leased", lease="tok"), 50.0, pool={"pilot": "p1", "state": "dead"}))
    assert "pool tok, which is dead" in lines[0]
    assert "`pilot up` starts one" in lines[0]
    assert "which is dead" in reasons(Facts(task("leased", lease="tok"), 50.0, pilots=[UP]))[0]


def test_waits_for_room() -> None:
    key = Resources(ranks=2).key
    pool = {"state": "live", "pilot": "p1", "host": "n1", "slots": 4, "busy": 3, "parked": ["t-9", "t-0"], "kept": None}

    def said(**fields: Any) -> str:
        doc = task("leased", lease="k1", **{"class": key})
        return "\n".join(reasons(Facts(doc, 3.0, pool=pool | fields)))

    room = "waits there for room: it asks for 2 ranks of 1 core, and 3 of 4 slots are busy"
    assert f"{room}; 1 wide task of that pool comes before it" in said()
    assert "it is the next" in said(parked=["t-0"])
    kept = {"class": key, "slots": 2, "in_s": 30.0}
    assert "2 slots are kept free for it, all free in 30 s at the latest" in said(parked=["t-0"], kept=kept)
    assert "2 slots are kept free for a task of class c8, which comes first" in said(kept=kept | {"class": "c8"})
    assert "all job steps that the site lets a pilot have at a time" in said(stepless=["t-0"])
    assert "job steps" not in said(stepless=["t-9"])


def test_held_by_a_pool_that_is_not_heard_of() -> None:
    silent = Pilot("p1", "n1", 4, 1, 4, heartbeat_s=31.0)
    pool = {"pilot": "p1", "host": "n1", "state": "live"}
    lines = reasons(Facts(task("leased", lease="tok", cancel=True), 50.0, pilots=[silent], pool=pool))
    assert "the heartbeat of pilot p1 on n1 is 31 s old" in lines[1]
    assert "asked to cancel it" in lines[2]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"state": "done"}, "it is done since 90 s"),
        ({"state": "cancelled"}, "it was cancelled 90 s ago; `pilot retry t-0` runs it after all"),
        ({"state": "failed", "reason": "timeout", "retries": 2}, "reason: timeout; it had 3 tries; `pilot retry t-0`"),
        ({"state": "failed", "reason": "lost"}, "it was lost more than 20 times"),
        ({"state": "failed", "reason": "missing", "message": "its parent 'x' does not exist"}, "'x' does not exist"),
    ],
    ids=["done", "cancelled", "timeout", "lost", "missing"],
)
def test_ended(fields: dict[str, Any], words: str) -> None:
    assert words in reasons(Facts(task(**fields), 90.0))[0]


def test_every_attempt_is_told() -> None:
    attempts = [Attempt(1, "lost", 300.0), Attempt(2, "timeout", 120.0, "n2"), Attempt(3, "failed", 5.0, "n2", "E: x")]
    assert reasons(Facts(task(attempt=3), 1.0, pilots=[UP], attempts=attempts))[1:] == [
        "attempt 1 lost 5 min ago", "attempt 2 timeout on n2 2 min ago", "attempt 3 failed on n2 5 s ago: E: x"
    ]  # fmt: skip


# -- many tasks at once -----------------------------------------------------------------------------


def test_held_up() -> None:
    assert held_up({}, []) == []
    assert held_up({"c1": 5}, [UP]) == []
    assert held_up({"c1": 5, "c9": 1}, []) == ["6 tasks are ready and no pilot is up: `pilot up` starts one"]
    assert held_up({"c1": 5}, [Pilot("p1", "n1", 0, 1, 0, 1.0)]) == []  # it is starting
    assert held_up({"c1": 5, "c4": 1, "c9": 1}, [UP]) == [
        "1 task is ready that no pilot takes: needs 5 slots on one node, the largest node here has 4; "
        "start one with `pilot up --cores-per-slot 9`"
    ]


def test_refusal_agrees_with_the_placement() -> None:
    assert refusal(Resources(2), UP) == ""
    assert refusal(Resources(1, walltime_s=10.0), Pilot("p", "n", 1, 1, 0, 0.0, left_s=-3.0)) != ""


# -- from a real store ------------------------------------------------------------------------------


def insert(store: Store, name: str, state: str, **fields: Any) -> None:
    """Store a task's document."""
    store.tasks.insert_one(
        {
            **task(state, _id=name), "tried": 0, "lost": 0, "rev": 0, "waits": "done", "bucket": 0,
            "seq": int(name[2:]), "submitted": NOW - timedelta(minutes=5), **fields,
        }
    )  # fmt: skip


def test_collect_follows_the_chain_and_sees_through_joins(store: Store) -> None:
    insert(store, "t-0", "ready")
    insert(store, "t-1", "waiting", pending=["t-0"])
    insert(store, "t-2", "waiting", kind="join", pending=["t-1", "t-0"])
    insert(store, "t-3", "waiting", pending=["t-2"])
    found = reading.collect(store, "t-3", NOW)
    assert found.parents == {State.WAITING: 1, State.READY: 1}
    assert [other.id for other in found.named] == ["t-0", "t-1"]
    assert found.root is not None
    assert found.root.task["_id"] == "t-0"
    assert "no pilot is up" in "\n".join(reasons(found))


def test_collect_counts_what_is_ahead(store: Store) -> None:
    for number in range(4):
        insert(store, f"t-{number}", "ready", priority=-number, **({"class": "c2"} if number % 2 else {}))
    found = reading.collect(store, "t-1", NOW)
    assert (found.before, found.beside) == (2, 0)
    assert tasks.ready_counts(store) == {"c1": 2, "c2": 2}


@pytest.mark.any_documents
def test_collect_what_failed_upstream(store: Store) -> None:
    insert(store, "t-0", "failed", reason="failed", attempt=1, official=1, ended=NOW)
    insert(store, "t-1", "failed", reason="upstream", pending=["t-0"], ended=NOW)
    insert(store, "t-2", "failed", reason="upstream", pending=["t-1"], ended=NOW)
    store.provenance.insert_one(
        {
            "_id": "t-0:1", "task": "t-0", "attempt": 1, "outcome": "failed", "host": "n1", "time": {"finished": NOW},
            "exception": {"type": "ValueError", "message": "no\nminimum"}, "inputs": [], "outputs": [],
        }
    )  # fmt: skip
    lines = reasons(reading.collect(store, "t-2", NOW))
    assert "t-1 (fit, failed)" in lines[0]
    assert "t-0 (fit): attempt 1 failed on n1 0 s ago: ValueError: no minimum" in lines[1]
    assert queries.failed_upstream(store) == 2
    assert [doc["_id"] for doc in queries.problems(store, 5)] == ["t-0"]


@pytest.mark.any_documents
def test_outstanding_leaves_joins_and_other_windows_out(store: Store) -> None:
    insert(store, "t-1", "ready")
    insert(store, "t-2", "waiting", kind="join", pending=["t-1"])
    insert(store, "t-3", "waiting", pending=["t-2"])
    insert(store, "t-4", "leased", lease="tok")
    assert queries.outstanding(store) == {State.WAITING: 1, State.READY: 1, State.LEASED: 1}
    assert sum(queries.outstanding(store, since=3).values()) == 2
    assert sum(queries.outstanding(store, since=1, until=3).values()) == 2
    assert sorted(name for batch in queries.ids(store, queries.UNENDED) for name in batch) == ["t-1", "t-3", "t-4"]


# -- words ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.0042, "4.2 ms"), (0.9999, "1 s"), (5.04, "5 s"), (37.4, "37 s"), (59.6, "1 min"), (3600, "1 h"),
     (7900, "2 h 12 min"), (86400, "1 d"), (200000, "2 d 8 h")],
)  # fmt: skip
def test_spans(seconds: float, words: str) -> None:
    assert text.span(seconds) == words


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"value": 3.5}, "3.5"),
        ({"value": {"a": [1, 2], "b": None}}, "{'a': [1, 2], 'b': None}"),
        ({"value": {"~": ["tuple", [1, "x"]]}}, "(1, 'x')"),
        ({"value": list(range(1000))}, "[0, 1, 2, 3, 4, 5, 6, 7, …] 1,000 items"),
        ({"data": b"pjunk", "size": 5}, "pickled, 5 B"),
        ({"data": b"babc", "size": 4}, "b'abc'"),
        ({"object": True, "size": 3 << 20}, "3 MiB in the object repository"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_values(entry: dict[str, Any], words: str) -> None:
    assert text.value(entry) == words


def test_values_of_arrays_are_told_without_numpy() -> None:
    numpy = pytest.importorskip("numpy")
    from pilot import values

    encoded = values.encode(numpy.zeros((3, 2)))
    assert text.value({"data": encoded.data, "size": encoded.size}).startswith("NumPy array, <f8 (3, 2), ")


def test_long_values_are_clipped() -> None:
    assert len(text.value({"value": "x" * 10_000})) == 72
    assert len(text.value({"value": {str(k): "y" * 1000 for k in range(100)}})) <= 72


def test_json_has_no_nan_and_no_local_time() -> None:
    tree = {"t": NOW + timedelta(seconds=1.5), "n": float("nan"), "b": b"\0", "s": State.DONE, "l": (1, None)}
    assert text.plain(tree) == {
        "t": "2026-03-01T12:00:01.500Z", "n": "nan", "b": "AA==", "s": "done", "l": [1, None]
    }  # fmt: skip
