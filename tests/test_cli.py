"""The command line with the real thing: a real mongod, a real pilot."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pilot.cli.app import run
from pilot.config import load_project
from pilot.store.local import LocalServer
from tests.cli_rig import Call, Said
from tests.conftest import need

ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
COMMAND = [sys.executable, "-P", "-m", "pilot"]
DEADLINE_S = 60.0

SCRIPT = """
import json, os, sys, time
import pilot

@pilot.task(tags=["base"])
def double(x):
    print("doubling", x)
    return {"twice": 2 * x}

@pilot.task
def add(parts, start=0):
    return start + sum(part["twice"] for part in parts)

@pilot.task(retries=1)
def bad(what):
    raise ValueError(f"no energy minimum for {what}")

@pilot.task
def late(script):
    while os.path.exists(f"/proc/{script}"):
        time.sleep(0.05)
    time.sleep(1)

with pilot.open():
    parts = double.map(range(5))
    total = add.submit(parts, start=1)
    failing = bad.submit("Cu")
    after = add.submit([failing])
    shell = pilot.command("echo hello; echo oops >&2; exit 3", shell=True).submit()
    assert total.result(timeout=60) == 21
    left = late.map([os.getpid()] * 3)
    ids = {"part": parts[1].id, "total": total.id, "bad": failing.id, "after": after.id, "shell": shell.id}
    ids["left"] = left[-1].id
    print(json.dumps(ids))
sys.exit(int(sys.argv[1]))
"""

SLEEPER = """
import time
import pilot

@pilot.task
def nap(t):
    time.sleep(t)

with pilot.open():
    futures = nap.map([0.2] * 200)
    next(pilot.as_completed(futures, timeout=60))  # whichever: they do not run in their order
    print("begun", flush=True)
    pilot.wait(futures, timeout=60)
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project with an embedded server; its pilots and its server are ended afterwards."""
    need("mongod")
    need("mpiexec")
    folder = tmp_path_factory.mktemp("project")
    made = spawn(folder, "init")
    assert made.code == 0, made
    try:
        yield folder
    finally:
        spawn(folder, "down", "--now", "--timeout", "30s")
        LocalServer(folder / ".pilot" / "store").stop()


@pytest.fixture
def pilot(root: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]) -> Call:
    """Run a command of the command line in this process, in the project."""
    monkeypatch.chdir(root)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*argv: object) -> Said:
        code = run([str(word) for word in argv])
        out, err = capsysbinary.readouterr()
        return Said(code, out.decode(), err.decode())

    return call


def spawn(folder: Path, *argv: object, env: dict[str, str] | None = None) -> Said:
    """Run a command of the command line as a process of its own."""
    ran = subprocess.run(
        [*COMMAND, *map(str, argv)], cwd=folder, env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    return Said(ran.returncode, ran.stdout, ran.stderr)


@pytest.fixture(scope="module")
def ids(root: Path) -> dict[str, str]:
    """Ids of the tasks of a script that `pilot run` ran and that failed on purpose, by name."""
    (root / "script.py").write_text(SCRIPT)
    said = spawn(root, "run", "--slots", 2, "script.py", 7)
    assert said.code == 7, said  # the script's exit code
    assert "waiting for 3 tasks that it left" in said.err
    assert "all 3 are done" in said.err
    found: dict[str, str] = json.loads(said.out)
    return found


@pytest.fixture(scope="module")
def live(root: Path, ids: dict[str, str]) -> Iterator[str]:
    """Id of a pilot that is up."""
    said = spawn(root, "up", "--slots", 2, "--walltime", "1h", "--json")
    assert said.code == 0, said
    assert said.json["slots"] == 2
    yield said.json["pilot"]
    spawn(root, "down", "--now", "--timeout", "30s")


def eventually(what: Callable[[], Any], deadline_s: float = 20.0) -> Any:
    """Return what comes out as soon as it is true."""
    deadline = time.monotonic() + deadline_s
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
    return found


def one_line(said: Said, code: int = 1) -> str:
    """Check that a command failed as it should, and return its one line."""
    assert said.code == code, said
    assert said.out == ""
    lines = said.err.splitlines()
    assert len(lines) == 1, said.err
    assert lines[0].startswith("pilot: "), lines
    return lines[0]


# -- run ------------------------------------------------------------------------------------------


def test_run_waits_for_what_the_script_left(pilot: Call, ids: dict[str, str]) -> None:
    assert [task["state"] for task in pilot("tasks", "--json").json if task["name"] == "late"] == ["done"] * 3
    ended = [view for view in pilot("pilots", "--json").json if view["reason"] == "drained on SIGTERM"]
    assert len(ended) == 1
    assert ended[0]["state"] == "ended"


def test_run_says_why_a_pilot_cannot_start(root: Path, tmp_path: Path) -> None:
    (tmp_path / "mpi4py").mkdir()
    (tmp_path / "mpi4py" / "__init__.py").write_text('raise ImportError("libmpi.so.12: no such file")\n')
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    said = spawn(root, "run", "--slots", 1, "script.py", 0, env={"PYTHONPATH": path})
    assert said.code == 1
    assert said.out == ""  # the script was not begun
    assert "libmpi.so.12: no such file" in said.err
    last = said.err.splitlines()[-1]
    assert last.startswith("pilot: cannot start pilot p")
    assert "its pool died" in last


def test_ctrl_c_in_a_run_leaves_the_queue_consistent(pilot: Call, root: Path, ids: dict[str, str]) -> None:
    (root / "sleeper.py").write_text(SLEEPER)
    process = subprocess.Popen(
        [*COMMAND, "run", "--slots", "1", "sleeper.py"], cwd=root, start_new_session=True, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130, err
    last = err.splitlines()[-1]
    assert re.fullmatch(
        r"pilot: interrupted; \d+ tasks still queued: `pilot up` goes on with them, `pilot cancel --all` drops them",
        last,
    ), err
    assert "KeyboardInterrupt" in err  # the script's own
    queued = pilot("tasks", "--state", "ready", "--limit", "1000", "--json").json
    assert 0 < len(queued) < 200
    assert pilot("tasks", "--state", "leased", "--json").json == []
    assert "say --yes" in one_line(pilot("cancel", "--all"))  # it cannot ask here
    assert pilot("cancel", "--all", "--yes", "--json").json["cancelled"] == len(queued)
    assert pilot("pilots", "--live", "--json").json == []


def test_run_says_that_its_pilot_died(pilot: Call, root: Path, ids: dict[str, str]) -> None:
    process = subprocess.Popen(
        [*COMMAND, "run", "--slots", "1", "sleeper.py"], cwd=root, start_new_session=True, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "begun\n"
    view = pilot("pilots", "--live", "--json").json[0]
    psutil.Process(view["pid"]).kill()
    said = process.stderr.readline()
    assert said == f"pilot: pilot {view['id']} has ended: its agent died; `pilot up` starts another one\n"
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    assert "tasks still queued" in err
    assert processes_of(view["id"]) == []  # not even its pool, which has outlived the agent
    pilot("cancel", "--all", "--yes")


def processes_of(pilot: str) -> list[int]:
    """Return the processes of a pilot's first pool."""
    return [p.pid for p in psutil.process_iter() if f"PILOT_POOL={pilot}.1".encode() in _environment(p.pid)]


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


