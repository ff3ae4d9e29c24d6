"""Many slots and tasks of one second: how much of the slots' time is spent in tasks."""

from __future__ import annotations

import time
from typing import Any

from _harness import Settings, Workload, check_values, main
from _rig import NOTES, RESULT_S, ready

import pilot

TASK_S = 1.0


@pilot.task
def sleep(index: int) -> int:
    """Take one second of a slot and next to none of a processor."""
    time.sleep(TASK_S)
    return index


def busy(settings: Settings) -> dict[str, Any]:
    """Submit all tasks with `map`, then take all results; 100 % would be slots that never wait."""
    with ready(settings):
        start = time.perf_counter()
        futures = sleep.map(range(settings.tasks))
        values = [future.result(RESULT_S) for future in futures]
        seconds = time.perf_counter() - start
    check_values(values, settings.tasks)
    return {"seconds": seconds, "busy_pct": 100 * settings.tasks * TASK_S / (settings.workers * seconds)}


if __name__ == "__main__":
    notes = NOTES + "; from the first submission to the last value in hand"
    main("pilot", "hpc-pilot", {"busy": Workload(busy, 320, notes, workers=32)})
