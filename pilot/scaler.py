"""The scaler: asks a site for pilots by what waits, round after round. All that it knows is in the store.

So it may be ended at any time, run from cron, or run twice: a round belongs to one of them.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

from pilot import allocation, fleet, launch
from pilot.config import ProjectConfig
from pilot.errors import PilotDied, SchedulerError, StoreUnavailable
from pilot.layout import Layout
from pilot.model import new_token
from pilot.offers import usual_slots
from pilot.scaling import Facts, Machine, Past, Seen, Wanted, Wishes, decide, past, usable
from pilot.settings import PilotSettings
from pilot.states import PilotState
from pilot.store import pilots, scaling, tasks
from pilot.store.mongo import Store

if TYPE_CHECKING:
    from pilot.sites import Site

Document = dict[str, Any]

IDLE_S = 300.0
"""A pilot without work for so long ends itself."""
COUNTED = 200_000
"""Ready tasks of a class are counted no further, so that a round costs little however many there are."""
REMEMBERED = 100
"""So many of the latest pilots are judged."""


class Asked(NamedTuple):
    """A pilot that was asked for."""

    pilot: str
    job: str | None
    """None: it has no batch system."""
    nodes: int
    walltime_s: float


class Round(NamedTuple):
    """What one round saw and did."""

    why: str
    """What was done, or why nothing was; one line for a person."""
    ready: Mapping[str, int] = {}
    """Resource class → how many tasks waited."""
    up: int = 0
    """Pilots of this site, whoever asked for them."""
    queued: int = 0
    asked: tuple[Asked, ...] = ()
    never: Mapping[str, str] = {}
    """Resource class → why no pilot of this site could run its tasks."""
    paused: bool = False
    trouble: str = ""
    """What went wrong, in the words of who refused; empty: nothing did."""

    @property
    def well(self) -> bool:
        """Whether no person has to look."""
        return not self.paused and not self.trouble


class Scaler:
    """Asks for pilots of one site.

    Args:
        store: the database.
        config: the project.
        site: whose pilots.
        wishes: of the person who runs it.
        idle_s: a pilot ends itself after so long without work; not one of the `Wishes.min` that stay.
        given: how a person names the site on a command line.
        queue: of the batch system; "": the site's.
        account: what it is charged to; "": the site's.
    """

    def __init__(
        self, store: Store, config: ProjectConfig, site: Site, wishes: Wishes, idle_s: float = IDLE_S,
        given: str = "", queue: str = "", account: str = "",
    ) -> None:  # fmt: skip
        self._store = store
        self._config = config
        self._site = site
        self._wishes = wishes
        self._idle_s = idle_s
        self._given = given or site.name
        self._queue = queue
        self._account = account

    def round(self) -> Round:
        """Look, decide, act; nothing if another scaler is at it.

        Raises:
            StoreError: nothing is known, so nothing was done.
            ConfigError: the site's file and what was asked do not go together.
        """
        site, token = self._site.name, new_token()
        doc = scaling.begin(self._store, site, token, self._given)
        if doc is None:
            return Round(f"another scaler is at work on site {site!r}, or died at it less than 10 min ago")
        try:
            return self._round(doc, token)
        finally:
            scaling.end(self._store, site, token)

    def _round(self, doc: Document, token: str) -> Round:
        now = datetime.now(UTC)
        machine = machine_of(self._site, self._queue)
        facts, machine = self._look(doc, machine, now)
        decision = decide(facts, self._wishes, machine, now)
        if decision.pause:
            scaling.pause(self._store, self._site.name, decision.pause)
        asked, trouble = self._ask(decision.wanted, token)
        here = [seen for seen in facts.pilots if seen.here]
        queued = sum(seen.queued for seen in here)
        return Round(
            decision.why, facts.ready, len(here) - queued, queued, asked, decision.never, bool(decision.pause),
            trouble or facts.unknown,
        )  # fmt: skip

    # -- looking ----------------------------------------------------------------------------------

    def _look(self, doc: Document, machine: Machine, now: datetime) -> tuple[Facts, Machine]:
        """Read the facts; the machine is what its pilots have shown of it."""
        site = self._site.name
        live = pilots.listing(self._store, live_only=True, limit=1000)
        fates = fleet.fates(self._store, [one for one in live if one["site"] == site], now)
        pools: dict[str, list[Document]] = defaultdict(list)
        for pool in pilots.pools(self._store):
            pools[pool["pilot"]].append(pool)
        seen, unknown = [], ""
        for one in live:
            name, found = one["_id"], fates.get(one["_id"])
            if found is not None and found.lost:
                continue
            starting = one["state"] == PilotState.STARTING
            if not starting and fleet.process_gone(one):
                fleet.bury(self._store, fleet.view_of(one, pools[name], now), False)
                continue
            if found is not None and not found.known:
                unknown = found.words
            elif starting and one["site"] == site and one.get("scaler") and one["batch"] and not one.get("job"):
                unknown = unknown or f"it is not known whether pilot {name} is in the queue"
            seen.append(seen_as(one, pools[name], machine, one["site"] == site, now))
        latest = pilots.asked_for(self._store, site, doc.get("resumed"), REMEMBERED)
        for _, its in latest:
            shown = [pool["slot_memory"] for pool in its if pool.get("slot_memory")]
            if shown:
                machine = machine._replace(slot_memory=min(shown))
                break
        pasts = [_past(one, its) for one, its in latest]
        ready = tasks.ready_counts(self._store, COUNTED)
        paused = doc.get("paused", {}).get("reason", "")
        return Facts(ready, seen, pasts, mean_s([p for some in pools.values() for p in some]), unknown, paused), machine

    # -- asking -----------------------------------------------------------------------------------

    def _ask(self, wanted: Sequence[Wanted], token: str) -> tuple[tuple[Asked, ...], str]:
        """Ask for pilots until all are asked for or one is refused; return those that are, and what went wrong."""
        asked: list[Asked] = []
        for one in wanted:
            if not scaling.renew(self._store, self._site.name, token):
                return tuple(asked), "this round took so long that another scaler has begun one"
            settings = allocation.pilot_settings(
                self._config, self._site, walltime_s=one.walltime_s, idle_s=None if one.stays else self._idle_s,
                nodes=one.nodes,
            )  # fmt: skip
            try:
                job = self._submit(settings)
            except (SchedulerError, PilotDied) as exc:
                return tuple(asked), str(exc)
            asked.append(Asked(settings.pilot, job, one.nodes, one.walltime_s))
        return tuple(asked), ""

    def _submit(self, settings: PilotSettings) -> str | None:
        """Submit a pilot, or start one here and wait until it is up; return its job's id."""
        if self._site.batch is not None:
            return allocation.submit(
                self._store, self._config, self._site, settings, self._queue, self._account, scaler=True
            )
        allocation.ask_for(self._store, self._config, settings, scaler=True)
        local = launch.begin(self._config, settings)
        try:
            launch.await_up(self._store, local)
        except PilotDied as exc:
            pilots.end(self._store, settings.pilot, PilotState.LOST, str(exc))
            raise
        return None


