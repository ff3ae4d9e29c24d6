"""What an expression over records is once it is read: a tree of terms. Pure."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from packaging.version import InvalidVersion, Version

from pilot.fields import Field, Home, Type


class Pattern(NamedTuple):
    """What a text is searched for; a regular expression that Python and MongoDB understand alike."""

    regex: str
    any_case: bool = False


@dataclass(frozen=True, slots=True)
class Compare:
    """One field beside a value; `op` as it is written, ``exists`` has no value, ``in`` a list of them."""

    field: Field
    op: str
    value: Any = None


@dataclass(frozen=True, slots=True)
class Walk:
    """What lies above (``up``) or below a record or task in the graph, at most so many links away."""

    up: bool
    start: str
    within: int | None = None


@dataclass(frozen=True, slots=True)
class Holds:
    """Records with an input, or an output, of this hash, which may be shortened."""

    home: Home
    hash: str


@dataclass(frozen=True, slots=True)
class And:
    """All of them."""

    parts: tuple[Tree, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """One of them at least."""

    parts: tuple[Tree, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The others."""

    part: Tree


Tree: TypeAlias = And | Or | Not | Compare | Walk | Holds

ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


def positive(term: Compare) -> Compare | None:
    """Return the opposite of a term with ``!=`` or ``not in``, of others None."""
    opposite = {"!=": "==", "not in": "in"}.get(term.op)
    return None if opposite is None else Compare(term.field, opposite, term.value)


def compares(term: Compare, found: str | None) -> bool:
    """Say whether a term on a text or a version, none of those with an opposite, is true of what was found."""
    op, value = term.op, term.value
    if found is None or op == "exists":
        return found is not None
    if op == "~":
        return re.search(value.regex, found, re.IGNORECASE if value.any_case else 0) is not None
    seen: Any = found
    if term.field.type is Type.VERSION:
        try:
            seen = Version(found)
        except InvalidVersion:
            return False
    if op == "in":
        return seen in value
    return ORDER[op](seen, value) if op in ORDER else bool(seen == value)
