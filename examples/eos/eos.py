"""Equations of state of seven fcc metals and of L1_2 AlCu3 with effective-medium theory (EMT).

Three tasks, each an ordinary function that also runs when it is simply called:

* `energy`: one crystal at one lattice constant,
* `fit`: the Birch-Murnaghan equation of state of one material,
* `summary`: all fits beside reference values.

Units: lengths in Å, volumes in Å³ per atom, energies in eV per atom, bulk moduli in GPa.
"""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from ase import Atoms
from ase.calculators.emt import EMT
from ase.collections import dcdft
from ase.data import atomic_numbers, reference_states
from ase.symbols import string2symbols
from ase.units import GPa
from numpy.polynomial import Polynomial
from numpy.typing import NDArray
from scipy.optimize import root_scalar

import pilot

MATERIALS = ("Al", "Cu", "Ag", "Au", "Ni", "Pd", "Pt", "AlCu3")

# The four sites of the cubic fcc cell: its corner first (in L1_2 the minority atom), then the face centres.
FCC_SITES = ((0, 0, 0), (0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0))


class Fit(TypedDict):
    """Birch-Murnaghan parameters of one material; `rms_meV` is the root mean square residual per atom."""

    material: str
    a0_A: float
    B_GPa: float
    B_prime: float
    E0_eV: float
    rms_meV: float


class Row(Fit):
    """A fit beside its reference values; what is not known is None."""

    a_ref_A: float
    a_deviation_percent: float
    B_ref_GPa: float | None
    B_deviation_percent: float | None


def reference_lattice_constant(material: str) -> float:
    """Return ASE's reference lattice constant in Å; for an alloy Vegard's rule, the mean over its atoms."""
    return float(np.mean([reference_states[atomic_numbers[s]]["a"] for s in string2symbols(material)]))


def reference_bulk_modulus(material: str) -> float | None:
    """Return the measured bulk modulus in GPa, corrected to a static lattice at 0 K; None if there is none.

    The numbers come with ASE, from the Delta project: K. Lejaeghere, V. Van Speybroeck, G. Van Oost and
    S. Cottenier, Crit. Rev. Solid State Mater. Sci. 39, 1 (2014).
    """
    return float(dcdft.data[material]["exp_B"]) if material in dcdft.names else None


def lattice_constants(material: str, points: int = 41, strain: float = 0.03) -> list[float]:
    """Return a scan of lattice constants in Å, evenly spaced within `strain` of the reference.

    ±3 % in length is about ±9 % in volume. A wider scan costs accuracy: third-order Birch-Murnaghan no longer follows
    EMT there, and at ±6 % the bulk modulus of Al comes out 10 % too low.
    """
    a = reference_lattice_constant(material)
    return [round(float(x), 4) for x in a * np.linspace(1 - strain, 1 + strain, points)]


def crystal(material: str, a: float) -> Atoms:
    """Return the cubic four-atom cell of an fcc metal ("Cu") or an L1_2 alloy ("AlCu3": Al corner, Cu faces)."""
    symbols = string2symbols(material)
    return Atoms(symbols * (4 // len(symbols)), scaled_positions=FCC_SITES, cell=[a, a, a], pbc=True)


def birch_murnaghan(
    volumes: NDArray[np.float64], v0: float, e0: float, b0: float, b_prime: float
) -> NDArray[np.float64]:
    """Return third-order Birch-Murnaghan energies in eV per atom: volumes in Å³ per atom, `b0` in GPa."""
    f = (v0 / volumes) ** (2 / 3) - 1
    return e0 + 9 / 16 * v0 * b0 * GPa * (b_prime * f**3 + f**2 * (2 - 4 * f))


@pilot.task(cores=1, walltime="5m", retries=2, tags=["eos"])
def energy(material: str, a: float) -> float:
    """Return the EMT energy in eV per atom at lattice constant `a` in Å; zero is the perfect fcc element of EMT."""
    atoms = crystal(material, a)
    atoms.calc = EMT()
    return float(atoms.get_potential_energy()) / len(atoms)


@pilot.task(cores=1, walltime="5m", retries=2, tags=["eos"])
def fit(material: str, a: list[float], energies: list[float]) -> Fit:
    """Fit the third-order Birch-Murnaghan equation of state.

    Written in x = V^(-2/3) it is a cubic polynomial, so ordinary linear least squares finds the optimum without a
    starting guess, and its derivatives at the minimum give B = V E'' and B'.

    Args:
        material: for the record and for messages.
        a: lattice constants in Å of cubic cells with four atoms.
        energies: in eV per atom, one for each lattice constant.

    Raises:
        ValueError: the energies have no minimum within the scan.
    """
    x = (np.asarray(a) ** 3 / 4) ** (-2 / 3)
    curve = Polynomial.fit(x, energies, 3)
    slope, curvature, third = curve.deriv(1), curve.deriv(2), curve.deriv(3)
    if not slope(x.min()) < 0 < slope(x.max()):
        raise ValueError(f"{material}: no energy minimum between {min(a)} and {max(a)} Å; move or widen the scan")
    x0 = float(root_scalar(slope, bracket=(x.min(), x.max()), xtol=1e-14).root)
    return {
        "material": material,
        "a0_A": float((4 * x0**-1.5) ** (1 / 3)),
        "B_GPa": float(4 / 9 * x0**3.5 * curvature(x0) / GPa),
        "B_prime": float(4 + 2 / 3 * x0 * third(x0) / curvature(x0)),
        "E0_eV": float(curve(x0)),
        "rms_meV": 1e3 * float(np.sqrt(np.mean((curve(x) - energies) ** 2))),
    }


@pilot.task(cores=1, walltime="5m", retries=2, tags=["eos"])
def summary(fits: list[Fit]) -> list[Row]:
    """Return every fit beside its reference values, with deviations in percent."""
    rows: list[Row] = []
    for result in fits:
        a_ref, b_ref = reference_lattice_constant(result["material"]), reference_bulk_modulus(result["material"])
        rows.append(
            {
                **result,
                "a_ref_A": a_ref,
                "a_deviation_percent": 100 * (result["a0_A"] / a_ref - 1),
                "B_ref_GPa": b_ref,
                "B_deviation_percent": None if b_ref is None else 100 * (result["B_GPa"] / b_ref - 1),
            }
        )
    return rows
