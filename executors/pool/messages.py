"""What rank 0 and the slots say to each other: one frozen dataclass per message, pickled once each.

A message carries many tasks, and what a child needs to run one (a frame) or says at its end (a body) stays
opaque bytes, so that a rank spends 1-2 microseconds per task on it. Between one sender and one receiver
messages arrive in the order they were sent; the protocol relies on it.

Both ends belong to one MPI program of one user, started together: pickle crosses no trust boundary here.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pilot.errors import PoolError
from pilot.executors.run.verdict import Finished, Item, Key
from pilot.model import FunctionCode, Log

MESSAGE_BYTES_MAX = 1 << 30
"""Nothing near this is ever sent: values over 16 KiB travel as files. Larger counts would overflow MPI's int."""


_Columns = tuple[tuple[Any, ...], ...]
"""Many equal tuples turned by 90 degrees: pickle takes a sixth of the time for them."""


@dataclass(frozen=True, slots=True)
class Node:
    """What a rank can see of the machine it is on."""

    cpus: tuple[int, ...]
    """Ids of the CPUs this process may run on."""
    cpu_model: str
    memory_bytes: int
    kernel: str


@dataclass(frozen=True, slots=True)
class Address:
    """How to nudge a rank that is in an MPI function, from its own node: see `watch`."""

    node: str
    """The same for two ranks exactly if they can; see `bell.neighbourhood`."""
    name: bytes
    secret: bytes


# -- rank 0 to a slot -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Functions:
    """Code that later items of this slot will name; sent once per slot."""

    codes: tuple[FunctionCode, ...]


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Work to queue behind what the slot has, to be begun in this order."""

    items: tuple[Item, ...]

    def __reduce__(self) -> tuple[Callable[[_Columns], Dispatch], tuple[_Columns]]:
        return _dispatch, (tuple(zip(*self.items, strict=True)),)


def _dispatch(columns: _Columns) -> Dispatch:
    return Dispatch(tuple(map(Item._make, zip(*columns, strict=True))))


@dataclass(frozen=True, slots=True)
class Begin:
    """Run this MPI function now, together with the other members; sent to slots that hold nothing.

    All members of a function get it, and all that concerns communicators, in one order of the whole pool.
    """

    item: Item
    """Its frame is from `pack_work`, with the place set."""
    members: tuple[int, ...]
    """The pool's ranks that run it, in the order of the task's ranks."""
    number: int
    """Counts the MPI functions of the pool; names the communicator that this one is given."""
    group: int
    """Names the communicator of these members of which that is a copy."""
    new: bool
    """Make the communicator of the members first."""
    free: tuple[int, ...]
    """Before that, free these, which exactly the same members have: as `Free` says."""


@dataclass(frozen=True, slots=True)
class Free:
    """Free communicators; sent to all their members while none of them is in a function."""

    groups: tuple[int, ...]
    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Nudge:
    """Tell a rank on your node, which cannot hear rank 0 now, to end the MPI function it is in."""

    address: Address
    why: str
    key: Key


@dataclass(frozen=True, slots=True)
class Bind:
    """Run what is dispatched on these CPUs."""

    cpus: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Recall:
    """Give back the last of the work that has not begun; answered by exactly one `Returned`.

    `number` grows by one per recall of a slot; `count` None means all of it.
    """

    number: int
    count: int | None


@dataclass(frozen=True, slots=True)
class Cancel:
    """End these attempts: kill what runs, return what has not begun, ignore what is not here."""

    keys: tuple[Key, ...]


@dataclass(frozen=True, slots=True)
class Ping:
    """Rank 0 is alive; it has sent nothing else for a while."""


@dataclass(frozen=True, slots=True)
class Ending:
    """The pilot is ending: a child that dies of a TERM or KILL from outside is lost, not crashed."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Begin nothing more: return what has not begun, finish what has, then say `Bye`."""


# -- a slot to rank 0 -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello:
    """A rank is up. The first thing it says, once its child and MPI have started."""

    host: str
    pid: int
    node: Node
    library: str
    """The MPI library's own description of itself, first line."""
    standard: tuple[int, int]
    """Version of the MPI standard."""
    size: int
    """Size of the MPI program as this rank sees it."""
    address: Address | None = None


@dataclass(frozen=True, slots=True)
class Results:
    """Attempts that ended, each once, in the order of their ends."""

    finished: tuple[Finished, ...]

    def __reduce__(self) -> tuple[Callable[[_Columns], Results], tuple[_Columns]]:
        return _results, (tuple(zip(*self.finished, strict=True)),)


def _results(columns: _Columns) -> Results:
    return Results(tuple(map(Finished._make, zip(*columns, strict=True))))


@dataclass(frozen=True, slots=True)
class Part:
    """How an MPI function ended in one of its ranks."""

    key: Key
    index: int
    """The rank in the task's communicator."""
    body: bytes
    """A packed `Result`."""
    log: Log | None
    worn: str = ""
    """Why this rank cannot run MPI functions any more."""


@dataclass(frozen=True, slots=True)
class Returned:
    """These attempts are confirmed not begun and no longer here.

    `number` is the recall this answers, or 0 if the slot returned them by itself (cancelled, stopping,
    child failing). `left` counts the attempts still in hand: 0 after a recall of all says the slot is empty.
    """

    number: int
    keys: tuple[Key, ...]
    left: int


@dataclass(frozen=True, slots=True)
class Beat:
    """The slot is alive and has `load` attempts in hand; sent when it has said nothing else for a second."""

    load: int


@dataclass(frozen=True, slots=True)
class Failing:
    """The slot cannot start a child and so can run nothing; what it had not begun was returned before."""

    reason: str


@dataclass(frozen=True, slots=True)
class Able:
    """A slot that was failing has a child again and takes work."""


# -- both ways ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bye:
    """The last message in its direction.

    A stopping slot says it when it holds nothing; rank 0 answers when it will send no more, and the slot
    leaves MPI only then, so that no message is left unmatched at finalize.
    """


Order = Functions | Dispatch | Begin | Free | Nudge | Bind | Recall | Cancel | Ping | Ending | Stop | Bye
"""What rank 0 sends."""

Report = Hello | Results | Part | Returned | Beat | Failing | Able | Bye
"""What a slot sends."""

Message = Order | Report


def encode(message: Message) -> bytes:
    """Return the bytes that travel.

    Raises:
        PoolError: the message is too large for MPI; whoever batches must count bytes.
    """
    data = pickle.dumps(message, 5)
    if len(data) > MESSAGE_BYTES_MAX:
        raise PoolError(f"a {type(message).__name__} message of {len(data)} bytes is over {MESSAGE_BYTES_MAX}")
    return data


def decode(data: bytes | bytearray | memoryview) -> Message:
    """Return the message in `data`; it keeps no reference to it."""
    message: Message = pickle.loads(data)
    return message
