"""No child misses its parent's end, and each clause that sees to it is needed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.model import chain, dependants
from tests.model.chain import Clauses
from tests.model.expect import Case, breaks, clean

REACHED = {
    "submit": (
        "check: reads c, waiting",
        "correct: c has changed since it was read",
        "correct: c is upstream, unchecked",
        "release: c is ready (p was read done)",
        "release: p has changed since it was read",
        "who was to release p dies",
        "the submitter dies",
    ),
    "submit and retry": (
        "release: c is upstream, unchecked (p was read failed)",
        "revive: c is waiting, unchecked",
        "check: c has changed since it was read",
        "who was to revive p dies",
    ),
    "submit both": ("submit: inserts p, ready",),
    "submit and cancel": ("a person cancels p", "a person cancels c", "a person retries c: waiting"),
    "suspend": (
        "suspend: makes c waiting, unchecked",
        "release: c is ready (p was read failed)",
        "flow c finds its child ended, and is done",
    ),
}

CASES = (
    Case(
        "parents_first",
        "submit both",
        chain.NOT_MISSING,
        ("inserts c waiting", "correct: reads p, absent", "inserts p, ready", "correct: c is missing"),
    ),
    Case(
        "insert_first",
        "submit",
        chain.WAITS_FOR_EVER,
        (
            "submit: reads p, ready",
            "p ends: done",
            "release: nobody waits for p",
            "submit: makes c waiting",
            "release: clears `unreleased` of p",
        ),
    ),
    Case(
        "insert_first",
        "suspend",
        chain.WAITS_FOR_EVER,
        (
            "submit: reads p, ready",
            "p ends: done",
            "release: nobody waits for p",
            "submit: makes c waiting",
            "release: clears `unreleased` of p",
        ),
    ),
    Case(
        "unchecked_marker",
        "submit",
        chain.WAITS_FOR_EVER,
        ("submit: inserts c waiting", "who was to correct c dies", "p ends: done"),
    ),
    Case(
        "awaited_first",
        "submit",
        chain.WAITS_FOR_EVER,
        (
            "submit: inserts c waiting, unchecked",
            "correct: reads p, ready",
            "p ends: done",
            "correct: sets `awaited` on p",
            "correct: c is waiting",
        ),
    ),
    Case(
        "sweep_sets_awaited",
        "submit",
        chain.WAITS_FOR_EVER,
        (
            "submit: inserts c waiting, unchecked",
            "check: reads p, ready",
            "check: c is waiting",
            "who was to correct c dies",
            "p ends: done",
        ),
    ),
    Case(
        "child_first",
        "submit and retry",
        chain.WAITS_FOR_EVER,
        (
            "check: reads p before c, ready",
            "p ends: failed",
            "release: c is upstream, unchecked",
            "a person retries c: waiting",
            "check: reads c, waiting",
            "check: c is waiting",
        ),
    ),
    Case(
        "rev_filter",
        "submit and retry",
        chain.WAITS_FOR_EVER,
        (
            "correct: reads p, ready",
            "p ends: failed",
            "release: c is upstream, unchecked",
            "a person retries c: waiting",
            "correct: c is waiting",
        ),
    ),
    Case(
        "end_marks",
        "submit",
        chain.WAITS_FOR_EVER,
        (
            "correct: sets `awaited` on p",
            "correct: c is waiting",
            "p ends: done",
            "who was to release p dies",
        ),
    ),
    Case(
        "end_marks_at_once",
        "submit",
        chain.WAITS_FOR_EVER,
        ("p is leased", "correct: sets `awaited` on p", "correct: c is waiting", "p ends: done"),
    ),
    Case(
        "release_at_once",
        "submit",
        chain.WAITS_FOR_NOTHING,
        ("p ends: done", "release: takes p out of `pending`"),
    ),
    Case(
        "release_at_once",
        "submit",
        chain.WAITS_FOR_EVER,
        (
            "release: takes p out of `pending`",
            "who was to release p dies",
            "release: nobody waits for p",
            "release: clears `unreleased` of p",
        ),
    ),
    Case(
        "release_first",
        "submit",
        chain.WAITS_FOR_EVER,
        ("p ends: done", "release: clears `unreleased` of p", "who was to release p dies"),
    ),
    Case(
        "clear_pinned",
        "submit and retry",
        chain.WAITS_FOR_EVER,
        (
            "p ends: failed",
            "release: reads p, failed",
            "release: c is upstream, unchecked (p was read failed)",
            "a person retries p: ready, revive",
            "revive: c is waiting, unchecked",
            "check: reads p, ready",
            "check: c is waiting",
            "p ends: done",
            "release: clears `unreleased` of p",
        ),
    ),
    Case(
        "upstream_unchecked",
        "submit and retry",
        chain.STAYS_FAILED,
        (
            "correct: reads p, failed",
            "a person retries p: ready, revive",
            "correct: c is upstream",
            "p ends: done",
            "release: clears `unreleased` of p",
        ),
    ),
    Case(
        "retry_keeps_awaited",
        "submit and retry",
        chain.WAITS_FOR_EVER,
        ("correct: c is waiting", "p ends: failed", "a person retries p: ready, revive", "p ends: done"),
    ),
    Case(
        "retry_unmarks",
        "submit and retry",
        chain.STRAY_MARKER,
        ("p ends: failed", "a person retries p: ready, revive"),
    ),
    Case(
        "retry_unchecked",
        "submit and cancel",
        chain.WAITS_FOR_EVER,
        ("a person cancels p", "correct: c is upstream, unchecked", "a person retries c: waiting"),
    ),
)


@pytest.mark.parametrize("scenario", dependants.SCENARIOS)
def test_the_protocol_holds(scenario: str) -> None:
    clean(dependants.model(scenario, Clauses()), *REACHED[scenario])


def test_it_holds_with_three_on_the_way_at_once() -> None:
    clean(dependants.model("submit", Clauses(), walks=3))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.scenario}, {case}")
def test_without_a_clause_the_protocol_breaks(case: Case) -> None:
    dropped = replace(Clauses(), **{case.clause: False})
    breaks(dependants.model(case.scenario, dropped), case)


def test_a_parent_nobody_awaits_is_never_marked() -> None:
    model = dependants.model("submit", Clauses())
    worlds = {model.initial()}
    queue = list(worlds)
    for world in queue:
        after = {step.state for step in model.steps(world)} - worlds
        worlds |= after
        queue += after
    alone = [p for p, c in (world.docs for world in worlds) if c.state == "absent"]
    assert {"done", "failed"} <= {p.state for p in alone}
    assert not any(p.awaited or p.unreleased or p.revive for p in alone)
