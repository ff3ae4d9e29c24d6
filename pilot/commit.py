"""Makes the ends of attempts durable, in bulk: record, then end state, then dependants, each before the next.

One thread writes; another releases dependants behind it. When the store cannot be reached, batches go to the
spool, the thread keeps trying, and nothing that a slot reported is lost.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pilot import records, signing
from pilot.errors import StoreError, StoreFull, StoreUnavailable
from pilot.model import Result
from pilot.prepare import Held
from pilot.states import GOOD, Outcome
from pilot.store import dependants, provenance, tasks
from pilot.store.mongo import Store
from pilot.store.provenance import RawRecord
from pilot.store.spool import Spool
from pilot.store.tasks import Document, End

log = logging.getLogger(__name__)

BATCH = 1000
BATCH_S = 0.02
"""A batch is written when it is full or this old; a lone result at an idle pool does not wait for company."""
LONE_S = 0.005
"""A lone result waits so long since the last batch: MPI functions end one by one, a thousand in a second."""
RETRY_S = 0.5


class Ended(NamedTuple):
    """One attempt that a slot reported, or that could not begin."""

    task: Document
    held: Held | None
    result: Result


@dataclass(slots=True)
class _Batch:
    """Records on their way to the store, what they stand for, and where they are spooled, if they are."""

    raws: Sequence[RawRecord]
    ends: Sequence[End]
    chain: records.Chain
    """As it was behind them."""
    spooled: Path | None = None


class Committer:
    """Writes what `put` gives it, in order. Use as a context manager: leaving it writes all that is left.

    Args:
        store: the database.
        signer: the project's.
        place: pool and pilot of the records.
        spool: where records wait when the store is away.
        put: writes an object.
        held: attempts that this process answers for; those that are written are taken out.
        failed: called, from the writing thread, with an error that ends the pool.
    """

    def __init__(
        self,
        store: Store,
        signer: signing.Signer,
        place: records.Place,
        spool: Spool,
        put: records.Put,
        held: set[tuple[str, int]],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._store = store
        self._signer = signer
        self._chain = records.Chain(place.token)
        self._durable = replace(self._chain)
        """The chain as far as it is in the store."""
        self._seal = partial(records.seal, signer=signer, chain=self._chain)
        self._place = place
        self._spool = spool
        self._put = put
        self._held = held
        self._failed = failed
        self._queue: deque[Ended] = deque()
        self._released: deque[list[str]] = deque()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._wake_release = threading.Event()
        self._closing = False
        self._batched = 0.0
        """When the last batch was taken."""
        self._write_done = False
        self.unwritten = 0
        """Attempts that were put and are not durable in the store yet."""
        self.away_since: float | None = None
        """Monotonic time since which the store does not answer; None while it does."""
        self.counts = {"done": 0, "other": 0}
        self.cache: dict[str, float] = {"hits": 0, "misses": 0, "saved_s": 0.0}
        """Of attempts with caching on: how many took an earlier result and what that saved, how many found none."""
        self._threads = [
            threading.Thread(target=self._guard, args=(self._write_loop,), name="commit", daemon=True),
            threading.Thread(target=self._guard, args=(self._release_loop,), name="release", daemon=True),
        ]

    def __enter__(self) -> Committer:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def put(self, ended: Iterable[Ended]) -> None:
        """Take attempts that have ended; returns at once."""
        new = list(ended)
        with self._lock:
            self.unwritten += len(new)
        self._queue.extend(new)
        self._wake.set()

    def close(self, timeout_s: float = 60.0) -> bool:
        """Write what is left, as long as `timeout_s`; return whether all of it is in the store.

        What is not is in the spool, for the agent to replay.
        """
        self._closing = True
        self._wake.set()
        self._wake_release.set()
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))
        return self.unwritten == 0

    def tip(self) -> Document:
        """Return how far the chain of records in the store has come, for the pool's document."""
        return records.tip(self._durable, self._signer)

    # -- inside ---------------------------------------------------------------------------------

    def _guard(self, loop: Callable[[], None]) -> None:
        try:
            loop()
        except BaseException as exc:  # noqa: BLE001  the one handler at the thread's top
            self._failed(exc)

    def _write_loop(self) -> None:
        try:
            while True:
                batch = self._next_batch()
                if batch:
                    self._commit(self._encode(batch))
                elif self._closing:
                    return
        finally:  # also of an error: the other thread must not wait for more
            self._write_done = True
            self._wake_release.set()

    def _next_batch(self) -> list[Ended]:
        """Return the next batch; empty if there was nothing for a while."""
        if not self._queue:
            self._wake.wait(0.5)
        self._wake.clear()
        if self._queue and not self._closing:
            deadline = time.monotonic() + BATCH_S if len(self._queue) > 1 else self._batched + LONE_S
            while len(self._queue) < BATCH and (left := deadline - time.monotonic()) > 0:
                time.sleep(min(left, 0.005))
        self._batched = time.monotonic()
        return [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]

    def _encode(self, batch: Sequence[Ended]) -> _Batch:
        raws = []
        ends = []
        token = self._place.token
        for task, held, result in batch:
            try:
                sources = held.sources if held else {}
                inputs, placement, cache = (held.inputs, held.place, held.cache) if held else ((), None, None)
                doc = records.record(task, inputs, sources, result, self._place, self._put, placement, cache)
                if cache is not None:
                    self._count(cache)
            except Exception as exc:  # noqa: BLE001  one poison result must not block those beside it
                bare = result._replace(outputs=(), log=None)
                why = f"its record cannot be made: {type(exc).__name__}: {exc}"
                doc = records.minimal(records.record(task, (), {}, bare, self._place, self._put), why)
                result = bare._replace(outcome=Outcome.FAILED)
            raw, stored = provenance.encode(doc, self._seal, self._minimal)
            raws.append(raw)
            outcome = result.outcome if stored is doc else Outcome.FAILED
            ends.append(End(task["_id"], result.attempt, token, outcome, task.get("client")))
        return _Batch(raws, ends, replace(self._chain))

    def _count(self, cache: Document) -> None:
        hit = "cached_from" in cache
        self.cache["hits" if hit else "misses"] += 1
        self.cache["saved_s"] += cache["cache"].get("saved_s", 0.0)

    def _minimal(self, doc: Document, why: str) -> Document:
        log.warning("record %s cannot be stored: %s", doc["_id"], why)
        return records.minimal(doc, why)

    def _commit(self, batch: _Batch) -> None:
        """Write one batch; while the store is away, spool it and all that comes behind it, and try again."""
        backlog = deque([batch])
        while backlog:
            try:
                ends = provenance.settle(self._store, backlog[0].raws, backlog[0].ends)
                tasks.finish(self._store, ends, datetime.now(UTC))
            except (StoreUnavailable, StoreFull) as exc:
                if self.away_since is None:
                    self.away_since = time.monotonic()
                    log.warning("cannot write results, spooling them: %s", exc)
                self._spool_all(backlog)
                if self._closing:
                    return
                time.sleep(RETRY_S)
            except BaseException:
                self._spool_all(backlog)
                raise
            else:
                self._written(backlog.popleft(), ends)

    def _written(self, batch: _Batch, ends: Sequence[End]) -> None:
        """Note that a batch is durable in the store."""
        if self.away_since is not None:
            log.warning("the store is back after %.1f s", time.monotonic() - self.away_since)
            self.away_since = None
        if batch.spooled is not None:
            self._spool.remove(batch.spooled)
        self._durable = batch.chain
        self._held.difference_update([(end.task, end.attempt) for end in ends])
        with self._lock:
            self.unwritten -= len(ends)
        good = sum(end.outcome in GOOD for end in ends)
        self.counts["done"] += good
        self.counts["other"] += len(ends) - good
        self._released.append([end.task for end in ends])
        self._wake_release.set()

    def _spool_all(self, backlog: deque[_Batch]) -> None:
        """Take everything that waits behind, and spool what is not spooled yet."""
        while self._queue:
            backlog.append(self._encode([self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]))
        for batch in backlog:
            if batch.spooled is None:
                try:
                    batch.spooled = self._spool.write(batch.raws)
                except OSError as exc:
                    folder, count = self._spool.folder, sum(len(one.raws) for one in backlog if one.spooled is None)
                    log.error("cannot spool %d results to %s: %s; they stay in memory", count, folder, exc)
                    return

    def _release_loop(self) -> None:
        """Release dependants behind the writes; what fails here is found by its marker in the next sweep."""
        while True:
            if not self._released:
                if self._write_done:
                    return
                self._wake_release.wait(0.5)
            self._wake_release.clear()
            ids: list[str] = []
            while self._released and len(ids) < BATCH:
                ids += self._released.popleft()
            if ids:
                try:
                    dependants.release(self._store, ids)
                except StoreError as exc:
                    log.warning("cannot release dependants, the next sweep will: %s", exc)
