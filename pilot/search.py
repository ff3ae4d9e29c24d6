"""Records of a project that fit an expression: to iterate, to count, and as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from importlib import import_module
from typing import Any

from pilot.errors import InvalidInput, PilotError
from pilot.expression import parse, parse_field
from pilot.fields import FIELDS, Field, Home
from pilot.plain import FORM
from pilot.records import Get
from pilot.store import answers, query, schema
from pilot.store.mongo import Store
from pilot.store.query import Query

Document = dict[str, Any]

TABLE = ("id", "task", "attempt", "name", "outcome", "tags", "host", "submitted", "started", "finished", "usage.wall_s")
"""Columns of a table beside the values, unless others are asked for."""


class Search:
    """What `find` returns. Reads nothing before it is asked to, and then as much as is taken.

    It may be used again: then records are read again, while functions, environments and what lies above or below a
    record are looked up the first time only.

    Args:
        store: the database.
        get: reads an object.
        wanted: an expression, or a filter of MongoDB's own; None: all records.
        sort: a field, with ``-`` before it for the largest or latest first.
        limit: at most so many.
        fields: names of fields; then only these are read, and each record is a dict of them.

    Raises:
        ExpressionError: the expression, or a field's name, cannot be read; it points at the character.
        InvalidInput: records cannot be sorted by this field.
    """

    def __init__(
        self, store: Store, get: Get, wanted: str | Mapping[str, Any] | None = None, *, sort: str = "-finished",
        limit: int | None = None, fields: Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        self._store = store
        self._get = get
        self._tree = parse(wanted, datetime.now(UTC)) if isinstance(wanted, str) else None
        self._raw = dict(wanted) if isinstance(wanted, Mapping) else {}
        self._order = answers.Order(parse_field(sort.removeprefix("-")), sort.startswith("-"))
        if self._order.field.home in (Home.FUNCTION, Home.ENVIRONMENT, Home.REMARKS):
            raise InvalidInput(
                f"cannot sort by {self._order.field.name}: only by what stands in the records themselves"
            )
        if limit is not None and limit < 1:
            raise InvalidInput(f"limit {limit!r} is not a number of records above zero")
        self._limit = limit
        self._fields = None if fields is None else [parse_field(name) for name in fields]
        for field in self._fields or ():
            if field.home is Home.REMARKS:
                raise InvalidInput(f"no record has a {field.name}, only its task: `pilot show` shows it")

    def __iter__(self) -> Iterator[Document]:
        """Yield the records, or the fields of each.

        Raises:
            InvalidInput: too much lies above or below a record, or the store does not understand the filter.
            TaskNotFound: a task that the expression names has no record.
        """
        return self._rows(self._limit)

    def count(self) -> int:
        """Return how many records fit, whatever the limit."""
        self.prepare(sorted_=False)
        return answers.count(self._store, self._query.filter)

    def first(self) -> Document | None:
        """Return the first record, or None."""
        return next(self._rows(1), None)

    def ids(self) -> Iterator[str]:
        """Yield the ids of the records, in their order."""
        for doc in self._read(["_id"], self._limit):
            yield doc["_id"]

    def dataframe(self) -> Any:
        """Return a pandas DataFrame with a row for each record.

        Without `fields` it has `TABLE` and a column for each input and output that is plain and small, and for each
        key of those that are dicts: ``outputs.result.energy``.

        Raises:
            PilotError: pandas is not installed.
        """
        try:
            pandas = import_module("pandas")
        except ModuleNotFoundError as exc:
            raise PilotError("cannot make a DataFrame: pandas is not installed here; pip install pandas") from exc
        if self._fields is not None:
            return pandas.DataFrame(list(self), columns=[field.name for field in self._fields])
        return pandas.DataFrame([_flat(doc) for doc in self])

    # -- what it takes ----------------------------------------------------------------------------

    def missing(self, sorted_: bool = True) -> list[str]:
        """Return the names of the indexes that the answer needs and that do not exist yet."""
        needed = self._query.indexes
        if needed is None:
            needed = frozenset(query.sorting(self._order.field) if sorted_ else ())
        there = schema.record_indexes(self._store) if needed else []
        return sorted(needed.difference(there))

    @property
    def reads_all(self) -> bool:
        """Whether no index leads to what fits, so that all records are read until there are enough."""
        return self._query.indexes is None and bool(self._query.filter)

    def prepare(self, sorted_: bool = True) -> None:
        """Make the indexes that are missing; may take minutes for millions of records, once."""
        missing = self.missing(sorted_)
        if missing:
            schema.ensure(self._store, *missing)

    @cached_property
    def _query(self) -> Query:
        if self._tree is None:
            return Query(self._raw, None)
        return query.compiled(self._store, self._get, self._tree, query.value_indexes(self._store))

    def _rows(self, limit: int | None) -> Iterator[Document]:
        if self._fields is None:
            yield from self._read(None, limit)
        else:
            columns = Columns(self._store, self._fields)
            for doc in self._read(columns.paths, limit):
                yield columns.row(doc)

    def _read(self, paths: Sequence[str] | None, limit: int | None) -> Iterator[Document]:
        self.prepare()
        return answers.stream(self._store, answers.cursor(self._store, self._query.filter, self._order, limit, paths))


class Columns:
    """Fields of records as people name them."""

    def __init__(self, store: Store, fields: Sequence[Field]) -> None:
        self._store = store
        self._fields = fields
        self._known: dict[Field, dict[str, str]] = {}

    @property
    def paths(self) -> list[str]:
        """What has to be read of a record."""
        found = ["_id"]
        for field in self._fields:
            if field.of_value:
                found += [f"{field.home}.name", f"{field.home}.value"]
            else:
                found.append(field.dotted if field.home is Home.RECORD else field.home.value)
        return list(dict.fromkeys(found))

    def row(self, doc: Document) -> Document:
        """Return the fields of a record by the names under which they were asked for; None where one has none."""
        return {field.name: self._of(doc, field) for field in self._fields}

    def _of(self, doc: Document, field: Field) -> Any:
        if field.of_value:
            name, *steps = field.path
            entry = next((entry for entry in listed(doc, field.home) if entry["name"] == name), {})
            return _inside(simple(entry.get("value")), steps)
        if field.home is Home.RECORD:
            return _inside(doc, field.path)
        if field not in self._known:
            self._known[field] = query.descriptions(self._store, field)
        return self._known[field].get(doc.get(field.home, ""))


def listed(doc: Document, home: str) -> list[Document]:
    """Return a record's inputs or outputs; none if their list was too long for it."""
    stored = doc.get(home, [])
    return stored if isinstance(stored, list) else []


