"""What a site file may say: closed, typed, every key with its unit and meaning."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from string import Formatter
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from pilot.resources import parse_duration, parse_size

_PLACES = frozenset({"ranks", "hostfile", "nodes"})
_IN_JOB = _PLACES | {"job"}
_OF_JOB = frozenset({"nodes", "cores", "gpus", "memory_mb", "account"})
_OF_NODE = {"cores": "cores", "memory_mb": "memory"}
"""Of those, what cannot be worked out without a key of `node`."""
_HOSTFILE = frozenset({"hostfile"})
_HOST_PLACES = frozenset({"host", "ranks"})


def _places(text: str, known: frozenset[str]) -> str:
    """Refuse placeholders that nobody fills in."""
    for _, name, spec, conversion in Formatter().parse(text):
        if name is not None and (name not in known or spec or conversion):
            raise ValueError(
                f"{text!r} has a placeholder other than {', '.join(f'{{{one}}}' for one in sorted(known))}"
            )
    return text


def _cpus(value: Any) -> Any:
    """Read ``"0-15,32-47"`` as the CPU ids that it stands for."""
    if not isinstance(value, str):
        return value
    ids: list[int] = []
    for part in value.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()):
            raise ValueError('expected CPU ids, a list of numbers or ranges such as "0-15,32-47"')
        ids.extend(range(int(first), int(last or first) + 1))
    return ids


def _word(value: Any) -> Any:
    """Read what YAML takes for a truth value, an unquoted ``no``, as the word that it is."""
    return "no" if value is False else value


def _once(ids: tuple[int, ...] | None) -> tuple[int, ...] | None:
    if ids is not None and (len(set(ids)) < len(ids) or any(one < 0 for one in ids)):
        raise ValueError("expected CPU ids of at least 0, each once")
    return ids


Duration = Annotated[float, BeforeValidator(parse_duration), WithJsonSchema({"type": ["string", "number"]})]
"""A length of time, ``"90m"``, ``"12h"``, ``"2d"``; read as seconds."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Node(_Part):
    """One node; whatever is absent is what the node's operating system says, and GPUs none."""

    cores: int | None = Field(default=None, ge=1, description="CPU cores that tasks may use")
    memory: Annotated[str | int, AfterValidator(lambda value: parse_size(value, "memory"))] | None = Field(
        default=None, description='memory that tasks may use, "128G"; read as bytes'
    )
    gpus: int = Field(default=0, ge=0, description="GPUs that tasks may use")
    gpu_variable: Literal["CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"] = Field(
        default="CUDA_VISIBLE_DEVICES", description="environment variable that tells a process which GPUs it may use"
    )
    gpu_names: tuple[str, ...] | None = Field(
        default=None, description='what that variable calls the GPUs; absent: "0", "1", …'
    )
    cpu_order: Annotated[
        tuple[int, ...] | None,
        BeforeValidator(_cpus),
        AfterValidator(_once),
        WithJsonSchema({"type": ["string", "array", "null"]}),
    ] = Field(
        default=None, description='ids of the CPUs tasks may use, near ones next to each other: "0-15,32-47" or a list'
    )

    @property
    def memory_bytes(self) -> int | None:
        """Memory that tasks may use, in bytes."""
        return None if self.memory is None else int(self.memory)

    @property
    def gpu_ids(self) -> tuple[str, ...]:
        """Every GPU as `gpu_variable` calls it."""
        return self.gpu_names if self.gpu_names is not None else tuple(map(str, range(self.gpus)))

    @model_validator(mode="after")
    def _named(self) -> Node:
        if self.gpu_names is not None and len(self.gpu_names) != self.gpus:
            raise ValueError(
                f"gpu_names has {len(self.gpu_names)} names, expected one for each of the {self.gpus} gpus"
            )
        return self


class Program(_Part):
    """How MPI programs of one flavour are started."""

    launcher: tuple[Annotated[str, AfterValidator(lambda text: _places(text, _IN_JOB))], ...] = Field(
        min_length=1,
        description="command that starts a program, which is appended: {hostfile} has the nodes, {ranks} and {nodes} "
        "are numbers, {job} is the batch job. The first word may name several programs, divided by `|`: the first that "
        "is there is taken",
    )
    says: str = Field(
        default="",
        description="what the launcher's `--version` must say, in any case; else the next of that name is tried",
    )
    host_line: Annotated[str, AfterValidator(lambda text: _places(text, _HOST_PLACES))] = Field(
        default="{host}:{ranks}", description="one line of the host file: {host} and the number of {ranks} there"
    )
    line_per_rank: bool = Field(
        default=False, description="whether the host file has a line for each rank instead of one for each node"
    )
    env: dict[str, Annotated[str, AfterValidator(lambda text: _places(text, _HOSTFILE))]] = Field(
        default_factory=dict, description="variables set for the launcher; {hostfile} is filled in"
    )
    step: Literal["never", "several_nodes", "always"] = Field(
        default="never", description="which starts take one of the batch system's job steps"
    )


