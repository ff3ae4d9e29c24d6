"""What is asked of a batch system, and what it says of a job; values only."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

from pilot.states import JobState


class Request(NamedTuple):
    """A job: one pilot's."""

    name: str
    nodes: int
    walltime_s: float
    """Rounded up to whole seconds."""
    warn_s: int = 0
    """It is warned by SIGUSR1 so long before its end, where the batch system can; 0: not."""
    queue: str = ""
    queue_option: str = ""
    """The directive that names the queue, ``--qos={queue}``; empty: the batch system's usual one."""
    account: str = ""
    account_option: str = ""
    """The same of the account."""
    options: tuple[str, ...] = ()
    """Further directives of the batch system, each as one word: ``--constraint=gpu``."""
    requeue: bool = False
    """Whether it is started again after a node failed or another job took its nodes."""
    smaller: bool = False
    """Whether it goes on with the nodes that are left when one fails."""


class Job(NamedTuple):
    """One job as the batch system sees it."""

    id: str
    state: JobState
    word: str
    """The state in the batch system's own words."""
    reason: str = ""
    """Why it waits, or how it ended, in the batch system's own words; empty: it gives none."""
    exit_code: int | None = None
    signal: int = 0
    """What killed it; 0: nothing."""
    hosts: str = ""
    """Its nodes, as the batch system writes them."""
    starts: datetime | None = None
    """When it started, or is expected to."""


class Own(NamedTuple):
    """What its environment tells a process of the job that it is part of."""

    id: str
    end_at: float | None
    """When its time is over (seconds since the epoch); None: it does not say."""
    hosts_argv: tuple[str, ...]
    """Command that prints the job's nodes, a line each."""


class QueueNow(NamedTuple):
    """What the batch system says of one of its queues at this moment."""

    open: bool
    """Whether its jobs are started. Not to be read as "has free nodes"."""
    word: str
    """Its state in the batch system's own words."""
    min_nodes: int = 1
    max_nodes: int | None = None
    """Most nodes of a job; None: no limit is told, others may hold."""
    max_walltime_s: float | None = None
    """Longest walltime of a job; None: as with nodes."""
    nodes: int | None = None
    """How many it has; None: it does not say."""


Jobs = Mapping[str, Job]
"""By id. What is not in it was not listed: nothing is known of it."""
