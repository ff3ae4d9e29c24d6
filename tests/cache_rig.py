"""What the tests of the cache share: tasks with caching on, and what their records must say."""

from __future__ import annotations

from typing import Any

import pilot
from tests import pilot_tasks
from tests.rig import LONG_S

Record = dict[str, Any]

double = pilot.task(cache=True)(pilot_tasks.double)
total = pilot.task(cache=True)(pilot_tasks.total)
same = pilot.task(cache=True)(pilot_tasks.same)
fail = pilot.task(cache=True)(pilot_tasks.fail)


def record(future: pilot.Future) -> Record:
    """Wait for a task and return its record."""
    future.exception(LONG_S)
    found = future.record()
    assert found is not None
    return found


def hit(future: pilot.Future, of: pilot.Future) -> Record:
    """Make sure that a task took another's result; return its record."""
    found = record(future)
    assert (found["outcome"], found.get("cached_from")) == ("cached", f"{of.id}:1"), found.get("cache")
    assert "key" not in found["cache"]
    return found


def miss(future: pilot.Future) -> str:
    """Make sure that a task ran; return why it did."""
    found = record(future)
    assert "cached_from" not in found
    reason: str = found["cache"]["miss"]
    return reason
