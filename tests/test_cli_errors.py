"""What the command line says to bad input, and how it looks: one line, the right code, colour only on a terminal."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pilot.cli import common
from pilot.cli.app import COMMANDS, run
from pilot.config import create_project, load_project
from pilot.signing import create_key
from pilot.site_files import load_site
from pilot.sites import Launcher
from pilot.store import pilots
from pilot.store.access import store_of
from tests.cli_rig import Call, Said

COMMAND = [sys.executable, "-P", "-m", "pilot"]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command of the command line in this process, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(common, "STORE_S", 0.5)

    def call(*argv: object) -> Said:
        code = run([str(word) for word in argv])
        out, err = capsys.readouterr()
        return Said(code, out, err)

    return call


@pytest.fixture
def own(call: Call, tmp_path: Path, mongod_uri: str) -> Path:
    """A project whose store is a server of the user's own."""
    said = call("init", "--store", mongod_uri, tmp_path)
    assert said.code == 0, said
    return tmp_path


def one_line(said: Said, code: int = 1) -> str:
    """Check that a command failed as it should, and return its one line."""
    assert said.code == code, said
    assert said.out == ""
    lines = said.err.splitlines()
    assert len(lines) == 1, said.err
    assert lines[0].startswith("pilot: "), lines
    return lines[0]


# -- the program itself -----------------------------------------------------------------------------


def test_help_is_fast() -> None:
    """Less than 150 ms of CPU: wall time is printed, and depends on what else the machine does."""
    walls, cpus = [], []
    for _ in range(7):
        began = time.perf_counter()
        process = subprocess.Popen([*COMMAND, "--help"], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        walls.append(time.perf_counter() - began)
        cpus.append(usage.ru_utime + usage.ru_stime)
        assert process.returncode == 0
    print(f"pilot --help: {min(walls) * 1e3:.0f} ms at best, {min(cpus) * 1e3:.0f} ms of CPU")
    assert min(cpus) < 0.150


def test_help_names_every_command(call: Call) -> None:
    shown = call("--help").out
    for name, entry in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(entry.help)}$", shown, re.MULTILINE)
    assert call().out == shown
    assert call("store").out == call("store", "--help").out
    assert re.fullmatch(r"pilot \d+\.\d+.*\n", call("--version").out)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(call: Call, name: str) -> None:
    said = call(name, "--help")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith(f"Usage: pilot {name}")
    assert said.out == call(name, "-h").out


