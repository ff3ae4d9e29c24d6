"""OpenPBS and PBS Pro: from values to their commands, and from what these print to values. Pure.

Words and options are those of qsub(1B), qstat(1B) and qdel(1B), and of ``src/include/job.h`` of OpenPBS 23.06.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from pilot.executors.batch.command import Said
from pilot.executors.batch.jobs import Job, Own, QueueNow, Request
from pilot.executors.batch.script import OUTPUT, clock, directive
from pilot.states import JobState

log = logging.getLogger(__name__)

NAME = "PBS"

COMMANDS = ("qsub", "qstat", "qdel")
"""What we call."""

UNREACHABLE = re.compile(
    r"cannot connect to server|Connection refused|Connection timed out|pbs_iff|Communication failure|"
    r"Unauthorized Request.*munge|No route to host|Server is busy|End of File|timed? ?out",
    re.IGNORECASE,
)
"""What its commands say when the server is away."""

# qstat(1B), "The job's state".
STATES: Mapping[str, JobState] = {
    "B": JobState.RUNNING,
    "E": JobState.COMPLETING,
    "F": JobState.COMPLETED,  # refined by the exit status
    "H": JobState.HELD,
    "M": JobState.QUEUED,
    "Q": JobState.QUEUED,
    "R": JobState.RUNNING,
    "S": JobState.SUSPENDED,
    "T": JobState.QUEUED,
    "U": JobState.SUSPENDED,
    "W": JobState.HELD,
    "X": JobState.COMPLETED,
}

# Exit statuses below zero, by which the server says why there is no other (JOB_EXEC_… in job.h). The rest of them
# are failures to start.
ENDS: Mapping[int, JobState] = {
    -4: JobState.NODE_FAIL,  # its node's daemon was started anew: INITABT, INITRST, INITRMG
    -5: JobState.NODE_FAIL,
    -6: JobState.NODE_FAIL,
    -12: JobState.PREEMPTED,  # CHKP: checkpointed and killed
    -14: JobState.NODE_FAIL,  # RERUN_SIS_FAIL: one of its other nodes did not answer
    -20: JobState.NODE_FAIL,  # RERUN_MS_FAIL: its first node did not
    -26: JobState.OUT_OF_MEMORY,  # KILL_VMEM
    -27: JobState.OUT_OF_MEMORY,  # KILL_MEM
    -28: JobState.TIMEOUT,  # KILL_CPUT
    -29: JobState.TIMEOUT,  # KILL_WALLTIME
}

KEPT = ("PBS_JOBID", "PBS_NODEFILE")
"""What launchers need to know of their job."""

_TERMINATED = "91"
"""Substate of a job that was deleted."""
_SIGNAL = 256
"""What an exit status is above that of the signal which ended the job."""
_PASSING = frozenset({0, 35, 153})
"""Exit codes of qstat that do not void its answer: a job is over, or unknown; the others are told of all the same."""

GONE = re.compile(r"Unknown Job Id|Job has finished|Request invalid for state of job")
"""What qdel says of a job that is over, or on its way there."""

KEYS: Mapping[str, re.Pattern[str]] = {
    "batch.account": re.compile(r"account|project", re.IGNORECASE),
    "batch.queue": re.compile(r"unknown queue|queue is not enabled|not authorized to use queue", re.IGNORECASE),
    "batch.queues": re.compile(r"resource_list\.walltime|exceeds|resource limits", re.IGNORECASE),
    "batch.options": re.compile(r"unknown resource|resource_list|filesystems|illegal attribute", re.IGNORECASE),
}
"""What qsub says when it refuses, by the key of the site's file that this is about; the first that fits holds."""


def directives(request: Request) -> list[str]:
    """Return the ``#PBS`` lines of a pilot's script.

    Output goes to `OUTPUT` in the directory in which `qsub` runs. There is no option for a warning before the end.

    Raises:
        InvalidInput: a value cannot stand in a directive.
    """
    options = [
        f"-N {request.name}",
        f"-l walltime={clock(request.walltime_s)}",
        "-j oe",
        f"-o {OUTPUT}",
        f"-r {'y' if request.requeue else 'n'}",
    ]
    if request.queue:
        options.append((request.queue_option or "-q {queue}").format(queue=request.queue))
    if request.account:
        options.append((request.account_option or "-A {account}").format(account=request.account))
    return [directive("#PBS", option) for option in (*options, *request.options)]


def submit_argv(script: str) -> list[str]:
    """Return the command that submits a script."""
    return ["qsub", script]


def trial_argv(script: str) -> list[str]:
    """Return nothing: qsub cannot say whether it would take a script without taking it."""
    return []


def submitted(said: Said) -> str | None:
    """Return the id of a job that was submitted; None if none was."""
    match = re.match(r"(\d+(?:\.[\w.-]+)?)\s*$", said.out)
    return match[1] if match and not said.code else None


def status_argv(ids: Sequence[str], user: int) -> list[str]:
    """Return the command that tells of these jobs, those that are over too.

    Not as JSON: of several ids that prints the first only.
    """
    return ["qstat", "-x", "-f", "-F", "dsv", *ids]


