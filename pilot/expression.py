"""The language in which records are asked for: a text becomes a checked tree. Pure.

    expression = and {"or" and}          and = not {"and" not}          not = "not" not | "(" expression ")" | term
    term = FIELD ("==" | "!=" | "<" | "<=" | ">" | ">=") VALUE | FIELD ["not"] "in" "[" VALUE {"," VALUE} "]"
         | FIELD "~" PATTERN | FIELD "exists"
         | ("descends" "from" | "ancestor" "of") ID ["within" N] | ("uses" | "makes") "value" HASH

What a VALUE may be depends on what the FIELD holds. A term is true only of a record that has the field.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

from packaging.version import InvalidVersion, Version

from pilot.errors import ExpressionError, InvalidInput
from pilot.fields import CHOICES, NAME, Field, Home, Type, field_of, near
from pilot.resources import parse_duration, parse_size
from pilot.terms import ORDER, And, Compare, Holds, Not, Or, Pattern, Tree, Walk


def parse(text: str, now: datetime) -> Tree:
    """Read an expression.

    Args:
        text: the expression.
        now: from which ``2d`` counts back (UTC).

    Raises:
        ExpressionError: it cannot be read; it points at the character.
    """
    return _Parser(text, now).whole()


def parse_field(text: str) -> Field:
    """Read the name of one field.

    Raises:
        ExpressionError: there is none of this name.
    """
    return _Parser(text, datetime.max).only_field()


# -- reading --------------------------------------------------------------------------------------

_SPACE = re.compile(r"\s*")
_WORD = re.compile(r"[A-Za-z_]\w*")
_OP = re.compile(r"==|!=|<=|>=|<|>|~|(?:in|exists)\b|not\s+in\b")
_QUOTED = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'", re.DOTALL)
_BARE = re.compile(r"[^\s()\[\],\"']+")
_REGEX = re.compile(r"/((?:[^/\\]|\\.)+)/(i?)(?![\w/])", re.DOTALL)
_INTEGER = re.compile(r"[+-]?\d+")
_FLOAT = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_HASH = re.compile(r"[0-9a-f]{6,64}")
_ATOMS = {"true": True, "false": False, "null": None}
_LINEAGE = {"descends": "from", "ancestor": "of", "uses": "value", "makes": "value"}
_HINTS = {
    "=": "write == to compare", "&": "write and", "|": "write or", "!": "write not", "IN": "write in",
    "AND": "write and", "OR": "write or", "NOT": "write not", "is": "write ==", "like": "write ~",
}  # fmt: skip
_OPS = "==, !=, <, <=, >, >=, ~, in, not in or exists"
_DEEPEST = 40  # MongoDB takes 100 levels, and each of ours is two of its


class _Parser:
    """Walks over one text from left to right; `at` is where it stands."""

    def __init__(self, text: str, now: datetime) -> None:
        self._text = text
        self._now = now
        self._at = 0
        self._depth = 0

    def whole(self) -> Tree:
        tree = self._or()
        if not self._ended():
            self._fail(f"expected and, or, or the end{self._hint()}")
        return tree

    def only_field(self) -> Field:
        word = _WORD.match(self._text, self._skip())
        if word is None:
            self._fail("expected the name of a field")
        field = self._field(word)
        if not self._ended():
            self._fail("expected nothing after the name of a field")
        return field

    # -- logic ------------------------------------------------------------------------------------

    def _or(self) -> Tree:
        parts = [self._and()]
        while self._keyword("or"):
            parts.append(self._and())
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def _and(self) -> Tree:
        parts = [self._not()]
        while self._keyword("and"):
            parts.append(self._not())
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def _not(self) -> Tree:
        begin = self._skip()
        self._depth += 1
        if self._depth > _DEEPEST:
            self._fail(f"more than {_DEEPEST} levels of parentheses and not", begin)
        if self._keyword("not"):
            tree: Tree = Not(self._not())
        elif self._symbol("("):
            tree = self._or()
            if not self._symbol(")"):
                self._fail("expected ) to close the one at character " + str(begin + 1) + self._hint())
        else:
            tree = self._term()
        self._depth -= 1
        return tree

    # -- terms ------------------------------------------------------------------------------------

    def _term(self) -> Tree:
        begin = self._skip()
        word = _WORD.match(self._text, begin)
        if word is None:
            self._fail(f"expected a field, not or ({self._hint()}")
        if word[0] in _LINEAGE and not self._text.startswith((".", "["), word.end()):
            self._at = word.end()
            return self._lineage(word[0])
        field = self._field(word)
        self._skip()
        op = _OP.match(self._text, self._at)
        if op is None:
            self._fail(f"expected {_OPS} after {field.name}{self._hint()}")
        name, here = " ".join(op[0].split()), self._at
        self._at = op.end()
        if name == "exists":
            return Compare(field, name)
        if name == "~":
            if field.type not in (Type.TEXT, Type.VERSION, Type.VALUE):
                self._fail(f"{field.name} is a {field.type}: ~ is for text", here)
            return Compare(field, name, self._pattern())
        if name in ("in", "not in"):
            return Compare(field, name, self._list(field))
        if field.type is Type.TIME and name not in ORDER:
            self._fail(f"{field.name} is a time, to the millisecond: compare it with <, <=, > or >=", here)
        begin = self._skip()
        value = self._value(field)
        if name in ORDER and (value is None or isinstance(value, bool | list)):
            self._fail(f"{name} compares numbers and texts", begin)
        return Compare(field, name, value)

    def _field(self, first: re.Match[str]) -> Field:
        begin, self._at = first.start(), first.end()
        steps = [first[0]]
        while True:
            if self._text.startswith(".", self._at):
                self._at += 1
                steps.append(self._quoted() or self._found(NAME, "expected a name after the dot, perhaps in quotes"))
            elif self._text.startswith("[", self._at):
                self._at += 1
                steps.append(self._found(NAME, "expected the number of an item"))
                if not self._symbol("]"):
                    self._fail("expected ]")
            else:
                break
        if any("." in step or "\0" in step or step.startswith("$") for step in steps[2:]):
            self._fail("inside of a value, keys with a dot or a $ cannot be asked for", begin)
        try:
            return field_of(tuple(steps), self._text[begin : self._at])
        except InvalidInput as exc:
            raise ExpressionError(str(exc), self._text, begin) from exc

    def _lineage(self, word: str) -> Tree:
        second = _LINEAGE[word]
        if not self._keyword(second):
            self._fail(f"expected {second} after {word}: {word} {second} {'HASH' if second == 'value' else 'ID'}")
        begin = self._skip()
        if second == "value":
            digest = self._text_here("the hash of a value")
            if not _HASH.fullmatch(digest):
                self._fail(f"{digest!r} is not a hash, or the first 6 of its 64 hexadecimal digits", begin)
            return Holds(Home.INPUTS if word == "uses" else Home.OUTPUTS, digest)
        start, within = self._text_here("the id of a task or record"), None
        if self._keyword("within"):
            begin = self._skip()
            number = self._text_here("a number of links")
            if not number.isascii() or not number.isdigit() or not 0 < int(number) < 1 << 31:
                self._fail("expected a number of links above zero", begin)
            within = int(number)
        return Walk(word == "ancestor", start, within)

    # -- values -----------------------------------------------------------------------------------

    def _list(self, field: Field) -> list[Any]:
        begin = self._skip()
        if not self._symbol("["):
            self._fail("expected [ and values, with commas between")
        found = []
        while True:
            if field.type is Type.TIME:
                self._fail(f"{field.name} is a time: compare it with <, <=, > or >=", begin)
            found.append(self._value(field))
            if self._symbol("]"):
                return found
            if not self._symbol(","):
                self._fail("expected , or ]")

    def _value(self, field: Field) -> Any:
        begin = self._skip()
        if field.type is Type.VALUE:
            return self._literal()
        text = self._text_here(f"what to compare {field.name} with")
        try:
            return self._read(field, text)
        except (InvalidInput, InvalidVersion, ValueError, OverflowError) as exc:
            raise ExpressionError(f"{field.name} is {_EXPECTED[field.type]}; {exc}", self._text, begin) from exc

    def _read(self, field: Field, text: str) -> Any:
        """Return what a text means beside a field that says what it holds."""
        match field.type:
            case Type.NUMBER:
                return _number(text)
            case Type.SECONDS:
                return _number(text) if _FLOAT.fullmatch(text) else parse_duration(text, field.name)
            case Type.BYTES:
                return _number(text) if _FLOAT.fullmatch(text) else parse_size(text, field.name)
            case Type.TIME:
                return self._moment(field, text)
            case Type.VERSION:
                return Version(text)
            case _:
                choices = CHOICES.get(field.name)
                if choices and text not in choices:
                    raise InvalidInput(f"{text!r} is none of {', '.join(choices)}{near(text, list(choices))}")
                return text

    def _moment(self, field: Field, text: str) -> datetime:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            if not text[-1:].isalpha():
                raise InvalidInput(f"{text!r} is neither") from None
            return self._now - timedelta(seconds=parse_duration(text, field.name))
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)

    def _literal(self) -> Any:
        """Read a value that says itself what it is: a text is quoted."""
        begin = self._skip()
        quoted = self._quoted()
        if quoted is not None:
            return quoted
        if self._symbol("["):
            self._depth += 1
            if self._depth > _DEEPEST:
                self._fail(f"more than {_DEEPEST} levels", begin)
            found: list[Any] = []
            while not self._symbol("]"):
                if found and not self._symbol(","):
                    self._fail("expected , or ]")
                found.append(self._literal())
            self._depth -= 1
            return found
        bare = self._found(_BARE, "expected a number, a text in quotes, true, false, null or a list")
        if bare in _ATOMS:
            return _ATOMS[bare]
        try:
            return _number(bare)
        except InvalidInput as exc:
            raise ExpressionError(f"{bare!r} is no number; a text is written in quotes", self._text, begin) from exc

    def _pattern(self) -> Pattern:
        begin, found = self._skip(), None
        if self._text.startswith("/", begin):
            found = _REGEX.match(self._text, begin)
            if found is None:
                self._fail("a regular expression ends with /, or with /i for any case", begin)
            self._at = found.end()
            pattern = Pattern(found[1], bool(found[2]))
            begin += 1
        else:
            pattern = Pattern(glob(self._text_here('a pattern: "eos*" or /^eos/')))
        try:
            re.compile(pattern.regex)
        except (re.error, OverflowError, RecursionError) as exc:
            place = begin + (getattr(exc, "pos", None) or 0) if found else begin
            raise ExpressionError(f"not a pattern: {exc}", self._text, place) from exc
        return pattern

    # -- characters -------------------------------------------------------------------------------

    def _skip(self) -> int:
        space = _SPACE.match(self._text, self._at)
        self._at = space.end() if space else self._at
        return self._at

    def _ended(self) -> bool:
        return self._skip() == len(self._text)

    def _keyword(self, word: str) -> bool:
        found = _WORD.match(self._text, self._skip())
        if found is None or found[0] != word:
            return False
        self._at = found.end()
        return True

    def _symbol(self, symbol: str) -> bool:
        if not self._text.startswith(symbol, self._skip()):
            return False
        self._at += len(symbol)
        return True

    def _found(self, pattern: re.Pattern[str], expected: str) -> str:
        found = pattern.match(self._text, self._at)
        if found is None:
            self._fail(f"{expected}{self._hint()}")
        self._at = found.end()
        return found[0]

    def _text_here(self, what: str) -> str:
        """Read a text that needs no quotes."""
        self._skip()
        quoted = self._quoted()
        return self._found(_BARE, f"expected {what}") if quoted is None else quoted

    def _quoted(self) -> str | None:
        if not self._text.startswith(('"', "'"), self._at):
            return None
        found = _QUOTED.match(self._text, self._at)
        if found is None:
            self._fail("a text ends with the quote it began with, and this one does not")
        self._at = found.end()
        return re.sub(r"\\(.)", r"\1", found[0][1:-1], flags=re.DOTALL)

    def _hint(self) -> str:
        """Say what another language's word is called here."""
        word = _BARE.match(self._text, self._at)
        for other in () if word is None else (word[0], word[0][:1]):
            if _HINTS.get(other):
                return f"; {_HINTS[other]}"
        return ""

    def _fail(self, reason: str, position: int | None = None) -> NoReturn:
        raise ExpressionError(reason, self._text, self._at if position is None else position)


