"""Explicit-state search: every state a small model can reach, and the shortest way into trouble.

A model says where it starts, which steps are possible from a state, which single steps break a
promise (safety), and in which states everything has been seen to (settled). The search walks all
reachable states breadth first, so the first trace that breaks a promise is a shortest one.

Promises of the kind "sooner or later" are checked on the whole graph. A step is *owed* if some
living actor takes it in the end, as long as it stays possible: a sweep runs, a pool finishes its
task. A crash, a network error or a person's wish is not owed. A state from which no path of owed
steps leads to a settled state is *doomed*: nothing but luck can repair it. Most often it is at rest:
nobody owes a step any more, so the search sees its doom as soon as it gets there.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, Protocol, TypeVar

S = TypeVar("S", bound=Hashable)


class Step(NamedTuple, Generic[S]):
    """One atomic step of one actor: what a log would say, and the state after it."""

    text: str
    state: S
    owed: bool = True


class Model(Protocol[S]):
    """A protocol small enough to be searched."""

    @property
    def name(self) -> str:
        """Name the model and the scenario, for reports."""
        ...

    def initial(self) -> S:
        """Return the one state in which everything starts."""
        ...

    def steps(self, state: S, /) -> Iterable[Step[S]]:
        """Yield every step that is possible in `state`; each is atomic."""
        ...

    def faults(self, before: S, after: S, /) -> Iterable[str]:
        """Yield the name of each promise that the step from `before` to `after` breaks."""
        ...

    def settled(self, state: S, /) -> bool:
        """Tell whether nothing remains to be done in `state` and all of it is right."""
        ...

    def doom(self, state: S, /) -> str:
        """Name the promise broken by a state that can never settle."""
        ...


@dataclass(frozen=True)
class Result:
    """What a search has found; `violations` maps a broken promise to a shortest trace."""

    name: str
    states: int
    complete: bool
    violations: Mapping[str, tuple[str, ...]]
    texts: frozenset[str]

    def report(self) -> str:
        """Return the result as text: a line for the model, then each trace, numbered."""
        verdict = "no violation" if not self.violations else f"{len(self.violations)} broken"
        cut = "" if self.complete else ", cut short"
        lines = [f"{self.name}: {self.states} states{cut}, {verdict}"]
        for broken, trace in self.violations.items():
            lines.append(f"  broken: {broken}")
            lines += [f"    {number:2}. {text}" for number, text in enumerate(trace, start=1)]
        return "\n".join(lines)


@dataclass
class _Graph(Generic[S]):
    """The states found so far, in breadth-first order, and how each was first reached."""

    states: list[S] = field(default_factory=list)
    number: dict[S, int] = field(default_factory=dict)
    came_from: list[tuple[int, str]] = field(default_factory=list)
    owed_into: list[list[int]] = field(default_factory=list)
    texts: set[str] = field(default_factory=set)

    def add(self, state: S, origin: int, text: str) -> int:
        known = self.number.get(state)
        if known is not None:
            return known
        self.number[state] = len(self.states)
        self.states.append(state)
        self.came_from.append((origin, text))
        self.owed_into.append([])
        return len(self.states) - 1

    def trace(self, number: int) -> tuple[str, ...]:
        texts = []
        while number > 0:
            number, text = self.came_from[number]
            texts.append(text)
        return tuple(reversed(texts))


def search(model: Model[S], limit: int = 500_000, stop_at: str | None = None) -> Result:
    """Search all states of `model` and return what is broken, each with a shortest trace.

    The search is cut short after `limit` states, or once the promise `stop_at` is broken. A loop
    that is never left is looked for only in a complete graph.
    """
    graph: _Graph[S] = _Graph()
    graph.add(model.initial(), -1, "")
    violations: dict[str, tuple[str, ...]] = {}
    explored = 0
    # The list grows while it is walked: it is the queue of the breadth-first search.
    for here, state in enumerate(graph.states):
        if len(graph.states) > limit or stop_at in violations:
            break
        explored += 1
        at_rest = True
        for step in model.steps(state):
            graph.texts.add(step.text)
            there = graph.add(step.state, here, step.text)
            if step.owed:
                at_rest = False
                graph.owed_into[there].append(here)
            for broken in model.faults(state, step.state):
                if broken not in violations:
                    violations[broken] = (*graph.trace(here), step.text)
        if at_rest and not model.settled(state):
            violations.setdefault(model.doom(state), graph.trace(here))
    complete = explored == len(graph.states)
    if complete and not violations:
        violations = _caught(model, graph)
    return Result(model.name, len(graph.states), complete, violations, frozenset(graph.texts))


def _caught(model: Model[S], graph: _Graph[S]) -> dict[str, tuple[str, ...]]:
    """Return the trace into the first state from which no owed steps lead to a settled state."""
    safe = [model.settled(state) for state in graph.states]
    queue = [number for number, good in enumerate(safe) if good]
    for number in queue:
        for origin in graph.owed_into[number]:
            if not safe[origin]:
                safe[origin] = True
                queue.append(origin)
    if all(safe):
        return {}
    doomed = safe.index(False)
    return {model.doom(graph.states[doomed]): graph.trace(doomed)}