# -- wrong usage ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["up", "--walltime", "soon"], "--walltime 'soon' is not a duration above zero"),
        (["up", "--walltime", "-5"], "is not a duration above zero"),
        (["up", "--slots", "0"], "--slots"),
        (["up", "--frob"], "No such option"),
        (["run"], "Missing argument 'SCRIPT'"),
        (["run", "no-such-script.py"], "does not exist"),
        (["submit"], "Missing argument"),
        (["submit", "--cores", "-1", "--", "true"], "--cores"),
        (["submit", "--memory", "much", "--", "true"], "--memory 'much' is not a size above zero"),
        (["submit", "--env", "NAME", "--", "true"], "'NAME' is not NAME=VALUE"),
        (["submit", "--shell", "--", "echo", "a"], "put it in quotes"),
        (["submit", "--priority", "1000", "--", "true"], "--priority"),
        (["tasks", "--state", "asleep"], "'asleep' is not one of 'waiting'"),
        (["cancel"], "name tasks, or say --all or --state"),
        (["cancel", "x", "--all"], "not both"),
        (["retry"], "name tasks, or say --all failed"),
        (["show"], "Missing argument 'ID'"),
        (["wait", "--timeout", "0"], "--timeout '0' is not a duration above zero"),
        (["-C", "/no/such/folder", "tasks"], "cannot change to '/no/such/folder'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_one_line_and_code_2(call: Call, argv: list[str], words: str) -> None:
    line = one_line(call(*argv), code=2)
    assert words in line
    assert line.endswith("--help`")


# -- no project, no store, no key -------------------------------------------------------------------

NEED_A_PROJECT = [
    ["status"], ["store", "status"], ["store", "stop"], ["doctor"], ["up"], ["down"], ["pilots"], ["tasks"],
    ["submit", "--", "true"], ["show", "x"], ["logs", "x"], ["explain", "x"], ["wait"], ["cancel", "x"], ["retry", "x"],
]  # fmt: skip


@pytest.mark.parametrize("argv", NEED_A_PROJECT, ids=lambda argv: argv[0])
def test_without_a_project(call: Call, tmp_path: Path, argv: list[str]) -> None:
    assert "no pilot project in" in one_line(call(*argv))


def test_run_without_a_project(call: Call, tmp_path: Path) -> None:
    (tmp_path / "script.py").touch()
    assert "`pilot init` makes one" in one_line(call("run", "script.py"))


def test_init_leaves_nothing_behind_when_the_store_cannot_be_reached(
    call: Call, tmp_path: Path, mongod_uri: str
) -> None:
    line = one_line(call("init", "--store", "mongodb://me:secret@127.0.0.1:9/"))
    assert "cannot make a project" in line
    assert "nothing was left behind" in line
    assert "secret" not in line
    assert list(tmp_path.iterdir()) == []
    assert call("init", "--store", mongod_uri).code == 0
    assert load_project(tmp_path).embedded is False


def test_init_keeps_what_was_there(call: Call, tmp_path: Path) -> None:
    (tmp_path / ".pilot" / "objects").mkdir(parents=True)
    one_line(call("init", "--store", "mongodb://127.0.0.1:9/"))
    assert [path.name for path in (tmp_path / ".pilot").iterdir()] == ["objects"]


def test_init_without_mongod(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILOT_MONGOD", "/no/such/mongod")
    assert "PILOT_MONGOD='/no/such/mongod'" in one_line(call("init"))
    assert list(tmp_path.iterdir()) == []


def test_init_refuses_a_uri_that_is_none(call: Call, tmp_path: Path) -> None:
    assert "not a MongoDB URI" in one_line(call("init", "--store", "postgres://x"))
    assert list(tmp_path.iterdir()) == []


def test_init_twice(call: Call, own: Path) -> None:
    key = (own / ".pilot" / "key").read_text()
    assert "is a pilot project already; nothing was changed" in one_line(call("init"))
    assert (own / ".pilot" / "key").read_text() == key


def test_init_completes_what_was_killed_half_way(call: Call, tmp_path: Path, mongod_uri: str) -> None:
    create_project(tmp_path, mongod_uri)  # and then came the SIGKILL
    assert "cannot read the project's key" in one_line(call("submit", "--", "true"))
    said = call("init")
    assert said.code == 0, said
    assert said.out.startswith("completed the half-made project")
    assert call("submit", "--", "true").code == 0


def test_init_does_not_replace_a_key_that_signed_something(call: Call, own: Path) -> None:
    assert call("submit", "--", "true").code == 0
    (own / ".pilot" / "key").unlink()
    assert "restore" in one_line(call("init"))
    assert not (own / ".pilot" / "key").exists()


def test_a_project_inside_of_another(call: Call, own: Path, mongod_uri: str) -> None:
    (own / "inner").mkdir()
    said = call("init", "--store", mongod_uri, "inner")
    assert said.code == 0
    assert "is inside of the project" in said.err


DEAD = [argv for argv in NEED_A_PROJECT if argv[0] not in ("doctor", "store")]


@pytest.mark.parametrize("argv", DEAD, ids=lambda argv: argv[0])
def test_a_dead_store_is_one_line(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str]) -> None:
    config = create_project(tmp_path, "mongodb://me:secret@127.0.0.1:9/")
    create_key(config.key_file)
    monkeypatch.setattr("pilot.store.access.store_of.__defaults__", (True, 0.5, None))  # `submit` opens a project
    line = one_line(call(*argv))
    assert "cannot open the store" in line
    assert "secret" not in line


def test_doctor_and_store_status_of_a_dead_store(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = create_project(tmp_path, "mongodb://me:secret@127.0.0.1:9/")
    create_key(config.key_file)
    monkeypatch.setattr("pilot.cli.doctor._STORE_S", 0.5)
    said = call("doctor")
    assert said.code == 1
    assert re.search(r"^wrong +store +cannot open the store", said.out, re.MULTILINE)
    assert re.search(r"^ok +key", said.out, re.MULTILINE)
    assert re.search(r"^ok +disk", said.out, re.MULTILINE)  # the other checks go on
    status = call("store", "status")
    assert status.code == 1
    assert "not running" in status.out
    assert "secret" not in said.out + status.out


@pytest.mark.parametrize("argv", [["submit", "--", "true"], ["up"]], ids=lambda argv: argv[0])
def test_a_key_that_others_can_read(call: Call, own: Path, argv: list[str]) -> None:
    (own / ".pilot" / "key").chmod(0o644)
    assert "is open to others (mode 0644); close it with `chmod 600" in one_line(call(*argv))
    assert not (own / ".pilot" / "pilots").exists()  # nothing was begun


def test_doctor_sees_what_is_open_to_others(call: Call, own: Path) -> None:
    (own / ".pilot" / "key").chmod(0o644)
    (own / ".pilot").chmod(0o755)
    said = call("doctor")
    assert said.code == 1
    assert re.search(r"^wrong +project .*chmod 700", said.out, re.MULTILINE)
    assert re.search(r"^wrong +key .*chmod 600", said.out, re.MULTILINE)


@pytest.mark.parametrize("command", ["show", "logs", "explain", "cancel", "retry", "wait"])
def test_an_unknown_task(call: Call, own: Path, command: str) -> None:
    assert "no task 'nosuch' in this project; `pilot tasks` lists them" in one_line(call(command, "nosuch"))


def test_an_id_that_fits_several(call: Call, own: Path) -> None:
    first, second = call("submit", "--", "true").out.strip(), call("submit", "--", "true").out.strip()
    assert first[:4] == second[:4]  # ids begin with the time
    assert "fits several tasks" in one_line(call("show", first[:4]))
    assert first in call("show", first.partition("-")[0]).out


def test_an_unknown_pilot_or_site(call: Call, own: Path) -> None:
    assert "'nosuch' is not a pilot" in one_line(call("down", "nosuch"))
    assert "no site 'nosuch'" in one_line(call("up", "--site", "nosuch"))


def test_a_done_task_cannot_be_retried(call: Call, own: Path) -> None:
    task = call("submit", "--", "true").out.strip()
    assert "it is ready, not failed or cancelled" in one_line(call("retry", task))
    assert call("cancel", task).out == "1 task cancelled\n"
    assert call("retry", "--all", "cancelled", "--json").code == 0


def test_own_server(call: Call, own: Path) -> None:
    assert "MongoDB" in call("store", "status").out
    assert "it is a server of your own" in one_line(call("store", "stop"))
    assert call("doctor").code == 0
    assert "none yet" in call("status").out


def test_a_pilot_that_is_not_heard_of(call: Call, own: Path) -> None:
    call("submit", "--", "true")
    long_ago = datetime.now(UTC) - timedelta(seconds=90)
    with store_of(load_project(own)) as store:
        fields = {"site": "cluster", "host": "elsewhere", "pid": 1, "slots": 4, "ttl_s": 30.0}
        pilots.register(store, "pgone01", "agent", {**fields, "started": long_ago, "seen": long_ago})
    assert re.search(r"^pgone01 +silent", call("pilots").out, re.MULTILINE)
    assert "pilot pgone01 on elsewhere has not been heard of for 2 min" in call("status").out
    doctor = call("doctor")
    assert doctor.code == 1
    assert re.search(r"^wrong +pilots +pgone01 on elsewhere: no heartbeat for 2 min", doctor.out, re.MULTILINE)
    assert re.search(r"the heartbeat of pilot pgone01 on elsewhere is 9\d s old", call("explain", newest(call)).out)
    said = call("down")
    assert said.code == 0
    assert "pgone01 has not been heard of" in said.err


def test_results_that_wait_for_the_store(call: Call, own: Path) -> None:
    folder = own / ".pilot" / "spool" / "sometoken"
    folder.mkdir(parents=True)
    (folder / "00000001.bson").touch()
    assert "1 batch of results waits for the store" in call("status").out
    doctor = call("doctor")
    assert doctor.code == 0
    assert re.search(r"^note +spool +1 batch of results of 1 dead pool", doctor.out, re.MULTILINE)


def test_doctor_repairs(call: Call, own: Path) -> None:
    task = call("submit", "--", "true").out.strip()
    with store_of(load_project(own)) as store:
        store.tasks.update_one({"_id": task}, {"$set": {"state": "waiting", "pending": [], "unchecked": True}})
    assert re.search(r"^note +markers +1 unchecked", call("doctor").out, re.MULTILINE)
    assert call("doctor", "--repair").code == 0
    assert call("tasks", "--json").json[0]["state"] == "ready"


def test_doctor_reports_violations(call: Call, own: Path) -> None:
    task = call("submit", "--", "true").out.strip()
    with store_of(load_project(own)) as store:
        store.tasks.update_one({"_id": task}, {"$set": {"state": "done"}})
    doctor = call("doctor")
    assert doctor.code == 1
    assert re.search(rf"^wrong +invariants task {task}: done", doctor.out, re.MULTILINE)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ('shift; for i in 1 2; do "$@"; done', "started two programs of one rank instead of one of two"),
        ("echo no route to host >&2; exit 3", "cannot start two ranks: no route to host"),
    ],
    ids=["singletons", "failing"],
)
def test_doctor_tries_the_launcher(
    call: Call, own: Path, monkeypatch: pytest.MonkeyPatch, script: str, words: str
) -> None:
    launcher = own / "launch"
    launcher.write_text(f"#!/bin/sh\n{script}\n")
    launcher.chmod(0o755)
    site = load_site().model_copy(update={"launcher": Launcher(command=(str(launcher), "{ranks}"))})
    monkeypatch.setattr("pilot.cli.doctor.load_site", lambda name: site)
    doctor = call("doctor")
    assert doctor.code == 1
    assert re.search(rf"^wrong +mpi +.*{words}", doctor.out, re.MULTILINE), doctor.out


