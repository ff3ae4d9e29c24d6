"""What an archive of provenance says of itself, and how its entries are named. Pure.

docs/concepts/archive.md describes the format for those who have to read it without pilot.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from pilot.errors import ArchiveError
from pilot.model import SCHEMA

FORMAT = 1
"""Version of the layout; what reads archives refuses a newer one."""

KINDS = ("environments", "functions", "records", "tasks")
"""Documents, in the order in which they are imported: what is named is there before what names it."""

README, OBJECTS, ABSENT, MANIFEST, SIGNATURE = (
    "README.txt",
    "objects.txt",
    "absent.txt",
    "manifest.json",
    "manifest.sig",
)

CHUNK_BYTES = 4 << 20
"""Documents of an entry: as many as fit, and one at least."""
CHUNK_MOST_BYTES = 32 << 20
"""No entry with documents is larger: one document has 16 MiB at most."""
MANIFEST_MOST_BYTES = 64 << 20

_CHUNK = re.compile(rf"({'|'.join(KINDS)})/\d{{6,9}}\.bson")
_OBJECT = re.compile(r"objects/([0-9a-f]{2})/([0-9a-f]{62})")
_DIGEST = re.compile(r"[0-9a-f]{64}")

READ_ME = """\
This is an archive of provenance made by pilot {pilot}, format {format}: how results came about, and the results.

