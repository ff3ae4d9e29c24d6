"""Slurm: from values to its commands, and from what these print to values. Pure; nothing here runs a command.

Words and options are those of sbatch(1), squeue(1), sacct(1) and scancel(1), Slurm 22.05 to 24.11.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime

from pilot.executors.batch.command import Said
from pilot.executors.batch.jobs import Job, Own, QueueNow, Request
from pilot.executors.batch.script import OUTPUT, clock, directive
from pilot.states import JobState

log = logging.getLogger(__name__)

NAME = "Slurm"

COMMANDS = ("sbatch", "squeue", "scancel", "sinfo", "scontrol", "sacct")
"""What we call."""

UNREACHABLE = re.compile(
    r"Unable to contact slurm controller|Socket timed out|Connection refused|Connection timed out|"
    r"Zero Bytes were transmitted|Unable to connect to database|persistent connection|slurmdbd.*(?:down|refused)|"
    r"Transport endpoint is not connected|Unexpected message received|Slurm controller not responding|"
    r"Primary and secondary controllers? (?:are )?not responding|DNS SRV lookup failed",
    re.IGNORECASE,
)
"""What its commands say when controller or database are away."""

# squeue(1) "JOB STATE CODES", and of sacct(1) those that squeue does not have.
STATES: Mapping[str, JobState] = {
    "BOOT_FAIL": JobState.NODE_FAIL,
    "CANCELLED": JobState.CANCELLED,
    "COMPLETED": JobState.COMPLETED,
    "COMPLETING": JobState.COMPLETING,
    "CONFIGURING": JobState.CONFIGURING,
    "DEADLINE": JobState.TIMEOUT,
    "EXPEDITING": JobState.QUEUED,
    "FAILED": JobState.FAILED,
    "LAUNCH_FAILED": JobState.FAILED,
    "NODE_FAIL": JobState.NODE_FAIL,
    "OUT_OF_MEMORY": JobState.OUT_OF_MEMORY,
    "PENDING": JobState.QUEUED,
    "POWER_UP_NODE": JobState.CONFIGURING,
    "PREEMPTED": JobState.PREEMPTED,
    "RECONFIG_FAIL": JobState.NODE_FAIL,
    "REQUEUED": JobState.REQUEUED,
    "REQUEUE_FED": JobState.REQUEUED,
    "REQUEUE_HOLD": JobState.HELD,
    "RESIZING": JobState.RUNNING,
    "RESV_DEL_HOLD": JobState.HELD,
    "REVOKED": JobState.CANCELLED,
    "RUNNING": JobState.RUNNING,
    "SIGNALING": JobState.RUNNING,
    "SPECIAL_EXIT": JobState.HELD,
    "STAGE_OUT": JobState.COMPLETING,
    "STOPPED": JobState.SUSPENDED,
    "SUSPENDED": JobState.SUSPENDED,
    "TIMEOUT": JobState.TIMEOUT,
    "UPDATE_DB": JobState.COMPLETING,
}

KEPT = ("SLURM_JOB_ID", "SLURM_CONF", "SLURM_CLUSTERS")
"""What `srun` needs to know of its job, and of the many variables nothing else."""

GONE = re.compile(r"Invalid job id specified|already completing or completed")
"""What scancel says of a job that is over."""

KEYS: Mapping[str, re.Pattern[str]] = {
    "batch.account": re.compile(r"invalid account|account.* (?:required|not specified|expired)", re.IGNORECASE),
    "batch.queue": re.compile(r"invalid (?:partition|qos)|no partition specified", re.IGNORECASE),
    "batch.queues": re.compile(r"time limit|node count|violates accounting/qos policy", re.IGNORECASE),
    "batch.options": re.compile(
        r"invalid (?:feature|generic resource|option)|node configuration|unrecogni", re.IGNORECASE
    ),
}
"""What sbatch says when it refuses, by the key of the site's file that this is about; the first that fits holds."""

_HELD = frozenset({"JobHeldUser", "JobHeldAdmin", "BeginTime"})
"""Reasons of pending jobs that wait for a person or a date; a requeued one waits for `BeginTime` too."""

_DOWN = frozenset({"down", "error", "fail", "failing", "powered_down", "powering_down", "unknown"})
"""States in which a node runs nothing."""

_FIELDS = "%i|%T|%S|%N|%r"
_ACCOUNTED = "JobIDRaw,State,ExitCode,Start,NodeList,Reason"


def directives(request: Request) -> list[str]:
    """Return the ``#SBATCH`` lines of a pilot's script.

    Output goes to `OUTPUT` in the directory in which `sbatch` runs: no path has to be quoted, and a job that is
    started again appends.

    Raises:
        InvalidInput: a value cannot stand in a directive.
    """
    options = [
        f"--job-name={request.name}",
        f"--nodes={request.nodes}",
        f"--time={clock(request.walltime_s)}",
        f"--output={OUTPUT}",
        "--open-mode=append",
        "--requeue" if request.requeue else "--no-requeue",
    ]
    if request.warn_s:
        options.append(f"--signal=B:USR1@{request.warn_s}")  # to the script only, which is the agent by then
    if request.smaller:
        options.append("--no-kill")
    if request.queue:
        options.append((request.queue_option or "--partition={queue}").format(queue=request.queue))
    if request.account:
        options.append((request.account_option or "--account={account}").format(account=request.account))
    return [directive("#SBATCH", option) for option in (*options, *request.options)]


