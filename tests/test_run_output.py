"""Captured output: every byte kept, each with its own task. Real processes and pipes."""

from __future__ import annotations

import errno
import os
import resource
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilot.executors.run.output import Output, slot_file
from pilot.executors.run.position import Position
from pilot.model import TAIL_BYTES, Log, Result
from pilot.states import Outcome
from tests import run_tasks
from tests.run_rig import Rig, alive, wait_for


@pytest.fixture
def rig(tmp_path: Path) -> Any:
    with Rig(tmp_path) as made:
        yield made


def _text(result: Result) -> str:
    """Read a task's whole output from where its log says."""
    assert result.log
    with open(result.log.file, "rb") as file:
        file.seek(result.log.offset)
        return file.read(result.log.length).decode()


# -- attribution --------------------------------------------------------------------------------------


def test_nothing_printed_nothing_kept(rig: Rig) -> None:
    assert rig.one(rig.function(run_tasks.nothing)).log is None
    assert not rig.output.file.exists()


def test_each_task_has_its_own_output(rig: Rig) -> None:
    texts = [f"task {i}\n" * (i % 7) for i in range(200)]
    results = rig.run(*[rig.function(run_tasks.print_text, text) for text in texts])
    for text, result in zip(texts, results, strict=True):
        if text:
            assert _text(result) == text
        else:
            assert result.log is None
    assert rig.output.file == slot_file(rig.root / "out", "testhost", 1)
    assert rig.output.file.read_text() == "".join(texts)


def test_unfinished_lines_errors_and_c_are_the_tasks_own(rig: Rig) -> None:
    results = rig.run(
        rig.function(run_tasks.print_text, "no end", ", an error"),
        rig.function(run_tasks.print_in_c, "printed by C"),
        rig.command("printf from; printf shell >&2", shell=True),
        rig.function(run_tasks.print_text, "last"),
    )
    assert [_text(result) for result in results] == ["no end, an error", "printed by C", "fromshell", "last"]


def test_output_moved_elsewhere_does_not_stay_there(rig: Rig, tmp_path: Path) -> None:
    moved, after = rig.run(
        rig.function(run_tasks.move_output, str(tmp_path / "file")), rig.function(run_tasks.print_text, "here")
    )
    assert moved.log is None
    assert (tmp_path / "file").read_text() == "into the file\n"
    assert _text(after) == "here"


def test_output_made_non_blocking_does_not_stay_so(rig: Rig) -> None:
    code = "import os; os.set_blocking(1, False)"
    for item in (rig.function(run_tasks.unblock_output), rig.command(sys.executable, "-c", code)):
        _, after = rig.run(item, rig.function(run_tasks.print_much, 2_000_000))
        assert after.log
        assert (after.outcome, after.log.length) == (Outcome.SUCCEEDED, 2_000_000)


def test_output_of_a_crash_is_its_own(rig: Rig) -> None:
    results = rig.run(
        rig.function(run_tasks.print_text, "before"),
        rig.function(run_tasks.segfault),
        rig.function(run_tasks.print_text, "after"),
    )
    assert [_text(results[0]), _text(results[2])] == ["before", "after"]
    assert _text(results[1]).startswith("before the crash\n")


def test_output_can_be_followed_while_the_task_runs(rig: Rig, tmp_path: Path) -> None:
    item = rig.function(run_tasks.print_slowly, "line", 3, str(tmp_path / "mark"))
    rig.offer([item])
    rig.until(lambda: rig.output.file.exists() and rig.output.file.read_text() == "line\n" * 3)
    rig.child.cancel(*item.key)
    rig.until(lambda: rig.child.load == 0)
    assert _text(rig.results[item.task]).startswith("line\n" * 3)


def test_binary_output(rig: Rig) -> None:
    result = rig.one(rig.command("head -c 5000 /dev/urandom; printf end", shell=True))
    assert result.log
    assert result.log.length == 5003
    assert len(result.log.tail.encode()) <= TAIL_BYTES
    assert result.log.tail.endswith("end")


# -- amounts ------------------------------------------------------------------------------------------


def test_a_hundred_megabytes(rig: Rig) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    first, much, last = rig.run(
        rig.function(run_tasks.print_text, "first"),
        rig.function(run_tasks.print_much, 100_000_000),
        rig.function(run_tasks.print_text, "last"),
        timeout_s=90,
    )
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40_000
    assert (_text(first), _text(last)) == ("first", "last")
    assert much.outcome is Outcome.SUCCEEDED
    assert much.log
    assert much.log.length == 100_000_000
    assert len(much.log.tail) == TAIL_BYTES
    assert rig.output.file.stat().st_size == 100_000_000 + len("firstlast")


def test_output_does_not_wait_for_the_rank(rig: Rig, tmp_path: Path) -> None:
    """Tasks that print a little run on while the rank is busy with something else."""
    items = [rig.function(run_tasks.print_text, f"{i}\n") for i in range(20)]
    last = rig.function(run_tasks.sleep, 0.0, str(tmp_path / "mark"))
    rig.offer([*items, last])
    wait_for((tmp_path / "mark").exists)  # without a single poll
    rig.until(lambda: rig.child.load == 0)
    assert [_text(rig.results[item.task]) for item in items] == [f"{i}\n" for i in range(20)]


