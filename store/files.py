"""Files and directories in the object repository, by path: kept, noted where they lie, found again, copied.

A file that is kept is an object, its raw bytes; a tree is its manifest and the objects of its files. What a user may
still write to is cloned (where the file system can: both share the bytes until one is changed) or copied. Only what
lies in a directory of ours that is about to be removed is linked: later writes to it would go into the object.

Beside the objects lie ``ROOT/places/ab/cdef…/…``, where a content was seen in place, a file for each path; and
``ROOT/trees/HASH``, trees that somebody has asked for as directories, made of links to the objects. They can be removed
at any time. Nothing that is read here is believed: whatever is served has been compared with its hash.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import socket
import stat
from contextlib import suppress

from pilot import content
from pilot.content import Content, Row
from pilot.errors import ObjectCorrupt, ObjectMissing
from pilot.store.objects import Objects, damaged, new_file
from pilot.values import Encoded, digest

_FICLONE = 0x40049409  # _IOW(0x94, 9, int), ioctl_ficlone(2)


class Files:
    """The file side of an object repository; any number may work on one at once.

    Args:
        root: the repository's directory.
    """

    def __init__(self, root: str) -> None:
        self._objects = Objects(root)

    # -- in -----------------------------------------------------------------------------------------

    def keep(self, path: str, owned: bool = False) -> Content:
        """Keep a file or a directory; durable when this returns. What is there already is not written again.

        Args:
            path: where it lies.
            owned: nobody will write to it any more: it may be linked.

        Raises:
            Unfit: it cannot be read, is neither, or changed meanwhile.
            ObjectStoreFull: no room for it.
        """
        if not os.path.isdir(path):
            return self._keep_file(path, owned)
        found, manifest = content.manifest(path, lambda file: self._keep_file(file, owned))
        self._objects.put(Encoded.of((manifest,)))
        return found

    def _keep_file(self, path: str, owned: bool) -> Content:
        found, known = content.signed(path)
        if not self._objects.touch(found.hash, found.size):
            try:
                self._objects.write(found.hash, lambda draft: _take(path, draft, found.hash, known, owned))
            except OSError as exc:
                raise content.Unfit(f"cannot keep the file {path!r}: {exc.strerror}") from exc
        return found

    def place(self, path: str) -> Content:
        """Hash a file or a directory and note where it lies; the manifest of a directory is kept.

        Raises:
            Unfit: it cannot be read, or is neither.
        """
        if os.path.isdir(path):
            found, manifest = content.manifest(path)
            self._objects.put(Encoded.of((manifest,)))
        else:
            found = content.of_file(path)
        folder = self._places(found.hash)
        note = {"path": path, "host": socket.gethostname(), "size": found.size}
        os.makedirs(folder, 0o700, exist_ok=True)
        name = f"{folder}/{digest(os.fsencode(path))[:16]}"
        draft = f"{name}.{os.urandom(4).hex()}"
        with open(draft, "w", encoding="utf-8") as file:
            json.dump(note, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, name)
        return found

    def touch(self, of: Content) -> None:
        """Renew an object, and those of a tree's files, so that collection spares them."""
        self._objects.touch(of.hash, self._objects.size(of.hash) if of.tree else of.size)
        if of.tree:
            for row in self._rows(of.hash):
                if row.hash:
                    self._objects.touch(row.hash, row.size)

    # -- out ----------------------------------------------------------------------------------------

    def places(self, hash: str) -> list[str]:
        """Return where a content was seen in place, as far as is known."""
        folder, found = self._places(hash), []
        with suppress(FileNotFoundError):
            for name in sorted(os.listdir(folder)):
                with suppress(OSError, ValueError, KeyError), open(f"{folder}/{name}", encoding="utf-8") as file:
                    found.append(str(json.load(file)["path"]))
        return found

    def locate(self, of: Content, name: str, in_place: bool) -> str:
        """Return where a content can be read, having compared it with its hash; of a tree, a directory.

        Args:
            of: the content.
            name: what its user calls it.
            in_place: it is not kept.

        Raises:
            ObjectMissing: it is nowhere.
            ObjectDropped: it was given up.
            ObjectCorrupt: there is something else in its place, or the object is damaged.
        """
        what = f"the {'tree' if of.tree else 'file'} {name!r}"
        if in_place:
            return self._in_place(of, what)
        return self._directory(of, what) if of.tree else self._object(of.hash, what)

    def _in_place(self, of: Content, what: str) -> str:
        why: list[str] = []
        error: type[ObjectMissing | ObjectCorrupt] = ObjectMissing
        for path in self.places(of.hash):
            try:
                if (content.manifest(path)[0] if of.tree else content.of_file(path)).hash == of.hash:
                    return path
                why.append(f"{path!r} has been changed")
                error = ObjectCorrupt
            except content.Unfit as exc:
                why.append(str(exc))
        if not why:
            raise ObjectMissing(f"{what} was not kept, and nobody here knows where it lies ({of.hash})")
        raise error(
            f"{what} was left in place and is not as it was: {'; '.join(why)}; put back what has the hash {of.hash}, "
            "or run again the task that made it"
        )

    def _object(self, hash: str, what: str) -> str:
        path = self._objects.path(hash)
        if not os.path.isfile(path):
            raise self._objects.missing(hash, what)
        if content.of_object(path).hash != hash:
            raise damaged(path, what)
        return path

    def _rows(self, hash: str) -> list[Row]:
        return content.rows(self._objects.get(hash))

    def _directory(self, of: Content, what: str) -> str:
        """Return a directory that is this tree, made if need be. Two who make it at once do no harm."""
        rows, path = self._rows(of.hash), f"{self._objects.root}/trees/{of.hash}"
        if os.path.isdir(path):
            with suppress(content.Unfit):
                if content.manifest(path, content.of_object)[0] == of:
                    return path
            self._discard(path)
        draft = f"{self._objects.root}/tmp/{os.urandom(16).hex()}"
        os.makedirs(draft, 0o700)
        try:
            for row in rows:
                self._put_row(row, draft, what, link=True)
            os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
            os.rename(draft, path)
        except OSError as exc:
            shutil.rmtree(draft, ignore_errors=True)
            if exc.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            return self._directory(of, what)  # somebody else's, to be compared
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        return path

    def _discard(self, path: str) -> None:
        """Remove a directory that is not what it should be, out of the way first."""
        aside = f"{self._objects.root}/tmp/{os.urandom(16).hex()}"
        with suppress(FileNotFoundError):
            os.rename(path, aside)
        shutil.rmtree(aside, ignore_errors=True)

    def copy(self, of: Content, name: str, in_place: bool, target: str) -> None:
        """Write a copy of a content, which its user may change; what has that name is replaced.

        Raises:
            ObjectMissing, ObjectDropped, ObjectCorrupt: as `locate`.
            OSError: it cannot be written.
        """
        if not of.tree:
            _copy(self.locate(of, name, in_place), target, of.executable)
            return
        what = f"the tree {name!r}"
        os.makedirs(target, exist_ok=True)
        source = self.locate(of, name, True) if in_place else ""
        for row in self._rows(of.hash):
            if source and row.hash:
                os.makedirs(os.path.dirname(f"{target}/{row.name}"), exist_ok=True)
                _copy(f"{source}/{row.name}", f"{target}/{row.name}", row.executable)
            else:
                self._put_row(row, target, what, link=False)

    def _put_row(self, row: Row, folder: str, what: str, link: bool) -> None:
        """Make one file of a tree (or an empty directory), as a link to its object if nothing speaks against it."""
        path = f"{folder}/{row.name}"
        if not row.hash:
            os.makedirs(path, exist_ok=True)
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        source = self._object(row.hash, f"{row.name!r} of {what}")
        if link and not row.executable:
            with suppress(OSError):  # a file system without links, or a file that has too many
                os.link(source, path)
                return
        _copy(source, path, row.executable)
        if link:
            os.chmod(path, 0o500 if row.executable else 0o400)

    def _places(self, hash: str) -> str:
        self._objects.path(hash)  # refuses what is no hash
        return f"{self._objects.root}/places/{hash[:2]}/{hash[2:]}"


