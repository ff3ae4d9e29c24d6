"""How many pilots to ask for, of which shape, or why none. Pure: `scaler` reads the facts and acts.

Work is measured by resource class: a pilot runs so many tasks of a class at a time, and so many one after the other
before it ends. What is up or in the queue takes its share first; what is left is what new pilots are for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

from pilot.board import Node, least_nodes, shape_of
from pilot.layout import Layout, block_sizes
from pilot.resources import Resources
from pilot.states import PilotState

if TYPE_CHECKING:
    from pilot.sites import Queue

TASK_S = 60.0
"""What a task is taken to last if it has no walltime and none has ended lately."""
WALLTIME_S = 3600.0
"""Of a pilot, unless somebody says otherwise or a task needs longer."""
MARGIN_S = 180.0
"""Of a pilot's walltime, so much is for coming up and for draining; a quarter of a short one."""
AT_ONCE = 4
"""Most pilots that one round asks for; as long as none is up, one."""
EARLY_S = 600.0
"""A pilot that is lost within that time, and has finished no task, died early."""
REFUSALS = 5
"""After so many in a row a person is needed."""
DEATHS = 3
"""After so many early ones in a row a person is needed."""
BACKOFF_S = 60.0
"""After a refusal nothing is asked for; doubled with each in a row."""

# -- what has become of earlier pilots ------------------------------------------------------------


class Ending(StrEnum):
    """What a pilot that a scaler asked for says about the next one."""

    NONE = "none"
    """It lives, or was taken back before it began."""
    WELL = "well"
    """It worked, or ended because it was asked to."""
    REFUSED = "refused"
    """The batch system did not take it."""
    DIED = "died"
    """It was lost, or gave up, before it had finished a task."""


class Past(NamedTuple):
    """A pilot that a scaler asked for."""

    created: datetime
    ending: Ending
    ended: datetime | None = None
    words: str = ""
    """Why it ended."""


def past(doc: Mapping[str, Any], finished: int) -> Past:
    """Judge a pilot by its document.

    Args:
        doc: of a pilot.
        finished: how many tasks its pools have brought to an end.
    """
    started, lost, failed = doc.get("started"), doc["state"] == PilotState.LOST, bool(doc.get("failed"))
    if doc["state"] not in (PilotState.ENDED, PilotState.LOST) or not (started or lost or failed):
        return Past(doc["created"], Ending.NONE)
    ended: datetime = doc["ended"]
    if started is None:
        ending = Ending.DIED if lost else Ending.REFUSED
    else:
        early = lost and (ended - started).total_seconds() < EARLY_S
        ending = Ending.DIED if (failed or early) and not finished else Ending.WELL
    return Past(doc["created"], ending, ended, doc.get("reason", ""))


def refusals(pasts: Sequence[Past]) -> list[Past]:
    """Return the latest submissions as far as they were refused, latest first; one that was taken ends the row."""
    latest = sorted(pasts, key=lambda one: one.created, reverse=True)
    return list(takewhile(lambda one: one.ending is Ending.REFUSED, latest))


def deaths(pasts: Sequence[Past]) -> list[Past]:
    """Return the latest ends as far as they were early deaths, latest first; refusals are none."""
    over = [one for one in pasts if one.ended is not None and one.ending is not Ending.REFUSED]
    latest = sorted(over, key=lambda one: one.ended or one.created, reverse=True)
    return list(takewhile(lambda one: one.ending is Ending.DIED, latest))


# -- what there is --------------------------------------------------------------------------------


class Machine(NamedTuple):
    """What a site gives to a pilot, and what its queue takes."""

    queue: Queue
    slots: int
    """Of a node."""
    slot_cores: int = 1
    slot_memory: int | None = None
    gpus: int = 0
    """Of a node."""
    pool_nodes: int = 64
    """Most nodes of one pool; a pilot of more has several."""
    share: bool = True
    """Whether MPI programs start on the nodes of a pool; else none can: nobody asks for program nodes."""

    def layouts(self, nodes: int) -> list[Layout]:
        """Return the pools of a pilot of so many nodes."""
        each: dict[str, Any] = {"slot_cores": self.slot_cores, "slot_memory": self.slot_memory}
        each |= {} if self.share else {"programs": {"nodes": ()}}
        return [
            Layout.from_document({"nodes": [("", self.slots, self.gpus)] * count, **each})
            for count in block_sizes(nodes, self.pool_nodes)
        ]

    def least(self, needs: Resources) -> int:
        """Return how many nodes a task takes, if any number will do."""
        node = Node("", tuple(range(self.slots)), self.gpus)
        return least_nodes(shape_of(needs, self.slot_cores, self.slot_memory), node)