manifest.json       what is in it, the project it is of, and the BLAKE2b-256 of each entry but objects
manifest.sig        only if signed: HMAC-SHA256 under the project's key
tasks/*.bson        what was to be done: documents one after the other, as https://bsonspec.org describes
records/*.bson      how each attempt went: code, inputs, where they came from, outputs, place, time, outcome
functions/*.bson    the code, with its source text
environments/*.bson the software and machines
objects/ab/cdef...  large values; each is named by the BLAKE2b-256 of its bytes
objects.txt         the name and size of each object in the archive
absent.txt          names of objects that documents name and the archive does not have, if there are any

Any BSON library reads the documents; so does MongoDB's program bsondump. Of a value (in "value", "data" or an object)
the first byte of its encoding says what it is: j JSON, b bytes, n a NumPy array (.npy), p and r a Python pickle.
"""


def object_entry(hash: str) -> str:
    """Return the name of the entry that holds an object."""
    return f"objects/{hash[:2]}/{hash[2:]}"


def object_of(name: str) -> str | None:
    """Return the hash of the object that an entry holds; None if it holds something else."""
    found = _OBJECT.fullmatch(name)
    return found[1] + found[2] if found else None


def chunk_entry(kind: str, number: int) -> str:
    """Return the name of the entry with the documents of a kind that come as the `number`th, from 0."""
    return f"{kind}/{number:06}.bson"


class Entry(NamedTuple):
    """An entry of the archive that is no object."""

    name: str
    size: int
    """Bytes, not compressed."""
    blake2b: str
    """BLAKE2b-256 of them, in hexadecimal."""
    documents: int = 0
    """How many there are in it."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an archive says of itself.

    Args:
        archive: a random name.
        project: id of the project it is of.
        name: what people call that project.
        proof: what only that project's key can sign, in hexadecimal: tells whether a key is the one.
        pilot: version of the release that made it.
        created: when, in ISO 8601 (UTC).
        asked: what was asked for, in words.
        entries: all but objects, manifest and signature.
        objects: how many there are.
        object_bytes: their sizes, added up.
        absent: objects that documents name and that are not in it.
    """

    archive: str
    project: str
    name: str
    proof: str
    pilot: str
    created: str
    asked: str
    entries: tuple[Entry, ...] = ()
    objects: int = 0
    object_bytes: int = 0
    absent: int = 0
    schema: int = SCHEMA
    format: int = FORMAT
    counts: Mapping[str, int] = field(default_factory=dict)
    """Documents of each kind."""

    def dump(self) -> bytes:
        """Return it as it stands in the archive."""
        fields = asdict(self) | {"entries": [entry._asdict() for entry in self.entries]}
        return json.dumps(fields, indent=1, sort_keys=True).encode() + b"\n"

    def entries_of(self, kind: str) -> list[Entry]:
        """Return the entries with documents of one kind, in order."""
        return [entry for entry in self.entries if entry.name.startswith(f"{kind}/")]


_FIELDS: Mapping[str, type] = {
    "archive": str, "project": str, "name": str, "proof": str, "pilot": str, "created": str, "asked": str,
    "entries": list, "objects": int, "object_bytes": int, "absent": int, "schema": int, "format": int, "counts": dict,
}  # fmt: skip


def parse(data: bytes) -> Manifest:
    """Read what `Manifest.dump` wrote, perhaps altered.

    Raises:
        ArchiveError: it is another format's, a newer release made it, or somebody changed it.
    """
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise ArchiveError(f"entry {MANIFEST!r} is not JSON: {exc}") from exc
    if not isinstance(fields, dict) or type(fields.get("format")) is not int or type(fields.get("schema")) is not int:
        raise ArchiveError(f"entry {MANIFEST!r} is not that of an archive of pilot: it names no format and schema")
    _refuse_newer(fields)
    for name, kind in _FIELDS.items():
        if type(fields.get(name)) is not kind:
            raise ArchiveError(f"entry {MANIFEST!r}: {name!r} is {fields.get(name)!r:.80}, expected {kind.__name__}")
    entries = tuple([_entry(item) for item in fields["entries"]])
    made = Manifest(**{name: fields[name] for name in _FIELDS if name != "entries"}, entries=entries)
    _check_counts(made)
    return made


def _refuse_newer(fields: Mapping[str, Any]) -> None:
    for name, known in (("format", FORMAT), ("schema", SCHEMA)):
        if fields[name] > known:
            raise ArchiveError(
                f"the archive has {name} {fields[name]}, this pilot knows {name} {known}: release "
                f"{fields.get('pilot', '?')!s:.40} made it; install that one or a later one (pip install -U hpc-pilot)"
            )
        if fields[name] < 1:
            raise ArchiveError(f"entry {MANIFEST!r}: there is no {name} {fields[name]}")


def _entry(item: object) -> Entry:
    match item:
        case {"name": str(name), "size": int(size), "blake2b": str(blake2b), "documents": int(documents)}:
            if size >= 0 and documents >= 0 and _DIGEST.fullmatch(blake2b) and is_known(name):
                return Entry(name, size, blake2b, documents)
    raise ArchiveError(f"entry {MANIFEST!r} lists an entry in a form that is not known: {item!r:.200}")


def _check_counts(manifest: Manifest) -> None:
    names = [entry.name for entry in manifest.entries]
    if len(set(names)) < len(names):
        raise ArchiveError(f"entry {MANIFEST!r} lists an entry twice")
    for entry in manifest.entries:
        if _CHUNK.fullmatch(entry.name) and entry.size > CHUNK_MOST_BYTES:
            raise ArchiveError(
                f"entry {entry.name!r} would have {entry.size:,} bytes, at most {CHUNK_MOST_BYTES:,} are read"
            )
        if entry.documents > entry.size // 5:  # the smallest document has five bytes
            raise ArchiveError(
                f"entry {entry.name!r} cannot hold {entry.documents:,} documents in {entry.size:,} bytes"
            )
    for kind in KINDS:
        found = sum(entry.documents for entry in manifest.entries_of(kind))
        if manifest.counts.get(kind) != found:
            raise ArchiveError(
                f"entry {MANIFEST!r} counts {manifest.counts.get(kind)!r} {kind}, its entries hold {found:,}"
            )


def is_known(name: str) -> bool:
    """Whether an archive may have an entry of this name, other than an object; whatever is a path elsewhere is none."""
    return name in (README, OBJECTS, ABSENT, MANIFEST, SIGNATURE) or _CHUNK.fullmatch(name) is not None


def check_names(names: Iterable[str], manifest: Manifest) -> None:
    """Compare the entries that are there with those that the manifest lists.

    Raises:
        ArchiveError: there is one too many or too few, or one is there twice; it is named.
    """
    listed = {entry.name for entry in manifest.entries}
    seen: set[str] = set()
    objects = 0
    for name in names:
        if name in seen:
            raise ArchiveError(f"entry {name!r} is in the archive twice")
        if object_of(name) is not None:
            objects += 1
        elif name not in (MANIFEST, SIGNATURE) and name not in listed:
            raise ArchiveError(f"entry {name!r:.200} does not belong into an archive, or its manifest does not list it")
        seen.add(name)
    for name in sorted(listed - seen):
        raise ArchiveError(f"entry {name!r} is missing from the archive, its manifest lists it")
    if objects != manifest.objects:
        raise ArchiveError(f"the archive has {objects:,} objects, its manifest counts {manifest.objects:,}")
