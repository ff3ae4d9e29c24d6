"""The rate at which a long queue drains, beside that of a short one."""

from __future__ import annotations

import statistics
import time
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from _harness import Settings, Workload, main, wait_until
from _observe import written_kb
from _rig import NOTES, RESULT_S, identity, pool, project

import pilot
from pilot.config import ProjectConfig
from pilot.lifecycle import AHEAD_MAX
from pilot.store import pilots
from pilot.store.access import store_of
from pilot.store.mongo import Store

SHALLOW, WINDOW = 1_000, 10_000
LEAD = 0.4
"""Tasks before the window, as part of it: the pool finds its pace with them."""
REPEATS = 5
"""A window lasts a second or so: one alone says little."""


def depth(settings: Settings) -> dict[str, Any]:
    """Compare the rate while 1,000 are queued with the rate while `tasks` are; the ratio is the second over the first.

    The queue is filled first and the pilot started then, so that a window never shares the machine with its
    own submission; the client waits for its results all the time. All through a window at least that many are
    queued, those that the pool has leased ahead not counted: else the end of the short queue would need no leasing.
    """
    window = min(WINDOW, settings.tasks // 10)
    repeats = REPEATS if window == WINDOW else 1
    with project(settings) as config, store_of(config) as store, pilot.open(config.root):
        shallow = [drain(config, store, settings.workers, SHALLOW, window) for _ in range(repeats)]
        deep = [drain(config, store, settings.workers, settings.tasks, window) for _ in range(repeats)]
    rates = [statistics.median(one.rate for one in some) for some in (shallow, deep)]
    return {
        "seconds": window / rates[1],
        "rate_per_s": rates[1],
        "rate_shallow_per_s": rates[0],
        "ratio": rates[1] / rates[0],
        "written_kb_per_task": statistics.median(one.written_kb for one in deep),
        "written_kb_per_task_shallow": statistics.median(one.written_kb for one in shallow),
        "fill_per_s": deep[0].filled_per_s,
        "window": window,
    }


class Drained(NamedTuple):
    """What one queue gave."""

    rate: float
    """Tasks per second in the window."""
    written_kb: float
    """Pages that the server wrote while the pilot was up, per task that ended."""
    filled_per_s: float


def drain(config: ProjectConfig, store: Store, slots: int, queued: int, window: int) -> Drained:
    """Fill the queue up, start a pilot, and watch it until the window is over."""
    lead = int(LEAD * window)
    missing = queued + AHEAD_MAX + window + lead - store.tasks.count_documents({"state": "ready"})
    start = time.perf_counter()
    identity.map(range(missing))
    filled_per_s = missing / (time.perf_counter() - start)
    store.database.client.admin.command("fsync")  # a checkpoint of the filling, outside the window
    since, before = datetime.now(UTC), written_kb(store)
    with pool(config, slots) as up:
        wait_until(lambda: ended(store, up.id) >= lead + window, "the end of the window", 4 * RESULT_S, 0.1)
    all_ended = store.tasks.count_documents({"ended": {"$gte": since}})
    return Drained(rate(store, since, lead, window), (written_kb(store) - before) / all_ended, filled_per_s)


def ended(store: Store, name: str) -> int:
    """Return how many tasks a pilot has ended, by its last heartbeat."""
    return sum(found.get("done", 0) for found in pilots.pools(store, name))


def rate(store: Store, since: datetime, lead: int, window: int) -> float:
    """Return the rate over `window` tasks after the first `lead`, by the times at which their ends were written."""
    ends = store.tasks.aggregate(
        [
            {"$match": {"ended": {"$gte": since}}},
            {"$group": {"_id": "$ended", "count": {"$sum": 1}}},
            {"$sort": {"_id": 1}},
        ]
    )
    total, before = 0, 0
    first, last = since, since
    for batch in ends:
        total += batch["count"]
        last = batch["_id"]
        if before == 0 and total >= lead:
            first, before = last, total
        if before and total >= before + window:
            break
    return (total - before) / max((last - first) / timedelta(seconds=1), 1e-3)


if __name__ == "__main__":
    notes = NOTES + "; queue filled before the pilot starts; rate of 10,000 tasks with 1,000 queued, then with so many"
    sizes = {"depth": 100_000, "depth-million": 1_000_000}
    main("pilot", "hpc-pilot", {name: Workload(depth, tasks, notes) for name, tasks in sizes.items()})
