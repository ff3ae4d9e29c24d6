"""The books of a pool's wide tasks, without a pool: who waits, who begins, which slots are out of use."""

from __future__ import annotations

from typing import Any

from pilot.board import Node
from pilot.executors.run.verdict import Item
from pilot.layout import Layout
from pilot.prepare import Held
from pilot.resources import Resources
from pilot.wide import Wide

LAYOUT = Layout((Node("a", (1, 2)), Node("b", (3, 4))), 1)
PAIR = Resources(ranks=2, walltime_s=60.0)


def held(name: str, needs: Resources = PAIR, program: bool = False, **fields: Any) -> Held:
    """Return a leased task."""
    task = {"_id": name, "class": needs.key, "priority": 0, "seq": 0, **fields}
    return Held(task, Item(name, 1, None, needs.walltime_s, False, b""), (), {}, program)


def begun(wide: Wide, now: float = 0.0) -> dict[str, list[int]]:
    """Return what begins now, and on which slots."""
    return {one.held.item.task: [slot for spot in one.spots for slot in spot.slots] for one in wide.start(now, ())}


def test_slots_that_were_lost_before_are_not_used() -> None:
    wide = Wide(LAYOUT, lost=[1])
    wide.add([held("t")])
    assert begun(wide) == {"t": [3, 4]}
    wide.add([held("u")])
    assert begun(wide) == {}
    assert wide.starved() == ""
    wide.lose(4)
    assert "slots are out of use" not in wide.starved()  # one on each node will do
    wide.lose(3)
    assert "3 slots are out of use" in wide.starved()
    wide.regain(1)
    assert begun(wide) == {"u": [1, 2]}


def test_what_would_outlive_its_pilot_is_not_begun() -> None:
    wide = Wide(LAYOUT, end_at=100.0)
    wide.add([held("short", Resources(ranks=2, walltime_s=10.0)), held("long"), held("longer")])
    assert wide.late(30.0) == []
    assert sorted(wide.late(50.0)) == [("long", 1), ("longer", 1)]
    assert wide.waiting == 1
    assert list(begun(wide, 50.0)) == ["short"]


def test_no_more_programs_than_the_site_allows() -> None:
    wide = Wide(LAYOUT, steps_max=1, one_node_steps=True)
    wide.add([held("p", program=True), held("q", program=True)])
    assert list(begun(wide)) == ["p"]
    wide.add([held("f")])
    assert list(begun(wide)) == ["f"]
    assert wide.ended(("f", 1), 1.0)
    assert begun(wide) == {}
    assert wide.ended(("p", 1), 1.0)
    assert list(begun(wide)) == ["q"]
    assert not wide.ended(("p", 1), 1.0)  # once


def test_programs_on_one_node_need_no_step_where_the_site_says_so() -> None:
    wide = Wide(LAYOUT, steps_max=1)
    wide.add([held(name, Resources(ranks=2, ranks_per_node=1), program=True) for name in ("apart", "later")])
    assert begun(wide) == {"apart": [1, 3]}
    assert wide.stats(0.0)["stepless"] == ["later"]
    wide.add([held("together", program=True)])
    assert begun(wide) == {}  # there is a slot on each node, and no step
    assert wide.ended(("apart", 1), 1.0)
    assert wide.stats(0.0)["stepless"] == []
    assert begun(wide) == {"later": [1, 3]}
    assert wide.ended(("later", 1), 1.0)
    assert begun(wide) == {"together": [1, 2]}


def test_programs_that_take_no_step_are_not_counted() -> None:
    wide = Wide(LAYOUT, steps_max=1)
    wide.add([held(name, program=True) for name in ("p", "q")])
    assert {**begun(wide), **begun(wide)} == {"p": [1, 2], "q": [3, 4]}


def test_two_classes_share_the_steps_and_leave_the_room_to_others() -> None:
    wide = Wide(LAYOUT, steps_max=1, one_node_steps=True)
    wide.add([held("p", program=True), held("q", Resources(ranks=2, walltime_s=9.0), program=True), held("f", seq=1)])
    assert list(begun(wide)) == ["p"]
    assert list(begun(wide)) == ["f"]  # not what the limit holds up


def test_nothing_is_planned_again_where_steps_are_not_limited() -> None:
    wide = Wide(LAYOUT)
    wide.add([held("p", program=True)])
    assert list(begun(wide)) == ["p"]
    assert not wide._changed
