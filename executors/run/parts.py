"""The parts that the ranks of one MPI function give, and the one result that they make together. Pure.

A part is the `Result` of one rank. Its `failure.rank` counts in the task's communicator.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pilot.executors.run.failure import MESSAGE_BYTES, TRACEBACK_BYTES, clipped
from pilot.executors.run.function import OUTPUT
from pilot.executors.run.wire import pack_work, unpack_work
from pilot.model import TAIL_BYTES, Failure, FunctionCode, Log, Result, Usage, Work
from pilot.states import Outcome

WITH_OTHERS = "EndedWithOthers"
"""Type of the failure of a rank that did nothing wrong: it could not begin or go on since another had failed."""

CRASHED = "RankDied"
"""Type of the failure of a function of which some ranks gave no part."""

_GROUP_BYTES = 4 * 1024
"""Every distinct failure may have so much of the traceback's room at least."""


def merge(parts: Mapping[int, Result], ranks: int, missing: str) -> Result:
    """Return the result of an MPI function.

    It succeeded only if all its ranks did. `lost` and `cancelled` in any part decide the outcome, else the part
    that ended badly first does. A rank without a part crashed, and the function with it.

    Args:
        parts: by rank of the task. The outputs of all are kept; they have distinct names (`output_name`).
        ranks: how many there should be.
        missing: what is known of the ranks that gave none. Without any part, the caller has to fill in task,
            attempt, times, rank and host.
    """
    present = [parts[rank] for rank in sorted(parts)]
    first = present[0] if present else Result("", 0, Outcome.CRASHED, (), None, None, 0, 0, Usage(0, 0, 0), -1, "")
    outcome, failure, exit_code = Outcome.SUCCEEDED, None, None
    bad = [part for part in present if part.outcome is not Outcome.SUCCEEDED]
    if len(parts) < ranks:
        absent = [rank for rank in range(ranks) if rank not in parts]
        outcome = Outcome.CRASHED
        why = f"{_numbers(absent)} of {ranks} ended without a result: {missing}"
        traced = _describe(bad, ranks)
        failure = Failure(CRASHED, clipped(why, MESSAGE_BYTES), traced.traceback if traced else "", absent[0], "")
    elif bad:
        cause = _cause(bad)
        outcome, failure, exit_code = cause.outcome, _describe([cause, *bad], ranks), cause.exit_code
    return first._replace(
        outcome=outcome,
        outputs=()
        if outcome is not Outcome.SUCCEEDED
        else tuple([output for part in present for output in part.outputs]),
        failure=failure,
        exit_code=exit_code,
        started=min([part.started for part in present], default=0.0),
        finished=max([part.finished for part in present], default=0.0),
        usage=_usage(present),
        log=_log(parts),
    )


def _cause(bad: Sequence[Result]) -> Result:
    """Return the part that decides how the whole ended."""

    def order(part: Result) -> tuple[bool, bool, bool, float]:
        with_others = part.failure is not None and part.failure.type == WITH_OTHERS
        return part.outcome is not Outcome.LOST, part.outcome is not Outcome.CANCELLED, with_others, part.finished

    return min(bad, key=order)


def _describe(bad: Sequence[Result], ranks: int) -> Failure | None:
    """Return one failure for those of many ranks, of which the first is the cause. Equal ones are shown once."""
    failures = [part.failure for part in bad if part.failure is not None]
    if not failures:
        return None
    cause = failures[0]
    if ranks == 1:
        return cause
    groups: dict[tuple[bool, str], dict[int, str]] = {}
    for one in failures:
        text = one.traceback or f"{one.type}: {one.message}"
        groups.setdefault((one.type == WITH_OTHERS, text), {})[one.rank] = one.host
    share = max(_GROUP_BYTES, TRACEBACK_BYTES // len(groups))
    texts = [
        f"{_numbers(sorted(at))} of {ranks}, on {', '.join(sorted(set(at.values())))}"
        f"{' (ended because of another rank)' if with_others else ''}:\n{clipped(text, share)}"
        for (with_others, text), at in sorted(groups.items(), key=lambda group: group[0][0])
    ]
    message = clipped(f"rank {cause.rank} of {ranks} on {cause.host}: {cause.message}", MESSAGE_BYTES)
    return cause._replace(message=message, traceback=clipped("\n".join(texts), TRACEBACK_BYTES))


def _usage(parts: Sequence[Result]) -> Usage:
    return Usage(
        max([part.usage.wall_s for part in parts], default=0.0),
        sum([part.usage.cpu_s for part in parts]),
        max([part.usage.max_rss_bytes for part in parts], default=0),
    )


def _log(parts: Mapping[int, Result]) -> Log | None:
    """Return rank 0's log; if it printed nothing, the first other's, with the last output of all."""
    logs = {rank: part.log for rank, part in sorted(parts.items()) if part.log is not None}
    if not logs or 0 in logs:
        return logs.get(0)
    each = max(256, TAIL_BYTES // len(logs) - 32)
    tails = "\n".join(f"[rank {rank}] {log.tail[-each:]}" for rank, log in logs.items())
    tail = tails.encode()[-TAIL_BYTES:].decode(errors="ignore")
    return next(iter(logs.values()))._replace(tail=tail)


def _numbers(ranks: Sequence[int]) -> str:
    """Return "rank 3" or "ranks 0-4, 7"."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and runs[-1][-1] == rank - 1:
            runs[-1][1:] = [rank]
        else:
            runs.append([rank])
    text = ", ".join("-".join(map(str, run)) for run in runs)
    return f"rank {text}" if len(ranks) == 1 else f"ranks {text}"


def output_name(rank: int, gather: bool) -> str | None:
    """Return the name of the output that this rank of a task gives; None if its value is not kept."""
    if gather:
        return f"{OUTPUT}[{rank}]"
    return OUTPUT if rank == 0 else None


# -- one function in a program of its own ---------------------------------------------------------


class Isolated(NamedTuple):
    """What the ranks of a program that runs one MPI function need; lies in a file."""

    work: Work
    code: FunctionCode

    def pack(self) -> bytes:
        """Return the contents of the file."""
        return pickle.dumps((pack_work(self.work), tuple(self.code)), 5)

    @classmethod
    def unpack(cls, data: bytes) -> Isolated:
        """Read what `pack` wrote."""
        frame, code = pickle.loads(data)
        return cls(unpack_work(frame), FunctionCode(*code))


def part_file(folder: str, rank: int) -> str:
    """Return where such a rank leaves its packed `Result`; the file appears whole or not at all."""
    return f"{folder}/part-{rank}"
