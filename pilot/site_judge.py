"""What the facts of a site mean: whether they fit its file, and which key of that to set. Pure.

Two sources: what the batch system says of its queues, and what the ranks of a small program saw (`probe.look`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pilot.executors.batch.jobs import QueueNow
from pilot.executors.batch.script import clock
from pilot.findings import Finding, note, ok, wrong

if TYPE_CHECKING:
    from pilot.sites import Queue

Rank = Mapping[str, Any]
"""What one rank saw."""

# -- queues ---------------------------------------------------------------------------------------


def judge_queue(name: str, queue: Queue | None, said: Mapping[str, QueueNow]) -> Iterator[Finding]:
    """Compare what the file says of a queue with what the batch system says.

    Args:
        name: of the queue.
        queue: what the file says; None: nothing.
        said: by the batch system, of all queues.
    """
    now = said.get(name)
    if now is None:
        there = ", ".join(sorted(said))
        yield wrong("queue", f"{name}: there is no such queue, but {there}; correct batch.queue or batch.queues")
        return
    differing = _differences(name, queue, now) if queue is not None else []
    yield from (note("queue", f"{name}: {words}") for words in differing)
    if not now.open:
        yield note("queue", f"{name}: is {now.word}: its jobs wait until it is open again")
    elif not differing:
        yield ok("queue", f"{name}: {now.word}{_limits(now)}")


def _differences(name: str, queue: Queue, now: QueueNow) -> list[str]:
    """Return which limits of the file differ from those that the batch system tells of."""
    key = f"batch.queues.{name}"
    found = []
    if now.max_nodes is not None and queue.max_nodes not in (None, now.max_nodes):
        found.append(f"{key}.max_nodes is {queue.max_nodes}, the batch system says {now.max_nodes}")
    elif now.nodes is not None and (queue.max_nodes or 0) > now.nodes:
        found.append(f"{key}.max_nodes is {queue.max_nodes}, but it has {now.nodes} nodes")
    if now.min_nodes > 1 and queue.min_nodes != now.min_nodes:
        found.append(f"{key}.min_nodes is {queue.min_nodes}, the batch system says {now.min_nodes}")
    longest = queue.longest(queue.max_nodes or 1)
    if now.max_walltime_s is not None and longest not in (None, now.max_walltime_s):
        found.append(f"{key}.max_walltime is {clock(longest or 0)}, the batch system says {clock(now.max_walltime_s)}")
    return found


def _limits(now: QueueNow) -> str:
    nodes = "" if now.max_nodes is None else f", up to {now.max_nodes} nodes"
    return nodes + ("" if now.max_walltime_s is None else f", up to {clock(now.max_walltime_s)}")


# -- ranks ----------------------------------------------------------------------------------------


def judge_ranks(asked: Mapping[str, int], seen: Sequence[Rank]) -> Iterator[Finding]:
    """Say whether the ranks are where they were asked to be.

    Args:
        asked: how many on each node, as the batch system calls it; empty: all on this machine.
        seen: by each rank.
    """
    nodes = Counter(_short(one["node"]) for one in seen)
    yield ok("world", f"one program of {len(seen)} ranks on {', '.join(sorted(nodes))}: {seen[0]['library']}")
    wanted = Counter({_short(host): ranks for host, ranks in asked.items()}) or Counter({"": len(seen)})
    if sorted(nodes.values()) == sorted(wanted.values()):
        yield ok("ranks", f"as many on each node as asked: {_per_node(nodes)}")
    else:
        text = f"asked for {_per_node(wanted)}, there are {_per_node(nodes)}: the launcher does not heed the host file"
        yield wrong("ranks", f"{text}; look at launcher.command, launcher.host_line, line_per_rank and env")


def judge_binding(cores: int | None, cpu_order: Sequence[int], seen: Sequence[Rank]) -> Iterator[Finding]:
    """Say whether every rank may use its whole node, since the pilot alone binds.

    Args:
        cores: that tasks may use, of each node; None: all that there are.
        cpu_order: the ids of their CPUs; empty: no matter which.
        seen: by each rank.
    """
    masks: dict[str, set[tuple[int, ...]]] = defaultdict(set)
    for one in seen:
        masks[one["node"]].add(tuple(one["cpus"]))
    differ = [node for node, there in masks.items() if len(there) > 1]
    least = min((one for one in seen), key=lambda one: len(one["cpus"]))
    usable, online = len(least["cpus"]), least["online"]
    missing = sorted(set(cpu_order) - set(least["cpus"]))
    if differ:
        text = f"ranks on {differ[0]} may use different CPUs, one of them {usable} of {online}: the launcher binds them"
        yield wrong("binding", f"{text}; turn that off in launcher.command (`--cpu-bind=none`, `--bind-to none`)")
    elif missing:
        yield wrong("binding", f"ranks on {least['node']} may not use CPUs {missing} of node.cpu_order; correct it")
    elif usable < min(cores or online, online):
        text = f"ranks on {least['node']} may use {usable} of {online} CPUs: the job does not have the whole node"
        yield wrong("binding", f"{text}; add to batch.options what asks for it (`--exclusive`, `-l place=excl`)")
    else:
        yield ok("binding", f"every rank may use all {usable} CPUs of its node that the job has")
    if cores is not None and cores > online:
        yield note("binding", f"node.cores is {cores}, {least['node']} has {online} CPUs")


def judge_gpus(names: Sequence[str], variable: str, seen: Sequence[Rank]) -> Iterator[Finding]:
    """Say whether every node has the GPUs of the file.

    Args:
        names: of a node's GPUs, as the variable calls them.
        variable: its name.
        seen: by each rank.
    """
    wanted = len({name.partition(".")[0] for name in names})  # tiles "0.0" and "0.1" are of one device
    for one in {one["node"]: one for one in seen}.values():
        told = len([word for word in one["gpu_variable"].split(",") if word])
        there = f"{one['node']} has {one['gpus']} GPUs in /dev"
        there += f", and {variable} is {one['gpu_variable'] or 'not set'}" if names else ""
        if not names and one["gpus"]:
            yield note("gpus", f"node.gpus is 0, but {there}")
        elif names and max(one["gpus"], told) < wanted:
            yield wrong("gpus", f"node.gpus is {len(names)}, but {there}; ask for them in batch.options, or correct it")
        else:
            yield ok("gpus", there if names else f"{one['node']} has none, as the file says")


def judge_nested(size: int, said: Mapping[str, Any], beside: str) -> Finding:
    """Say whether a program that was started beside the pool came up as one, and whether the file says so.

    Args:
        size: how many ranks it was to have.
        said: by whoever started it, with what each of its ranks saw.
        beside: what the file says; see `launcher.programs_beside_pool`.
    """
    seen: Sequence[Rank] = said["ranks"]
    line = " ".join(said["launcher"][:1])
    if said["started"] and not said["code"] and len(seen) == size:
        hosts = ", ".join(sorted({one["host"] for one in seen}))
        text = f"a program of {size} ranks on {hosts} started beside the pool, by {line}"
        if beside == "share":
            return ok("nested", text)
        return note("nested", f"{text}: launcher.programs_beside_pool, which is {beside}, may be share")
    words = " ".join(str(said["words"]).split())[-500:]
    return not_beside(f"a program of {size} ranks does not start beside the pool: {words}", beside)


def not_beside(text: str, beside: str) -> Finding:
    """Return that programs do not start beside a pool, or disturb it: that is wrong only if the file says they do."""
    if beside == "share":
        return wrong("nested", f"{text}; {BESIDE}")
    return ok("nested", f"{text}, and launcher.programs_beside_pool is {beside}")


BESIDE = (
    "look at the launcher under programs, and at launcher.command (under Slurm it needs `--overlap`), or set "
    "launcher.programs_beside_pool to whole_node_free or no"
)
"""What to do when programs do not start beside a pool."""


def _short(host: str) -> str:
    return host.partition(".")[0]


def _per_node(nodes: Mapping[str, int]) -> str:
    return ", ".join(f"{ranks} on {node or 'this machine'}" for node, ranks in sorted(nodes.items()))
