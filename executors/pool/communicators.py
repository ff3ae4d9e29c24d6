"""The communicators of MPI functions: made for a set of ranks, kept for its next function, freed by rank 0's word.

An MPI library has few of them (MPICH 2,046 per rank) and making one concerns all its members, in one order
for everybody. So rank 0 keeps the books (`Groups`), and every rank does as it is told (`Communicators`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence

from pilot.errors import PoolError
from pilot.executors.pool.mpi import MPI

GROUPS_MAX = 64
"""Sets of ranks whose communicators are kept. Making one costs 15-300 us, so that more would gain nothing."""

_TAG_MAX = 32_767
"""The least that MPI promises."""


class CommunicatorFailed(PoolError):
    """MPI could not make a communicator. The rank is worn: its program should be started anew."""


class Groups:
    """Rank 0's books: which sets of ranks have a communicator, least recently used first. No MPI."""

    def __init__(self, most: int = GROUPS_MAX) -> None:
        self._groups: OrderedDict[tuple[int, ...], int] = OrderedDict()
        self._most = most

    def __len__(self) -> int:
        return len(self._groups)

    def use(self, members: tuple[int, ...], number: int) -> tuple[int, bool]:
        """Return the name of the members' communicator, and whether it has to be made: then it is `number`."""
        new = members not in self._groups
        group = self._groups.setdefault(members, number)
        self._groups.move_to_end(members)
        return group, new

    def surplus(self, busy: Collection[int]) -> list[tuple[tuple[int, ...], int]]:
        """Forget the sets that are too many, and return them to be freed; none that has a member in `busy`."""
        excess = len(self._groups) - self._most
        if excess <= 0:
            return []
        idle = [members for members in self._groups if not any(member in busy for member in members)]
        return [(members, self._groups.pop(members)) for members in idle[:excess]]

    def forget(self, members: tuple[int, ...]) -> None:
        """Use this set's communicator no more, if it has one: it is not what it should be, and is not freed."""
        self._groups.pop(members, None)


class Communicators:
    """One rank's communicators, by the names that rank 0 gave them.

    Args:
        parent: a communicator of the whole pool that carries nothing else.
    """

    def __init__(self, parent: MPI.Intracomm) -> None:
        self._parent = parent
        self._groups: dict[int, MPI.Intracomm] = {}
        self._copies: dict[int, MPI.Intracomm] = {}

    def group(self, name: int, members: Sequence[int], new: bool) -> MPI.Intracomm:
        """Return the communicator of these members; all of them must call this, if it is new.

        Raises:
            CommunicatorFailed: it cannot be made, or could not be before.
        """
        if new:
            group = self._parent.Get_group()
            mine = group.Incl(members)
            try:
                self._groups[name] = self._parent.Create_group(mine, name % _TAG_MAX)
            except MPI.Exception as exc:
                raise failed(exc, f"ranks {list(members)[:20]}") from exc
            finally:
                mine.Free()
                group.Free()
        if name not in self._groups:
            raise CommunicatorFailed(f"communicator {name} of ranks {list(members)[:20]} is not there")
        return self._groups[name]

    def keep(self, number: int, copy: MPI.Intracomm) -> None:
        """Keep the communicator of a function that has ended in this rank until it has ended well in all.

        Freed earlier, or after a failure, its number in MPI could come again with a message still under way.
        """
        self._copies[number] = copy

    def free(self, groups: Sequence[int], numbers: Sequence[int]) -> None:
        """Free what rank 0 names, unless it is not there, or somebody sent a message over it that nobody received."""
        for number in numbers:
            copy = self._copies.pop(number, None)
            if copy is not None and not copy.Iprobe() and not copy.Iprobe():  # the first look only takes them in
                copy.Free()
        for name in groups:
            comm = self._groups.pop(name, None)
            if comm is not None:
                comm.Free()


def copy_of(comm: MPI.Intracomm) -> MPI.Intracomm:
    """Return a copy of a communicator; all members must call this.

    Raises:
        CommunicatorFailed: MPI has none left, as after many functions that leaked some.
    """
    try:
        return comm.Dup()
    except MPI.Exception as exc:
        raise failed(exc, f"{comm.Get_size()} ranks") from exc


def exhausted(error: BaseException | None) -> bool:
    """Return whether an error, or one behind it, says that MPI can make no more communicators in this rank."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, MPI.Exception) and "free on this process" in str(error):  # MPICH and its kin
            return True
        error = error.__cause__ or error.__context__
    return False


def failed(error: MPI.Exception, whose: str) -> CommunicatorFailed:
    """Return the error to raise for one of MPI's."""
    text = " ".join(str(error).split())[-300:]
    return CommunicatorFailed(f"tried to make a communicator for {whose}, MPI refused: {text}")
