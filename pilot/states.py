"""States of tasks, pilots and pools, outcomes of attempts, and the table of legal moves.

Everything here is data. Every store update filters on the state it leaves, so a move that is not in
`ALLOWED` cannot be written.
"""

from __future__ import annotations

from enum import StrEnum

from pilot.errors import IllegalTransition


class State(StrEnum):
    """Where a task is in its life."""

    WAITING = "waiting"
    """Has parents that have not ended. Not to be read as "in the queue": no pool will take it."""
    READY = "ready"
    """Can be leased now. Not to be read as "never tried": a retried task is ready again."""
    LEASED = "leased"
    """A pool holds it under its token. Not to be read as "running": it may wait in a slot's queue."""
    DONE = "done"
    """Its official record is `succeeded` or `cached`. Final for ever: `done` is never retried."""
    FAILED = "failed"
    """Out of retries, or its parent failed (reason `upstream`). A person may retry it."""
    CANCELLED = "cancelled"
    """A person ended it. Not to be read as "never ran": it may have been stopped while running."""


class Outcome(StrEnum):
    """How one attempt ended; stands in its record and never changes."""

    SUCCEEDED = "succeeded"
    """Ran to its end and its outputs are kept."""
    FAILED = "failed"
    """The task's own code raised, or its command returned a non-zero code."""
    TIMEOUT = "timeout"
    """Reached its own walltime. Not the pilot's: work cut by a pilot's end is `lost`."""
    CRASHED = "crashed"
    """Its process died of a signal or left without a word. Blamed on the task."""
    LOST = "lost"
    """Pilot, pool or node went away. Nobody's fault; counted against a budget of its own."""
    CANCELLED = "cancelled"
    """Stopped while running because a person asked."""
    CACHED = "cached"
    """Not run: an equal task's outputs were taken."""


class PilotState(StrEnum):
    """Where a pilot is in its life."""

    STARTING = "starting"
    """Asked for, its agent has not reported yet. Not to be read as "queued by the scheduler" only."""
    RUNNING = "running"
    """The agent heartbeats. Says nothing about its pools."""
    DRAINING = "draining"
    """Takes no new work and finishes what it has."""
    ENDED = "ended"
    """The agent wrote its final state itself."""
    LOST = "lost"
    """The heartbeat stopped without a final state; others have cleaned up after it."""


class PoolState(StrEnum):
    """Whether a pool's token holds."""

    LIVE = "live"
    """Its leases count. Not to be read as "healthy": look at the heartbeat."""
    ENDED = "ended"
    """Left in order, holding nothing."""
    DEAD = "dead"
    """Declared dead by an agent or a reaper; whatever is leased under its token is reapable."""


class JobState(StrEnum):
    """What a batch system says of a job, in one vocabulary for all of them.

    "Not listed" is none of these: whoever does not find a job in an answer knows nothing.
    """

    QUEUED = "queued"
    """Waits for nodes. Not to be read as "will start": some wait for what never comes; see the reason."""
    HELD = "held"
    """Waits for a person, or for a date."""
    REQUEUED = "requeued"
    """Ran, and is on its way back into the queue: a new incarnation will start."""
    CONFIGURING = "configuring"
    """Has nodes, which are being made ready. Its script does not run yet."""
    RUNNING = "running"
    """Its script runs. Not to be read as "its pilot is up"."""
    SUSPENDED = "suspended"
    """Has nodes, but is stopped: its clocks go on, its heartbeat does not."""
    COMPLETING = "completing"
    """Its script has ended or is being ended; some processes may be alive."""
    COMPLETED = "completed"
    """Ended with exit code 0."""
    FAILED = "failed"
    """Ended with another exit code, or could not be started."""
    TIMEOUT = "timeout"
    """Ended at its time limit."""
    CANCELLED = "cancelled"
    """Ended, or taken out of the queue, because somebody asked."""
    NODE_FAIL = "node_fail"
    """Ended because a node did."""
    OUT_OF_MEMORY = "out_of_memory"
    """Ended at its memory limit."""
    PREEMPTED = "preempted"
    """Ended for a job that comes first."""
    UNKNOWN = "unknown"
    """The batch system used a word that is not in its manual. Never to be read as an end."""


class Kind(StrEnum):
    """What a task is."""

    FUNCTION = "function"
    COMMAND = "command"
    JOIN = "join"
    """Internal: stands for up to 1,000 parents of a wide join. Never leased, has no record."""


OVER = frozenset(
    {
        JobState.COMPLETED,
        JobState.FAILED,
        JobState.TIMEOUT,
        JobState.CANCELLED,
        JobState.NODE_FAIL,
        JobState.OUT_OF_MEMORY,
        JobState.PREEMPTED,
    }
)
"""States of batch jobs that do not run any more and will not again."""

ENDED = frozenset({State.DONE, State.FAILED, State.CANCELLED})
"""States from which no pool moves a task (a person may retry `failed` and `cancelled`)."""

GOOD = frozenset({Outcome.SUCCEEDED, Outcome.CACHED})
"""Outcomes that make a task `done`."""

ALLOWED: frozenset[tuple[State, State]] = frozenset(
    {
        (State.WAITING, State.READY),  # the last parent ended
        (State.WAITING, State.FAILED),  # upstream
        (State.WAITING, State.DONE),  # join documents only
        (State.WAITING, State.CANCELLED),
        (State.READY, State.LEASED),
        (State.READY, State.CANCELLED),
        (State.LEASED, State.READY),  # returned, lost, retried by budget
        (State.LEASED, State.WAITING),  # a flow suspends
        (State.LEASED, State.DONE),
        (State.LEASED, State.FAILED),
        (State.LEASED, State.CANCELLED),
        (State.FAILED, State.READY),  # retry by a person
        (State.FAILED, State.WAITING),
        (State.CANCELLED, State.READY),
        (State.CANCELLED, State.WAITING),
    }
)


def check_move(old: State, new: State) -> None:
    """Raise `IllegalTransition` unless a task may go from `old` to `new`."""
    if (old, new) not in ALLOWED:
        raise IllegalTransition(f"a task cannot go from {old.value!r} to {new.value!r}")
