"""Program nodes: nodes without a pool, for MPI programs of sites where these cannot start beside one."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import pilot
from pilot import define
from pilot.allocation import pilot_settings
from pilot.board import Node
from pilot.config import ProjectConfig
from pilot.errors import InvalidInput, NotOffered
from pilot.executors.run.verdict import Item
from pilot.explain import Facts, Pilot, reasons
from pilot.layout import Layout, program_nodes_of
from pilot.offers import usual_layout
from pilot.pool_keeper import divided
from pilot.pool_process import Block
from pilot.prepare import Held
from pilot.resources import Resources
from pilot.site_files import load_site
from pilot.sites import Launcher, Site, launchers
from pilot.store import pilots
from pilot.wide import Started, Wide
from tests import pilot_tasks, wide_tasks
from tests.conftest import need
from tests.rig import LONG_S, Rig, wait_until

POOL = Layout((Node("a", (1, 2)), Node("b", (3, 4))), 1, cpus={1: (4,), 2: (5,), 3: (4,), 4: (5,)})
PAIR = Resources(ranks=2, walltime_s=60.0, program=True)
HERE = os.uname().nodename


def layout(beside: str = "no", hosts: tuple[str, ...] = ("x", "y")) -> Layout:
    return Layout(POOL.nodes, 1, cpus=POOL.cpus, programs=program_nodes_of(POOL, beside, hosts))


def held(name: str, needs: Resources = PAIR, program: bool = True, **fields: Any) -> Held:
    """Return a leased task, by default a program."""
    task = {"_id": name, "class": needs.key, "priority": 0, "seq": 0, **fields}
    return Held(task, Item(name, 1, None, needs.walltime_s, False, b""), (), {}, program)


def begun(wide: Wide) -> dict[str, tuple[list[int], tuple[str, ...]]]:
    """Return what begins now, the slots that it takes, and the nodes of its ranks."""

    def seen(one: Started) -> tuple[list[int], tuple[str, ...]]:
        return [slot for spot in one.spots for slot in spot.slots], one.place.hosts

    return {one.held.item.task: seen(one) for one in wide.start(0.0, ())}


# -- what is a program ------------------------------------------------------------------------------


def test_the_class_of_a_program_is_not_that_of_an_mpi_function() -> None:
    assert define.command(["md.x"], ranks=2, walltime="1m").options.resources == PAIR
    assert PAIR.key == "c1w60r2x"
    assert Resources.from_key(PAIR.key) == PAIR
    assert not define.task(ranks=2)(wide_tasks.mine).options.resources.program
    assert not define.command(["true"], gpus=1).options.resources.program  # it is not told of MPI
    assert define.task(ranks=2, gpus=1)(wide_tasks.mine).options.resources.program  # it runs in a program of its own
    with pytest.raises(InvalidInput, match="unknown task option 'program'"):
        define.task(program=True)


# -- nodes ------------------------------------------------------------------------------------------


def test_program_nodes_are_like_the_first_node_of_the_pool() -> None:
    programs = layout().programs
    assert programs is not None
    assert programs.nodes == (Node("x", (5, 6)), Node("y", (7, 8)))
    assert programs.cpus == {5: (4,), 6: (5,), 7: (4,), 8: (5,)}
    assert layout("share").programs is None


@pytest.mark.parametrize(
    ("program_nodes", "blocks"),
    [
        (0, [(("a", "b"), ()), (("c", "d"), ())]),
        (1, [(("a", "b"), ("d",)), (("c",), ())]),
        (2, [(("a", "b"), ("c", "d"))]),
        (9, [(("a",), ("b", "c", "d"))]),  # the batch system gave fewer nodes than were asked for
    ],
)
def test_the_first_block_has_the_program_nodes(
    program_nodes: int, blocks: list[tuple[tuple[str, ...], tuple[str, ...]]]
) -> None:
    found = divided(Block(("a", "b", "c", "d")), 2, program_nodes)
    assert [(block.hosts, block.program_hosts) for block in found] == blocks


def test_a_block_on_this_machine_has_none() -> None:
    assert divided(Block(), 64, 2) == [Block()]


def test_which_program_nodes_are_refused() -> None:
    config = ProjectConfig(Path("/p"), "p", "i", True)
    with pytest.raises(InvalidInput, match="site 'slurm' starts MPI programs on the nodes of its pools"):
        pilot_settings(config, load_site("slurm"), nodes=2, program_nodes=1)
    with pytest.raises(InvalidInput, match=r"program nodes 2 of 2: .*needs a node too; ask for more, `--nodes 3`"):
        pilot_settings(config, site("no"), nodes=2, program_nodes=2)
    settings = pilot_settings(config, site("no"), nodes=3, program_nodes=2)
    assert (settings.nodes, settings.pool_nodes, settings.programs_beside_pool) == (3, 1, "no")


def site(beside: str) -> Site:
    found = load_site("slurm")
    return found.model_copy(update={"launcher": found.launcher.model_copy(update={"programs_beside_pool": beside})})


def test_an_unquoted_no_is_the_word() -> None:
    assert Launcher.model_validate(yaml.safe_load("{command: [srun], programs_beside_pool: no}")) == Launcher(
        command=("srun",), programs_beside_pool="no"
    )


# -- who runs where ---------------------------------------------------------------------------------


def test_a_program_takes_one_slot_of_the_pool_and_its_ranks_are_on_program_nodes() -> None:
    wide = Wide(layout())
    wide.add([held("p"), held("f", Resources(ranks=4), program=False)])
    assert begun(wide) == {"p": ([1], ("x",))}
    assert wide.taken == {1}
    assert wide.stats(0.0)["program_nodes_busy"] == 1
    assert wide.ended(("p", 1), 1.0)
    assert begun(wide) == {"f": ([1, 2, 3, 4], ("a", "b"))}
    assert wide.stats(0.0)["program_nodes_busy"] == 0


def test_a_program_waits_for_program_nodes_and_for_a_slot() -> None:
    wide = Wide(layout())
    wide.add([held("big", Resources(ranks=4, program=True)), held("p", seq=1)])
    assert begun(wide) == {"big": ([1], ("x", "y"))}
    assert begun(wide) == {}
    for slot in (2, 3, 4):
        wide.busy(slot, None)
    assert wide.ended(("big", 1), 1.0)
    wide.busy(1, None)
    assert begun(wide) == {}  # there is room for its ranks
    assert wide.stats(0.0)["kept"] == {"class": PAIR.key, "slots": 1, "in_s": None}
    assert wide.reserved is not None
    (kept,) = wide.reserved.slots
    wide.idle(kept)
    assert begun(wide) == {"p": ([kept], ("x",))}


def test_whole_nodes_where_the_site_wants_them() -> None:
    wide = Wide(layout("whole_node_free"))
    one = Resources(ranks=1, program=True)
    wide.add([held("p", one), held("q", one), held("r", one)])
    assert begun(wide) == {"p": ([1], ("x",)), "q": ([2], ("y",))}
    wide = Wide(layout("no"))
    wide.add([held("p", one), held("q", one), held("r", one)])
    assert begun(wide) == {"p": ([1], ("x",)), "q": ([2], ("x",)), "r": ([3], ("y",))}
    assert layout("whole_node_free").why_never("c1r3x") == ""
    assert layout("whole_node_free").at_once("c1r3x") == 1


def test_every_program_there_takes_a_step_if_any_does() -> None:
    wide = Wide(layout(), steps_max=1)
    wide.add([held("p"), held("q")])
    assert begun(wide) == {"p": ([1], ("x",))}
    assert wide.stats(0.0)["stepless"] == ["q"]
    assert wide.ended(("p", 1), 1.0)
    assert list(begun(wide)) == ["q"]


def test_a_suspect_runs_on_program_nodes_or_else_beside_the_pool() -> None:
    suspect = Resources(ranks=2)  # it was no program when it was submitted
    for hosts, slots, nodes in (("x",), [1], ("x",)), ((), [1, 2], ("a",)):
        wide = Wide(layout(hosts=hosts))
        wide.add([held("s", suspect)])
        assert begun(wide) == {"s": (slots, nodes)}


def test_a_slot_that_is_left_will_do_for_a_launcher() -> None:
    wide = Wide(layout(), lost=[1, 2, 3])
    wide.add([held("p", Resources(ranks=4, program=True))])
    assert wide.starved() == ""
    assert begun(wide) == {"p": ([4], ("x", "y"))}


# -- what is said -----------------------------------------------------------------------------------


def test_why_a_pool_never_runs_a_program() -> None:
    none = layout(hosts=())
    words = (
        "needs program nodes, here are none; this site starts MPI programs on nodes without a pool only: "
        "`pilot up --nodes 3 --program-nodes 2`"
    )
    assert none.why_never("c1r4x") == words
    assert Layout.from_document(none.document()).why_never("c1r4x") == words
    assert none.why_never("c1r4") == layout("share").why_never("c1r4x") == ""
    few = layout(hosts=("x",))
    assert few.why_never("c1r4x").startswith("needs room for 4 ranks, here it is for 2; this site starts MPI programs")
    assert Layout.from_document(few.document()).why_never("c1r4x") == few.why_never("c1r4x")
    up = Pilot("p1", "n1", 4, 1, 0, 0.0, layouts=[none])
    ready = reasons(Facts({"_id": "t-0", "state": "ready", "class": "c1r4x", "attempt": 0}, 1.0, pilots=[up]))
    assert ready == [
        f"pilot p1 cannot run it: {words}", "start a pilot that can: `pilot up --nodes 3 --program-nodes 2`"
    ]  # fmt: skip


def test_which_pilot_would_run_a_program_while_none_is_up() -> None:
    ready = {"_id": "t-0", "state": "ready", "class": "c1r6x", "attempt": 0}
    for beside, options in (("no", "--nodes 3 --program-nodes 2"), ("share", "--slots 6")):
        assert f"`pilot up {options}`" in reasons(Facts(ready, 1.0, usual=usual_layout(site(beside))))[0]


def test_what_a_program_waits_for() -> None:
    doc = {"_id": "t-0", "state": "leased", "class": PAIR.key, "lease": "tok", "attempt": 0}
    pool = {"state": "live", "pilot": "p1", "slots": 4, "busy": 1, "parked": ["t-0"], "program_nodes_busy": 2}
    said = reasons(Facts(doc, 1.0, pool={**pool, **layout().document()}))
    assert "it asks for 2 ranks of 1 core, and 2 of 2 program nodes are busy; it is the next" in said[0]


# -- a pool -----------------------------------------------------------------------------------------


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """Return a project whose pilots run in a PBS job, as far as they can see."""
    need("mongod")
    need("mpiexec")
    monkeypatch.setenv("PBS_JOBID", "1.head")
    monkeypatch.setenv("PBS_NODEFILE", str(tmp_path / "nodes"))
    with Rig(tmp_path / "p") as made:
        yield made


def start(rig: Rig, program_nodes: int) -> None:
    """Start a pilot of this machine, and of a node `bare` whose ranks start here, as their launcher only forks."""
    Path(os.environ["PBS_NODEFILE"]).write_text(f"{HERE}\n" + "bare\n" * program_nodes)
    here = load_site("local")
    mpich = here.programs["mpich"]
    forks = mpich.model_copy(update={"launcher": (mpich.launcher[0], "-launcher", "fork", *mpich.launcher[1:])})
    told = launchers(here.model_copy(update={"programs": {"mpich": forks}}))
    rig.start(
        slots=2, launcher=("mpiexec", "--bind-to", "none", "-f", "{hostfile}", "-n", "{ranks}"), launchers=told,
        batch="pbs", programs_beside_pool="whole_node_free", program_nodes=program_nodes,
    )  # fmt: skip
    wait_until(lambda: pilots.pools(rig.store), LONG_S, "the pool is up", rig.logs)


@pytest.mark.timeout(180)
def test_programs_run_on_the_program_node_and_all_else_goes_on_beside(rig: Rig, tmp_path: Path) -> None:
    start(rig, program_nodes=1)
    go = tmp_path / "go"
    wait = f"until [ -e {go} ]; do sleep 0.05; done"
    code = "from mpi4py import MPI; print(MPI.COMM_WORLD.allreduce(1))"
    with rig.open():
        program = pilot.command(f"{wait}; {sys.executable} -c '{code}'", shell=True, ranks=2, walltime="2m").submit()

        def pool() -> dict[str, Any]:
            return pilots.pools(rig.store)[0]

        wait_until(lambda: pool().get("program_nodes_busy") == pool().get("busy") == 1, LONG_S, "it runs", pool)
        second = pilot.command([sys.executable, "-c", code], ranks=1, walltime="2m").submit()
        wait_until(lambda: second.id in pool().get("parked", ()), LONG_S, "the second waits for the node", pool)
        assert pilot.task(pilot_tasks.nap).map(range(10), [0.01] * 10)[-1].result(LONG_S) == 9
        assert pilot.task(ranks=1)(wide_tasks.mine).submit().result(LONG_S) == 0
        (file,) = [path for path in (rig.config.root / ".pilot").rglob("hosts") if "pool" not in path.name]
        assert file.read_text() == "bare:2\n"
        go.touch()
        pilot.wait([program, second], timeout=LONG_S)
        for future, ranks in (program, 2), (second, 1):
            record = future.record()
            assert record is not None
            assert record["outcome"] == "succeeded", record
            assert [place["host"] for place in record["placement"]] == ["bare"] * ranks
    rig.settled()
    rig.check([program.id, second.id])
    rig.drain()
    rig.check_clean()


@pytest.mark.timeout(180)
def test_without_program_nodes_a_program_waits_and_is_told_why(rig: Rig) -> None:
    start(rig, program_nodes=0)
    with rig.open() as project:
        with pytest.warns(NotOffered, match=r"needs program nodes, here are none; .*`pilot up --nodes 2 --program-n"):
            future = pilot.command(["true"], ranks=1).submit()
        assert pilot.task(ranks=2)(wide_tasks.mine).submit().result(LONG_S) == 0
        assert future.state is pilot.State.READY
        project.cancel(future)
    rig.settled()
