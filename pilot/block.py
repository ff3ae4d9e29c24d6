"""The nodes of a pilot, and how a process of its batch job finds out which they are."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from pilot.errors import SchedulerError
from pilot.executors.batch.scheduler import Scheduler, system_of
from pilot.settings import PilotSettings

BEGUN_S = 10.0
"""A batch job may have begun so long before a process of it can look at a clock."""


class Block(NamedTuple):
    """The nodes over which one pool runs."""

    hosts: tuple[str, ...] = ()
    """As the batch system calls them; none: this machine."""
    job: str | None = None
    """The batch job that they belong to."""
    env: Mapping[str, str] = {}
    """What the launcher needs to know of that job."""
    of: int = 1
    """Over how many of the pilot's blocks its job steps are divided."""
    program_hosts: tuple[str, ...] = ()
    """Its program nodes, which have no ranks of the pool."""


def allocated(settings: PilotSettings) -> tuple[Block, PilotSettings]:
    """Return what the batch system gave to this process' job: nodes, and the time until it ends.

    Raises:
        SchedulerError: this is no job of the batch system, or its nodes cannot be found out.
    """
    if not settings.batch:
        return Block(), settings
    system = system_of(settings.batch)
    own = system.own(os.environ)
    if own is None:
        raise SchedulerError(f"pilot {settings.pilot} is to run in a job of {system.NAME}, and this is none")
    hosts = Scheduler(system).hosts(own)
    env = {name: os.environ[name] for name in system.KEPT if name in os.environ}
    settings = replace(settings, nodes=len(hosts))
    if settings.walltime_s is not None:
        end_at = own.end_at or time.time() + settings.walltime_s - BEGUN_S
        settings = replace(settings, end_at=end_at)
    return Block(hosts, own.id, env), settings
