"""What README and docs/ say is so: their Python runs on a real pilot, their commands exist, their tables are true.

Python blocks of a page run in their order, as one script in a project with a pilot. One that cannot run says
why on the line before it: ``<!-- not run: reason -->``. Links are tested in `test_repository`.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest

import pilot
from pilot.cli.app import COMMANDS, cli
from pilot.errors import NotOffered
from pilot.fields import FIELDS, OPEN
from pilot.resources import parse_duration, parse_size
from pilot.states import Outcome, PilotState, PoolState, State
from tests import rig
from tests.conftest import need

pytestmark = pytest.mark.docs

ROOT = Path(__file__).parent.parent
README, DOCS, QUICKSTART = ROOT / "README.md", ROOT / "docs", ROOT / "examples" / "quickstart.py"
PAGES = [README, *sorted(DOCS.glob("**/*.md"))]
NOT_RUN = re.compile(r"<!-- not run: (.+) -->")

# -- blocks -----------------------------------------------------------------------------------------


class Block(NamedTuple):
    """One fenced block of code."""

    language: str
    first: int
    """Line number of its first line, from 0."""
    lines: list[str]
    not_run: str
    """Why it is not run; empty if it is."""


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    lines = page.read_text().splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("```")]
    assert len(starts) % 2 == 0, f"{page}: a fence is not closed"
    for start, end in zip(starts[::2], starts[1::2], strict=True):
        reason = NOT_RUN.fullmatch(lines[start - 1].strip()) if start else None
        yield Block(lines[start][3:].strip(), start + 1, lines[start + 1 : end], reason[1] if reason else "")


def script(page: Path) -> str:
    """Return what runs of a page, each line under its number in the page, so that tracebacks lead there."""
    lines = [""] * len(page.read_text().splitlines())
    for block in blocks(page):
        if block.language == "python" and not block.not_run:
            lines[block.first : block.first + len(block.lines)] = block.lines
    return "\n".join(lines).rstrip() + "\n"


WITH_CODE = [page for page in PAGES if script(page).strip()]


def name(page: Path) -> str:
    """Return a page's path for people."""
    return str(page.relative_to(ROOT))


# -- Python -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[rig.Rig]:
    """Yield one project with a pilot for all pages; all that they left there must satisfy the invariants."""
    need("mongod")
    need("mpiexec")
    with rig.rig(tmp_path_factory.mktemp("docs")) as made:
        made.start(slots=2)
        yield made
        made.settled()
        made.check()
        made.drain()


def run(project: rig.Rig, file: Path) -> str:
    """Run a script in the project's directory and return what it printed."""
    argv = [sys.executable, "-W", "error", str(file)]
    done = subprocess.run(argv, cwd=project.config.root, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{project.logs()}"
    return done.stdout


@pytest.mark.parametrize("page", WITH_CODE, ids=name)
def test_python_of_the_pages_runs(project: rig.Rig, page: Path) -> None:
    file = project.config.root / f"{page.stem}.py"
    file.write_text(script(page))
    run(project, file)


def test_quickstart_is_the_example_of_the_readme(project: rig.Rig) -> None:
    _, _, code = QUICKSTART.read_text().partition('"""\n\n')
    assert "\n".join(next(b for b in blocks(README) if b.language == "python").lines) == code.rstrip()
    promised = re.search(r"# (\(-0\..*\))$", code, re.MULTILINE)
    assert promised is not None
    assert run(project, QUICKSTART).startswith(f"{promised[1]}\nwhere it came from: pilot show ")


def test_blocks_name_their_language() -> None:
    odd = [f"{name(page)}:{b.first}: {b.language!r}" for page in PAGES for b in blocks(page)
           if b.language not in ("python", "sh", "text")]  # fmt: skip
    assert odd == []


# -- commands ---------------------------------------------------------------------------------------


def commands() -> Iterator[tuple[str, list[str]]]:
    """Yield place and words of every ``pilot …`` in the pages, in blocks and in running text."""
    for page in PAGES:
        for block in blocks(page):
            for number, line in enumerate(block.lines, block.first + 1):
                if block.language == "sh" and line.startswith("pilot "):
                    yield f"{name(page)}:{number}", shlex.split(line, comments=True)[1:]
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        for found in re.findall(r"`pilot ([a-z][^`]*)`", text):
            yield name(page), shlex.split(found.replace("…", ""))


def misfit(words: list[str]) -> str:
    """Say what is wrong with a command line; empty if nothing is. Nothing is executed."""
    command: click.Command = cli
    context = click.Context(cli)
    while isinstance(command, click.Group) and words:
        found = command.get_command(context, words[0])
        if found is None:
            return f"there is no {words[0]!r}"
        command, words = found, words[1:]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        if word == "--" or (command.name == "run" and not word.startswith("-")):
            break  # what follows belongs to another program
        if word.startswith("-") and word != "-" and word.partition("=")[0] not in known:
            return f"{command.name!r} has no {word!r}"
    return ""


def test_commands_exist() -> None:
    wrong = [f"{place}: {' '.join(words)}: {why}" for place, words in commands() if (why := misfit(words))]
    assert wrong == []
    assert misfit(["tasks", "--nonsense"])
    assert misfit(["nonsense"])


def test_every_command_is_named_somewhere() -> None:
    assert set(COMMANDS) - {words[0] for _, words in commands() if words} == set()


def test_files_that_are_named_exist() -> None:
    pattern = re.compile(r"`((?:pilot|executors|store|tests|examples|site-configs)/[\w./-]*)`")
    gone = {
        f"{name(page)}: {path}"
        for page in PAGES
        for path in pattern.findall(page.read_text())
        if not (ROOT / path).exists()
    }
    assert gone == set()


# -- tables -----------------------------------------------------------------------------------------


def rows(page: Path, columns: int) -> Iterator[list[str]]:
    """Yield the rows of a page's tables that have so many columns, headings and rules included."""
    for line in page.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) == columns:
            yield cells


