"""Pilots as the store knows them, seen from here: who is up, who is silent, whose process has gone."""

from __future__ import annotations

import socket
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pilot.errors import InvalidInput, SchedulerError
from pilot.executors.batch import local
from pilot.executors.batch.scheduler import Scheduler, printed, system_of
from pilot.executors.run.orphans import end_pool, find_orphans
from pilot.fates import Fate, fate
from pilot.settings import ask, control_file, trouble_file
from pilot.states import PilotState, PoolState
from pilot.store import pilots
from pilot.store.mongo import Store

Document = dict[str, Any]

LIVE = frozenset(state.value for state in pilots.LIVE_PILOTS)


@dataclass(frozen=True, slots=True)
class View:
    """One pilot."""

    id: str
    state: str
    """As in the store, or `silent`: no heartbeat for its time-to-live, or `dead`: its process here has gone."""
    site: str
    host: str
    pid: int
    slots: int
    slot_cores: int
    up: int
    """Slots of its live pools: 0 while its pool is starting."""
    busy: int
    rate: float
    """Tasks ended per second, lately."""
    heartbeat_s: float | None
    started: datetime
    end_at: datetime | None
    ended: datetime | None
    drain: str | None
    """What `pilot down` asked: `drain` or `now`."""
    reason: str
    """Why it ended, or why it does not work yet."""
    folder: str
    batch: str = ""
    """Its batch system; empty: it is a process group on its host."""
    job: str | None = None
    """Its batch job."""
    nodes: int = 1
    queue: str = ""
    """State of its job, as far as its batch system says and it does not report itself."""

    @property
    def live(self) -> bool:
        """Whether it has not ended, as far as can be seen from here."""
        return self.state in LIVE

    def document(self) -> Document:
        """Return it for JSON."""
        return asdict(self)


def look(store: Store, now: datetime, live_only: bool = False, limit: int = 100, ask: bool = True) -> list[View]:
    """Return pilots, newest first.

    Args:
        store: the database.
        now: the time.
        live_only: those that have not ended.
        limit: at most so many.
        ask: the batch systems too, about pilots that do not report.
    """
    docs = pilots.listing(store, live_only=live_only, limit=limit)
    found = fates(store, docs, now) if ask else {}
    if any(one.lost for one in found.values()):
        docs = pilots.listing(store, live_only=live_only, limit=limit)
    pools: dict[str, list[Document]] = defaultdict(list)
    if any(doc["state"] in LIVE for doc in docs):
        for pool in pilots.pools(store):
            pools[pool["pilot"]].append(pool)
    return [view_of(doc, pools[doc["_id"]], now, found.get(doc["_id"])) for doc in docs]


def fates(store: Store, docs: Sequence[Document], now: datetime) -> dict[str, Fate]:
    """Conclude what has become of pilots that do not report, and write down which are lost.

    Each batch system is asked once. If it does not answer, that is what is told of them.
    """
    asked: dict[str, list[Document]] = defaultdict(list)
    for doc in docs:
        batch = doc.get("batch") or doc["state"] == PilotState.STARTING
        if doc["state"] in LIVE and batch and _silent_s(doc, now) > 0:
            asked[doc.get("batch", "")].append(doc)
    told: dict[str, Fate] = {}
    for system, some in asked.items():
        ids = [doc["job"] for doc in some if doc.get("job")]
        try:
            jobs = Scheduler(system_of(system)).look(ids) if ids else {}
        except SchedulerError as exc:
            told.update({doc["_id"]: Fate(False, str(exc), known=False) for doc in some})
            continue
        for doc in some:
            submitted: datetime = doc.get("submitted") or doc["created"]
            since_s = (now - submitted).total_seconds()
            state, ttl_s, job = PilotState(doc["state"]), doc.get("ttl_s", 30.0), jobs.get(doc.get("job", ""))
            found = told[doc["_id"]] = fate(state, _silent_s(doc, now) + ttl_s, ttl_s, job, since_s)
            if found.lost:
                why = _trouble(doc)
                if not why and state is PilotState.STARTING and (said := printed(Path(doc.get("folder", "")))):
                    why = f"its job printed {said!r}"
                words = "; ".join(filter(None, (found.words, why, doc.get("reason"))))
                pilots.end(store, doc["_id"], PilotState.LOST, words)
    return told


def _silent_s(doc: Document, now: datetime) -> float:
    """Return for how long a pilot has been silent beyond its time-to-live; one that is starting, since it was made."""
    seen: datetime = doc.get("seen") or doc["created"]
    allowed = 0.0 if doc["state"] == PilotState.STARTING else doc.get("ttl_s", 30.0)
    return float((now - seen).total_seconds()) - allowed


