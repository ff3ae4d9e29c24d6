"""The lease protocol holds, and each of its clauses is needed."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from tests.model import lease_world as world
from tests.model import leases
from tests.model.expect import Case, breaks, clean

THREE = "recalls, three leases"

REACHED = {
    "reaping": (
        "agent B finds record 1 there: succeeded, and goes by it",
        "agent A ends attempt 1: the task is done",
        "B finds record 2 there: lost, and goes by it",
        "heartbeat matches nothing: it takes token A2",
        "A reads back: it has leased nothing",
    ),
    "crashes": (
        "agent A, replaying the spool, ends attempt 1: the task is done",
        "agent A, replaying the spool, finds record 1 there: lost",
        "B crashes and its spool is lost",
    ),
    "restarts": ("A is started again, under token A2", "A's lease update matches: attempt 1 under A2"),
    "recalls": ("A gives attempt 1 up: its worker is silent", "A returns the lease of attempt 2"),
    THREE: ("B's lease update matches: attempt 2 under B1", "B's lease update matches nothing"),
    "errors": (
        "A reads back: it has leased attempt 1",
        "the update under B1 lands late: attempt 1",
        "A returns attempt 1, which it does not hold",
    ),
    "errors and recalls": ("the update under A1 lands late: attempt 1", "A returns the lease of attempt 2"),
    "errors and reaping": ("the update under A1 lands late", "agent A finds attempt 1 leased under dead A1"),
}

CASES = (
    Case(
        "record_decides",
        "reaping",
        world.BAD_OFFICIAL,
        (
            "A spools the result of attempt 1",
            "agent A judges A1 stale",
            "agent A inserts record 1: lost",
            "A finds record 1 there: lost, and ignores it",
            "A ends attempt 1: the task is done",
        ),
    ),
    Case(
        "record_decides",
        "reaping",
        world.TWO_SUCCESSES,
        (
            "A inserts record 1: succeeded",
            "agent A finds record 1 there: succeeded, and ignores it",
            "agent A ends attempt 1: the task is ready",
            "inserts record 2: succeeded",
        ),
    ),
    Case(
        "pin_attempt",
        THREE,
        world.TWO_SUCCESSES,
        (
            "B finds the task ready, attempt 0",
            "A returns the lease of attempt 1",
            "B's lease update matches: attempt 2 under B1",
            "B's worker begins attempt 1",
            "B returns attempt 2, which it does not hold",
            "inserts record",
            "inserts record",
        ),
    ),
    Case(
        "keep_attempt",
        THREE,
        world.ATTEMPT_FELL,
        ("A's lease update matches: attempt 1", "A returns the lease of attempt 1"),
    ),
    Case(
        "keep_attempt",
        THREE,
        world.FOREIGN_RECORD,
        (
            "attempt 1 under A1",
            "A compares: it does not hold attempt 1",
            "attempt 1 under A1",
            "A's worker begins attempt 1",
            "A returns attempt 1, which it does not hold",
            "A inserts record 1: succeeded",
            "attempt 1 under B1",
            "B finds record 1 there: succeeded",
            "B ends attempt 1: the task is done",
        ),
    ),
    Case(
        "return_unbegun_only",
        THREE,
        world.TWO_SUCCESSES,
        (
            "A returns the lease of attempt 1 without asking its worker",
            "A's worker begins attempt 1",
            "inserts record",
            "inserts record",
        ),
    ),
    Case(
        "read_back",
        "errors",
        world.NEVER_LEASED,
        (
            "A's lease update is answered by an error",
            "A takes attempt 1 for leased, without reading back",
            "A inserts record 1: succeeded",
        ),
    ),
    Case(
        "read_back",
        "reaping",
        world.FOREIGN_RECORD,
        (
            "A's lease update matches: attempt 1 under A1",
            "B's lease update matches nothing",
            "B takes attempt 1 for leased, without reading back",
            "B inserts record 1: succeeded",
            "A ends attempt 1: the task is done",
        ),
    ),
    Case(
        "compare",
        "errors",
        world.LEASED_FOR_EVER,
        (
            "A's lease update is answered by an error",
            "A reads back: it has leased nothing",
            "the update under A1 lands late: attempt 1",
        ),
    ),
    Case(
        "spare_unresolved",
        "errors",
        world.TWO_SUCCESSES,
        (
            "A's lease update is answered by an error",
            "A compares: it does not hold attempt 1",
            "A reads back: it has leased attempt 1",
            "A's worker begins attempt 1",
            "A returns attempt 1, which it does not hold",
            "inserts record",
            "inserts record",
        ),
    ),
    Case(
        "compare_reads_first",
        THREE,
        world.TWO_SUCCESSES,
        (
            "A lists what it holds: nothing",
            "A's lease update matches: attempt 1",
            "A's worker begins attempt 1",
            "A compares: attempt 1 is leased, and not on its list",
            "A returns attempt 1, which it does not hold",
            "inserts record",
            "inserts record",
        ),
    ),
    Case(
        "live_filter",
        "reaping",
        world.REAPED_LEASES,
        (
            "agent A judges A1 stale",
            "A's heartbeat is counted, though A1 was reaped",
            "A's lease update matches: attempt 1 under A1",
        ),
    ),
    Case(
        "fence_first",
        "reaping",
        world.LIVE_POOL_REAPED,
        (
            "A's lease update matches: attempt 1 under A1",
            "agent A judges A1 stale",
            "agent A reads the leases of A1: attempt 1",
            "agent A inserts record 1: lost",
        ),
    ),
    Case(
        "reap_again",
        "reaping",
        world.LEASED_FOR_EVER,
        (
            "A finds the task ready",
            "agent A judges A1 stale",
            "agent A reads the leases of A1: none",
            "A's lease update matches: attempt 1 under A1",
            "A's heartbeat matches nothing",
        ),
    ),
    Case(
        "reap_pinned",
        "reaping",
        world.NO_RECORD,
        (
            "agent A finds attempt 1 leased under dead A1",
            "agent B finds attempt 1 leased under dead A1",
            "agent A ends attempt 1: the task is ready",
            "A's lease update matches: attempt 2 under A1",
            "A's worker begins attempt 2",
            "agent B finds record 1 there: lost",
            "agent B ends attempt 2: the task is ready",
        ),
    ),
    Case(
        "fresh_token",
        "restarts",
        world.TWO_SUCCESSES,
        (
            "A inserts record 1: succeeded",
            "A crashes",
            "A is started again, under token A1",
            "A returns attempt 1, which it does not hold",
            "inserts record 2: succeeded",
        ),
    ),
    Case(
        "spool_token",
        "restarts",
        world.FOREIGN_RECORD,
        (
            "A spools the result of attempt 1",
            "A crashes",
            "A is started again, under token A2",
            "A inserts record 1: succeeded",
            "agent A finds record 1 there: succeeded",
            "agent A ends attempt 1: the task is done",
        ),
    ),
    Case(
        "spool_first",
        "crashes",
        world.SPOOL_WASTED,
        (
            "A spools the result of attempt 1",
            "A crashes",
            "agent A finds attempt 1 leased under dead A1",
        ),
    ),
)


@pytest.mark.parametrize("scenario", leases.SCENARIOS)
def test_the_protocol_holds(scenario: str) -> None:
    clean(leases.model(scenario, world.Clauses()), *REACHED[scenario])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_without_a_clause_the_protocol_breaks(case: Case) -> None:
    dropped = replace(world.Clauses(), **{case.clause: False})
    breaks(leases.model(case.scenario, dropped), case)


def test_every_clause_is_dropped_once() -> None:
    assert {case.clause for case in CASES} == {field.name for field in fields(world.Clauses)}


def test_an_attempt_number_handed_out_twice_lets_one_pool_end_with_the_record_of_another() -> None:
    case = Case(
        "keep_attempt, return_unbegun_only",
        THREE,
        world.FOREIGN_RECORD,
        (
            "attempt 1 under A1",
            "A returns the lease of attempt 1 without asking its worker",
            "A's worker begins attempt 1",
            "attempt 1 under B1",
            "the task is done",
        ),
    )
    dropped = world.Clauses(keep_attempt=False, return_unbegun_only=False)
    breaks(leases.model(THREE, dropped), case)
