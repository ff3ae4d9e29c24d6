"""What a pool consists of: its nodes, the slots on each, and which CPUs and GPUs stand behind them. Pure.

A slot has `slot_cores` cores and an equal share of its node's memory. Several nodes may be pretended to be on
one machine: then they share its CPUs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pilot.board import Board, Node, Shape, Spot, least_nodes, shape_of
from pilot.model import Placement, RankPlace, machine_of
from pilot.resources import Resources


def block_sizes(nodes: int, most: int) -> list[int]:
    """Divide nodes into as few blocks of at most `most` as there can be, of sizes that differ by one at most."""
    count = max(1, -(-nodes // most))
    small, rest = divmod(nodes, count)
    return [small + (number < rest) for number in range(count)]


class Seen(NamedTuple):
    """What a slot's rank says of where it is."""

    host: str
    cpus: tuple[int, ...]
    """That its process may use."""
    memory_bytes: int
    """Of the whole machine."""


@dataclass(slots=True)
class Layout:
    """Nodes and slots of one pool.

    Args:
        nodes: with the pool's ranks as slots.
        slot_cores: cores of one slot.
        slot_memory: bytes of memory of one slot; None: not known.
        cpus: slot → ids of its CPUs; absent: not bound, as there are more slots than CPUs.
        gpus: of each node, as the site's variable names them.
        programs: the pool's program nodes, which have no ranks of it, where MPI programs start on such nodes only.
            None: they start on the nodes of the pool.
        whole: whether a task gets its nodes for itself.
    """

    nodes: tuple[Node, ...]
    slot_cores: int
    slot_memory: int | None = None
    cpus: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    gpus: tuple[str, ...] = ()
    programs: Layout | None = None
    whole: bool = False
    _shapes: dict[str, Shape] = field(default_factory=dict)
    _never: dict[str, str] = field(default_factory=dict)

    @property
    def slots(self) -> int:
        """How many slots there are."""
        return sum(len(node.slots) for node in self.nodes)

    def shape(self, key: str) -> Shape:
        """Return what a resource class means in slots of these nodes.

        Raises:
            InvalidInput: `key` names no class.
        """
        shape = self._shapes.get(key)
        if shape is None:
            shape = shape_of(Resources.from_key(key), self.slot_cores, self.slot_memory)
            if self.whole and self.nodes:
                shape = shape._replace(nodes=least_nodes(shape, self.nodes[0]))
            self._shapes[key] = shape
        return shape

    def home(self, key: str) -> Layout:
        """Return the nodes for a class: the program nodes if it is one of MPI programs and these start there only.

        Raises:
            InvalidInput: `key` names no class.
        """
        return self.programs if self.programs is not None and Resources.from_key(key).program else self

    def why_never(self, key: str) -> str:
        """Return what this pool lacks for a class even when it is empty; "" if nothing.

        Raises:
            InvalidInput: `key` names no class.
        """
        why = self._never.get(key)
        if why is None:
            home = self.home(key)
            why = Board(home.nodes).why_never(home.shape(key)) if home.nodes else "needs program nodes, here are none"
            if why and home is not self:
                options = self.program_options(key)
                why = f"{why}; this site starts MPI programs on nodes without a pool only: `pilot up {options}`"
            self._never[key] = why
        return why

    def program_options(self, key: str) -> str:
        """Return the options by which a pilot like this one has the program nodes that a class needs; "" if none.

        Raises:
            InvalidInput: `key` names no class.
        """
        if self.home(key) is self:
            return ""
        count = least_nodes(self.shape(key), self.nodes[0])
        return f"--nodes {count + 1} --program-nodes {count}"

    def at_once(self, key: str) -> int:
        """Return about how many tasks of a class run at a time, at least 1.

        Raises:
            InvalidInput: `key` names no class.
        """
        home = self.home(key)
        return min(home.concurrency(home.shape(key)), max(1, self.slots))  # a program's launcher takes a slot

    def concurrency(self, shape: Shape) -> int:
        """Return about how many tasks of this shape run at a time, at least 1."""
        if shape.nodes:
            return max(1, len(self.nodes) // shape.nodes)
        return max(1, self.slots // (shape.ranks * shape.slots_per_rank))

    def placement(self, spots: Sequence[Spot]) -> Placement:
        """Return where a task runs, in the words of those who run it."""
        return Placement(
            tuple(
                RankPlace(
                    self.nodes[spot.node].name,
                    spot.slots,
                    tuple([cpu for slot in spot.slots for cpu in self.cpus.get(slot, ())]),
                    tuple([self.gpus[gpu] for gpu in spot.gpus]),
                )
                for spot in spots
            )
        )

    def document(self) -> dict[str, Any]:
        """Return what others need to know of it, for the pool's document."""
        sizes = {"slots": self.slots, "slot_cores": self.slot_cores, "slot_memory": self.slot_memory}
        doc: dict[str, Any] = {**sizes, "nodes": [[node.name, len(node.slots), node.gpus] for node in self.nodes]}
        if self.programs is not None:
            doc["programs"] = {"whole": self.programs.whole, "nodes": self.programs.document()["nodes"]}
        return doc

    @classmethod
    def from_document(cls, doc: Mapping[str, Any]) -> Layout:
        """Return as much of it as a pool's document tells."""
        cores, memory = doc.get("slot_cores", 1), doc.get("slot_memory")
        nodes = _nodes(doc.get("nodes") or [[doc.get("host", ""), doc.get("slots", 0), 0]])
        told = doc.get("programs")
        programs = None if told is None else cls(_nodes(told["nodes"]), cores, memory, whole=told.get("whole", False))
        return cls(nodes, cores, memory, programs=programs)


def _nodes(rows: Sequence[Any], first: int = 1) -> tuple[Node, ...]:
    """Return nodes, given name, number of slots and GPUs of each; their slots are numbered from `first` on."""
    made = []
    for name, count, gpus in rows:
        made.append(Node(name, tuple(range(first, first + count)), gpus))
        first += count
    return tuple(made)


def layout_of(
    slots: Mapping[int, Seen], slot_cores: int, gpus: tuple[str, ...] = (), cpu_order: Sequence[int] = ()
) -> Layout:
    """Return the layout of a pool whose slots have all said where they are.

    Args:
        slots: by rank.
        slot_cores: cores of each.
        gpus: of each node, as the site's variable names them.
        cpu_order: ids of a machine's CPUs in the order in which slots get them, so that the ranks of one task
            share caches and memory; CPUs that are not named come last.
    """
    by_node: dict[str, list[int]] = defaultdict(list)
    by_machine: dict[str, list[int]] = defaultdict(list)
    for rank in sorted(slots):
        by_node[slots[rank].host].append(rank)
        by_machine[machine_of(slots[rank].host)].append(rank)
    cpus: dict[int, tuple[int, ...]] = {}
    for ranks in by_machine.values():
        usable = sorted({cpu for rank in ranks for cpu in slots[rank].cpus}, key=_place_in(cpu_order))
        if len(ranks) * slot_cores <= len(usable):
            for place, rank in enumerate(ranks):
                cpus[rank] = tuple(usable[place * slot_cores : (place + 1) * slot_cores])
    memory = min(slots[ranks[0]].memory_bytes // len(ranks) for ranks in by_machine.values())
    nodes = tuple(Node(name, tuple(ranks), len(gpus)) for name, ranks in by_node.items())
    return Layout(nodes, slot_cores, memory, cpus, gpus)


def program_nodes_of(pool: Layout, beside: str, hosts: Sequence[str]) -> Layout | None:
    """Return the program nodes of a pool, which are taken to be like its first node; their slots are nobody's ranks.

    Args:
        pool: its own nodes.
        beside: the site's `programs_beside_pool`.
        hosts: the program nodes.
    """
    if beside == "share":
        return None
    like = pool.nodes[0]
    nodes = _nodes(
        [(host, len(like.slots), like.gpus) for host in hosts], 1 + max(node.slots[-1] for node in pool.nodes)
    )
    pairs = [pair for node in nodes for pair in zip(node.slots, like.slots, strict=True)]
    cpus = {slot: pool.cpus[model] for slot, model in pairs if model in pool.cpus}
    whole = beside == "whole_node_free"
    return Layout(nodes, pool.slot_cores, pool.slot_memory, cpus, pool.gpus, whole=whole)


def _place_in(order: Sequence[int]) -> Any:
    places = {cpu: place for place, cpu in enumerate(order)}
    return lambda cpu: (places.get(cpu, len(places)), cpu)
