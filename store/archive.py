"""The file of an archive: entries of one zip, written and read in little memory, each checked by its hash.

What they mean is in `pilot.manifest`; what becomes of them is in `exports` and `imports`. No pymongo here.
"""

from __future__ import annotations

import os
import secrets
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Self

from pilot import manifest
from pilot.errors import ArchiveError
from pilot.manifest import Entry, Manifest
from pilot.values import digest, hasher

PIECE_BYTES = 1 << 20
_SAMPLE_BYTES = 1 << 16
_WORTH = 0.9
"""An object whose first bytes do not shrink to less than this is stored as it is."""
_LEVEL = 1
_LIST_LINE_BYTES = 90
"""A line of the list of objects: hash, size, and what is between them."""
_SIZE = struct.Struct("<i")

Signature = Callable[[bytes], bytes]

# -- write ----------------------------------------------------------------------------------------


class Writer:
    """Writes an archive beside its final name, under which it appears complete and durable, or not at all.

    A context manager: `finish` ends it well; without that, nothing is left.

    Raises:
        ArchiveError: something has that name already, or the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
        self._moment = datetime.now(UTC)
        self._entries: list[Entry] = []
        self._objects: list[tuple[str, int]] = []
        self._zip: zipfile.ZipFile

    def __enter__(self) -> Self:
        if os.path.lexists(self._path):
            raise ArchiveError(f"{str(self._path)!r} exists already; name another file, or remove it")
        with self._writing():
            self._zip = zipfile.ZipFile(self._temporary, "x", zipfile.ZIP_DEFLATED, compresslevel=_LEVEL)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError, ValueError, zipfile.BadZipFile):
            self._zip.close()
        self._temporary.unlink(missing_ok=True)

    def put(self, name: str, data: bytes, documents: int = 0) -> None:
        """Write an entry that the manifest lists."""
        with self._writing():
            self._zip.writestr(self._info(name, len(data)), data)
        self._entries.append(Entry(name, len(data), digest(data), documents))

    def put_object(self, hash: str, size: int, pieces: Iterable[bytes]) -> None:
        """Write an object, as it is unless that would be a waste of room."""
        rest = iter(pieces)
        first = next(rest, b"")
        info = self._info(manifest.object_entry(hash), size)
        if not shrinks(first[:_SAMPLE_BYTES]):
            info.compress_type = zipfile.ZIP_STORED
        with self._writing(), self._zip.open(info, "w") as entry:
            for piece in chain((first,), rest):
                entry.write(piece)
        self._objects.append((hash, size))

    def finish(self, about: Manifest, absent: Sequence[str], signature_of: Signature | None = None) -> Manifest:
        """Write what tells what is there, make the file durable, and give it its name; return the whole manifest.

        Args:
            about: the manifest without its counts and entries.
            absent: objects that are named and not there.
            signature_of: signs the bytes of the manifest; None: not signed.
        """
        self.put(manifest.README, manifest.READ_ME.format(pilot=about.pilot, format=about.format).encode())
        self.put(manifest.OBJECTS, "".join([f"{hash} {size}\n" for hash, size in self._objects]).encode())
        if absent:
            self.put(manifest.ABSENT, "".join([f"{hash}\n" for hash in absent]).encode())
        counts: dict[str, int] = dict.fromkeys(manifest.KINDS, 0)
        for entry in self._entries:
            if entry.documents:
                counts[entry.name.partition("/")[0]] += entry.documents
        whole = Manifest(
            about.archive, about.project, about.name, about.proof, about.pilot, about.created, about.asked,
            tuple(self._entries), len(self._objects), sum(size for _, size in self._objects), len(absent),
            counts=counts,
        )  # fmt: skip
        data = whole.dump()
        with self._writing():
            self._zip.writestr(self._info(manifest.MANIFEST, len(data)), data)
            if signature_of is not None:
                signature = signature_of(data).hex().encode() + b"\n"
                self._zip.writestr(self._info(manifest.SIGNATURE, len(signature)), signature)
            self._zip.close()
            descriptor = os.open(self._temporary, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.rename(self._temporary, self._path)
        return whole

    def _info(self, name: str, size: int) -> zipfile.ZipInfo:
        info = zipfile.ZipInfo(name, self._moment.timetuple()[:6])
        info.compress_type = zipfile.ZIP_DEFLATED
        info.external_attr = 0o644 << 16
        info.file_size = size  # tells whether the entry needs the long form
        return info

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise ArchiveError(f"cannot write the archive {str(self._path)!r}: {exc.strerror or exc}") from exc


def shrinks(sample: bytes) -> bool:
    """Whether it is worth compressing what begins like this."""
    return len(zlib.compress(sample, _LEVEL)) < _WORTH * len(sample)


# -- read -----------------------------------------------------------------------------------------


class Reader:
    """Reads an archive that anybody may have made or changed. A context manager.

    Opening it checks that the entries are those that its manifest lists, with the sizes it lists; each entry is
    checked by its hash when it is read.
    """

    manifest: Manifest

    def __init__(self, path: Path) -> None:
        self._path = path
        self._zip: zipfile.ZipFile
        self._raw_manifest = b""

    def __enter__(self) -> Self:
        """Open it.

        Raises:
            ArchiveError: it is cut short, altered, no archive, or a newer release made it; the entry is named.
        """
        try:
            self._zip = zipfile.ZipFile(self._path)
        except FileNotFoundError as exc:
            raise ArchiveError(f"there is no archive {str(self._path)!r}") from exc
        except OSError as exc:
            raise ArchiveError(f"cannot read the archive {str(self._path)!r}: {exc.strerror or exc}") from exc
        except (zipfile.BadZipFile, struct.error, NotImplementedError, ValueError) as exc:
            raise ArchiveError(self._broken(exc)) from exc
        try:
            self._check()
        except BaseException:
            self._zip.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def _broken(self, exc: Exception) -> str:
        last = last_whole_entry(self._path)
        if last is None:
            return f"{str(self._path)!r} is not an archive: {exc}"
        return (
            f"the archive {str(self._path)!r} has no end: it was cut short or damaged; the last entry that is whole in "
            f"it is {last!r}; get the file anew"
        )

    def _check(self) -> None:
        infos = self._zip.infolist()
        there = {info.filename for info in infos}
        if manifest.MANIFEST not in there:
            raise ArchiveError(f"{str(self._path)!r} has no entry {manifest.MANIFEST!r}: it is not an archive of pilot")
        self._raw_manifest = self._small(manifest.MANIFEST, manifest.MANIFEST_MOST_BYTES)
        self.manifest = manifest.parse(self._raw_manifest)
        manifest.check_names((info.filename for info in infos), self.manifest)
        for entry in self.manifest.entries:
            self._check_size(entry.name, entry.size)
        lists = ((manifest.OBJECTS, self.manifest.objects), (manifest.ABSENT, self.manifest.absent))
        for name, lines in lists:
            size = self._zip.getinfo(name).file_size if name in there else 0
            if size > lines * _LIST_LINE_BYTES:
                raise ArchiveError(f"entry {name!r} has {size:,} bytes, too many for {lines:,} lines")
        total = sum(info.file_size for info in infos if manifest.object_of(info.filename))
        if total != self.manifest.object_bytes:
            raise ArchiveError(
                f"the objects have {total:,} bytes, the manifest counts {self.manifest.object_bytes:,}: it was altered"
            )

    def _check_size(self, name: str, size: int) -> None:
        declared = self._zip.getinfo(name).file_size
        if declared != size:
            raise ArchiveError(f"entry {name!r} has {declared:,} bytes, {size:,} are listed: it was altered")

    def signature(self) -> tuple[bytes, bytes] | None:
        """Return the bytes of the manifest and the signature over them; None if it is not signed."""
        if manifest.SIGNATURE not in self._zip.NameToInfo:
            return None
        try:
            return self._raw_manifest, bytes.fromhex(self._small(manifest.SIGNATURE, 200).decode("ascii").strip())
        except ValueError as exc:
            raise ArchiveError(f"entry {manifest.SIGNATURE!r} is not a signature") from exc

    def documents(self, kind: str) -> Iterator[tuple[str, list[bytes]]]:
        """Yield the entries with documents of one kind, in order: name and documents, as BSON.

        Raises:
            ArchiveError: an entry is damaged, or not what the manifest lists; it is named.
        """
        for entry in self.manifest.entries_of(kind):
            data = self._small(entry.name, manifest.CHUNK_MOST_BYTES)
            if digest(data) != entry.blake2b:
                raise ArchiveError(_altered(entry.name))
            found = split(data)
            if found is None or len(found) != entry.documents:
                raise ArchiveError(f"entry {entry.name!r} does not hold {entry.documents:,} documents as it should")
            yield entry.name, found

    def objects(self) -> Iterator[tuple[str, int]]:
        """Yield hash and size of each object that is in it."""
        number = 0
        for line in self._lines(manifest.OBJECTS):
            hash, _, size = line.partition(" ")
            if not self.has(hash) or not size.isascii() or not size.isdigit():
                raise ArchiveError(f"entry {manifest.OBJECTS!r} lists {line!r}, which is not in the archive")
            self._check_size(manifest.object_entry(hash), int(size))
            number += 1
            yield hash, int(size)
        if number != self.manifest.objects:
            raise ArchiveError(f"entry {manifest.OBJECTS!r} lists {number:,} of {self.manifest.objects:,} objects")

    def absent(self) -> frozenset[str]:
        """Return the objects that documents may name although they are not in it."""
        if not self.manifest.absent:
            return frozenset()
        return frozenset(self._lines(manifest.ABSENT))

    def has(self, hash: str) -> bool:
        """Whether the object is in it."""
        return manifest.object_entry(hash) in self._zip.NameToInfo

    def pieces(self, hash: str) -> Iterator[bytes]:
        """Yield the bytes of an object; whoever takes them sees whether they have this hash."""
        yield from self._pieces(manifest.object_entry(hash))

    def get(self, hash: str) -> bytes:
        """Return an object, checked by its hash."""
        data = b"".join(self.pieces(hash))
        if digest(data) != hash:
            raise ArchiveError(_altered(manifest.object_entry(hash)))
        return data

    def verify_object(self, hash: str) -> None:
        """Read an object for nothing but to see that its bytes have its hash."""
        state = hasher()
        for piece in self.pieces(hash):
            state.update(piece)
        if state.hexdigest() != hash:
            raise ArchiveError(_altered(manifest.object_entry(hash)))

    def _lines(self, name: str) -> Iterator[str]:
        """Yield the lines of a list, after its hash was checked; no line is read that is too long to be one."""
        entry = next((entry for entry in self.manifest.entries if entry.name == name), None)
        if entry is None:
            raise ArchiveError(f"entry {name!r} is missing from the archive")
        state = hasher()
        for piece in self._pieces(name):
            state.update(piece)
        if state.hexdigest() != entry.blake2b:
            raise ArchiveError(_altered(name))
        with _naming(name), self._zip.open(name) as file:
            while line := file.readline(_LIST_LINE_BYTES + 1):
                yield line.decode("ascii", "replace").rstrip("\n")

    def _small(self, name: str, most: int) -> bytes:
        """Return an entry that has so many bytes at most; zipfile gives no more of it than it declares."""
        if self._zip.getinfo(name).file_size > most:
            raise ArchiveError(f"entry {name!r} is too large to be what its name says")
        with _naming(name):
            return self._zip.read(name)

    def _pieces(self, name: str) -> Iterator[bytes]:
        with _naming(name), self._zip.open(name) as file:
            while piece := file.read(PIECE_BYTES):
                yield piece


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Say which entry it is that cannot be read: cut short, another checksum, encrypted, an unknown method."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, NotImplementedError, RuntimeError) as exc:
        raise ArchiveError(f"entry {name!r} of the archive is damaged: {exc}; get the file anew") from exc


def _altered(name: str) -> str:
    return f"entry {name!r} of the archive does not have the hash that it should: it was altered or damaged"


def split(data: bytes) -> list[bytes] | None:
    """Return the BSON documents that lie one after the other; None if they do not."""
    found, start = [], 0
    while start < len(data):
        if start + _SIZE.size > len(data):
            return None
        (size,) = _SIZE.unpack_from(data, start)
        if size < 5 or start + size > len(data):
            return None
        found.append(data[start : start + size])
        start += size
    return found


_LOCAL = struct.Struct("<4sHHHHHIIIHH")
"""What stands before each entry of a zip: APPNOTE.TXT of PKWARE, 4.3.7."""
_UNKNOWN_SIZE, _ZIP64 = 0x8, 1


def last_whole_entry(path: Path) -> str | None:
    """Return the name of the last entry that lies in a file as a whole, from its beginning on; None: there is none."""
    last, at = None, 0
    with open(path, "rb") as file:
        end = os.fstat(file.fileno()).st_size
        while len(head := file.read(_LOCAL.size)) == _LOCAL.size:
            mark, _, flags, _, _, _, _, size, _, name_bytes, extra_bytes = _LOCAL.unpack(head)
            if mark != b"PK\3\4" or flags & _UNKNOWN_SIZE:
                break
            name, extra = file.read(name_bytes), file.read(extra_bytes)
            if size == 0xFFFFFFFF and len(extra) >= 20 and struct.unpack_from("<H", extra)[0] == _ZIP64:
                (size,) = struct.unpack_from("<Q", extra, 12)
            at += _LOCAL.size + name_bytes + extra_bytes + size
            if at > end:
                break
            last = name.decode("utf-8", "replace")
            file.seek(at)
    return last
