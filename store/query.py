"""Queries over records: a checked expression as MongoDB's filter, and the index that serves it.

What the filter cannot say is looked up first: functions and environments, which are few, by reading them; what lies
above and below a record, by walking there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from packaging.utils import canonicalize_name

from pilot.errors import InvalidInput, TaskNotFound
from pilot.fields import FIELDS, Field, Home
from pilot.plain import FORM
from pilot.records import Get, unpack
from pilot.store import lineage, remarks, schema
from pilot.store.mongo import Store, translating
from pilot.store.tasks import Document
from pilot.terms import And, Compare, Holds, Not, Or, Tree, Walk, compares, positive

_PREFIX = re.compile(r"\^(?:\\\W|[^\\\W])[^|]*")
"""A regular expression that says how what it finds begins: an index serves it."""

_UNSERVED = ("!=", "not in", "exists")


class Query(NamedTuple):
    """A filter over records."""

    filter: Document
    indexes: frozenset[str] | None
    """Names of the indexes that lead to what it finds; none: `_id` does; None: all records have to be read."""


def compiled(store: Store, get: Get, tree: Tree, values: Sequence[str] = ()) -> Query:
    """Return an expression as a filter.

    Args:
        store: the database, in which functions, environments and lineage are looked up.
        get: reads an object.
        tree: the expression.
        values: names of the indexes over values that there are; see `value_indexes`.

    Raises:
        InvalidInput: too much lies above or below a record, or a shortened hash fits several; the message tells how to
            narrow it.
        TaskNotFound: no record of a task, or a shortened id fits several.
        ObjectMissing, ObjectCorrupt: a list of inputs is gone.
    """
    served = _served(tree, values)
    return Query(_Compiler(store, get).filter(tree), None if served is None else served[1])


class _Compiler:
    """Makes filters of the parts of a tree."""

    def __init__(self, store: Store, get: Get) -> None:
        self._store = store
        self._get = get

    def filter(self, tree: Tree) -> Document:
        match tree:
            case And(parts):
                return {"$and": [self.filter(part) for part in parts]}
            case Or(parts):
                return {"$or": [self.filter(part) for part in parts]}
            case Not(part):
                return {"$nor": [self.filter(part)]}
            case Walk():
                return {"_id": {"$in": self._walked(tree)}}
            case Holds():
                return self._holders(tree)
        opposite = positive(tree)
        if opposite is None:
            return self._compare(tree)
        others: Document = {"$nor": [self._compare(opposite)]}
        if tree.field.name in ("tags", "group"):  # there are none rather than that they are not there
            return others
        return {"$and": [self._compare(Compare(tree.field, "exists")), others]}

    def _compare(self, term: Compare) -> Document:
        match term.field.home:
            case Home.FUNCTION:
                return {"function": {"$in": self._named(term)}}
            case Home.ENVIRONMENT:
                return {"environment": {"$in": self._named(term)}}
            case Home.REMARKS:
                return {
                    "_id": {"$in": remarks.records(self._store, {term.field.dotted: _condition(term.op, term.value)})}
                }
            case Home.RECORD:
                return self._tagged(term) if term.field.name == "tags" else _on_record(term)
        return _on_value(term)

    def _tagged(self, term: Compare) -> Document:
        """Ask records for their tags, but where they were changed later, which are few, the tasks."""
        first = _on_record(term)
        changed = remarks.records(self._store, {"retagged": True})
        if not changed:
            return first
        now = remarks.records(self._store, {"retagged": True, **first})
        return {"$or": [{"$and": [first, {"_id": {"$nin": changed}}]}, {"_id": {"$in": now}}]}

    def _named(self, term: Compare) -> list[str]:
        """Return the hashes of those functions or environments of which a term is true."""
        return [
            digest
            for digest, texts in _described(self._store, term.field)
            if any(compares(term, text) for text in texts)
        ]

    def _walked(self, walk: Walk) -> list[str]:
        starts = _records_of(self._store, walk.start)
        way = lineage.ancestors if walk.up else lineage.descendants
        found = way(self._store, self._get, starts, walk.within, lineage.LIMIT)
        if found.cut == "limit":
            term = "ancestor of" if walk.up else "descends from"
            raise InvalidInput(
                f"more than {lineage.LIMIT:,} records are {'above' if walk.up else 'below'} {walk.start!r}, too "
                f"many: say how far to go ({term} {walk.start} within 3), or begin nearer to what is looked for"
            )
        return [name for name, distance in found.distance.items() if distance]

    def _holders(self, term: Holds) -> Document:
        used, digest = term.home is Home.INPUTS, term.hash
        schema.ensure(self._store, *(("used", "joins") if used else ("made",)))
        known = _hashes(self._store, term.home, digest)
        joins = []
        packed: Document = {"inputs.object": {"$type": "string"}}
        with translating("read lists of inputs", self._store.where):
            for doc in self._store.provenance.find(packed, ["inputs"]) if used else ():
                for entry in unpack(doc["inputs"], self._get):
                    if entry["hash"].startswith(digest):
                        known.add(entry["hash"])
                        joins.append(doc["_id"])
        if len(known) > 1:
            raise InvalidInput(
                f"{digest!r} fits several values ({', '.join(sorted(known)[:3])}, …): give more of the hash"
            )
        inline: Document = {f"{term.home}.hash": {"$in": sorted(known)}}
        return {"$or": [inline, {"_id": {"$in": joins}}]} if joins else inline


def _hashes(store: Store, home: Home, beginning: str) -> set[str]:
    """Return hashes of inputs or outputs that begin so: more than one if there are several, not all of them."""
    found: set[str] = set()
    with translating("look for a value", store.where):
        for _ in range(2):
            bounds: Document = {"$gte": beginning, "$lt": beginning + "g", "$nin": sorted(found)}
            doc = store.provenance.find_one({home: {"$elemMatch": {"hash": bounds}}}, [f"{home}.hash"])
            if doc is None:
                break
            hashes = {entry["hash"] for entry in doc[home]}
            found |= {digest for digest in hashes if digest.startswith(beginning)}
    return found


@translating("look for a record")
def _records_of(store: Store, text: str) -> list[str]:
    """Return the ids of the records that are meant: one, or all of a task, whose id may be shortened.

    Raises:
        TaskNotFound: none, or of several tasks.
    """

    def first(least: str, below: str, limit: int) -> list[str]:
        found = store.provenance.find({"_id": {"$gte": least, "$lt": below}}, ["_id"], sort=[("_id", 1)], limit=limit)
        return [doc["_id"] for doc in found]

    if ":" in text:
        exact = store.provenance.find_one({"_id": text}, ["_id"])
        if exact is None:
            raise TaskNotFound(f"there is no record {text!r} in this project; `pilot find` lists them")
        return [text]
    if not (every := first(f"{text}:", f"{text};", 0)) and (one := first(text, text + "\uffff", 1)):
        task = one[0].rpartition(":")[0]
        if other := first(f"{task};", text + "\uffff", 1):
            raise TaskNotFound(
                f"{text!r} fits several tasks ({task}, {other[0].rpartition(':')[0]}, …): give more of it"
            )
        every = first(f"{task}:", f"{task};", 0)
    if not every:
        raise TaskNotFound(f"there is no record of a task {text!r} in this project; `pilot find` lists them")
    return every


# -- terms ----------------------------------------------------------------------------------------


def descriptions(store: Store, field: Field) -> dict[str, str]:
    """Return what each function or environment that has it says of a field, by hash."""
    one = field.home is Home.FUNCTION  # the others are the same in other words
    return {digest: texts[0] if one else ", ".join(texts) for digest, texts in _described(store, field) if texts}


def _described(store: Store, field: Field) -> Iterator[tuple[str, list[str]]]:
    """Yield the hash of each function or environment, and what it says of a field; functions have a long name too."""
    functions = field.home is Home.FUNCTION
    collection = store.functions if functions else store.environments
    with translating("read functions and environments", store.where):
        for doc in list(collection.find({}, ["module", field.dotted] if functions else [field.path[0]])):
            found: Any = doc
            for step in field.path:
                found = found.get(step) if isinstance(found, Mapping) else None
            if found is None and field.path[0] == "packages":  # typing_extensions is typing-extensions
                wanted, packages = canonicalize_name(".".join(field.path[1:])), doc.get("packages", {})
                found = next((packages[name] for name in packages if canonicalize_name(name) == wanted), None)
            texts = [str(one) for one in found] if isinstance(found, list) else [] if found is None else [str(found)]
            yield doc["_id"], [*texts, f"{doc['module']}.{found}"] if texts and field.name == "function" else texts


def _condition(op: str, value: Any) -> Document:
    match op:
        case "==":
            return {"$type": "null"} if value is None else {"$eq": value}
        case "in":
            return {"$in": value}
        case "~":
            return {"$regex": value.regex, "$options": "i" if value.any_case else ""}
        case "exists":
            return {"$exists": True}
    return {{"<": "$lt", "<=": "$lte", ">": "$gt", ">=": "$gte"}[op]: value}


def _on_record(term: Compare) -> Document:
    if term.field.name == "task" and term.op in ("==", "in"):  # the ids of a task's records begin with its own
        tasks = term.value if term.op == "in" else [term.value]
        ranges: list[Document] = [{"_id": {"$gte": f"{task}:", "$lt": f"{task};"}} for task in tasks]
        return {"$or": ranges} if len(ranges) > 1 else ranges[0]
    return {term.field.dotted: _condition(term.op, term.value)}


def _on_value(term: Compare) -> Document:
    """Return a filter on an input or output, in any of the forms in which plain data is kept (`pilot.plain`)."""
    field, op, value = term.field, term.op, term.value
    name, *steps = field.path
    if op == "in":
        return {"$or": [_on_value(Compare(field, "==", one)) for one in value]}
    named: Document = {f"{field.home}.name": name}
    if op == "exists" and not steps:
        return named
    condition = _condition(op, value)
    found: list[Document] = []
    for key in ways(steps, field.name):
        found.append({key: condition})
        if op == "exists":
            continue
        # Where a path ends in the number of an item, the server does not look at the items of that item by itself.
        if steps and steps[-1].isdigit():
            found.append({key: {"$elemMatch": condition}})
        found.append({f"{key}.{FORM}.0": {"$in": ["tuple", "path"]}, f"{key}.{FORM}.1": condition})
        found.append({f"{key}.{FORM}.0": "tuple", f"{key}.{FORM}.1": {"$elemMatch": condition}})
        if isinstance(value, int | float):
            found.append({f"{key}.{FORM}.0": "numpy", f"{key}.{FORM}.2": condition})
    entries: list[Document] = [{field.home: {"$elemMatch": {"name": name, **one}}} for one in found]
    # That the name is in the list says nothing new, but is what an index over values asks for.
    return {**named, "$or": entries} if len(entries) > 1 else {**named, **entries[0]}


def ways(steps: Sequence[str], name: str) -> list[str]:
    """Return the paths at which these steps into a value end; an item may be that of a list or of a tuple."""
    found = ["value"]
    for step in steps:
        found = [f"{way}.{one}" for way in found for one in ([step, f"{FORM}.1.{step}"] if step.isdigit() else [step])]
        if len(found) > 16:
            raise InvalidInput(f"{name} asks for items of items more than four deep, which is too much")
    return found


# -- indexes --------------------------------------------------------------------------------------

_EQUAL, _RANGE = "one value", "values in a range"
_BEST = (
    "used", "made", _EQUAL, "tags", "name", "function", "exception.type", "host", "job", "pilot",
    _RANGE, "environment", "outcome", "submitted", "started", "finished",
)  # fmt: skip
"""Indexes that terms lead to, those that are likely to find least first."""


def _served(tree: Tree, values: Sequence[str]) -> tuple[int, frozenset[str]] | None:
    """Return the indexes that lead to what a tree finds, with a number that is small if they lead to little."""
    match tree:
        case Walk():
            return -1, frozenset()
        case Holds(home):
            name = "used" if home is Home.INPUTS else "made"
            return _BEST.index(name), frozenset([name])
        case And(parts):
            return min(filter(None, (_served(part, values) for part in parts)), default=None, key=lambda one: one[0])
        case Or(parts):
            every = [_served(part, values) for part in parts]
            some = [one for one in every if one is not None]
            if len(some) < len(every):
                return None
            return max(rank for rank, _ in some), frozenset[str]().union(*(names for _, names in some))
        case Not():
            return None
    field, op = tree.field, tree.op
    if op in _UNSERVED or (op == "~" and (tree.value.any_case or not _PREFIX.fullmatch(tree.value.regex))):
        return None
    if field.name in ("id", "group") or (field.name == "task" and op in ("==", "in")):
        return -1, frozenset()
    if field.of_value:
        over = next((name for name in values if f"{field.plain_name}.".startswith(f"{name}.")), None)
        rank = _BEST.index(_EQUAL if op in ("==", "in") else _RANGE)
        return None if over is None else (rank, frozenset([over]))
    over = index_of(field)
    return None if over is None else (_BEST.index(over), frozenset([over]))


def index_of(field: Field) -> str | None:
    """Return the name of the index over a field of all records, if one can be made."""
    if field.home is Home.FUNCTION or field.name == "function.hash":
        return "function"
    if field.home is Home.ENVIRONMENT:
        return "environment"
    return field.name if field.home is Home.RECORD and field.name in schema.RECORD_INDEXES else None


def sorting(field: Field) -> list[str]:
    """Return the index that has all records in the order of a field, if one can be made."""
    model = schema.RECORD_INDEXES.get(field.name)
    return [field.name] if model is not None and "partialFilterExpression" not in model.document else []


def value_indexes(store: Store) -> list[str]:
    """Return the names of the indexes over values."""
    return [name for name in schema.record_indexes(store) if name.startswith((f"{Home.INPUTS}.", f"{Home.OUTPUTS}."))]


def add_index(store: Store, field: Field) -> None:
    """Make the index that serves queries on a field, if there is none; may take minutes for millions of records.

    Raises:
        InvalidInput: there is none for this field.
    """
    if field.of_value:
        if any(step.isdigit() for step in field.path[1:]):
            raise InvalidInput(f"{field.name} is an item of a list: make an index over the list itself")
        schema.make(store, [schema.value_index(field)])
        return
    name = index_of(field)
    if name is None:
        able = sorted({other for one in FIELDS.values() if (other := index_of(one))})
        raise InvalidInput(f"{field.name} has no index; {', '.join(able)}, inputs.NAME and outputs.NAME can have one")
    schema.ensure(store, name)
