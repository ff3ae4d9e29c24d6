"""The example of the README: `pilot run examples/quickstart.py`."""

import pilot


@pilot.task(walltime="1m", retries=2, tags=["dimer"])
def energy(r: float) -> float:
    """Return the Lennard-Jones energy of two atoms at distance r, in reduced units."""
    return 4 * (r**-12 - r**-6)


@pilot.task
def lowest(energies: list[float], distances: list[float]) -> tuple[float, float]:
    """Return the lowest energy and its distance."""
    return min(zip(energies, distances, strict=True))


with pilot.open():  # the project in this directory or above it
    distances = [1 + i / 100 for i in range(50)]
    energies = energy.map(distances)  # fifty tasks, submitted at once
    best = lowest.submit(energies, distances)  # one more, which waits for their results
    print(best.result(timeout=60))  # (-0.9998241129277265, 1.12)
    print("where it came from: pilot show", best.id)
