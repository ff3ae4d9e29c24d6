"""What an idle pool costs: the processor time of a rank and its child while there is nothing to do."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

from _harness import BenchmarkError, Settings, Workload, main
from _observe import processes, run_time_s
from _rig import NOTES, pool, project, warm_up

import pilot

CALM_S = 2.0
"""After the last task, until the ranks have backed off."""


def idle(settings: Settings) -> dict[str, Any]:
    """Watch for `tasks` seconds a pool that has run some tasks; the client has gone."""
    with project(settings) as config, pool(config, settings.workers):
        with pilot.open(config.root):
            warm_up(settings.workers)
        time.sleep(CALM_S)
        seen = processes(config.root)
        before = {one.pid: run_time_s(one.pid) for one in seen}
        start = time.perf_counter()
        time.sleep(settings.tasks)
        seconds = time.perf_counter() - start
        used = {one.pid: 100 * (run_time_s(one.pid) - before[one.pid]) / seconds for one in seen}
    by_role: dict[str, list[float]] = defaultdict(list)
    for one in seen:
        by_role[one.role].append(used[one.pid])
    if not len(by_role["rank"]) == len(by_role["child"]) == settings.workers:
        raise BenchmarkError(f"{len(by_role['rank'])} ranks and {len(by_role['child'])} children were found")
    return {
        "seconds": seconds,
        "idle_pct": max(by_role["rank"]) + max(by_role["child"]),
        **{f"idle_pct_{role}": sum(values) / len(values) for role, values in by_role.items()},
    }


if __name__ == "__main__":
    notes = NOTES + "; a rank and its child, the busiest of each, in per cent of a core; `tasks` are seconds"
    main("pilot", "hpc-pilot", {"idle": Workload(idle, 10, notes)})
