"""AlCu3 with a real pw.x on two ranks, mixed with single-core tasks and MPI functions, in a real pilot."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import need

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "examples" / "quantum-espresso" / "run.py"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_alcu3_with_pw(tmp_path: Path) -> None:
    for program in ("mongod", "mpiexec", "pw.x"):
        need(program)
    run = [sys.executable, "-m", "pilot"]
    subprocess.run([*run, "init", str(tmp_path)], check=True, capture_output=True, timeout=60)
    try:
        done = subprocess.run(
            [*run, "run", "--slots", "4", str(SCRIPT)], cwd=tmp_path, capture_output=True, text=True, timeout=500,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        results = json.loads((tmp_path / "alcu3.json").read_text())
    finally:
        subprocess.run([*run, "store", "stop"], cwd=tmp_path, check=False, capture_output=True, timeout=60)
    assert results["difference_Ry"] < 1e-6
    assert results["fit"]["a0_A"] == pytest.approx(3.65, abs=0.01)
    assert results["fit"]["B_GPa"] == pytest.approx(139, abs=3)
    assert max(results["heat_errors"].values()) < 1e-12
    assert sorted(results["heat_errors"]) == ["1", "2", "3", "4"]
