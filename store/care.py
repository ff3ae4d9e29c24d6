"""Looking after the object repository: what is there, whether it is whole, and what may go.

Any number may read and write meanwhile; collecting, dropping and verifying may run beside each other too, and beside
pilots. That rests on three things: what is written or named anew is touched; what was touched lately is spared; and
what is removed lies in a trash folder first, is looked at again there, and is deleted a day later.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from pilot import content
from pilot.content import Content
from pilot.errors import InvalidInput, PilotError
from pilot.mentions import Named
from pilot.store.objects import Objects, damaged

COLLECT_S = 7 * 86400.0
"""What was touched within this time is spared, whether it is named or not."""
COLLECT_MIN_S = 3600.0
"""Nobody may ask for less: a script that submits for an hour has objects that nothing names yet."""
TRASH_S = 86400.0
"""So long after it was thrown away, an object is deleted by the next collection."""


class Kept(NamedTuple):
    """One object on disk."""

    hash: str
    size: int
    touched: float
    """When it was written, or named anew (seconds since the epoch)."""


class Damage(NamedTuple):
    """One content that is not as it should be."""

    hash: str
    why: str


@dataclass
class Figures:
    """What is in a repository."""

    objects: int = 0
    bytes: int = 0
    trash_objects: int = 0
    trash_bytes: int = 0
    dropped: int = 0
    places: int = 0


def kept(objects: Objects) -> Iterator[Kept]:
    """Yield every object, in the order of their hashes."""
    for folder in _listed(objects.root):
        if len(folder) == 2:
            for name in _listed(f"{objects.root}/{folder}"):
                with suppress(FileNotFoundError):
                    status = os.stat(f"{objects.root}/{folder}/{name}")
                    yield Kept(folder + name, status.st_size, status.st_mtime)


def _listed(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except FileNotFoundError:
        return []


def _pairs(path: str) -> Iterator[str]:
    """Yield the hashes under which something lies in ``path/ab/cdef…``."""
    for folder in _listed(path):
        yield from (folder + name for name in _listed(f"{path}/{folder}"))


def figures(objects: Objects) -> Figures:
    """Count what is there; nothing is read."""
    found = Figures()
    for one in kept(objects):
        found.objects += 1
        found.bytes += one.size
    for _, path in _trash(objects):
        with suppress(FileNotFoundError):
            found.trash_bytes += os.stat(path).st_size
            found.trash_objects += 1
    found.dropped = sum(not objects.exists(hash) for hash in _pairs(f"{objects.root}/dropped"))
    found.places = sum(1 for _ in _pairs(f"{objects.root}/places"))
    return found


# -- whole or not -----------------------------------------------------------------------------------


def verify(objects: Objects, named: Named) -> Damage | None:
    """Read a content that something names, and say what is wrong with it; None if nothing is.

    One whose bytes were dropped is as it should be.
    """
    try:
        if named.place:
            objects.files.locate(Content(named.hash, 0, tree=named.kind == "tree"), named.hash[:10], True)
        elif objects.exists(named.hash):
            return verify_object(objects, named.hash)
        elif not objects.dropped(named.hash):
            raise objects.missing(named.hash)
    except PilotError as exc:
        return Damage(named.hash, str(exc))
    return None


def verify_object(objects: Objects, hash: str) -> Damage | None:
    """Read an object and say what is wrong with it; None if nothing is."""
    try:
        with content.opened(objects.path(hash)) as (descriptor, _):
            found = content.read(descriptor)
    except content.Unfit as exc:
        return Damage(hash, str(exc))
    except OSError as exc:
        return Damage(hash, f"cannot read {objects.path(hash)!r}: {exc.strerror}")
    return None if found == hash else Damage(hash, str(damaged(objects.path(hash))))


# -- giving up bytes --------------------------------------------------------------------------------


def drop(objects: Objects, hashes: set[str], who: str) -> None:
    """Remove objects for good and note who did it; whoever wants to read one is told. Storing it again brings it back.

    Args:
        objects: the repository.
        hashes: of the objects.
        who: and when, for people.
    """
    for hash in hashes:
        _drop(objects, hash, who)
    for tree in _listed(f"{objects.root}/trees"):  # their links would keep the bytes
        with suppress(PilotError):
            if not hashes.isdisjoint(row.hash for row in content.rows(objects.get(tree))):
                shutil.rmtree(f"{objects.root}/trees/{tree}", ignore_errors=True)


def note_absence(objects: Objects, hash: str, who: str) -> None:
    """Write down who left out or gave up the bytes of an object; whoever wants to read it is told."""
    note = f"{objects.root}/dropped/{hash[:2]}/{hash[2:]}"
    os.makedirs(os.path.dirname(note), 0o700, exist_ok=True)
    draft = f"{note}.{os.urandom(4).hex()}"
    with open(draft, "w", encoding="utf-8") as file:
        file.write(who + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, note)


def _drop(objects: Objects, hash: str, who: str) -> None:
    note_absence(objects, hash, who)  # before: at no moment is it gone without a reason
    with suppress(FileNotFoundError):
        os.unlink(objects.path(hash))


# -- collection -------------------------------------------------------------------------------------


def unnamed(objects: Objects, named: Collection[str], before: float) -> Iterator[Kept]:
    """Yield the objects that nothing names and nobody has touched since `before` (seconds since the epoch)."""
    for one in kept(objects):
        if one.touched < before and one.hash not in named:
            yield one


def check_age(older_s: float) -> None:
    """Refuse to collect what may be about to be named.

    Raises:
        InvalidInput: the age is less than `COLLECT_MIN_S`.
    """
    if older_s < COLLECT_MIN_S:
        raise InvalidInput(
            f"objects of less than {COLLECT_MIN_S:g} s cannot be collected: what names them may be on its way"
        )


def throw_away(objects: Objects, found: Iterable[Kept], before: float, now: float) -> list[Kept]:
    """Move objects to the trash, and back if somebody touched them meanwhile; return those that are there."""
    folder = f"{objects.root}/trash/{int(now)}"
    thrown = []
    for one in found:
        os.makedirs(folder, 0o700, exist_ok=True)
        path = f"{folder}/{one.hash}"
        with suppress(FileNotFoundError):  # another collection was quicker
            os.rename(objects.path(one.hash), path)
            if os.stat(path).st_mtime < before:
                thrown.append(one)
            else:
                _restore(objects, one.hash, path)
    return thrown


def _restore(objects: Objects, hash: str, path: str) -> None:
    """Put back what was thrown away; what was stored again in between has the same bytes."""
    with suppress(FileNotFoundError):
        os.utime(path)
        os.replace(path, objects.path(hash))


def _trash(objects: Objects) -> Iterator[tuple[str, str]]:
    """Yield hash and path of all that lies in the trash."""
    for folder in _listed(f"{objects.root}/trash"):
        for hash in _listed(f"{objects.root}/trash/{folder}"):
            yield hash, f"{objects.root}/trash/{folder}/{hash}"


def empty_trash(objects: Objects, named: Collection[str], before: float) -> Figures:
    """Put back what something names after all, and delete what was thrown away before `before`; count that."""
    deleted = Figures()
    for hash, path in list(_trash(objects)):
        if hash in named:
            _restore(objects, hash, path)
        elif int(os.path.basename(os.path.dirname(path))) < before:
            with suppress(FileNotFoundError):
                deleted.bytes += os.stat(path).st_size
                os.unlink(path)
                deleted.objects += 1
    for folder in _listed(f"{objects.root}/trash"):
        with suppress(OSError):  # it is not empty
            os.rmdir(f"{objects.root}/trash/{folder}")
    return deleted


def tidy(objects: Objects, named: Collection[str], before: float) -> None:
    """Remove what has no use any more: trees and notes of places that nothing names, drafts of writers that died."""
    for hash in _listed(f"{objects.root}/trees"):
        if hash not in named:
            shutil.rmtree(f"{objects.root}/trees/{hash}", ignore_errors=True)
    for hash in _pairs(f"{objects.root}/places"):
        path = f"{objects.root}/places/{hash[:2]}/{hash[2:]}"
        with suppress(FileNotFoundError):
            if hash not in named and os.stat(path).st_mtime < before:
                shutil.rmtree(path, ignore_errors=True)
    for name in _listed(f"{objects.root}/tmp"):
        path = f"{objects.root}/tmp/{name}"
        with suppress(OSError):
            if os.lstat(path).st_mtime < before:
                shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
