"""What has become of a pilot, concluded from what it says itself and what its batch system says. Pure.

A pilot's own words come first: its heartbeat, and the end that its agent wrote. Then comes the batch system's list and
its accounting. "Not listed" is never "finished": accounting lags, and controllers forget.
"""

from __future__ import annotations

from typing import NamedTuple

from pilot.executors.batch.jobs import Job
from pilot.states import OVER, JobState, PilotState

UNLISTED_S = 600.0
"""A job that no list and no accounting has had for so long is gone. Slurm's accounting lags by minutes under load."""


class Fate(NamedTuple):
    """What is concluded."""

    lost: bool
    """Whether it is certain that the pilot will not work any more."""
    words: str
    """Why it does not work yet, or will not any more; for a person. Empty: there is nothing to say."""
    known: bool = True
    """Whether anything follows from it: not if its batch system did not answer."""
    queue: str = ""
    """State of its job while that does not run, nor is over; empty: that is not known."""


_WAITS = {
    JobState.QUEUED: "waits in the queue",
    JobState.HELD: "is held",
    JobState.REQUEUED: "is back in the queue, to be started a second time",
    JobState.CONFIGURING: "has its nodes, which are being made ready",
    JobState.RUNNING: "runs, and its agent has not reported yet",
    JobState.SUSPENDED: "is suspended",
    JobState.COMPLETING: "is ending",
    JobState.UNKNOWN: "is in a state that is not in the batch system's manual",
}

_HOSTS_LENGTH = 80
"""Characters of the names of a job's nodes that are shown: PBS writes out each of thousands."""


def fate(state: PilotState, silent_s: float, ttl_s: float, job: Job | None, since_s: float) -> Fate:
    """Conclude what has become of a pilot that has not written its end.

    Args:
        state: by its document.
        silent_s: since its last heartbeat.
        ttl_s: a heartbeat older than that means nothing.
        job: what the batch system says; None: it does not list it.
        since_s: since it was submitted.
    """
    if state is not PilotState.STARTING and silent_s <= ttl_s:
        return Fate(False, "")
    if job is None:
        if state is PilotState.STARTING and since_s > UNLISTED_S:
            return Fate(True, f"it has not been heard of for {since_s / 60:.0f} min")
        return Fate(False, "the batch system does not list its job yet" if state is PilotState.STARTING else "")
    why = f": {job.reason}" if job.reason else ""
    soon = f", expected to start {job.starts:%Y-%m-%d %H:%M}" if job.state is JobState.QUEUED and job.starts else ""
    if job.state not in OVER:
        return Fate(
            False,
            f"job {job.id} {_WAITS[job.state]}{why} ({job.word}){soon}",
            queue="" if job.state is JobState.RUNNING else job.state.value,
        )
    code = "" if job.exit_code in (None, 0) else f", exit code {job.exit_code}"
    code += f", signal {job.signal}" if job.signal else ""
    hosts = job.hosts if len(job.hosts) <= _HOSTS_LENGTH else f"{job.hosts[:_HOSTS_LENGTH]}…"
    where = f"; it ran on {hosts}" if hosts else ""
    before = " before its agent had reported" if state is PilotState.STARTING else ""
    return Fate(True, f"its batch job {job.id} ended as {job.word}{before}{code}{why}{where}")