_EXPECTED = {
    Type.TEXT: "a text", Type.NUMBER: "a number", Type.SECONDS: "a number of seconds, or a duration",
    Type.BYTES: "a number of bytes, or a size", Type.TIME: 'a time: "2026-03-01T12:00", or so long ago: 2d',
    Type.VERSION: "a version",
}  # fmt: skip


def _number(text: str) -> int | float:
    if _INTEGER.fullmatch(text) and len(text) < 20 and -(1 << 63) <= int(text) < 1 << 63:
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    raise InvalidInput(f"{text!r} is none")


def glob(pattern: str) -> str:
    """Return the regular expression of a pattern in which * is any text, ? one character and [abc] one of those."""
    parts, rest = [], pattern
    while rest:
        one_of = re.match(r"\[(!?)([^\]]+)\]", rest)
        if one_of is not None:
            inside = re.sub(r"([\\\[\]^&~|])", r"\\\1", one_of[2])
            parts.append(f"[{'^' if one_of[1] else ''}{inside}]")
            rest = rest[one_of.end() :]
            continue
        parts.append({"*": r"[\s\S]*", "?": r"[\s\S]"}.get(rest[0]) or re.escape(rest[0]))
        rest = rest[1:]
    if parts and parts[-1] == r"[\s\S]*":
        return "^" + "".join(parts[:-1])
    return "^" + "".join(parts) + r"\Z"
