"""What `pilot site check --in-job` runs in its job: tries on the nodes what a pool needs, one thing after the other.

``python -P -m pilot.site_probe SETTINGS`` starts a small MPI program exactly as pools are started and writes what it
finds, a line of JSON each, into the folder of SETTINGS. Each thing has a deadline; what hangs is ended and said so.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pilot.block import Block, allocated
from pilot.config import load_project
from pilot.errors import PilotError
from pilot.executors.pool.probe import NESTED_RANKS, Errand, What
from pilot.executors.run.orphans import end_pool
from pilot.findings import Finding, Verdict, note, ok, wrong
from pilot.pool_program import PoolProgram, ranks_by_host
from pilot.settings import PilotSettings
from pilot.site_judge import judge_binding, judge_gpus, judge_nested, judge_ranks, not_beside
from pilot.store.access import checked, store_of

_TICK_S = 0.05
_START_S = 120.0
"""A small program has come up and said where it is by then."""
_DEATH_S = 30.0
"""A launcher ends its program within so long of a rank's death."""
_STORE_S = 15.0
_SHARE = 5
"""None of the programs takes more than this part of the walltime to come up, so that there is time for all."""


@dataclass(frozen=True, slots=True)
class ProbeSettings:
    """What the job is told; a JSON file in its folder."""

    pilot: PilotSettings
    """As for a pilot of this site. Without a root there is no project."""
    cores: int | None
    """Of each node, as the site's file says."""
    beside: str
    """Whether programs start on the nodes of a pool; see `launcher.programs_beside_pool` of a site's file."""

    def write(self, path: Path) -> None:
        """Write the file."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> ProbeSettings:
        """Read what `write` wrote."""
        data: dict[str, Any] = json.loads(path.read_text())
        return cls(**{**data, "pilot": PilotSettings.of(data["pilot"])})


class Results:
    """The findings of a job, a line each, on their way to whoever waits for them.

    They go through one file that is there before the job is: of one that appears, a network file system may tell late.

    Args:
        folder: of the job.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "found.jsonl"
        self._path.touch()
        self._read = 0
        self.finished = False
        """Whether `new` has returned all that there are."""

    def add(self, finding: Finding) -> None:
        """Write one down."""
        self._write(finding)

    def finish(self) -> None:
        """Write down that these are all."""
        self._write(None)

    def _write(self, finding: Finding | None) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(finding) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def new(self) -> list[Finding]:
        """Return those that have come since the last call."""
        lines = self._path.read_text().splitlines(keepends=True)[self._read :]
        found = [json.loads(line) for line in lines if line.endswith("\n")]
        self._read += len(found)
        self.finished = self.finished or None in found
        return [Finding(one[0], Verdict(one[1]), one[2]) for one in found if one is not None]


