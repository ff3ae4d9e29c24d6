"""L1_2 AlCu3 with Quantum ESPRESSO: the input of `pw.x`, its total energy, and an equation of state.

The material and its pseudopotentials are those of AiiDA's own tutorial. Units: lattice constants in Å, energies in
Ry per cell of four atoms unless a name says otherwise, bulk moduli in GPa.
"""

from __future__ import annotations

from io import StringIO
from typing import TypedDict

import pilot

PSEUDOPOTENTIALS = "/usr/share/espresso/pseudo"  # where Debian's quantum-espresso-data puts them
LATTICE_CONSTANTS = [3.52, 3.56, 3.60, 3.64, 3.68, 3.72, 3.76]

_INPUT = """\
&control
 calculation = 'scf', prefix = 'alcu3', outdir = './out', pseudo_dir = '{pseudo_dir}', disk_io = 'none'
/
&system
 ibrav = 1, A = {a:.6f}, nat = 4, ntyp = 2, ecutwfc = {cutoff:g}, ecutrho = {density_cutoff:g}
 occupations = 'smearing', smearing = 'mv', degauss = 0.02
/
&electrons
 conv_thr = 1e-10
/
ATOMIC_SPECIES
 Al 26.98 Al.pz-vbc.UPF
 Cu 63.55 Cu.pz-d-rrkjus.UPF
ATOMIC_POSITIONS crystal
 Al 0.0 0.0 0.0
 Cu 0.5 0.5 0.0
 Cu 0.5 0.0 0.5
 Cu 0.0 0.5 0.5
K_POINTS automatic
 {k} {k} {k} 1 1 1
"""


def scf_input(a: float, cutoff: float = 20.0, k: int = 2) -> str:
    """Return the input of a self-consistent calculation.

    Args:
        a: lattice constant in Å.
        cutoff: kinetic energy cutoff of the wave functions in Ry; that of the density is eight times as large, as
            ultrasoft pseudopotentials need it. 20 Ry are for an example, not for a publication.
        k: points of the Monkhorst-Pack mesh along each axis, shifted by half a step.
    """
    return _INPUT.format(pseudo_dir=PSEUDOPOTENTIALS, a=a, cutoff=cutoff, density_cutoff=8 * cutoff, k=k)


def scf(a: float, ranks: int | None = 2) -> pilot.Future:
    """Submit `pw.x` at lattice constant `a`, as an MPI program or, with `ranks` None, as a serial one."""
    program = pilot.command(
        ["pw.x", "-in", "scf.in"], inputs={"scf.in": scf_input(a)}, stdout="scf.out", outputs={"out": "scf.out"},
        ranks=ranks, walltime="10m", retries=1, tags=["alcu3"], name=f"pw.x {a:g}",
    )  # fmt: skip
    return program.submit()


@pilot.task(walltime="5m", tags=["alcu3"])
def total_energy(output: bytes) -> float:
    """Return the total energy in Ry that the output of `pw.x` tells, as ASE's reader finds it."""
    from ase.io.espresso import read_espresso_out
    from ase.units import Ry

    (atoms,) = read_espresso_out(StringIO(output.decode()), index=slice(-1, None))
    return float(atoms.get_potential_energy()) / Ry


class Fit(TypedDict):
    """Birch-Murnaghan parameters."""

    a0_A: float
    B_GPa: float
    E0_Ry: float


@pilot.task(walltime="5m", tags=["alcu3"])
def fit(a: list[float], energies: list[float]) -> Fit:
    """Fit the Birch-Murnaghan equation of state to energies in Ry at lattice constants in Å."""
    from ase.eos import EquationOfState
    from ase.units import GPa, Ry

    curve = EquationOfState([x**3 for x in a], [energy * Ry for energy in energies], eos="birchmurnaghan")
    volume, energy, bulk = curve.fit(warn=False)
    return {"a0_A": float(volume) ** (1 / 3), "B_GPa": float(bulk) / GPa, "E0_Ry": float(energy) / Ry}
