"""Files going through tasks and commands on a real pilot, and `pilot objects` over what they leave."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import pilot
from pilot import mentions, records
from pilot.cli.app import run
from pilot.errors import EncodingError, ObjectDropped
from pilot.store import care, named, provenance
from pilot.store.objects import Objects
from pilot.store.spool import Spool
from pilot.values import encode
from tests import queue_rig
from tests.rig import Rig

# -- functions ------------------------------------------------------------------------------------


def test_files_as_arguments_and_results(project: pilot.Project, tmp_path: Path) -> None:
    def shout(file: pilot.File, folder: str) -> dict[str, Any]:
        target = os.path.join(folder, "loud.txt")
        with open(target, "w") as out:
            out.write(file.read_text().upper())
        os.symlink(target, os.path.join(folder, "loud.lnk"))
        return {"loud": pilot.File(target), "again": [pilot.File(target, keep="in place"), file]}

    def size(file: pilot.File) -> tuple[str, int]:
        return file.name, len(file.read_bytes())

    path = tmp_path / "quiet.txt"
    path.write_text("hello")
    made = pilot.task(shout).submit(pilot.File(path), str(tmp_path))
    used = pilot.task(size).submit(made["loud"])
    path.write_text("changed after it was submitted")
    assert used.result(timeout=60) == ("loud.txt", 5)
    result = made.result(timeout=60)
    assert result["loud"].read_text() == "HELLO"
    assert result["again"][0].path == str(tmp_path / "loud.txt")
    assert result["again"][1].read_text() == "hello"
    record = made.record()
    assert record is not None
    hashes = {result["loud"].hash, result["again"][1].hash}
    assert set(mentions.objects(record, Objects(project.config.objects_folder).get)) == hashes
    assert record["outputs"][0]["value"]["loud"]["~"][1]["hash"] == result["loud"].hash


def test_a_file_that_cannot_be_read_fails_at_submit_or_fails_the_attempt(
    project: pilot.Project, tmp_path: Path
) -> None:
    def forget(folder: str) -> pilot.File:
        return pilot.File(os.path.join(folder, "forgotten"))

    with pytest.raises(EncodingError, match=r"argument 'folder' of '.*forget' cannot be encoded: cannot read the file"):
        pilot.task(forget).submit(pilot.File(tmp_path / "nothing"))
    with pytest.raises(pilot.TaskFailed, match=r"the result of '.*forget' cannot be encoded: cannot read the file"):
        pilot.task(forget).submit(str(tmp_path)).result(timeout=60)


def test_a_damaged_or_edited_file_is_never_served(project: pilot.Project, tmp_path: Path) -> None:
    def make(folder: str) -> list[pilot.File]:
        paths = [os.path.join(folder, name) for name in ("kept", "placed")]
        for path in paths:
            with open(path, "wb") as out:
                out.write(os.urandom(100))
        return [pilot.File(paths[0]), pilot.File(paths[1], keep="in place")]

    def read(files: list[pilot.File], which: int) -> int:
        return len(files[which].read_bytes())

    made = pilot.task(make).submit(str(tmp_path))
    kept, placed = made.result(timeout=60)
    assert [pilot.task(read).submit(made, which).result(timeout=60) for which in (0, 1)] == [100, 100]
    path = Path(kept.path)
    path.chmod(0o600)
    path.write_bytes(b"x" * 100)
    Path(placed.path).write_bytes(b"x" * 100)
    with pytest.raises(pilot.TaskFailed, match=r"ObjectCorrupt: the file 'kept': the object .* does not have the"):
        pilot.task(read).submit(made, 0).result(timeout=60)
    with pytest.raises(pilot.TaskFailed, match=r"ObjectCorrupt: the file 'placed' was left in .* has been changed"):
        pilot.task(read).submit(made, 1).result(timeout=60)


# -- commands -------------------------------------------------------------------------------------


def test_a_commands_files(project: pilot.Project, tmp_path: Path) -> None:
    (tmp_path / "pseudo" / "empty").mkdir(parents=True)
    (tmp_path / "pseudo" / "Al.upf").write_text("aluminium")
    huge = tmp_path / "huge"
    huge.write_text("huge")
    program = tmp_path / "go.sh"
    program.write_text(
        "#!/bin/sh\nset -e\nmkdir -p out/save\ncp pseudo/Al.upf out/save/rho.dat\necho x > out/save/a.xml\n"
        "echo >> pseudo/Al.upf\nreadlink huge > links\ntest -d pseudo/empty\necho 1 > wfc.1\necho 2 > wfc.2\n"
    )
    program.chmod(0o755)
    ran = pilot.command(
        ["./go.sh"],
        inputs={
            "go.sh": pilot.File(program), "pseudo": pilot.File(tmp_path / "pseudo"),
            "huge": pilot.File(huge, keep="in place"),
        },
        outputs={
            "links": "links", "rho": pilot.File("out/*/rho.dat"), "save": pilot.File("out/save"),
            "wfc": pilot.File("wfc.*"), "all": pilot.File("out/**"),
        },
    ).submit()  # fmt: skip
    counted = pilot.command(
        "cat rho > both; cat save/* >> both", shell=True, inputs={"rho": ran["rho"], "save": ran["save"]},
        outputs={"both": "both"},
    ).submit()  # fmt: skip
    result = ran.result(timeout=60)
    assert result["links"].decode().strip() == str(huge)
    assert (result["rho"].name, result["rho"].read_text()) == ("rho.dat", "aluminium")
    assert sorted(path.name for path in Path(result["save"]).iterdir()) == ["a.xml", "rho.dat"]
    assert {name: file.read_text() for name, file in result["wfc"].items()} == {"wfc.1": "1\n", "wfc.2": "2\n"}
    assert (result["all"].is_tree, result["all"].name) == (True, "out")
    assert os.stat(result["rho"].path).st_nlink <= 2  # its own name, and that in the tree which was asked for
    assert counted.result(timeout=60)["both"] == b"aluminiumx\naluminium"
    assert not (project.config.work_folder / f"{ran.id}.1").exists()
    record = ran.record()
    assert record is not None
    assert record["command"]["keep"] == [["all", "kept"], ["rho", "kept"], ["save", "kept"], ["wfc", "kept"]]
    assert (tmp_path / "pseudo" / "Al.upf").read_text() == "aluminium"


def test_an_output_that_stays_in_place(project: pilot.Project, tmp_path: Path) -> None:
    both = {"big": pilot.File("big.dat", keep="in place"), "kept": pilot.File("big.dat")}
    made = pilot.command("echo big > big.dat", shell=True, outputs=both)
    private = made.submit()
    big = private.result(timeout=60)["big"]
    assert big.path == str(project.config.work_folder / f"{private.id}.1" / "big.dat")
    kept = private.result()["kept"]
    assert os.stat(kept.path).st_ino != os.stat(big.path).st_ino  # what stays is not ours to link
    folder = tmp_path / "results"
    folder.mkdir()
    own = pilot.command(
        ["cp", "/etc/hostname", "h"], cwd=str(folder), outputs={"h": pilot.File("h", keep="in place")}
    ).submit()
    assert own.result(timeout=60)["h"].path == str(folder / "h")


@pytest.mark.parametrize(
    ("outputs", "why"),
    [
        ({"out": pilot.File("*.dat")}, "its output 'out' is missing: no file or directory matches '\\*.dat'"),
        ({"made": pilot.File("made"), "out": "*.dat"}, "its output 'out' is missing: no file matches"),
        ({"out": pilot.File("../*")}, "is not a relative path below its working directory"),
        ({"out": pilot.File("dangling")}, "the output 'out' cannot be encoded: cannot read the file"),
    ],
)
def test_outputs_that_are_not_there(project: pilot.Project, outputs: dict[str, Any], why: str) -> None:
    before = {one.hash for one in care.kept(Objects(project.config.objects_folder))}
    script = f"echo {os.urandom(8).hex()} > made; ln -s nowhere dangling"
    with pytest.raises(pilot.TaskFailed, match=why):
        pilot.command(script, shell=True, outputs=outputs).submit().result(timeout=60)
    assert {one.hash for one in care.kept(Objects(project.config.objects_folder))} == before


# -- the command line -------------------------------------------------------------------------------


@pytest.fixture
def say(shared_rig: Rig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run `pilot objects …`; return exit code, and what it printed, read if it is JSON."""

    def run_it(*argv: str, rig: Rig = shared_rig) -> tuple[int, Any]:
        monkeypatch.chdir(rig.config.root)
        capsys.readouterr()
        code = run(["objects", *argv])
        out, err = capsys.readouterr()
        return code, json.loads(out) if "--json" in argv else out + err

    return run_it