def newest(call: Call) -> str:
    """Return the id of the newest task."""
    found: str = call("tasks", "--json").json[0]["task"]
    return found


def test_debug_shows_the_traceback(own: Path) -> None:
    for argv in (["--debug", "show", "nosuch"], ["show", "--debug", "nosuch"]):
        ran = subprocess.run([*COMMAND, *argv], cwd=own, capture_output=True, text=True, timeout=60, check=False)
        assert ran.returncode == 1
        assert "Traceback" in ran.stderr
        assert "TaskNotFound" in ran.stderr


# -- looks ------------------------------------------------------------------------------------------


def on_a_terminal(folder: Path, *argv: str, **env: str) -> str:
    """Return what a command writes to a terminal."""
    master, slave = pty.openpty()
    try:
        clean = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR")}
        process = subprocess.Popen(
            [*COMMAND, *argv], cwd=folder, stdin=slave, stdout=slave, stderr=slave,
            env={**clean, "TERM": "xterm-256color", **env},
        )  # fmt: skip
        os.close(slave)
        slave = -1
        shown = b""
        while True:
            try:
                data = os.read(master, 65536)
            except OSError:  # so ends a pty
                break
            if not data:
                break
            shown += data
        assert process.wait(60) == 0
        return shown.decode()
    finally:
        os.close(master)
        if slave >= 0:
            os.close(slave)


