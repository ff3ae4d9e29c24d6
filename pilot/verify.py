"""Verifies what is stored: all of it (`Audit`), or all that some results rest on (`lineage_of`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pilot import audit, mentions, records, signing
from pilot.audit import Problem
from pilot.errors import NotTrusted, ObjectCorrupt, PilotError
from pilot.functions import code_from
from pilot.model import official_record
from pilot.store import care, foreign, lineage, provenance, tasks
from pilot.store.mongo import Store
from pilot.store.objects import Objects

LIMIT = lineage.LIMIT

_PART = 500
"""Records that are looked at together: each may be some megabytes."""


@dataclass(slots=True)
class Report:
    """What was looked at, and what is wrong with it."""

    records: int = 0
    values: int = 0
    """Inputs, outputs, links and files that were looked at; of an audit: objects and files in place, each once."""
    dropped: int = 0
    """Those whose bytes somebody gave up, keeping the hashes."""
    imported: int = 0
    """Records of other projects: they are what was imported, and what was signed where the key is trusted."""
    functions: int = 0
    environments: int = 0
    problems: list[Problem] = field(default_factory=list)
    cut: str = ""
    """What keeps it from being all: ``depth`` or ``limit``; empty: nothing."""

    def document(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {**asdict(self), "good": self.good, "problems": [problem._asdict() for problem in self.problems]}

    @property
    def good(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


class _Contents:
    """Looks for values and files, each once."""

    def __init__(self, objects: Objects, deep: bool) -> None:
        self.get = objects.get
        self.dropped: set[str] = set()
        """Those whose bytes somebody gave up; their hashes were kept, and that is no fault."""
        self._objects = objects
        self._deep = deep
        self._told: dict[tuple[str, bool], str] = {}

    @property
    def seen(self) -> int:
        """How many have been looked for."""
        return len(self._told)

    def problem(self, named: mentions.Named) -> str:
        """Say what is wrong with a content, or return "": it is not there, or, `deep`, its bytes have another hash."""
        key = named.hash, named.place
        if key not in self._told:
            self._told[key] = self._look(named)
        return self._told[key]

    def _look(self, named: mentions.Named) -> str:
        hash = named.hash
        if not named.place and not self._objects.exists(hash):
            if not self._objects.dropped(hash):
                return str(self._objects.missing(hash))
            self.dropped.add(hash)
        elif self._deep and (damage := care.verify(self._objects, named)):
            return damage.why
        return ""

    def size(self, hash: str) -> int:
        """Return an object's size; `deep`: after its bytes were compared with the hash.

        Raises:
            ObjectMissing, ObjectDropped, ObjectCorrupt: it is not there, or not as it should be.
        """
        if why := self.problem(mentions.Named(hash, "value")):
            raise ObjectCorrupt(why)
        return self._objects.size(hash)


class Audit:
    """Looks for what was changed, taken out or put in since it was written: reads every record once.

    Pools may work meanwhile.

    Args:
        store: the database.
        objects: the object repository.
        signer: the project's.
        deep: compare the bytes of objects with their hashes; otherwise they only have to be there.
    """

    def __init__(self, store: Store, objects: Objects, signer: signing.Signer, deep: bool = False) -> None:
        self._store = store
        self._signer = signer
        self._contents = _Contents(objects, deep)
        self._chains = audit.Chains()
        self.report = Report()
        """What has been looked at so far, without problems: `problems` yields them."""

    def problems(self) -> Iterator[Problem]:
        """Look at everything, and yield what is wrong as it is found."""
        tips = self._tips()  # first: a pool writes its records before; and what nobody uses last: it is written after
        for raw in provenance.stream(self._store):
            yield from self._record(raw)
        for raw in provenance.stream(self._store, superseded=True):
            yield from self._sealed(raw)[1]
        yield from self._chains.close(tips)
        yield from _functions(provenance.all_functions(self._store), self._signer, self._contents, self.report)
        yield from _environments(provenance.all_environments(self._store), self.report)
        self.report.values, self.report.dropped = self._contents.seen, len(self._contents.dropped)

    def _tips(self) -> dict[str, tuple[int, str]]:
        told = provenance.tips(self._store)
        tips = {token: audit.check_tip(token, tip, self._signer) for token, tip in told.items()}
        return {token: tip for token, tip in tips.items() if tip is not None}

    def _sealed(self, raw: bytes) -> tuple[records.Document, list[Problem]]:
        doc, digest = provenance.opened(raw)
        name = str(doc["_id"])
        signature = audit.check_signature(doc, self._signer)
        wrong = [text for text in (audit.check_digest(doc, digest), signature) if text]
        problems = [Problem(name, text) for text in wrong]
        if foreign.FIELD in doc:  # an archive need not have all of a chain
            self.report.imported += 1
            return doc, problems
        return doc, [*problems, *self._chains.add(doc, not signature)]

    def _record(self, raw: bytes) -> Iterator[Problem]:
        self.report.records += 1
        doc, wrong = self._sealed(raw)
        yield from wrong
        try:
            for named in mentions.of_record(doc, self._contents.get):
                if why := self._contents.problem(named):
                    yield Problem(str(doc["_id"]), why)
        except (PilotError, KeyError, TypeError, ValueError) as exc:
            yield Problem(str(doc["_id"]), f"its lists of values cannot be read: {exc}")


def lineage_of(
    store: Store, objects: Objects, signer: signing.Signer, ids: Iterable[str], depth: int | None = None
) -> Report:
    """Verify records and all that went into them: seals, bytes of values, links, functions, environments.

    Args:
        store: the database.
        objects: the object repository; what is named in it is read.
        signer: the project's.
        ids: of records.
        depth: so many links up at most; None: as far as they go.

    Raises:
        ObjectMissing, ObjectCorrupt: a list of inputs that was too long for its record is gone: links end there.
    """
    walk = lineage.ancestors(store, objects.get, ids, depth, LIMIT)
    report = Report(cut=walk.cut)
    checked = _Contents(objects, True)
    functions: set[str] = set()
    environments: set[str] = set()
    names = list(walk.distance)
    for start in range(0, len(names), _PART):
        part = set(names[start : start + _PART])
        docs = []
        for raw in provenance.stream(store, list(part)):
            doc, digest = provenance.opened(raw)
            part.discard(doc["_id"])
            report.records += 1
            report.imported += foreign.FIELD in doc
            if wrong := audit.check_digest(doc, digest):
                report.problems.append(Problem(doc["_id"], wrong))
            if wrong := audit.check_signature(doc, signer):
                report.problems.append(Problem(doc["_id"], wrong))
                continue  # nothing that it says can be relied on
            docs.append(doc)
            texts = audit.check_values(doc, checked.get, checked.size)
            report.problems += [Problem(doc["_id"], text) for text in texts]
            report.problems += _files(doc, checked, report)
            functions |= {doc["function"]} if doc.get("function") else set()
            environments |= {doc["environment"]} if doc.get("environment") else set()
        report.problems += [Problem(name, "there is no such record") for name in sorted(part)]
        report.problems += _links(store, docs, signer, checked, report)
    there = provenance.get_functions(store, functions)
    report.problems += [Problem(f"function {name}", "it is not in the store") for name in functions - there.keys()]
    report.problems += _functions(there.values(), signer, checked, report)
    found = {name: provenance.get_environment(store, name) for name in environments}
    report.problems += [
        Problem(f"environment {name}", "it is not in the store") for name, doc in found.items() if doc is None
    ]
    report.problems += _environments([doc for doc in found.values() if doc is not None], report)
    report.dropped = len(checked.dropped)
    return report


def _files(doc: records.Document, checked: _Contents, report: Report) -> Iterator[Problem]:
    """Check the files and directories that a record's values name."""
    try:
        for named in mentions.of_record(doc, checked.get):
            if named.kind in ("file", "tree"):
                report.values += 1
                if why := checked.problem(named):
                    yield Problem(doc["_id"], why)
    except PilotError:  # a list or a value that names some is gone: that has been told
        return


