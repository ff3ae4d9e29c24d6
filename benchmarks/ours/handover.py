"""From the end of a task to the start of the one that uses its result, both as their records have it."""

from __future__ import annotations

import statistics
import time
from typing import Any

from _harness import IDLE_PAUSE_S, BenchmarkError, Settings, Workload, main
from _rig import NOTES, RESULT_S, identity, ready

import pilot

PARENT_S = 0.1
"""Long enough that the child is stored, and waits, well before its parent ends."""


@pilot.task
def parent(index: int, seconds: float) -> int:
    """Wait and return the first argument."""
    time.sleep(seconds)
    return index


def handover(settings: Settings) -> dict[str, Any]:
    """Submit pairs, one after the other; `seconds` is the sum of the gaps."""
    gaps = []
    with ready(settings):
        for index in range(settings.tasks):
            time.sleep(IDLE_PAUSE_S)
            first = parent.submit(index, PARENT_S)
            second = identity.submit(first)
            if second.result(RESULT_S) != index:
                raise BenchmarkError(f"wrong result: the child of task {index} returned {second.result(0)!r}")
            ended, began = first.record(), second.record()
            if ended is None or began is None:
                raise BenchmarkError(f"pair {index} ended well and has no records")
            gaps.append((began["time"]["started"] - ended["time"]["finished"]).total_seconds())
    ordered = sorted(gaps)
    return {
        "seconds": sum(gaps),
        "median_ms": statistics.median(gaps) * 1000,
        "p90_ms": ordered[int(0.9 * (len(ordered) - 1))] * 1000,
    }


if __name__ == "__main__":
    notes = NOTES + "; one host, one clock, times to the millisecond"
    main("pilot", "hpc-pilot", {"handover": Workload(handover, 30, notes)})
