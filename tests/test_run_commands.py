"""Commands in one child: programs, files, outputs, ends. Real programs."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pilot.model import Result
from pilot.states import Outcome
from tests import run_tasks
from tests.run_rig import Rig, alive, wait_for


@pytest.fixture
def rig(tmp_path: Path) -> Any:
    with Rig(tmp_path) as made:
        yield made


def _tail(result: Result) -> str:
    assert result.log
    return result.log.tail


def _why(result: Result) -> str:
    assert result.failure
    return result.failure.message


# -- programs -------------------------------------------------------------------------------------------


def test_true_and_false(rig: Rig) -> None:
    good, bad = rig.run(rig.command("true"), rig.command("false"))
    assert (good.outcome, good.exit_code, good.failure, rig.value(good, "exit_code")) == (
        Outcome.SUCCEEDED, 0, None, 0,
    )  # fmt: skip
    assert (bad.outcome, bad.exit_code, rig.value(bad, "exit_code")) == (Outcome.FAILED, 1, 1)
    assert "'false' ended with exit code 1" in _why(bad)


def test_arguments_arrive_unchanged(rig: Rig) -> None:
    result = rig.one(rig.command("printf", "%s|", "a b", "$HOME", "'", "", "é", "*"))
    assert _tail(result) == "a b|$HOME|'||é|*|"


def test_shell(rig: Rig) -> None:
    result = rig.one(rig.command("echo $((6 * 7)) | tr 2 3; exit 5", shell=True))
    assert (_tail(result), result.exit_code) == ("43\n", 5)


def test_environment(rig: Rig) -> None:
    item = rig.command(
        'echo "$PILOT_TASK:$PILOT_ATTEMPT:$OMP_NUM_THREADS:$MINE:$PILOT_CHILD"', shell=True, cores=3, env={"MINE": "x"}
    )
    assert _tail(rig.one(item)) == f"{item.task}:1:3:x:\n"


def test_own_path_is_searched(rig: Rig, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "hello"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho hello\n")
    program.chmod(0o755)
    found, lost = rig.run(
        rig.command("hello", env={"PATH": f"/nowhere:{program.parent}"}), rig.command("true", env={"PATH": "/nowhere"})
    )
    assert _tail(found) == "hello\n"
    assert (lost.exit_code, lost.outcome) == (127, Outcome.FAILED)


def test_signal_dispositions_are_default(rig: Rig) -> None:
    ignored = _tail(rig.one(rig.command("grep", "SigIgn", "/proc/self/status"))).split()[1]
    assert int(ignored, 16) & 0x7FFFFFFF == 0


def test_standard_input_is_empty(rig: Rig) -> None:
    assert rig.one(rig.command("cat")).outcome is Outcome.SUCCEEDED


def test_many_commands_between_functions(rig: Rig) -> None:
    items = [rig.command("true") if i % 2 else rig.function(run_tasks.add, i) for i in range(100)]
    assert {result.outcome for result in rig.run(*items)} == {Outcome.SUCCEEDED}


# -- programs that cannot be run --------------------------------------------------------------------------


def test_missing_program(rig: Rig) -> None:
    result = rig.one(rig.command("no-such-program", "-x"))
    assert (result.outcome, result.exit_code) == (Outcome.FAILED, 127)
    assert _why(result) == "cannot run the program 'no-such-program': not found"


def test_not_executable_program(rig: Rig, tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_text("not a program")
    denied = rig.one(rig.command(str(file)))
    file.chmod(0o755)
    nonsense = rig.one(rig.command(str(file)))
    assert [denied.exit_code, nonsense.exit_code] == [126, 126]
    assert "Permission denied" in _why(denied)
    assert "neither a program" in _why(nonsense)


def test_missing_interpreter(rig: Rig, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    result = rig.one(rig.command(str(script)))
    assert result.exit_code == 127
    assert "interpreter" in _why(result)


def test_impossible_arguments(rig: Rig) -> None:
    long, null = rig.run(rig.command("true", "x" * (1 << 20)), rig.command("true", "a\0b"))
    assert "Argument list too long" in _why(long)
    assert "null byte" in _why(null)
    assert rig.one(rig.command("true")).outcome is Outcome.SUCCEEDED


def test_missing_directory(rig: Rig) -> None:
    result = rig.one(rig.command("true", cwd="not/there"))
    assert result.outcome is Outcome.FAILED
    assert "cannot enter its directory" in _why(result)
    assert "not/there" in _why(result)


# -- files ------------------------------------------------------------------------------------------------


def test_works_in_the_project(rig: Rig) -> None:
    (rig.root / "project" / "sub").mkdir()
    here, below = rig.run(rig.command("pwd"), rig.command("pwd", cwd="sub"))
    assert _tail(here) == f"{rig.root}/project\n"
    assert _tail(below) == f"{rig.root}/project/sub\n"


def test_files_and_outputs(rig: Rig) -> None:
    item = rig.command(
        "pwd; cat in/text data > both.out; mkdir -p deep/er; echo a > deep/a.xml; echo b > deep/er/b.xml",
        shell=True,
        values={"t": "text é\n", "d": b"\x00\xff", "unused": 1},
        files={"in/text": "t", "data": "d"},
        outputs={"both": "both.out", "xml": "deep/**/*.xml", "one": "deep/*.xml"},
    )
    result = rig.one(item)
    assert result.outcome is Outcome.SUCCEEDED
    assert rig.value(result, "both") == "text é\n".encode() + b"\x00\xff"
    assert rig.value(result, "xml") == {"deep/a.xml": b"a\n", "deep/er/b.xml": b"b\n"}
    assert rig.value(result, "one") == b"a\n"
    assert rig.value(result, "exit_code") == 0
    assert _tail(result) == f"{rig.root}/scratch/{item.task}.1\n"
    assert list((rig.root / "scratch").iterdir()) == []


def test_large_output_goes_to_the_object_repository(rig: Rig) -> None:
    result = rig.one(rig.command("head -c 1000000 /dev/zero > big", shell=True, outputs={"big": "big"}))
    assert dict(result.outputs)["big"].data is None
    assert rig.value(result, "big") == bytes(1_000_000)


def test_missing_output_is_a_failure(rig: Rig) -> None:
    item = rig.command("echo x > a.txt", shell=True, outputs={"a": "a.txt", "b": "b*.txt"})
    result = rig.one(item)
    assert (result.outcome, result.exit_code) == (Outcome.FAILED, 0)
    assert "output 'b' is missing: no file matches 'b*.txt'" in _why(result)
    kept = rig.root / "scratch" / f"{item.task}.1"
    assert f"kept: {str(kept)!r}" in _why(result)
    assert (kept / "a.txt").read_text() == "x\n"


def test_private_directory_is_kept_after_a_failure(rig: Rig) -> None:
    item = rig.command("false", values={"x": "text"}, files={"in": "x"})
    result = rig.one(item)
    assert "kept" in _why(result)
    assert (rig.root / "scratch" / f"{item.task}.1" / "in").read_text() == "text"


@pytest.mark.parametrize(
    "settings",
    [
        {"files": {"../tests": "x"}}, {"files": {"/tmp/out": "x"}}, {"outputs": {"o": "../*"}},
        {"outputs": {"o": "/etc/passwd"}}, {"files": {"number": "n"}}, {"files": {"none": "no such input"}},
    ],
)  # fmt: skip
def test_bad_files_are_refused(rig: Rig, settings: dict[str, Any]) -> None:
    result = rig.one(rig.command("true", values={"x": "text", "n": 5}, **settings))
    assert result.outcome is Outcome.FAILED
    assert result.failure
    assert "InvalidInput" in result.failure.type


# -- ends -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_killed_by_a_signal_is_crashed(rig: Rig, number: signal.Signals) -> None:
    result = rig.one(rig.command(f"kill -{int(number)} $$", shell=True))
    assert (result.outcome, result.exit_code) == (Outcome.CRASHED, -number)
    assert number.name in _why(result)
    assert rig.value(result, "exit_code") == -number


def test_killed_from_outside(rig: Rig) -> None:
    crashed = rig.one(rig.command("kill -KILL $$", shell=True))
    assert (crashed.outcome, crashed.exit_code) == (Outcome.CRASHED, -9)
    rig.child.ending = True
    lost, fault = rig.run(rig.command("kill -KILL $$", shell=True), rig.command("kill -SEGV $$", shell=True))
    assert lost.outcome is Outcome.LOST
    assert fault.outcome is Outcome.CRASHED


def test_term_to_everybody_while_the_pilot_ends_is_lost(rig: Rig, tmp_path: Path) -> None:
    """A scheduler's TERM hits child and program at once; the program says so with an exit code."""
    mark = tmp_path / "mark"
    item = rig.command(f"trap 'exit 143' TERM; touch {mark}; while :; do sleep 0.05; done", shell=True)
    rig.offer([item])
    rig.until(mark.exists)
    os.killpg(rig.child._keeper.process.pid, signal.SIGTERM)  # type: ignore[union-attr]
    rig.child.ending = True
    rig.until(lambda: item.task in rig.results)
    assert rig.results[item.task].outcome is Outcome.LOST
    assert rig.results[item.task].exit_code == 143