class Probe:
    """Tries one thing after the other.

    Args:
        told: by whoever submitted the job.
        block: the nodes.
        folder: where files go; every node sees it.
    """

    def __init__(self, told: ProbeSettings, block: Block, folder: Path) -> None:
        self._told = told
        self._hosts = block.hosts
        self._block = block._replace(hosts=block.hosts[: told.pilot.block_nodes])
        self._folder = folder
        walltime_s = told.pilot.walltime_s
        self._start_s = _START_S if walltime_s is None else min(_START_S, walltime_s / _SHARE)
        self._comes_up = False
        """Whether the program has come up once; else there is no use in trying more with it."""

    def findings(self) -> Iterator[Finding]:
        """Try everything; an error in one thing is a finding, and the next one is tried."""
        probes: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
            ("job", self._job), ("store", self._store), ("world", self._world), ("kill", self._kill),
            ("nested", self._nested),
        ]  # fmt: skip
        for name, probe in probes:
            try:
                yield from probe()
            except PilotError as exc:
                yield wrong(name, str(exc))
            except (OSError, ValueError) as exc:
                yield wrong(name, f"cannot try it: {exc}")

    def _job(self) -> Iterator[Finding]:
        hosts = ", ".join(self._hosts) or socket.gethostname()
        asked = self._told.pilot.nodes
        if self._hosts and len(self._hosts) != asked:
            text = f"asked for {asked} nodes, job {self._block.job} has {len(self._hosts)} ({hosts})"
            yield wrong("job", f"{text}; look at {{nodes}} in batch.options")
        else:
            yield ok("job", f"{self._block.job or 'no batch job'} on {hosts}, with {sys.executable}")

    def _store(self) -> Iterator[Finding]:
        if not self._told.pilot.root:
            yield note("store", "not tried: no project here; `pilot init` makes one")
            return
        config = load_project(Path(self._told.pilot.root))
        try:
            with store_of(config, start=False, timeout_s=_STORE_S) as store:
                checked(store, config)
        except PilotError as exc:
            why = "look at reach.interfaces and reach.in_pilot, or at `pilot store status` on the login node"
            yield wrong("store", f"{socket.gethostname()} does not reach the project's store: {exc}; {why}")
            return
        yield ok("store", f"{socket.gethostname()} reaches the project's store")

    # -- programs ---------------------------------------------------------------------------------

    def _world(self) -> Iterator[Finding]:
        """Start the program and look where its ranks are."""
        program, errand = self._start(What.TELL)
        with _ended(program):
            code = _wait(program.poll, self._start_s)
            seen = _json(Path(errand.answer))
        if code or seen is None:
            yield wrong("world", f"{self._failed(program, code)}; look at launcher.command (under Slurm `--mpi`)")
            return
        self._comes_up = True
        pilot = self._told.pilot
        yield from judge_ranks(ranks_by_host(pilot, self._block.hosts), seen)
        yield from judge_binding(self._told.cores, pilot.cpu_order, seen)
        yield from judge_gpus(pilot.gpus, pilot.launchers.get("gpu_variable", ""), seen)
        if code is None:
            yield wrong("world", self._failed(program, code))

    def _kill(self) -> Iterator[Finding]:
        """Let one rank kill itself: a launcher that lets the others run on leaves a pool that waits for ever."""
        if not self._comes_up:
            yield note("kill", "not tried: the program does not start")
            return
        program, errand = self._start(What.DIE)
        with _ended(program):
            _wait(lambda: 1 if errand.dying.exists() else program.poll(), self._start_s)
            if not errand.dying.exists():
                yield wrong("kill", self._failed(program, program.poll()))
                return
            began = time.monotonic()
            code = _wait(program.poll, _DEATH_S)
            took_s = time.monotonic() - began
        if code is None:
            text = f"after the death of a rank the launcher did not end the others within {_DEATH_S:g} s"
            yield wrong("kill", f"{text}; add to launcher.command what makes it (under Slurm `-K1`)")
        elif code == 0:
            yield wrong("kill", "the launcher reports success although a rank was killed; look at launcher.command")
        else:
            yield ok("kill", f"the program ended {took_s:.1f} s after the death of a rank")

    def _nested(self) -> Iterator[Finding]:
        """Start a program as tasks do, from a rank of the program that stands for the pool."""
        beside = self._told.beside
        if not self._comes_up:
            yield note("nested", "not tried: the program does not start")
            return
        program, errand = self._start(What.NEST)
        start_s = float(self._told.pilot.launchers.get("start_s", 0.0)) + 2 * self._start_s
        with _ended(program):
            code = _wait(program.poll, start_s)
            said = _json(errand.nested)
        if said is not None:
            yield judge_nested(NESTED_RANKS, said, beside)
        if code != 0:
            how = f"the pool did not end within {start_s:g} s" if code is None else self._failed(program, code)
            yield not_beside(f"a program that is started beside the pool disturbs it: {how}", beside)

    def _start(self, what: What) -> tuple[PoolProgram, Errand]:
        pilot = self._told.pilot
        program = PoolProgram(pilot, self._block, self._folder, what.value, f"{pilot.pilot}.{what.value}")
        launchers = {**pilot.launchers, "job": self._block.job}
        errand = Errand(
            what, program.ranks, str(self._folder / f"{what.value}.json"), program.launch,
            pilot.launchers.get("gpu_variable", ""), launchers,
        )  # fmt: skip
        program.launch_ranks(errand.argv())
        return program, errand

    def _failed(self, program: PoolProgram, code: int | None) -> str:
        how = f"did not end within {self._start_s:g} s" if code is None else f"ended with exit code {code}"
        words = " ".join(program.last_words().split())[-500:]
        return f"a program of {program.ranks} ranks {how}{f': {words}' if words else ''}"


@contextlib.contextmanager
def _ended(program: PoolProgram) -> Iterator[None]:
    """Leave nothing of a program behind on this node, however it went."""
    try:
        yield
    finally:
        program.kill()
        end_pool(program.launch, 0.0)


def _wait(look: Callable[[], int | None], deadline_s: float) -> int | None:
    """Return what `look` returns as soon as that is a number; None at the deadline."""
    deadline = time.monotonic() + deadline_s
    while (seen := look()) is None and time.monotonic() < deadline:
        time.sleep(_TICK_S)
    return seen


def _json(path: Path) -> Any:
    """Return what a file holds; None if there is none."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None


def main(argv: Sequence[str]) -> int:
    """Try everything for the settings file named on the command line."""
    path = Path(argv[1])
    told = ProbeSettings.read(path)
    results = Results(path.parent)
    try:
        block, _ = allocated(told.pilot)
        for finding in Probe(told, block, path.parent).findings():
            results.add(finding)
    except PilotError as exc:
        results.add(wrong("job", str(exc)))
    finally:
        results.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
