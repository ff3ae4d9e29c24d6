"""No-op functions from submission to result in hand, and what one of them costs whom."""

from __future__ import annotations

from typing import Any

from _harness import Settings, Workload, burst, main
from _observe import cost
from _rig import NOTES, identity, ready


def noop(settings: Settings) -> dict[str, Any]:
    """Submit all tasks with `map`, then take all results."""
    with ready(settings) as project:
        with cost(project, settings.tasks) as spent:
            measured = burst(lambda tasks: identity.map(range(tasks)), settings.tasks)
        return measured | spent.fields


if __name__ == "__main__":
    main("pilot", "hpc-pilot", {"noop": Workload(noop, 20_000, NOTES)})
