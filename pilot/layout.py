"""What a pool consists of: its nodes, the slots on each, and which CPUs and GPUs stand behind them. Pure.

A slot has `slot_cores` cores and an equal share of its node's memory. Several nodes may be pretended to be on
one machine: then they share its CPUs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pilot.board import Board, Node, Shape, Spot, shape_of
from pilot.model import Placement, RankPlace, machine_of
from pilot.resources import Resources


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
    """

    nodes: tuple[Node, ...]
    slot_cores: int
    slot_memory: int | None = None
    cpus: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    gpus: tuple[str, ...] = ()
    _shapes: dict[str, Shape] = field(default_factory=dict)
    _never: dict[str, str] = field(default_factory=dict)

    @property
    def slots(self) -> int:
        """How many slots there are."""
        return sum(len(node.slots) for node in self.nodes)

    def shape(self, key: str) -> Shape:
        """Return what a resource class means in slots of this pool.

        Raises:
            InvalidInput: `key` names no class.
        """
        shape = self._shapes.get(key)
        if shape is None:
            shape = self._shapes[key] = shape_of(Resources.from_key(key), self.slot_cores, self.slot_memory)
        return shape

    def why_never(self, key: str) -> str:
        """Return what this pool lacks for a class even when it is empty; "" if nothing.

        Raises:
            InvalidInput: `key` names no class.
        """
        why = self._never.get(key)
        if why is None:
            why = self._never[key] = Board(self.nodes).why_never(self.shape(key))
        return why

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
        nodes = [[node.name, len(node.slots), node.gpus] for node in self.nodes]
        return {"slots": self.slots, "slot_cores": self.slot_cores, "slot_memory": self.slot_memory, "nodes": nodes}

    @classmethod
    def from_document(cls, doc: Mapping[str, Any]) -> Layout:
        """Return as much of it as a pool's document tells."""
        nodes = doc.get("nodes") or [[doc.get("host", ""), doc.get("slots", 0), 0]]
        made, first = [], 1
        for name, count, gpus in nodes:
            made.append(Node(name, tuple(range(first, first + count)), gpus))
            first += count
        return cls(tuple(made), doc.get("slot_cores", 1), doc.get("slot_memory"))


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


def _place_in(order: Sequence[int]) -> Any:
    places = {cpu: place for place, cpu in enumerate(order)}
    return lambda cpu: (places.get(cpu, len(places)), cpu)
