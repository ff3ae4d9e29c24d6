"""What checks find: one line each, for people and as JSON. `pilot doctor` and `pilot site check` speak so."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Verdict(StrEnum):
    """How a check went."""

    OK = "ok"
    """As it should be."""
    NOTE = "note"
    """Worth knowing; nothing has to be done. What was not tried is such a one, too."""
    WRONG = "wrong"
    """Will not work; the text says what to do."""


class Finding(NamedTuple):
    """What one check found."""

    check: str
    verdict: Verdict
    text: str


def ok(check: str, text: str) -> Finding:
    """Return that all is well."""
    return Finding(check, Verdict.OK, text)


def note(check: str, text: str) -> Finding:
    """Return what is worth knowing."""
    return Finding(check, Verdict.NOTE, text)


def wrong(check: str, text: str) -> Finding:
    """Return what is wrong, with what to do."""
    return Finding(check, Verdict.WRONG, text)
