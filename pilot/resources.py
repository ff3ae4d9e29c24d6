"""Tasks as they are submitted, and what they ask for: durations and sizes as people write them, ranks, cores, GPUs."""

from __future__ import annotations

import re
from typing import Any, NamedTuple, Self

from pilot.errors import InvalidInput
from pilot.model import Command, Input
from pilot.states import Kind

# -- durations and sizes --------------------------------------------------------------------------

_UNITS_S = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_UNITS_B = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)")
_CLOCK = re.compile(r"(?:(\d+)-)?(\d+):(\d\d)(?::(\d\d))?")


def parse_duration(value: str | int | float, name: str = "duration") -> float:
    """Return seconds for ``90``, ``"90"``, ``"5m"``, ``"1h30m"``, ``"2d"`` or Slurm's ``[D-]HH:MM:SS``.

    Raises:
        InvalidInput: not a duration, or not above zero.
    """
    seconds: float | None = None
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str):
        text = value.strip().lower()
        clock = _CLOCK.fullmatch(text)
        if clock:
            d, a, b, c = (int(g) if g else 0 for g in clock.groups())
            seconds = d * 86400 + (a * 3600 + b * 60 + c if clock[4] else a * 60 + b)
            if clock[1] and not clock[4]:  # Slurm's D-HH:MM
                seconds = d * 86400 + a * 3600 + b * 60
        else:
            parts = _PART.findall(text)
            if parts and _PART.sub("", text).strip() == "" and all(u in _UNITS_S for _, u in parts):
                seconds = sum(float(n) * _UNITS_S[u] for n, u in parts)
    if seconds is None or not 0 < seconds < float("inf"):
        raise InvalidInput(f'{name} {value!r} is not a duration above zero; write e.g. "90s", "5m", "1h30m" or "2d"')
    return seconds


def parse_size(value: str | int, name: str = "memory") -> int:
    """Return bytes for ``1048576``, ``"512M"``, ``"2GiB"`` (powers of 1,024).

    Raises:
        InvalidInput: not a size, or not above zero.
    """
    size: int | None = None
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", value.strip().lower())
        if match:
            size = int(float(match[1]) * _UNITS_B[match[2]])
    if size is None or size <= 0:
        raise InvalidInput(f'{name} {value!r} is not a size above zero; write e.g. "512M" or "2G"')
    return size


# -- whether an earlier result will do -----------------------------------------------------------

CACHING = ("inputs", "environment")
"""What has to be equal for an earlier result to be taken: code and inputs, or the environment as well."""


def parse_caching(value: object, name: str = "cache") -> str:
    """Return one of `CACHING` for ``True`` or ``"environment"``, and ``""`` for ``False``.

    Raises:
        InvalidInput: it is none of these.
    """
    if value is True:
        return "inputs"
    if value is False:
        return ""
    if isinstance(value, str) and value in CACHING:
        return value
    raise InvalidInput(f'{name} {value!r} is none of True, False and "environment"')


# -- what a task needs ----------------------------------------------------------------------------

_CLASS = re.compile(
    r"c(\d+)(?:m(\d+))?(?:w(\d+(?:\.\d+)?))?(?:r(\d+)(x)?)?(?:p(\d+))?(?:g(\d+(?:\.\d+)?))?(?:n(\d+))?(near|contiguous)?"
)

LAYOUTS = ("near", "contiguous")


class _Resources(NamedTuple):
    cores: int
    memory_bytes: int | None
    walltime_s: float | None
    ranks: int | None
    ranks_per_node: int | None
    gpus: float
    nodes: int | None
    layout: str
    program: bool


