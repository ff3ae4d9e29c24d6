"""The example as a user runs it: from an empty directory, through a real pilot, to the records."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import pilot
from pilot.states import State
from pilot.store import invariants, tasks
from pilot.store.local import LocalServer
from tests.conftest import need

SCRIPT = Path(__file__).parents[1] / "examples" / "eos" / "run.py"


def run(*arguments: str, cwd: Path) -> str:
    """Run `pilot ARGUMENTS` and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "pilot", *arguments], cwd=cwd, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"pilot {arguments[0]} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.timeout(400)
def test_the_example_runs_through_a_real_pilot(tmp_path: Path) -> None:
    need("mongod")
    need("mpiexec")
    run("init", cwd=tmp_path)
    try:
        run("run", "--slots", "2", str(SCRIPT), cwd=tmp_path)
        made = json.loads((tmp_path / "eos.json").read_text())
        copper = next(row for row in made["summary"] if row["material"] == "Cu")
        assert copper["a0_A"] == pytest.approx(3.61, rel=0.01)
        assert len(made["summary"]) == 8
        assert (tmp_path / "eos.png").read_bytes().startswith(b"\x89PNG")
        with pilot.open(tmp_path) as project:
            counts = tasks.counts(project.store)
            assert counts[State.DONE] == sum(counts.values()) == 337
            assert invariants.violations(project.store) == []
            record = project.record_of(made["show"])
        assert record is not None
        sources = [entry for entry in record["inputs"] if "source" in entry]
        assert len(sources) == 41
        assert made["show"] in run("show", made["show"], cwd=tmp_path)
        assert "337" in run("status", cwd=tmp_path)
    finally:
        LocalServer(tmp_path / ".pilot" / "store").stop()
