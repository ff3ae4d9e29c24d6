"""What makes stored provenance believable: checks of records, chains, links, values, functions. Pure.

Each check returns or yields sentences that say what is wrong, none if nothing is. Documents come as `provenance.opened`
returns them, with the digest of the bytes that are stored.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from pilot import environment, functions, signing, values
from pilot.errors import NotTrusted, ObjectDropped, PilotError, SignatureError
from pilot.model import SCHEMA, FunctionCode
from pilot.records import Get, blob_from, unpack, verify
from pilot.states import GOOD, Outcome

Document = Mapping[str, Any]


class Problem(NamedTuple):
    """Something that is wrong."""

    of: str
    """Id of the record, function or environment that it was found in; or ``token T`` of a chain."""
    text: str


# -- one document -----------------------------------------------------------------------------------


def check_digest(record: Document, digest: str) -> str:
    """Check that every field of a record is what was written when its attempt ended.

    Args:
        record: as stored.
        digest: of its bytes without the seal; "" if they do not end with one.
    """
    if not digest:
        return "somebody added a field to it, or moved one: its seal is not at its end"
    if record.get("digest") != digest:
        return "somebody changed a field of it: its content does not have the digest that was taken of it"
    return ""


def check_signature(record: Document, signer: signing.Signer) -> str:
    """Check that a record's digest, its place in its chain, and what readers rely on are what its pool signed.

    Of what was imported from a project whose key is not trusted, that it is what was imported.
    """
    try:
        verify(record, signer)
    except NotTrusted:
        return ""
    except SignatureError as exc:
        return str(exc)
    return ""


def check_values(record: Document, get: Get, size: Callable[[str], int]) -> Iterator[str]:
    """Check the bytes of a record's inputs and outputs, inline or objects, against their hashes.

    Linked inputs are left to `check_links`.

    Args:
        record: as stored.
        get: reads an object.
        size: returns an object's size after comparing its bytes with the hash.
    """
    for kind in ("inputs", "outputs"):
        try:
            entries = unpack(record[kind], get)
        except (PilotError, KeyError, TypeError, ValueError) as exc:
            yield f"its list of {kind} cannot be read: {exc}"
            continue
        for entry in entries:
            if "source" not in entry and (why := _value_problem(entry, size)):
                yield f"{kind[:-1]} {entry['name']!r}: {why}"


def _value_problem(entry: Document, size: Callable[[str], int]) -> str:
    """Return what is wrong with a value's bytes."""
    try:
        blob = blob_from(entry)
        if blob.data is None:
            found = size(blob.hash)
            return "" if found == blob.size else f"it has {found} bytes instead of {blob.size}"
        return "" if values.digest(blob.data) == blob.hash else "its value does not have its hash"
    except ObjectDropped:  # by somebody's decision, and noted
        return ""
    except (PilotError, KeyError, TypeError, ValueError) as exc:
        return str(exc)


def check_links(
    record: Document, parents: Mapping[str, Document | None], officials: Mapping[str, str | None], get: Get
) -> Iterator[str]:
    """Check that each linked input is an output of its source's official, good record, with the same hash.

    Args:
        record: whose inputs are checked; its signature fits.
        parents: records by id; None: its signature does not fit. One that is not among them does not exist.
        officials: task → its official record, of those tasks that exist.
        get: reads an object.
    """
    outputs: dict[str, dict[str, str]] = {}
    for entry in unpack(record["inputs"], get):
        if "source" not in entry:
            continue
        source, output = entry["source"]["record"], entry["source"]["output"]
        link, parent = f"input {entry['name']!r}", parents.get(source)
        if parent is None:
            yield f"{link} came from record {source!r}, {_absent(source, parents)}"
            continue
        if parent["outcome"] not in GOOD:
            yield f"{link} came from record {source!r}, which says {parent['outcome']!r}"
        elif officials.get(parent["task"], source) != source:
            yield f"{link} came from record {source!r}, which is not the official one of its task"
        if source not in outputs:
            try:
                outputs[source] = _hashes(parent, get)
            except PilotError as exc:
                yield f"{link} came from record {source!r}, whose list of outputs cannot be read: {exc}"
                continue
        if output not in outputs[source]:
            yield f"{link} came from record {source!r}, which has no output {output!r}"
        elif outputs[source][output] != entry["hash"]:
            yield f"{link} is not what record {source!r} has as output {output!r}: the hashes differ"


def check_cached(record: Document, parents: Mapping[str, Document | None], get: Get) -> str:
    """Check that the outputs of a `cached` record are those of a run that succeeded.

    Args:
        record: its signature fits.
        parents: as for `check_links`.
        get: reads an object.
    """
    source = record.get("cached_from")
    if source is None:
        return ""
    head, parent = f"its outputs were taken from record {source!r}", parents.get(source)
    if parent is None:
        return f"{head}, {_absent(source, parents)}"
    if parent["outcome"] != Outcome.SUCCEEDED:
        return f"{head}, which says {parent['outcome']!r}"
    try:
        same = _hashes(record, get) == _hashes(parent, get)
    except PilotError as exc:
        return f"{head}, and cannot be compared: {exc}"
    return "" if same else f"{head}, which has others"


def _absent(source: str, parents: Mapping[str, Document | None]) -> str:
    return "whose signature does not fit" if source in parents else "which does not exist"


def _hashes(record: Document, get: Get) -> dict[str, str]:
    return {made["name"]: made["hash"] for made in unpack(record["outputs"], get)}


