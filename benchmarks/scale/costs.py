"""What things cost, in one table: measured on the 2-core reference machine where not said otherwise."""

from __future__ import annotations

import math
from dataclasses import dataclass

POOL_NODES = 64
"""A pilot divides its nodes into pools of so many."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Times of every part. `measured` in a comment: by which benchmark; `assumed`: to be replaced where it matters."""

    lease_us: float = 20.0
    """Of the database, for each task: finding it and turning it `leased`."""
    finish_us: float = 55.0
    """Of the database, for each task: record, end, dependants. Measured with the above (`noop.py`): 75 us together."""
    store_cores: float = 1.4
    """Cores that the database keeps busy at its ceiling: 18,700 tasks/s x 75 us, measured for one pool."""
    command_us: float = 150.0
    """Of the database, for each command, however small. Measured: 70 us to find a document, 200-290 to write one."""
    store_round_trip_s: float = 0.5e-3
    """Of one command, beside its work; measured: 0.2 ms to find, 0.4-0.5 ms to write, on one host."""
    crowd: float = 0.17
    """How much more work it is for sixteen pools than for one; measured: 14,000-18,000 tasks/s in place of 18,700."""
    depth: float = 0.10
    """How much more with 10⁵ tasks queued than with 10³; measured (`depth.py`): 0.86-0.92, later 0.91-1.01."""
    lease_commands: float = 4.0
    commit_commands: float = 4.0
    beat_commands_per_s: float = 2.5
    """Of each pool, idle or not: heartbeat, comparison, hints."""

    coordinator_us: float = 60.0
    """Of rank 0, for each task, all its threads together. Measured (`noop.py`)."""
    scan_us: float = 0.15
    """Of rank 0, for each slot, each time it goes round. Measured: the dictionary of loads over 4,095 slots."""
    place_us: float = 50.0
    """Of rank 0, for each wide task, beside that. Measured (`placement.py`)."""
    poll_s: float = 2e-3
    """Longest sleep of rank 0 between two looks, while anything is in hand."""
    message_s: float = 20e-6
    """One message between nodes. Assumed: no network was at hand."""
    report_s: float = 5e-3
    """How long a rank keeps results back while more are to come."""
    idle_s: float = 10e-3
    """Longest sleep of a rank that has nothing to do; it sleeps a third of the time that it has been idle."""
    task_us: float = 19.0
    """Of a slot, for each task: 6 us of the rank, 13 us of its child. Measured (`noop.py`)."""
    commit_s: float = 20e-3
    """How long the coordinator collects results before it writes them."""
    commit_max: int = 1000

    launch_s: float = 1.0
    """From the agent's launcher to the first rank. Assumed; 0.3 s with `mpiexec` on one host."""
    rank_s: float = 0.2
    """Of each slot's own core: importing what rank and child import. Measured: 0.145 s and 0.054 s."""
    metadata_ops: float = 2700.0
    """Opens, stats and directory reads for each slot (rank and child). Measured with strace."""
    metadata_ops_per_s: float = 100_000.0
    """Of the file system that holds the installation, for all nodes together. Assumed."""
    metadata_missed: float = 0.1
    """The part of them that a node's own cache cannot answer; 0 if the installation is on the nodes. Assumed."""

    def store_factor(self, pools: int, queued: int) -> float:
        """Return how much more a task costs the database with so many pools and queued tasks.

        Logarithms through what was measured, at 1 and 16 pools, 10³ and 10⁵ tasks; beyond that it is extrapolated.
        """
        crowded = 1 + self.crowd * math.log(max(1, pools), 16)
        return crowded * (1 + self.depth * max(0.0, math.log10(max(1, queued) / 1e3)) / 2)

    def store_per_s(self, pools: int, queued: int) -> float:
        """Return the most tasks a second that the database can lease and end, in batches as large as may be."""
        cores = self.store_cores - self.beats(pools)
        return cores * 1e6 / ((self.lease_us + self.finish_us) * self.store_factor(pools, queued))

    def beats(self, pools: int) -> float:
        """Return how many of the database's cores the pools use without any task."""
        return pools * self.beat_commands_per_s * self.command_us * 1e-6

    def coordinator_per_s(self) -> float:
        """Return the most tasks a second that one pool can do."""
        return 1e6 / self.coordinator_us

    def writer_per_s(self, pools: int, queued: int) -> float:
        """Return the most tasks a second whose ends one pool can write, with a database that has a core for it."""
        work_us = self.finish_us * self.store_factor(pools, queued)
        return 1e6 / (work_us + self.commit_commands * self.command_us / self.commit_max)

    def start_s(self, nodes: int, slots_per_node: int) -> float:
        """Return the time from the start of all pools, at once, to their first task."""
        asked = nodes * slots_per_node * self.metadata_ops * self.metadata_missed
        return self.launch_s + self.rank_s + asked / self.metadata_ops_per_s
