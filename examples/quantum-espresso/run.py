"""AlCu3 with `pw.x` on two ranks each, mixed with single-core tasks and MPI functions, in one pilot.

`pilot run --slots 4 examples/quantum-espresso/run.py [FOLDER]` writes `alcu3.json` into FOLDER (default: here).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import alcu3
import heat
import numpy as np
from rich.console import Console
from rich.table import Table

import pilot

POINTS, STEPS = 48, 400
RANKS = (1, 2, 3, 4)


def main(folder: Path) -> None:
    """Submit everything at once, wait, compare with serial runs, and report."""
    folder.mkdir(parents=True, exist_ok=True)
    scan = alcu3.LATTICE_CONSTANTS
    middle = scan[len(scan) // 2]
    with pilot.open():
        runs = [alcu3.scf(a) for a in scan]
        energies = [alcu3.total_energy.submit(run["out"]) for run in runs]
        curve = alcu3.fit.submit(scan, energies)
        serial = alcu3.total_energy.submit(alcu3.scf(middle, ranks=None)["out"])
        plates = {ranks: heat.solve.with_options(ranks=ranks).submit(POINTS, STEPS) for ranks in RANKS}

        found = [energy.result() for energy in energies]
        best, alone = curve.result(), serial.result()
        states = {ranks: plate.result() for ranks, plate in plates.items()}

    difference = abs(found[scan.index(middle)] - alone)
    here = heat.solve(POINTS, STEPS, None)
    errors = {ranks: float(np.abs(state - here).max()) for ranks, state in states.items()}
    shrunk = float(states[1].max() / heat.initial(POINTS, 0, POINTS).max())

    table = Table(title="L1₂ AlCu₃, LDA, pw.x on 2 ranks", pad_edge=False)
    table.add_column("a\nÅ", justify="right")
    table.add_column("E\nRy", justify="right")
    for a, energy in zip(scan, found, strict=True):
        table.add_row(f"{a:.2f}", f"{energy:.6f}")
    Console().print(table)
    print(f"a0 = {best['a0_A']:.3f} Å, B = {best['B_GPa']:.0f} GPa")
    print(f"two ranks and one process differ by {difference:.1e} Ry at {middle} Å")
    print(
        f"heat equation on {', '.join(map(str, RANKS))} ranks: at most {max(errors.values()):.1e} from the serial run"
    )
    print(f"it has decayed to {shrunk:.4f}, exactly it would be {heat.decay(POINTS, STEPS):.4f}")
    results = {
        "lattice_constants_A": scan, "energies_Ry": found, "fit": best, "serial_Ry": alone, "difference_Ry": difference,
        "heat_errors": errors, "heat_decay": shrunk, "show": curve.id,
    }  # fmt: skip
    (folder / "alcu3.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"where the equation of state came from: pilot show {curve.id}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
