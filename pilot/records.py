"""Documents made of values: a task's inputs as stored, and the provenance record of one attempt.

Pure: the object repository is a function passed in, the clock is in the arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pilot import signing, values
from pilot.errors import InvalidInput, PilotError, SignatureError
from pilot.model import (
    INLINE_DOCUMENT_BYTES,
    INLINE_VALUE_BYTES,
    SCHEMA,
    Blob,
    Failure,
    Input,
    Link,
    Placement,
    RankPlace,
    Result,
    Usage,
    record_id,
)
from pilot.states import Outcome

Document = dict[str, Any]
Put = Callable[[values.Encoded], str]
"""Writes an encoded value to the object repository and returns its hash."""

Get = Callable[[str], bytes | memoryview]
"""Reads an object; its bytes have the hash that names it."""

_LINK_BYTES = 48
_ENTRY_BYTES = 160

# -- lists that may be too long for a document ----------------------------------------------------


def pack(items: list[Document], put: Put, inline: int) -> Any:
    """Return a list as a document holds it: itself, or the name of the object it became.

    Args:
        items: plain data.
        put: writes an object.
        inline: bytes that the list would take in the document, about.
    """
    if inline <= INLINE_DOCUMENT_BYTES:
        return items
    return {"object": put(values.encode(items)), "count": len(items)}


def unpack(stored: Any, get: Get) -> list[Document]:
    """Return the list that `pack` stored; `get` reads an object."""
    if isinstance(stored, Mapping):
        data = get(stored["object"])
        if bytes(data[:1]) != b"j" or not values.is_data(data):  # never unpickle or import what is not verified yet
            raise SignatureError(f"object {stored['object']!r} is not the list that a document names it for")
        items: list[Document] = values.decode(data)
        return items
    return list(stored)


# -- a task's inputs ------------------------------------------------------------------------------


def blob_of(encoded: values.Encoded, put: Put) -> Blob:
    """Return the value with its bytes if it is small; else write it to the repository and name it."""
    if encoded.size <= INLINE_VALUE_BYTES:
        return Blob(encoded.hash, encoded.size, encoded.data)
    put(encoded)
    return Blob(encoded.hash, encoded.size, None, values.names_files(encoded))


def pack_inputs(inputs: Sequence[Input], put: Put) -> Any:
    """Return a task's inputs as its document holds them; small values stay as their encoded bytes."""
    entries: list[Document] = []
    budget = INLINE_DOCUMENT_BYTES // 2
    for item in inputs:
        name, blob, links = item
        entry: Document = {"name": name, "hash": blob.hash, "size": blob.size}
        if blob.data is not None:
            budget -= blob.size
            if budget >= 0:
                entry["data"] = blob.data
            else:
                encoded = values.Encoded(blob.hash, blob.size, (blob.data,))
                put(encoded)
                if values.names_files(encoded):
                    entry["files"] = True
        elif blob.files:
            entry["files"] = True
        if links:
            entry["links"] = [list(link) for link in links]
        entries.append(entry)
    if sum(len(item.links) for item in inputs) * _LINK_BYTES + len(entries) * _ENTRY_BYTES < INLINE_DOCUMENT_BYTES // 2:
        return entries
    return pack(entries, put, INLINE_DOCUMENT_BYTES + 1)


def unpack_inputs(stored: Any, get: Get) -> tuple[Input, ...]:
    """Return what `pack_inputs` stored."""
    return tuple(
        [
            Input(
                entry["name"],
                Blob(entry["hash"], entry["size"], entry.get("data"), "files" in entry),
                tuple([Link(*link) for link in entry["links"]]) if "links" in entry else (),
            )
            for entry in unpack(stored, get)
        ]
    )


# -- values in records ----------------------------------------------------------------------------


def _value_fields(blob: Blob) -> Document:
    """Return hash, size, and the value as people can read and query it, or its bytes, or nothing (an object)."""
    fields: Document = {"hash": blob.hash, "size": blob.size}
    if blob.data is None:
        fields["object"] = True
        if blob.files:
            fields["files"] = True
    else:
        native = values.native(blob.data)
        if native is values.NOT_NATIVE:
            fields["data"] = blob.data
        else:
            fields["value"] = native
    return fields


