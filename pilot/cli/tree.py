"""A graph as a tree on the terminal: what a run came from, and what was made of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pilot.cli import text
from pilot.cli.common import escaped
from pilot.graph import Graph, How, Link, Run

if TYPE_CHECKING:
    from rich.console import Console
    from rich.tree import Tree

DEEP = 24
"""Levels that are shown; a run beyond them says how to go on from it."""
GIVEN = 8
"""Values of one run that no run of the graph made and that are shown; the others are counted."""


@dataclass(frozen=True, slots=True)
class Around:
    """A graph's links, by the run or value they are of."""

    used: dict[str, list[Link]]
    """Run → its inputs, in their order."""
    made: dict[str, list[Link]]
    """Run → its outputs."""
    users: dict[str, list[Link]]
    """Value → its uses."""
    copies: dict[str, list[str]]
    """Run → those that took its outputs because they were cached."""

    @classmethod
    def of(cls, graph: Graph) -> Around:
        """Sort a graph's links."""
        found = cls(defaultdict(list), defaultdict(list), defaultdict(list), defaultdict(list))
        for link in graph.links:
            if link.how is How.USED:
                found.used[link.run].append(link)
                found.users[link.value].append(link)
            else:
                found.made[link.run].append(link)
        for run in graph.runs.values():
            if run.cached_from:
                found.copies[run.cached_from].append(run.id)
        return found


def shown(graph: Graph, links: Iterable[Link]) -> tuple[list[Link], int]:
    """Return those inputs of a run that are shown, and how many are not: what runs of the graph made, few others."""
    kept: list[Link] = []
    given = left = 0
    for link in links:
        if graph.origin(link.value) is None:
            given += 1
            if given > GIVEN:
                left += 1
                continue
        kept.append(link)
    return kept, left


def called(run: Run) -> str:
    """Return what people call a run, on one line."""
    return text.line(run.name, 40) or run.kind


def part(link: Link, output: str) -> str:
    """Return which part of a run's outputs a link means, as Python would write it; empty: its one result."""
    words = "" if output == "result" else output
    return words + (f"[{link.item!r}]" if link.item is not None else "")


def _of(link: Link, output: str) -> str:
    """Return ``half of`` in rich's markup; empty for all of the one result."""
    words = part(link, output)
    return f"{escaped(words)} of " if words else ""


def print_tree(out: Console, graph: Graph) -> None:
    """Print a graph: of each run that was asked for a tree upwards, then one downwards, then what is in neither."""
    around = Around.of(graph)
    starts = [start for start in graph.starts if start in graph.runs]

    def above(run: str) -> Iterator[tuple[str, str]]:
        return _above(graph, around, run)

    def below(run: str) -> Iterator[tuple[str, str]]:
        return _below(graph, around, run)

    met: set[str] = set()
    for start in starts:
        if start not in met:
            _print(out, graph, start, above, met)
    came_from, went_into = _reached(starts, above), _reached(starts, below)
    met = set(starts)
    for start in starts:
        if any(name and name not in came_from for name, _ in below(start)):
            out.print()
            _print(out, graph, start, below, met, "went into")
    rest = [run for run in graph.runs.values() if run.id not in came_from | went_into]
    if rest:
        out.print("\nbeside it")
        for run in rest:
            out.print(f"  {_line(run)}{_uses(graph, around, run)}", soft_wrap=True)


Branches = Callable[[str], Iterable[tuple[str, str]]]
"""Of a run, its branches: a run to go on to, or "" for none; and words before it."""


def _reached(starts: Iterable[str], branches: Branches) -> set[str]:
    """Return the runs to which branches lead, those where they begin included."""
    met = set(starts)
    todo = list(met)
    while todo:
        new = {name for name, _ in branches(todo.pop()) if name} - met
        met |= new
        todo += new
    return met


def _print(out: Console, graph: Graph, start: str, branches: Branches, met: set[str], title: str = "") -> None:
    """Print one tree; a run that was met before is only named."""
    from rich.tree import Tree

    run = graph.runs[start]
    root = Tree(f"{_line(run)} [dim]{title}[/]" if title else _line(run), guide_style="dim")
    met.add(start)
    todo: list[tuple[Tree, Iterator[tuple[str, str]]]] = [(root, iter(branches(start)))]
    while todo:  # by hand: a chain may be longer than Python's stack
        branch, rest = todo[-1]
        following = next(rest, None)
        if following is None:
            todo.pop()
            continue
        name, words = following
        if not name:
            branch.add(words)
        elif name in met:
            branch.add(f"{words}[cyan]{name}[/] {escaped(called(graph.runs[name]))} [dim](shown above)[/]")
        elif len(todo) == DEEP and any(True for _ in branches(name)):
            branch.add(f"{words}{_line(graph.runs[name])} [dim]… `pilot graph {name}` goes on[/]")
            met.add(name)
        else:
            met.add(name)
            todo.append((branch.add(f"{words}{_line(graph.runs[name])}"), iter(branches(name))))
    out.print(root, soft_wrap=True)


def _line(run: Run) -> str:
    return f"[bold]{run.id}[/]  {escaped(called(run))}  {text.styled(run.outcome)}"


def _above(graph: Graph, around: Around, run: str) -> Iterator[tuple[str, str]]:
    """Yield what a run came from."""
    copied = graph.runs[run].cached_from
    if copied:
        yield (copied, "cached from ← ") if copied in graph.runs else ("", f"cached from ← [cyan]{copied}[/]")
    links, left = shown(graph, around.used[run])
    for link in links:
        value = graph.values[link.value]
        label, origin = escaped(link.label), graph.origin(link.value)
        if origin is not None:
            yield origin.id, f"{label} = {escaped(text.value(value.entry, 40))} ← {_of(link, value.output)}"
        elif value.creator is not None:
            yield "", f"{label} ← {_of(link, value.output)}[cyan]{value.creator}[/]"
        else:
            yield "", f"{label} = {escaped(text.value(value.entry))}"
    if left:
        yield "", f"[dim]… {text.count(left, 'more value')} (--format json has all)[/]"


def _below(graph: Graph, around: Around, run: str) -> Iterator[tuple[str, str]]:
    """Yield what was made of a run."""
    for copy in around.copies[run]:
        yield copy, "cached → "
    seen: set[tuple[str, str]] = set()
    for made in around.made[run]:
        for link in around.users[made.value]:
            if (link.run, link.label) not in seen:
                seen.add((link.run, link.label))
                yield link.run, f"{escaped(part(link, made.label) or made.label)} → {escaped(link.label)} of "


def _uses(graph: Graph, around: Around, run: Run) -> str:
    """Say of a run that is in no tree from which others it got something."""
    origins = [origin.id for link in around.used[run.id] if (origin := graph.origin(link.value))]
    names = [f"[cyan]{name}[/]" for name in dict.fromkeys(origins)]
    return f" ← {', '.join(names[:4])}{' …' if len(names) > 4 else ''}" if names else ""
