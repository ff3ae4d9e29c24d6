"""What the tests of the models share: a clean search, and a clause that turns out to be needed."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

from tests.model.search import Model, Result, search


class Case(NamedTuple):
    """Without `clause`, the scenario breaks `broken`, in a trace that tells these things in order."""

    clause: str
    scenario: str
    broken: str
    telling: tuple[str, ...]

    def __str__(self) -> str:
        """Return a test id."""
        return f"{self.clause}: {self.broken}"


def clean(model: Model[Any], *reached: str) -> Result:
    """Search all of `model`, which must break nothing, and must reach what is named by `reached`."""
    result = search(model)
    sys.stdout.write(f"{result.report()}\n")
    assert result.complete, "the search was cut short"
    assert not result.violations, result.report()
    for text in reached:
        assert any(text in step for step in result.texts), f"never reached: {text}"
    return result


def breaks(model: Model[Any], case: Case) -> None:
    """Search `model`, from which a clause was dropped; it must break the way `case` says."""
    result = search(model, stop_at=case.broken)
    sys.stdout.write(f"{result.report()}\n")
    assert case.broken in result.violations, f"{case.clause} is not needed: {result.report()}"
    trace = result.violations[case.broken]
    rest = iter(trace)
    missing = [text for text in case.telling if not any(text in step for step in rest)]
    assert not missing, f"the trace does not tell {missing}, in order:\n{result.report()}"
    assert case.telling[-1] in trace[-1], f"another step breaks it:\n{result.report()}"
