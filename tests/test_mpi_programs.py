"""MPI programs as tasks: real launchers of both MPIs, started by a real child, as ranks of a pool do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pilot.executors.run.orphans import find_orphans
from pilot.executors.run.sessions import sessions
from pilot.model import pretended_node
from pilot.sites import Node
from pilot.states import Outcome
from tests.run_mpi_rig import CPUS, PROGRAM, SITE, mpi_rig, need, needs_two_cpus, openmpi, said, script, site_with
from tests.run_rig import REPOSITORY, Rig, placed, wait_for

PWX = "/usr/bin/pw.x"


@pytest.fixture(params=["mpich", "openmpi"])
def mpi(request: pytest.FixtureRequest) -> dict[str, str]:
    """Return what makes the test program one of this MPI."""
    return openmpi() if request.param == "openmpi" else {}


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with mpi_rig(tmp_path) as made:
        yield made


# -- the good case --------------------------------------------------------------------------------


def test_ranks_make_one_program(rig: Rig, mpi: dict[str, str]) -> None:
    item = rig.command(*PROGRAM, cores=2, env={**mpi, "MY_OWN": "x"}, wide={"ranks": 3})
    result = rig.one(item)
    ranks = said(rig, result)
    assert [(one["rank"], one["size"], one["sum"]) for one in ranks] == [(0, 3, 3), (1, 3, 3), (2, 3, 3)]
    assert {one["library"] for one in ranks} == {"Open" if mpi else "MPICH"}
    folder = sessions(rig.pool)  # what is in it goes with the program, and it with the pool
    assert (os.listdir(folder) if mpi else os.path.exists(folder)) == ([] if mpi else False)
    assert {one["cwd"] for one in ranks} == {f"{rig.root}/project"}
    assert {(one["env"]["PILOT_TASK"], one["env"]["OMP_NUM_THREADS"], one["env"]["MY_OWN"]) for one in ranks} == {
        (item.task, "2", "x")
    }
    assert result.launcher
    assert result.launcher[-2:] == ("-n", "3")
    assert result.launcher[0].startswith(str(Path(mpi.get("MPI4PY_LIBMPI", sys.executable)).parent.parent))
    assert result.program
    assert result.program[0] == sys.executable
    assert result.exit_code == 0
    assert result.usage.cpu_s > 0.1
    assert not list((rig.root / "scratch").iterdir())


def test_one_rank_is_an_mpi_program_too(rig: Rig, mpi: dict[str, str]) -> None:
    assert [one["size"] for one in said(rig, rig.one(rig.command(*PROGRAM, env=mpi, wide={"ranks": 1})))] == [1]


@needs_two_cpus
def test_each_rank_has_its_share(tmp_path: Path, mpi: dict[str, str]) -> None:
    with mpi_rig(tmp_path, node=Node(gpus=2)) as rig:
        place = placed((CPUS[1],), (CPUS[0],), gpus=(("1",), ("0",)))
        ranks = said(rig, rig.one(rig.command(*PROGRAM, env=mpi, wide={"ranks": 2, "place": place})))
        assert [(one["cpus"], one["env"]["CUDA_VISIBLE_DEVICES"]) for one in ranks] == [
            ([CPUS[1]], "1"), ([CPUS[0]], "0"),
        ]  # fmt: skip


@needs_two_cpus
def test_pretended_nodes_lie_on_their_host(rig: Rig, mpi: dict[str, str]) -> None:
    here = os.uname().nodename
    hosts = (pretended_node(here, 0), pretended_node(here, 1), pretended_node(here, 0))
    place = placed((CPUS[0],), (CPUS[1],), (CPUS[0], CPUS[1]), hosts=hosts)
    ranks = said(rig, rig.one(rig.command(*PROGRAM, env=mpi, wide={"ranks": 3, "place": place})))
    assert [one["cpus"] for one in ranks] == [[CPUS[0]], [CPUS[1]], CPUS[:2]]


def test_cpus_that_are_not_there_are_said(rig: Rig) -> None:
    result = rig.one(rig.command(*PROGRAM, wide={"ranks": 2, "place": placed((1000,), ())}))
    assert len(said(rig, result)) == 2
    assert "cannot be bound to CPUs 1000" in rig.tail(result)


def test_files_outputs_and_a_directory_of_its_own(rig: Rig) -> None:
    code = "from mpi4py import MPI\nopen(f'out-{MPI.COMM_WORLD.rank}', 'w').write(open('in').read())\n"
    item = rig.command(
        sys.executable, "-c", code, values={"text": "abc"}, files={"in": "text"}, outputs={"out": "out-*"},
        wide={"ranks": 2},
    )  # fmt: skip
    result = rig.one(item)
    assert rig.value(result, "out") == {"out-0": b"abc", "out-1": b"abc"}


def test_signals_are_default(rig: Rig) -> None:
    tails = rig.tail(rig.one(rig.command("grep", "SigIgn", "/proc/self/status", wide={"ranks": 2})))
    assert {int(word, 16) & (1 << 12) for word in tails.split()[1::2]} == {0}


def test_memory_is_limited_by_rank(rig: Rig) -> None:
    item = rig.command(*PROGRAM, "eat", str(1 << 30), memory_bytes=400 << 20, wide={"ranks": 2})
    result = rig.one(item)
    assert result.outcome is Outcome.FAILED
    assert "MemoryError" in rig.tail(result)


# -- who is of which MPI --------------------------------------------------------------------------


def _need_pwx() -> None:
    need("" if Path(PWX).exists() else f"{PWX} is missing (Debian's quantum-espresso)")


_SCF = """&control
 calculation='scf', pseudo_dir='/usr/share/espresso/pseudo', outdir='out', prefix='x' /
