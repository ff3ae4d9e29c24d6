"""The agent: supervises one pilot from its first node; plain Python, never MPI.

Registers the pilot, heartbeats, starts pools and restarts those that died, replays what they spooled and
returns their leases, cleans up after dead pilots, drains before the end and on a warning, writes the final
state. ``python -P -m pilot.agent SETTINGS`` runs one; the last line of a batch script is the exec of it.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Collection
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from pilot import lifecycle, log, records, signing
from pilot.block import Block, allocated
from pilot.config import ProjectConfig, load_project
from pilot.errors import Fenced, PilotError, SchedulerError, ServerError, StoreError, StoreUnavailable
from pilot.executors.batch.scheduler import Scheduler, system_of
from pilot.executors.pool.leftovers import remove_segments
from pilot.executors.run.orphans import end_pool
from pilot.model import new_token
from pilot.pool_keeper import PoolKeeper, divided
from pilot.pool_process import PoolProcess
from pilot.reach import inside
from pilot.settings import PilotSettings, ask, trouble_file
from pilot.states import PilotState, PoolState
from pilot.store import dependants, pilots, provenance, spool
from pilot.store.access import PILOT_SELECT_S, checked, store_of
from pilot.store.mongo import Store

logger = logging.getLogger(__name__)

TICK_S = 0.1
RECONCILE_S = 30.0
START_S = 180.0
"""A pool that has not registered by then never will."""
HURRY_S = 3.0
"""So long a pool may take to write what it has once the batch system has begun to kill the job. Slurm's KillWait and
PBS' kill_delay are rarely less than 10 s, but what the pool leaves is to be given back within them too."""
STORE_LOST_S = 900.0
"""A pilot whose store has been away for so long ends itself; what it could not write is in its spool."""
PATIENCE_S = 20.0
"""So long a batch job looks for a store that does not answer: it may just be started anew, and a job is hard to get."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


class Agent:
    """One pilot's supervisor.

    Args:
        config: the project.
        settings: of the pilot.
        store: open.
        block: the nodes.
    """

    def __init__(self, config: ProjectConfig, settings: PilotSettings, store: Store, block: Block) -> None:
        self._config = config
        self._block = block
        self._token = new_token()
        """Tells this process from another agent of the same pilot, should its job be started twice."""
        self._settings = settings
        self._store = store
        signer = signing.signer_of(config)
        self._seal = partial(records.seal, signer=signer)
        self._folder = config.pilot_folder(settings.pilot)
        earlier = len(list(self._folder.glob("pool-*.json")))  # those of an earlier agent keep their numbers
        numbers = itertools.count(earlier + 1)
        self._keepers = [
            PoolKeeper(settings, part, self._folder, numbers, self._down)
            for part in divided(block, settings.block_nodes, settings.program_nodes)
        ]
        self._pools_watch: lifecycle.Watch[str] = lifecycle.Watch(settings.ttl_s)
        self._pilots_watch: lifecycle.Watch[str] = lifecycle.Watch(settings.ttl_s)
        self._signals: set[int] = set()
        self._wish = ""
        self._asked = ("", "")
        """What the pilot's document asks for, and why; the beating thread sets it."""
        self._ending = threading.Event()
        self._store_seen = time.monotonic()
        self._away = False
        """Whether the last call to the store found it away."""
        self._idle_since: float | None = None
        self._hurry_until = math.inf
        """When the pool is killed, its time being over; the monotonic clock."""
        self._reason = ""

    def run(self) -> int:
        """Supervise until the pilot is over; return its exit code."""
        for number in _SIGNALS:
            signal.signal(number, self._note_signal)
        self._register()
        beating = threading.Thread(target=self._beat_loop, name="beat", daemon=True)
        beating.start()
        try:
            self._supervise()
        finally:
            for pool in self._pools():  # an error that nobody expected: nobody would look after them
                pool.kill()
                end_pool(pool.launch)
            self._ending.set()
        beating.join(10.0)
        self._guarded("write the final state", self._write_end)
        logger.info("pilot %s ended: %s", self._settings.pilot, self._reason)
        return 0 if self._wish else 1

    def _write_end(self) -> None:
        pilot, reason = self._settings.pilot, self._reason
        unasked = not self._wish or self._hurry_until < math.inf
        if self._settings.requeue and unasked:  # its batch system may start it again, and does not tell
            pilots.again(self._store, pilot, self._token, reason)
        else:
            pilots.end(self._store, pilot, PilotState.ENDED, reason, self._token, failed=not self._wish)

    def _supervise(self) -> None:
        """Look after the pools, and after what the dead have left, until there is no pool any more."""
        watched = reconciled = 0.0
        while not all(keeper.over for keeper in self._keepers):
            now = time.monotonic()
            self._mind_signals()
            if not self._away and now - watched >= min(self._settings.ttl_s / 4, 5.0):
                watched = now
                self._guarded("look after others", self._look_after_others)
                self._guarded("see the pools start", self._mind_starts)
            if not self._away and (now - reconciled >= RECONCILE_S or reconciled == 0.0):
                reconciled = now
                self._guarded("reconcile", lambda: dependants.reconcile(self._store))
            if now - self._store_seen > STORE_LOST_S and not self._wish:
                self._end_by("now", f"the store has been away for {STORE_LOST_S:.0f} s")
            for keeper in self._keepers:
                self._mind(keeper)
            time.sleep(TICK_S)
        self._reason = self._reason or next((keeper.reason for keeper in self._keepers if keeper.reason), "")

    def _mind(self, keeper: PoolKeeper) -> None:
        """Start a block's pool, or see its end."""
        if keeper.pool is None:
            if self._wish or not self._away:  # without the store a pool would only die
                keeper.start_if_due(self._wish)
            return
        if self._hurry_until < math.inf and (time.monotonic() > self._hurry_until or self._closed(keeper.pool)):
            keeper.pool.kill()  # its launcher may wait for longer than there is time
        code = keeper.pool.poll()
        if code is not None:
            self._pool_ended(keeper, keeper.pool, code)

    def _pools(self) -> list[PoolProcess]:
        return [keeper.pool for keeper in self._keepers if keeper.pool is not None]

    def _mind_starts(self) -> None:
        """End a pool that does not come up: ranks that wait for each other in MPI's start do so for ever."""
        late = [keeper for keeper in self._keepers if keeper.pool is not None and not keeper.up]
        late = [keeper for keeper in late if time.monotonic() - keeper.started_at >= START_S]
        launches = {doc["launch"] for doc in pilots.pools(self._store, self._settings.pilot)} if late else set()
        for keeper in late:
            assert keeper.pool is not None
            keeper.up = keeper.pool.launch in launches
            if not keeper.up:
                logger.error("pool %s has not registered within %g s: killing it", keeper.pool.launch, START_S)
                keeper.pool.kill()

    def _down(self, hosts: Collection[str]) -> Collection[str]:
        """Return which nodes the batch system takes for dead; none if it does not say."""
        try:
            return Scheduler(system_of(self._settings.batch)).down(hosts)
        except SchedulerError as exc:
            logger.warning("cannot ask which nodes are down: %s", exc)
            return ()

    # -- signals and wishes -----------------------------------------------------------------------

    def _note_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals.add(number)

    def _mind_signals(self) -> None:
        wish, reason = self._asked
        if wish:
            self._end_by(wish, reason)
        if self._signals:
            names = ", ".join(signal.Signals(n).name for n in sorted(self._signals))
            hurry = signal.SIGTERM in self._signals and self._settings.batch  # it leaves seconds
            self._signals.clear()
            self._end_by("now" if hurry else "drain", f"{'ended' if hurry else 'drained'} on {names}")
            if hurry:
                self._hurry_until = min(self._hurry_until, time.monotonic() + HURRY_S)

    def _closed(self, pool: PoolProcess) -> bool:
        """Return whether a pool has written all it has, whatever its launcher still waits for."""
        closed = False

        def look() -> None:
            nonlocal closed
            closed = not any(doc["launch"] == pool.launch for doc in pilots.pools(self._store, self._settings.pilot))

        self._guarded("see the pool end", look)
        return closed

    def _end_by(self, wish: str, reason: str) -> None:
        """Ask the pool to end; a stronger wish replaces a weaker one."""
        if self._wish in ("now", wish):
            return
        self._wish = wish
        self._reason = self._reason or reason
        logger.info("pilot %s: %s (%s)", self._settings.pilot, wish, reason)
        for pool in self._pools():
            ask(pool.control, wish)

    # -- store ------------------------------------------------------------------------------------

    def _register(self) -> None:
        s = self._settings
        pilots.register(
            self._store, s.pilot, self._token,
            {
                "site": s.site, "host": socket.gethostname(), "pid": os.getpid(), "job": self._block.job,
                **self._size(), "slot_cores": s.slot_cores, "ttl_s": s.ttl_s,
                "started": datetime.now(UTC), "folder": str(self._folder),
                "end_at": None if s.end_at is None else datetime.fromtimestamp(s.end_at, UTC),
            },
        )  # fmt: skip

    def _size(self) -> dict[str, int]:
        """Return how many nodes are left, and their slots."""
        nodes = sum(max(1, len(keeper.block.hosts)) for keeper in self._keepers if not keeper.over)
        return {"nodes": nodes, "slots": nodes * self._settings.slots}

    def _guarded(self, what: str, action: Any) -> None:
        """Do something with the store; when it is away, say so and go on."""
        try:
            action()
            self._store_seen = time.monotonic()
            self._away = False
        except StoreError as exc:
            self._away = True
            self._pools_watch.failed()
            self._pilots_watch.failed()
            logger.warning("cannot %s: %s", what, exc)
        except OSError as exc:
            logger.error("cannot %s: %s", what, exc)

    def _beat_loop(self) -> None:
        """Heartbeat, on a thread of its own: cleaning up after others may take longer than the time-to-live."""
        while not self._ending.is_set():
            state = PilotState.DRAINING if self._wish else PilotState.RUNNING
            trouble = next((keeper.trouble for keeper in self._keepers if keeper.trouble), "")
            fields = {"state": state.value, "reason": trouble, **self._size()}
            try:
                doc = pilots.beat(self._store, self._settings.pilot, self._token, fields)
                if doc.get("drain"):
                    self._asked = doc["drain"], "asked by `pilot down`"
                self._store_seen = time.monotonic()
                self._away = False
            except Fenced as exc:
                self._asked = "now", str(exc)
            except StoreError as exc:
                self._away = True
                logger.warning("cannot report: %s", exc)
            self._ending.wait(self._settings.beat_s)

    def _mind_idleness(self) -> None:
        idle_s = self._settings.idle_s
        if idle_s is None:
            return
        pools = pilots.pools(self._store, self._settings.pilot)
        busy = any(p.get("in_hand", 1) or p.get("waiting", 0) or p.get("unwritten", 0) for p in pools)
        now = time.monotonic()
        self._idle_since = None if busy or len(pools) < max(1, len(self._pools())) else self._idle_since or now
        if self._idle_since is not None and now - self._idle_since > idle_s:
            self._end_by("drain", f"had no work for {idle_s:g} s")

    def _look_after_others(self) -> None:
        """Declare dead who does not heartbeat, and reap what the dead have leased."""
        now = time.monotonic()
        beats = pilots.pool_beats(self._store)
        for token in self._pools_watch.look(beats, now):
            reason = f"its heartbeat stood still for {self._settings.ttl_s:g} s"
            mine = {doc["_id"]: doc["launch"] for doc in pilots.pools(self._store, self._settings.pilot)}
            if pilots.fence(self._store, token, beats[token], reason):
                logger.warning("pool %s is dead: %s", token, reason)
                for pool in self._pools():
                    if pool.launch == mine.get(token):
                        pool.kill()  # it hangs; what it runs is lost, and the next pool can do better
        for name in self._pilots_watch.look(pilots.pilot_beats(self._store), now):
            pilots.end(self._store, name, PilotState.LOST, f"its heartbeat stood still for {self._settings.ttl_s:g} s")
        self._reap()
        self._mind_idleness()

    def _reap(self) -> None:
        """Replay what dead pools have spooled, and return what is leased under their tokens."""
        folder = self._config.spool_folder
        spooled = spool.waiting(folder).keys()
        for token in spooled - pilots.pool_beats(self._store).keys():
            if count := spool.replay(self._store, folder, token):
                logger.warning("replayed %d results of dead pool %s", count, token)
        for token in pilots.dead_tokens(self._store):
            spool.replay(self._store, folder, token)
            count = pilots.reap(self._store, token, self._lost_record)
            logger.warning("returned %d leases of dead pool %s", count, token)

    def _lost_record(self, task: dict[str, Any]) -> Any:
        ran = task.get("suspect") == task["attempt"]
        reason = "its pool died while it ran in the ranks; it runs alone from now on" if ran else "its pool died"
        doc = records.lost_record(task, task["lease"], reason, datetime.now(UTC))
        return provenance.encode(doc, self._seal, records.minimal)[0]

    # -- pools ------------------------------------------------------------------------------------

    def _pool_ended(self, keeper: PoolKeeper, pool: PoolProcess, code: int) -> None:
        """Clean up after a pool, and let its block have another one unless the pilot is ending."""
        count = end_pool(pool.launch)
        segments = remove_segments() if code else []
        logger.info(
            "pool %s ended with exit code %d; killed %d orphans, removed %d segments of shared memory",
            pool.launch, code, count, len(segments),
        )  # fmt: skip
        self._guarded("return a dead pool's leases", lambda: self._bury(pool, code))
        self._mind_signals()
        if not self._wish and code == 0 and self._over():
            self._end_by("drain", "its time was over")
        keeper.ended(code, self._wish)

    def _over(self) -> bool:
        end_at = self._settings.end_at
        return end_at is not None and time.time() > end_at - self._settings.drain_s

    def _bury(self, pool: PoolProcess, code: int) -> None:
        """Void the token of a pool that is certainly dead, replay its spool, return its leases."""
        if suspected := pool.suspects():
            logger.warning("pool %s died with %d MPI functions in its ranks", pool.launch, len(suspected))
            pilots.suspect(self._store, suspected)  # first: from then on any agent may return its leases
        for doc in pilots.pools(self._store, self._settings.pilot):
            if doc["launch"] == pool.launch:
                pilots.close_pool(self._store, doc["_id"], PoolState.DEAD, f"its program ended with exit code {code}")
        self._reap()


