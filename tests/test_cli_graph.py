"""`project.graph`, `pilot graph` and the origins in `pilot show`, of tasks that have really run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import pilot
from pilot.errors import RecordNotFound
from pilot.graph import How
from tests.cli_rig import Call
from tests.conftest import need

TEXT = "a text that is long enough to tell"


class Family(NamedTuple):
    """Futures of tasks that have ended."""

    split: pilot.Future
    flaky: pilot.Future
    """It used an item of what `split` made, and needed two attempts."""
    total: pilot.Future
    shell: pilot.Future
    again: pilot.Future
    """It was given what `shell` made as a plain value."""


@pytest.fixture
def family(project: pilot.Project) -> Family:
    @pilot.task(name="split")
    def split(x: float) -> dict[str, float]:
        return {"half": x / 2, "double": 2 * x}

    @pilot.task(name="flaky", retries=1)
    def flaky(x: float) -> float:
        if pilot.current().attempt == 1:
            raise ValueError("not yet")
        return x

    @pilot.task(name="total")
    def total(parts: Any, label: str) -> Any:
        return sum(parts)

    @pilot.task(name="again")
    def again(text: bytes) -> int:
        return len(text)

    first = split.submit(10)
    second = flaky.submit(first["half"])
    third = total.submit([second, first["double"], 1], label="[b]x[/b]")
    shell = pilot.command(["sh", "-c", f"echo {TEXT} > a; echo b > b"], outputs={"left": "a", "right": "b"}).submit()
    given = shell.result(timeout=60)["left"]
    made = Family(first, second, third, shell, again.submit(given))
    assert third.result(timeout=60) == 26
    assert made.again.result(timeout=60) == len(TEXT) + 1
    return made


def test_python(project: pilot.Project, family: Family) -> None:
    first, second, third = f"{family.split.id}:1", f"{family.flaky.id}:2", f"{family.total.id}:1"
    found = project.graph(family.total)
    assert set(found.runs) == {first, second, third}
    assert found.starts == (third,)
    used = {(link.label, link.value, link.item) for link in found.links if link.how is How.USED and link.run == third}
    assert {
        ("parts[0]", f"{second}/result", None), ("parts[1]", f"{first}/result", "double"),
    } < used  # fmt: skip
    assert set(project.graph(family.flaky, attempts=True).runs) == {first, second, f"{family.flaky.id}:1"}
    assert set(project.graph(family.split, 0, None).runs) == {first, second, third}
    assert set(project.graph(family.split["half"], 0, 1).runs) == {first, second}
    assert set(project.graph(family.split["double"], 0, 1).runs) == {first, third}
    assert set(project.graph(family.shell["left"]).runs) == {f"{family.shell.id}:1"}
    same = project.graph(found.values[f"{first}/result"].hash)
    assert {first, second, third} <= set(same.runs)
    with pytest.raises(RecordNotFound, match="no output 'middle'"):
        project.graph(family.split["middle"])


def test_tree(family: Family, call: Call) -> None:
    lines = call("graph", family.total.id).out.splitlines()
    assert lines[0] == f"{family.total.id}:1  total  succeeded"
    assert f"├── parts[0] = 5.0 ← {family.flaky.id}:2  flaky  succeeded" in lines
    assert f"│   └── x = {{'double': 20, 'half': 5.0}} ← ['half'] of {family.split.id}:1  split  succeeded" in lines
    assert any(line.endswith(f"← ['double'] of {family.split.id}:1 split (shown above)") for line in lines)
    assert "└── label = '[b]x[/b]'" in lines
    down = call("graph", family.split.id, "--down", "all", "--up", "0").out
    assert f"['half'] → x of {family.flaky.id}:2  flaky" in down
    assert f"{family.flaky.id}:1" not in down
    assert f"{family.flaky.id}:1  flaky  failed" in call("graph", family.flaky.id, "--attempts").out


def test_formats(family: Family, call: Call, tmp_path: Path) -> None:
    document = call("graph", family.total.id, "--json").json
    assert document["starts"] == [f"{family.total.id}:1"]
    assert len(document["runs"]) == 3
    for name in ("g.json", "g.mmd", "g.dot", "g.txt"):
        assert call("graph", family.total.id, "-o", str(tmp_path / name)).code == 0
    assert json.loads((tmp_path / "g.json").read_text()) == document
    assert (tmp_path / "g.mmd").read_text() == call("graph", family.total.id, "--format", "mermaid").out
    assert (tmp_path / "g.dot").read_text().startswith("digraph")
    assert (tmp_path / "g.txt").read_text() == call("graph", family.total.id).out
    need("dot")
    assert "<svg" in call("graph", family.total.id, "--format", "svg").out
    assert call("graph", family.total.id, "-o", str(tmp_path / "g.png")).code == 0
    assert (tmp_path / "g.png").read_bytes().startswith(b"\x89PNG")


def test_a_graph_that_is_too_large_says_how_to_narrow_it(family: Family, call: Call) -> None:
    said = call("graph", family.total.id, "--limit", "2", "--json")
    assert (len(said.json["runs"]), said.json["cut"]) == (2, "limit")
    assert "more than 2 records" in said.err
    assert "fewer with --up and --down, or more with --limit" in said.err


def test_every_input_says_where_it_came_from(family: Family, call: Call) -> None:
    shown = call("show", family.total.id).out
    assert f"← {family.flaky.id}:2 flaky" in shown
    assert f"← {family.split.id}:1 split['double']" in shown
    assert "given" in next(line for line in shown.splitlines() if line.startswith("  label"))
    for more in ([], ["--all"]):
        (line,) = [line for line in call("show", family.again.id, *more).out.splitlines() if line.startswith("  text")]
        assert "given, same content as" in line
        assert line.split()[-2] == "left"  # whichever run of this test made it first


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["nothing"], 1, "no task 'nothing'"),
        (["ID:9"], 1, "no record of attempt 9"),
        (["ID/middle"], 1, "has no output 'middle', only ['exit_code', 'left', 'right']"),
        (["f" * 64], 1, "no record made or used"),
        (["ID", "--up", "x"], 2, "'x' is neither a number of links nor `all`"),
        (["ID", "--down", "-1"], 2, "'-1' is neither"),
        (["ID", "--limit", "0"], 2, "0 is not in the range"),
        (["ID", "--format", "png"], 2, "name a file with -o"),
        (["ID", "--format", "gif"], 2, "'gif' is not one of"),
        (["ID", "--format", "dot", "--json"], 2, "not both"),
        (["ID", "-o", "/nowhere/g.dot"], 1, "cannot write the graph to '/nowhere/g.dot': No such file"),
    ],
)
def test_bad_input(family: Family, call: Call, argv: list[str], code: int, said: str) -> None:
    found = call("graph", *[word.replace("ID", family.shell.id) for word in argv])
    assert found.code == code
    assert said in found.err
    assert found.out == ""