def run(scaler: Scaler, interval_s: float, tell: Callable[[Round], None], stop: threading.Event) -> Round:
    """Do rounds until `stop` is set; a store that is away is waited for. Return the last one."""
    while True:
        try:
            last = scaler.round()
        except StoreUnavailable as exc:
            last = Round("nothing is asked for: the store is away", trouble=str(exc))
        tell(last)
        if stop.wait(interval_s):
            return last


# -- facts from documents -------------------------------------------------------------------------


def machine_of(site: Site, queue: str = "") -> Machine:
    """Return what a site's file says of its pilots; one without a batch system is one node."""
    from pilot.sites import Queue

    known = site.batch.queues if site.batch else {"": Queue(max_nodes=1)}
    takes = known.get(queue or (site.batch.queue if site.batch else ""), Queue())
    slots, memory = usual_slots(site, site.cores_per_slot), site.node.memory_bytes
    return Machine(
        takes, slots, site.cores_per_slot, None if memory is None else memory // slots, len(site.node.gpu_ids),
        site.launcher.block_nodes, site.launcher.programs_beside_pool == "share",
    )  # fmt: skip


def seen_as(doc: Document, pools: Sequence[Document], machine: Machine, here: bool, now: datetime) -> Seen:
    """Return a pilot that has not ended as the decision sees it.

    Args:
        doc: of it.
        pools: its live ones.
        machine: what a pilot has that does not say it itself.
        here: whether it is one of the scaler's site.
        now: the time.
    """
    nodes, starting = doc.get("nodes", 1), doc["state"] == PilotState.STARTING
    layouts = [Layout.from_document(pool) for pool in pools if pool.get("slots")]
    if not layouts:
        each = {"slots": doc.get("slots", 0) // nodes, "slot_cores": doc.get("slot_cores", 1)}
        layouts = (machine if here else Machine(machine.queue, 0))._replace(**each).layouts(nodes)
    left_s = inf
    if starting and doc.get("walltime_s") is not None:
        left_s = usable(doc["walltime_s"])
    elif doc.get("end_at") is not None:
        left_s = (doc["end_at"] - now).total_seconds()
    silent = not starting and not doc.get("batch") and (now - doc["seen"]).total_seconds() > doc.get("ttl_s", 30.0)
    able = doc["state"] != PilotState.DRAINING and not doc.get("drain") and not silent
    held = sum(pool.get("in_hand", 0) + pool.get("waiting", 0) for pool in pools)
    return Seen(layouts, left_s, held, here, bool(doc.get("scaler")), starting, able)


def mean_s(pools: Sequence[Document]) -> float | None:
    """Return what tasks took lately on these pools, None if none has ended: so many slots, so many ends a second."""
    rate = sum(pool.get("rate", 0.0) for pool in pools)
    busy: int = sum(pool.get("busy", 0) for pool in pools)
    return busy / rate if rate and busy else None


def _past(doc: Document, pools: Sequence[Document]) -> Past:
    return past(doc, sum(pool.get("done", 0) + pool.get("not_done", 0) for pool in pools))