class Resources(_Resources):
    """What one task asks for.

    Args:
        cores: CPU cores of each rank, at least 1.
        memory_bytes: of each rank: limit of its data segment, or None for no limit.
        walltime_s: seconds after which the task is killed, or None for no limit.
        ranks: MPI ranks; None: one process that is not told of MPI. A function with ranks gets a communicator,
            a program is started by the site's MPI launcher.
        ranks_per_node: so many ranks on each node; the last node may have fewer. None: as placement finds best.
        gpus: of each rank: whole ones, or a fraction of one (shared with others), in thousandths.
        nodes: whole nodes that nobody else uses meanwhile; the ranks are spread evenly over them.
        layout: ``""``, ``"near"`` (all ranks on one node) or ``"contiguous"`` (nodes next to each other).
        program: whether the ranks are started by an MPI launcher, as those of a command are; without ranks it says
            nothing. MPI functions with GPUs always are: a pool's ranks have seen theirs, and libraries ask once.

    Raises:
        InvalidInput: one of them is out of range, or they contradict each other; the message names them.
    """

    __slots__ = ()

    def __new__(
        cls,
        cores: int = 1,
        memory_bytes: int | None = None,
        walltime_s: float | None = None,
        ranks: int | None = None,
        ranks_per_node: int | None = None,
        gpus: float = 0,
        nodes: int | None = None,
        layout: str = "",
        program: bool = False,
    ) -> Self:
        """Check and keep what is asked for."""
        _whole("cores", cores)
        if memory_bytes is not None:
            parse_size(memory_bytes, "memory")
        if walltime_s is not None:
            parse_duration(walltime_s, "walltime")
        if (ranks, ranks_per_node, gpus, nodes, layout) == (None, None, 0, None, ""):
            return super().__new__(cls, cores, memory_bytes, walltime_s, None, None, 0.0, None, "", False)
        for name, value in (("ranks", ranks), ("ranks_per_node", ranks_per_node), ("nodes", nodes)):
            if value is not None:
                _whole(name, value)
        if ranks is None and (nodes is not None or ranks_per_node is not None):
            ranks = (nodes or 1) * (ranks_per_node or 1)
        _check_shape(ranks or 1, ranks_per_node, nodes, layout)
        gpus = _gpu_share(gpus)
        program = ranks is not None and bool(program or gpus)
        return super().__new__(
            cls, cores, memory_bytes, walltime_s, ranks, ranks_per_node, gpus, nodes, layout, program
        )

    @classmethod
    def of(
        cls,
        cores: int = 1,
        memory: str | int | None = None,
        walltime: str | int | float | None = None,
        near: bool = False,
        contiguous: bool = False,
        **shape: Any,
    ) -> Resources:
        """Make resources from what a user writes (``memory="2G"``, ``walltime="5m"``, ``ranks=4, near=True``)."""
        if near and contiguous:
            raise InvalidInput("near (one node) and contiguous (several nodes) contradict each other; give one")
        return cls(
            cores,
            None if memory is None else parse_size(memory, "memory"),
            None if walltime is None else parse_duration(walltime, "walltime"),
            layout="near" if near else "contiguous" if contiguous else "",
            **shape,
        )

    def with_ranks(self, ranks: int) -> Resources:
        """Return the same request for an MPI task of so many ranks."""
        return Resources(**{**self._asdict(), "ranks": ranks})

    @property
    def size(self) -> int:
        """How many ranks there are; 1 for a task that is not told of MPI."""
        return self.ranks or 1

    @property
    def key(self) -> str:
        """The name of the class that all equal requests share; `from_key` reads it back."""
        memory = "" if self.memory_bytes is None else f"m{self.memory_bytes}"
        walltime = "" if self.walltime_s is None else "w" + _number(max(self.walltime_s, 0.001))
        if self.ranks is None and not self.gpus and not self.layout:
            return f"c{self.cores}{memory}{walltime}"
        ranks = "" if self.ranks is None else f"r{self.ranks}" + ("x" if self.program else "")
        per_node = "" if self.ranks_per_node is None else f"p{self.ranks_per_node}"
        gpus = f"g{_number(self.gpus)}" if self.gpus else ""
        nodes = "" if self.nodes is None else f"n{self.nodes}"
        return f"c{self.cores}{memory}{walltime}{ranks}{per_node}{gpus}{nodes}{self.layout}"

    @classmethod
    def from_key(cls, key: str) -> Resources:
        """Return the resources that `key` names.

        Raises:
            InvalidInput: not a class name.
        """
        match = _CLASS.fullmatch(key)
        if not match:
            raise InvalidInput(f"{key!r} does not name a resource class")
        cores, memory, walltime, ranks, program, per_node, gpus, nodes, layout = match.groups()
        return cls(
            int(cores), int(memory) if memory else None, float(walltime) if walltime else None,
            int(ranks) if ranks else None, int(per_node) if per_node else None, float(gpus or 0),
            int(nodes) if nodes else None, layout or "", bool(program),
        )  # fmt: skip


def _number(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".")


def _whole(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidInput(f"{name} {value!r} is not a whole number above zero")


def _gpu_share(gpus: object) -> float:
    if not isinstance(gpus, int | float) or isinstance(gpus, bool) or not 0 <= gpus < float("inf"):
        raise InvalidInput(f"gpus {gpus!r} is not a number of at least zero")
    share = round(float(gpus), 3)
    if share != gpus or (share > 1 and share != int(share)):
        raise InvalidInput(f"gpus {gpus!r}: a rank gets whole GPUs, or a fraction of one in thousandths")
    return share


def _check_shape(ranks: int, per_node: int | None, nodes: int | None, layout: str) -> None:
    """Refuse requests that contradict themselves."""
    if layout not in ("", *LAYOUTS):
        raise InvalidInput(f"layout {layout!r} is none of {', '.join(LAYOUTS)}")
    if per_node is not None and per_node > ranks:
        raise InvalidInput(f"ranks_per_node {per_node} is more than all ranks, {ranks}")
    if layout == "near" and (nodes or 1) > 1:
        raise InvalidInput(f"near means one node, nodes {nodes} asks for more; give one of them")
    if layout == "near" and per_node is not None and per_node < ranks:
        raise InvalidInput(f"near means all {ranks} ranks on one node, ranks_per_node {per_node} allows fewer")
    if nodes is not None and nodes > ranks:
        raise InvalidInput(f"nodes {nodes} is more than there are ranks, {ranks}: some would have none")
    if nodes is not None and per_node is not None and nodes != -(-ranks // per_node):
        raise InvalidInput(
            f"{ranks} ranks with ranks_per_node {per_node} take {-(-ranks // per_node)} nodes, not {nodes}"
        )


# -- a task to submit -----------------------------------------------------------------------------


class TaskSpec(NamedTuple):
    """One task to submit. `id` is unique in the project; parents are the tasks its inputs link to."""

    id: str
    kind: Kind
    name: str
    inputs: tuple[Input, ...] = ()
    function: str | None = None
    command: Command | None = None
    resources: Resources = Resources()
    priority: int = 0
    retries: int = 0
    fresh: bool = False
    tags: tuple[str, ...] = ()
    folder: str = ""
    """Where the submitter's own modules lie; comes last on the child's ``sys.path``."""
    gather: bool = False
    """Of an MPI function: keep the result of every rank, not only of rank 0."""
    waits: str = "done"
    """``"done"``: parents must succeed, their values are used; ``"end"``: any end of theirs will do."""
    cache: str = ""
    """One of `CACHING`: take the result of an equal task, if there is one. Empty: run it."""

    @property
    def parents(self) -> list[str]:
        """Ids of the tasks this one waits for, each once, in the order of their use."""
        return list(dict.fromkeys(link.task for item in self.inputs for link in item.links))
