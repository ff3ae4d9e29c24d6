"""Failure and retry reach every level, and each clause that sees to it is needed."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from tests.model import chain, test_model_dependants, upstream
from tests.model.chain import Clauses
from tests.model.expect import Case, breaks, clean

REACHED = {
    "two retries": (
        "check: c is waiting, unchecked",
        "revive: p has changed since it was read",
        "release: p has changed since it was read",
        "release: nobody waits for p (p was read done)",
    ),
    "three levels": (
        "release: g is upstream, unchecked (c was read upstream)",
        "check: g is upstream",
        "release: g is ready (c was read done)",
    ),
    "all failed": (
        "revive: c is waiting, unchecked, revive",
        "check: c is waiting, unchecked, revive",
        "revive: g is waiting, unchecked",
        "release: g is ready (c was read done)",
    ),
    "all failed, g late": ("correct: sets `awaited` on c", "correct: g is upstream, unchecked"),
}

CASES = (
    Case(
        "clear_pinned",
        "two retries",
        chain.WAITS_FOR_EVER,
        (
            "p ends: failed",
            "release: c is upstream, unchecked (p was read failed)",
            "a person retries p: ready, revive",
            "revive: c is waiting, unchecked",
            "check: c is waiting",
            "p ends: done",
            "release: clears `unreleased` of p",
        ),
    ),
    Case(
        "upstream_marks",
        "three levels",
        chain.WAITS_FOR_EVER,
        ("p ends: failed", "release: c is upstream, unchecked (p", "release: clears `unreleased` of p"),
    ),
    Case(
        "revive_marker",
        "two retries",
        chain.STAYS_FAILED,
        (
            "release: c is upstream, unchecked",
            "a person retries p: ready",
            "who was to revive p dies",
            "p ends: done",
            "release: clears `unreleased` of p",
        ),
    ),
    Case(
        "revive_unchecked",
        "two retries",
        chain.WAITS_FOR_EVER,
        (
            "a person retries p: ready, revive",
            "p ends: failed",
            "release: c is upstream, unchecked",
            "release: clears `unreleased` of p",
            "revive: c is waiting",
            "revive: clears `revive` of p",
        ),
    ),
    Case(
        "revive_pinned",
        "two retries",
        chain.STAYS_FAILED,
        (
            "a person retries p: ready, revive",
            "revive: reads p, ready",
            "revive: nobody failed for p",
            "release: c is upstream, unchecked",
            "p ends: failed",
            "a person retries p: ready, revive",
            "revive: clears `revive` of p",
            "p ends: done",
            "release: clears `unreleased` of p",
        ),
    ),
    Case(
        "revive_spreads",
        "all failed",
        chain.STAYS_FAILED,
        (
            "a person retries p: ready, revive",
            "revive: c is waiting, unchecked",
            "c ends: done",
            "release: nobody waits for c",
            "release: clears `unreleased` of c",
        ),
    ),
    Case(
        "check_revives",
        "all failed",
        chain.STAYS_FAILED,
        (
            "a person retries p: ready, revive",
            "check: c is waiting, unchecked",
            "revive: nobody failed for p",
            "c ends: done",
            "release: nobody waits for c",
            "release: clears `unreleased` of c",
        ),
    ),
)


@pytest.mark.parametrize("scenario", upstream.SCENARIOS)
def test_the_protocol_holds(scenario: str) -> None:
    clean(upstream.model(scenario, Clauses()), *REACHED[scenario])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_without_a_clause_the_protocol_breaks(case: Case) -> None:
    dropped = replace(Clauses(), **{case.clause: False})
    breaks(upstream.model(case.scenario, dropped), case)


def test_every_clause_about_dependants_is_dropped_once() -> None:
    cases = CASES + test_model_dependants.CASES
    assert {case.clause for case in cases} == {field.name for field in fields(Clauses)}
