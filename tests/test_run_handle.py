"""The queue before a child: walltime, cancel, recall, fresh and stale processes, starts. Real processes."""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pilot.errors import PoolError
from pilot.executors.run.handle import Item, Settings
from pilot.states import Outcome
from tests import run_tasks
from tests.run_rig import Rig, alive, wait_for


@pytest.fixture
def rig(tmp_path: Path) -> Any:
    with Rig(tmp_path) as made:
        yield made


# -- walltime and cancel ------------------------------------------------------------------------------


def test_walltime(rig: Rig) -> None:
    result = rig.between(rig.function(run_tasks.sleep, 60.0, walltime_s=0.2))
    assert result.outcome is Outcome.TIMEOUT
    assert "walltime of 0.2 s" in rig.why(result)
    assert 0.2 <= result.usage.wall_s < 2.5
    assert "in sleep" in rig.tail(result)  # where it was


def test_walltime_of_a_task_that_ignores_signals(rig: Rig, tmp_path: Path) -> None:
    started = time.monotonic()
    result = rig.between(rig.function(run_tasks.stubborn, str(tmp_path / "mark"), walltime_s=0.3))
    assert result.outcome is Outcome.TIMEOUT
    assert time.monotonic() - started < 5


def test_walltime_of_a_stopped_child(rig: Rig) -> None:
    assert rig.one(rig.function(run_tasks.stop_self, walltime_s=0.2)).outcome is Outcome.TIMEOUT


def test_walltime_counts_from_the_tasks_own_start(rig: Rig) -> None:
    items = [rig.function(run_tasks.sleep, 0.15, walltime_s=0.4) for _ in range(6)]
    assert [result.outcome for result in rig.run(*items)] == [Outcome.SUCCEEDED] * 6


@pytest.mark.parametrize("stubborn", [False, True])
def test_cancel_a_running_task(rig: Rig, tmp_path: Path, stubborn: bool) -> None:
    mark = tmp_path / "mark"
    item = rig.function(run_tasks.stubborn, str(mark)) if stubborn else rig.function(run_tasks.sleep, 60.0, str(mark))
    behind = [rig.function(run_tasks.add, i) for i in range(3)]
    rig.offer([item, *behind])
    rig.until(mark.exists)
    started = time.monotonic()
    assert rig.child.cancel(*item.key) is False
    rig.until(lambda: len(rig.results) == 4)
    assert rig.results[item.task].outcome is Outcome.CANCELLED
    assert time.monotonic() - started < 3
    assert [rig.value(rig.results[one.task]) for one in behind] == [1, 2, 3]


def test_cancel_what_has_not_begun(rig: Rig, tmp_path: Path) -> None:
    first = rig.function(run_tasks.sleep, 0.3, str(tmp_path / "mark"))
    others = [rig.function(run_tasks.add, i) for i in range(4)]
    rig.offer([first, *others])
    rig.until((tmp_path / "mark").exists)
    assert rig.child.cancel(*others[2].key) is True
    assert rig.child.cancel("unknown", 1) is False
    rig.until(lambda: rig.child.load == 0)
    assert list(rig.results) == [first.task, others[0].task, others[1].task, others[3].task]
    assert all(result.outcome is Outcome.SUCCEEDED for result in rig.results.values())


