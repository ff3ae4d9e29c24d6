"""What has become of a pilot: its own words first, then its batch system's. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from pilot.executors.batch.jobs import Job
from pilot.fates import UNLISTED_S, Fate, fate
from pilot.states import OVER, JobState, PilotState

STARTING, RUNNING = PilotState.STARTING, PilotState.RUNNING


def job(state: JobState, reason: str = "", **fields: Any) -> Job:
    return Job("7", state, state.name, reason, **fields)


@pytest.mark.parametrize("state", JobState)
def test_a_heartbeat_counts_more_than_what_the_batch_system_says(state: JobState) -> None:
    assert fate(RUNNING, 3.0, 30.0, job(state), 1000.0) == Fate(False, "")
    assert fate(RUNNING, 3.0, 30.0, None, 1e6) == Fate(False, "")


@pytest.mark.parametrize("state", JobState)
def test_only_ends_are_ends(state: JobState) -> None:
    found = fate(STARTING, 0.0, 30.0, job(state), 1000.0)
    assert found.lost == (state in OVER)
    assert found.words
    assert fate(RUNNING, 31.0, 30.0, job(state), 1000.0).lost == (state in OVER)


def test_not_listed_is_not_finished() -> None:
    assert not fate(STARTING, 0.0, 30.0, None, UNLISTED_S - 1).lost
    found = fate(STARTING, 0.0, 30.0, None, UNLISTED_S + 1)
    assert found.lost
    assert "has not been heard of for 10 min" in found.words
    assert not fate(RUNNING, 1e6, 30.0, None, 1e6).lost  # the reaper decides by its heartbeat


def test_words() -> None:
    waits = fate(STARTING, 0.0, 30.0, job(JobState.QUEUED, "PartitionDown"), 5.0)
    assert waits.words == "job 7 waits in the queue: PartitionDown (QUEUED)"
    ended = fate(STARTING, 0.0, 30.0, job(JobState.FAILED, "NonZeroExitCode", exit_code=3), 5.0)
    assert ended.words == "its batch job 7 ended as FAILED before its agent had reported, exit code 3: NonZeroExitCode"
    soon = fate(STARTING, 0.0, 30.0, job(JobState.QUEUED, "Priority", starts=datetime(2026, 3, 1, 14, 5)), 5.0)
    assert soon.words == "job 7 waits in the queue: Priority (QUEUED), expected to start 2026-03-01 14:05"
    node = fate(RUNNING, 60.0, 30.0, job(JobState.NODE_FAIL, hosts="n[1-2]", exit_code=0, signal=9), 5.0)
    assert node.words == "its batch job 7 ended as NODE_FAIL, signal 9; it ran on n[1-2]"
    many = fate(RUNNING, 60.0, 30.0, job(JobState.NODE_FAIL, hosts="+".join(f"n{i}/0*4" for i in range(1000))), 5.0)
    assert len(many.words) < 200