# -- looking --------------------------------------------------------------------------------------


def test_tasks(pilot: Call, ids: dict[str, str]) -> None:
    docs = {doc["task"]: doc for doc in pilot("tasks", "--limit", "1000", "--json").json}
    assert docs[ids["total"]]["state"] == "done"
    assert docs[ids["total"]]["record"] == f"{ids['total']}:1"
    assert ISO.fullmatch(docs[ids["total"]]["submitted"])
    assert docs[ids["bad"]]["attempt"] == 2
    assert docs[ids["bad"]]["error"] == "ValueError: no energy minimum for Cu"
    assert docs[ids["after"]]["error"] == "upstream"
    assert docs[ids["part"]]["tags"] == ["base"]

    table = pilot("tasks", "--state", "failed").out
    assert table.splitlines()[0].split() == ["task", "name", "state", "attempt", "age", "reason"]
    assert "ValueError: no energy minimum for Cu" in table
    assert "\x1b" not in table
    assert {doc["name"] for doc in pilot("tasks", "--tag", "base", "--json").json} == {"double"}
    assert "the newest 2" in pilot("tasks", "--limit", 2).out
    assert pilot("tasks", "--tag", "none").out == "no such task\n"


def test_show_tells_where_a_result_came_from(pilot: Call, ids: dict[str, str]) -> None:
    said = pilot("show", ids["total"])
    shown = said.out
    assert said.code == 0
    assert "signature fits" in shown
    assert re.search(rf"parts\[1\] +\{{'twice': 2\}} +← {ids['part']}:1 double +[0-9a-f]{{10}}", shown), shown
    assert re.search(r"start +1 ", shown)
    assert re.search(r"outputs\n +result +21 ", shown)

    found = pilot("show", ids["total"], "--json").json
    record = found["records"][-1]
    assert found["task"]["_id"] == ids["total"]
    assert record["outputs"][0]["value"] == 21
    assert {entry["name"]: entry["source"] for entry in record["inputs"] if "source" in entry}["parts[1]"] == {
        "record": f"{ids['part']}:1", "output": "result"
    }  # fmt: skip
    assert "def add(parts" in found["function"]["source"]
    assert found["environments"][record["environment"]]["python"]["version"]
    assert found["signature_problems"] == {}
    assert ISO.fullmatch(record["time"]["started"])