def _inside(found: Any, steps: Sequence[str]) -> Any:
    for step in steps:
        if isinstance(found, Mapping):
            found = found.get(step)
        elif isinstance(found, list) and step.isdigit() and int(step) < len(found):
            found = found[int(step)]
        else:
            return None
    return found


def simple(tree: Any) -> Any:
    """Return plain data without the forms of `pilot.plain`: NumPy's numbers as numbers, tuples as lists, paths as text.

    Nothing is imported or unpickled for it: of other types the data that stands for them is left.
    """
    if isinstance(tree, list):
        return [simple(item) for item in tree]
    if not isinstance(tree, Mapping):
        return tree
    if FORM not in tree:
        return {key: simple(item) for key, item in tree.items()}
    name, *rest = tree[FORM]
    if name == "complex":
        return complex(*rest)
    return None if name == "ref" else simple(rest[-1])


def _flat(doc: Document) -> Document:
    """Return a record as a row of a table."""
    row = {name: _inside(doc, FIELDS[name].path) for name in TABLE}
    for home in (Home.INPUTS, Home.OUTPUTS):
        for entry in listed(doc, home):
            if "value" in entry:
                _spread(row, f"{home}.{entry['name']}", simple(entry["value"]))
    return row


def _spread(row: Document, name: str, found: Any) -> None:
    if isinstance(found, Mapping):
        for key, item in found.items():
            _spread(row, f"{name}.{key}", item)
    else:
        row[name] = found
