"""A cancel is never lost and never undoes a success, and each clause that sees to it is needed."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from tests.model import cancel
from tests.model.cancel import Clauses
from tests.model.expect import Case, breaks, clean

TOLD = "the person is told: cancelled (the task is leased, cancel)"
LOSSES = "failures and losses"

REACHED = {
    LOSSES: (
        "the pool ends attempt 1 (succeeded): the task is done",
        "the agent ends attempt 1 (cancelled): the task is cancelled",
        "the pool finds record 1 there: lost",
        "the pool ends attempt 2 (failed): the task is failed",
        "the pool ends attempt 2 (failed): the task is cancelled",
        "the pool recalls attempt 1: cancel",
        "the pool kills attempt 1: cancel",
    ),
    "suspended flows": ("the flow is released: ready", "the flow is released: cancelled"),
    "retried by a person": ("the person retries the task", "attempt 3 is leased"),
}

CASES = (
    Case(
        "cancel_at_once",
        LOSSES,
        cancel.LEASED_AGAIN,
        (
            "the person's cancel reads: leased",
            "the task is ready",
            "the person is told: cancelled",
            "attempt 2 is leased",
        ),
    ),
    Case(
        "return_heeds",
        LOSSES,
        cancel.LEASED_AGAIN,
        (TOLD, "the pool returns attempt 1: the task is ready", "attempt 2 is leased"),
    ),
    Case(
        "failure_heeds",
        LOSSES,
        cancel.LEASED_AGAIN,
        (TOLD, "ends attempt 1 (failed): the task is ready", "attempt 2 is leased"),
    ),
    Case(
        "loss_heeds",
        LOSSES,
        cancel.LEASED_AGAIN,
        (TOLD, "ends attempt 1 (lost): the task is ready", "attempt 2 is leased"),
    ),
    Case(
        "release_heeds",
        "suspended flows",
        cancel.LEASED_AGAIN,
        (TOLD, "attempt 1 suspends itself", "the flow is released: ready", "attempt 2 is leased"),
    ),
    Case(
        "success_stands",
        LOSSES,
        cancel.SUCCESS_DROPPED,
        ("inserts record 1: succeeded", TOLD, "ends attempt 1 (succeeded): the task is cancelled"),
    ),
    Case(
        "kill_recorded",
        LOSSES,
        cancel.NO_RECORD,
        (TOLD, "the pool kills attempt 1: cancel", "ends attempt 1 (cancelled): the task is cancelled"),
    ),
    Case(
        "retry_clears",
        "retried by a person",
        cancel.CANCELLED_UNASKED,
        (TOLD, "the task is cancelled", "the person retries the task", "attempt 2: the task is cancelled"),
    ),
    Case(
        "own_losses",
        LOSSES,
        cancel.LOSS_BLAMED,
        ("inserts record 1: failed", "inserts record 2: lost", "ends attempt 2 (lost): the task is failed"),
    ),
)


@pytest.mark.parametrize("scenario", cancel.SCENARIOS)
def test_the_protocol_holds(scenario: str) -> None:
    clean(cancel.model(scenario, Clauses()), *REACHED[scenario])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_without_a_clause_the_protocol_breaks(case: Case) -> None:
    dropped = replace(Clauses(), **{case.clause: False})
    breaks(cancel.model(case.scenario, dropped), case)


def test_every_clause_is_dropped_once() -> None:
    assert {case.clause for case in CASES} == {field.name for field in fields(Clauses)}