# -- how bytes get there ----------------------------------------------------------------------------


def _take(path: str, draft: str, hash: str, known: content.Signature, owned: bool) -> None:
    """Make a draft of an object of a file: clone, link or copy; on disk at the end.

    Args:
        path: the file.
        draft: what to make.
        hash: of the file.
        known: its signature when it had this hash.
        owned: whether it may be linked.

    Raises:
        Unfit: the file has changed since.
        OSError: no room.
    """
    with content.opened(path) as (source, status):
        content.unchanged(path, source, known)
        if owned and _link(path, draft, source, status):
            return
        made = new_file(draft)
        try:
            if _clone(source, made):
                content.unchanged(path, source, known)
            elif content.read(source, lambda piece: _write(made, piece)) != hash:
                raise content.changed(path)
            os.fsync(made)
        finally:
            os.close(made)


def _link(path: str, draft: str, descriptor: int, status: os.stat_result) -> bool:
    """Make a link if nobody else can reach the file, which is its owner's to read from then on; whether it was made."""
    named = os.lstat(path)
    if not stat.S_ISREG(named.st_mode) or status.st_nlink != 1 or status.st_uid != os.geteuid():
        return False  # a link to somebody's file, of either sort
    try:
        os.link(path, draft, follow_symlinks=False)
    except OSError:  # another file system, or one without links
        return False
    os.fchmod(descriptor, 0o400 | status.st_mode & stat.S_IXUSR)
    os.utime(descriptor)  # whatever time its program gave it, as an object it is new
    os.fsync(descriptor)
    return True


def _clone(source: int, target: int) -> bool:
    """Let a new file share the bytes of another until one of them is changed; False where that cannot be done."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True


def _write(descriptor: int, piece: memoryview) -> None:
    while piece:
        piece = piece[os.write(descriptor, piece) :]


def _copy(source: str, target: str, executable: bool) -> None:
    """Copy a file that has been verified; one that is there is replaced, not written into: it may be a link."""
    with suppress(FileNotFoundError):
        if os.path.samefile(source, target):
            return
        os.unlink(target)
    with open(source, "rb") as reader:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o777 if executable else 0o666)
        with open(descriptor, "wb") as writer:
            if not _clone(reader.fileno(), descriptor):
                shutil.copyfileobj(reader, writer, content.PIECE)
