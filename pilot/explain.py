"""Why a task is not running: what follows from the facts. Pure: `cli.facts` reads them from the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pilot import lifecycle
from pilot.layout import Layout
from pilot.model import LOST_BUDGET
from pilot.resources import Resources
from pilot.states import ENDED, State

Document = dict[str, Any]

HEARTBEAT_OLD_S = 10.0
"""A heartbeat that is older is worth a word; it should come every two seconds or so."""
NAMED = 3
"""How many of many are named."""

# -- facts ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pilot:
    """What is known of one pilot that is up, as the store says."""

    id: str
    host: str
    slots: int
    """Of its live pools: 0 while none is up."""
    slot_cores: int
    busy: int
    heartbeat_s: float
    left_s: float | None = None
    """Until it ends; None: it has no end."""
    draining: bool = False
    layouts: Sequence[Layout] = ()
    """Of its live pools."""


@dataclass(frozen=True, slots=True)
class Other:
    """Another task, one that this one waits for."""

    id: str
    name: str
    state: State
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Attempt:
    """How one attempt ended."""

    number: int
    outcome: str
    ago_s: float | None
    host: str = ""
    error: str = ""
    taken: str = ""
    """The record whose outputs were taken, of a `cached` one."""
    taken_ago_s: float | None = None
    """Since that one ended."""
    saved_s: float = 0.0
    """How long that one took."""
    miss: str = ""
    """Why no earlier result was taken, although caching was on."""


@dataclass(frozen=True, slots=True)
class Facts:
    """All that the reasons are concluded from."""

    task: Document
    age_s: float
    """Since the task was submitted, leased or ended, whichever came last."""
    pilots: Sequence[Pilot] = ()
    parents: Mapping[State, int] = field(default_factory=dict)
    """How many of those it waits for are in which state."""
    named: Sequence[Other] = ()
    """Some of them."""
    root: Facts | None = None
    """Of the task at the end of the chain: the one that runs, waits for a slot, or has failed."""
    before: int = 0
    """Ready tasks of higher priority."""
    beside: int = 0
    """Ready tasks of its own priority, itself left out."""
    pool: Document | None = None
    """The pool under whose token it is leased."""
    attempts: Sequence[Attempt] = ()
    queued: Sequence[str] = ()
    """Of each pilot that is not up yet, what it waits for."""
    usual: Layout | None = None
    """Of a pilot that the project's site starts by itself; None: nobody has looked."""


# -- conclusions ----------------------------------------------------------------------------------


def reasons(facts: Facts) -> list[str]:
    """Return why the task is where it is, most important first, one line each."""
    state = State(facts.task["state"])
    if state is State.WAITING:
        lines = _waiting(facts)
    elif state is State.READY:
        lines = _ready(facts)
    elif state is State.LEASED:
        lines = _leased(facts)
    elif state is State.FAILED:
        lines = _failed(facts)
    elif state is State.CANCELLED:
        lines = [f"it was cancelled {_ago(facts.age_s)}; `pilot retry {facts.task['_id']}` runs it after all"]
    else:
        lines = [f"it is done since {_span(facts.age_s)}; `pilot show {facts.task['_id']}` shows its result"]
    if "invalid" in facts.task:
        said = facts.task["invalid"].get("reason")
        lines.append(f"its result is not taken for equal tasks: it was invalidated{f': {said}' if said else ''}")
    return lines + _history(facts)


