"""/bin/true from submission to exit code in hand; its output would be kept."""

from __future__ import annotations

import time
from typing import Any

from _harness import BenchmarkError, Settings, Workload, main
from _observe import cost
from _rig import NOTES, RESULT_S, ready

import pilot


def true(settings: Settings) -> dict[str, Any]:
    """Submit all commands with `map`, then take all results."""
    command = pilot.command(["/bin/true"])
    with ready(settings) as project:
        for future in command.map(4 * settings.workers):
            future.result(RESULT_S)
        with cost(project, settings.tasks) as spent:
            start = time.perf_counter()
            codes = [future.result(RESULT_S)["exit_code"] for future in command.map(settings.tasks)]
            seconds = time.perf_counter() - start
        if codes != [0] * settings.tasks:
            raise BenchmarkError("a /bin/true failed under pilot")
        return {"seconds": seconds, **spent.fields}


if __name__ == "__main__":
    main("pilot", "hpc-pilot", {"true": Workload(true, 3_000, NOTES + ", output kept")})
