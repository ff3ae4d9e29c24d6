"""Tasks of many shapes on one pilot: MPI functions, MPI programs, several cores, and what becomes of a crash."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import pilot
from pilot.errors import InvalidInput, NotOffered
from pilot.site_files import load_site
from pilot.sites import launchers
from pilot.store import pilots
from tests import pilot_tasks, wide_tasks
from tests.conftest import need
from tests.rig import LONG_S, Rig, wait_until

pytestmark = pytest.mark.timeout(300)

SLOTS = 4


@pytest.fixture(scope="module")
def wide_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Run a pilot of four slots on two pretended nodes."""
    need("mongod")
    need("mpiexec")
    with Rig(tmp_path_factory.mktemp("wide") / "p") as made:
        made.start(slots=SLOTS, pretend_nodes=2, launchers=launchers(load_site("local")))
        yield made
        made.drain()
        made.check_clean()


def await_pool(rig: Rig) -> None:
    wait_until(lambda: pilots.pools(rig.store), LONG_S, "the pool is up", rig.logs)


@pytest.fixture
def opened(wide_rig: Rig) -> Iterator[pilot.Project]:
    with wide_rig.open() as project:
        await_pool(wide_rig)
        yield project
    wide_rig.settled()
    wide_rig.check()


ranks = pilot.task(wide_tasks.ranks)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_an_mpi_function(opened: pilot.Project, count: int) -> None:
    future = ranks.with_options(ranks=count).submit("x")
    result = future.result(LONG_S)
    assert [(rank, size, x) for rank, size, _, x in result] == [(rank, count, "x") for rank in range(count)]
    assert len({pid for _, _, pid, _ in result}) == count
    record = future.record()
    assert record is not None
    assert len(record["placement"]) == count
    assert len({slot for place in record["placement"] for slot in place["slots"]}) == count


def test_two_ranks_stay_on_one_node_and_spread_when_asked(opened: pilot.Project) -> None:
    together = ranks.with_options(ranks=2).submit(1)
    spread = ranks.with_options(ranks=2, ranks_per_node=1).submit(1)
    whole = ranks.with_options(ranks=2, nodes=2).submit(1)
    for future, nodes in ((together, 1), (spread, 2), (whole, 2)):
        future.result(LONG_S)
        record = future.record()
        assert record is not None
        assert len({place["host"] for place in record["placement"]}) == nodes


def test_gathered_results_and_links_to_them(opened: pilot.Project) -> None:
    every = pilot.task(ranks=3, gather=True)(wide_tasks.mine).submit()
    assert every.result(LONG_S) == [0, 1, 2]
    assert pilot.task(pilot_tasks.total).submit(every).result(LONG_S) == 3


def test_shapes_mixed_and_all_done(opened: pilot.Project) -> None:
    wide = [ranks.with_options(ranks=1 + number % SLOTS).submit(number) for number in range(24)]
    narrow = pilot.task(pilot_tasks.nap).map(range(60), [0.02] * 60)
    cores = pilot.task(cores=2)(wide_tasks.cpus).submit()
    assert [len(future.result(LONG_S)) for future in wide] == [1 + number % SLOTS for number in range(24)]
    assert [future.result(LONG_S) for future in narrow] == list(range(60))
    assert cores.result(LONG_S)


def test_an_exception_on_one_rank(opened: pilot.Project) -> None:
    future = pilot.task(ranks=2, walltime="30s")(wide_tasks.fails_on_one).submit()
    with pytest.raises(pilot.TaskFailed, match="rank 1 does not like this"):
        future.result(LONG_S)
    assert len(ranks.with_options(ranks=2).submit(0).result(LONG_S)) == 2


def test_walltime_and_cancel_of_an_mpi_function(opened: pilot.Project) -> None:
    with pytest.raises(pilot.TaskFailed, match="walltime"):
        pilot.task(ranks=2, walltime="1s")(wide_tasks.spin).submit().result(LONG_S)
    future = pilot.task(ranks=2)(wide_tasks.spin).submit()
    wait_until(lambda: future.state is pilot.State.LEASED, LONG_S, "it is leased")
    opened.cancel(future)
    wait_until(lambda: future.state is pilot.State.CANCELLED, LONG_S, "it is cancelled")


def test_an_mpi_program(opened: pilot.Project) -> None:
    code = "from mpi4py import MPI; print(MPI.COMM_WORLD.allreduce(1))"
    future = pilot.command([sys.executable, "-c", code], ranks=3, stdout="out", outputs={"out": "out"}).submit()
    assert b"".join(future.result(LONG_S)["out"].split()) == b"333"  # lines of ranks may meet
    record = future.record()
    assert record is not None
    assert len(record["placement"]) == 3
    assert record["launcher"][0].endswith(("mpiexec.hydra", "mpiexec"))