class Wishes(NamedTuple):
    """What a person asked of the scaler."""

    min: int = 0
    """So many pilots are up or in the queue, even if nothing waits."""
    max: int = 10
    """Most pilots of the scaler at this site at a time."""
    total: int | None = None
    """Most pilots of the project's scalers at all sites at a time."""
    nodes: tuple[int, int | None] = (1, None)
    """Fewest and most of a pilot; None: no more than a task needs."""
    walltime_s: float = WALLTIME_S
    """Of a pilot; longer if a task that waits needs it."""


class Seen(NamedTuple):
    """A pilot that is up or asked for."""

    layouts: Sequence[Layout]
    left_s: float
    """Until it ends, at the latest."""
    held: int = 0
    """Tasks that it has in hand or leased ahead."""
    here: bool = True
    """Whether it is one of this site."""
    ours: bool = True
    """Whether a scaler asked for it."""
    queued: bool = False
    """Whether it waits in the queue or is starting."""
    able: bool = True
    """Whether it takes work, or will."""


@dataclass(frozen=True, slots=True)
class Facts:
    """All that the decision is made from."""

    ready: Mapping[str, int]
    """Resource class → how many tasks wait for a slot."""
    pilots: Sequence[Seen] = ()
    """That have not ended."""
    pasts: Sequence[Past] = ()
    """The latest that a scaler asked for here, since a person resumed it."""
    mean_s: float | None = None
    """What tasks took lately."""
    unknown: str = ""
    """What is not known of the batch system or of earlier pilots; empty: nothing is in doubt."""
    paused: str = ""
    """Why a person is needed; empty: none is."""


class Wanted(NamedTuple):
    """A pilot to ask for."""

    nodes: int
    walltime_s: float
    stays: bool = False
    """Whether it is one of those that are there even if nothing waits."""


class Decision(NamedTuple):
    """What to do in this round."""

    wanted: tuple[Wanted, ...]
    why: str
    """Why these, or why none; one line for a person."""
    never: Mapping[str, str] = {}
    """Resource class → why no pilot of this site, as it may be shaped, could run its tasks."""
    pause: str = ""
    """Why nothing is to be asked for until a person says so; empty: there is no reason."""


# -- the decision ---------------------------------------------------------------------------------


def decide(facts: Facts, wishes: Wishes, machine: Machine, now: datetime) -> Decision:
    """Decide what to ask for. In doubt, nothing: a pilot too few is made good by the next round."""
    refused, died = refusals(facts.pasts), deaths(facts.pasts)
    pause = facts.paused
    if not pause and len(refused) >= REFUSALS:
        pause = f"{len(refused)} submissions in a row were refused, the last one: {_line(refused[0].words)}"
    elif not pause and len(died) >= DEATHS:
        pause = f"{len(died)} pilots in a row died early, the last one: {_line(died[0].words)}"
    if pause:
        return Decision((), f"paused: {pause}", pause=pause)
    if facts.unknown:
        return Decision((), f"nothing is asked for: {facts.unknown}")
    if refused:
        until = (refused[0].ended or now) + timedelta(seconds=BACKOFF_S * 2 ** (len(refused) - 1))
        if now < until:
            return Decision((), f"backing off until {until.astimezone():%H:%M:%S} after: {_line(refused[0].words)}")
    return _Round(facts, wishes, machine).decide()


