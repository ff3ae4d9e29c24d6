"""The words of the system as types: ids, durations, resources, tasks to submit, work and its results.

Plain data only: no clock, no files, no network. Imported by every process, workers included, so it
stays light.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from pilot.states import Kind, Outcome

SCHEMA = 1
"""Version of the documents in the store; `store.schema` refuses any other."""

INLINE_VALUE_BYTES = 16 * 1024
"""An encoded value above this goes to the object repository."""

INLINE_DOCUMENT_BYTES = 256 * 1024
"""What a document may hold inline in all; lists and values beyond it become objects."""

PENDING_MAX = 1000
"""Most parents one document may wait for; a wider join gets join documents."""

BUCKETS = 64
"""The ready queue is split in this many buckets so that pools do not fight over one head."""

LOST_BUDGET = 20
"""How often an attempt may be `lost` before the task fails; apart from the user's retries."""

TAIL_BYTES = 4096
"""How much of a task's captured output its record keeps."""

KEPT = "kept"
"""A file whose bytes are in the object repository."""
IN_PLACE: Literal["in place"] = "in place"
"""A file that is only hashed, and stays where it is."""

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no letter is mistaken for a digit


def new_token(length: int = 10) -> str:
    """Return `length` random characters (5 bits each) that read well aloud."""
    return "".join([_ALPHABET[byte & 31] for byte in os.urandom(length)])


def bucket_of(task: str) -> int:
    """Return the bucket of the ready queue in which this task waits."""
    return zlib.crc32(task.encode()) % BUCKETS


_TIME_BITS = 40
_EPOCH = 1_767_225_600  # 2026-01-01


def new_batch(now: float, session: str) -> str:
    """Return the beginning of the ids of tasks that are submitted together; later ones sort after earlier ones.

    Args:
        now: seconds since the epoch, to 1/64 s.
        session: random characters of whoever submits, at least 5: two of them never meet in one tick.
    """
    ticks = int((now - _EPOCH) * 64) % (1 << _TIME_BITS)
    digits = [_ALPHABET[ticks >> shift & 31] for shift in range(_TIME_BITS - 5, -1, -5)]
    return "".join(digits) + session


def record_id(task: str, attempt: int) -> str:
    """Return the `_id` of the provenance record of one attempt."""
    return f"{task}:{attempt}"


def official_record(doc: Mapping[str, Any]) -> str | None:
    """Return the `_id` of a task's official record: that of the attempt which ended it, if one did.

    The document keeps the attempt's number only, so that one update can end thousands of tasks.
    """
    return record_id(doc["_id"], doc["official"]) if "official" in doc else None


def whole_result(outputs: Mapping[str, Any]) -> Any:
    """Return a task's result, of the values of its outputs by name.

    A function has one; one that gathers has one for each rank, which make a list; a command's are kept by name.
    """
    if outputs.keys() == {"result"}:
        return outputs["result"]
    if "result[0]" in outputs:
        return [outputs[f"result[{rank}]"] for rank in range(len(outputs))]
    return dict(outputs)


# -- values on their way --------------------------------------------------------------------------


class Blob(NamedTuple):
    """An encoded value: its identity and, if it is small, its bytes.

    `data` is None when the bytes lie in the object repository under `hash`.
    """

    hash: str
    size: int
    data: bytes | None
    files: bool = False
    """Of a value in the repository: it names files, so whoever wants to know what is named has to look into it."""


class Link(NamedTuple):
    """One use of another task's output inside an argument."""

    path: str
    """Where it stands, as a person would write it: ``futures[3]``."""
    task: str
    output: str | None
    """Name of the output, or None for the whole result."""


class Input(NamedTuple):
    """One named argument of a task."""

    name: str
    blob: Blob
    links: tuple[Link, ...] = ()


_NOTHING: Mapping[str, str] = {}  # a mapping proxy cannot be pickled


class Command(NamedTuple):
    """A program to run.

    Args:
        argv: the program and its arguments; for a shell command, one string.
        shell: run ``argv[0]`` with ``/bin/sh -c``.
        cwd: working directory; None: a private one if there are files, else the project's.
        env: variables set on top of the pilot's environment.
        files: name of the file to write before the start → name of the input that holds its text.
        outputs: output name → glob of the files to keep, relative to the working directory.
        stdout: file in the working directory that gets its standard output; None: the slot's captured output.
        keep: output name → what becomes of its files, `KEPT` or `IN_PLACE`; those not named here are read, and are
            bytes.
    """

    argv: tuple[str, ...]
    shell: bool = False
    cwd: str | None = None
    env: Mapping[str, str] = _NOTHING
    files: Mapping[str, str] = _NOTHING
    outputs: Mapping[str, str] = _NOTHING
    stdout: str | None = None
    keep: Mapping[str, str] = _NOTHING

    def document(self) -> dict[str, Any]:
        """Return it as plain data, the form that is signed and stored."""
        doc: dict[str, Any] = {
            "argv": list(self.argv),
            "shell": self.shell,
            "cwd": self.cwd,
            "env": [list(pair) for pair in sorted(self.env.items())],
            "files": [list(pair) for pair in sorted(self.files.items())],
            "outputs": [list(pair) for pair in sorted(self.outputs.items())],
            "stdout": self.stdout,
        }
        if self.keep:
            doc["keep"] = [list(pair) for pair in sorted(self.keep.items())]
        return doc

    @classmethod
    def from_document(cls, doc: Mapping[str, Any]) -> Command:
        """Read what `document` wrote."""
        return cls(
            tuple(doc["argv"]), doc["shell"], doc["cwd"],
            dict(doc["env"]), dict(doc["files"]), dict(doc["outputs"]), doc["stdout"], dict(doc.get("keep", ())),
        )  # fmt: skip