def test_a_wide_task_is_not_starved(opened: pilot.Project) -> None:
    narrow = pilot.task(pilot_tasks.nap).map(range(400), [0.05] * 400)
    time.sleep(0.3)  # the slots are at work
    wide = pilot.task(ranks=SLOTS)(wide_tasks.together).submit(0.0)
    assert wide.result(LONG_S) == SLOTS
    left = sum(not future.done() for future in narrow)
    assert left > 100, f"only {left} of 400 narrow tasks were left when it had run"
    assert [future.result(LONG_S) for future in narrow] == list(range(400))


def test_more_than_anybody_offers(opened: pilot.Project) -> None:
    with pytest.warns(NotOffered, match="no pool that is up can run this task: "):
        future = ranks.with_options(ranks=64).submit(0)
    assert future.state is pilot.State.READY
    opened.cancel(future)
    with pytest.raises(InvalidInput, match="gpus 1: site 'local' has none"):
        pilot.task(gpus=1)(wide_tasks.cpus).submit()
    with pytest.raises(InvalidInput, match=r"memory .* GiB"):
        pilot.task(memory="9000G")(wide_tasks.cpus).submit()


def test_a_crash_costs_one_attempt(tmp_path: Path) -> None:
    need("mongod")
    need("mpiexec")
    with Rig(tmp_path / "p") as rig:
        rig.start(slots=SLOTS, launchers=launchers(load_site("local")))
        with rig.open():
            await_pool(rig)
            narrow = pilot.task(pilot_tasks.nap).map(range(40), [0.2] * 40)
            bad = pilot.task(ranks=2)(wide_tasks.crash).submit(str(tmp_path / "crashed"))
            worse = pilot.task(ranks=2)(wide_tasks.crash_always).submit()
            assert bad.result(2 * LONG_S) == "2 ranks"
            with pytest.raises(pilot.TaskFailed) as caught:
                worse.result(2 * LONG_S)
            assert "SIGSEGV" in str(caught.value)
            assert [future.result(2 * LONG_S) for future in narrow] == list(range(40))
            for future in (bad, worse):
                outcomes = [record["outcome"] for record in rig.records(future.id)]
                assert outcomes[-1] == ("succeeded" if future is bad else "crashed")
                assert set(outcomes[:-1]) <= {"lost"}
            assert all(rig.store.tasks.find_one({"_id": future.id})["tried"] == 0 for future in narrow)  # type: ignore[index]
        rig.settled()
        rig.check([bad.id, *(future.id for future in narrow)])
        rig.drain()


def test_tasks_side_by_side_have_cpus_of_their_own(tmp_path: Path) -> None:
    need("mongod")
    need("mpiexec")
    available = sorted(os.sched_getaffinity(0))
    if len(available) < 2:
        pytest.skip("this machine has one CPU: there is nothing to divide")
    program = "import os; print(sorted(os.sched_getaffinity(0)))"
    with Rig(tmp_path / "p") as rig:
        rig.start(slots=2, launchers=launchers(load_site("local")))
        with rig.open():
            await_pool(rig)
            narrow = [future.result(LONG_S) for future in pilot.task(wide_tasks.cpus_of_two).map([0.3] * 2)]
            assert sorted(narrow) == [[available[0]], [available[1]]]
            both = pilot.task(cores=2)(wide_tasks.cpus).submit()
            assert both.result(LONG_S) == available[:2]
            runs = [
                pilot.command([sys.executable, "-c", program], ranks=1, stdout="out", outputs={"out": "out"}).submit()
                for _ in range(2)
            ]
            seen = [json.loads(future.result(LONG_S)["out"]) for future in runs]
            assert all(len(cpus) == 1 and cpus[0] in available[:2] for cpus in seen)
        rig.drain()


def test_programs_wait_for_a_job_step(tmp_path: Path) -> None:
    """As many as the site allows run at a time, on all of their slots; the pool says which wait for a step."""
    need("mongod")
    need("mpiexec")
    with Rig(tmp_path / "p") as rig:
        rig.start(slots=SLOTS, launchers=launchers(load_site("local")), steps_max=1, one_node_steps=True)
        with rig.open():
            await_pool(rig)
            script = f"until [ -e {tmp_path / 'go'} ]; do sleep 0.05; done"
            futures = [pilot.command(script, shell=True, ranks=2, walltime="2m").submit() for _ in range(2)]

            def waits() -> bool:
                (pool,) = pilots.pools(rig.store)
                return pool.get("busy") == 2 and len(pool.get("stepless", ())) == 1

            wait_until(waits, LONG_S, "one runs on two slots, the other waits for a step", rig.logs)
            (tmp_path / "go").touch()
            pilot.wait(futures, timeout=LONG_S)
            first, second = sorted((future.record()["time"] for future in futures), key=lambda time: time["started"])
        assert first["finished"] <= second["started"]
        rig.settled()
        rig.check()
        rig.drain()
        rig.check_clean()