def blob_from(entry: Mapping[str, Any]) -> Blob:
    """Return the value that an input or output of a record holds."""
    if "value" in entry:
        return Blob(entry["hash"], entry["size"], values.reencode(entry["value"]))
    data = entry.get("data")
    return Blob(entry["hash"], entry["size"], None if data is None else bytes(data), "files" in entry)


def _fit(entries: list[Document], put: Put) -> Any:
    """Keep what a record holds inline within its budget: the largest values become objects, then the list itself."""
    total = len(entries) * _ENTRY_BYTES + sum(e["size"] for e in entries if "object" not in e)
    budget = INLINE_DOCUMENT_BYTES // 2
    if total <= budget:
        return entries
    for entry in sorted(entries, key=lambda e: -int(e["size"])):
        if total <= budget or "object" in entry or "source" in entry:
            continue
        blob = blob_from(entry)
        if blob.data is not None:
            encoded = values.Encoded(blob.hash, blob.size, (blob.data,))
            put(encoded)
            entry.pop("value", None)
            entry.pop("data", None)
            entry["object"] = True
            if values.names_files(encoded):
                entry["files"] = True
            total -= blob.size
    return pack(entries, put, total if total > budget else 0)


@dataclass(frozen=True, slots=True)
class Source:
    """Where a linked value came from: the parent's official record, its output, and what that holds."""

    record: str
    output: str
    hash: str
    size: int


Sources = Mapping[tuple[str, str | None], Sequence[Source]]
"""Of every (task, output) that is linked to; several where the whole result of a command is meant."""


def _inputs(inputs: Sequence[Input], sources: Sources) -> list[Document]:
    """Return a record's inputs: one per argument, one per link inside an argument, each with its own name."""
    entries: list[Document] = []
    for name, blob, links in inputs:
        whole = len(links) == 1 and links[0].path == name
        if not whole:
            entries.append({"name": name, **_value_fields(blob)})
        for link in links:
            found = sources.get((link.task, link.output), ())
            for source in found:
                origin: Document = {"record": source.record, "output": source.output}
                if link.output is not None and link.output != source.output:
                    origin["item"] = link.output
                path = link.path if len(found) == 1 else f'{link.path}["{source.output}"]'
                entries.append({"name": path, "hash": source.hash, "size": source.size, "source": origin})
    return entries


def _labelled(entries: list[Document], what: str) -> list[Document]:
    """Return them if each has a name of its own."""
    if len(entries) < 2:
        return entries
    names = [entry["name"] for entry in entries]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidInput(f"two of the {what} are called {twice!r}, and a link could mean either")
    return entries


# -- records --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """What all records of one pool share."""

    token: str
    fields: Mapping[str, str] = field(default_factory=dict)
    """``pilot``, ``environment``, ``site``, and the batch ``job`` if there is one."""


@dataclass(slots=True)
class Chain:
    """The digest chain of one token's records: each record names the one before it."""

    token: str
    seq: int = 0
    prev: str = ""

    def link(self) -> Document:
        """Return the chain fields of the next record."""
        self.seq += 1
        return {"token": self.token, "seq": self.seq, "prev": self.prev}

    def close(self, signature: bytes) -> None:
        """Note that the record with this signature is the latest link."""
        self.prev = signing.chain(self.prev, signature)


def tip(chain: Chain, signer: signing.Signer) -> Document:
    """Return how far a chain has come, signed, for its pool's document: a chain does not show that its end is gone."""
    signature = signer.sign("chain", SCHEMA, [chain.token, chain.seq, chain.prev])
    return {"seq": chain.seq, "prev": chain.prev, "signature": signature}


Seal = Callable[[Document, str], Document]
"""Returns the fields `SEAL` of a record, whose other fields have this digest as they are stored."""