def make_file(folder: str, content: str) -> list[pilot.File]:
    """Be a task with a file and a large value in its result."""
    path = os.path.join(folder, "made.dat")
    with open(path, "w") as out:
        out.write(content)
    return [pilot.File(path), "x" * 20_000 + content]  # type: ignore[list-item]


def test_verify_names_what_is_damaged_and_who_needs_it(project: pilot.Project, tmp_path: Path, say: Any) -> None:
    made = pilot.task(make_file).submit(str(tmp_path), os.urandom(8).hex())
    file, _ = made.result(timeout=60)
    assert say("verify", made.id) == (0, "2 objects verified, all as they should be\n")
    assert say("verify", made.id, "--json") == (0, {"verified": 2, "damaged": [], "unreadable": []})
    path = Path(file.path)
    path.chmod(0o600)
    path.write_text("something else")
    for names in ([f"{made.id}:1"], [file.hash[:12]], []):
        code, found = say("verify", *names, "--json")
        (damage,) = [one for one in found["damaged"] if one["hash"] == file.hash]
        assert code == 1
        assert str(path) in damage["why"]
        assert damage["named_by"] == ([] if names == [file.hash[:12]] else [f"record {made.id}:1"])
    code, text = say("verify", made.id)
    assert code == 1
    assert f"{file.hash}: the object '{path}' does not have the hash that names it" in text
    assert f"named by record {made.id}:1" in text
    path.unlink()
    assert f"{file.hash}: the object repository has no file" in say("verify", made.id)[1]
    assert say("verify", "nonsense")[0] == 1
    assert "no task 'x'" in say("verify", "x:1")[1]