def test_colour_only_on_a_terminal(call: Call, own: Path) -> None:
    call("submit", "--", "true")
    coloured = re.compile(r"\x1b\[[0-9;]*3[0-9]m")
    assert coloured.search(on_a_terminal(own, "tasks"))
    assert not coloured.search(on_a_terminal(own, "tasks", NO_COLOR="1"))
    for command in ("tasks", "status", "pilots", "doctor"):
        assert "\x1b" not in call(command).out


def complete(folder: Path, words: str) -> list[str]:
    """Return what bash is offered behind `words`."""
    env = {**os.environ, "_PILOT_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    ran = subprocess.run(COMMAND, cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=True)
    return [line.partition(",")[2] for line in ran.stdout.splitlines() if line]


def test_completion(call: Call, own: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    task = call("submit", "--", "true").out.strip()
    assert complete(own, "pilot site show loc") == ["local"]
    assert complete(own, "pilot s") == ["status", "store", "scale", "site", "submit", "show"]
    assert complete(own, "pilot show ") == [task]
    assert complete(own, f"pilot cancel {task[:8]}") == [task]
    assert complete(own, "pilot tasks --state f") == ["failed"]
    assert complete(own, "pilot down ") == []
    assert complete(tmp_path_factory.mktemp("empty"), "pilot show ") == []  # no project: no error either
    script = subprocess.run(
        COMMAND,
        env={**os.environ, "_PILOT_COMPLETE": "zsh_source"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "#compdef pilot" in script.stdout
