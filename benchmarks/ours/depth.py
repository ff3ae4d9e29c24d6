"""The rate at which a long queue drains, beside that of a short one."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from _harness import Settings, Workload, main, wait_until
from _observe import written_kb
from _rig import NOTES, RESULT_S, identity, pool, project

import pilot
from pilot.config import ProjectConfig
from pilot.store import pilots
from pilot.store.access import store_of
from pilot.store.mongo import Store

SHALLOW, WINDOW = 1_000, 5_000
LEAD = 0.4
"""Tasks before the window, as part of it: the pool finds its pace with them."""


def depth(settings: Settings) -> dict[str, Any]:
    """Compare the rate while 1,000 are queued with the rate while `tasks` are; the ratio is the second over the first.

    The queue is filled first and the pilot started then, so that a window never shares the machine with its
    own submission; the client waits for its results in both. All through the window at least that many are queued.
    """
    window = min(WINDOW, settings.tasks // 10)
    with project(settings) as config:
        shallow = drain(config, settings.workers, SHALLOW, window)
        deep = drain(config, settings.workers, settings.tasks, window)
    return {
        "seconds": window / deep.rate,
        "rate_per_s": deep.rate,
        "rate_shallow_per_s": shallow.rate,
        "ratio": deep.rate / shallow.rate,
        "written_kb_per_task": deep.written_kb,
        "written_kb_per_task_shallow": shallow.written_kb,
        "fill_per_s": deep.filled_per_s,
        "window": window,
    }


class Drained(NamedTuple):
    """What one queue gave."""

    rate: float
    """Tasks per second in the window."""
    written_kb: float
    """Pages that the server wrote while the pilot was up, per task that ended."""
    filled_per_s: float


def drain(config: ProjectConfig, slots: int, queued: int, window: int) -> Drained:
    """Fill the queue, start a pilot, and watch it until the window is over."""
    lead = int(LEAD * window)
    with store_of(config) as store:
        with pilot.open(config.root):
            start = time.perf_counter()
            futures = identity.map(range(queued + window + lead))
            filled_per_s = len(futures) / (time.perf_counter() - start)
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
    total, first, before = 0, None, 0
    last = since
    for batch in ends:
        total += batch["count"]
        last = batch["_id"]
        if first is None and total >= lead:
            first, before = last, total
        if total >= before + window and first is not None:
            break
    return (total - before) / max((last - (first or since)) / timedelta(seconds=1), 1e-3)


if __name__ == "__main__":
    notes = NOTES + "; queue filled before the pilot starts; rate over 5,000 tasks with 1,000 queued, then with so many"
    sizes = {"depth": 100_000, "depth-million": 1_000_000}
    main("pilot", "hpc-pilot", {name: Workload(depth, tasks, notes) for name, tasks in sizes.items()})
