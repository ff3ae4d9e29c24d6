"""What the Python API refuses, and how a program that uses it may end."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import pilot
from pilot.errors import EncodingError, ForeignFuture, InvalidInput, NotOffered, PilotError
from tests import pilot_tasks
from tests.rig import LONG_S, Rig, script

pytestmark = pytest.mark.timeout(300)

double = pilot.task(pilot_tasks.double)
same = pilot.task(pilot_tasks.same)
add = pilot.task(pilot_tasks.add)
total = pilot.task(pilot_tasks.total)
fail = pilot.task(pilot_tasks.fail)
wait_for = pilot.task(pilot_tasks.wait_for)


@dataclasses.dataclass
class Bag:
    label: str
    content: Any


# -- bad input ------------------------------------------------------------------------------------


def count(rig: Rig) -> int:
    return rig.store.tasks.count_documents({})


def test_bad_arguments(rig: Rig, project: pilot.Project) -> None:
    before = count(rig)
    with pytest.raises(EncodingError, match=r"argument 'b' of 'add' cannot be pickled.*lock"):
        add.submit(1, threading.Lock())
    with pytest.raises(EncodingError, match="argument 'values' of 'total'"):
        total.submit([1, (part for part in "abc")])
    with pytest.raises(InvalidInput, match="missing 1 required positional argument: 'b'"):
        add.submit(1)
    with pytest.raises(InvalidInput, match="unexpected keyword argument 'c'"):
        add.submit(1, 2, c=3)
    with pytest.raises(InvalidInput, match="different lengths"):
        add.map([1, 2, 3], [1, 2])
    with pytest.raises(InvalidInput, match="at least one iterable"):
        double.map()
    assert count(rig) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"walltime": "soon"}, "walltime 'soon' is not a duration"),
        ({"walltime": 0}, "walltime 0 is not a duration"),
        ({"walltime": -5}, "walltime -5 is not a duration"),
        ({"cores": 0}, "cores 0 is not a whole number above zero"),
        ({"cores": -1}, "cores -1"),
        ({"cores": 1.5}, "cores 1.5"),
        ({"memory": "-1G"}, "memory '-1G' is not a size"),
        ({"memory": 0}, "memory 0"),
        ({"retries": -1}, "retries -1"),
        ({"retries": "many"}, "retries 'many'"),
        ({"priority": 1000}, "priority 1000"),
        ({"tags": "eos"}, 'write tags=["eos"]'),
        ({"corse": 2}, "unknown task option 'corse'; there are: cache, contiguous, cores"),
    ],
    ids=str,
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        pilot.task(**options)(pilot_tasks.double)
    assert words in str(caught.value)
    with pytest.raises(InvalidInput):
        pilot.command(["true"], **options)


def test_bad_commands() -> None:
    with pytest.raises(InvalidInput, match="should be a list"):
        pilot.command("ls -l")
    with pytest.raises(InvalidInput, match="should be a string"):
        pilot.command(["ls"], shell=True)
    with pytest.raises(InvalidInput, match="names no program"):
        pilot.command([])
    for name in ("/etc/passwd", "../tests", "a/../../tests"):
        with pytest.raises(InvalidInput, match="below its working directory"):
            pilot.command(["true"], inputs={name: ""})


def test_no_project_is_open() -> None:
    with pytest.raises(PilotError, match=r"with pilot.open\(\)"):
        double.submit(1)


def test_futures_of_another_project(project: pilot.Project, tmp_path: Path) -> None:
    own = double.submit(1)
    with Rig(tmp_path / "other") as other, other.open() as elsewhere:
        foreign = double.submit(1)
        assert foreign.project is elsewhere
        with pytest.raises(ForeignFuture, match="another project"):
            double.submit(own)
        for argument in ([own], {"a": (own,)}, Bag("b", own), own["x"]):
            with pytest.raises(ForeignFuture, match="another project"):
                same.submit(argument)
        assert count(other) == 1
    assert double.submit(own).result(LONG_S) == 4


def test_too_little_room_in_a_slot(rig: Rig, project: pilot.Project) -> None:
    """What no slot can run waits, and takes nothing from the others."""
    with pytest.warns(NotOffered, match="needs 64 slots on one node"):
        wide = pilot.task(cores=64)(pilot_tasks.double).submit(1)
    assert double.submit(2).result(LONG_S) == 4
    assert wide.state is pilot.State.READY
    project.cancel(wide)
    pilot.wait([wide], timeout=LONG_S)
    assert wide.cancelled()


# -- the end of a program -------------------------------------------------------------------------


def test_a_project_closed_with_unfinished_futures(rig: Rig, gate: Path) -> None:
    with rig.open() as project:
        slow = wait_for.submit(str(gate))
        quick = double.submit(1)
        assert quick.result(LONG_S) == 2
    with pytest.raises(PilotError, match=f"closed before task '{slow.id}' ended.*project.task"):
        slow.result(LONG_S)
    assert quick.result() == 2
    assert project
    gate.touch()
    with rig.open() as project:
        assert project.task(slow.id).result(LONG_S) == str(gate)


SUBMITTING = """
import pilot
from tests import pilot_tasks
def numbers():
    for number in range(10_000_000):
        if number == 5000:
            print("ready", flush=True)
        yield number
with pilot.open() as project:
    pilot.task(pilot_tasks.double).map(numbers())
"""

WAITING = """
import sys
import pilot
from tests import pilot_tasks
with pilot.open() as project:
    futures = pilot.task(pilot_tasks.wait_for).map([sys.argv[1]] * 5)
    print("ready", flush=True)
    print(futures[-1].result())
"""


@pytest.mark.parametrize("text", [SUBMITTING, WAITING], ids=["map", "result"])
def test_ctrl_c(rig: Rig, gate: Path, text: str) -> None:
    before = set(rig.store.tasks.distinct("_id"))
    program = script(rig.config, text, str(gate))
    try:
        assert program.stdout
        assert program.stdout.readline() == "ready\n"
        program.send_signal(signal.SIGINT)
        asked = time.monotonic()
        _, words = program.communicate(timeout=LONG_S)
        print(f"ended {time.monotonic() - asked:.2f} s after Ctrl-C")
    finally:
        program.kill()
        program.communicate()
    assert program.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in words
    assert "tasks go on without this program" in words
    assert "`pilot wait`" in words
    gate.touch()
    rig.settled(2 * LONG_S)
    new = [doc["_id"] for doc in rig.store.tasks.find({}, ["_id"]) if doc["_id"] not in before]
    assert len(new) == 5 if text is WAITING else len(new) >= 1000
    rig.check(new)


def test_a_script_that_forgets_to_close(rig: Rig) -> None:
    """It does not hang at its end."""
    text = "import pilot\nfrom tests import pilot_tasks\np = pilot.open().__enter__()\n"
    text += "print(pilot.task(pilot_tasks.double).submit(4).result(60))\n"
    program = script(rig.config, text)
    try:
        out, err = program.communicate(timeout=LONG_S)
    except subprocess.TimeoutExpired:
        program.kill()
        program.communicate()
        raise
    assert (out, program.returncode) == ("8\n", 0), err