class Launcher(_Part):
    """How a pool, which is one MPI program, is started over a block of nodes."""

    command: tuple[Annotated[str, AfterValidator(lambda text: _places(text, _PLACES))], ...] = Field(
        min_length=1,
        description="command that starts the pool's ranks, which are appended: {ranks} and {nodes} are numbers, "
        "{hostfile} has the nodes",
    )
    host_line: Annotated[str, AfterValidator(lambda text: _places(text, _HOST_PLACES))] = Field(
        default="{host}:{ranks}", description="one line of the host file: {host} and the number of {ranks} there"
    )
    line_per_rank: bool = Field(
        default=False, description="whether the host file has a line for each rank instead of one for each node"
    )
    env: dict[str, Annotated[str, AfterValidator(lambda text: _places(text, _HOSTFILE))]] = Field(
        default_factory=dict, description="variables set for the launcher; {hostfile} is filled in"
    )
    one_node: tuple[str, ...] = Field(default=(), description="further words of the command, for pools on one node")
    block_nodes: int = Field(default=64, ge=1, description="most nodes of one pool; a pilot of more has several")
    programs_beside_pool: Annotated[Literal["share", "whole_node_free", "no"], BeforeValidator(_word)] = Field(
        default="share",
        description="whether MPI programs of tasks start on the nodes of a pool: `share`; `no`: only on program nodes, "
        "where no pool runs; `whole_node_free`: there, and each has its nodes for itself",
    )


class Reach(_Part):
    """How compute nodes reach the store."""

    interfaces: tuple[str, ...] = Field(
        default=(),
        description="network interfaces of the login node at which compute nodes reach it, the first that is there is "
        "taken; absent: the usual names of fast ones, then that of the default route",
    )
    in_pilot: bool = Field(
        default=False, description="whether it has to run inside the pilot, as compute nodes cannot reach login nodes"
    )


class Verified(_Part):
    """When somebody last compared this file with the machine or its documentation."""

    date: datetime.date = Field(description="the day")
    source: str = Field(description="what it was compared with: a page, or `run there`")


class Detect(_Part):
    """How to tell that we are on this machine; one that fits is enough."""

    env: dict[str, str] = Field(default_factory=dict, description="variables and their values")
    domain: str = Field(default="", description="how the host's full name ends")


class Size(_Part):
    """A walltime that holds up to so many nodes."""

    max_nodes: int = Field(ge=1, description="up to so many nodes …")
    max_walltime: Duration = Field(description='… a job may run so long, "12h"')


class Queue(_Part):
    """What one queue (partition, quality of service) takes; a request beyond it is refused before it is submitted."""

    min_nodes: int = Field(default=1, ge=1, description="fewest nodes of a job")
    max_nodes: int | None = Field(default=None, ge=1, description="most nodes of a job")
    min_walltime: Duration | None = Field(default=None, description="shortest walltime of a job")
    max_walltime: Duration | None = Field(default=None, description='longest walltime of a job, "12h"; "2d"')
    sizes: tuple[Size, ...] = Field(
        default=(), description="where the longest walltime depends on the nodes: ascending, the first that fits holds"
    )
    max_queued: int | None = Field(default=None, ge=1, description="most jobs of a user in the queue, running or not")
    max_running: int | None = Field(default=None, ge=1, description="most jobs of a user that run at a time")
    options: tuple[Annotated[str, AfterValidator(lambda text: _places(text, _OF_JOB))], ...] = Field(
        default=(), description="further directives of jobs in this queue, as those of `batch`"
    )

    def longest(self, nodes: int) -> float | None:
        """Return the longest walltime of a job of so many nodes, in seconds; None: no limit is known."""
        held = [size.max_walltime for size in self.sizes if nodes <= size.max_nodes][:1]
        known = [limit for limit in (*held, self.max_walltime) if limit is not None]
        return min(known, default=None)


class Batch(_Part):
    """How a pilot gets onto nodes."""

    system: Literal["slurm", "pbs"] = Field(description="the batch system")
    queue: str = Field(default="", description="partition or queue; absent: the batch system's default")
    queue_option: Annotated[str, AfterValidator(lambda text: _places(text, frozenset({"queue"})))] = Field(
        default="", description='directive that names the queue, "--qos={queue}"; absent: the batch system\'s usual one'
    )
    queues: dict[str, Queue] = Field(default_factory=dict, description="what is known of its queues, by name")
    account_option: Annotated[str, AfterValidator(lambda text: _places(text, frozenset({"account"})))] = Field(
        default="",
        description='directive that names the account, "-P {account}"; absent: the batch system\'s usual one',
    )
    account_required: bool = Field(default=False, description="whether a pilot without an account is refused at once")
    account: str = Field(default="", description="what the time is charged to; absent: the batch system's default")
    options: tuple[Annotated[str, AfterValidator(lambda text: _places(text, _OF_JOB))], ...] = Field(
        default=(),
        description="further directives: `--exclusive`, `-l select={nodes}:ncpus=4`; filled in are {nodes}, {cores}, "
        "{gpus} and {memory_mb} of all nodes together, and {account}",
    )
    modules: tuple[str, ...] = Field(default=(), description="modules to load before the agent starts")
    setup: tuple[str, ...] = Field(default=(), description="lines of shell to run before the agent starts")
    env: dict[str, str] = Field(default_factory=dict, description="variables to set before the agent starts")
    login_shell: bool = Field(default=False, description="whether the user's profile is read first")
    requeue: bool = Field(default=False, description="whether the batch system may start a pilot a second time")