def view_of(doc: Document, pools: Sequence[Document], now: datetime, found: Fate | None = None) -> View:
    """Return a pilot as it is seen.

    Args:
        doc: of it.
        pools: its live ones.
        now: the time.
        found: what its batch system let conclude.
    """
    seen: datetime = doc.get("seen") or doc["created"]
    heartbeat_s = max(0.0, (now - seen).total_seconds()) if doc["state"] in LIVE else None
    state = str(doc["state"])
    if heartbeat_s is not None and state != PilotState.STARTING:
        if process_gone(doc):
            state = "dead"
        elif heartbeat_s > doc.get("ttl_s", 30.0):
            state = "silent"
    return View(
        doc["_id"], state, doc.get("site", ""), doc.get("host", ""), doc.get("pid", 0), doc.get("slots", 0),
        doc.get("slot_cores", 1), sum(pool.get("slots", 0) for pool in pools),
        sum(pool.get("busy", 0) for pool in pools), sum(pool.get("rate", 0.0) for pool in pools), heartbeat_s,
        doc.get("started") or doc["created"], doc.get("end_at"), doc.get("ended"), doc.get("drain"),
        _trouble(doc) or (found.words if found and not found.lost else "") or doc.get("reason", ""),
        doc.get("folder", ""), doc.get("batch", ""), doc.get("job"), doc.get("nodes", 1), found.queue if found else "",
    )  # fmt: skip


def _trouble(doc: Document) -> str:
    """Return what the agent of a pilot that has not reported wrote down of why it cannot; "" if nothing."""
    if doc["state"] != PilotState.STARTING or not doc.get("folder"):
        return ""
    try:
        return trouble_file(Path(doc["folder"])).read_text().strip()
    except OSError:
        return ""


def process_gone(doc: Document) -> bool:
    """Whether a pilot's agent ran on this machine and certainly runs no more."""
    if doc.get("host") != socket.gethostname() or doc.get("batch"):  # its number may be one of another machine's
        return False
    return agent_start(doc) is None


def agent_start(doc: Document) -> float | None:
    """Return when the agent's process started (seconds since the epoch), None if it is not on this machine.

    It started before it registered itself; a process of its number that started later is another one.
    """
    started = local.started_at(doc["pid"])
    registered: datetime = doc["started"]
    return None if started is None or started > registered.timestamp() + 1.0 else started


def chosen(store: Store, names: Sequence[str], now: datetime) -> list[View]:
    """Return the pilots of these ids, which may be shortened.

    Raises:
        InvalidInput: one is not a pilot's, or fits several.
    """
    there = look(store, now, limit=1000)
    found = []
    for name in names:
        fitting = [view for view in there if view.id == name] or [v for v in there if v.id.startswith(name)]
        if len(fitting) != 1:
            several = f"fits several pilots ({', '.join(view.id for view in fitting[:4])})"
            raise InvalidInput(f"{name!r} {several if fitting else 'is not a pilot'}; `pilot pilots` lists them")
        found.append(fitting[0])
    return found


# -- what a dead agent has left -------------------------------------------------------------------


def bury(store: Store, view: View, now: bool) -> int:
    """Write that a pilot whose agent died here is lost, and end its pools; return how many of them still run.

    A pool that has outlived its agent is told to drain (`now`: to end at once) as its agent would have told it.
    One whose processes have gone is fenced, so that the next agent returns its leases. Repeatable.
    """
    pilots.end(store, view.id, PilotState.LOST, "its agent died")
    left = 0
    for pool in pilots.pools(store, view.id, live_only=False):
        live = pool["state"] == PoolState.LIVE
        if find_orphans("PILOT_POOL", pool["launch"]):
            left += 1
            if live:
                ask(control_file(Path(view.folder), pool["launch"]), "now" if now else "drain")
        elif live:
            pilots.close_pool(store, pool["_id"], PoolState.DEAD, "its agent and its processes died")
    return left


def cancel(store: Store, views: Sequence[View]) -> None:
    """Take pilots that are batch jobs away from their batch systems, in whatever state they are.

    Raises:
        SchedulerError: one does not answer, or refuses to.
    """
    asked: dict[str, list[str]] = defaultdict(list)
    for view in views:
        if view.state == PilotState.STARTING:  # first, so that none begins that its batch system lets go just now
            pilots.end(store, view.id, PilotState.ENDED, "cancelled while it was in the queue")
        if view.batch and view.job:
            asked[view.batch].append(view.job)
    for system, jobs in asked.items():
        Scheduler(system_of(system)).cancel(jobs)


def kill(store: Store, view: View) -> bool:
    """End a pilot of this machine and every process of its pools at once; False if it is not of this machine."""
    if view.batch:
        cancel(store, [view])
        return True
    if view.host != socket.gethostname():
        return False
    started = agent_start({"pid": view.pid, "started": view.started})
    if started is not None:
        local.stop(view.pid, started, kill=True)
    for pool in pilots.pools(store, view.id, live_only=False):
        end_pool(pool["launch"], 0.0)
    bury(store, view, now=True)
    return True
