"""Equations of state of seven fcc metals and L1_2 AlCu3: `pilot run examples/eos/run.py [FOLDER]`.

Writes `eos.png` and `eos.json` into FOLDER (default: the working directory).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import eos
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table

import pilot

Scans = dict[str, list[float]]


def print_table(rows: list[eos.Row], console: Console) -> None:
    """Print lattice constants and bulk moduli beside their references; large deviations stand out."""

    def percent(value: float | None, limit: float) -> str:
        if value is None:
            return "-"
        return f"[yellow]{value:+.1f}[/]" if abs(value) > limit else f"{value:+.1f}"

    table = Table(title="EMT equations of state", caption="AlCu₃: the reference a is Vegard's rule", pad_edge=False)
    for heading in ("", "a₀\nÅ", "ASE ref.\nÅ", "Δ\n%", "B\nGPa", "expt.\nGPa", "Δ\n%", "B'\n", "rms\nmeV/atom"):
        table.add_column(heading, justify="right" if heading else "left")
    for row in rows:
        table.add_row(
            row["material"].replace("3", "₃"),
            f"{row['a0_A']:.3f}",
            f"{row['a_ref_A']:.2f}",
            percent(row["a_deviation_percent"], limit=1),
            f"{row['B_GPa']:.1f}",
            "-" if row["B_ref_GPa"] is None else f"{row['B_ref_GPa']:.1f}",
            percent(row["B_deviation_percent"], limit=10),
            f"{row['B_prime']:.2f}",
            f"{row['rms_meV']:.3f}",
        )
    console.print(table)


def plot(rows: list[eos.Row], scans: Scans, energies: Scans, path: Path) -> None:
    """Draw one panel per material: EMT energies as circles, the fitted equation of state as a line."""
    figure = Figure(figsize=(11, 5.5), layout="constrained")
    axes = figure.subplots(2, 4, sharex=True, sharey=True)
    for axis, row in zip(axes.flat, rows, strict=True):
        material, v0 = row["material"], row["a0_A"] ** 3 / 4
        volumes = np.asarray(scans[material]) ** 3 / 4
        line = np.linspace(volumes[0], volumes[-1], 200)
        fitted = eos.birch_murnaghan(line, v0, 0.0, row["B_GPa"], row["B_prime"])
        reference = (row["a_ref_A"] / row["a0_A"]) ** 3
        axis.axvline(reference, ymax=0.72, color="0.5", lw=1, ls="--", label="ASE reference volume")
        axis.plot(line / v0, 1e3 * fitted, color="#b2182b", lw=1.2, zorder=3, label="Birch-Murnaghan fit")
        calculated = np.asarray(energies[material]) - row["E0_eV"]
        axis.plot(volumes / v0, 1e3 * calculated, "o", ms=5, mfc="#c6dbef", mec="#6baed6", label="EMT")
        axis.set_title(material.replace("3", "$_3$"), fontweight="bold")
        text = f"$a_0$ = {row['a0_A']:.3f} Å\n$B$ = {row['B_GPa']:.1f} GPa"
        axis.text(0.5, 0.95, text, transform=axis.transAxes, ha="center", va="top", fontsize=9)
        axis.set_xticks([0.9, 0.95, 1, 1.05, 1.1])
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("volume $V/V_0$")
    figure.supylabel("energy $E - E_0$ (meV/atom)")
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=150)


def main(folder: Path) -> None:
    """Submit all tasks at once, wait, and report."""
    console = Console()
    folder.mkdir(parents=True, exist_ok=True)
    scans = {material: eos.lattice_constants(material) for material in eos.MATERIALS}

    with pilot.open():
        points = {material: eos.energy.map([material] * len(scan), scan) for material, scan in scans.items()}
        fits = {material: eos.fit.submit(material, scans[material], points[material]) for material in scans}
        table = eos.summary.submit(list(fits.values()))

        futures = [*(point for scan in points.values() for point in scan), *fits.values(), table]
        for future in track(pilot.as_completed(futures), "Equations of state", len(futures), console=console):
            future.result()  # stops at the first task that failed, with its traceback
        rows = table.result()
        energies = {material: [point.result() for point in scan] for material, scan in points.items()}

    print_table(rows, console)
    plot(rows, scans, energies, folder / "eos.png")
    results = {
        "summary": rows, "lattice_constants_A": scans, "energies_eV_per_atom": energies, "show": fits["Cu"].id,
    }  # fmt: skip
    (folder / "eos.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"{len(futures)} tasks; wrote {folder / 'eos.png'} and {folder / 'eos.json'}")
    print(f"Where the equation of state of Cu came from: pilot show {fits['Cu'].id}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
