"""Where there is room, and who gets it: generated pools and tasks, checked against what must always hold."""

from __future__ import annotations

import heapq
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from pilot.board import Board, Node, Shape, Spot
from pilot.fitting import GPU
from pilot.placement import Planner, Waiting

Spots = tuple[Spot, ...]


@st.composite
def pools(draw: st.DrawFn) -> list[Node]:
    """Return one to five nodes of one to eight slots, with up to three GPUs."""
    nodes, slot = [], 1
    for number in range(draw(st.integers(1, 5))):
        count = draw(st.integers(1, 8))
        nodes.append(Node(f"n{number}", tuple(range(slot, slot + count)), draw(st.integers(0, 3))))
        slot += count
    return nodes


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    """Return a request that may or may not fit."""
    ranks = draw(st.integers(1, 8))
    per_node = draw(st.none() | st.integers(1, ranks))
    nodes = None if per_node is not None else draw(st.none() | st.integers(1, ranks))
    layout = "" if per_node or nodes else draw(st.sampled_from(["", "near", "contiguous"]))
    gpus = draw(st.sampled_from([0, 0, 250, 500, GPU, 2 * GPU]))
    return Shape(ranks, draw(st.integers(1, 3)), gpus, per_node, nodes, layout, mpi=True)


def check_spots(spots: Spots, shape: Shape, board: Board) -> None:
    """Check that a placement is what the request asked for."""
    slots = [slot for spot in spots for slot in spot.slots]
    assert len(spots) == shape.ranks
    assert len(set(slots)) == len(slots)
    if shape.nodes is None:
        assert {len(spot.slots) for spot in spots} == {shape.slots_per_rank}
    else:  # the ranks share out their whole nodes
        assert min(len(spot.slots) for spot in spots) >= shape.slots_per_rank
    for spot in spots:
        assert set(spot.slots) <= set(board.nodes[spot.node].slots)
        assert len(spot.gpus) * spot.share == shape.gpus
    used = Counter(spot.node for spot in spots)
    if shape.layout == "near":
        assert len(used) == 1
    if shape.layout == "contiguous":
        assert max(used) - min(used) == len(used) - 1
    if shape.per_node is not None:
        assert sorted(used.values())[1:] == [shape.per_node] * (len(used) - 1)
        assert max(used.values()) <= shape.per_node
    if shape.nodes is not None:
        assert len(used) == shape.nodes
        assert max(used.values()) - min(used.values()) <= 1


@given(pools(), st.lists(st.tuples(shapes(), st.booleans()), max_size=20))
def test_nothing_is_given_twice_and_all_comes_back(nodes: list[Node], requests: list[tuple[Shape, bool]]) -> None:
    board, running = Board(nodes), []
    before = board.free
    for shape, stays in requests:
        spots = board.place(shape)
        if spots is None:
            continue
        check_spots(spots, shape, board)
        assert not board.why_never(shape)
        if shape.nodes is not None:  # whole nodes: whoever runs must not be on them
            taken = {spot.node for one in running for spot in one}
            assert taken.isdisjoint(spot.node for spot in spots)
        board.take(spots)
        running.append(spots)
        shares: Counter[tuple[int, int]] = Counter()
        for one in running:
            for spot in one:
                for gpu in spot.gpus:
                    shares[spot.node, gpu] += spot.share
        assert all(share <= GPU for share in shares.values())
        slots = [slot for one in running for spot in one for slot in spot.slots]
        assert len(set(slots)) == len(slots)
        if not stays:
            board.release(running.pop())
    for spots in running:
        board.release(spots)
    assert board.free == before
    assert all(board.is_free(slot) for node in nodes for slot in node.slots)


@given(pools(), shapes())
def test_an_empty_pool_runs_all_that_it_says_it_could(nodes: list[Node], shape: Shape) -> None:
    board = Board(nodes)
    assert (board.place(shape) is None) == bool(board.why_never(shape))


@given(pools(), st.lists(shapes(), min_size=1, max_size=6))
def test_nothing_feasible_waits_while_slots_idle_unless_reserved(nodes: list[Node], wanted: list[Shape]) -> None:
    planner = Planner(Board(nodes))
    waiting = [Waiting(str(k), shape, None, 0, k, 1) for k, shape in enumerate(wanted)]
    plan = planner.plan(waiting, 0.0)
    for start in plan.starts:
        planner.begin(start.spots, None)
    begun = {start.key for start in plan.starts}
    kept = plan.reserved.slots if plan.reserved else frozenset()
    free = Board(nodes)
    free.take([spot for start in plan.starts for spot in start.spots])
    for slot in kept:
        free.remove(slot)
    for item in waiting:
        reserved_for_it = plan.reserved is not None and plan.reserved.key == item.key
        gpus_reserved = plan.reserved is not None and item.shape.gpus  # a plan does not say which
        if item.key not in begun and not reserved_for_it and not gpus_reserved:
            assert free.place(item.shape) is None


def test_priority_comes_before_age() -> None:
    planner = Planner(Board([Node("n", (1, 2))]))
    pair = Shape(ranks=2, mpi=True)
    late, urgent = Waiting("late", pair, None, 0, 1, 1), Waiting("urgent", pair, None, -5, 9, 1)
    assert [start.key for start in planner.plan([late, urgent], 0.0).starts] == ["urgent"]


def test_a_short_task_fills_the_time_before_a_reservation() -> None:
    planner = Planner(Board([Node("n", (1, 2, 3, 4))]))
    planner.busy(1, 100.0)
    wide = Waiting("wide", Shape(ranks=4, mpi=True), 60.0, 0, 0, 1)
    plan = planner.plan([wide], 0.0)
    assert plan.starts == ()
    assert plan.reserved is not None
    assert (plan.reserved.slots, plan.reserved.at) == (frozenset({1, 2, 3, 4}), 100.0)
    assert planner.open_to(50.0, 0.0, [1, 2, 3, 4]) == [2, 3, 4]  # empty, and back in time
    assert planner.open_to(150.0, 0.0, [1, 2, 3, 4]) == planner.open_to(None, 0.0, [1, 2, 3, 4]) == []
    pair = Waiting("pair", Shape(ranks=2, mpi=True), 90.0, 0, 1, 1)
    assert [start.key for start in planner.plan([wide, pair], 0.0).starts] == ["pair"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.1, 20.0), min_size=200, max_size=200), st.booleans(), st.integers(2, 6))
def test_a_wide_task_begins_under_an_endless_stream(lengths: list[float], told: bool, ranks: int) -> None:
    planner = Planner(Board([Node("a", (1, 2, 3)), Node("b", (4, 5, 6))]))
    events: list[tuple[float, int]] = []
    now, started = 0.0, False
    wide = Waiting("wide", Shape(ranks=ranks, mpi=True), 5.0, 0, 0, 1)
    busy: set[int] = set()
    stream = iter(lengths)
    for length in stream:
        idle = [slot for slot in range(1, 7) if slot not in busy]
        plan = planner.plan([wide], now)
        if plan.starts:
            started = True
            break
        for slot in planner.open_to(length if told else None, now, idle):
            busy.add(slot)
            planner.busy(slot, now + length if told else None)
            heapq.heappush(events, (now + length, slot))
        now, slot = heapq.heappop(events)
        busy.discard(slot)
        planner.idle(slot)
    assert started, f"{ranks} ranks have waited for {now:.0f} s"