def status(said: Said) -> dict[str, Job]:
    """Read what the command of `status_argv` printed. An id that it does not know is not in the answer."""
    found = {}
    for line in said.out.splitlines():
        fields = dict(_pairs(line))
        job = fields.get("Job Id", "")
        if job:
            found[job] = _job(job, fields)
    return found


def answered(said: Said) -> bool:
    """Return whether qstat's answer holds: jobs that are over or unknown make it fail, and it tells of the others."""
    return said.code in _PASSING


def accounting_argv(ids: Iterable[str]) -> list[str]:
    """Return nothing: qstat tells of jobs that are over."""
    return []


def accounting(said: Said) -> dict[str, Job]:
    """Return nothing."""
    return {}


def cancel_argv(ids: Iterable[str]) -> list[str]:
    """Return the command that ends jobs, or takes them out of the queue."""
    return ["qdel", *ids]


def down_argv(hosts: Iterable[str]) -> list[str]:
    """Return nothing: a job ends with its first dead node, unless it tolerates that, and these do not."""
    return []


def down(said: Said) -> frozenset[str]:
    """Return nothing."""
    return frozenset()


def queues_argv() -> list[str]:
    """Return the command that tells of all queues."""
    return ["qstat", "-Q", "-f", "-F", "json"]


def queues(said: Said) -> dict[str, QueueNow]:
    """Read what the command of `queues_argv` printed; nothing if it is not JSON, as its answers sometimes are not."""
    try:
        told: dict[str, dict[str, Any]] = json.loads(said.out)["Queue"]
    except (ValueError, KeyError, TypeError):
        log.info("qstat -Q printed what cannot be read: %.200r", said.out)
        return {}
    return {name: _queue(fields) for name, fields in told.items()}


def _queue(fields: Mapping[str, Any]) -> QueueNow:
    missing = [word for word in ("enabled", "started") if str(fields.get(word)) != "True"]
    most, least = fields.get("resources_max", {}), fields.get("resources_min", {})
    return QueueNow(
        not missing, "not " + " and not ".join(missing) if missing else "enabled and started",
        _number(str(least.get("nodect", ""))) or 1, _number(str(most.get("nodect", ""))),
        _seconds(str(most.get("walltime", ""))),
    )  # fmt: skip


def own(env: Mapping[str, str]) -> Own | None:
    """Return the job that a process with this environment is part of; None outside of one."""
    job = env.get("PBS_JOBID")
    return Own(job, None, ("cat", env.get("PBS_NODEFILE", ""))) if job else None


def _pairs(line: str) -> Iterable[tuple[str, str]]:
    """Divide at bars, but for those behind a backslash, by which qstat writes a bar inside a value."""
    for part in re.split(r"(?<!\\)\|", line):
        name, mark, value = part.partition(": " if part.startswith("Job Id") else "=")
        if mark:
            yield name.strip(), value.replace("\\|", "|").strip()


def _job(job: str, fields: Mapping[str, str]) -> Job:
    word = fields.get("job_state", "")
    state = STATES.get(word)
    if state is None:
        log.warning("PBS says that job %s is %r, which is not in its manual; taken for unknown", job, word)
        state = JobState.UNKNOWN
    status = _number(fields.get("Exit_status"))
    count = _number(fields.get("run_count")) or 0
    code, number = status, 0
    if word in ("F", "X"):
        state, code, number = _end(status, fields.get("substate", ""))
    elif state is JobState.QUEUED and count:
        state = JobState.REQUEUED
    return Job(
        job, state, word, fields.get("comment", ""), code, number, fields.get("exec_host", ""),
        _time(fields.get("stime", "") or fields.get("estimated.start_time", "")),
    )  # fmt: skip


def _end(status: int | None, substate: str) -> tuple[JobState, int | None, int]:
    """Return how a job ended, its exit code and the signal that ended it."""
    if status is None:  # deleted before it ran, or its history is incomplete
        return (JobState.CANCELLED if substate == _TERMINATED else JobState.UNKNOWN), None, 0
    if status < 0:
        return ENDS.get(status, JobState.FAILED), None, 0
    number = status - _SIGNAL if status > _SIGNAL else 0
    if substate == _TERMINATED:
        return JobState.CANCELLED, None if number else status, number
    return (JobState.COMPLETED if status == 0 else JobState.FAILED), None if number else status, number


def _number(text: str | None) -> int | None:
    try:
        return int(text or "")
    except ValueError:
        return None


def _seconds(text: str) -> float | None:
    """Read ``hours:minutes:seconds`` or seconds; nothing for anything else."""
    match = re.fullmatch(r"(?:(?:(\d+):)?(\d+):)?(\d+)(?:\.\d+)?", text)
    if match is None:
        return None
    hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float((60 * hours + minutes) * 60 + seconds)


def _time(text: str) -> datetime | None:
    try:
        return datetime.strptime(text, "%a %b %d %H:%M:%S %Y").astimezone()
    except ValueError:
        return None
