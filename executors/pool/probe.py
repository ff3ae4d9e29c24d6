"""A small MPI program that stands for a pool while a site is checked: says where its ranks are, dies, starts another.

``python -P -m pilot.executors.pool.probe FILE`` is one rank, FILE holds an `Errand`. With ``--nested FILE HOST...``
it is the child of a rank, which starts a program as tasks do.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from pilot.errors import PilotError
from pilot.executors.pool.mpi import MPI
from pilot.executors.pool.waiting import Backoff
from pilot.executors.pool.world import finalise, guarded, initialise
from pilot.executors.run.launch import Launchers
from pilot.executors.run.nested import Nested, Program
from pilot.executors.run.scrub import child_environment, command_environment
from pilot.model import Placement, RankPlace, Work
from pilot.states import Kind

STUCK_S = 600.0
"""A rank that nobody ends does so itself after so long."""
NESTED_RANKS = 2
_WAITS_S = (1e-3, 0.25)
_TASK = "site-check"
_NESTED = "--nested"
_DEVICES = ("nvidia[0-9]*", "dri/renderD*")
"""Files in ``/dev`` of which there is one for each GPU, of NVIDIA's and of the others'."""


class What(StrEnum):
    """What the program does once its ranks have said where they are."""

    TELL = "tell"
    """Ends."""
    DIE = "die"
    """Its last rank kills itself; the others wait to be ended by their launcher."""
    NEST = "nest"
    """Its last rank starts another program as tasks do; the others wait for it as idle slots do."""


@dataclass(frozen=True, slots=True)
class Errand:
    """What the ranks of the program are told."""

    what: What
    ranks: int
    answer: str
    """File that rank 0 writes: a list of what `look` returns."""
    launch: str = ""
    gpu_variable: str = ""
    launchers: dict[str, Any] = field(default_factory=dict)
    """See `pilot.sites.launchers`."""

    @property
    def dying(self) -> Path:
        """The file that rank 0 makes when another rank is about to die."""
        return Path(f"{self.answer}.dying")

    @property
    def nested(self) -> Path:
        """The file in which rank 0 says how the start of the other program went, and what its ranks saw."""
        return Path(f"{self.answer}.nested")

    @property
    def of_child(self) -> Path:
        """The same, of the child that starts it; only its own node can be sure to see it at once."""
        return Path(f"{self.answer}.child")

    def argv(self) -> list[str]:
        """Write it beside the answer and return what every rank runs."""
        file = Path(f"{self.answer}.errand")
        _write(file, asdict(self))
        return [sys.executable, "-P", "-m", "pilot.executors.pool.probe", str(file)]

    @classmethod
    def read(cls, file: str) -> Errand:
        """Read what `argv` wrote."""
        data = json.loads(Path(file).read_text())
        return cls(**{**data, "what": What(data["what"])})


def look(rank: int, library: str, gpu_variable: str) -> dict[str, Any]:
    """Return what this rank sees of itself and of its node."""
    host = socket.gethostname()
    return {
        "rank": rank, "library": library, "host": host,
        "node": os.environ.get("SLURMD_NODENAME", host),  # simulated nodes of one machine share its name
        "cpus": sorted(os.sched_getaffinity(0)), "online": os.cpu_count(), "gpus": _devices(),
        "gpu_variable": os.environ.get(gpu_variable, "") if gpu_variable else "",
    }  # fmt: skip


def _devices() -> int:
    """Return how many GPUs may be opened here: a job's container of devices may leave out some that are listed."""
    for pattern in _DEVICES:
        if found := [path for path in Path("/dev").glob(pattern) if _opens(path)]:
            return len(found)
    return 0


def _opens(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY))
    except OSError:
        return False
    return True


# -- a rank ---------------------------------------------------------------------------------------


def _rank(file: str) -> int:
    errand = Errand.read(file)
    library = initialise(errand.ranks)
    comm = MPI.COMM_WORLD
    rank = comm.Get_rank()
    seen = comm.allgather(look(rank, library, errand.gpu_variable))
    if rank == 0:
        _write(Path(errand.answer), seen)
        if errand.what is What.DIE:
            errand.dying.touch()
    last = errand.ranks - 1
    comm.Barrier()
    if errand.what is What.DIE:
        if rank == last:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(STUCK_S)
    if errand.what is What.NEST:
        said = _by_child(file, errand, seen) if rank == last else None
        _wait_for_all(comm)
        said = comm.bcast(said, root=last)
        if rank == 0:
            _write(errand.nested, said)
    finalise()
    return 0


def _by_child(file: str, errand: Errand, seen: list[dict[str, Any]]) -> Any:
    """Let a child of this rank start another program, as slots do; return what it says of that."""
    hosts = dict.fromkeys([socket.gethostname(), *(one["host"] for one in seen)])
    argv = [sys.executable, "-P", "-m", "pilot.executors.pool.probe", _NESTED, file, *hosts]
    env = child_environment(os.environ, errand.launch, 1)
    subprocess.run(argv, env=env, stdin=subprocess.DEVNULL, start_new_session=True, check=True)
    return json.loads(errand.of_child.read_text())


def _wait_for_all(comm: MPI.Intracomm) -> None:
    backoff = Backoff(*_WAITS_S)
    request = comm.Ibarrier()
    while not request.Test():
        time.sleep(backoff.step())


# -- the child of a rank --------------------------------------------------------------------------


def _child(file: str, hosts: list[str]) -> int:
    """Start another program over the first of these hosts, this one before others; write down how that went."""
    errand = Errand.read(file)
    inner = Errand(What.TELL, NESTED_RANKS, f"{errand.answer}.inner")
    places = tuple(RankPlace(host, ()) for host in (hosts * NESTED_RANKS)[:NESTED_RANKS])
    work = Work(
        _TASK, 1, Kind.COMMAND, _TASK, None, None, (), {}, None, 1, ranks=NESTED_RANKS, place=Placement(places)
    )  # fmt: skip
    program = Program(sys.executable, tuple(inner.argv()[1:]), command_environment(os.environ, _TASK, 1, 1, {}), {}, "")
    nested = Nested(Launchers.of(errand.launchers), hosts[0], f"{errand.answer}.files")
    try:
        with nested.folder() as folder:
            ran = nested.run(work, program, folder)
        said = {"started": ran.started, "code": ran.code, "words": ran.why or ran.words, "launcher": ran.launcher}
    except (PilotError, OSError) as exc:
        said = {"started": False, "code": 1, "words": str(exc), "launcher": ()}
    answer = Path(inner.answer)
    _write(errand.of_child, said | {"ranks": json.loads(answer.read_text()) if answer.exists() else []})
    return 0


def _write(path: Path, data: Any) -> None:
    """Write a file of JSON, whole or not at all."""
    draft = path.with_name(f".{path.name}")
    draft.write_text(json.dumps(data))
    draft.replace(path)


if __name__ == "__main__":
    if sys.argv[1] == _NESTED:
        sys.exit(_child(sys.argv[2], sys.argv[3:]))
    guarded(lambda: _rank(sys.argv[1]))