def _waiting(facts: Facts) -> list[str]:
    total = sum(facts.parents.values())
    if not total:
        return ["all that it waited for has ended; it becomes ready when a pilot looks after it, within 30 s"]
    states = ", ".join(f"{count:,} {state.value}" for state, count in sorted(facts.parents.items()))
    shown = ", ".join(f"{other.id} ({other.name}, {other.state.value})" for other in facts.named)
    more = f" and {total - len(facts.named):,} more" if total > len(facts.named) else ""
    if total == 1 and facts.named:
        lines = [f"it waits for the result of {shown}"]
    else:
        lines = [f"it waits for {total:,} tasks ({states}): {shown}{more}"]
    root = facts.root
    if root is not None and root.task["state"] not in ENDED:
        lines += [f"{root.task['_id']} ({root.task['name']}): {line}" for line in reasons(root)[:2]]
    elif all(state in ENDED for state in facts.parents):
        lines.append("they have ended; a pilot's agent takes this up within 30 s, or `pilot doctor --repair` now")
    return lines


def _ready(facts: Facts) -> list[str]:
    up = [pilot for pilot in facts.pilots if pilot.slots]
    needs = Resources.from_key(facts.task["class"])
    if not facts.pilots and facts.queued:
        return ["it is ready, and no pilot is up yet", *facts.queued]
    usual = () if facts.usual is None else (facts.usual,)
    if not facts.pilots:
        return [f"it is ready, and no pilot is up: start one with `{_up_for(needs, usual)}`"]
    lines = [_stale(pilot) for pilot in facts.pilots if pilot.heartbeat_s > HEARTBEAT_OLD_S]
    alive = [pilot for pilot in up if pilot.heartbeat_s <= HEARTBEAT_OLD_S]
    if not alive:
        starting = [pilot.id for pilot in facts.pilots if not pilot.slots and pilot.heartbeat_s <= HEARTBEAT_OLD_S]
        if starting:
            return [*lines, f"it is ready; pilot {_some(starting)} is up, but its pool is not yet"]
        return [*lines, f"no other pilot is up: start one with `{_up_for(needs, usual)}`"]
    refusals = {pilot.id: refusal(needs, pilot) for pilot in alive}
    willing = [pilot for pilot in alive if not refusals[pilot.id]]
    lines += [f"pilot {name} cannot run it: {why}" for name, why in refusals.items() if why]
    if not willing and facts.queued:
        return [*lines, *facts.queued]
    if not willing:
        return [*lines, f"start a pilot that can: `{_up_for(needs, usual or _layouts(alive))}`"]
    busy, slots = sum(pilot.busy for pilot in willing), sum(pilot.slots for pilot in willing)
    names = _some([pilot.id for pilot in willing])
    queue = f"{facts.before:,} ready tasks of higher priority come first, {facts.beside:,} are of the same"
    if busy >= slots:
        lines.append(f"all {slots:,} slots of {names} are busy; {queue}")
    elif facts.before + facts.beside > slots:
        lines.append(f"it waits its turn on {names}: {queue}")
    else:
        lines.append(f"nothing keeps it: {names} has {slots - busy:,} free slots and takes it within seconds")
    return lines


def _leased(facts: Facts) -> list[str]:
    task, pool = facts.task, facts.pool
    lines = []
    if pool is None or pool.get("state") != "live":
        lines.append(
            f"it is held by pool {task.get('lease')}, which is dead: the next agent to look puts it back in the queue"
            + ("" if facts.pilots else "; no pilot is up: `pilot up` starts one")
        )
    else:
        where = f"pool {task['lease']} of pilot {pool['pilot']} on host {pool.get('host', '?')}"
        held = f"it is held by {where} since {_span(facts.age_s)}"
        parked: Sequence[str] = pool.get("parked", ())
        if task["_id"] in parked:
            lines.append(f"{held}, and waits there for room: {_for_room(task, pool, parked.index(task['_id']))}")
        else:
            lines.append(f"{held}: it runs, or is next on one of its slots")
        lines += [_stale(p) for p in facts.pilots if p.id == pool["pilot"] and p.heartbeat_s > HEARTBEAT_OLD_S]
    if task.get("cancel"):
        lines.append("somebody has asked to cancel it; its pool stops it within seconds")
    return lines


