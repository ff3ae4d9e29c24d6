"""Where there is room in a pool: its nodes, the slots and GPUs on each, and what of them is free. Pure.

Nodes with equal room are kept together as the bits of one integer, so that looking for room costs with the
kinds of room there are, not with nodes, slots or tasks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice, pairwise
from typing import NamedTuple

from pilot.errors import PoolError
from pilot.fitting import GPU, Group, bits_of, choose_gpus, in_a_row, neighbours, pick, runs, spread
from pilot.resources import Resources


class Node(NamedTuple):
    """One node of a pool."""

    name: str
    slots: tuple[int, ...]
    """In the order of their cores, so that neighbours share caches and memory."""
    gpus: int = 0
    """How many it has."""


class Shape(NamedTuple):
    """What a class of tasks takes, in slots."""

    ranks: int = 1
    slots_per_rank: int = 1
    gpus: int = 0
    """Thousandths of a GPU for each rank."""
    per_node: int | None = None
    nodes: int | None = None
    layout: str = ""
    mpi: bool = False

    @property
    def several_nodes(self) -> bool:
        """Whether it cannot run on one node, however large."""
        return (self.nodes or 1) > 1 or (self.per_node or self.ranks) < self.ranks

    @property
    def wide(self) -> bool:
        """Whether slots are to be chosen for it: it is more than a process of one slot."""
        return bool(self.mpi or self.gpus or self.nodes) or self.ranks * self.slots_per_rank > 1


def shape_of(resources: Resources, slot_cores: int, slot_memory: int | None) -> Shape:
    """Return what resources mean in slots of so many cores and bytes of memory (None: as much as you like)."""
    slots = -(-resources.cores // slot_cores)
    if resources.memory_bytes is not None and slot_memory is not None:
        slots = max(slots, -(-resources.memory_bytes // slot_memory))
    return Shape(
        resources.size,
        slots,
        round(resources.gpus * GPU),
        resources.ranks_per_node,
        resources.nodes,
        resources.layout,
        resources.ranks is not None,
    )


def least_nodes(shape: Shape, node: Node) -> int:
    """Return on how many nodes like this one a task fits, if on any number."""
    each = Room(len(node.slots), (GPU,) * node.gpus, True).ranks(shape)
    return shape.nodes or (1 if shape.layout == "near" else -(-shape.ranks // (shape.per_node or max(1, each))))


class Spot(NamedTuple):
    """The place of one rank."""

    node: int
    """Index of the node."""
    slots: tuple[int, ...]
    gpus: tuple[int, ...] = ()
    """Indices on the node."""
    share: int = GPU
    """Thousandths that it has of each of them."""


Spots = tuple[Spot, ...]
"""The place of one task, in the order of its ranks."""


def slots_of(spots: Iterable[Spot]) -> list[int]:
    """Return the slots of all ranks together."""
    return [slot for spot in spots for slot in spot.slots]


class Room(NamedTuple):
    """What is free on a node. The order is that of best fit for tasks without GPUs."""

    slots: int
    gpus: tuple[int, ...]
    """Thousandths free of each GPU, ascending."""
    idle: bool
    """Whether all of it is free."""

    def ranks(self, shape: Shape) -> int:
        """Return how many ranks of this shape have room."""
        if shape.nodes and not self.idle:
            return 0
        ranks = self.slots // shape.slots_per_rank
        if not shape.gpus or not ranks:
            return ranks
        if shape.gpus < GPU:
            return min(ranks, sum([free // shape.gpus for free in self.gpus]))
        return min(ranks, self.gpus.count(GPU) // (shape.gpus // GPU))


class Board:
    """Slots and GPUs of a pool, free or not."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = tuple(nodes)
        self.where = {slot: i for i, node in enumerate(self.nodes) for slot in node.slots}
        """Slot → index of its node. Read only."""
        self._bit = {slot: 1 << place for node in self.nodes for place, slot in enumerate(node.slots)}
        self._all = [(1 << len(node.slots)) - 1 for node in self.nodes]
        self._taken = [0] * len(self.nodes)
        self._gone = [0] * len(self.nodes)
        self._used = [(0,) * node.gpus for node in self.nodes]
        self._rooms = [Room(0, (), False)] * len(self.nodes)
        self._groups: dict[Room, int] = {}
        self._full: set[Shape] = set()
        """For these there was no room, and nothing has become free since."""
        self.free = 0
        """How many slots are free. Read only."""
        for node in range(len(self.nodes)):
            self._settle(node)

    def copy(self) -> Board:
        """Return a board of its own with the same things free."""
        other = object.__new__(Board)
        other.__dict__.update(self.__dict__)
        other._taken, other._gone, other._used = self._taken[:], self._gone[:], self._used[:]
        other._rooms, other._groups, other._full = self._rooms[:], self._groups.copy(), self._full.copy()
        return other

    # -- looking --------------------------------------------------------------------------------

    def place(self, shape: Shape) -> Spots | None:
        """Choose free slots and GPUs for the ranks of one task, best fit first; None if there is no room.

        A task goes to one node if it can, else to as few as it fits on. Slots of a rank are consecutive if such
        are free; fractions of GPUs go to GPUs that are shared already. Nothing is taken yet.
        """
        if shape.ranks * shape.slots_per_rank > self.free or shape in self._full:
            return None
        chosen = self._choose(shape)
        if chosen is None:
            self._full.add(shape)
            return None
        return tuple([spot for node, ranks in chosen for spot in self._spots(node, ranks, shape)])

    def fits(self, spots: Iterable[Spot]) -> bool:
        """Say whether all of this is free."""
        for node, mask, sharing in self._by_node(spots):
            if mask & (self._taken[node] | self._gone[node]):
                return False
            used = list(self._used[node])
            for spot in sharing:
                for gpu in spot.gpus:
                    used[gpu] += spot.share
                    if used[gpu] > GPU:
                        return False
        return True

    def crumbs(self, count: int) -> list[Spot]:
        """Return up to `count` free slots, one spot for each node, from the fullest nodes first."""
        found: list[Spot] = []
        for room in sorted(self._groups):
            for node in bits_of(self._groups[room]) if room.slots else ():
                if count <= 0:
                    return found
                places = self.nodes[node].slots
                slots = tuple([places[bit] for bit in islice(bits_of(self._free(node)), count)])
                found.append(Spot(node, slots))
                count -= len(slots)
        return found

    def is_free(self, slot: int) -> bool:
        """Say whether a slot is neither taken nor gone."""
        node = self.where[slot]
        return not self._bit[slot] & (self._taken[node] | self._gone[node])

    def why_never(self, shape: Shape) -> str:
        """Return what is missing for a task of this shape even if nothing else runs; "" if nothing.

        Slots that have been removed count as missing.
        """
        empty = Board(self.nodes)
        for node, gone in enumerate(self._gone):
            empty._gone[node] = gone
            empty._settle(node)
        return "" if empty.place(shape) else empty._missing(shape)

    # -- changing -------------------------------------------------------------------------------

    def take(self, spots: Iterable[Spot], *others: Board) -> None:
        """Mark slots and GPUs as in use, on other boards of the same pool as well.

        Raises:
            PoolError: a slot is in use already; this is a defect.
        """
        for node, mask, gpus in self._by_node(spots):
            for board in (self, *others):
                if board._taken[node] & mask:
                    raise PoolError(f"slots on {self.nodes[node].name!r} were to be taken twice; please report this")
                board._taken[node] |= mask
                board._use(node, gpus, 1)
                board._settle(node)

    def release(self, spots: Iterable[Spot], *others: Board) -> None:
        """Mark slots and GPUs as free again, on other boards of the same pool as well."""
        for node, mask, gpus in self._by_node(spots):
            for board in (self, *others):
                board._taken[node] &= ~mask
                board._use(node, gpus, -1)
                board._settle(node)
        for board in (self, *others):
            board._full.clear()

    def remove(self, slot: int) -> None:
        """Count a slot out, in use or not, as it is lost or quarantined. Repeatable."""
        node = self.where[slot]
        self._gone[node] |= self._bit[slot]
        self._settle(node)

    def restore(self, slot: int) -> None:
        """Count a slot in again. Repeatable."""
        node = self.where[slot]
        self._gone[node] &= ~self._bit[slot]
        self._settle(node)
        self._full.clear()

    def hold(self, spots: Iterable[Spot]) -> None:
        """Count out slots and GPUs that may be in use at present."""
        for node, mask, gpus in self._by_node(spots):
            self._gone[node] |= mask
            self._use(node, gpus, 1)
            self._settle(node)

    # -- books ----------------------------------------------------------------------------------

    def _by_node(self, spots: Iterable[Spot]) -> list[tuple[int, int, list[Spot]]]:
        """Return (node, bits of the slots, the spots that have GPUs) of each node."""
        bit = self._bit
        masks: dict[int, int] = {}
        gpus: dict[int, list[Spot]] = {}
        for spot in spots:
            node, slots, some, _ = spot
            mask = masks.get(node, 0)
            for slot in slots:
                mask |= bit[slot]
            masks[node] = mask
            if some:
                gpus.setdefault(node, []).append(spot)
        return [(node, mask, gpus.get(node, [])) for node, mask in masks.items()]

    def _use(self, node: int, spots: Sequence[Spot], sign: int) -> None:
        if spots:
            used = list(self._used[node])
            for spot in spots:
                for gpu in spot.gpus:
                    used[gpu] += sign * spot.share
            self._used[node] = tuple(used)

    def _free(self, node: int) -> int:
        """Return the free slots of a node, as bits."""
        return self._all[node] & ~(self._taken[node] | self._gone[node])

    def _settle(self, node: int) -> None:
        """Put a node among those with equal room."""
        bits, used = self._free(node), self._used[node]
        gpus = tuple(sorted([max(0, GPU - share) for share in used])) if used and bits else ()
        old, new = self._rooms[node], Room(bits.bit_count(), gpus, bits == self._all[node] > 0)
        if new == old:
            return
        self._rooms[node] = new
        self.free += new.slots - old.slots
        groups, bit = self._groups, 1 << node
        if old.slots:
            rest = groups[old] & ~bit
            if rest:
                groups[old] = rest
            else:
                del groups[old]
        if bits:
            groups[new] = groups.get(new, 0) | bit

    # -- choosing -------------------------------------------------------------------------------

    def _seen_by(self, shape: Shape) -> list[Group]:
        """Return the nodes that have room for any rank of this shape."""
        groups = []
        for room, nodes in self._groups.items():
            ranks = room.ranks(shape)
            if ranks:
                groups.append(Group((room.gpus, room.slots) if shape.gpus else room, ranks, nodes))
        return groups

    def _choose(self, shape: Shape) -> list[tuple[int, int]] | None:
        """Choose nodes; return (node, ranks there) in the order of the ranks."""
        groups = self._seen_by(shape)
        counts = _counts(shape)
        if shape.layout == "contiguous" and counts:
            return in_a_row(groups, counts)
        if counts:
            return pick(groups, counts)
        return pick(groups, [(shape.ranks, 1)]) or (
            neighbours(groups, shape.ranks) if shape.layout == "contiguous" else spread(groups, shape.ranks)
        )

    def _spots(self, node: int, ranks: int, shape: Shape) -> list[Spot]:
        """Choose slots and GPUs for so many ranks on a node that has room for them."""
        places = self.nodes[node].slots
        if shape.nodes:  # all of it, shared evenly
            bounds = [rank * len(places) // ranks for rank in range(ranks + 1)]
            slots = [places[first:end] for first, end in pairwise(bounds)]
        elif shape.slots_per_rank == 1:
            slots = [(places[bit],) for bit in islice(bits_of(self._free(node)), ranks)]
        else:
            slots = [
                tuple([places[bit] for bit in bits]) for bits in runs(self._free(node), ranks, shape.slots_per_rank)
            ]
        if not shape.gpus:
            return [Spot(node, some) for some in slots]
        used, share = list(self._used[node]), min(shape.gpus, GPU)
        return [Spot(node, some, choose_gpus(used, shape.gpus), share) for some in slots]

    def _missing(self, shape: Shape) -> str:
        """Say why there is no room on this board, on which nothing is in use."""
        slots = max((room.slots for room in self._groups), default=0)
        if shape.slots_per_rank > slots:
            return f"needs {shape.slots_per_rank} slots on one node, the largest node here has {slots}"
        gpus = max((len(room.gpus) for room in self._groups), default=0)
        if shape.gpus > gpus * GPU:
            return f"needs {shape.gpus / GPU:g} GPUs on one node, the largest node here has {gpus}"
        groups = self._seen_by(shape)
        counts = _counts(shape)
        kind = "whole nodes" if shape.nodes else "nodes"
        if shape.layout == "near":
            most = max((group.ranks for group in groups), default=0)
            return f"needs room for {shape.ranks} ranks on one node, the best node here has it for {most}"
        if counts:
            ranks, number = max(counts)[0], sum(number for _, number in counts)
            fitting = sum(group.nodes.bit_count() for group in groups if group.ranks >= ranks)
            if fitting < number:
                return f"needs {number} {kind} with room for {ranks} ranks each, here are {fitting}"
        total = sum(group.ranks * group.nodes.bit_count() for group in groups)
        if shape.ranks > total:
            return f"needs room for {shape.ranks} ranks, here it is for {total}"
        return f"needs {kind} next to each other with room for {shape.ranks} ranks, here are not enough in a row"


def _counts(shape: Shape) -> list[tuple[int, int]]:
    """Return (ranks on a node, how many such nodes) where a shape fixes them, else nothing."""
    if shape.per_node:
        full, rest = divmod(shape.ranks, shape.per_node)
        counts = [(shape.per_node, full), (rest, 1 if rest else 0)]
    elif shape.nodes:
        ranks, more = divmod(shape.ranks, shape.nodes)
        counts = [(ranks + 1, more), (ranks, shape.nodes - more)]
    else:
        counts = [(shape.ranks, 1)] if shape.layout == "near" else []
    return [(ranks, number) for ranks, number in counts if number]
