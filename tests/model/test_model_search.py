"""The search itself, on models small enough to check by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tests.model.search import Step, search

Edge = tuple[str, int, bool]


@dataclass(frozen=True)
class Toy:
    """A graph written out: state to (text, next state, owed); negative states break a promise."""

    edges: Mapping[int, tuple[Edge, ...]]
    good: frozenset[int]
    name: str = "toy"

    def initial(self) -> int:
        """Start at zero."""
        return 0

    def steps(self, state: int) -> Iterator[Step[int]]:
        """Follow the edges."""
        for text, after, owed in self.edges.get(state, ()):
            yield Step(text, after, owed)

    def faults(self, before: int, after: int) -> Iterator[str]:
        """Forbid negative states, and to come back from beyond ten."""
        if after < 0:
            yield "negative"
        if before > 10 >= after:
            yield "back"

    def settled(self, state: int) -> bool:
        """Tell whether the state is a good one."""
        return state in self.good

    def doom(self, state: int) -> str:
        """Name the state."""
        return f"stuck in {state}"


def test_a_model_that_keeps_its_promises_is_searched_to_the_end() -> None:
    result = search(Toy({0: (("a", 1, True), ("b", 2, True)), 1: (("c", 2, True),)}, frozenset({2})))
    assert result.complete
    assert result.states == 3
    assert not result.violations
    assert result.texts == {"a", "b", "c"}
    assert result.report() == "toy: 3 states, no violation"


def test_the_shortest_trace_is_shown() -> None:
    edges = {0: (("long", 1, True), ("short", 2, True)), 1: (("way", 2, True),), 2: (("fall", -1, True),)}
    result = search(Toy(edges, frozenset({-1})))
    assert result.violations == {"negative": ("short", "fall")}
    assert "     2. fall" in result.report()


def test_a_promise_can_be_broken_by_a_step_between_harmless_states() -> None:
    result = search(Toy({0: (("up", 11, True),), 11: (("down", 1, True),)}, frozenset({1})))
    assert result.violations == {"back": ("up", "down")}


def test_a_state_at_rest_that_is_not_settled_is_doomed() -> None:
    result = search(Toy({0: (("well", 1, True), ("badly", 2, False))}, frozenset({1})))
    assert result.violations == {"stuck in 2": ("badly",)}


def test_a_loop_that_cannot_be_left_is_doomed() -> None:
    loop = {0: (("in", 1, True),), 1: (("round", 2, True),), 2: (("round", 1, True),)}
    assert search(Toy(loop, frozenset())).violations == {"stuck in 0": ()}
    with_exit = loop | {2: (("round", 1, True), ("out", 3, True))}
    assert not search(Toy(with_exit, frozenset({3}))).violations


def test_nothing_may_rely_on_a_step_that_nobody_owes() -> None:
    result = search(Toy({0: (("a person helps", 1, False),)}, frozenset({1})))
    assert result.violations == {"stuck in 0": ()}


def test_a_search_that_is_cut_short_says_so_and_claims_nothing_about_doom() -> None:
    endless = Toy({n: (("on", n + 1, True),) for n in range(10)}, frozenset())
    result = search(endless, limit=5)
    assert not result.complete
    assert not result.violations
    assert "cut short" in result.report()


def test_a_search_can_stop_at_the_first_break() -> None:
    edges = {0: (("fall", -1, True),)} | {n: (("on", n - 1, True),) for n in range(-9, 0)}
    result = search(Toy(edges, frozenset()), stop_at="negative")
    assert result.violations == {"negative": ("fall",)}
    assert result.states == 2


def test_a_search_can_stop_at_the_first_doomed_state_at_rest() -> None:
    edges = {0: (("badly", 1, True), ("on", 2, True))} | {n: (("on", n + 1, True),) for n in range(2, 10)}
    result = search(Toy(edges, frozenset({10})), stop_at="stuck in 1")
    assert result.violations == {"stuck in 1": ("badly",)}
    assert not result.complete