def _for_room(task: Document, pool: Document, before: int) -> str:
    """Say what a wide task that is leased waits for."""
    needs = Resources.from_key(task["class"])
    what, busy, total = "slots", pool.get("busy", 0), pool.get("slots", 0)
    if needs.program and pool.get("programs"):
        what, busy, total = "program nodes", pool.get("program_nodes_busy", 0), len(pool["programs"]["nodes"])
    words = f"it asks for {asked(needs)}, and {busy} of {total} {what} are busy"
    kept = pool.get("kept")
    if task["_id"] in pool.get("stepless", ()):
        words += "; all job steps that the site lets a pilot have at a time (max_concurrent_steps) are taken"
    if kept and kept["class"] == task["class"] and not before:
        at = "" if kept["in_s"] is None else f", all free in {_span(kept['in_s'])} at the latest"
        return f"{words}; {_slots(kept['slots'])} kept free for it{at}"
    if kept:
        return f"{words}; {_slots(kept['slots'])} kept free for a task of class {kept['class']}, which comes first"
    ahead = "1 wide task of that pool comes" if before == 1 else f"{before} wide tasks of that pool come"
    return f"{words}; {ahead} before it" if before else f"{words}; it is the next"


def _failed(facts: Facts) -> list[str]:
    task, reason = facts.task, facts.task.get("reason", "failed")
    again = f"`pilot retry {task['_id']}` runs it again"
    if reason == "upstream":
        total = sum(facts.parents.values())
        shown = ", ".join(f"{other.id} ({other.name}, {other.state.value})" for other in facts.named)
        more = f" and {total - len(facts.named):,} more" if total > len(facts.named) else ""
        lines = [f"it needs the result of {shown or 'another task'}{more}, which did not succeed"]
        if facts.root is not None:
            root = facts.root.task
            cause = _history(facts.root)
            why = root.get("message") or (cause[-1] if cause else root.get("reason") or root["state"])
            lines.append(f"it began with {root['_id']} ({root['name']}): {why}")
            again = f"`pilot retry {root['_id']}` runs that again, and then this"
        return [*lines, again]
    if reason == "missing":
        return [f"{task.get('message', 'a task that it waits for does not exist')}; submit it anew"]
    if reason == "lost":
        return [f"it was lost more than {LOST_BUDGET} times with pilots that died: it may be what ends them; {again}"]
    tries = f"; it had {task['retries'] + 1} tries" if task.get("retries") else ""
    return [f"it failed {_ago(facts.age_s)}, reason: {reason}{tries}; {again}"]


def _history(facts: Facts) -> list[str]:
    lines = []
    for attempt in facts.attempts:
        place = f" on {attempt.host}" if attempt.host else ""
        when = "" if attempt.ago_s is None else f" {_ago(attempt.ago_s)}"
        error = f": {attempt.error}" if attempt.error else ""
        lines.append(f"attempt {attempt.number} {attempt.outcome}{place}{when}{error}")
        if attempt.taken:
            since = "" if attempt.taken_ago_s is None else f", which ended {_ago(attempt.taken_ago_s)}"
            lines.append(f"it did not run: it took the result of {attempt.taken}{since}; that saved {saved(attempt)}")
        if attempt.miss:
            lines.append(f"it had to run although caching was on: {attempt.miss}")
    return lines


def saved(attempt: Attempt) -> str:
    """Say how long the attempt took whose result another one has taken."""
    return _span(attempt.saved_s) if attempt.saved_s >= 1 else f"{attempt.saved_s * 1000:.1f} ms"


# -- which pilot can run what ---------------------------------------------------------------------


def refusal(needs: Resources, pilot: Pilot) -> str:
    """Return why a pilot takes no task with these needs; empty if it does."""
    layouts = pilot.layouts or [Layout.from_document({"slots": pilot.slots, "slot_cores": pilot.slot_cores})]
    lacks = [layout.why_never(needs.key) for layout in layouts]
    if all(lacks):
        return lacks[0]
    if pilot.draining:
        return "the pilot is ending and takes nothing new"
    if not lifecycle.fits_before(needs.walltime_s, 0.0, pilot.left_s):
        return (
            f"a walltime of {_span(needs.walltime_s or 0.0)} is needed, the pilot ends in {_span(pilot.left_s or 0.0)}"
        )
    return ""