def test_drop(project: pilot.Project, tmp_path: Path, say: Any, gate: Path) -> None:
    def wait_and_read(values: list[Any], gate: str) -> str:
        import time

        while not os.path.exists(gate):
            time.sleep(0.01)
        text: str = values[0].read_text()
        return text

    objects = Objects(project.config.objects_folder)
    content = os.urandom(8).hex()
    made = pilot.task(make_file).submit(str(tmp_path), content)
    file, _ = made.result(timeout=60)
    value = made.record()["outputs"][0]["hash"]  # type: ignore[index]
    waiting = pilot.task(wait_and_read).submit(made, str(gate))
    code, found = say("drop", made.id, "--yes", "--json")
    assert (code, found["objects"], found["needed"]) == (0, [], 2)
    gate.touch()
    assert waiting.result(timeout=60) == content
    code, found = say("drop", made.id, "--json")
    assert (found["done"], {one["hash"] for one in found["objects"]}) == (False, {file.hash, value})
    assert objects.exists(file.hash)
    code, found = say("drop", made.id, "--larger", "10k", "--json")
    assert [one["hash"] for one in found["objects"]] == [value]
    assert say("drop", made.id, "--yes")[1].startswith("2 objects, ")
    assert not objects.exists(file.hash)
    assert not objects.exists(value)
    with pytest.raises(ObjectDropped, match=r"dropped by .* on .* at 20..-"):
        project.task(made.id).result(timeout=60)
    assert say("verify", made.id)[0] == 0  # that is as it should be
    assert say("drop", made.id, "--yes")[1].startswith("0 objects, ")
    again = pilot.task(make_file).submit(str(tmp_path), content)  # runs again, and brings the bytes back
    assert again.result(timeout=60)[0] == file
    assert project.task(made.id).result(timeout=60)[0].read_text() == content
    assert say("drop")[0] == 2


