"""The object repository: values kept as files, named by their content.

Any number of readers and writers, on any number of nodes, without locks: a file appears under its name
complete and durable, and never changes afterwards. Only `pilot.store.care` removes files. No pymongo
here: workers' children read and write objects.

Layout: ``ROOT/ab/cdef…`` (the identity's first two characters, then the rest), mode 0400; files being
written lie in ``ROOT/tmp``. Of objects that were given up, ``ROOT/dropped/ab/cdef…`` tells by whom and when.
`Objects.files` has what there is for `pilot.File`.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property

from pilot.errors import EncodingError, InvalidInput, ObjectCorrupt, ObjectDropped, ObjectMissing, ObjectStoreFull
from pilot.values import Encoded, digest, hasher

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pilot.store.files import Files

_HASH = re.compile(r"[0-9a-f]{64}")
_PIECE = 16 << 20
_MAPPED = 1 << 20  # larger files are mapped, not read: no copy in memory that the value does not need
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Objects:
    """An object repository in a directory, which is made (0700) when the first object comes.

    Args:
        root: the directory; its parent exists.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.fspath(root)

    def path(self, hash: str) -> str:
        """Return where the object is, or would be.

        Raises:
            InvalidInput: `hash` is not the name of an object.
        """
        if not _HASH.fullmatch(hash):  # it may come from outside, and becomes a path
            raise InvalidInput(f"{hash!r} is not the hash of an object: expected 64 hexadecimal digits")
        return f"{self.root}/{hash[:2]}/{hash[2:]}"

    @cached_property
    def files(self) -> Files:
        """The same repository as `pilot.File` uses it; loaded when it is needed, which is not in most children."""
        from pilot.store.files import Files

        return Files(self.root)

    def exists(self, hash: str) -> bool:
        """Whether the object is there; says nothing of its bytes."""
        return os.path.isfile(self.path(hash))

    def size(self, hash: str) -> int:
        """Return the object's size in bytes.

        Raises:
            ObjectMissing: it is not there.
        """
        with self._found(hash) as path:
            return os.stat(path).st_size

    def get(self, hash: str, verify: bool = True) -> bytes | memoryview:
        """Return the object's bytes; of a large one, a read-only view of the mapped file.

        Args:
            verify: check that the bytes have this hash; skip it only for bytes that are checked later.

        Raises:
            ObjectMissing: it is not there.
            ObjectDropped: its bytes were given up.
            ObjectCorrupt: its bytes have another hash; they are not returned.
        """
        with self._found(hash) as path, open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = _map(file.fileno()) if size > _MAPPED else file.read()
        if verify and digest(data) != hash:
            raise damaged(path)
        return data

    def put(self, encoded: Encoded) -> str:
        """Store an encoding, durably when this returns, and return its hash.

        Idempotent. What is there already is touched, so that collection spares it, and checked again.

        Raises:
            ObjectStoreFull: no space, quota or file size left; nothing is left behind.
            EncodingError: the value changed while it was written (an array that another thread fills).
        """
        if not self.touch(encoded.hash, encoded.size):
            self.write(encoded.hash, lambda draft: _write_draft(draft, lambda file: _write_parts(file, encoded)))
        return encoded.hash

    def pieces(self, hash: str) -> Iterator[bytes]:
        """Yield the object's bytes in pieces, in little memory; they are good if no error comes at their end.

        Raises:
            ObjectMissing: it is not there.
            ObjectCorrupt: its bytes, all of them yielded by then, have another hash.
        """
        state = hasher()
        with self._found(hash) as path, open(path, "rb") as file:
            while piece := file.read(_MAPPED):
                state.update(piece)
                yield piece
        if state.hexdigest() != hash:
            raise damaged(path)

    def receive(self, hash: str, size: int, pieces: Iterable[bytes]) -> bool:
        """Store an object whose bytes come in pieces, as `put` does; return False if it was there already.

        Raises:
            ObjectCorrupt: the pieces do not have this hash; nothing is left behind.
            ObjectStoreFull: no space, quota or file size left; nothing is left behind.
        """
        if self.touch(hash, size):
            return False
        self.write(hash, lambda draft: _write_draft(draft, lambda file: _write_pieces(file, hash, pieces)))
        return True

    def touch(self, hash: str, size: int) -> bool:
        """Renew an existing object, so that collection spares it; False if it is not there or was cut short."""
        return self._touch(self.path(hash), size)

    def write(self, hash: str, make: Callable[[str], None]) -> None:
        """Store an object, durably when this returns, and leave nothing behind if that fails.

        Args:
            hash: its name.
            make: makes a file at the path it is given, whose bytes are on disk when it returns.

        Raises:
            ObjectStoreFull: no space, quota or file size left.
        """
        path = self.path(hash)
        with self._full_is_named(path):
            self._write(path, make)

    def _touch(self, path: str, size: int) -> bool:
        """Renew an existing object; False if it is not there or was cut short."""
        try:
            os.utime(path)
            if os.stat(path).st_size != size:
                return False
        except FileNotFoundError:  # also when collection took it between the two calls
            return False
        _sync_directory(os.path.dirname(path))  # its writer may not have come so far
        return True

    def _write(self, path: str, make: Callable[[str], None]) -> None:
        temporary, folder = f"{self.root}/tmp/{os.urandom(16).hex()}", os.path.dirname(path)
        new = not os.path.isdir(folder)
        for directory in (self.root, f"{self.root}/tmp", folder):
            with suppress(FileExistsError):
                os.mkdir(directory, 0o700)
        try:
            make(temporary)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        _sync_directory(os.path.dirname(path))
        if new:
            _sync_directory(self.root)

    @contextmanager
    def _found(self, hash: str) -> Iterator[str]:
        path = self.path(hash)
        try:
            yield path
        except FileNotFoundError as exc:
            raise self.missing(hash) from exc

    def missing(self, hash: str, what: str = "") -> ObjectMissing:
        """Return the error that says that an object is not there, and why, if that is known.

        Args:
            hash: its name.
            what: what it is to its user: ``"the file 'scf.in'"``.
        """
        path = self.path(hash)
        head = f"{what}: " if what else ""
        if told := self.dropped(hash):
            return ObjectDropped(f"{head}the bytes of the object {hash} were dropped by {told}; only its hash was kept")
        return ObjectMissing(
            f"{head}the object repository has no file {path!r}; run again the task that made it, "
            "`pilot objects verify` lists what else is gone"
        )

    def dropped(self, hash: str) -> str:
        """Return who gave up the bytes of an object, and when; "" if nobody did."""
        try:
            with open(f"{self.root}/dropped/{hash[:2]}/{hash[2:]}", encoding="utf-8") as note:
                return note.read().strip()
        except FileNotFoundError:
            return ""

    @contextmanager
    def _full_is_named(self, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            if exc.errno not in _FULL:
                raise
            raise ObjectStoreFull(
                f"cannot store the object {path!r}: {exc.strerror}; make room under {self.root!r}, then repeat"
            ) from exc


def damaged(path: str, what: str = "") -> ObjectCorrupt:
    """Return the error that says that an object does not have its hash."""
    return ObjectCorrupt(
        f"{what}{': ' if what else ''}the object {path!r} does not have the hash that names it: the file is damaged; "
        "remove it and run again the task that made it"
    )


def new_file(path: str) -> int:
    """Open a new file for writing that only its owner may read later."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)


def _write_draft(path: str, fill: Callable[[int], None]) -> None:
    descriptor = new_file(path)
    try:
        fill(descriptor)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_pieces(descriptor: int, hash: str, pieces: Iterable[bytes]) -> None:
    written = hasher()
    for whole in pieces:
        written.update(whole)
        piece = memoryview(whole)
        while piece:
            piece = piece[os.write(descriptor, piece) :]
    if written.hexdigest() != hash:
        raise ObjectCorrupt(f"bytes that should be the object {hash!r} have another hash; they were not stored")


def _write_parts(descriptor: int, encoded: Encoded) -> None:
    """Write in pieces: one call takes 2 GiB at most.

    What another thread may change is copied piece by piece, and the hash taken of what is written.
    """
    unstable = any(type(part) is memoryview and not part.readonly for part in encoded.parts)
    written = hasher()
    for part in encoded.parts:
        whole = memoryview(part)
        for start in range(0, len(whole), _PIECE):
            piece = whole[start : start + _PIECE]
            if unstable:
                piece = memoryview(bytes(piece))
                written.update(piece)
            while piece:
                piece = piece[os.write(descriptor, piece) :]
    if unstable and written.hexdigest() != encoded.hash:
        raise EncodingError("a value changed while it was stored; leave an array alone until the call returns")


def _map(descriptor: int) -> memoryview:
    import mmap

    return memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))


def _sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