def asked(needs: Resources) -> str:
    """Return what a task asks for in words, its walltime left out."""
    each = f"{needs.cores} core{'s' if needs.cores > 1 else ''}"
    parts = [each if needs.ranks is None else f"{needs.ranks} rank{'s' if needs.ranks > 1 else ''} of {each}"]
    parts += [f"{needs.gpus:g} GPU each" if needs.ranks else f"{needs.gpus:g} GPU"] if needs.gpus else []
    parts += (
        [f"{needs.memory_bytes / (1 << 20):,.0f} MiB{' each' if needs.ranks else ''}"] if needs.memory_bytes else []
    )
    parts += [f"{needs.ranks_per_node} ranks per node"] if needs.ranks_per_node else []
    parts += [f"{needs.nodes} whole node{'s' if needs.nodes > 1 else ''}"] if needs.nodes else []
    parts += (
        [{"near": "on one node", "contiguous": "on nodes next to each other"}[needs.layout]] if needs.layout else []
    )
    return ", ".join(parts)


def held_up(classes: Mapping[str, int], fleet: Sequence[Pilot], queued: Sequence[str] = ()) -> list[str]:
    """Return what keeps ready tasks from starting on what is up, one line per cause; empty if all can start.

    Args:
        classes: resource class → how many ready tasks.
        fleet: the pilots that are up.
        queued: of each that is not up yet, what it waits for.
    """
    if not classes:
        return []
    if queued and not fleet:
        return [f"{_tasks(sum(classes.values()))} ready and no pilot is up yet: {queued[0]}"]
    if not any(pilot.slots for pilot in fleet):
        return [] if fleet else [f"{_tasks(sum(classes.values()))} ready and no pilot is up: `pilot up` starts one"]
    lines = []
    for name, count in sorted(classes.items()):
        needs = Resources.from_key(name)
        refusals = [refusal(needs, pilot) for pilot in fleet if pilot.slots]
        if all(refusals):
            up = _up_for(needs, _layouts(fleet))
            lines.append(f"{_tasks(count)} ready that no pilot takes: {refusals[0]}; start one with `{up}`")
    return lines


def _layouts(fleet: Sequence[Pilot]) -> list[Layout]:
    return [layout for pilot in fleet for layout in pilot.layouts]


def _up_for(needs: Resources, like: Sequence[Layout]) -> str:
    """Return how to start a pilot for these needs at a site that has such pools."""
    words = ["pilot up"]
    apart = [options for layout in like if (options := layout.program_options(needs.key))]
    if apart:
        words.append(apart[0])
    elif needs.size > 1:
        words.append(f"--slots {needs.size}")
    if needs.cores > 1:
        words.append(f"--cores-per-slot {needs.cores}")
    if needs.walltime_s is not None:
        words.append(f"--walltime {max(1, round(needs.walltime_s * 2 / 60))}m")
    return " ".join(words)


def _slots(count: int) -> str:
    return "1 slot is" if count == 1 else f"{count:,} slots are"


def _tasks(count: int) -> str:
    return "1 task is" if count == 1 else f"{count:,} tasks are"


def _stale(pilot: Pilot) -> str:
    return (
        f"the heartbeat of pilot {pilot.id} on {pilot.host} is {_span(pilot.heartbeat_s)} old: it is dead, frozen or "
        "cut off from the store; others take over what it holds, `pilot down` clears it away"
    )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMED])
    return f"{shown} and {len(names) - NAMED} more" if len(names) > NAMED else shown


def _ago(seconds: float) -> str:
    return f"{_span(seconds)} ago"


def _span(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0.0):.0f} s"
