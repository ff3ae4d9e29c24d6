"""`project.find`, `pilot find` and `pilot index` on records of tasks that have run."""

from __future__ import annotations

import json
from typing import Any

import pytest

import pilot
from pilot.cli.app import run
from pilot.errors import ExpressionError
from pilot.model import new_token
from tests.cli_rig import Call, Said
from tests.rig import Rig


@pytest.fixture
def call(rig: Rig, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]) -> Call:
    """Run a command of the command line in this process, in the project."""
    monkeypatch.chdir(rig.config.root)
    monkeypatch.setenv("COLUMNS", "200")

    def command(*argv: object) -> Said:
        code = run([str(word) for word in argv])
        out, err = capsysbinary.readouterr()
        return Said(code, out.decode(), err.decode())

    return command


@pytest.fixture
def family(project: pilot.Project) -> dict[str, str]:
    """Run a small calculation; return the ids of its tasks."""
    import numpy

    def energy(a: float) -> dict[str, Any]:
        return {"energy": numpy.float64((a - 3.5) ** 2 - 4), "a": a}

    def best(points: list[dict[str, Any]]) -> dict[str, Any]:
        return min(points, key=lambda point: point["energy"])

    def bad(what: str) -> None:
        raise ValueError(f"no minimum for {what}")

    tag = f"find-{new_token()}"
    points = pilot.task(tags=[tag])(energy).map([3.0, 3.5, 4.0])
    lowest = pilot.task(best).submit(points)
    failing = pilot.task(bad).submit("Cu")
    assert lowest.result(timeout=60)["energy"] == -4
    with pytest.raises(pilot.TaskFailed):
        failing.result(timeout=60)
    return {
        "low": points[0].id,
        "middle": points[1].id,
        "high": points[2].id,
        "best": lowest.id,
        "bad": failing.id,
        "tag": tag,
    }


def lines(said: Said) -> list[dict[str, Any]]:
    assert said.code == 0, said
    return [json.loads(line) for line in said.out.splitlines()]


def test_find_on_what_has_run(project: pilot.Project, family: dict[str, str], call: Call) -> None:
    """One after the other, so that the calculation runs once."""
    mine = f'tags == "{family["tag"]}"'
    search = project.find(f"{mine} and outputs.result.energy < -3.9", sort="outputs.result.energy")
    assert [doc["task"] for doc in search] == [family["middle"]]
    assert project.find(f"ancestor of {family['best']}").count() == 3
    rows = list(project.find(f"descends from {family['low']}", fields=["task", "outputs.result.a", "function"]))
    assert [(row["task"], row["outputs.result.a"]) for row in rows] == [(family["best"], 3.5)]
    assert rows[0]["function"].endswith("best")
    with pytest.raises(
        ExpressionError, match=r"at character 1: there is no field 'hots'; near: host.*\nhots == 1\n\^$"
    ):
        project.find("hots == 1")

    table = call("find", f"{mine} and finished > 1h")
    assert table.code == 0
    assert table.out.splitlines()[0].split() == ["task", "name", "outcome", "finished", "result"]
    assert len(table.out.splitlines()) == 4
    failed = call("find", f"task == {family['bad']}").out
    assert "failed" in failed
    assert "ValueError: no minimum for Cu" in failed
    assert "… the first 1; --limit shows more" in call("find", mine, "--limit", 1).out
    assert call("find", mine, "--count").out == "3\n"
    assert call("find", mine, "--limit", 1, "--count").out == "3\n"
    assert call("find", f"{mine} and host == nowhere").out == "no such record\n"
    assert call("find", f"{mine} and host == nowhere", "--json").out == ""

    streamed = lines(call("find", mine, "--json", "--sort", "inputs.a", "--fields", "inputs.a, finished"))
    assert [row["inputs.a"] for row in streamed] == [3.0, 3.5, 4.0]
    assert streamed[0]["finished"].endswith("Z")
    whole = lines(call("find", mine, "--json"))
    assert {doc["_id"] for doc in whole} == {f"{family[name]}:1" for name in ("low", "middle", "high")}
    assert all(doc["outputs"] and doc["chain"] for doc in whole)
    raw = lines(call("find", "--raw", json.dumps({"task": family["best"]}), "--json"))
    assert [doc["task"] for doc in raw] == [family["best"]]
    cells = call("find", mine, "--sort", "inputs.a", "--fields", "task,tags,outputs.result,exit_code").out.splitlines()
    assert cells[0].split() == ["task", "tags", "outputs.result", "exit_code"]
    assert cells[1].split()[:3] == [family["low"], family["tag"], "{'a':"]


def test_indexes_on_the_command_line(rig: Rig, call: Call) -> None:
    before = {one["index"] for one in call("index", "list", "--json").json}
    assert call("index", "add", "outputs.result.energy").code == 0
    assert call("index", "add", "outputs.result.energy").code == 0
    assert {one["index"] for one in call("index", "list", "--json").json} == before | {"outputs.result.energy"}
    assert "outputs.result.energy" in call("index", "list").out
    assert call("index", "drop", "outputs.result.energy").code == 0
    gone = call("index", "drop", "outputs.result.energy")
    assert (gone.code, gone.out) == (1, "")
    assert "there is no index 'outputs.result.energy'" in gone.err
    wrong = call("index", "add", "hots")
    assert wrong.code == 2
    assert wrong.err.splitlines()[:2] == ["hots", "^"]


@pytest.mark.parametrize(
    ("argv", "code", "shown"),
    [
        (["outputs.result.energy <"], 2, ["outputs.result.energy <", " " * 23 + "^"]),
        (["name == f", "--sort", "hots"], 2, ["hots", "^"]),
        (["--fields", "task,hots"], 2, ["hots", "^"]),
        (["--raw", "{"], 1, []),
        (["--raw", '{"a": {"$b": 1}}'], 1, []),
        (["name == f", "--raw", "{}"], 2, []),
        (["descends from 000"], 1, []),
        (["--sort", "function"], 1, []),
        (["--limit", "0"], 2, []),
    ],
)
def test_bad_input_is_said_on_one_line_under_the_character(
    rig: Rig, call: Call, argv: list[str], code: int, shown: list[str]
) -> None:
    said = call("find", *argv)
    assert (said.code, said.out) == (code, "")
    *above, last = said.err.splitlines()
    assert above == shown
    assert last.startswith("pilot: ")