def test_process_left_behind_may_print_for_ever(rig: Rig) -> None:
    first = rig.one(rig.command("(while :; do echo noise; done) & echo $!", shell=True))
    assert first.log
    pid = int(_text(first).replace("noise\n", "").split()[0])
    assert alive(pid)
    results = rig.run(*[rig.function(run_tasks.add, i) for i in range(50)])
    assert [rig.value(result) for result in results] == list(range(1, 51))
    rig.child.close()
    wait_for(lambda: not alive(pid))


# -- full disk ----------------------------------------------------------------------------------------


class FullDisk:
    """Lets `os.write` keep `room` bytes, as a quota does; a real one needs root."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room = 1 << 60
        self._write = os.write
        monkeypatch.setattr("pilot.executors.run.output.os.write", self.write)

    def write(self, fd: int, data: Any) -> int:
        if self.room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = self._write(fd, memoryview(data)[: self.room])
        self.room -= count
        return count


def test_full_disk_costs_output_and_nothing_else(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.one(rig.function(run_tasks.print_text, "kept"))
    disk = FullDisk(monkeypatch)
    disk.room = 1000
    result = rig.one(rig.function(run_tasks.print_much, 1_000_000))
    assert result.outcome is Outcome.SUCCEEDED
    assert result.log
    assert (result.log.offset, result.log.length) == (4, 1000)
    assert result.log.tail.startswith("x")
    assert "999000 bytes of output were dropped: No space left on device" in result.log.tail
    assert len(result.log.tail) <= TAIL_BYTES
    disk.room = 0
    nothing = rig.one(rig.function(run_tasks.print_text, "lost"))
    assert nothing.log == Log(
        str(rig.output.file), 0, 0, "[pilot: 4 bytes of output were dropped: No space left on device]"
    )
    disk.room = 1 << 60
    again = rig.one(rig.function(run_tasks.print_text, "again"))
    assert _text(again) == "again"


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    output = Output(tmp_path / "file" / "node" / "slot-1.out")
    output.append(b"lost")
    log = output.log(0, 4)
    assert log
    assert "4 bytes of output were dropped: Not a directory" in log.tail
    (tmp_path / "file").unlink()
    output.append(b"kept")
    log = output.log(4, 8)
    assert log
    assert (log.offset, log.length, log.tail) == (0, 4, "kept")
    output.close()


def test_file_that_exists_is_continued(tmp_path: Path) -> None:
    file = tmp_path / "slot-1.out"
    file.write_text("of an earlier pool\n")
    output = Output(file)
    output.append(b"one")
    assert output.log(0, 3) == Log(str(file), 19, 3, "one")
    output.close()


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.integers(0, 50)),
            st.tuples(st.just("room"), st.one_of(st.integers(0, 60), st.just(1 << 60))),
            st.tuples(st.just("task"), st.integers(1, 80)),
        ),
        max_size=40,
    )
)
def test_ranges_hold_whatever_was_lost(tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]) -> None:
    """However writes fail, the bytes that a log names are a prefix-wise selection of its task's own bytes."""
    output = Output(tmp_path_factory.mktemp("output") / "file")
    stream, done = b"", 0
    with pytest.MonkeyPatch.context() as patch:
        disk = FullDisk(patch)
        for step, number in steps:
            if step == "append":
                data = bytes((len(stream) + i) % 251 for i in range(number))
                stream += data
                if data:
                    output.append(data)
            elif step == "room":
                disk.room = number
            else:
                end = min(done + number, len(stream))
                log = output.log(done, end)
                own, done = stream[done:end], end
                if not own:
                    assert log is None
                    continue
                assert log
                kept = output.file.read_bytes()[log.offset : log.offset + log.length] if log.length else b""
                assert len(kept) == log.length
                remaining = iter(own)
                assert all(byte in remaining for byte in kept)  # in order, nobody else's
                assert (kept == own) == ("dropped" not in log.tail)
    output.close()


# -- positions ----------------------------------------------------------------------------------------


def test_position_is_exact_while_both_sides_work() -> None:
    """A writer always knows how much it has written in all, whenever the reader reads."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    position = Position.create()
    pid = os.fork()
    if pid == 0:
        wrong = 0
        written = 0
        for i in range(20_000):
            written += os.write(writing, b"x" * (i % 100 + 1))
            wrong += position.written(writing) != written
        os._exit(min(wrong, 255))
    ended = status = 0
    while not ended:
        position.begin_read()
        try:
            count = len(os.read(reading, 1000))
        except BlockingIOError:
            count = 0
        position.end_read(count)
        ended, status = os.waitpid(pid, os.WNOHANG)
    assert os.waitstatus_to_exitcode(status) == 0
    os.close(reading)
    os.close(writing)
    position.close()
