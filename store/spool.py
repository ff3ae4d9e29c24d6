"""Results that wait for the store: one folder per lease token, one file per batch of records.

A pool that cannot reach the store writes its records here, durably, and goes on. Whoever can reach the store
again replays them, under their own token and attempt, before anybody returns the leases: the pool itself, or
its agent if the pool died meanwhile.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bson
from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument

from pilot.states import Outcome
from pilot.store import dependants, provenance, tasks
from pilot.store.mongo import Store
from pilot.store.tasks import End

log = logging.getLogger(__name__)


class Spool:
    """The spool of one token. Nothing is made on disk before the first `write`."""

    def __init__(self, root: Path, token: str) -> None:
        self.folder = root / token
        self._count = 0

    def write(self, records: Sequence[RawBSONDocument]) -> Path:
        """Write one batch, durable when it returns.

        Raises:
            OSError: the disk is full or gone; the records are still the caller's.
        """
        new = not self.folder.is_dir()
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._count += 1
        path = self.folder / f"{self._count:08d}.bson"
        partial = path.with_suffix(".partial")
        try:
            with partial.open("wb") as file:
                for record in records:
                    file.write(record.raw)
                file.flush()
                os.fsync(file.fileno())
            partial.rename(path)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink()  # half a batch is of no use, and takes what little room there is
            raise
        _sync(self.folder)
        if new:
            _sync(self.folder.parent)
        return path

    def remove(self, path: Path) -> None:
        """Delete a batch that is in the store now, and the folder if it was the last one."""
        path.unlink(missing_ok=True)  # somebody who took us for dead may have replayed it
        with contextlib.suppress(OSError):
            self.folder.rmdir()


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def ends_of(records: Sequence[RawBSONDocument]) -> list[End]:
    """Return the ends that records stand for."""
    return [End(doc["task"], doc["attempt"], doc["token"], Outcome(doc["outcome"]), None) for doc in records]


def replay(store: Store, root: Path, token: str) -> int:
    """Commit what the spool of `token` holds, oldest first, and delete it; return how many records.

    Repeatable, by any number of agents at once: a file is deleted only after its records and what follows from
    them are durable. A file that cannot be read is set aside as ``.damaged``; its attempts end as `lost`.

    Raises:
        StoreUnavailable: the rest stays where it is.
        OSError: the folder cannot be read.
    """
    count = 0
    folder = root / token
    for path in sorted(folder.glob("*.bson")):
        try:
            records = _read(path)
            ends = ends_of(records)
        except FileNotFoundError:  # another agent was quicker
            continue
        except (BSONError, KeyError, ValueError) as exc:
            log.error("cannot replay %s, it is set aside: %s", path, exc)
            path.rename(path.with_suffix(".damaged"))
            continue
        ends = provenance.settle(store, records, ends)
        tasks.finish(store, ends, datetime.now(UTC))
        dependants.release(store, [end.task for end in ends])
        path.unlink(missing_ok=True)
        count += len(records)
    for partial in folder.glob("*.partial"):
        partial.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it is not there, or holds something damaged
        folder.rmdir()
    return count


def _read(path: Path) -> list[RawBSONDocument]:
    options: bson.CodecOptions[RawBSONDocument] = bson.CodecOptions(document_class=RawBSONDocument)
    with path.open("rb") as file:
        return list(bson.decode_file_iter(file, options))


def records(root: Path) -> Iterator[dict[str, Any]]:
    """Yield the records that wait, of all tokens; what is being committed meanwhile may be missing."""
    for path in sorted(root.glob("*/*.bson")):
        try:
            with path.open("rb") as file:
                found = list(bson.decode_file_iter(file))
        except (FileNotFoundError, BSONError):  # it is in the store now; or it is damaged, and never will be
            continue
        yield from found


def waiting(root: Path) -> dict[str, int]:
    """Return token → number of batches that wait."""
    if not root.is_dir():
        return {}
    return {folder.name: len(list(folder.glob("*.bson"))) for folder in root.iterdir() if folder.is_dir()}
