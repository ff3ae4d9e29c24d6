"""Which nodes for how many ranks, and which slots and GPUs on a node: arithmetic on bits. Pure.

A set of nodes, or of the slots of a node, is an integer with one bit for each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

GPU = 1000
"""One GPU, in the thousandths in which they are shared."""

Counts = Sequence[tuple[int, int]]
"""(ranks on a node, how many such nodes), in the order of the ranks."""

Chosen = list[tuple[int, int]]
"""(node, ranks there), in the order of the ranks."""


class Group(NamedTuple):
    """Nodes with equal room, seen by one shape; smaller is the better fit."""

    order: tuple[object, ...]
    ranks: int
    nodes: int
    """One bit for each node."""


def pick(groups: Iterable[Group], counts: Counts, barred: int = 0) -> Chosen | None:
    """Choose the best fitting nodes for these counts, outside of the nodes in `barred`."""
    chosen: Chosen = []
    for ranks, number in counts:
        for group in sorted([group for group in groups if group.ranks >= ranks]):
            for node in islice(bits_of(group.nodes & ~barred), number):
                chosen.append((node, ranks))
                barred |= 1 << node
                number -= 1
            if not number:
                break
        else:
            return None
    return chosen


def spread(groups: Sequence[Group], ranks: int) -> Chosen | None:
    """Choose as few nodes as have room for all ranks; the last one is the best fit for the rest."""
    if sum([group.ranks * group.nodes.bit_count() for group in groups]) < ranks:
        return None
    chosen: Chosen = []
    barred = 0
    for group in sorted(groups, key=lambda group: (-group.ranks, group.order)):
        for node in islice(bits_of(group.nodes), (ranks - 1) // group.ranks):
            chosen.append((node, group.ranks))
            barred |= 1 << node
            ranks -= group.ranks
        if ranks <= group.ranks:
            last = pick(groups, [(ranks, 1)], barred)
            if last:
                return chosen + last
    return None


def in_a_row(groups: Iterable[Group], counts: Counts) -> Chosen | None:
    """Choose neighbouring nodes for these counts, in their order."""
    starts, offset = -1, 0
    for ranks, number in counts:
        nodes = 0
        for group in groups:
            nodes |= group.nodes if group.ranks >= ranks else 0
        starts &= _run_starts(nodes, number) >> offset
        offset += number
    if not starts:
        return None
    each = [ranks for ranks, number in counts for _ in range(number)]
    return list(enumerate(each, lowest(starts)))


def neighbours(groups: Sequence[Group], ranks: int) -> Chosen | None:
    """Choose as few neighbouring nodes as have room for all ranks. Looks at every node, unless all have equal room."""
    sizes = {group.ranks for group in groups}
    if len(sizes) == 1:
        size = sizes.pop()
        return in_a_row(groups, [(size, ranks // size), (ranks % size, 1)][: 2 if ranks % size else 1])
    room = {node: group.ranks for group in groups for node in bits_of(group.nodes)}
    best = range(len(room) + 1)
    first = total = 0
    before = -2
    for node in sorted(room):
        if node != before + 1:
            first, total = node, 0
        before = node
        total += room[node]
        while total - room[first] >= ranks:
            total -= room[first]
            first += 1
        if total >= ranks and node - first + 1 < len(best):
            best = range(first, node + 1)
    if len(best) > len(room):
        return None
    chosen = []
    for node in best:
        chosen.append((node, min(ranks, room[node])))
        ranks -= chosen[-1][1]
    return chosen


def runs(free: int, ranks: int, size: int) -> Iterator[list[int]]:
    """Yield the slots of each rank, as numbers of bits: consecutive ones if there are, else the first."""
    for _ in range(ranks):
        starts = _run_starts(free, size)
        first = lowest(starts)
        bits = list(range(first, first + size)) if starts else list(islice(bits_of(free), size))
        for bit in bits:
            free ^= 1 << bit
        yield bits


def _run_starts(bits: int, length: int) -> int:
    """Return the bits at which a run of so many ones begins."""
    have = 1
    while have < length and bits:
        step = min(have, length - have)
        bits &= bits >> step
        have += step
    return bits


def choose_gpus(used: list[int], gpus: int) -> tuple[int, ...]:
    """Choose GPUs for one rank and count them in `used`: whole ones, or a share of the fullest that has it left."""
    if gpus < GPU:
        chosen = [max((share, -gpu) for gpu, share in enumerate(used) if share + gpus <= GPU)[1] * -1]
    else:
        chosen = list(islice((gpu for gpu, share in enumerate(used) if not share), gpus // GPU))
    for gpu in chosen:
        used[gpu] += min(gpus, GPU)
    return tuple(chosen)


def lowest(bits: int) -> int:
    """Return the number of the first one; -1 if there is none."""
    return (bits & -bits).bit_length() - 1


def bits_of(bits: int) -> Iterator[int]:
    """Yield the numbers of the ones, ascending."""
    while bits:
        low = bits & -bits
        yield low.bit_length() - 1
        bits ^= low
