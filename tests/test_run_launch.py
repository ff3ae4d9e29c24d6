"""Which MPI, which launcher, and what launchers say; no MPI program is started here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pilot.errors import LauncherNotFound
from pilot.executors.run import bind, launch, sessions
from pilot.executors.run.launch import Blame, Launchers, blame, by_host, choose, flavour_of, in_launch_order
from pilot.model import RankPlace, pretended_node
from pilot.site_files import load_site
from pilot.sites import Program, launchers
from tests.run_mpi_rig import need, script

BESIDE = Path(sys.executable).parent
SITE = load_site()
KNOWN = Launchers.of(json.loads(json.dumps(launchers(SITE))))
PATH = {"PATH": os.environ["PATH"]}


def test_what_a_child_knows_is_what_the_site_says() -> None:
    assert KNOWN.default == "mpich"
    assert (KNOWN.start_s, KNOWN.gpu_variable) == (60.0, "")
    assert KNOWN.programs["openmpi"].host_line == "{host} slots={ranks}"


# -- which MPI ------------------------------------------------------------------------------------


def _pwx() -> str:
    pwx = "/usr/bin/pw.x"
    need("" if Path(pwx).exists() else f"{pwx} is missing (Debian's quantum-espresso)")
    return pwx


def test_programs_show_their_mpi() -> None:
    flavour, library = flavour_of(_pwx(), {})
    assert flavour == "openmpi"
    assert Path(library).exists()


def test_scripts_and_python_show_none(tmp_path: Path) -> None:
    paths = [sys.executable, "/bin/true", str(script(tmp_path / "script", "true")), "/nonexistent"]
    assert {flavour_of(path, {}) for path in paths} == {("", "")}


def test_the_library_that_mpi4py_is_told_to_load_counts() -> None:
    library = str(BESIDE.parent / "lib" / "libmpi.so.12")
    need("" if Path(library).exists() else f"{library} is missing (the wheel mpich)")
    assert flavour_of(sys.executable, {"MPI4PY_LIBMPI": library}) == ("mpich", library)


def test_a_program_that_was_built_again_is_looked_at_again(tmp_path: Path) -> None:
    program = tmp_path / "program"
    shutil.copy("/bin/true", program)
    assert flavour_of(str(program), {})[0] == ""
    shutil.copy(_pwx(), program)
    assert flavour_of(str(program), {})[0] == "openmpi"


# -- which launcher -------------------------------------------------------------------------------


def test_the_launcher_beside_python_goes_before_the_path(tmp_path: Path) -> None:
    script(tmp_path / "mpiexec.hydra", "echo HYDRA")
    chosen = choose(KNOWN, sys.executable, {"PATH": str(tmp_path)})
    assert chosen.path in {str(BESIDE.resolve() / name) for name in ("mpiexec.hydra", "mpiexec")}
    assert chosen.line(3, 2, "/a/hosts")[1:] == ["-bind-to", "none", "-f", "/a/hosts", "-n", "3"]


def test_a_launcher_of_another_mpi_is_passed_over(tmp_path: Path) -> None:
    """The environment of Python has an `mpirun` of its own."""
    first, second = tmp_path / "1", tmp_path / "2"
    for folder, words in ((first, "HYDRA build details"), (second, "mpirun (Open MPI) http://www.open-mpi.org")):
        folder.mkdir()
        script(folder / "mpirun", f"echo '{words}'")
    env = {"PATH": f"{BESIDE}:{first}:{second}:/usr/bin:/bin", "PILOT_MPI": "openmpi"}
    assert choose(KNOWN, sys.executable, env).path == str(second / "mpirun")


def test_the_installation_of_the_library_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bin", "lib"):
        (tmp_path / "real" / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    script(tmp_path / "real" / "bin" / "mpirun", "echo open-mpi")
    found = ("openmpi", str(tmp_path / "link" / "lib" / "x" / "libmpi.so.40"))
    (tmp_path / "real" / "lib" / "x").mkdir()
    monkeypatch.setattr(launch, "flavour_of", lambda path, env: found)
    assert choose(KNOWN, "program", PATH).path == str(tmp_path / "real" / "bin" / "mpirun")


def test_a_missing_launcher_is_named_with_what_to_install(tmp_path: Path) -> None:
    other = Program(launcher=("no-such-launcher|nor-this",), says="me")
    known = Launchers.of(launchers(SITE.model_copy(update={"programs": {"openmpi": other}})))
    with pytest.raises(LauncherNotFound, match=r"no-such-launcher or nor-this whose --version has 'me', found none;.*"):
        choose(known, sys.executable, {"PATH": str(tmp_path), "PILOT_MPI": "openmpi"})


def test_a_launcher_that_makes_job_steps_is_told_its_job() -> None:
    plain = {**launchers(load_site("frontier")), "job": "17"}
    known = Launchers.of(plain)
    chosen = launch.Chosen("mpich", "/usr/bin/srun", known.programs["mpich"])
    assert "--jobid=17" in chosen.line(3, 2, "/a/hosts", known.job)
    assert chosen.environment({}, {}, "/a/hosts", "/s") == {"SLURM_HOSTFILE": "/a/hosts"}
    assert chosen.program.line_per_rank


def test_the_environment_of_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    program = launch.Program(("x",), "", "", False, {"SITE": "s", "BOTH": "s"})
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    user = launch.Chosen("openmpi", "x", program).environment({"A": "a", "BOTH": "a"}, {"BOTH": "own"}, "/h", "/s")
    assert user == {"A": "a", "SITE": "s", "BOTH": "own"} | sessions.variables("/s")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert launch.Chosen("mpich", "x", program).environment({}, {}, "/h", "/s") == {"SITE": "s", "BOTH": "s"}
    root = launch.Chosen("openmpi", "x", program).environment({}, {}, "/h", "/s")
    assert {name for name in root if "ROOT" in name} == {
        "OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "PRTE_ALLOW_RUN_AS_ROOT",
        "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM",
    }  # fmt: skip


# -- hosts ----------------------------------------------------------------------------------------


def test_ranks_of_one_host_go_together_pretended_or_not() -> None:
    a, b, c, d = (RankPlace(host, (i,)) for i, host in enumerate(["x~0", "y", "x~1", "y~0"]))
    assert by_host([a, b, c, d]) == {"x": [a, c], "y": [b, d]}
    assert in_launch_order([a, b, c, d]) == (a, c, b, d)
    assert pretended_node("x", 1) == c.host


# -- what launchers say ---------------------------------------------------------------------------

_HYDRA = """
===================================================================================
=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES
=   PID 15458 RUNNING AT vm
=   EXIT CODE: 11
=   CLEANING UP REMAINING PROCESSES
=   YOU CAN IGNORE THE BELOW CLEANUP MESSAGES
===================================================================================
YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Segmentation fault (signal 11)
"""
_OPENMPI_4 = "mpirun noticed that process rank 1 with PID 0 on node vm exited on signal 9 (Killed).\n"
_OPENMPI_5 = (
    "prterun noticed that process rank 1 with PID 15466 on node vm exited on\nsignal 11 (Segmentation fault).\n"
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (_HYDRA, Blame(2, "node7", 11)),
        (_HYDRA.replace("15458", "99"), Blame(-1, "", 11)),
        (_HYDRA.replace("CODE: 11", "CODE: 9"), Blame(-1, "", 11)),  # it killed that one itself
        (_HYDRA.replace("CODE: 11", "CODE: 9").replace("signal 11", "signal 9"), Blame(-1, "", 9)),  # perhaps
        (_OPENMPI_4, Blame(1, "vm", 9)),
        (_OPENMPI_5, Blame(1, "vm", 11)),
        ("first process to do so was:\n\n  Process name: [[20566,1],2]\n  Exit code:    3\n", Blame(2, "node7", 0)),
        ("   Process name: [prterun-vm-15518@1,2]\n   Exit code:    3\n", Blame(2, "node7", 0)),
        ("Abort(5) on node 2 (rank 2 in comm 0): application called MPI_Abort", Blame(2, "node7", 0)),
        ("MPI_ABORT was invoked on rank 0 in communicator MPI_COMM_WORLD", Blame(0, "", 0)),
        ("the program's own words", None),
    ],
)
def test_who_is_to_blame(text: str, expected: Blame | None) -> None:
    assert blame(text, {15458: (2, "node7"), 1: (1, "vm")}) == expected


# -- the wrapper of ranks -------------------------------------------------------------------------


def test_the_wrapper_reads_nothing_that_python_does_not_read_anyway(tmp_path: Path) -> None:
    (tmp_path / "bind.py").write_text(Path(bind.__file__).read_text().partition("if __name__")[0] + _LIST)
    (tmp_path / "nothing.py").write_text("import os, sys\n" + _LIST)
    loaded = [
        subprocess.run(
            [sys.executable, "-S", "-E", "-P", tmp_path / name], capture_output=True, text=True, check=True
        ).stdout.split()
        for name in ("bind.py", "nothing.py")
    ]
    assert set(loaded[0]) - set(loaded[1]) <= {"__future__"}


_LIST = "import sys\nprint(*sys.modules)\n"


def test_the_wrapper_is_quick() -> None:
    argv = [sys.executable, "-S", "-E", "-P", bind.__file__]

    def once() -> float:
        began = time.perf_counter()
        subprocess.run(argv, capture_output=True, check=False)  # it ends for want of arguments
        return time.perf_counter() - began

    assert min(once() for _ in range(10)) < 0.05