def record(
    task: Mapping[str, Any],
    inputs: Sequence[Input],
    sources: Sources,
    result: Result,
    place: Place,
    put: Put,
    placement: Placement | None = None,
    cache: Mapping[str, Any] | None = None,
) -> Document:
    """Return the record of one attempt, not yet sealed.

    Args:
        task: the task's document as leased.
        inputs: its inputs.
        sources: where the linked ones came from.
        result: how the attempt ended.
        place: pool and pilot.
        put: writes objects that do not fit the document.
        placement: of a wide task.
        cache: fields of a task with caching on; of one that takes the outputs of another they are among them.

    Raises:
        InvalidInput: two inputs, or two outputs, have one name: a link could mean either.
    """
    doc = _head(task, result.attempt, result.outcome, place)
    doc["inputs"] = _fit(_labelled(_inputs(inputs, sources), "inputs"), put)
    made = [{"name": name, **_value_fields(blob)} for name, blob in result.outputs]
    doc["outputs"] = _fit(_labelled(made, "outputs"), put)
    if result.program is not None:
        doc["command"] = {**doc["command"], "executable": result.program[0], "digest": result.program[1]}
    if result.launcher is not None:
        doc["launcher"] = list(result.launcher)
    if result.exit_code is not None:
        doc["exit_code"] = result.exit_code
    if result.failure is not None:
        doc["exception"] = result.failure._asdict()
    doc |= {"host": result.host, "rank": result.rank, "usage": result.usage._asdict()}
    doc["time"] |= {"started": _utc(result.started), "finished": _utc(result.finished)}
    if result.log is not None:
        doc["output_log"] = result.log._asdict()
    if placement is not None:
        ranks = [_rank_fields(rank) for rank in placement.ranks]
        doc["placement"] = pack(ranks, put, _ENTRY_BYTES * len(ranks))
    if cache is not None:
        doc |= cache
    return doc


def _rank_fields(rank: RankPlace) -> Document:
    """Return where one rank ran; empty lists are left out."""
    fields: Document = {"host": rank.host, "slots": list(rank.slots)}
    if rank.cpus:
        fields["cpus"] = list(rank.cpus)
    if rank.gpus:
        fields["gpus"] = list(rank.gpus)
    return fields


def _head(task: Mapping[str, Any], attempt: int, outcome: Outcome, place: Place) -> Document:
    """Return what every record begins with; a task that somebody has spoilt gets one too."""
    signature = task.get("signature")
    doc: Document = {
        "_id": record_id(task["_id"], attempt),
        "task": task["_id"],
        "attempt": attempt,
        "token": place.token,
        "kind": task.get("kind"),
        "name": task.get("name"),
        "outcome": outcome.value,
        "resources": task.get("class"),
        "task_signature": signature if isinstance(signature, bytes) else b"",
        "time": {"submitted": task.get("submitted")},
        "inputs": [],
        "outputs": [],
        **place.fields,
    }
    for name in ("function", "command", "tags"):
        value = task.get(name)
        if value is not None:
            doc[name] = value
    if "leased" in task:
        doc["time"]["leased"] = task["leased"]
    return doc


def lost_record(task: Mapping[str, Any], token: str, reason: str, now: datetime) -> Document:
    """Return the record of an attempt that went down with its pool, written by whoever found out."""
    doc = _head(task, task["attempt"], Outcome.LOST, Place(token))
    doc["time"]["finished"] = now
    doc["exception"] = Failure("PoolLost", reason, "", -1, "")._asdict()
    return doc


def minimal(doc: Mapping[str, Any], why: str) -> Document:
    """Return the record that stands in for one that cannot be stored: outcome `failed`, reason `record`."""
    keep = (
        "_id",
        "task",
        "attempt",
        "token",
        "kind",
        "name",
        "pilot",
        "task_signature",
        "environment",
        "site",
    )
    small = {key: doc[key] for key in keep if key in doc}
    moments = {key: value for key, value in doc["time"].items() if isinstance(value, datetime)}
    failure = Failure("RecordRejected", why[:2000], "", -1, str(doc.get("host", ""))[:200])
    return {
        **small, "outcome": Outcome.FAILED.value, "reason": "record", "exception": failure._asdict(),
        "time": moments, "inputs": [], "outputs": [],
    }  # fmt: skip


SEAL = ("chain", "digest", "signature")
"""The fields that come last in a stored record: its place among others, the digest of all fields before them, and
the signature over both and over what readers rely on."""