&system
 ibrav=2, celldm(1)=7.5, nat=1, ntyp=1, ecutwfc=12, occupations='smearing', degauss=0.05 /
&electrons
/
ATOMIC_SPECIES
 Al 26.98 Al.pz-vbc.UPF
ATOMIC_POSITIONS
 Al 0 0 0
K_POINTS automatic
 {k} {k} {k} 0 0 0
"""


def _scf(rig: Rig, ranks: int, cpus: tuple[tuple[int, ...], ...], k: int, task: str | None = None) -> Any:
    return rig.command(
        "pw.x", "-in", "scf.in", values={"text": _SCF.format(k=k)}, files={"scf.in": "text"},
        outputs={"xml": "out/x.save/*.xml"}, wide={"ranks": ranks, "place": placed(*cpus)}, task=task,
    )  # fmt: skip


def test_a_real_program_of_the_systems_open_mpi(rig: Rig) -> None:
    _need_pwx()
    result = rig.one(_scf(rig, 2, ((CPUS[0],), (CPUS[-1],)), 4), timeout_s=120)
    assert result.outcome is Outcome.SUCCEEDED, (rig.why(result), rig.tail(result))
    assert result.launcher
    assert Path(result.launcher[0]).name == "mpirun.openmpi"
    assert "JOB DONE" in rig.tail(result)
    assert b"<nprocs>2</nprocs>" in rig.value(result, "xml")


@needs_two_cpus
def test_two_real_programs_side_by_side_do_not_share_cores(tmp_path: Path) -> None:
    _need_pwx()
    with mpi_rig(tmp_path / "a") as a, mpi_rig(tmp_path / "b") as b:
        a.offer([_scf(a, 1, ((CPUS[0],),), 10, f"pw-{os.getpid()}-a")])
        b.offer([_scf(b, 1, ((CPUS[1],),), 10, f"pw-{os.getpid()}-b")])

        def apart() -> bool:
            """Whether both run, each on its own core. (At their start they visit all, to look at the machine.)"""
            a.turn(0.01)
            b.turn(0.01)
            assert not a.results, "the program ended before it was seen"
            assert not b.results, "the program ended before it was seen"
            allowed = [_allowed(f"pw-{os.getpid()}-{name}") for name in "ab"]
            return allowed == [{str(CPUS[0])}, {str(CPUS[1])}]

        wait_for(apart, 60)


def _allowed(task: str) -> set[str]:
    """Return the CPUs that the ranks of a task's `pw.x` are allowed."""
    found = set()
    for pid in find_orphans("PILOT_TASK", task):
        try:
            if Path(f"/proc/{pid}/comm").read_text().strip() == "pw.x":
                text = Path(f"/proc/{pid}/status").read_text()
                found.add(text.partition("Cpus_allowed_list:")[2].split()[0])
        except OSError:
            continue
    return found


def test_a_shell_command_is_of_the_mpi_of_its_first_program(rig: Rig) -> None:
    _need_pwx()
    result = rig.one(rig.command("OMP_X=1 exec pw.x -in /nonexistent", shell=True, wide={"ranks": 2}))
    assert result.launcher
    assert Path(result.launcher[0]).name == "mpirun.openmpi"


def test_a_command_may_say_its_mpi(rig: Rig) -> None:
    good, bad = rig.run(
        rig.command("true", env={"PILOT_MPI": "mpich"}, wide={"ranks": 2}),
        rig.command("true", env={"PILOT_MPI": "lam"}, wide={"ranks": 2}),
    )
    assert good.outcome is Outcome.SUCCEEDED
    assert rig.why(bad) == (
        "cannot start an MPI program of flavour 'lam': the site file has, under 'programs', mpich, openmpi"
    )


