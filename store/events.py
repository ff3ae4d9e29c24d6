"""Hints between processes through one capped collection: "these tasks ended", "there is work".

A hint saves waiting and nothing more. Whoever tails them also looks for itself at long intervals, so a lost
hint costs time, never a result. One document per batch keeps the cost per task near nothing.

Each hint bears the server's own time ``at``, which only grows: by it a tail knows where it stopped. An ObjectId
would not do: it is made of its writer's clock and of random bytes, so that hints of others would be passed over.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from typing import Any

from bson.timestamp import Timestamp
from pymongo import CursorType, WriteConcern
from pymongo.collection import Collection
from pymongo.read_concern import ReadConcern

from pilot.store.mongo import Store, translating

READY = "ready"
"""Work has become ready: idle pools look."""
ENDED = "ended"
"""Tasks of one client have ended: it fetches them."""
CANCEL = "cancel"
"""Somebody wants leased tasks cancelled: the pools that hold them look."""

_BATCH = 2000
_NOW = Timestamp(0, 0)
"""The server puts its time in the place of this one."""


def _quick(store: Store) -> Collection[dict[str, Any]]:
    return store.events.with_options(write_concern=WriteConcern(w=1, j=False), read_concern=ReadConcern("local"))


@translating("hint at work")
def hint(store: Store, kind: str) -> None:
    """Tell whoever tails that there is something to do."""
    _quick(store).insert_one({"kind": kind, "at": _NOW})


@translating("tell clients of ended tasks")
def tell_ended(store: Store, ended: Iterable[tuple[str | None, str]], records: bool = False) -> None:
    """Tell each client which of its tasks have ended.

    Args:
        store: the database.
        ended: (client, task id); or, with `records`, (client, id of a record that succeeded), which says all.
        records: see there.
    """
    documents = []
    named = sorted((client, name) for client, name in ended if client)
    for client, group in groupby(named, key=itemgetter(0)):
        ids = [name for _, name in group]
        for start in range(0, len(ids), _BATCH):
            field = "records" if records else "tasks"
            documents.append({"kind": ENDED, "at": _NOW, "client": client, field: ids[start : start + _BATCH]})
    if documents:
        _quick(store).insert_many(documents, ordered=False)


class Tail:
    """Follows the hints from the moment it is opened; for one thread."""

    def __init__(self, store: Store, query: dict[str, Any], wait_ms: int) -> None:
        self._store = store
        self._query = query
        self._wait_ms = wait_ms
        self._last: Timestamp | None = None
        self._cursor: Any = None

    @translating("follow the hints")
    def next(self) -> dict[str, Any] | None:
        """Return the next hint, or None when `wait_ms` have passed without one.

        When hints were lost (writers have overrun the tail's place), it says that there may be work.

        Raises:
            StoreUnavailable: the database went away; call again later.
        """
        if self._cursor is None or not self._cursor.alive:
            self._open()
        cursor: Any = self._cursor
        try:
            event: dict[str, Any] | None = next(cursor, None)
        except BaseException:
            self._cursor = None
            raise
        if event is not None:
            self._last = event["at"]
        elif not cursor.alive:  # so the driver tells that the place is gone
            event = {"kind": READY}
        return event

    def _open(self) -> None:
        events = _quick(self._store)
        newest = None
        while newest is None:
            newest = events.find_one(sort=[("$natural", -1)], projection=["at"])
            if newest is None:  # a tailable cursor on an empty collection dies at once
                events.insert_one({"kind": "open", "at": _NOW})
        if self._last is None:
            self._last = newest["at"]
        self._cursor = events.find(
            {**self._query, "at": {"$gt": self._last}}, cursor_type=CursorType.TAILABLE_AWAIT
        ).max_await_time_ms(self._wait_ms)

    def close(self) -> None:
        """Give the cursor back."""
        if self._cursor is not None:
            self._cursor.close()
            self._cursor = None


@contextmanager
def tail(store: Store, query: dict[str, Any], wait_ms: int = 1000) -> Iterator[Tail]:
    """Open a `Tail` on the hints that match `query`."""
    follower = Tail(store, query, wait_ms)
    try:
        yield follower
    finally:
        follower.close()