def _computable(batch: Batch, node: Node) -> None:
    """Refuse directives for which a number of the node is missing."""
    options = [*batch.options, *(option for queue in batch.queues.values() for option in queue.options)]
    for option in options:
        for place, key in _OF_NODE.items():
            if f"{{{place}}}" in option and getattr(node, key) is None:
                raise ValueError(f"{option!r} of batch has {{{place}}}, but node.{key} is not given: expected it")


class Site(_Part):
    """A machine."""

    name: str = Field(description="what `--site` takes; the file's name")
    description: str = Field(description="one line for a person")
    documentation: str = Field(description="URL of the site's own documentation")
    contact: str = Field(description="who answers for this file")
    launcher: Launcher = Field(description="how pools are started")
    verified: Verified | None = Field(default=None, description="what the file was compared with; absent: with nothing")
    unverified: tuple[str, ...] = Field(
        default=(), description="keys, dots between their parts, of which nobody has made sure: `batch.queues.debug`"
    )
    detect: Detect = Field(default_factory=Detect, description="how to tell that we are there")
    reach: Reach = Field(default_factory=Reach, description="how its compute nodes reach the store")
    batch: Batch | None = Field(default=None, description="its batch system; absent: pilots are processes here")
    slots: int | None = Field(default=None, ge=1, description="worker slots per node; absent: as the cores allow")
    cores_per_slot: int = Field(default=1, ge=1, description="CPU cores of each slot")
    node: Node = Field(default_factory=Node, description="what one node has")
    pretend_nodes: int = Field(
        default=1, ge=1, description="for tests: over so many pretended nodes the slots of one host are divided"
    )
    programs: dict[str, Program] = Field(
        default_factory=dict, description="how MPI programs are started, by flavour: mpich, openmpi or another name"
    )
    default_program: str = Field(
        default="mpich", description="flavour of programs that do not show theirs (scripts), and of the pool itself"
    )
    max_concurrent_steps: int | None = Field(
        default=None, ge=1, description="most MPI programs at a time in a pilot that take a job step; absent: no limit"
    )
    start_s: float = Field(
        default=60.0, gt=0, description="seconds in which a launcher must have started the first rank of a program"
    )

    @property
    def steps(self) -> frozenset[str]:
        """Which starts of MPI programs take a job step, over all flavours; empty: none does."""
        return frozenset({program.step for program in self.programs.values()} - {"never"})

    @model_validator(mode="after")
    def _fits_together(self) -> Site:
        if self.programs and self.default_program not in self.programs:
            raise ValueError(f"default_program is {self.default_program!r}, expected one of {sorted(self.programs)}")
        if self.batch and self.slots is None and self.node.cores is None:
            raise ValueError("neither slots nor node.cores is given: expected one, as this is not the machine itself")
        if self.batch:
            _computable(self.batch, self.node)
        if self.max_concurrent_steps is not None and not self.steps:
            raise ValueError(
                f"max_concurrent_steps is {self.max_concurrent_steps}, but no flavour under 'programs' takes a step: "
                "expected `step: several_nodes` or `step: always` there"
            )
        return self


PARTS: tuple[type[BaseModel], ...] = tuple(_Part.__subclasses__())
"""All that a site file consists of."""


def here(site: Site, env: Mapping[str, str], fqdn: str) -> bool:
    """Return whether this is the machine: one of its variables has its value, or the host's full name ends so.

    Args:
        site: the machine.
        env: our environment.
        fqdn: the full name of this host.
    """
    domain = site.detect.domain.lstrip(".")
    by_name = bool(domain) and f".{fqdn}".endswith(f".{domain}")
    return by_name or any(env.get(name) == value for name, value in site.detect.env.items())


def launchers(site: Site) -> dict[str, Any]:
    """Return, as plain data, what a child needs to know of its site; `Launchers.of` reads it."""
    return {
        "programs": {
            flavour: program.model_dump(mode="json", exclude={"step"}) for flavour, program in site.programs.items()
        },
        "default": site.default_program,
        "start_s": site.start_s,
        "gpu_variable": site.node.gpu_variable if site.node.gpus else "",
    }