def test_cancel_kills_descendants_in_other_sessions(rig: Rig, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    item = rig.function(run_tasks.spawn_and_wait, str(mark), True)
    rig.offer([item])
    rig.until(lambda: mark.exists() and bool(mark.read_text()))
    pids = [int(word) for word in mark.read_text().split()]
    rig.child.cancel(*item.key)
    rig.until(lambda: rig.child.load == 0)
    wait_for(lambda: not any(map(alive, pids)))


# -- recall -------------------------------------------------------------------------------------------


def test_take_back_leaves_only_what_has_begun(rig: Rig, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    running = rig.function(run_tasks.sleep, 0.2, str(mark))
    behind = [rig.function(run_tasks.add, i) for i in range(5)]
    rig.offer([running, *behind])
    rig.until(mark.exists)
    assert rig.child.take_back(2) == behind[3:]
    assert rig.child.take_back() == behind[:3]
    assert (rig.child.load, rig.child.running) == (1, running.key)
    assert rig.child.take_back() == []
    rig.until(lambda: rig.child.load == 0)
    assert list(rig.results) == [running.task]


def test_take_back_before_the_child_is_up(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        items = [rig.function(run_tasks.add, i) for i in range(5)]
        rig.offer(items)
        assert rig.child.take_back() == items
        assert rig.child.load == 0
        assert rig.value(rig.one(items[0])) == 1


def test_take_back_races_with_the_child(rig: Rig, tmp_path: Path) -> None:
    """Every attempt is begun or returned, never both, never neither, at any moment of recall."""
    generator = random.Random(1)
    log = tmp_path / "log"

    def note(name: str) -> None:
        with open(log, "a") as file:
            file.write(f"{name}\n")

    returned: list[str] = []
    offered: list[str] = []
    for _ in range(150):
        names = [f"{len(offered) + i}" for i in range(generator.randrange(1, 20))]
        offered += names
        rig.offer([rig.function(note, name, task=name) for name in names])
        for _ in range(generator.randrange(3)):
            rig.turn(0.0)
        returned += [item.task for item in rig.child.take_back(generator.choice([None, 1, 5]))]
    rig.until(lambda: rig.child.load == 0)
    ran = log.read_text().split()
    assert sorted(ran + returned, key=int) == offered
    assert sorted(rig.results) == sorted(ran)
    assert ran
    assert returned


def test_take_back_of_code_with_a_racing_child(rig: Rig) -> None:
    """The packet with a function's code may be taken back while its work is not: nothing is lost."""
    for i in range(60):
        items = [rig.function(eval(f"lambda: {i}"), task=f"{i}.{j}") for j in range(3)]
        rig.offer(items)
        back = rig.child.take_back(i % 4)
        rig.offer(back)
        rig.until(lambda: rig.child.load == 0)
    assert len(rig.results) == 180
    assert all(result.outcome is Outcome.SUCCEEDED for result in rig.results.values())


def test_offer_has_limits(tmp_path: Path) -> None:
    with Rig(tmp_path, Settings(most_items=3)) as rig:
        items = [rig.function(run_tasks.add, i) for i in range(4)]
        assert [rig.child.offer(item) for item in items] == [True, True, True, False]
        rig.child.take_back(1)
        with pytest.raises(PoolError, match="twice"):
            rig.child.offer(items[0])
    with Rig(tmp_path, Settings(most_bytes=1000)) as rig:
        items = [rig.function(run_tasks.size, "x" * 5000) for i in range(2)]
        assert [rig.child.offer(item) for item in items] == [True, False]
        rig.child.take_back()
        with pytest.raises(PoolError, match="code"):
            rig.child.offer(items[0]._replace(function="f" * 64, frame=b""))


# -- fresh and stale ----------------------------------------------------------------------------------


def test_fresh_has_a_process_of_its_own(rig: Rig) -> None:
    pids = [rig.value(result) for result in rig.run(
        rig.function(run_tasks.pid), rig.function(run_tasks.pid), rig.function(run_tasks.pid, fresh=True),
        rig.function(run_tasks.pid, fresh=True), rig.function(run_tasks.pid), rig.function(run_tasks.pid),
    )]  # fmt: skip
    assert pids[0] == pids[1]
    assert pids[4] == pids[5]
    assert len(set(pids)) == 4


def test_fresh_takes_an_unused_child(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        first = rig.child._keeper.process
        assert first
        assert rig.value(rig.one(rig.function(run_tasks.pid, fresh=True))) == first.pid


def test_stale_module_is_run_in_a_new_process(tmp_path: Path) -> None:
    module = tmp_path / "code" / "drifting.py"
    with Rig(tmp_path) as rig:

        def version(number: int) -> Item:
            module.write_text(f"def answer():\n    return {number}\n")
            os.utime(module, (number, number))
            sys.path.append(str(module.parent))
            try:
                import drifting  # type: ignore[import-not-found]

                return rig.function(drifting.answer)
            finally:
                sys.path.pop()
                del sys.modules["drifting"]

        sys.dont_write_bytecode, old = True, sys.dont_write_bytecode
        try:
            one = version(1)
            behind = [rig.function(run_tasks.add, i) for i in range(3)]
            assert rig.value(rig.one(one)) == 1
            two = version(2)
            results = rig.run(two, *behind)
            assert [rig.value(result) for result in results] == [2, 1, 2, 3]
            changed = rig.one(one._replace(task="again", frame=one.frame))
        finally:
            sys.dont_write_bytecode = old
    assert changed.outcome is Outcome.FAILED
    assert changed.failure
    assert "CodeChanged" in changed.failure.type


# -- starting -----------------------------------------------------------------------------------------


def test_child_that_cannot_start_is_an_error_with_its_words(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", "import no_such_module_anywhere"]
    with Rig(tmp_path, argv=argv) as rig:
        item = rig.function(run_tasks.nothing)
        rig.offer([item])
        with pytest.raises(PoolError, match=r"(?s)3 times.*no_such_module_anywhere"):
            rig.until(lambda: False)
        assert rig.child.take_back() == [item]
        assert rig.child.poll(time.monotonic()) == []  # it rests before the next series
        wake = rig.child.next_wake(time.monotonic())
        assert wake
        assert wake > time.monotonic() + 3


def test_child_that_says_nothing_is_an_error(tmp_path: Path) -> None:
    settings = Settings(start_s=0.2, delays_s=())
    argv = [sys.executable, "-c", "import time; print('hm', flush=True); time.sleep(60)"]
    with Rig(tmp_path, settings, argv) as rig, pytest.raises(PoolError, match=r"(?s)nothing for 0\.2 s.*hm"):
        rig.until(lambda: False)


def test_program_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    settings = Settings(delays_s=())
    with Rig(tmp_path, settings, ["/no/such/python"]) as rig, pytest.raises(PoolError, match="/no/such/python"):
        rig.until(lambda: False)


def test_child_recovers_when_it_can_start_again(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    code = f"import os, sys; os.path.exists({str(flag)!r}) or sys.exit('not yet'); os.execv(sys.argv[1], sys.argv[1:])"
    entry = [sys.executable, "-P", str(Path(__file__).parent / "run_entry.py"), str(tmp_path), str(tmp_path / "code")]
    settings = Settings(delays_s=(0.01,), rest_s=0.05)
    with Rig(tmp_path, settings, [sys.executable, "-c", code, *entry]) as rig:
        item = rig.function(run_tasks.add, 1)
        rig.offer([item])
        with pytest.raises(PoolError, match="not yet"):
            rig.until(lambda: False)
        assert not rig.child.up
        flag.touch()
        rig.until(lambda: item.task in rig.results)
        assert rig.child.up


def test_child_imports_little_and_starts_fast(tmp_path: Path) -> None:
    def loaded() -> list[str]:
        import sys

        return sorted(sys.modules)

    with Rig(tmp_path) as rig:
        names = rig.value(rig.one(rig.function(loaded)))
    bad = {"pymongo", "bson", "click", "pydantic", "rich", "mpi4py", "parsl", "numpy", "subprocess", "asyncio"}
    assert not bad & set(names)
