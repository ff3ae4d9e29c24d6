"""The floor for commands: processes that do nothing but posix_spawn and wait.

No queue, no record, no captured output.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from multiprocessing.synchronize import Barrier
from typing import Any

from _harness import BenchmarkError, Settings, Workload, main

NOTES = "os.posix_spawn and os.waitpid, one command at a time per process"


def spawn(count: int) -> bool:
    """Run `count` commands one after the other; say whether all succeeded."""
    argv = ["/bin/true"]
    environment = dict(os.environ)
    failed = 0
    for _ in range(count):
        _, status = os.waitpid(os.posix_spawn(argv[0], argv, environment), 0)
        failed += status != 0
    return failed == 0


def loop(count: int, started: Barrier) -> None:
    """Run one command, wait for the other processes, run the rest; exit 1 if one failed."""
    good = spawn(1)
    started.wait()
    raise SystemExit(not (spawn(count) and good))


def run(settings: Settings) -> dict[str, Any]:
    """Share the commands among the processes and time from the common start to the last exit."""
    started = multiprocessing.Barrier(settings.workers + 1)
    shares = [len(range(first, settings.tasks, settings.workers)) for first in range(settings.workers)]
    loops = [multiprocessing.Process(target=loop, args=(share, started), daemon=True) for share in shares]
    for one in loops:
        one.start()
    started.wait(timeout=30)
    start = time.perf_counter()
    for one in loops:
        one.join()
    seconds = time.perf_counter() - start
    if any(one.exitcode for one in loops):
        raise BenchmarkError("a /bin/true failed in the spawn loop")
    return {"seconds": seconds}


if __name__ == "__main__":
    main("spawn-loop", None, {"true": Workload(run, 10_000, NOTES)})
