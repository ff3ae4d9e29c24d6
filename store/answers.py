"""Answers to queries over records: sorted, as a stream, or counted."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import pymongo
from bson import json_util

from pilot.errors import InvalidInput, StoreRejected
from pilot.fields import FIELDS, Field
from pilot.plain import FORM
from pilot.store.mongo import Store, translating, words
from pilot.store.tasks import Document

ANSWER_S = 600.0
"""How long the store may take for one part of an answer: without an index it reads all records for it."""

_PART = 100
"""Records that are fetched at once: the first ones of an answer are there early."""


class Order(NamedTuple):
    """By what an answer is sorted."""

    field: Field
    down: bool


NEWEST = Order(FIELDS["finished"], True)


def raw(text: str) -> Document:
    """Read a filter of MongoDB's own, in its extended JSON: a time is ``{"$date": "2026-03-01T12:00:00Z"}``.

    Raises:
        InvalidInput: it is not a JSON object.
    """
    try:
        found: Any = json_util.loads(text, json_options=json_util.JSONOptions(tz_aware=True))
    except (ValueError, TypeError, KeyError, ArithmeticError) as exc:
        raise InvalidInput(f"cannot read the filter {text!r}: it is not JSON: {exc}") from exc
    if not isinstance(found, dict):
        raise InvalidInput(f"the filter {text!r} is not a JSON object")
    return found


def cursor(
    store: Store, filter: Document, order: Order, limit: int | None = None, fields: Sequence[str] | None = None
) -> Any:
    """Return the driver's cursor over records that fit a filter.

    Args:
        store: the database.
        filter: of `query.compiled`, or MongoDB's own.
        order: records without the field come first, or last if it goes down; sorted by a value, always last.
        limit: at most so many.
        fields: parts of records that are read; None: all.
    """
    if order.field.of_value:
        return store.provenance.aggregate(_sorted_by_value(filter, order, limit, fields), allowDiskUse=True)
    path, direction = order.field.dotted, -1 if order.down else 1
    found = store.provenance.find(filter, fields, sort=[(path, direction)], limit=limit or 0)
    return found.allow_disk_use(True)


def _sorted_by_value(filter: Document, order: Order, limit: int | None, fields: Sequence[str] | None) -> list[Document]:
    """Return the pipeline that sorts by what stands in one entry of a list."""
    name, *steps = order.field.path
    entries = f"${order.field.home}"
    listed = {"$cond": [{"$isArray": entries}, entries, []]}
    here = {"$filter": {"input": listed, "cond": {"$eq": ["$$this.name", {"$literal": name}]}}}
    value: Any = {"$getField": {"field": "value", "input": {"$first": here}}}
    for step in steps:
        item = {"$arrayElemAt": [_list_of("$$v"), int(step)]} if step.isdigit() else None
        key = {"$getField": {"field": step, "input": "$$v"}}
        either = key if item is None else {"$cond": [{"$isArray": _list_of("$$v")}, item, key]}
        value = {"$let": {"vars": {"v": value}, "in": either}}
    form = {"$getField": {"field": FORM, "input": "$$v"}}
    number = {"$cond": [{"$isArray": form}, {"$arrayElemAt": [form, -1]}, "$$v"]}
    by = {"$let": {"vars": {"v": value}, "in": number}}
    none = {"$lte": ["$_by", None]}
    stages: list[Document] = [{"$match": filter}, {"$set": {"_by": by}}, {"$set": {"_none": none}}]
    stages.append({"$sort": {"_none": 1, "_by": -1 if order.down else 1}})
    stages += [{"$limit": limit}] if limit else []
    return [*stages, {"$unset": ["_by", "_none"]} if fields is None else {"$project": dict.fromkeys(fields, 1)}]


def _list_of(value: str) -> Document:
    """Return the list that a value is, or that its form as a tuple holds."""
    form = {"$getField": {"field": FORM, "input": value}}
    return {"$cond": [{"$isArray": form}, {"$arrayElemAt": [form, 1]}, value]}


def stream(store: Store, found: Any) -> Iterator[Document]:
    """Yield what a cursor finds, as it comes.

    Raises:
        InvalidInput: the store does not understand the filter.
        StoreUnavailable: it was lost on the way, or took longer than `ANSWER_S` for a part.
    """
    with found:
        while True:
            with _answering(store):
                part = list(itertools.islice(found, _PART))
            if not part:
                return
            yield from part


def count(store: Store, filter: Document) -> int:
    """Return how many records fit a filter."""
    with _answering(store):
        return store.provenance.count_documents(filter)


@contextmanager
def _answering(store: Store) -> Iterator[None]:
    """Wait long enough for the answer; what the store refuses is a user's filter."""
    try:
        with translating("find records", store.where), pymongo.timeout(ANSWER_S):
            yield
    except StoreRejected as exc:
        raise InvalidInput(f"the store does not understand the filter: {words(exc.__cause__ or exc)}") from exc
