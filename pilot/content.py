"""Files and directories by content: what they hold, whatever they are called and wherever they lie.

The content of a file is the BLAKE2b-256 of its bytes. That of a directory (a tree) is the hash of its manifest:
canonical JSON of ``[relative name, hash, size]`` of every file, with ``true`` behind if it may be executed, and of
``[name + "/"]`` of every empty directory, sorted by name. Times, owners and other modes do not count.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeAlias

from pilot.errors import EncodingError, ObjectCorrupt
from pilot.plain import dump, parse
from pilot.values import digest, hasher

PIECE = 1 << 20
"""Bytes that are read, hashed and written at a time."""

_FRESH_NS = 1_000_000_000
"""A file that changed so recently may change again without another time: its hash is not remembered."""
_MOST = 100_000
_known: dict[str, tuple[Signature, str]] = {}


class Content(NamedTuple):
    """What a file or a tree holds."""

    hash: str
    size: int
    """Bytes; of a tree, of all its files together."""
    executable: bool = False
    tree: bool = False


class Row(NamedTuple):
    """One line of a manifest."""

    name: str
    """Relative, with ``/`` between its parts; of an empty directory it ends with one."""
    hash: str = ""
    size: int = 0
    executable: bool = False


class Unfit(EncodingError):
    """A file or directory cannot be a value; the message names it and says why."""


# -- files ----------------------------------------------------------------------------------------


@contextmanager
def opened(path: str) -> Iterator[tuple[int, os.stat_result]]:
    """Open a regular file for reading; yield its descriptor and status.

    Raises:
        Unfit: there is none, it cannot be read, or it is something else.
    """
    try:
        # A pipe without a writer would be waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as exc:
        raise Unfit(f"cannot read the file {path!r}: {exc.strerror}") from exc
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Unfit(f"{path!r} is {_kind(status.st_mode)}; only files and directories can be values")
        yield descriptor, status
    finally:
        os.close(descriptor)


Signature: TypeAlias = tuple[int, int, int, int, int]


def signature(status: os.stat_result) -> Signature:
    """Return what changes whenever the bytes of a file do, or another file takes its place."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def of_file(path: str) -> Content:
    """Return the content of a file; it is read in pieces, and again only if its signature has changed.

    Raises:
        Unfit: it cannot be read, is no file, or changed while it was read.
    """
    return signed(path)[0]


def of_object(path: str) -> Content:
    """Return the content of a file whose bytes nobody changes, though its times change whenever it is named anew."""
    return signed(path, steady=True)[0]


def signed(path: str, steady: bool = False) -> tuple[Content, Signature]:
    """Return the content of a file, and the signature that it has as long as it has this content.

    Args:
        path: the file.
        steady: another signature afterwards does not mean that its bytes have changed.

    Raises:
        Unfit: as of `of_file`.
    """
    with opened(path) as (descriptor, status):
        executable = bool(status.st_mode & stat.S_IXUSR)
        now, known = signature(status), _known.get(path)
        if known is not None and known[0] == now:
            return Content(known[1], status.st_size, executable), now
        try:
            found = read(descriptor)
        except OSError as exc:
            raise Unfit(f"cannot read the file {path!r}: {exc.strerror}") from exc
        if not steady:
            unchanged(path, descriptor, now)
    if time.time_ns() - max(status.st_ctime_ns, status.st_mtime_ns) > _FRESH_NS:
        if len(_known) >= _MOST:
            _known.clear()
        _known[path] = now, found
    return Content(found, status.st_size, executable), now


def read(descriptor: int, write: Callable[[memoryview], object] | None = None) -> str:
    """Return the hash of what is left to read, in hexadecimal; `write` is given each piece."""
    state, buffer = hasher(), memoryview(bytearray(PIECE))
    while count := os.readv(descriptor, [buffer]):
        piece = buffer[:count]
        state.update(piece)
        if write is not None:
            write(piece)
    return state.hexdigest()


def unchanged(path: str, descriptor: int, before: Signature) -> None:
    """Make sure that an open file is as it was.

    Raises:
        Unfit: somebody has written to it.
    """
    if signature(os.fstat(descriptor)) != before:
        raise changed(path)


def changed(path: str) -> Unfit:
    """Return the error that says that a file was written to."""
    return Unfit(f"the file {path!r} changed while it was hashed; let its writer finish first")


# -- trees ----------------------------------------------------------------------------------------


def manifest(path: str, of: Callable[[str], Content] = of_file) -> tuple[Content, bytes]:
    """Return the content of a directory, and its manifest.

    Args:
        path: the directory.
        of: what to do with each file; returns its content.

    Raises:
        Unfit: something in it cannot be read, is a symbolic link, a pipe, a socket or a device, or its name no UTF-8.
    """
    rows: list[Row] = []
    for name in _walk(path, ""):
        if name.endswith("/"):
            rows.append(Row(name))
        else:
            found = of(f"{path}/{name}")
            rows.append(Row(name, found.hash, found.size, found.executable))
    rows.sort()
    try:
        data = dump([_plain(row) for row in rows]).encode()
    except UnicodeEncodeError as exc:
        name = exc.object[max(0, exc.start - 20) : exc.end]
        raise Unfit(f"a name in the directory {path!r} is not UTF-8: {name!r}") from exc
    return Content(digest(data), sum(row.size for row in rows), tree=True), data


def _walk(folder: str, before: str) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            there = [(entry.name, entry.stat(follow_symlinks=False).st_mode) for entry in entries]
    except OSError as exc:
        raise Unfit(f"cannot read the directory {folder!r}: {exc.strerror}") from exc
    if before and not there:
        yield before
    for name, mode in there:
        path = f"{folder}/{name}"
        if stat.S_ISDIR(mode):
            yield from _walk(path, f"{before}{name}/")
        elif stat.S_ISREG(mode):
            yield before + name
        else:
            raise Unfit(f"{path!r} is {_kind(mode)}; a directory that is a value holds files and directories only")


def _plain(row: Row) -> list[object]:
    if row.name.endswith("/"):
        return [row.name]
    return [row.name, row.hash, row.size, True] if row.executable else [row.name, row.hash, row.size]


def rows(data: bytes | memoryview) -> list[Row]:
    """Return the lines of a manifest.

    Raises:
        ObjectCorrupt: it is none; a name leads out of the directory.
    """
    try:
        text = str(data, "utf-8")
        tree, end = parse(text, 0)
        if not isinstance(tree, list) or end != len(text):
            raise ValueError("it is not one list")
        found = [Row(*row) for row in tree]
        good = all(_below(row.name) and len(row.hash) in (0, 64) for row in found)
    except (ValueError, TypeError, AttributeError) as exc:
        raise ObjectCorrupt(f"what should be the manifest of a directory is none: {exc}") from exc
    if not good:
        raise ObjectCorrupt("the manifest of a directory has names that lead out of it; nothing was done")
    return found


def _below(name: str) -> bool:
    return all(part not in ("", ".", "..") for part in name.removesuffix("/").split("/")) and "\0" not in name


_KINDS = (
    (stat.S_ISLNK, "a symbolic link"), (stat.S_ISDIR, "a directory"), (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)  # fmt: skip


def _kind(mode: int) -> str:
    return next((words for test, words in _KINDS if test(mode)), "a device")
