"""Placement: which slot gets how many, and what is called back."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from pilot.board import shape_of
from pilot.placement import share, take_back
from pilot.resources import Resources

LOADS = st.dictionaries(st.integers(1, 64), st.integers(0, 40), max_size=24)


@given(LOADS, st.integers(0, 40), st.integers(0, 300))
def test_work_is_shared_levelled_and_never_above_the_target(load: dict[int, int], target: int, count: int) -> None:
    given_out = share(load, target, count)
    after = {slot: held + given_out.get(slot, 0) for slot, held in load.items()}
    assert given_out.keys() <= load.keys()
    assert all(more > 0 for more in given_out.values())
    assert all(after[slot] <= target for slot in given_out)
    room = sum(max(0, target - held) for held in load.values())
    assert sum(given_out.values()) == min(count, room)
    for slot in given_out:  # whoever got something is nowhere above the others that could take more
        for other, held in after.items():
            if held < target:
                assert after[slot] <= held + 1, f"slot {slot} has {after[slot]}, slot {other} only {held}"


@given(LOADS)
def test_sharing_nothing_gives_nothing(load: dict[int, int]) -> None:
    assert share(load, 5, 0) == {}
    assert share(load, 0, 100) == {}


def test_the_least_loaded_fill_first() -> None:
    assert share({1: 0, 2: 3, 3: 1}, 4, 2) in ({1: 2}, {1: 1, 3: 1})
    assert share({1: 0, 2: 5}, 10, 6) == {1: 6}
    assert share({1: 0, 2: 0, 3: 0}, 2, 100) == {1: 2, 2: 2, 3: 2}


@given(LOADS)
def test_idle_slots_are_fed_from_the_fullest(load: dict[int, int]) -> None:
    back = take_back(load)
    idle = sum(held == 0 for held in load.values())
    spare = sum(max(0, held - 1) for held in load.values())
    assert sum(back.values()) == min(idle, spare)
    assert all(0 < back[slot] < load[slot] for slot in back)
    after = {slot: held - back.get(slot, 0) for slot, held in load.items()}
    for slot in back:
        for other, held in after.items():
            assert held <= after[slot] + 1 or other in back or load[other] <= load[slot]
    if back:
        assert max(after.values()) <= max(after[slot] for slot in back) + 1


def test_nothing_is_taken_back_without_an_idle_slot() -> None:
    assert take_back({1: 9, 2: 1}) == {}
    assert take_back({1: 1, 2: 0}) == {}
    assert take_back({1: 2, 2: 0, 3: 0}) == {1: 1}
    assert take_back({}) == {}


def test_a_task_fits_a_slot_with_its_cores() -> None:
    assert not shape_of(Resources(2), 2, None).wide
    assert not shape_of(Resources(1, 1 << 40, 5.0), 2, None).wide
    assert shape_of(Resources(3), 2, None).wide
