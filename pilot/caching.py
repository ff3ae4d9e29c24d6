"""Looks for the results of equal tasks before a task is placed, and says why there is none.

All that was leased at once is looked up at once, with at most six queries. Nothing is locked: of equal tasks that are
under way at the same time each runs.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pilot import mentions, records, signing
from pilot.cachekey import CODE_FIELDS, LIKE_FIELDS, Keys, difference, keys_of
from pilot.content import Content
from pilot.errors import PilotError, StoreError
from pilot.model import FunctionCode, Input
from pilot.source import file_digest
from pilot.states import Outcome
from pilot.store import caching, provenance
from pilot.store.caching import Run
from pilot.store.mongo import Store
from pilot.store.objects import Objects
from pilot.values import digest

log = logging.getLogger(__name__)

Document = dict[str, Any]

CANDIDATES = 3
"""So many of the latest equal tasks are looked at, until one will do."""

_FIELDS = (*records.VERIFIED_FIELDS, "usage.wall_s")


class Asked(NamedTuple):
    """A task with caching on, verified, its links resolved."""

    task: Document
    inputs: tuple[Input, ...]
    sources: records.Sources
    code: FunctionCode | None
    """Its function; None: it is a command."""


class Lookup:
    """The coordinator's side of the cache.

    Args:
        store: the database.
        objects: the object repository.
        signer: the project's.
        environment: hash of the pool's environment.
        root: the project's directory, where commands run that name no other.
    """

    def __init__(
        self, store: Store, objects: Objects, signer: signing.Signer, environment: str, root: str | os.PathLike[str]
    ) -> None:
        self._store = store
        self._objects = objects
        self._signer = signer
        self._environment = environment
        self._root = root
        self._ensured = False

    def look(self, asked: Sequence[Asked]) -> dict[str, Document]:
        """Return, by task, what its record says of the cache.

        Of a hit these are ``outputs`` and ``cached_from``; a miss has its keys and the reason under ``cache``.

        Raises:
            StoreUnavailable: nothing was found out.
        """
        if not self._ensured:
            caching.ensure(self._store)
            self._ensured = True
        found: dict[str, Document] = {}
        keys: dict[str, Keys] = {}
        for one in asked:
            try:
                keys[one.task["_id"]] = keys_of(*one, self._environment, self._objects.get)
            except StoreError:
                raise
            except PilotError as exc:  # it will not run either
                found[one.task["_id"]] = {"cache": {"miss": f"it could not be looked up: {exc}"}}
        wanted = [one for one in asked if one.task["_id"] in keys]
        try:
            return found | self._look(wanted, keys)
        except (KeyError, TypeError, ValueError, AttributeError) as exc:  # it must not cost the pool
            log.warning("cannot look up %d tasks: somebody has changed a record: %r", len(wanted), exc)
            return found | {task: {"cache": {"miss": f"a record could not be read: {exc!r}"}} for task in keys}

    def _look(self, asked: Sequence[Asked], keys: Mapping[str, Keys]) -> dict[str, Document]:
        found: dict[str, Document] = {}
        runs = caching.runs(self._store, [key.key for key in keys.values()])
        candidates = _Candidates(self._store, self._objects, self._signer, runs)
        unknown: list[Asked] = []
        for one in asked:
            task = one.task["_id"]
            key = keys[task]
            if key.key not in runs:
                unknown.append(one)
                continue
            original, why = self._first(one, candidates, key.key)
            found[task] = _hit(original) if original is not None else _miss(key, why)
        reasons = self._reasons(unknown, keys)
        return found | {task: _miss(keys[task], why) for task, why in reasons.items()}

    def _first(self, one: Asked, candidates: _Candidates, key: str) -> tuple[Document | None, str]:
        """Return the latest record under a key that will do, or why the latest of all does not."""
        first = ""
        for run, original, why in candidates.of(key):
            why = why or self._other_program(one.task["command"], run.record, original)
            if not why:
                return original, ""
            first = first or why
        return None, first

    def _other_program(self, command: Document | None, record: str, original: Document) -> str:
        """Say so if the program that a command would start here is not the one that was recorded; else nothing."""
        if command is None:
            return ""
        name = "/bin/sh" if command["shell"] else command["argv"][0]
        if "/" in name:
            if command["cwd"] is None and os.path.normpath(name) in dict(command["files"]):
                return ""  # it is an input
            path = os.path.join(self._root, command["cwd"] or "", name)
        else:
            path = shutil.which(name, path=dict(command["env"]).get("PATH", os.environ.get("PATH"))) or name
        if file_digest(path) == original["command"]["digest"] != "":
            return ""
        return f"{record} has its result, but the program {path} is not the one that it ran"

    def _reasons(self, unknown: Sequence[Asked], keys: Mapping[str, Keys]) -> dict[str, str]:
        """Return, by task, why nothing equal has run before."""
        if not unknown:
            return {}
        like = {one.task["_id"]: keys[one.task["_id"]].like for one in unknown}
        likes = caching.likes(self._store, like.values(), LIKE_FIELDS)
        hashes = {record["function"] for record in likes.values() if record.get("function")}
        codes = caching.codes(self._store, hashes, CODE_FIELDS) if hashes else {}
        reasons = {}
        for task, inputs, _, code in unknown:
            earlier = likes.get(like[task["_id"]])
            if earlier is None:
                had = "these inputs and caching on" if inputs else "caching on"
                reasons[task["_id"]] = f"no earlier run of {task['name']} had {had}"
            else:
                reasons[task["_id"]] = difference(task, code, earlier, codes.get(earlier.get("function", "")))
        return reasons


def _hit(original: Document) -> Document:
    saved_s = original.get("usage", {}).get("wall_s", 0.0)
    return {"outputs": original["outputs"], "cached_from": original["_id"], "cache": {"saved_s": float(saved_s)}}


def _miss(keys: Keys, why: str) -> Document:
    return {"cache": {"key": keys.key, "like": keys.like, "miss": why}}


class _Candidates:
    """Records whose outputs might be taken, each judged once."""

    def __init__(
        self, store: Store, objects: Objects, signer: signing.Signer, runs: Mapping[str, Sequence[Run]]
    ) -> None:
        self._objects = objects
        self._signer = signer
        self._runs = runs
        self._few = {
            key: [run for run in several if run.outcome is Outcome.SUCCEEDED][:CANDIDATES]
            for key, several in runs.items()
        }
        self._docs = provenance.get(store, [run.record for few in self._few.values() for run in few], _FIELDS)
        self._invalid = caching.invalid(store, [doc["task"] for doc in self._docs.values()])
        self._judged: dict[str, str] = {}

    def of(self, key: str) -> list[tuple[Run, Document, str]]:
        """Return attempts under a key, the latest first, each with its record and why it will not do, if so."""
        few = self._few[key]
        if not few:
            last = self._runs[key][0]
            return [(last, {}, f"its last run, {last.record}, did not succeed: {last.outcome}")]
        return [(run, self._docs.get(run.record, {}), self._judge(key, run.record)) for run in few]

    def _judge(self, key: str, record: str) -> str:
        if record not in self._judged:
            self._judged[record] = self._refusal(key, self._docs.get(record))
        why = self._judged[record]
        return f"{record} has its result, but {why}" if why else ""

    def _refusal(self, key: str, doc: Document | None) -> str:
        """Return why a record's outputs must not be taken; empty if they may."""
        if doc is None:
            return "was deleted a moment ago"
        try:
            records.verify(doc, self._signer)
        except PilotError as exc:
            return f"it is not trusted: {exc}"
        if doc["cache"]["key"] != key or doc["outcome"] != Outcome.SUCCEEDED:
            return "somebody changed it a moment ago"
        if doc["task"] in self._invalid:
            said = self._invalid[doc["task"]]
            return f"it was invalidated{f': {said}' if said else ''}"
        outputs = doc["outputs"]
        try:
            for named in mentions.of_record({"outputs": outputs}, self._objects.get):
                if named.place:
                    what = Content(named.hash, 0, tree=named.kind == "tree")
                    self._objects.files.locate(what, named.hash[:10], in_place=True)
                elif not self._objects.exists(named.hash):
                    return f"the object {named.hash} of its outputs is gone"
            for entry in records.unpack(outputs, self._objects.get):
                blob = records.blob_from(entry)
                if blob.data is not None and digest(blob.data) != blob.hash:
                    return f"its output {entry['name']!r} is not what was signed: somebody changed it"
        except PilotError as exc:
            return f"its outputs cannot be read: {exc}"
        return ""
