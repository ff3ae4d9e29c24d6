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

from pilot import lifecycle, placement
from pilot.errors import Fenced, InvalidInput, StoreError
from pilot.model import BUCKETS, Resources, bucket_of
from pilot.prepare import Held, Preparer, Refused
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
        slot_cores: cores of one slot.
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
        slot_cores: int,
        end_at: float | None,
        beat_s: float,
        ttl_s: float,
        wake: Callable[[], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._store = store
        self.token = token
        self._preparer = preparer
        self._slot_cores = slot_cores
        self._end_at = end_at
        self._beat_s = beat_s
        self._pilot = pilot
        self._agent: lifecycle.Watch[str] = lifecycle.Watch(ttl_s)
        self._wake_main = wake
        self._failed = failed
        self._ready: deque[Held] = deque()
        self.refused: deque[Refused] = deque()
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

    def want(self, count: int) -> None:
        """Say how many attempts more could be used now; 0: none."""
        if count != self._wanted:
            with self._changed:
                self._wanted = count
                if count and not self._dry:
                    self._changed.notify()

    def _hint(self) -> None:
        with self._changed:
            self._hinted = True
            self._changed.notify()

    @property
    def waiting(self) -> int:
        """How many attempts are leased and wait for a slot."""
        return len(self._ready)

    def take(self, count: int) -> list[Held]:
        """Take up to `count` attempts for slots."""
        return [self._ready.popleft() for _ in range(min(count, len(self._ready)))]

    def put_first(self, again: Sequence[Held]) -> None:
        """Put back attempts that a slot returned; they go out first."""
        self._ready.extendleft(reversed(again))

    def drop(self, keys: Container[Key]) -> list[Key]:
        """Take out those of `keys` that wait for a slot, to be returned."""
        waiting = self.take(len(self._ready))
        self.put_first([held for held in waiting if held.item.key not in keys])
        return [held.item.key for held in waiting if held.item.key in keys]

    def drop_waiting(self) -> list[Key]:
        """Take out everything that waits for a slot, to be returned."""
        return [(held.item.task, held.item.attempt) for held in self.take(len(self._ready))]

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
            wanted = self._await_wish()
            if not wanted:
                continue
            try:
                if not classes or time.monotonic() - listed > CLASSES_S:
                    classes = self._classes()
                    listed = time.monotonic()
                got = self._lease(classes, wanted) if classes else 0
            except StoreError as exc:
                log.warning("cannot lease: %s", exc)
                self._closing.wait(1.0)
                continue
            with self._changed:
                self._dry = not got
                if got:
                    self._wanted = 0  # the main loop has not seen them yet: it says anew what it wants
            if got < wanted // 2:
                classes = []

    def _await_wish(self) -> int:
        """Wait until work is wanted and there may be some, `IDLE_S` at most; return how much is wanted."""
        with self._changed:
            if not self._wanted or (self._dry and not self._hinted):
                self._changed.wait(IDLE_S)
            self._hinted = False
            return self._wanted

    def _classes(self) -> list[str]:
        """Return the ready classes that one slot can run before the pilot ends."""
        now = time.time()
        fitting = []
        for name in tasks.ready_classes(self._store):
            try:
                resources = Resources.from_key(name)
            except InvalidInput:  # somebody has edited a task: it is leased, and refused for its signature
                fitting.append(name)
                continue
            if placement.fits(resources, self._slot_cores) and lifecycle.fits_before(
                resources.walltime_s, now, self._end_at
            ):
                fitting.append(name)
        return fitting

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
        self._ready.extend(held)
        self.refused.extend(refused)
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