# -- under a rank ---------------------------------------------------------------------------------

_RANK = """
import sys
from pathlib import Path
from mpi4py import MPI
from tests import run_mpi_rig as programs
assert MPI.COMM_WORLD.size == 2
with programs.mpi_rig(Path(sys.argv[1]) / str(MPI.COMM_WORLD.rank)) as rig:
    result = rig.one(rig.command(*programs.PROGRAM, wide={"ranks": 2}))
    assert [one["size"] for one in programs.said(rig, result)] == [2, 2], rig.tail(result)
MPI.COMM_WORLD.Barrier()
sys.stdout.write("good\\n")
"""


def test_a_program_does_not_take_itself_for_a_rank_of_the_pool(tmp_path: Path) -> None:
    launcher = [str(Path(sys.executable).parent / "mpiexec"), "-bind-to", "none", "-n", "2"]
    env = {**os.environ, "PYTHONPATH": REPOSITORY}
    ran = subprocess.run(
        [*launcher, sys.executable, "-c", _RANK, str(tmp_path)], env=env, capture_output=True, text=True, timeout=90,
        check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.stdout.split()) == (0, ["good", "good"]), ran.stdout + ran.stderr


# -- bad ends -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_rank_that_dies_ends_the_program_and_is_named(rig: Rig, mpi: dict[str, str], number: int) -> None:
    item = rig.command(*PROGRAM, "kill", str(int(number)), env=mpi, wide={"ranks": 2})
    result = rig.one(item)
    assert (result.outcome, result.exit_code) == (Outcome.CRASHED, -number), rig.tail(result)
    assert f"the program {' '.join(PROGRAM)!r}"[:-1] in rig.why(result)
    assert f"by signal {number} (SIG" in rig.why(result)
    assert result.failure
    if mpi:
        assert rig.why(result).startswith("rank 1 of 2 of the program ")
        assert (result.failure.rank, result.failure.host) == (1, os.uname().nodename)
    else:  # Hydra may not tell whom it has killed from who died first; but it must never name the wrong one
        assert not rig.why(result).startswith("rank 0")
    assert find_orphans("PILOT_TASK", item.task) == []


def test_a_rank_that_dies_is_noticed_though_output_goes_to_a_file(rig: Rig, mpi: dict[str, str]) -> None:
    """Hydra says it on standard output, which is the file."""
    result = rig.one(rig.command(*PROGRAM, "kill", "11", env=mpi, wide={"ranks": 2}, stdout="out.txt"))
    assert (result.outcome, result.exit_code) == (Outcome.CRASHED, -signal.SIGSEGV), rig.why(result)


@pytest.mark.parametrize("how", ["leave", "abort"])
def test_an_exit_code_is_reported(rig: Rig, mpi: dict[str, str], how: str) -> None:
    result = rig.one(rig.command(*PROGRAM, how, "3", env=mpi, wide={"ranks": 2}))
    assert (result.outcome, result.exit_code) == (Outcome.FAILED, 3), rig.tail(result)
    assert "ended with exit code 3" in rig.why(result)


def test_a_rank_that_leaves_without_a_word_is_named(rig: Rig) -> None:
    """By Open MPI. Hydra sometimes reports its own SIGKILL then, or hangs; see docs/concepts/mpi-programs.md."""
    result = rig.one(rig.command(*PROGRAM, "exit", "3", env=openmpi(), wide={"ranks": 2}))
    assert (result.outcome, result.exit_code) == (Outcome.FAILED, 3), rig.tail(result)
    assert rig.why(result).startswith("rank 1 of 2 of ")


def test_a_program_that_is_not_there_is_the_commands_fault(rig: Rig) -> None:
    result = rig.one(rig.command("no-such-program", wide={"ranks": 2}))
    assert (result.outcome, result.exit_code) == (Outcome.FAILED, 127)
    assert rig.why(result) == "cannot run the program 'no-such-program': not found"