def test_show_of_failures(pilot: Call, ids: dict[str, str]) -> None:
    bad = pilot("show", ids["bad"]).out
    assert "earlier attempts: 1 failed" in bad
    assert 'raise ValueError(f"no energy minimum for {what}")' in bad
    assert bad.count("attempt ") == 1
    assert pilot("show", ids["bad"], "--all").out.count("ValueError: no energy minimum for Cu") >= 4
    shell = pilot("show", ids["shell"]).out
    assert "(shell)" in shell
    assert re.search(r"exit code +3", shell)
    assert "oops" in shell


def test_logs(pilot: Call, ids: dict[str, str]) -> None:
    assert pilot("logs", ids["part"]) == Said(0, "doubling 1\n", "")
    assert pilot("logs", ids["shell"]).out == "hello\noops\n"
    assert pilot("logs", "-f", ids["shell"]).out == "hello\noops\n"
    assert pilot("logs", ids["total"]) == Said(0, "", "")
    assert "has no record of attempt 9" in one_line(pilot("logs", "--attempt", 9, ids["part"]))
    assert "has written nothing" in one_line(pilot("logs", ids["after"]))


def test_logs_without_the_file(pilot: Call, root: Path, ids: dict[str, str]) -> None:
    log = pilot("show", ids["shell"], "--json").json["records"][0]["output_log"]
    moved = Path(log["file"]).rename(log["file"] + ".moved")
    try:
        assert pilot("logs", ids["shell"]) == Said(0, "hello\noops\n", "")  # the record keeps the end
    finally:
        moved.rename(log["file"])


def test_explain_failures(pilot: Call, ids: dict[str, str]) -> None:
    after = pilot("explain", ids["after"], "--json").json
    assert after["state"] == "failed"
    assert ids["bad"] in after["reasons"][0]
    assert "ValueError: no energy minimum for Cu" in after["reasons"][1]
    assert f"`pilot retry {ids['bad']}`" in after["reasons"][2]
    assert "it had 2 tries" in pilot("explain", ids["bad"]).out
    assert "is done" in pilot("explain", ids["total"]).out


def test_status(pilot: Call, root: Path, ids: dict[str, str], live: str) -> None:
    document = pilot("status", "--json").json
    assert document["project"]["root"] == str(root)
    assert document["store"]["running"] is True
    assert document["tasks"]["failed"] == 3
    assert [view["id"] for view in document["pilots"]] == [live]
    assert {problem["error"] for problem in document["problems"]} == {
        "ValueError: no energy minimum for Cu", document["problems"][1]["error"]
    }  # fmt: skip
    assert document["failed_upstream"] == 1
    shown = pilot("status").out
    assert "embedded MongoDB" in shown
    assert "3 failed" in shown
    assert live in shown
    assert "`pilot retry --all failed`" in shown


def test_doctor(pilot: Call, ids: dict[str, str], live: str) -> None:
    said = pilot("doctor", "--json")
    assert said.json["healthy"], said.out
    checks = {line["check"]: line for line in said.json["checks"]}
    assert checks["invariants"]["verdict"] == "ok"
    assert checks["mpi"]["verdict"] == "ok"
    assert live in checks["pilots"]["text"]


# -- pilots ---------------------------------------------------------------------------------------


def test_submit_and_wait(pilot: Call, live: str) -> None:
    said = pilot("submit", "--tag", "a", "--tag", "b", "--name", "greeting", "--env", "WHO=you", "--wait", "--",
                 "sh", "-c", "echo hi $WHO; pwd")  # fmt: skip
    assert said.code == 0, said
    task = said.out.strip()
    assert pilot("logs", task).out.splitlines() == ["hi you", os.getcwd()]  # where it was submitted
    found = pilot("tasks", "--tag", "b", "--json").json
    assert [(doc["task"], doc["name"], doc["tags"]) for doc in found] == [(task, "greeting", ["a", "b"])]

    failed = pilot("submit", "--wait", "--json", "--shell", "--", "exit 4")
    assert failed.code == 1
    assert failed.json["state"] == "failed"
    assert "pilot show" in failed.err
    assert pilot("wait", task).out == "1 task: 1 done\n"
    assert pilot("wait", task, failed.json["task"], "--json").json["failed"] == 1


