"""What each kind of process imports before it does anything: ten thousand ranks on a parallel file system feel it.

Times are printed (``pytest -s``), not asserted; the number of modules and the absence of heavy ones are.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import pilot

HEAVY = {"pymongo", "bson", "click", "pydantic", "rich", "yaml", "parsl", "mpi4py", "numpy", "psutil", "cloudpickle"}

CHILD = "import pathlib, pilot.pool_main, pilot.executors.run.child, pilot.store.objects"
RANK = "import pilot.pool_main, pilot.executors.pool.identity, pilot.executors.run.handle, pilot.executors.run.output"


def imported(statement: str) -> tuple[set[str], float]:
    """Return the modules that a new interpreter has after a statement, and the least CPU time of it in ms."""
    program = (
        "import sys, time\nbefore = time.process_time()\n"
        f"{statement}\n"
        "spent = time.process_time() - before\n"
        "import json; print(json.dumps([sorted(sys.modules), spent]))"
    )
    best = float("inf")
    modules: set[str] = set()
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True, timeout=60
        )
        names, spent = json.loads(done.stdout)
        modules, best = set(names), min(best, spent * 1000)
    return modules, best


@pytest.mark.parametrize(
    ("who", "statement", "most", "allowed"),
    [("child", CHILD, 120, set[str]()), ("rank", RANK, 160, set[str]()), ("library", "import pilot", 60, set[str]())],
)
def test_a_process_starts_light(who: str, statement: str, most: int, allowed: set[str]) -> None:
    modules, ms = imported(statement)
    print(f"{who}: {len(modules)} modules, {ms:.0f} ms of CPU")
    assert {name.partition(".")[0] for name in modules} & HEAVY <= allowed
    assert len(modules) < most


def test_the_command_line_starts_light() -> None:
    statement = "from pilot.cli.app import run\nimport contextlib, io\n"
    statement += "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n    run(['--help'])"
    modules, ms = imported(statement)
    print(f"pilot --help: {len(modules)} modules, {ms:.0f} ms of CPU")
    assert not {name.partition(".")[0] for name in modules} & (HEAVY - {"click"})


def test_the_public_names_are_exactly_these() -> None:
    assert sorted(pilot.__all__) == [
        "Context", "File", "Future", "Outcome", "PilotError", "Project", "Resources", "State", "TaskFailed",
        "as_completed", "cache", "command", "current", "open", "register", "task", "wait",
    ]  # fmt: skip
    assert all(getattr(pilot, name) is not None for name in pilot.__all__)


def test_no_import_starts_anything() -> None:
    program = (
        "import threading, os\n"
        "before = len(os.listdir('/proc/self/fd'))\n"
        "import pilot.client, pilot.define, pilot.agent, pilot.coordinator, pilot.store.local\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
        "assert len(os.listdir('/proc/self/fd')) == before\n"
    )
    subprocess.run([sys.executable, "-P", "-c", program], check=True, timeout=60)
