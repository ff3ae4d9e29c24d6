"""Messages between ranks: nothing here ever blocks, in either direction.

Two blocking sends above the eager limit that face each other deadlock, a dropped request crashes MPICH at
exit, and a blocking receive of a large message waits for its sender's progress, for ever if the sender is
frozen. So every send and every receive is a request that is kept and tested.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from pilot.executors.pool.bell import Bell, neighbourhood
from pilot.executors.pool.messages import Message, decode, encode
from pilot.executors.pool.mpi import MPI

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

TAG = 1
_BUFFER_BYTES = 64 * 1024
_FLUSH_STEP_S = 0.0002


class Transport:
    """Sends and receives messages between rank 0 and the others, over a communicator that carries nothing else.

    Every rank makes one at the same time. All calls but `wake` come from the thread that initialised MPI.
    Progress is made inside `receive`, `flush` and `progress`, so a process with `sending` or `arriving` above
    zero should call one of them soon. To sleep, watch `fileno` and call `silence` before the next `receive`.

    Args:
        comm: the communicator.
        doorbell: whether ranks of one host wake each other; without it everyone must look for messages often.
    """

    def __init__(self, comm: MPI.Intracomm, doorbell: bool = True) -> None:
        self.rank: int = comm.Get_rank()
        self.size: int = comm.Get_size()
        self._comm = comm
        self._status = MPI.Status()
        self._buffer = bytearray(_BUFFER_BYTES)
        self._out: list[tuple[int, MPI.Request, bytes]] = []
        self._in: deque[tuple[int, MPI.Request, bytearray, int]] = deque()
        self._bell = Bell()
        self._near = self._meet(neighbourhood() if doorbell else f"rank {self.rank}")

    def _meet(self, place: str) -> dict[int, bytes]:
        """Exchange the names of bells; return those of the peers in the same place, by rank."""
        mine = (place, self._bell.name)
        everyone = self._comm.gather(mine)
        first = self._comm.bcast(mine)
        peers = enumerate(everyone[1:], 1) if everyone else [(0, first)]
        return {rank: name for rank, (where, name) in peers if where == place}

    @property
    def all_near(self) -> bool:
        """Whether everyone who may send to this rank can wake it."""
        return len(self._near) == (self.size - 1 if self.rank == 0 else 1)

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when a peer on this host has sent something, or at `wake`."""
        return self._bell.fileno()

    def silence(self) -> None:
        """Make `fileno` unreadable until something new happens."""
        self._bell.silence()

    def wake(self) -> None:
        """Make this rank's `fileno` readable. Any thread may call this."""
        self._bell.ring(self._bell.name)

    @property
    def sending(self) -> int:
        """Number of messages whose bytes MPI still needs."""
        return len(self._out)

    @property
    def arriving(self) -> int:
        """Number of messages that have been announced but are not here yet."""
        return len(self._in)

    def send(self, to: int, message: Message) -> None:
        """Start sending; the bytes are on their way or kept until they are.

        Raises:
            PoolError: the message is over `messages.MESSAGE_BYTES_MAX`.
        """
        self.send_all((to,), message)

    def send_all(self, to: Iterable[int], message: Message) -> None:
        """Start sending one message to several ranks.

        Raises:
            PoolError: see `send`.
        """
        data = encode(message)
        for rank in to:
            request = self._comm.Isend([data, MPI.BYTE], rank, TAG)
            if not request.Test():
                self._out.append((rank, request, data))
            self._ring(rank)

    def _ring(self, to: int) -> None:
        name = self._near.get(to)
        if name is not None:
            self._bell.ring(name)

    def receive(self) -> tuple[int, Message] | None:
        """Return the next message and its sender, or None if none has wholly arrived.

        Messages of one sender come in the order it sent them.
        """
        while self._announced():
            source, count = self._status.Get_source(), self._status.Get_count(MPI.BYTE)
            buffer = self._buffer if count <= _BUFFER_BYTES else bytearray(count)
            request = self._comm.Irecv([buffer, count, MPI.BYTE], source, TAG)
            if not self._in and request.Test():
                return source, decode(memoryview(buffer)[:count])
            self._in.append((source, request, buffer, count))
            if buffer is self._buffer:
                self._buffer = bytearray(_BUFFER_BYTES)
        if self._out:
            self.progress()
        return self._arrived() if self._in else None

    def _announced(self) -> bool:
        """Return whether a message has been announced. The first look only makes MPI take it in (both libraries)."""
        comm, status = self._comm, self._status
        return comm.Iprobe(MPI.ANY_SOURCE, TAG, status) or comm.Iprobe(MPI.ANY_SOURCE, TAG, status)

    def _arrived(self) -> tuple[int, Message] | None:
        """Return the earliest message that is complete, never overtaking one of the same sender."""
        blocked: set[int] = set()
        for place, (source, request, buffer, count) in enumerate(self._in):
            if source not in blocked and request.Test():
                del self._in[place]
                return source, decode(memoryview(buffer)[:count])
            blocked.add(source)
        return None

    def progress(self) -> int:
        """Let go of sends that are complete; return how many are not."""
        done = MPI.Request.Testsome([request for _, request, _ in self._out]) if self._out else None
        if done:
            gone = set(done)
            for place in gone:
                self._ring(self._out[place][0])  # it may have seen nothing when it was rung before
            self._out = [entry for place, entry in enumerate(self._out) if place not in gone]
        return len(self._out)

    def flush(self, timeout_s: float, without: Collection[int] = ()) -> bool:
        """Wait until every send is complete, except to the ranks in `without`; False if time ran out.

        Incoming messages are not taken here, so the peers must be receiving.
        """
        deadline = time.monotonic() + timeout_s
        while self.progress() and any(to not in without for to, _, _ in self._out):
            if time.monotonic() > deadline:
                return False
            time.sleep(_FLUSH_STEP_S)
        return True
