"""What a pool consists of, what is noted of its MPI functions, and what a site's nodes are too small for. No pool."""

from __future__ import annotations

from pathlib import Path

import pytest

from pilot import suspects
from pilot.board import Spot
from pilot.layout import Layout, Seen, layout_of
from pilot.model import machine_of, pretended_node
from pilot.offers import over
from pilot.resources import Resources
from pilot.site_files import load_site

GIB = 1 << 30


def four(cpus: int, hosts: int = 1) -> Layout:
    slots = {
        rank: Seen(pretended_node("m", (rank - 1) * hosts // 4), tuple(range(cpus)), 8 * GIB) for rank in range(1, 5)
    }
    return layout_of(slots, 1, ("a", "b"), cpu_order=(1, 0))


def test_slots_have_cpus_of_their_own_if_there_are_enough() -> None:
    assert four(4).cpus == {1: (1,), 2: (0,), 3: (2,), 4: (3,)}
    assert four(4, hosts=2).cpus == four(4).cpus  # pretended nodes share their machine
    assert four(3).cpus == {}
    assert machine_of(pretended_node("m", 1)) == machine_of("m") == "m"


def test_nodes_and_memory() -> None:
    layout = four(4, hosts=2)
    assert [(node.name, node.slots, node.gpus) for node in layout.nodes] == [("m~0", (1, 2), 2), ("m~1", (3, 4), 2)]
    assert layout.slot_memory == 2 * GIB
    assert layout.shape("c1m3221225472").slots_per_rank == 2  # 3 GiB take two slots
    assert layout.concurrency(layout.shape("c1r2")) == 2
    assert Layout.from_document(layout.document()).why_never("c1r5") == layout.why_never("c1r5") != ""


def test_a_placement_names_what_a_task_gets() -> None:
    place = four(4, hosts=2).placement((Spot(0, (1, 2), (1,)), Spot(1, (3,), ())))
    assert [(rank.host, rank.slots, rank.cpus, rank.gpus) for rank in place.ranks] == [
        ("m~0", (1, 2), (1, 0), ("b",)), ("m~1", (3,), (2,), ())
    ]  # fmt: skip
    assert place.slots == (1, 2, 3)
    assert place.hosts == ("m~0", "m~1")


def test_what_was_in_the_ranks(tmp_path: Path) -> None:
    path = tmp_path / "pool-1.ranks"
    assert suspects.read(path) == set()
    journal = suspects.Journal(path)
    journal.began(("t-0", 1))
    journal.began(("t-1", 3))
    journal.ended(("t-0", 1))
    journal.ended(("t-9", 1))  # a program: it was never in the ranks
    journal.began(("t-2", 1))
    journal.close()
    with path.open("a") as file:
        file.write("+t-3:")  # cut short by a crash
    assert suspects.read(path) == {("t-1", 3), ("t-2", 1)}


@pytest.mark.parametrize(
    ("needs", "words"),
    [
        (Resources(gpus=1), "gpus 1: site 'local' has none"),
        (Resources(memory_bytes=1 << 60), "a node of site 'local' has"),
        (Resources(ranks=4, layout="near", memory_bytes=1 << 58), "on each of 4 ranks of a node"),
        (Resources(ranks=1000), ""),
        (Resources(cores=1000), ""),  # a local pilot may have more slots than there are CPUs
    ],
    ids=str,
)
def test_what_a_node_is_too_small_for(needs: Resources, words: str) -> None:
    limit = over(needs, load_site("local"))
    assert (words in limit) if words else limit == ""