def test_walltime(rig: Rig) -> None:
    started = time.monotonic()
    late, after = rig.run(rig.command("sleep", "100", walltime_s=0.2), rig.command("true"))
    assert (late.outcome, late.exit_code) == (Outcome.TIMEOUT, None)
    assert "walltime of 0.2 s" in _why(late)
    assert after.outcome is Outcome.SUCCEEDED
    assert time.monotonic() - started < 3


def test_program_may_clean_up_at_its_walltime(rig: Rig, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    script = f"trap 'echo saved > {mark}; exit 0' TERM; while :; do sleep 0.05; done"
    result = rig.one(rig.command(script, shell=True, walltime_s=0.3))
    assert mark.read_text() == "saved\n"
    assert result.outcome is Outcome.SUCCEEDED  # it ended well, if late: a success that came first stands


def test_stubborn_program_is_killed(rig: Rig, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    script = f"trap '' TERM; echo $$ > {mark}.x; mv {mark}.x {mark}; while :; do sleep 0.1; done"
    item = rig.command(script, shell=True)
    behind = rig.command("true")
    rig.offer([item, behind])
    rig.until(mark.exists)
    pid = int(mark.read_text())
    assert rig.child.cancel(*item.key) is False
    rig.until(lambda: rig.child.load == 0)
    assert rig.results[item.task].outcome is Outcome.CANCELLED
    assert rig.results[behind.task].outcome is Outcome.SUCCEEDED
    wait_for(lambda: not alive(pid))


def test_memory_limit_is_inherited(rig: Rig) -> None:
    code = "x = bytearray(500 << 20)"
    limited, free = rig.run(
        rig.command(sys.executable, "-c", code, memory_bytes=200 << 20), rig.command(sys.executable, "-c", code)
    )
    assert (limited.outcome, free.outcome) == (Outcome.FAILED, Outcome.SUCCEEDED)
    assert "MemoryError" in _tail(limited)
    assert free.usage.max_rss_bytes > 500 << 20


def test_usage(rig: Rig) -> None:
    code = "import time\nwhile time.process_time() < 0.3: pass"
    result = rig.one(rig.command(sys.executable, "-c", code))
    assert 0.3 <= result.usage.cpu_s <= result.usage.wall_s + 0.05
