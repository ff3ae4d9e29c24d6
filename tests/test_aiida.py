"""The graph of a known calculation, beside the one that AiiDA makes of it.

AiiDA's tutorial computes (x + y) · z with two calcfunctions inside a workfunction
(`aiida.workflows.arithmetic.add_multiply`, of which this is the graph). The mapping:

| AiiDA | here |
|---|---|
| CalcFunctionNode | run (a record) |
| Data | value |
| INPUT_CALC, with its label | link `used`, with its label |
| CREATE, with its label | link `made`, with its label |
| WorkFunctionNode | none yet: the record of a flow |
| INPUT_WORK | none yet: what a flow's record has as inputs |
| CALL_CALC | none yet: `called_by` of a record |
| RETURN | none yet: what a flow's record has as outputs |

Data nodes are told apart by AiiDA even if their content is the same; here a value that no run made is its content. So
x, y and z differ. aiida-core has an environment of its own, which is kept between runs of the tests.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import pilot
from pilot import functions
from pilot.graph import Graph, How

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

AIIDA = "aiida-core==2.9.*"
INSTALL_S, RUN_S = 300.0, 60.0
SCRIPT = Path(__file__).parent / "aiida_graph.py"


def aiida_python() -> Path:
    """Return the Python of an environment with aiida-core, made if it is not there yet."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hpc-pilot-tests"
    place = cache / f"aiida-2.9-python{sys.version_info[0]}.{sys.version_info[1]}"
    python, whole = place / "bin" / "python", place / "whole"
    if whole.exists():
        return python
    shutil.rmtree(place, ignore_errors=True)
    venv.create(place, with_pip=True)
    argv = [python, "-m", "pip", "install", "--quiet", "--retries", "1", "--timeout", "20", AIIDA]
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    if ran.returncode != 0:
        why = f"cannot install {AIIDA}: {ran.stderr.strip().splitlines()[-1:]}"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    whole.touch()
    return python


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what `aiida_graph.py` says."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    argv = [aiida_python(), "-P", SCRIPT, tmp_path_factory.mktemp("aiida")]
    ran = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=RUN_S, check=False)
    assert ran.returncode == 0, ran.stderr
    said: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    assert said["version"].startswith("2.9.")
    return said


# -- the graph ------------------------------------------------------------------------------------


@pytest.fixture
def ours(project: pilot.Project) -> Graph:
    """Return our graph of the same calculation."""

    def add(x: int, y: int) -> int:
        return x + y

    def multiply(x: int, y: int) -> int:
        return x * y

    total = pilot.task(name="add")(add).submit(2, 3)
    product = pilot.task(name="multiply")(multiply).submit(total, 4)
    assert product.result(timeout=60) == 20
    return project.graph(product)


Shape = tuple[Counter[Any], Counter[Any]]
"""Nodes and links, named by what they are and not by ids: graphs with the same are the same, as long as all differ."""


def shape_of_ours(graph: Graph) -> Shape:
    def run(name: str) -> tuple[str, str]:
        return "run", graph.runs[name].name

    def value(name: str) -> tuple[str, Any, Any]:
        origin = graph.origin(name)
        return "value", graph.values[name].entry["value"], origin and origin.name

    nodes = [*map(run, graph.runs), *map(value, graph.values)]
    links = [(link.how.value, link.label, run(link.run), value(link.value)) for link in graph.links]
    return Counter(nodes), Counter(links)


def shape_of_theirs(graph: dict[str, Any]) -> Shape:
    """Map AiiDA's graph onto ours, the workfunction and its links left out."""
    nodes = {node["id"]: node for node in graph["nodes"]}
    creators = {link["target"]: nodes[link["source"]]["name"] for link in graph["links"] if link["type"] == "CREATE"}

    def named(number: int) -> tuple[Any, ...]:
        node = nodes[number]
        if node["type"] == "CalcFunctionNode":
            return "run", node["name"]
        return "value", node["value"], creators.get(number)

    links = []
    for link in graph["links"]:
        source, target, label = link["source"], link["target"], link["label"]
        if link["type"] == "INPUT_CALC":
            links.append((How.USED.value, label, named(target), named(source)))
        elif link["type"] == "CREATE":
            links.append((How.MADE.value, label, named(source), named(target)))
    return Counter(named(number) for number in nodes if nodes[number]["type"] != "WorkFunctionNode"), Counter(links)


def test_the_same_nodes_and_links(ours: Graph, theirs: dict[str, Any]) -> None:
    nodes, links = shape_of_ours(ours)
    assert (nodes, links) == shape_of_theirs(theirs["graph"])
    assert set(nodes.values()) == set(links.values()) == {1}  # all differ: nothing was compared with its like
    assert (len(ours.runs), len(ours.values), len(ours.links)) == (2, 5, 6)


def test_what_is_left_over_is_the_workfunction(theirs: dict[str, Any]) -> None:
    names = {node["id"]: node.get("name", node.get("value")) for node in theirs["graph"]["nodes"]}
    (flow,) = [node["name"] for node in theirs["graph"]["nodes"] if node["type"] == "WorkFunctionNode"]
    rest = {
        (link["type"], names[link["source"]], names[link["target"]])
        for link in theirs["graph"]["links"]
        if link["type"] not in ("INPUT_CALC", "CREATE")
    }
    assert rest == {
        ("INPUT_WORK", 2, flow), ("INPUT_WORK", 3, flow), ("INPUT_WORK", 4, flow),
        ("CALL_CALC", flow, "add"), ("CALL_CALC", flow, "multiply"), ("RETURN", flow, 20),
    }  # fmt: skip


# -- sibling plugins ------------------------------------------------------------------------------

PLUGIN = """
def script(x, y):
    return x {sign} y

def compute(x, y):
    return script(x, y)
"""


def plugin(folder: Path, name: str, sign: str) -> ModuleType:
    """Import a module whose function `compute` reads as that of its siblings, and does something else."""
    (folder / f"{name}.py").write_text(PLUGIN.format(sign=sign))
    return __import__(name)


def test_aiida_takes_the_result_of_a_sibling(theirs: dict[str, Any]) -> None:
    """What is not to happen here: 3 · 4 from the cache is 7, since a hash has inputs and not the plugin."""
    found = theirs["siblings"]
    assert found["Sum"]["hash"] == found["Product"]["hash"]
    assert (found["Sum"]["result"], found["Sum"]["cached"]) == (7, False)
    assert (found["Product"]["result"], found["Product"]["cached"]) == (7, True)


def test_siblings_have_identities_of_their_own(
    project: pilot.Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    plus, times = plugin(tmp_path, "plugin_sum", "+"), plugin(tmp_path, "plugin_product", "*")
    one, other = functions.describe(plus.compute), functions.describe(times.compute)
    assert one.source == other.source
    assert one.hash != other.hash

    def made(sign: str) -> Any:
        """Return a function of one text and one name, that is sent by value and differs in what it calls."""
        inner = {"+": int.__add__, "*": int.__mul__}[sign]

        def compute(x: int, y: int) -> Any:
            return inner(x, y)

        return compute

    pairs = [(plus.compute, times.compute), (made("+"), made("*"))]
    for pair in pairs:
        futures = [pilot.task(function).submit(3, 4) for function in pair]
        assert [future.result(timeout=60) for future in futures] == [7, 12]
        first, second = (future.record() or {} for future in futures)
        assert first["function"] != second["function"]
        assert [entry["hash"] for entry in first["inputs"]] == [entry["hash"] for entry in second["inputs"]]
