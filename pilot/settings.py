"""What an agent is told by whoever starts it, what it tells its pool, and the files by which the two speak.

Files in the pilot's folder, which both see: neither needs the store or a signal for it. The control file goes
from agent to pool; which MPI functions run in the ranks, and whether the pool wants to be started anew, go back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from pilot.model import new_token


@dataclass(frozen=True, slots=True)
class PilotSettings:
    """What a pilot is told by whoever starts it; a JSON file in its folder."""

    root: str
    pilot: str
    site: str
    launcher: tuple[str, ...]
    slots: int
    """Of each node."""
    slot_cores: int
    nodes: int = 1
    batch: str = ""
    """The batch system whose job it is; empty: it is a process group on this machine."""
    store_in_pilot: bool = False
    """Whether the embedded store runs inside of it, on its first node."""
    interfaces: tuple[str, ...] = ()
    """At which of them it listens then, the first that is there; see `reach.choose`."""
    requeue: bool = False
    """Whether the batch system may start it again, after a node failed or another job took its nodes."""
    walltime_s: float | None = None
    """Of its batch job, from its start on; the agent works out `end_at`."""
    host_line: str = "{host}:{ranks}"
    """A line of the file that tells the launcher the nodes."""
    line_per_rank: bool = False
    """Whether that has a line for each rank instead of one for each node."""
    launcher_env: dict[str, str] = field(default_factory=dict)
    """Set for the launcher; ``{hostfile}`` is filled in."""
    one_node: tuple[str, ...] = ()
    """Further words of the launcher, for pools on one node."""
    block_nodes: int = 64
    """Most nodes of one pool."""
    programs_beside_pool: str = "share"
    """The site's `programs_beside_pool`."""
    program_nodes: int = 0
    """So many of the nodes are kept for MPI programs: no pool covers them."""
    end_at: float | None = None
    """When the pilot must be over (seconds since the epoch)."""
    beat_s: float = 2.0
    ttl_s: float = 30.0
    """A heartbeat unchanged for so long means death."""
    drain_s: float = 30.0
    """How long before `end_at` nothing more is begun."""
    stop_s: float = 10.0
    """How long before `end_at` what still runs is ended."""
    idle_s: float | None = None
    """End after so long without work; None: stay."""
    restarts_s: tuple[float, ...] = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)
    """Delays before starts of a pool that died; one more death in a row ends the pilot."""
    pretend_nodes: int = 1
    """Over so many pretended nodes the slots of one host are divided; for tests."""
    gpus: tuple[str, ...] = ()
    """Of each node, as the site's variable names them."""
    cpu_order: tuple[int, ...] = ()
    """See `layout_of`."""
    steps_max: int | None = None
    """How many MPI programs that take a job step may run at a time, over all pools; None: as there is room."""
    one_node_steps: bool = False
    """Whether programs on one node take one too."""
    launchers: dict[str, Any] = field(default_factory=dict)
    """How MPI programs are started; see `pilot.sites.launchers`."""
    site_digest: str = ""
    """Of the site's description; see `site_files.digest_of`."""

    @property
    def pool_nodes(self) -> int:
        """How many of its nodes have slots."""
        return self.nodes - self.program_nodes

    def write(self, path: Path) -> None:
        """Write the file."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> PilotSettings:
        """Read what `write` wrote."""
        return cls.of(json.loads(path.read_text()))

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> PilotSettings:
        """Return what is written as JSON."""
        lists = {name: tuple(value) for name, value in data.items() if isinstance(value, list)}
        return cls(**{**data, **lists})


def new_pilot_id() -> str:
    """Return an id for a pilot: short, and unlikely ever to be seen again."""
    return f"p{new_token(6)}"


class Wish(StrEnum):
    """What the agent asks of a pool, in its control file."""

    WORK = "work"
    DRAIN = "drain"
    """Lease nothing more, return what has not begun, finish what runs."""
    NOW = "now"
    """The same, but end what runs too: it becomes `lost`, without blame."""


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """What a coordinator is told by its agent."""

    root: Path
    """The project's directory."""
    pilot: str
    launch: str
    """Number of this start of the pool; stands in the environment of every process of it."""
    site: str
    job: str | None
    """The batch job that it is part of."""
    control: Path
    spool: Path
    slot_cores: int
    end_at: float | None
    beat_s: float
    ttl_s: float
    drain_s: float
    """How long before `end_at` the pool begins to drain."""
    stop_s: float
    """How long before `end_at` what still runs is ended."""
    gpus: tuple[str, ...] = ()
    """Of each node, as the site's variable names them."""
    cpu_order: tuple[int, ...] = ()
    """See `layout_of`."""
    steps_max: int | None = None
    """How many MPI programs of this pool that take a job step may run at a time; None: as many as there is room for."""
    one_node_steps: bool = False
    """Whether programs on one node take one too."""
    programs_beside_pool: str = "share"
    """The site's `programs_beside_pool`."""
    program_hosts: tuple[str, ...] = ()
    """The pool's program nodes."""


def trouble_file(folder: Path) -> Path:
    """Return where an agent says why it cannot begin, given its pilot's folder: the store may be what it lacks."""
    return folder / "trouble"


def control_file(folder: Path, launch: str) -> Path:
    """Return where the coordinator of a start of a pool looks what it is asked for, given its pilot's folder."""
    return folder / f"pool-{launch.rpartition('.')[2]}.control"


def ask(control: Path, wish: str) -> None:
    """Tell a coordinator what to do, through its control file: signals would kill the program."""
    partial = control.with_suffix(".partial")
    partial.write_text(wish, "ascii")
    partial.replace(control)


def ranks_file(control: Path) -> Path:
    """Return where a pool notes which MPI functions run in its ranks, given its control file; see `suspects`."""
    return control.with_suffix(".ranks")


def recycle_file(control: Path) -> Path:
    """Return where a pool says that it should be started anew, given its control file."""
    return control.with_suffix(".recycle")