def test_a_program_that_cannot_be_executed_is_the_commands_fault(rig: Rig, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/no/such/interpreter\n")
    program.chmod(0o755)
    result = rig.one(rig.command(str(program), wide={"ranks": 1}))
    assert (result.outcome, result.exit_code) == (Outcome.FAILED, 127)
    assert "cannot run the program" in rig.tail(result)


@pytest.mark.parametrize("how", ["walltime", "cancel"])
def test_nothing_is_left_of_a_program_that_is_stopped(rig: Rig, mpi: dict[str, str], tmp_path: Path, how: str) -> None:
    mark, task = tmp_path / "mark", f"{how}-{os.getpid()}-{bool(mpi)}"
    walltime_s = 6.0 if how == "walltime" else None
    item = rig.command(*PROGRAM, "hang", str(mark), env=mpi, walltime_s=walltime_s, wide={"ranks": 2}, task=task)
    rig.offer([item])
    rig.until(mark.exists)
    assert len(find_orphans("PILOT_TASK", task)) >= 3
    if how == "cancel":
        assert not rig.child.cancel(*item.key)
    rig.until(lambda: task in rig.results)
    assert rig.results[task].outcome is (Outcome.CANCELLED if how == "cancel" else Outcome.TIMEOUT)
    wait_for(lambda: not find_orphans("PILOT_TASK", task))
    assert rig.one(rig.command("true")).outcome is Outcome.SUCCEEDED


def test_nothing_is_left_when_the_launcher_is_killed(rig: Rig, mpi: dict[str, str], tmp_path: Path) -> None:
    mark, task = tmp_path / "mark", f"killed-{os.getpid()}-{bool(mpi)}"
    rig.offer([rig.command(*PROGRAM, "hang", str(mark), env=mpi, wide={"ranks": 2}, task=task)])
    rig.until(mark.exists)
    child = rig.child._keeper.process
    assert child
    (launcher,) = map(int, Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split())
    os.kill(launcher, signal.SIGKILL)
    rig.until(lambda: task in rig.results)
    assert (rig.results[task].outcome, rig.results[task].exit_code) == (Outcome.CRASHED, -signal.SIGKILL)
    assert not find_orphans("PILOT_TASK", task)


# -- launchers that do not work -------------------------------------------------------------------


def test_a_launcher_that_is_missing(tmp_path: Path) -> None:
    with mpi_rig(tmp_path / "rig", **site_with(tmp_path / "nowhere" / "mpiexec")) as rig:
        result = rig.one(rig.command(*PROGRAM, wide={"ranks": 2}))
        assert result.outcome is Outcome.FAILED
        assert result.failure
        assert result.failure.type == "pilot.errors.LauncherNotFound"
        assert "nowhere/mpiexec" in rig.why(result)
        assert "install mpich (Debian or PyPI), or name it under 'programs'" in rig.why(result)


def test_a_launcher_that_hangs_is_not_the_programs_fault(tmp_path: Path) -> None:
    launcher, task = script(tmp_path / "launch", "echo waiting; exec sleep 300"), f"hangs-{os.getpid()}"
    with mpi_rig(tmp_path / "rig", **site_with(launcher, start_s=0.5)) as rig:
        result = rig.one(rig.command(*PROGRAM, wide={"ranks": 2}, task=task))
        assert result.outcome is Outcome.LOST
        assert rig.why(result) == (
            "launcher 'launch' did not start the program: it did nothing for 0.5 s; it printed:\nwaiting"
        )
        assert not find_orphans("PILOT_TASK", task)
        assert result.launcher == (str(launcher), "2")


def test_a_launcher_that_fails_is_not_the_programs_fault(tmp_path: Path) -> None:
    with mpi_rig(tmp_path / "rig", **site_with(script(tmp_path / "launch", "echo no node >&2; exit 5"))) as rig:
        result = rig.one(rig.command(*PROGRAM, wide={"ranks": 2}))
        assert (result.outcome, result.exit_code) == (Outcome.LOST, 5)
        assert "did not start the program: it ended with exit code 5; it printed:\nno node" in rig.why(result)


def test_a_launcher_that_closes_its_output_is_waited_for(tmp_path: Path) -> None:
    text = 'exec >&- 2>&-; shift; PMI_RANK=0 PMI_SIZE=1 sh -c \'exec "$@"\' sh "$@"'
    with mpi_rig(tmp_path / "rig", **site_with(script(tmp_path / "launch", text))) as rig:
        assert rig.one(rig.command("sleep", "0.2", wide={"ranks": 1})).outcome is Outcome.SUCCEEDED


def test_a_launcher_whose_ranks_are_unknown_runs_them_unbound(tmp_path: Path) -> None:
    with mpi_rig(tmp_path / "rig", **site_with(script(tmp_path / "launch", 'shift; exec "$@"'))) as rig:
        result = rig.one(rig.command("echo", "hello", wide={"ranks": 1, "place": placed((CPUS[0],))}))
        assert result.outcome is Outcome.SUCCEEDED
        assert "finds no share for itself" in rig.tail(result)


def test_a_site_without_programs_says_so(tmp_path: Path) -> None:
    site = SITE.model_copy(update={"programs": {}})
    with Rig(tmp_path, site=site) as rig:
        assert "the site file has, under 'programs', none" in rig.why(rig.one(rig.command("true", wide={"ranks": 1})))
