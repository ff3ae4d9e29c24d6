"""Graphs as trees, as text for Mermaid and Graphviz, and as pictures."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pilot.cli import diagram
from pilot.cli.tree import DEEP, GIVEN, print_tree
from pilot.errors import DrawingError
from pilot.graph import Document, Graph, graph_of
from tests.conftest import need
from tests.test_lineage import record

ODD = 'a"b\\N <i>&amp;</i> #1; `x` [bold]red[/] |end| {}\n%% é ü'


def nothing(name: str) -> bytes:
    raise AssertionError(f"no list of these is an object, but {name} was read")


def graph(*documents: Document, start: str) -> Graph:
    return graph_of(documents, nothing, starts=(start,))


def given(count: int, name: str = "given") -> dict[str, Any]:
    """Return a record that was given so many values."""
    doc = record(name)
    doc["inputs"] = [{"name": f"x{n}", "hash": f"{n + 100:064x}", "size": 2, "value": n} for n in range(count)]
    return doc


def tree(found: Graph) -> list[str]:
    out = StringIO()
    print_tree(Console(file=out, width=300, highlight=False, no_color=True), found)
    return [line.rstrip() for line in out.getvalue().splitlines()]


# -- trees ----------------------------------------------------------------------------------------


def test_a_run_that_is_met_twice_is_shown_once() -> None:
    found = graph(record("d", "b:1", "c:1"), record("b", "a:1"), record("c", "a:1"), record("a"), start="d:1")
    assert tree(found) == [
        "d:1  d  succeeded",
        "├── x = 1",
        "├── y[0] = 1 ← b:1  b  succeeded",
        "│   ├── x = 1",
        "│   └── y[0] = 1 ← a:1  a  succeeded",
        "│       └── x = 1",
        "└── y[1] = 1 ← c:1  c  succeeded",
        "    ├── x = 1",
        "    └── y[0] = 1 ← a:1 a (shown above)",
    ]


def test_what_was_made_of_it_is_a_tree_of_its_own() -> None:
    found = graph(record("a"), record("b", "a:1"), record("c", "a:1", "b:1"), start="a:1")
    assert tree(found)[2:] == [
        "",
        "a:1  a  succeeded went into",
        "├── result → y[0] of b:1  b  succeeded",
        "│   └── result → y[1] of c:1  c  succeeded",
        "└── result → y[0] of c:1 c (shown above)",
    ]


def test_a_cached_run_says_where_it_was_taken_from() -> None:
    copy = record("k", "a:1", outcome="cached") | {"cached_from": "b:1"}
    up = tree(graph(copy, record("b", "a:1"), record("a"), start="k:1"))
    assert up[:3] == ["k:1  k  cached", "├── cached from ← b:1  b  succeeded", "│   ├── x = 1"]
    assert "└── y[0] = 1 ← a:1 a (shown above)" in up
    assert tree(graph(copy, start="k:1"))[1] == "├── cached from ← b:1"
    assert "└── cached → k:1  k  cached" in tree(graph(record("b", "a:1"), copy, start="b:1"))


def test_what_is_in_no_tree_stands_beside() -> None:
    found = graph(record("b", "a:1"), record("a"), record("c", "a:1"), start="b:1")
    assert tree(found)[-2:] == ["beside it", "  c:1  c  succeeded ← a:1"]


def test_a_chain_as_long_as_you_like() -> None:
    chain = [record(f"t{n}", f"t{n - 1}:1") for n in range(3000, 0, -1)]
    lines = tree(graph(*chain, record("t0"), start="t3000:1"))
    assert len(lines) == 2 * DEEP + 1
    assert lines[-1].endswith(f"t{3000 - DEEP}:1  t{3000 - DEEP}  succeeded … `pilot graph t{3000 - DEEP}:1` goes on")


def test_many_values_are_counted() -> None:
    lines = tree(graph(given(GIVEN + 5), start="given:1"))
    assert len(lines) == GIVEN + 2
    assert "… 5 more values" in lines[-1]
    nodes, _ = diagram.drawn(graph(given(GIVEN + 5), start="given:1"))
    assert ("… 5 more values",) in [node.lines for node in nodes]
    assert len(nodes) == 1 + 1 + GIVEN + 1  # run, result, values, the others


def test_names_are_no_markup() -> None:
    doc = record("a")
    doc["name"] = ODD
    doc["inputs"][0] |= {"name": "[red]x", "value": "[/]"}
    lines = tree(graph(doc, start="a:1"))
    assert "[bold]red[/]" in lines[0]
    assert lines[1] == "└── [red]x = '[/]'"


# -- text -----------------------------------------------------------------------------------------


def odd() -> Graph:
    doc = record("a") | {"name": ODD[:30]}
    doc["inputs"] = [{"name": ODD, "hash": "2" * 64, "size": 9, "value": ODD}]
    copy = record("k", "a:1", outcome="cached") | {"cached_from": "a:1", "name": ODD[25:]}
    return graph(doc, copy, start="k:1")


def test_mermaid_sees_only_what_cannot_mean_anything() -> None:
    text = diagram.mermaid(odd())
    lines = text.splitlines()
    assert lines[0] == "flowchart TD"
    node = re.compile(
        r'  [rv]\d+(\["[^"\n\[\]{}`|&\\<>]*(<br>[^"\n\[\]{}`|&\\<>]*)*"\]:::\w+|\(\["[^"\n{}`|&\\]*"\]\))'
    )
    arrow = re.compile(r'  [rv]\d+ (-->|-\.->)(\|"[^"\n\[\]{}`|&\\<>]*"\|)? [rv]\d+')
    style = re.compile(r"  classDef \w+ fill:#\w{6},stroke:#555,color:#000")
    assert [line for line in lines[1:] if not any(one.fullmatch(line) for one in (node, arrow, style))] == []
    assert "é ü" in text
    assert '  r0 -.->|"cached"| r1' in lines


def test_dot_escapes_what_it_would_read() -> None:
    label = diagram._dot(ODD)
    assert label == 'a\\"b\\\\N <i>&amp;amp;</i> #1; `x` [bold]red[/] |end| {} %% é ü'
    assert 'r0 -> r1 [label="cached", style=dashed];' in diagram.dot(odd())


# -- pictures -------------------------------------------------------------------------------------


def test_graphviz_draws_the_odd_names_as_they_are() -> None:
    need("dot")
    root = ET.fromstring(diagram.picture(odd(), "svg"))
    words = {"".join(one.itertext()) for one in root.iter("{http://www.w3.org/2000/svg}text")}
    assert " ".join(ODD.split()).replace("  ", " ") in {word.replace("\xa0", " ") for word in words}
    assert "k:1" in words
    assert diagram.picture(odd(), "png").startswith(b"\x89PNG")


def test_without_graphviz_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DrawingError, match=r"cannot draw svg: there is no program `dot`.*install Graphviz.*mermaid"):
        diagram.picture(odd(), "svg")


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("exec sleep 30", r"took more than 0 s for 2 records; draw less .*--up, --down or --limit"),
        ("echo cannot do that >&2; exit 3", r"`dot` said 'cannot do that'"),
        ("exit 3", r"`dot` said 'exit code 3'"),
    ],
)
def test_graphviz_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, does: str, said: str) -> None:
    program = tmp_path / "dot"
    program.write_text(f"#!/bin/sh\n{does}\n")
    program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(diagram, "DRAW_S", 0.3)
    with pytest.raises(DrawingError, match=said):
        diagram.picture(odd(), "svg")
