"""Which slot gets how many tasks: pure arithmetic over what each slot has in hand.

One-slot tasks only so far: a class fits a slot if the slot has its cores. Tasks over several ranks or nodes
are placed here too when they come.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping

from pilot.model import Resources


def fits(resources: Resources, slot_cores: int) -> bool:
    """Say whether a task with these resources can run in one slot."""
    return resources.cores <= slot_cores


def share(load: Mapping[int, int], target: int, count: int) -> dict[int, int]:
    """Share `count` tasks among slots so that the least loaded fill first; no slot gets above `target`.

    Args:
        load: slot → tasks in hand, of the slots that take work.
        target: most that a slot should hold.
        count: how many tasks there are.

    Returns:
        slot → how many more it gets; slots that get none are left out. Differences of load above one are
        levelled before any slot gets further work.
    """
    heap = [(held, slot) for slot, held in load.items() if held < target]
    heapq.heapify(heap)
    given: dict[int, int] = {}
    while heap and count > 0:
        held, slot = heapq.heappop(heap)
        level = min(heap[0][0] + 1 if heap else target, target)
        more = min(max(1, level - held), count)
        given[slot] = given.get(slot, 0) + more
        count -= more
        if held + more < target:
            heapq.heappush(heap, (held + more, slot))
    return given


def take_back(load: Mapping[int, int]) -> dict[int, int]:
    """Say what to recall from loaded slots when others are idle and nothing else is there to give them.

    Returns:
        slot → how many to recall, latest first; together as many as there are idle slots, from the fullest
        slots first, and never a slot's only task.
    """
    idle = sum(1 for held in load.values() if held == 0)
    wanted: dict[int, int] = {}
    heap = [(-held, slot) for slot, held in load.items() if held > 1]
    heapq.heapify(heap)
    while heap and idle > 0:
        held, slot = heapq.heappop(heap)
        wanted[slot] = wanted.get(slot, 0) + 1
        idle -= 1
        if -held - 1 > 1:
            heapq.heappush(heap, (held + 1, slot))
    return wanted
