"""What was imported is audited, verified and found like what ran here; files come with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import pilot
from pilot.cli.app import run
from pilot.errors import ArchiveError, ObjectDropped
from tests.archive_rig import Import, Made, altered, changing
from tests.file_rig import make_tree
from tests.rig import Rig

pytestmark = pytest.mark.any_documents


@pytest.fixture(autouse=True)
def at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # `pilot -C` changes it


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Any:
    """Return what runs a command of the command line in a rig's project and returns its exit code and answer."""

    def say(rig: Rig, *words: object) -> tuple[int, str]:
        code = run(["-C", str(rig.config.root), *map(str, words)])
        captured = capsys.readouterr()
        return code, captured.out or captured.err

    return say


@pytest.mark.parametrize("trusted", [False, True])
def test_what_was_imported_is_audited(made: Made, lobby: Rig, say: Any, trusted: bool) -> None:
    assert say(lobby, "import", made.path, *(["--trust", made.key_file] if trusted else []))[0] == 0
    code, text = say(lobby, "verify", made.ids["text"], "--json")
    found = json.loads(text)
    assert (code, found["good"], found["records"], found["imported"]) == (0, True, 6, 6)
    assert say(lobby, "doctor", "--audit", "--objects")[0] == 0
    code, text = say(lobby, "find", f"project == {made.project}", "--count")
    assert text == "10\n"
    name = f"{made.ids['sum']}:1"
    before = lobby.store.provenance.find_one({"_id": name}) or {}
    try:
        lobby.store.provenance.update_one({"_id": name}, {"$set": {"host": "elsewhere"}})
        code, text = say(lobby, "verify", made.ids["text"])
        assert (code, "somebody changed a field of it" in text) == (1, True)
        lobby.store.provenance.replace_one({"_id": name}, {**before, "host": "elsewhere", "digest": "0" * 64})
        code, text = say(lobby, "verify", made.ids["text"])
        assert (code, "does not fit" in text) == (1, True)
    finally:
        lobby.store.provenance.replace_one({"_id": name}, before)
    function = before["function"]
    lobby.store.functions.update_one({"_id": function}, {"$set": {"qualname": "other"}})
    code, text = say(lobby, "verify", made.ids["text"])
    assert (code, "it is not what its hash says" in text) == (1, True)
    lobby.store.functions.update_one({"_id": function}, {"$set": {"qualname": "total"}})


def test_what_was_imported_comes_out_again(made: Made, lobby: Rig, say: Any) -> None:
    assert say(lobby, "import", made.path)[0] == 0
    shutil.rmtree(lobby.config.trusted_folder, ignore_errors=True)
    code, text = say(lobby, "reproduce", made.ids["sum"])
    assert code == 1
    assert "is not trusted here" in text
    assert say(lobby, "import", made.path, "--trust", made.key_file)[0] == 0
    code, text = say(lobby, "reproduce", made.ids["sum"], "--depth", "0")
    assert code == 0
    assert "1 task, 1 output: 1 identical" in text


def test_a_changed_field_is_seen_without_any_key(made: Made, bring: Import, tmp_path: Path) -> None:
    changed = changing("records", lambda doc: doc.update(host="moon"))
    with pytest.raises(ArchiveError, match=r"somebody changed a field of it.*; nothing was imported"):
        bring(altered(made.path, tmp_path / "x.zip", changed, honest=True))


def test_an_expression_says_what_is_exported(made: Made, shared_rig: Rig, say: Any, tmp_path: Path) -> None:
    path = tmp_path / "found.zip"
    wanted = f"id == '{made.ids['shell']}:1' or descends from {made.ids['apart']}"
    code, text = say(shared_rig, "export", wanted, "-o", path)
    assert code == 0
    assert text.startswith("1 task with 1 record")
    code, text = say(shared_rig, "export", "tags = made", "-o", tmp_path / "other.zip")
    assert code == 2
    assert "write ==" in text
    assert say(shared_rig, "export", "tags == made", made.ids["shell"], "-o", tmp_path / "other.zip")[0] == 2


def test_groups_and_tags_come_along(made: Made, shared_rig: Rig, lobby: Rig, say: Any, tmp_path: Path) -> None:
    apart = made.ids["apart"]
    with shared_rig.open() as project:
        project.group("for others").add(apart)
        project.tag(apart, add=["late"])
    assert say(shared_rig, "export", apart, "-o", tmp_path / "x.zip")[0] == 0
    assert say(lobby, "import", tmp_path / "x.zip")[0] == 0
    for expression in ('group == "for others"', "tags == late"):
        assert say(lobby, "find", expression, "--count") == (0, "1\n")


def test_files_come_along(shared_rig: Rig, lobby: Rig, say: Any, tmp_path: Path) -> None:
    tree, placed = make_tree(tmp_path / "tree"), tmp_path / "placed"
    placed.write_text("here")

    @pilot.task
    def files(tree: pilot.File, placed: pilot.File) -> list[pilot.File]:
        return [tree, placed]

    with shared_rig.open():
        task = files.submit(pilot.File(tree), pilot.File(placed, keep="in place"))
        task.result(60)
    shared_rig.settled()
    assert say(shared_rig, "export", task.id, "--no-objects", "-o", tmp_path / "small.zip")[0] == 0
    assert say(shared_rig, "export", task.id, "-o", tmp_path / "whole.zip")[0] == 0
    assert say(lobby, "import", tmp_path / "small.zip")[0] == 0
    with lobby.open() as project:
        kept, _ = project.task(task.id).result(10)
        with pytest.raises(ObjectDropped, match="were dropped by the export of the archive"):
            kept.copy_to(tmp_path / "copy")
        problems = [problem.text for problem in project.verify(task.id).problems]
        assert problems
        assert all("nobody here knows where it lies" in text for text in problems)  # of the file in place only
        assert say(lobby, "import", tmp_path / "whole.zip")[0] == 0
        kept, _ = project.task(task.id).result(10)
        copied = Path(kept.copy_to(tmp_path / "copy"))
        assert sorted(path.name for path in copied.rglob("*")) == sorted(path.name for path in tree.rglob("*"))
