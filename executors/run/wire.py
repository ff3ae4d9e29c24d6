"""`Work` and `Result` as bytes: pickles of plain tuples.

Naming the classes in every pickle would triple the cost of both ends (6 us of 8 for a result), and a
coordinator makes and opens one of each per task. Both ends run the same version of this file.
"""

from __future__ import annotations

import pickle
from typing import Any

from pilot.model import Blob, Failure, Placement, RankPlace, Result, Usage, Work
from pilot.states import Kind, Outcome

_KINDS = {kind.value: kind for kind in Kind}
_OUTCOMES = {outcome.value: outcome for outcome in Outcome}


def pack_work(work: Work) -> bytes:
    """Return the frame of an `Item`."""
    inputs = [(name, tuple(blob)) for name, blob in work.inputs]
    linked = [(link, tuple(blob)) for link, blob in work.linked.items()]
    plain = (
        work.task, work.attempt, work.kind.value, work.name, work.function, work.command, inputs, linked,
        work.memory_bytes, work.cores, work.folder, work.ranks, work.gather, _plain_place(work.place), work.isolated,
    )  # fmt: skip
    return pickle.dumps(plain, 5)


def unpack_work(frame: bytes) -> Work:
    """Read what `pack_work` wrote, or a pickled `Work`."""
    plain: Any = pickle.loads(frame)
    if type(plain) is Work:
        return plain
    task, attempt, kind, name, function, command, inputs, linked, memory_bytes, cores, folder, *mpi = plain
    ranks, gather, place, isolated = mpi
    return Work(
        task, attempt, _KINDS[kind], name, function, command,
        tuple([(name, Blob(*blob)) for name, blob in inputs]), {link: Blob(*blob) for link, blob in linked},
        memory_bytes, cores, folder, ranks, gather,
        None if place is None else Placement(tuple([RankPlace(*rank) for rank in place])), isolated,
    )  # fmt: skip


def _plain_place(place: Placement | None) -> list[tuple[Any, ...]] | None:
    return None if place is None else [tuple(rank) for rank in place.ranks]


def pack_result(result: Result) -> bytes:
    """Return the body of a `Finished`; the log, which only the rank knows, is left out."""
    outputs = [(name, tuple(blob)) for name, blob in result.outputs]
    failure = None if result.failure is None else tuple(result.failure)
    plain = (
        result.task, result.attempt, result.outcome.value, outputs, failure, result.exit_code, result.started,
        result.finished, tuple(result.usage), result.rank, result.host, result.program, result.launcher,
    )  # fmt: skip
    return pickle.dumps(plain, 5)


def unpack_result(body: bytes) -> Result:
    """Read what `pack_result` wrote."""
    plain: Any = pickle.loads(body)
    (
        task, attempt, outcome, outputs, failure, exit_code, started, finished, usage, rank, host, program, launcher,
    ) = plain  # fmt: skip
    return Result(
        task, attempt, _OUTCOMES[outcome], tuple([(name, Blob(*blob)) for name, blob in outputs]),
        None if failure is None else Failure(*failure), exit_code, started, finished, Usage(*usage), rank, host,
        program, None, launcher,
    )  # fmt: skip
