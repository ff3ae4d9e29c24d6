"""A graph as text in Mermaid's and in Graphviz's language, and as a picture that Graphviz draws.

Runs are boxes in the colour of their outcome, values are rounded. What a run was given beside the results of others
is left out beyond a few values, as in the tree.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import NamedTuple

from pilot.cli import text
from pilot.cli.tree import Around, called, part, shown
from pilot.errors import DrawingError
from pilot.graph import Graph, Value

MERMAID_LINKS = 500
"""Mermaid draws no more unless it is told to (its `maxEdges`)."""
DRAW_S = 60.0
_VALUE = 32
_COLOURS = {
    "succeeded": "#d8f0d8",
    "cached": "#d8ecf0",
    "failed": "#f6d5d5",
    "timeout": "#f6d5d5",
    "crashed": "#f6d5d5",
}
_OTHER = "#e8e8e8"


class Node(NamedTuple):
    """One box."""

    id: str
    lines: tuple[str, ...]
    outcome: str = ""
    """Of a run; empty: a value."""


class Arrow(NamedTuple):
    """From one box to another."""

    tail: str
    head: str
    label: str
    copied: bool = False


def drawn(graph: Graph) -> tuple[list[Node], list[Arrow]]:
    """Return what is drawn of a graph: every run, the values between them, and few of those they were given."""
    around = Around.of(graph)
    names = {run: f"r{number}" for number, run in enumerate(graph.runs)}
    names |= {value: f"v{number}" for number, value in enumerate(graph.values)}
    nodes = [Node(names[run.id], (called(run), run.id), run.outcome) for run in graph.runs.values()]
    values: dict[str, Node] = {}
    arrows: list[Arrow] = []

    def box(value: str) -> str:
        values.setdefault(value, Node(names[value], tuple(_words(graph.values[value]))))
        return names[value]

    for run in graph.runs:
        kept, left = shown(graph, around.used[run])
        for link in kept:
            item = part(link, "result")  # its output is told by the arrow that leads to the value
            arrows.append(Arrow(box(link.value), names[run], f"{link.label} {item}".strip()))
        if left:
            nodes.append(Node(f"{names[run]}_more", (f"… {text.count(left, 'more value')}",)))
            arrows.append(Arrow(nodes[-1].id, names[run], ""))
        arrows += [Arrow(names[run], box(link.value), link.label) for link in around.made[run]]
        arrows += [Arrow(names[run], names[copy], "cached", True) for copy in around.copies[run]]
    return nodes + list(values.values()), arrows


def _words(value: Value) -> Iterator[str]:
    if "value" in value.entry or "data" in value.entry:
        yield text.value(value.entry, _VALUE)
    else:
        yield text.size(value.size)
    yield value.hash[:10]


# -- Mermaid --------------------------------------------------------------------------------------


def mermaid(graph: Graph) -> str:
    """Return a graph as a flowchart of Mermaid (https://mermaid.js.org/syntax/flowchart.html)."""
    nodes, arrows = drawn(graph)
    lines = ["flowchart TD"]
    for node in nodes:
        label = "<br>".join(map(_mermaid, node.lines))
        lines.append(f'  {node.id}["{label}"]:::{node.outcome}' if node.outcome else f'  {node.id}(["{label}"])')
    for arrow in arrows:
        shaft = "-.->" if arrow.copied else "-->"
        label = f'|"{_mermaid(arrow.label)}"|' if arrow.label else ""
        lines.append(f"  {arrow.tail} {shaft}{label} {arrow.head}")
    for outcome in sorted({node.outcome for node in nodes} - {""}):
        lines.append(f"  classDef {outcome} fill:{_COLOURS.get(outcome, _OTHER)},stroke:#555,color:#000")
    return "\n".join(lines) + "\n"


def _mermaid(words: str) -> str:
    """Write every character that could mean something to Mermaid, or to the HTML it makes, by its number."""
    return "".join(c if c.isalnum() or c in " .,:=+-_/()'…" else f"#{ord(c)};" for c in words)


# -- Graphviz -------------------------------------------------------------------------------------


def dot(graph: Graph) -> str:
    """Return a graph in the language of Graphviz (https://graphviz.org/doc/info/lang.html)."""
    nodes, arrows = drawn(graph)
    lines = [
        "digraph pilot {", '  node [fontname="sans-serif", fontsize=10, style=filled];',
        '  edge [fontname="sans-serif", fontsize=9, color="#555555"];',
    ]  # fmt: skip
    for node in nodes:
        look = "shape=box" if node.outcome else 'shape=box, style="rounded,filled"'
        colour = _COLOURS.get(node.outcome, _OTHER) if node.outcome else "#ffffff"
        label = "\\n".join(map(_dot, node.lines))
        lines.append(f'  {node.id} [label="{label}", {look}, fillcolor="{colour}"];')
    for arrow in arrows:
        more = ", style=dashed" if arrow.copied else ""
        lines.append(f'  {arrow.tail} -> {arrow.head} [label="{_dot(arrow.label)}"{more}];')
    return "\n".join([*lines, "}"]) + "\n"


def _dot(words: str) -> str:
    """Escape a piece of a quoted label; Graphviz reads HTML's entities in it, too."""
    for bad, good in (("&", "&amp;"), ("\\", "\\\\"), ('"', '\\"')):
        words = words.replace(bad, good)
    return " ".join(words.split())


def picture(graph: Graph, form: str) -> bytes:
    """Draw a graph with Graphviz' `dot`.

    Args:
        graph: what to draw.
        form: ``svg`` or ``png``.

    Raises:
        DrawingError: `dot` is not there, refused it, or took more than a minute.
    """
    other = "`--format mermaid` and `--format dot` need no program"
    try:
        ran = subprocess.run(
            ["dot", f"-T{form}"], input=dot(graph).encode(), capture_output=True, timeout=DRAW_S, check=False
        )
    except FileNotFoundError as exc:
        raise DrawingError(
            f"cannot draw {form}: there is no program `dot` on the PATH; install Graphviz (Debian: apt-get install "
            f"graphviz, conda: graphviz), or do without: {other}"
        ) from exc
    except subprocess.TimeoutExpired as exc:
        raise DrawingError(
            f"cannot draw {form}: `dot` took more than {DRAW_S:.0f} s for {text.count(len(graph.runs), 'record')}; "
            "draw less of the graph with --up, --down or --limit"
        ) from exc
    except OSError as exc:
        raise DrawingError(f"cannot draw {form}: `dot` could not be run: {exc.strerror}; {other}") from exc
    if ran.returncode != 0 or not ran.stdout:
        said = text.line(ran.stderr.decode(errors="replace"), 300) or f"exit code {ran.returncode}"
        raise DrawingError(f"cannot draw {form}: `dot` said {said!r}; {other}")
    return ran.stdout