def seal(doc: Mapping[str, Any], digest: str, signer: signing.Signer, chain: Chain | None = None) -> Document:
    """Return the fields `SEAL` of a record, so that no field of it can be changed unnoticed.

    With a `chain`, the record becomes its next link; else it stands outside of any (``seq`` 0), as what others
    write about a dead pool's attempts does.

    Args:
        doc: the record without them.
        digest: of the bytes that are stored of it.
        signer: the project's.
        chain: of its token.
    """
    link = chain.link() if chain is not None else {"token": doc["token"], "seq": 0, "prev": ""}
    signature = signer.sign("record", SCHEMA, signing.record_fields(doc, digest, link))
    if chain is not None:
        chain.close(signature)
    return {"chain": link, "digest": digest, "signature": signature}


def verify(doc: Mapping[str, Any], signer: signing.Signer) -> None:
    """Check that what readers rely on in a record (its `signing.record_fields`) is what its pool wrote.

    Of an imported one, first that it is what was imported. That the other fields are what was written, too, shows only
    in the bytes that are stored: see `pilot.audit`.

    Raises:
        NotTrusted: it is what was imported, from a project whose key is not trusted: nothing of it may be unpickled.
        SignatureError: it is not what was written; nothing of it may be used.
    """
    fields = signing.record_fields(doc, doc.get("digest"), doc.get("chain"))
    origin = doc.get("from")
    if origin is None:
        signer.verify("record", SCHEMA, fields, doc.get("signature"))
    else:
        _verify_origin(doc, origin, fields, signer)
    if doc["_id"] != record_id(doc["task"], doc["attempt"]):
        raise SignatureError(f"record {doc['_id']!r} is that of task {doc['task']!r}: somebody moved it")
    if origin is not None:
        signer.of(origin["project"]).verify("record", SCHEMA, fields, doc.get("signature"))


def origin_of(doc: Mapping[str, Any], project: str, archive: str, signer: signing.Signer) -> Document:
    """Return the field ``from`` of a record that is being imported.

    It is signed with the key of the project that imports: whoever writes to the database cannot pass off a record as
    one that the user imported.

    Args:
        doc: the record as it was in the project that it comes from.
        project: id of that project.
        archive: id of the archive that brought it.
        signer: of the project that imports it.
    """
    signed = signing.record_fields(doc, doc.get("digest"), doc.get("chain"))
    fields = _origin_fields(doc, project, archive, signed)
    return {"project": project, "archive": archive, "signature": signer.sign("imported", SCHEMA, fields)}


def _verify_origin(doc: Mapping[str, Any], origin: Any, fields: list[Any], signer: signing.Signer) -> None:
    try:
        project, archive, signature = origin["project"], origin["archive"], origin["signature"]
    except (KeyError, TypeError) as exc:
        raise SignatureError(f"record {doc['_id']!r} does not say rightly where it was imported from") from exc
    signer.verify("imported", SCHEMA, _origin_fields(doc, project, archive, fields), signature)


def _origin_fields(doc: Mapping[str, Any], project: str, archive: str, fields: list[Any]) -> list[Any]:
    signature = doc.get("signature")
    return [project, archive, signature.hex() if isinstance(signature, bytes) else "", *fields]


VERIFIED_FIELDS = (
    "task", "attempt", "token", "outcome", "task_signature", "inputs", "outputs", "cache.key", "cached_from",
    "command.digest", *SEAL, "from",
)  # fmt: skip
"""What must be read of a record to verify it."""


def refusal(task: Mapping[str, Any], error: PilotError, rank: int, host: str, now: float) -> Result:
    """Return the result of an attempt that could not begin because the task itself cannot be run."""
    failure = Failure(type(error).__name__, str(error), "", rank, host)
    usage = Usage(0.0, 0.0, 0)
    return Result(task["_id"], task["attempt"], Outcome.FAILED, (), failure, None, now, now, usage, rank, host)


def cached_result(task: Mapping[str, Any], host: str, now: float) -> Result:
    """Return the result of an attempt that takes the outputs of an equal task; its record gets them from there."""
    usage = Usage(0.0, 0.0, 0)
    return Result(task["_id"], task["attempt"], Outcome.CACHED, (), None, None, now, now, usage, 0, host)


def lost_result(task: Mapping[str, Any], reason: str, host: str, now: float) -> Result:
    """Return the result of an attempt whose slot went away."""
    failure = Failure("SlotLost", reason, "", -1, host)
    return Result(task["_id"], task["attempt"], Outcome.LOST, (), failure, None, now, now, Usage(0.0, 0.0, 0), -1, host)


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