def _links(
    store: Store, docs: list[records.Document], signer: signing.Signer, checked: _Contents, report: Report
) -> Iterator[Problem]:
    """Check where the inputs of some records came from, and count their values."""
    sources: set[str] = set()
    whole = []
    for doc in docs:
        try:
            inputs, outputs = (records.unpack(doc[kind], checked.get) for kind in ("inputs", "outputs"))
        except PilotError:  # a list of them is gone: that has been told
            continue
        whole.append(doc)
        sources.update(lineage.sources(inputs), [doc["cached_from"]] if "cached_from" in doc else [])
        report.values += len(inputs) + len(outputs)
    found = provenance.get(store, sources, records.VERIFIED_FIELDS)
    parents = {name: None if audit.check_signature(doc, signer) else doc for name, doc in found.items()}
    owners = tasks.get(store, {doc["task"] for doc in parents.values() if doc is not None}, ["official"])
    officials = {name: official_record(owner) for name, owner in owners.items()}
    for doc in whole:
        for text in audit.check_links(doc, parents, officials, checked.get):
            yield Problem(doc["_id"], text)
        if text := audit.check_cached(doc, parents, checked.get):
            yield Problem(doc["_id"], text)


def _functions(
    docs: Iterable[Mapping[str, Any]], signer: signing.Signer, checked: _Contents, report: Report
) -> Iterator[Problem]:
    for doc in docs:
        report.functions += 1
        name = f"function {doc.get('module')}.{doc.get('qualname')} ({doc['_id']})"
        try:
            texts = list(
                audit.check_function(code_from(doc), doc.get("signature"), _signer_of(doc, signer), checked.get)
            )
        except (KeyError, TypeError, AttributeError) as exc:
            texts = [f"its document is spoilt: {exc!r}"]
        yield from (Problem(name, text) for text in texts)


def _signer_of(doc: Mapping[str, Any], signer: signing.Signer) -> signing.Signer | None:
    """Return who signed a document; None if it is of a project whose key is not trusted."""
    if foreign.FIELD not in doc:
        return signer
    try:
        return signer.of(doc[foreign.FIELD]["project"])
    except NotTrusted:
        return None


def _environments(docs: Iterable[Mapping[str, Any]], report: Report) -> Iterator[Problem]:
    for doc in docs:
        report.environments += 1
        yield from (Problem(f"environment {doc['_id']}", text) for text in audit.check_environment(doc))