def test_what_has_to_stay_is_not_dropped(project: pilot.Project, tmp_path: Path, say: Any) -> None:
    def size(tree: pilot.File) -> int:
        return tree.size

    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a").write_text("a")
    tree = pilot.File(tmp_path / "tree")
    assert pilot.task(size).submit(tree).result(timeout=60) == 1
    code, text = say("drop", tree.hash, "--yes")
    assert code == 1
    assert "holds a function, the manifest of a directory, or part of a record: it has to stay" in text


def test_collect_and_stat(lobby: Rig, tmp_path: Path, say: Any) -> None:
    def read(*values: Any) -> None:
        """Never runs."""

    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "tree" / "sub" / "a").write_text("a")
    (tmp_path / "placed").write_text("placed")
    objects = Objects(lobby.config.objects_folder)
    with lobby.open() as opened:
        given = [pilot.File(tmp_path / "tree"), {pilot.File(tmp_path / "placed", keep="in place")}, "x" * 20_000]
        table = os.urandom(2 << 20)
        future = pilot.task(lambda: table).submit()  # the function's pickle is an object
        task = pilot.task(read).submit(given, *given)
        named_ = {one.hash for one in care.kept(objects)}
        assert len(named_) == 6  # function, this module's text, list, text, manifest, the file in the tree
        unnamed = [objects.put(encode(os.urandom(n))) for n in (10, 100, 1000)]
        for one in care.kept(objects):
            os.utime(objects.path(one.hash), (1, 1))
        new = objects.put(encode(b"new"))
        code, found = say("collect", "--json", rig=lobby)
        assert (code, found["done"], {one["hash"] for one in found["objects"]}) == (0, False, set(unnamed))
        assert f"{unnamed[2]}  1001 B" in say("collect", rig=lobby)[1]
        assert {one.hash for one in care.kept(objects)} == {*named_, *unnamed, new}
        assert "3 objects that nothing names" in say("collect", "--yes", rig=lobby)[1]
        assert {one.hash for one in care.kept(objects)} == {*named_, new}
        code, found = say("stat", "--json", rig=lobby)
        assert (found["objects"], found["trash_objects"], found["places"]) == (7, 3, 1)
        assert "3 in the trash, " in say("stat", rig=lobby)[1]
        (trash,) = (lobby.config.objects_folder / "trash").iterdir()
        trash.rename(trash.with_name("1"))  # long ago
        code, found = say("collect", "--yes", "--json", rig=lobby)
        assert (found["objects"], found["deleted"]) == ([], 3)
        assert say("verify", rig=lobby)[0] == 0
        assert "less than 3600 s cannot be collected" in say("collect", "--older", "1m", rig=lobby)[1]
        _spoil(objects, opened, task)
        code, text = say("collect", "--yes", rig=lobby)
        assert code == 1
        assert f"cannot collect: what task {task.id} names cannot be read" in text
        opened.cancel(task, future)


def _spoil(objects: Objects, project: pilot.Project, task: pilot.Future) -> None:
    """Remove the manifest that a task names: what else it names can no longer be told."""
    for use in named.of_tasks(project.store, objects.get):
        if use.by == f"task {task.id}" and use.named is not None and use.named.kind == "tree":
            Path(objects.path(use.named.hash)).unlink()
            return


def test_results_in_the_spool_are_not_collected(lobby: Rig, tmp_path: Path) -> None:
    objects = Objects(tmp_path / "objects")
    hash = objects.put(encode("x" * 20_000))
    spool = Spool(tmp_path / "spool", "token")
    output = {"name": "result", "hash": hash, "size": 20_003, "object": True}
    record = {"_id": "t:1", "token": "token", "inputs": [], "outputs": [output]}
    spool.write([provenance.encode(record, queue_rig.unsealed, records.minimal)[0]])
    assert [use.named for use in named.of_spool(tmp_path / "spool", objects.get)] == [mentions.Named(hash, "value")]
    (tmp_path / "spool" / "token" / "1.bson").write_bytes(b"not BSON")
    assert len(list(named.of_spool(tmp_path / "spool", objects.get))) == 1