def test_cancel_and_retry_of_what_runs(pilot: Call, live: str) -> None:
    task = pilot("submit", "--", "sh", "-c", "echo begun; exec sleep 1000").out.strip()
    eventually(lambda: pilot("logs", task).out == "begun\n")  # the output so far, of the slot that runs it
    assert live in pilot("explain", task).out
    assert pilot("cancel", task).out == "0 tasks cancelled, 1 being stopped\n"
    assert pilot("wait", "--timeout", "20s", task) == Said(1, "1 task: 1 cancelled\n", "")
    assert pilot("cancel", task, "--json").json == {"cancelled": 0, "stopping": 0, "ended_before": 1}
    assert "is cancelled" in pilot("explain", task).out
    assert pilot("retry", task).out == "1 task to be run again\n"
    eventually(lambda: pilot("logs", task).out == "begun\n")
    pilot("cancel", task)
    assert pilot("wait", "--timeout", "20s", task).code == 1
    assert "it is cancelled" not in pilot("explain", task).out


def test_logs_follow_a_running_command(root: Path, pilot: Call, live: str) -> None:
    go = root / "go"
    script = f"echo first; until [ -e {go} ]; do sleep 0.05; done; echo last"
    task = pilot("submit", "--shell", "--", script).out.strip()
    following = subprocess.Popen([*COMMAND, "logs", "-f", task], cwd=root, stdout=subprocess.PIPE, text=True)
    assert following.stdout is not None
    assert following.stdout.readline() == "first\n"  # long before its end
    go.touch()
    rest, _ = following.communicate(timeout=DEADLINE_S)
    assert (rest, following.returncode) == ("last\n", 0)


NO_ROOM = "needs 64 slots on one node, the largest node here has 2"


def test_what_no_slot_can_run_is_said(pilot: Call, live: str) -> None:
    task = pilot("submit", "--cores", 64, "--", "true").out.strip()
    long = pilot("submit", "--walltime", "2h", "--", "true").out.strip()
    waited = pilot("wait", task, "--timeout", "2s")
    assert waited.code == 1
    assert f"{NO_ROOM}; start one with `pilot up --cores-per-slot 64`" in waited.err
    assert NO_ROOM in pilot("explain", task).out
    assert "a walltime of 2 h is needed" in pilot("explain", long).out
    assert any(NO_ROOM in hint for hint in pilot("status", "--json").json["hints"])
    assert pilot("cancel", "--state", "ready", "--yes").out == "2 tasks cancelled\n"


def test_pilots_and_down(pilot: Call, root: Path, live: str) -> None:
    other = spawn(root, "up", "--slots", 1, "--json").json["pilot"]
    views = {view["id"]: view for view in pilot("pilots", "--live", "--json").json}
    assert set(views) == {live, other}
    assert views[other]["slots"] == 1
    assert ISO.fullmatch(views[live]["end_at"])
    assert re.search(rf"{other} +running", pilot("pilots").out)
    assert pilot("down", other[:5]).out == f"{other} ended\n"
    assert re.search(rf"{other} +ended .*asked by `pilot down`", pilot("pilots").out)
    assert pilot("down", other).out.startswith(f"{other} ended ")
    assert [view["id"] for view in pilot("pilots", "--live", "--json").json] == [live]


def test_a_dead_agent_is_noticed_and_cleared_away(pilot: Call, root: Path, live: str) -> None:
    other = spawn(root, "up", "--slots", 1, "--json").json["pilot"]
    pid = next(view["pid"] for view in pilot("pilots", "--live", "--json").json if view["id"] == other)
    psutil.Process(pid).kill()
    eventually(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    assert re.search(rf"{other} +dead", pilot("pilots").out)
    assert any(other in hint for hint in pilot("status", "--json").json["hints"])
    doctor = pilot("doctor")
    assert doctor.code == 1
    assert re.search(rf"wrong +pilots +{other}: its agent died: `pilot down {other}`", doctor.out)
    assert f"{other} lost" in pilot("down", other).out
    assert next(view["state"] for view in pilot("pilots", "--json").json if view["id"] == other) == "lost"
    assert processes_of(other) == []


# -- store ----------------------------------------------------------------------------------------


def test_store(pilot: Call, root: Path) -> None:
    status = pilot("store", "status", "--json").json
    assert (status["kind"], status["running"]) == ("embedded", True)
    assert f"port {status['port']}" in pilot("store", "status").out
    assert pilot("store", "stop").code == 0
    stopped = pilot("store", "status")
    assert stopped.code == 1
    assert "not running" in stopped.out
    assert pilot("store", "stop").out == "the store did not run\n"
    assert "the store runs" in pilot("store", "start").out
    assert pilot("tasks").code == 0


def test_commands_start_the_store(pilot: Call, root: Path) -> None:
    LocalServer(load_project(root).store_folder).stop()
    assert pilot("tasks").code == 0
