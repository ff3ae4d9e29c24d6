"""Takes work from the store ahead of need, on a thread of its own, and keeps the pool's token honest.

Leases in bulk when told how much is wanted; renews the heartbeat; compares what is leased under the token with
what is held, and returns the rest; learns of cancellations. When the pool has been declared dead by others, it
says so once and leases nothing more under that token.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Container, Sequence
from datetime import UTC, datetime
from typing import Any

from pilot import lifecycle
from pilot.errors import Fenced, InvalidInput, StoreError
from pilot.layout import Layout
from pilot.model import BUCKETS, bucket_of
from pilot.prepare import Held, Preparer, Refused
from pilot.resources import Resources
from pilot.store import events, pilots, tasks
from pilot.store.mongo import Store

log = logging.getLogger(__name__)

Key = tuple[str, int]

IDLE_S = 2.0
"""How often an idle pool looks for work without a hint."""
CLASSES_S = 1.0
"""How long the list of ready classes is believed."""
STORE_LOST_S = 900.0
"""With the store away for so long the pool ends itself; what it could not write is in its spool."""
MISSED_S = 5.0

"""An attempt leased under the token for so long and not held is returned: the reply to its lease was lost."""


class Leaser:
    """The pool's side of the queue. Use as a context manager.

    Args:
        store: the database.
        token: the lease token; its pool document exists.
        preparer: verifies and completes what was leased.
        pilot: whose agent must go on heartbeating.
        layout: of the pool.
        room: says how many more tasks of a wide class could be used now; called from a thread.
        end_at: when the pilot ends (seconds since the epoch), or None.
        beat_s: heartbeat period.
        ttl_s: a heartbeat unchanged for so long means death.
        wake: called, from a thread, when there is something for the main loop.
        failed: called, from a thread, with an error that ends the pool.
    """

    def __init__(
        self,
        store: Store,
        token: str,
        preparer: Preparer,
        *,
        pilot: str,
        layout: Layout,
        room: Callable[[str], int],
        end_at: float | None,
        beat_s: float,
        ttl_s: float,
        wake: Callable[[], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._store = store
        self.token = token
        self._preparer = preparer
        self._layout = layout
        self._room = room
        self._end_at = end_at
        self._beat_s = beat_s
        self._pilot = pilot
        self._agent: lifecycle.Watch[str] = lifecycle.Watch(ttl_s)
        self._wake_main = wake
        self._failed = failed
        self.ready: deque[Held] = deque()
        """Leased narrow attempts that wait for a slot, the next one first. Read only."""
        self.wide: deque[Held] = deque()
        """Leased wide tasks, for the main loop to take over."""
        self.refused: deque[Refused] = deque()
        self.cached: deque[Held] = deque()
        """Leased attempts that need no slot, for the main loop to end."""
        self.cancelled: deque[Key] = deque()
        self.held: set[Key] = set()
        """Attempts this process answers for, from their lease until their end is in the store or they are returned."""
        self.stats: dict[str, Any] = {}
        """What the heartbeat reports; the main loop fills it."""
        self.ticked = time.monotonic()
        """When the main loop last went round: without it the heartbeat stops."""
        self.fenced = threading.Event()
        self.orphaned = threading.Event()
        """The agent is gone, or the store for so long that nobody can know: nobody will ever end this pool."""
        self.store_seen = time.monotonic()
        self._bucket = bucket_of(token)
        self._wanted = 0
        self._wide_wanted = False
        self._least = 0
        """Lease so many narrow ones at least: those before needed no slot."""
        self._dry = False
        self._hinted = False
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._lease_calls = 0
        """Starts and ends of calls to `tasks.lease`: odd while one is under way."""
        self._missed: dict[Key, float] = {}
        self._threads = [
            threading.Thread(target=self._guard, args=(loop,), name=name, daemon=True)
            for name, loop in (("lease", self._lease_loop), ("beat", self._beat_loop), ("hints", self._hint_loop))
        ]

    def __enter__(self) -> Leaser:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._hint()
        for thread in self._threads:
            thread.join(10.0)

    # -- for the main loop ----------------------------------------------------------------------

    def want(self, count: int, wide: bool = False) -> None:
        """Say how many narrow attempts more could be used now (0: none), and whether to ask `room` about wide ones."""
        if count != self._wanted or wide:
            with self._changed:
                self._wanted = count
                self._wide_wanted |= wide
                if wide or (count and not self._dry):
                    self._changed.notify()

    def _hint(self) -> None:
        with self._changed:
            self._hinted = True
            self._changed.notify()

    @property
    def waiting(self) -> int:
        """How many attempts are leased and wait for a slot."""
        return len(self.ready)

    def take(self, count: int) -> list[Held]:
        """Take up to `count` attempts for slots."""
        return [self.ready.popleft() for _ in range(min(count, len(self.ready)))]

    def drop_last(self, count: int) -> list[Key]:
        """Take out the last `count` of what waits for a slot, to be returned."""
        return [self.ready.pop().item.key for _ in range(min(count, len(self.ready)))]

    def put_first(self, again: Sequence[Held]) -> None:
        """Put back attempts that a slot returned; they go out first."""
        self.ready.extendleft(reversed(again))

    def drop(self, keys: Container[Key]) -> list[Key]:
        """Take out those of `keys` that wait for a slot, to be returned."""
        waiting = self.take(len(self.ready))
        self.put_first([held for held in waiting if held.item.key not in keys])
        return [held.item.key for held in waiting if held.item.key in keys]

    def late(self, now: float, end_at: float) -> list[Key]:
        """Take out those that wait for a slot and would not end before `end_at`, to be returned."""
        keys = {held.item.key for held in self.ready if not lifecycle.fits_before(held.item.walltime_s, now, end_at)}
        return self.drop(keys)

    def drop_waiting(self) -> list[Key]:
        """Take out everything that waits for a slot, to be returned."""
        wide = [self.wide.popleft() for _ in range(len(self.wide))]
        return [held.item.key for held in [*self.take(len(self.ready)), *wide]]

    # -- threads --------------------------------------------------------------------------------

    def _guard(self, loop: Callable[[], None]) -> None:
        try:
            loop()
        except Fenced as exc:
            log.warning("%s", exc)
            self.fenced.set()
            self._wake_main()
        except BaseException as exc:  # noqa: BLE001  the one handler at the thread's top
            self._failed(exc)

    def _lease_loop(self) -> None:
        classes: list[str] = []
        listed = 0.0
        while not self._closing.is_set() and not self.fenced.is_set():
            wanted, wide_wanted, hinted = self._await_wish()
            if not wanted and not wide_wanted:
                continue
            try:
                if hinted or time.monotonic() - listed > CLASSES_S:
                    classes = self._classes()
                    listed = time.monotonic()
                wide = [name for name in classes if self._is_wide(name)]
                narrow = [name for name in classes if name not in wide]
                got = self._lease(narrow, max(wanted, self._least)) if narrow and wanted else 0
                for name in wide if wide_wanted else ():
                    if room := self._room(name):
                        self._lease([name], room)
            except StoreError as exc:
                log.warning("cannot lease: %s", exc)
                self._closing.wait(1.0)
                continue
            with self._changed:
                self._dry = bool(wanted) and not got
                if got:
                    self._wanted = 0  # the main loop has not seen them yet: it says anew what it wants
            if got < wanted // 2:
                listed = 0.0  # what was ready is not any more, or of another class

    def _await_wish(self) -> tuple[int, bool, bool]:
        """Wait until work is wanted and there may be some, `IDLE_S` at most.

        Returns:
            how many narrow attempts are wanted, whether wide ones are, and whether somebody said that there is work.
        """
        with self._changed:
            if not (self._hinted or self._wide_wanted or (self._wanted and not self._dry)):
                self._changed.wait(IDLE_S)
            hinted, wide = self._hinted, self._wide_wanted or self._hinted
            self._hinted = self._wide_wanted = False
            return self._wanted, wide, hinted

    def _is_wide(self, name: str) -> bool:
        try:
            return self._layout.shape(name).wide
        except InvalidInput:  # somebody has edited a task: it is leased, and refused for its signature
            return False

    def _classes(self) -> list[str]:
        """Return the ready classes that this pool can run before the pilot ends."""
        now = time.time()
        return [name for name in tasks.ready_classes(self._store) if self._fits(name, now)]

    def _fits(self, name: str, now: float) -> bool:
        try:
            walltime_s = Resources.from_key(name).walltime_s
            return not self._layout.why_never(name) and lifecycle.fits_before(walltime_s, now, self._end_at)
        except InvalidInput:  # as above
            return True

    def _lease(self, classes: Sequence[str], wanted: int) -> int:
        self._lease_calls += 1
        try:
            docs = tasks.lease(self._store, self.token, classes, wanted, self._bucket, datetime.now(UTC))
            self.held.update((doc["_id"], doc["attempt"]) for doc in docs)
        finally:
            self._lease_calls += 1
        if not docs:
            self._bucket = (self._bucket + 1) % BUCKETS
            return 0
        self._bucket = docs[-1]["bucket"]
        held, refused = self._prepare(docs)
        cached = [one for one in held if one.cached]
        wide = self._is_wide(classes[0])
        (self.wide if wide else self.ready).extend([one for one in held if not one.cached] if cached else held)
        self.cached.extend(cached)
        self.refused.extend(refused)
        if not wide:
            self._least = lifecycle.lease_on(len(docs), len(cached))
        self._wake_main()
        return len(docs)

    def _prepare(self, docs: Sequence[dict[str, Any]]) -> tuple[list[Held], list[Refused]]:
        """Prepare in the end, however often the store goes away in between: the leases are ours."""
        while True:
            try:
                return self._preparer.prepare(docs)
            except StoreError as exc:
                log.warning("cannot complete leased tasks: %s", exc)
                if self._closing.wait(1.0):
                    return [], []

    def _beat_loop(self) -> None:
        while not self._closing.wait(self._beat_s):
            if time.monotonic() - self.ticked > 10 * self._beat_s:
                log.error("the main loop has not gone round for %.0f s", time.monotonic() - self.ticked)
                continue
            try:
                pilots.beat_pool(self._store, self.token, dict(self.stats))
                self._compare()
                self._look_at_agent()
                self.store_seen = time.monotonic()
            except StoreError as exc:
                log.warning("cannot report: %s", exc)
                self._agent.failed()
                if time.monotonic() - self.store_seen > STORE_LOST_S:
                    self.orphaned.set()

    def _look_at_agent(self) -> None:
        beat = pilots.beat_of(self._store, self._pilot)
        if beat is None or self._agent.look({self._pilot: beat}, time.monotonic()):
            self.orphaned.set()

    def _compare(self) -> None:
        """Return what is leased under the token and not held: the answer to its lease was lost.

        The store is read first and what is held is looked at afterwards; a look during which a lease was under
        way proves nothing.
        """
        before = self._lease_calls
        leased = tasks.held(self._store, self.token)
        if before % 2 or self._lease_calls != before:
            return
        now = time.monotonic()
        missed = [key for key in leased.items() if key not in self.held]
        self._missed = {key: self._missed.get(key, now) for key in missed}
        old = [key for key, since in self._missed.items() if now - since > MISSED_S]
        if old:
            log.warning("returning %d leases that never arrived", len(old))
            tasks.give_back(self._store, self.token, old)

    def _hint_loop(self) -> None:
        query = {"kind": {"$in": [events.READY, events.CANCEL]}}
        with events.tail(self._store, query) as tail:
            looked = 0.0
            while not self._closing.is_set():
                try:
                    event = tail.next()
                    now = time.monotonic()
                    if event is not None and event["kind"] == events.READY:
                        self._hint()
                    if (event is not None and event["kind"] == events.CANCEL) or now - looked > 2.0:
                        looked = now
                        found = tasks.to_cancel(self._store, self.token)
                        if found:
                            self.cancelled.extend(found.items())
                            self._wake_main()
                except StoreError as exc:
                    log.info("no hints: %s", exc)
                    self._closing.wait(1.0)
