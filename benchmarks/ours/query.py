"""Queries over very many records: how long until the first fifty, how long to count them, and a long chain upward."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from _harness import Settings, Workload, main
from _rig import project

import pilot
from pilot.client import Project
from pilot.expression import parse_field
from pilot.store import query
from pilot.store.mongo import Store

Record = dict[str, Any]

SHOWN, REPEATS, CHAIN, BATCH = 50, 5, 1_000, 2_000
FUNCTIONS, HOSTS, DAYS = 50, 200, 30

SERVED = (
    'outputs.result.energy < -3 and tags == "eos" and finished > 2d',
    "tags == scan17",
    "name == energy7",
    "function == energy7 and outcome == failed",
    "env.packages.numpy >= 2 and outcome == failed",
    "outcome == failed",
    "exception.type == ValueError and host == n17",
    "host == n17 and started > 1d",
    "finished > 1h",
    "host == n17 or name == energy7",
    "uses value " + f"{4711:064x}",
    "task == r471-100",
)
LINEAGE = (f"ancestor of chain-{CHAIN}", "descends from chain-0")
BY_VALUE = ("outputs.result.energy < -4.9999", "inputs.a == 4711")
"""Served once they have an index, and measured without one before."""


def queries(settings: Settings) -> Record:
    """Fill the store with records, then ask."""
    random.seed(1)
    with project(settings) as config, pilot.open(config.root) as opened:
        begun = time.perf_counter()
        fill(opened.store, settings.tasks)
        filled_s = time.perf_counter() - begun
        scans = [timed(lambda text=text: shown(opened, text), 1) / 1000 for text in BY_VALUE]
        making = {}
        for text in (*SERVED, *LINEAGE):  # the first time makes the index
            missing = opened.find(text).missing()
            making["+".join(missing)] = timed(lambda text=text: shown(opened, text), 1) / 1000
        making.pop("", None)
        for text in BY_VALUE:
            field = parse_field(text.split()[0])
            making[field.name] = timed(lambda field=field: query.add_index(opened.store, field), 1) / 1000
        walks = [asked(opened, text) for text in LINEAGE]
        found = [asked(opened, text) for text in (*SERVED, *BY_VALUE)]
    return {
        "seconds": filled_s,
        "slowest_ms": max(one["first_ms"] for one in found),
        "chain_s": max(one["first_ms"] for one in walks) / 1000,
        "scan_s": max(scans),
        "index_s": max(making.values()),
        "queries": walks + found,
        "making_s": {name: round(seconds, 2) for name, seconds in making.items()},
    }


def asked(opened: Project, text: str) -> Record:
    """Measure one query: until the first records are there, newest first, and until they are counted."""
    return {
        "query": text,
        "first_ms": round(timed(lambda: shown(opened, text), REPEATS), 2),
        "count_ms": round(timed(lambda: opened.find(text).count(), REPEATS), 2),
        "found": opened.find(text).count(),
    }


def shown(opened: Project, text: str) -> list[Record]:
    """Return what `pilot find` shows."""
    return list(opened.find(text, limit=SHOWN))


def timed(call: Callable[[], Any], repeats: int) -> float:
    """Return the median of some calls in milliseconds."""
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        call()
        times.append((time.perf_counter() - begun) * 1000)
    return statistics.median(times)


# -- records ------------------------------------------------------------------------------------


def fill(store: Store, count: int) -> None:
    """Write records of as many tasks, and a chain of some that used each other's results."""
    store.functions.insert_many(
        [{"_id": f"f{n:063x}", "module": "eos", "qualname": f"energy{n}", "source_hash": ""} for n in range(FUNCTIONS)]
    )
    store.environments.insert_many(
        [{"_id": f"e{n:063x}", "packages": {"numpy": f"{n}.1", "scipy": "1.14"}} for n in range(4)]
    )
    batch: list[Record] = []
    for record in records(count):
        batch.append(record)
        if len(batch) == BATCH:
            store.provenance.insert_many(batch, ordered=False)
            batch = []
    store.provenance.insert_many([*batch, *chain()], ordered=False)
    store.database.client.admin.command("fsync")


def records(count: int) -> Iterator[Record]:
    """Yield records of functions of about the size that real ones have, oldest first."""
    now = datetime.now(UTC)
    for n in range(count):
        finished = now - timedelta(days=DAYS) * ((count - n) / count)
        yield record(f"r{n // 1000}-{n % 1000}", n, finished)


def chain() -> Iterator[Record]:
    """Yield records each of which used the result of the one before."""
    for n in range(CHAIN + 1):
        made = record(f"chain-{n}", n, datetime.now(UTC) - timedelta(days=2))
        if n:
            source = {"record": f"chain-{n - 1}:1", "output": "result"}
            made["inputs"].append({"name": "before", "hash": f"{n:064x}", "size": 64, "source": source})
        yield made


def record(task: str, n: int, finished: datetime) -> Record:
    """Return the record of one task."""
    failed = n % 997 == 0
    made: Record = {
        "_id": f"{task}:1", "task": task, "attempt": 1, "token": "t" * 16, "kind": "function",
        "name": f"energy{n % FUNCTIONS}", "outcome": "failed" if failed else "succeeded", "resources": "c1",
        "task_signature": bytes(32), "signature": bytes(32), "chain": {"token": "t" * 16, "seq": n, "prev": "0" * 64},
        "time": dict.fromkeys(("submitted", "leased", "started", "finished"), finished),
        "inputs": [
            {"name": "symbol", "hash": f"{n % 90:064x}", "size": 5, "value": f"X{n % 90}"},
            {"name": "a", "hash": f"{n % 100_000:064x}", "size": 8, "value": n % 100_000},
        ],
        "outputs": [],
        "function": f"f{n % FUNCTIONS:063x}", "tags": ["eos" if n % 10 == 0 else "other", f"scan{n % 500}"],
        "pilot": f"p{n // 50_000}", "environment": f"e{n % 4:063x}", "site": "local", "host": f"n{n % HOSTS}",
        "rank": 1, "usage": {"wall_s": 0.1, "cpu_s": 0.1, "max_rss_bytes": 50_000_000},
    }  # fmt: skip
    if failed:
        made["exception"] = {"type": "ValueError", "message": "no minimum", "traceback": "", "rank": 1, "host": "n1"}
    else:
        value = {"energy": random.uniform(-5, 5), "volume": 11.5, "converged": True}
        made["outputs"] = [{"name": "result", "hash": f"{n:064x}", "size": 60, "value": value}]
    return made


if __name__ == "__main__":
    NOTES = f"synthetic records of one project; first {SHOWN} records, newest first, median of {REPEATS}"
    main("pilot", "hpc-pilot", {"query": Workload(queries, 1_000_000, NOTES)})
