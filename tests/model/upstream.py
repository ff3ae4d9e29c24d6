"""Failure upstream against retry: what happens to a parent reaches those further down.

p is the parent of c, c of g. When p fails, c fails upstream, which is an end of c, so g fails too,
level by level: each level by its own `unreleased` marker. When a person retries p, its dependants
wait again, level by level too: each one that is taken back from `upstream` is marked `revive`
itself. Slow releasers, checkers and revivers act on what p was when they read it; everything they
may get wrong is left `unchecked`, and every marker is cleared only under the `rev` that was read.

The steps are those of `dependants`; these scenarios start after submission, some after p's failure
has gone all the way down, some with g submitted late.
"""

from __future__ import annotations

from tests.model.chain import Budget, Clauses, Doc, Scenario
from tests.model.dependants import ABSENT, Dependants

PARENT = Doc("ready", awaited=True)
MIDDLE = Doc("waiting", pending=True, awaited=True)
LEAF = Doc("waiting", pending=True)
FAILED = Doc("failed", awaited=True)
FAILED_MIDDLE = Doc("upstream", pending=True, awaited=True, unchecked=True)
FAILED_LEAF = Doc("upstream", pending=True)

SCENARIOS: dict[str, tuple[tuple[Doc, ...], Budget]] = {
    "two retries": ((PARENT, LEAF), Budget(fails=2, retries=2, crashes=1)),
    "three levels": ((PARENT, MIDDLE, LEAF), Budget(fails=1, crashes=1)),
    "all failed": ((FAILED, FAILED_MIDDLE, FAILED_LEAF), Budget(retries=1)),
    "all failed, g late": ((FAILED, FAILED_LEAF, ABSENT), Budget(retries=1)),
}
"""Name: the tasks at the start, and what may happen besides the plain course."""

DEEP: dict[str, tuple[tuple[Doc, ...], Budget]] = {
    "three levels and a retry": ((PARENT, MIDDLE, LEAF), Budget(fails=1, retries=1)),
    "three levels, g late": ((PARENT, LEAF, ABSENT), Budget(fails=1, retries=1)),
    "all failed, and fail again": (
        (FAILED, FAILED_MIDDLE, FAILED_LEAF),
        Budget(fails=1, retries=1, crashes=1),
    ),
    "three levels and a crash": ((PARENT, MIDDLE, LEAF), Budget(fails=1, retries=1, crashes=1)),
    "three levels and a cancel": ((PARENT, MIDDLE, LEAF), Budget(retries=1, cancels=1, crashes=1)),
    "three levels, two failures": ((PARENT, MIDDLE, LEAF), Budget(fails=2, retries=1)),
}
"""Larger ones, for `python -m tests.model.run --deep`."""


def model(scenario: str, clauses: Clauses, walks: int = 2) -> Dependants:
    """Return the model of a scenario, with the clauses given."""
    docs, budget = (SCENARIOS | DEEP)[scenario]
    submits = docs[-1] == ABSENT
    name = f"upstream: {scenario}"
    return Dependants(Scenario(name, docs, budget, submits=submits, walks=walks), clauses)