def submit_argv(script: str) -> list[str]:
    """Return the command that submits a script."""
    return ["sbatch", "--parsable", script]


def trial_argv(script: str) -> list[str]:
    """Return the command that says whether a script would be taken, and submits nothing."""
    return ["sbatch", "--test-only", script]


def submitted(said: Said) -> str | None:
    """Return the id of a job that was submitted; None if none was."""
    match = re.match(r"(\d+)(;\S+)?\s*$", said.out)
    return match[1] if match and not said.code else None


def status_argv(ids: Sequence[str], user: int) -> list[str]:
    """Return the command that tells of a user's jobs: all at once, for a single unknown id makes others fail."""
    return ["squeue", "--noheader", "--states=all", f"--user={user}", f"--format={_FIELDS}"]


def status(said: Said) -> dict[str, Job]:
    """Read what the command of `status_argv` printed; lines that are none of a job are left out."""
    found = {}
    for job, word, starts, hosts, reason in _rows(said.out, 5):
        state = _state(word, job)
        if state is JobState.QUEUED and reason in _HELD:
            state = JobState.HELD
        found[job] = Job(job, state, word, "" if reason == "None" else reason, hosts=hosts, starts=_time(starts))
    return found


def answered(said: Said) -> bool:
    """Return whether squeue's answer holds."""
    return said.code == 0


def accounting_argv(ids: Iterable[str]) -> list[str]:
    """Return the command that tells of jobs which are not in the queue any more."""
    return ["sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={','.join(ids)}", f"--format={_ACCOUNTED}"]


def accounting(said: Said) -> dict[str, Job]:
    """Read what the command of `accounting_argv` printed."""
    found = {}
    for job, words, exit_code, starts, hosts, reason in _rows(said.out, 6):
        word = words.partition(" ")[0]  # "CANCELLED by 1000"
        code, _, number = exit_code.partition(":")
        found[job] = Job(
            job, _state(word, job), words, "" if reason == "None" else reason,
            int(code) if code.isdecimal() else None, int(number) if number.isdecimal() else 0,
            "" if hosts == "None assigned" else hosts, _time(starts),
        )  # fmt: skip
    return found


def cancel_argv(ids: Iterable[str]) -> list[str]:
    """Return the command that ends jobs, or takes them out of the queue. Those that are over are no error for it."""
    return ["scancel", *ids]


def down_argv(hosts: Iterable[str]) -> list[str]:
    """Return the command that tells in what state nodes are."""
    return ["sinfo", "--noheader", "--Node", f"--nodes={','.join(hosts)}", "--format=%N|%T"]


def down(said: Said) -> frozenset[str]:
    """Return the nodes that what the command of `down_argv` printed takes for dead.

    sinfo(1), "NODE STATE CODES": a star means that a node does not answer.
    """
    rows = [line.strip().partition("|") for line in said.out.splitlines()]
    return frozenset(node for node, _, word in rows if word.endswith("*") or word.rstrip("~#!%$@^-") in _DOWN)


def queues_argv() -> list[str]:
    """Return the command that tells of all partitions."""
    return ["sinfo", "--noheader", "--format=%R|%a|%l|%s|%D"]


def queues(said: Said) -> dict[str, QueueNow]:
    """Read what the command of `queues_argv` printed.

    sinfo(1), "OUTPUT FIELD DESCRIPTIONS": a size is ``4``, ``1-4`` or ``1-infinite``. Nodes that differ make several
    lines of one partition.
    """
    found: dict[str, QueueNow] = {}
    for line in said.out.splitlines():
        fields = [field.strip() for field in line.split("|")]
        if len(fields) != 5:
            continue
        name, word, longest, size, count = fields
        least, _, most = size.partition("-")
        before = found.get(name)
        found[name] = QueueNow(
            word == "up", word, _number(least) or 1, _number(most or least), _seconds(longest),
            (_number(count) or 0) + (before.nodes or 0 if before else 0),
        )  # fmt: skip
    return found


def own(env: Mapping[str, str]) -> Own | None:
    """Return the job that a process with this environment is part of; None outside of one."""
    job, nodes = env.get("SLURM_JOB_ID"), env.get("SLURM_JOB_NODELIST", "")
    if not job:
        return None
    end_at = env.get("SLURM_JOB_END_TIME", "")
    return Own(job, float(end_at) if end_at.isdecimal() else None, ("scontrol", "show", "hostnames", nodes))


def _rows(text: str, count: int) -> Iterator[list[str]]:
    for line in text.splitlines():
        fields = [field.strip() for field in line.split("|", count - 1)]
        if len(fields) == count and fields[0].isdecimal():
            yield fields
        elif line.strip():
            log.debug("squeue or sacct printed a line that is none of a job: %r", line)


def _state(word: str, job: str) -> JobState:
    state = STATES.get(word.rstrip("+"))  # sacct shortens words with a plus sign, unless asked not to
    if state is None:
        log.warning("Slurm says that job %s is %r, which is not in its manual; taken for unknown", job, word)
        return JobState.UNKNOWN
    return state


def _time(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError:  # N/A, Unknown, None
        return None


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() else None  # infinite


def _seconds(text: str) -> float | None:
    """Read ``[days-][hours:]minutes:seconds``; nothing for ``infinite`` and ``n/a``."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d\d)", text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(((24 * days + hours) * 60 + minutes) * 60 + seconds)
