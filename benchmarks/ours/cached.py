"""Functions whose results are there already, from submission to result in hand."""

from __future__ import annotations

from typing import Any

from _harness import BenchmarkError, Settings, Workload, burst, check_values, main
from _observe import cost
from _rig import NOTES, await_idle, identity, ready

equal = identity.with_options(cache=True)


def cached(settings: Settings) -> dict[str, Any]:
    """Have all tasks run once; then submit equal ones, and take all results."""
    with ready(settings) as project:
        check_values([future.result() for future in equal.map(range(settings.tasks))], settings.tasks)
        await_idle(project)
        with cost(project, settings.tasks) as spent:
            measured = burst(lambda tasks: equal.map(range(tasks)), settings.tasks)
        hits = project.store.provenance.count_documents({"outcome": "cached"})
        if hits != settings.tasks:
            raise BenchmarkError(f"{hits} of {settings.tasks} tasks were cached")
        return measured | spent.fields


if __name__ == "__main__":
    main("pilot", "hpc-pilot", {"cached": Workload(cached, 10_000, NOTES)})