def constant(path: str) -> Any:
    """Return what a dotted name stands for; of a field of a dataclass, its default."""
    module, _, rest = path, "", ""
    while True:
        try:
            found: Any = importlib.import_module(module)
            break
        except ModuleNotFoundError:
            module, _, last = module.rpartition(".")
            rest = f"{last}.{rest}".rstrip(".")
    for step in rest.split("."):
        if dataclasses.is_dataclass(found):
            found = {field.name: field.default for field in dataclasses.fields(found)}[step]
        else:
            found = getattr(found, step)
    return found


def number(text: str) -> float:
    """Read ``16 KiB``, ``30 s`` or ``1,000``."""
    if text.endswith("iB"):
        return parse_size(text)
    return parse_duration(text) if re.search("[a-z]", text) else float(text.replace(",", ""))


LIMITS = [row for row in rows(DOCS / "guarantees.md", 3) if row[2].startswith("`")]


@pytest.mark.parametrize(("what", "limit", "path"), LIMITS, ids=[row[2].strip("`") for row in LIMITS])
def test_limits_are_those_of_the_code(what: str, limit: str, path: str) -> None:
    assert constant(path.strip("`")) == number(limit), what


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("retries-and-outcomes", {*State, *Outcome}),
        ("pilot-and-pool", {*PilotState, *PoolState}),
    ],
)
def test_every_state_and_outcome_is_explained(page: str, words: set[str]) -> None:
    path = DOCS / "concepts" / f"{page}.md"
    explained = {word for line in path.read_text().splitlines() for word in re.findall(r"^\| `(\w+)` \|", line)}
    assert words - explained == set()


def test_every_field_that_can_be_asked_for_is_explained() -> None:
    explained_ = {word for row in rows(DOCS / "concepts" / "query.md", 2) for word in re.findall(r"`([\w.]+)`", row[0])}
    assert {*FIELDS, *OPEN} - explained_ == set()


# -- fields of documents ----------------------------------------------------------------------------

PARTS = {"time", "usage", "exception", "output_log", "chain", "command", "source", "inputs", "outputs", "cache"}
"""Sub-documents of a record whose fields are explained one by one."""


def fields(document: dict[str, Any], parts: set[str], before: str = "") -> set[str]:
    """Return the names of a document's fields, ``a.b`` in the sub-documents named in `parts`."""
    found = set()
    for key, value in document.items():
        if key in parts and isinstance(value, list) and all(isinstance(item, dict) for item in value):
            found |= {inner for item in value for inner in fields(item, parts, f"{before}{key}[].")}
        elif key in parts and isinstance(value, dict):
            found |= fields(value, parts, f"{before}{key}.")
        else:
            found.add(before + key)
    return found


def explained(page: str) -> set[str]:
    """Return the fields that the tables of a page explain."""
    return {word for row in rows(DOCS / "concepts" / f"{page}.md", 2) for word in re.findall(r"`([\w\[\].]+)`", row[0])}


@pytest.fixture(scope="module")
def documents(project: rig.Rig) -> dict[str, list[dict[str, Any]]]:
    """Return documents of every collection after tasks of all kinds have run."""

    def good(numbers: list[int]) -> int:
        print("summing")
        return sum(numbers)

    def bad(number: int) -> None:
        raise ValueError(number)

    with project.open() as opened:
        parts = pilot.command(
            ["sh", "-c", "cp in.txt out.txt"], inputs={"in.txt": "x" * 20_000}, outputs={"out": "out.txt"}
        ).submit()
        first = pilot.task(tags=["docs"], fresh=True)(good)
        total = first.submit([first.submit([1]), 2])
        assert total.result(timeout=60) == 3
        parts.result(timeout=60)
        equal = pilot.task(cache=True)(good)
        for _ in range(2):
            assert equal.submit([4]).result(timeout=60) == 4
        opened.invalidate(first.submit([5]))
        with pytest.raises(pilot.TaskFailed):
            pilot.task(bad).submit(first.submit([1])).result(timeout=60)
        with pytest.warns(NotOffered):
            never = pilot.task(cores=1000)(good).submit([1])
        opened.cancel(never)
        names = ("tasks", "provenance", "functions", "environments")
        return {name: list(opened.store.database[name].find()) for name in names}


@pytest.mark.parametrize(
    ("page", "collection"),
    [("record", "provenance"), ("task", "tasks"), ("function-identity", "functions"), ("environment", "environments")],
)
def test_every_field_is_explained(documents: dict[str, list[dict[str, Any]]], page: str, collection: str) -> None:
    parts = PARTS if collection == "provenance" else set()
    there = {field for document in documents[collection] for field in fields(document, parts)}
    assert len(there) > 5
    assert there - explained(page) == set()