class FunctionCode(NamedTuple):
    """A function as stored: enough to run it and to read it in five years."""

    hash: str
    module: str
    qualname: str
    source: str
    source_hash: str
    module_hash: str
    """BLAKE2b-256 of the module's file at submit; empty when there is none (notebook, ``-c``)."""
    pickle: Blob | None
    """The function by value, when it cannot be imported by name."""
    python: str
    """Minor version of the submitter, ``"3.11"``."""
    git: dict[str, Any] | None = None
    kin: tuple[str, ...] = ()
    """BLAKE2b-256 of the files, other than the module's, in which the classes of a method's object are."""


# -- work in a pool -------------------------------------------------------------------------------


_PRETENDED = "~"


def pretended_node(machine: str, number: int) -> str:
    """Return the name of one of several nodes that are pretended to be on a machine; for tests."""
    return f"{machine}{_PRETENDED}{number}"


def machine_of(node: str) -> str:
    """Return the machine that a node, pretended or not, is on."""
    return node.partition(_PRETENDED)[0]


class RankPlace(NamedTuple):
    """Where one rank of a task runs."""

    host: str
    """Name of its node, as the pool knows it."""
    slots: tuple[int, ...]
    """The pool's ranks whose cores it has; the first one runs it."""
    cpus: tuple[int, ...] = ()
    """Ids of the CPUs it may use; empty: not bound."""
    gpus: tuple[str, ...] = ()
    """GPUs it may use, as the site's variable names them."""


class Placement(NamedTuple):
    """Where a task runs that takes more than one slot's worth, in the order of its ranks."""

    ranks: tuple[RankPlace, ...]

    @property
    def slots(self) -> tuple[int, ...]:
        """Every slot that it takes, each once, in order."""
        return tuple([slot for rank in self.ranks for slot in rank.slots])

    @property
    def hosts(self) -> tuple[str, ...]:
        """Its nodes, each once, in order."""
        return tuple(dict.fromkeys([rank.host for rank in self.ranks]))


class Work(NamedTuple):
    """One attempt as a child needs it. The coordinator makes it; ranks pass it on unopened."""

    task: str
    attempt: int
    kind: Kind
    name: str
    function: str | None
    command: Command | None
    inputs: tuple[tuple[str, Blob], ...]
    """Arguments by name, in the order of the signature."""
    linked: dict[tuple[str, str | None], Blob]
    """Value of every (task, output) that the inputs link to."""
    memory_bytes: int | None
    cores: int
    folder: str = ""
    """Where the submitter's own modules lie."""
    ranks: int | None = None
    """MPI ranks; None: one process that is not told of MPI."""
    gather: bool = False
    """Of an MPI function: keep the result of every rank, not only of rank 0."""
    place: Placement | None = None
    """Set by the coordinator when it dispatches what takes more than one slot; None: the slot's own cores."""
    isolated: bool = False
    """Of an MPI function: run it in an MPI program of its own, since it may have ended a pool before."""


class Failure(NamedTuple):
    """Why an attempt did not succeed, with its address."""

    type: str
    message: str
    traceback: str
    rank: int
    host: str


class Usage(NamedTuple):
    """What an attempt cost."""

    wall_s: float
    cpu_s: float
    max_rss_bytes: int


class Log(NamedTuple):
    """Where an attempt's captured output lies; `offset` and `length` in bytes, `tail` at most 4 KiB."""

    file: str
    offset: int
    length: int
    tail: str


class Result(NamedTuple):
    """How one attempt ended, as the worker's side saw it. Times are seconds since the epoch (UTC)."""

    task: str
    attempt: int
    outcome: Outcome
    outputs: tuple[tuple[str, Blob], ...]
    failure: Failure | None
    exit_code: int | None
    started: float
    finished: float
    usage: Usage
    rank: int
    host: str
    program: tuple[str, str] | None = None
    """Of a command: path and BLAKE2b-256 of the file that was executed."""
    log: Log | None = None
    launcher: tuple[str, ...] | None = None
    """Of an MPI program: the words of the launcher that started it."""