class _Supply:
    """A pilot that is up or asked for, and how much of it is not spoken for yet."""

    def __init__(self, seen: Seen, mean_s: float) -> None:
        self._layouts = seen.layouts
        self._left_s = seen.left_s
        busy_s = seen.held * mean_s / max(1, sum(layout.slots for layout in seen.layouts))
        self._free = max(0.0, 1.0 - busy_s / max(seen.left_s, 1e-3))

    def take(self, key: str, count: int, seconds: float, horizon_s: float) -> int:
        """Take up to `count` tasks of a class; return how many.

        Args:
            key: the class.
            count: how many there are.
            seconds: that each takes.
            horizon_s: a pilot that stays for longer counts only for so long: else one would do for everything.
        """
        at_once = sum(layout.at_once(key) for layout in self._layouts if not layout.why_never(key))
        runs = int(min(self._left_s, max(horizon_s, seconds)) // seconds)
        if not runs and Resources.from_key(key).walltime_s is None and self._left_s > 0:
            runs = 1  # how long it takes is a guess: it is begun, whatever time is left
        most = at_once * runs
        taken = min(count, int(most * self._free + 1e-9))
        if taken:
            self._free -= taken / most
        return taken


class _Round:
    """One decision in the making."""

    def __init__(self, facts: Facts, wishes: Wishes, machine: Machine) -> None:
        self._facts = facts
        self._wishes = wishes
        self._machine = machine
        self._mean_s = facts.mean_s or TASK_S
        self._supplies = [_Supply(seen, self._mean_s) for seen in facts.pilots if seen.able]
        self._wanted: list[Wanted] = []
        self._never: dict[str, str] = {}
        self._open, self._limit = self._room()

    def _room(self) -> tuple[int, str]:
        """Return how many more pilots may be asked for, and what keeps it from being more."""
        pilots, wishes, queue = self._facts.pilots, self._wishes, self._machine.queue
        here = [seen for seen in pilots if seen.here]
        ours = [seen for seen in here if seen.ours]
        up = sum(not seen.queued for seen in ours)
        waits = len(ours) - up
        limits = [(wishes.max - len(ours), f"the cap of {wishes.max} (--max) is reached")]
        if wishes.total is not None:
            everywhere = sum(seen.ours for seen in pilots)
            limits.append((wishes.total - everywhere, f"the cap of {wishes.total} over all sites (--total) is reached"))
        if queue.max_queued is not None:
            limits.append((queue.max_queued - len(here), f"the queue takes {queue.max_queued} jobs (max_queued)"))
        pace = min(AT_ONCE, max(1, up))
        limits.append((pace, f"a round asks for {pace} at most" + (f", {waits} wait already" if waits else "")))
        open_, limit = min(limits, key=lambda one: one[0])
        return max(0, open_), limit

    def decide(self) -> Decision:
        """Go through what waits, the most demanding first, so that small tasks fill what large ones leave."""
        ours = sum(seen.ours and seen.here for seen in self._facts.pilots)
        short = max(0, self._wishes.min - ours)
        for _ in range(min(short, self._open)):
            nodes = max(self._wishes.nodes[0], self._machine.queue.min_nodes)
            self._ask_for(Wanted(nodes, self._walltime(nodes, 0.0), stays=True))
        left = total = 0
        for key in sorted(self._facts.ready, key=self._demands, reverse=True):
            total += self._facts.ready[key]
            left += self._serve(key, self._facts.ready[key])
        return Decision(tuple(self._wanted), self._why(left, total, short), self._never)

    def _demands(self, key: str) -> tuple[float, ...]:
        needs = Resources.from_key(key)
        return (self._machine.least(needs), needs.size * needs.cores, self._seconds(needs))

    def _seconds(self, needs: Resources) -> float:
        return needs.walltime_s or self._mean_s

    def _serve(self, key: str, count: int) -> int:
        """Share the tasks of a class among pilots, new ones if need be; return how many are left."""
        needs = Resources.from_key(key)
        seconds, horizon_s = self._seconds(needs), usable(self._wishes.walltime_s)
        for supply in self._supplies:
            count -= supply.take(key, count, seconds, horizon_s)
        if not count:
            return 0
        fitting = self._fitting(needs, count)
        if isinstance(fitting, str):
            self._never[key] = fitting
            return count
        while count and len(self._wanted) < self._open:
            self._ask_for(fitting)
            count -= self._supplies[-1].take(key, count, seconds, horizon_s)
        return count

    def _ask_for(self, wanted: Wanted) -> None:
        self._wanted.append(wanted)
        layouts = self._machine.layouts(wanted.nodes)
        self._supplies.append(_Supply(Seen(layouts, usable(wanted.walltime_s)), self._mean_s))

    def _why(self, left: int, total: int, short: int) -> str:
        never = sum(self._facts.ready[key] for key in self._never)
        limit = self._limit if left > never or short > self._open else ""
        if self._wanted:
            why = f"{_tasks(total)} wait" if total else f"{self._wishes.min} are to be there (--min)"
        elif not total:
            why = "nothing waits"
        elif left == never == total:
            why = "no pilot of this site could run what waits"
        elif limit:
            why = f"{_tasks(left - never)} wait for more pilots"
        else:
            why = "what is up or in the queue is enough for what waits"
        return f"{why}; {limit}" if limit else why

    # -- shapes ---------------------------------------------------------------------------------

    def _walltime(self, nodes: int, needed_s: float) -> float:
        """Return what a pilot of so many nodes is to run, to have so long for one task if the queue allows it."""
        queue = self._machine.queue
        walltime_s = max(self._wishes.walltime_s, needed_s + min(MARGIN_S, needed_s / 3), queue.min_walltime or 0.0)
        longest = queue.longest(nodes)
        return walltime_s if longest is None else min(walltime_s, longest)

    def _fitting(self, needs: Resources, count: int) -> Wanted | str:
        """Return the pilot to ask for if so many tasks wait for one; as a string, why none would do."""
        machine, queue = self._machine, self._machine.queue
        low, high = self._wishes.nodes
        takes = machine.least(needs)
        if takes > machine.pool_nodes:
            return f"it takes a pool of {takes} nodes, here they have at most {machine.pool_nodes} (block_nodes)"
        least = max(takes, low, queue.min_nodes)
        most = min((one for one in (high, queue.max_nodes) if one is not None), default=None)
        if most is not None and least > most:
            return f"it takes a pilot of {least} nodes, here they have at most {most}"
        why = [layout.why_never(needs.key) for layout in machine.layouts(least)]
        if all(why):
            return why[0]
        walltimes = {nodes: self._walltime(nodes, needs.walltime_s or 0.0) for nodes in self._sizes(least, most)}
        for nodes, walltime_s in walltimes.items():
            if needs.walltime_s is None or needs.walltime_s <= usable(walltime_s):
                found = Wanted(nodes, walltime_s)
                return found if high is None or most is None else self._grown(found, needs, count, most)
        needed, longest = _minutes(needs.walltime_s or 0.0), _minutes(max(walltimes.values()))
        return f"it needs a walltime of {needed}, a pilot here has at most {longest}"

    def _sizes(self, least: int, most: int | None) -> list[int]:
        """Return the numbers of nodes that are worth a look: the fewest, and where the queue's walltimes change."""
        steps = [size.max_nodes + 1 for size in self._machine.queue.sizes]
        return [least, *(nodes for nodes in steps if nodes > least and (most is None or nodes <= most))]

    def _grown(self, wanted: Wanted, needs: Resources, count: int, most: int) -> Wanted:
        """Return it with up to so many nodes, as far as what waits would fill them."""
        unit = self._machine.least(needs)
        at_once = sum(layout.at_once(needs.key) for layout in self._machine.layouts(unit))
        runs = max(1, int(usable(wanted.walltime_s) // self._seconds(needs)))
        nodes = min(max(wanted.nodes, unit * math.ceil(count / (at_once * runs))), most)
        longest = self._machine.queue.longest(nodes)
        return wanted if longest is not None and longest < wanted.walltime_s else wanted._replace(nodes=nodes)


def usable(walltime_s: float) -> float:
    """Return how much of a pilot's walltime is for tasks."""
    return walltime_s - min(MARGIN_S, walltime_s / 4)


def _tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{count:,} tasks"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:,.0f} min"


def _line(words: str) -> str:
    return " ".join(words.split()) or "it gave no reason"