def main(argv: list[str]) -> int:
    """Run the agent of the settings file named on the command line."""
    path = Path(argv[1])
    settings = PilotSettings.read(path)
    config = load_project(Path(settings.root))
    log.to_file(config.pilot_folder(settings.pilot) / "agent.log")
    trouble = trouble_file(config.pilot_folder(settings.pilot))
    for number in _SIGNALS:
        signal.signal(number, _end_early)
    try:
        block, settings = allocated(settings)
        with ExitStack() as stack:
            if settings.store_in_pilot:
                stack.enter_context(inside(config, settings))
            store = _found(config, settings, trouble)
            stack.push(store)
            checked(store, config)
            trouble.unlink(missing_ok=True)
            return Agent(config, settings, store, block).run()
    except PilotError as exc:
        logger.error("the pilot cannot work: %s", exc)
        sys.stderr.write(f"pilot {settings.pilot}: {exc}\n")
        _note_trouble(trouble, f"cannot work: {exc}")
        return 1


class _EndedEarly(PilotError):
    """The agent was told to end before it had begun."""


def _end_early(number: int, frame: FrameType | None) -> NoReturn:
    """End in order, a server of its own included."""
    for one in _SIGNALS:
        signal.signal(one, signal.SIG_IGN)
    raise _EndedEarly(f"ended on {signal.Signals(number).name} before it had begun")


def _found(config: ProjectConfig, settings: PilotSettings, trouble: Path) -> Store:
    """Open the store; a batch job that cannot reach it says so, and looks again for a while.

    Raises:
        StoreError: it cannot be reached, or does not let us in.
    """
    deadline = time.monotonic() + (PATIENCE_S if settings.batch else 0.0)
    while True:
        try:
            return store_of(config, start=not settings.batch, select_s=PILOT_SELECT_S).__enter__()
        except (ServerError, StoreUnavailable) as exc:
            if time.monotonic() > deadline:
                raise
            logger.warning("the pilot cannot work yet: %s", exc)
            _note_trouble(trouble, f"cannot work yet: {exc}")
        time.sleep(1.0)


def _note_trouble(trouble: Path, words: str) -> None:
    trouble.write_text(f"its agent on {socket.gethostname()} {words}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