def check_function(code: FunctionCode, signature: object, signer: signing.Signer | None, get: Get) -> Iterator[str]:
    """Check a function's hash and signature, its source text and its pickle.

    Args:
        code: the function.
        signature: of it.
        signer: of the project that it is of; None: that one's key is not trusted.
        get: reads an object.
    """
    if functions.identity(code) != code.hash:
        yield "it is not what its hash says"
    try:
        if signer is not None:
            signer.verify("function", SCHEMA, signing.function_fields(code), signature)
    except SignatureError as exc:
        yield str(exc)
    if code.source and values.digest(code.source.encode("utf-8", "surrogatepass")) != code.source_hash:
        yield "its source text does not have its hash"
    if code.pickle is not None:
        try:
            data = get(code.pickle.hash) if code.pickle.data is None else code.pickle.data
        except PilotError as exc:
            yield f"its pickle cannot be read: {exc}"
        else:
            if values.digest(data) != code.pickle.hash:
                yield "its pickle does not have its hash"


def check_environment(document: Document) -> list[str]:
    """Check that an environment is what its name, which records hold, is the hash of."""
    content = {key: value for key, value in document.items() if key != "_id"}
    try:
        same = environment.identity(content) == document["_id"]
    except PilotError:
        same = False
    return [] if same else ["its content does not have the hash that names it: somebody changed it"]


def check_tip(token: str, tip: Document, signer: signing.Signer) -> tuple[int, str] | None:
    """Return number and digest of the link that a pool says its chain has come to; None if it did not say so."""
    try:
        signer.verify("chain", SCHEMA, [token, tip["seq"], tip["prev"]], tip["signature"])
        return int(tip["seq"]), str(tip["prev"])
    except (SignatureError, KeyError, TypeError):
        return None


# -- chains -------------------------------------------------------------------------------------------


class _Link(NamedTuple):
    """A record in its chain."""

    record: str
    prev: str | None
    """What it says the digest up to the record before is; None: it is not to be believed."""
    end: str | None
    """The digest up to and with it; None likewise."""


class Chains:
    """Follows the chains of any number of tokens through records that may come in any order.

    Keeps a byte per record, and the links whose neighbours have not come yet: few, as records are stored about in the
    order of their chains.
    """

    def __init__(self) -> None:
        self._seen: dict[str, bytearray] = defaultdict(bytearray)
        """Token → for each number below the highest, whether its record has come."""
        self._open: dict[tuple[str, int], _Link] = {}
        """Links whose successor has not come."""
        self._waiting: dict[tuple[str, int], _Link] = {}
        """Links whose predecessor has not come."""

    def add(self, record: Document, believed: bool = True) -> Iterator[Problem]:
        """Add a record; yield what does not fit.

        Args:
            record: with ``_id``, ``chain`` and ``signature``.
            believed: its signature fits; otherwise it only fills its place.
        """
        try:
            token, seq, prev = str(record["chain"]["token"]), int(record["chain"]["seq"]), str(record["chain"]["prev"])
            end = signing.chain(prev, record["signature"])
        except (KeyError, TypeError, ValueError):
            return  # its signature does not fit either
        if not 0 < seq < len(self._seen[token]) + _FAR:
            return
        link = _Link(str(record["_id"]), prev if believed else None, end if believed else None)
        if not self._note(token, seq):
            yield Problem(link.record, f"another record, too, is number {seq} of token {token!r}")
            return
        before = _START if seq == 1 else self._open.pop((token, seq - 1), None)
        after = self._waiting.pop((token, seq + 1), None)
        if before is None:
            self._waiting[token, seq] = link
        elif not _fit(before, link):
            yield Problem(link.record, f"it does not follow on {before.record or 'nothing'}, which is before it")
        if after is None:
            self._open[token, seq] = link
        elif not _fit(link, after):
            yield Problem(after.record, f"it does not follow on {link.record}, which is before it")

    def _note(self, token: str, seq: int) -> bool:
        """Note that a number has come; False if it has before."""
        seen = self._seen[token]
        if seq > len(seen):
            seen.extend(bytes(seq - len(seen)))
        new = not seen[seq - 1]
        seen[seq - 1] = 1
        return new

    def close(self, tips: Mapping[str, tuple[int, str]]) -> Iterator[Problem]:
        """Yield what is missing when all records have been added.

        Args:
            tips: of a token, number and digest of a link that was in the store when its pool said so.
        """
        for token, seen in sorted(self._seen.items()):
            gap = seen.find(0)
            while gap >= 0:
                after = seen.find(1, gap)
                yield Problem(self._waiting[token, after + 1].record, f"before it, {_missing(gap + 1, after, token)}")
                gap = seen.find(0, after)
        for token, (seq, end) in sorted(tips.items()):
            last = len(self._seen.get(token, b""))
            link = self._open.get((token, last), _START)
            if last < seq:
                yield Problem(link.record or f"token {token}", f"after it, {_missing(last + 1, seq, token)}")
            elif last == seq and link.end not in (None, end):
                yield Problem(link.record, f"its pool had another record as number {seq} of token {token!r}")


_START = _Link("", "", "")
_FAR = 10_000_000
"""No record comes so long before those that its chain has before it."""


def _fit(first: _Link, second: _Link) -> bool:
    return first.end is None or second.prev is None or first.end == second.prev


def _missing(first: int, last: int, token: str) -> str:
    numbers = (
        f"record number {first} is" if first == last else f"the {last - first + 1} records number {first} to {last} are"
    )
    return f"{numbers} missing, of token {token!r}"
