"""The language in which records are asked for: what it means, and where it says that something is wrong."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from pilot.errors import ExpressionError, InvalidInput
from pilot.expression import glob, parse, parse_field
from pilot.fields import FIELDS, Field, Home
from pilot.terms import And, Compare, Holds, Not, Or, Pattern, Walk

NOW = datetime(2026, 3, 3, 12, tzinfo=UTC)


def field(name: str) -> Field:
    return parse_field(name)


def term(name: str, op: str, value: Any = None) -> Compare:
    return Compare(field(name), op, value)


# -- what it means ----------------------------------------------------------------------------------

A, B, C = term("host", "==", "a"), term("host", "==", "b"), term("host", "==", "c")


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("host == a or host == b and host == c", Or((A, And((B, C))))),
        ("(host == a or host == b) and host==c", And((Or((A, B)), C))),
        ("not host == a and not not host == b", And((Not(A), Not(Not(B))))),
        ('outputs.result.energy < -3 and tags == "eos" and finished > 2d',
         And((term("outputs.result.energy", "<", -3), term("tags", "==", "eos"),
              term("finished", ">", NOW - timedelta(days=2))))),
        ("finished<=2026-03-01", term("finished", "<=", datetime(2026, 3, 1, tzinfo=UTC))),
        ("started > 2026-03-01T12:00+02:00", term("started", ">", datetime(2026, 3, 1, 10, tzinfo=UTC))),
        ("submitted > 1h30m", term("submitted", ">", NOW - timedelta(minutes=90))),
        ("usage.wall_s > 5m", term("usage.wall_s", ">", 300.0)),
        ("usage.wall_s > 0.5", term("usage.wall_s", ">", 0.5)),
        ("usage.max_rss_bytes >= 2G", term("usage.max_rss_bytes", ">=", 1 << 31)),
        ("exit_code != 0", term("exit_code", "!=", 0)),
        ("exit_code exists", term("exit_code", "exists")),
        ('host in ["n 1", n2]', term("host", "in", ["n 1", "n2"])),
        ("outcome not  in [failed,lost]", term("outcome", "not in", ["failed", "lost"])),
        ('inputs.a in [1, "x", null, [2.5, true]]', term("inputs.a", "in", [1, "x", None, [2.5, True]])),
        ("inputs.a == []", term("inputs.a", "==", [])),
        (r"inputs.a == 'it\'s'", term("inputs.a", "==", "it's")),
        ("env.packages.numpy >= 2", term("env.packages.numpy", ">=", Version("2"))),
        ("env.packages.typing-extensions exists", term("env.packages.typing-extensions", "exists")),
        ("name ~ eos-*", term("name", "~", Pattern(r"^eos\-"))),
        ("name ~ /^E.s$/i", term("name", "~", Pattern("^E.s$", any_case=True))),
        ("descends from 0abc-1", Walk(up=False, start="0abc-1")),
        ("ancestor of 0abc-1:2 within 3", Walk(up=True, start="0abc-1:2", within=3)),
        ("uses value 0123ab", Holds(Home.INPUTS, "0123ab")),
        ("makes value " + "f" * 64, Holds(Home.OUTPUTS, "f" * 64)),
    ],
)  # fmt: skip
def test_meaning(text: str, tree: object) -> None:
    assert parse(text, NOW) == tree
    assert parse(f"  ( {text}\n) ", NOW) == tree


def test_steps_into_values() -> None:
    assert field("outputs.result[0].x").path == ("result", "0", "x")
    assert field('inputs."scf.in"').path == ("scf.in",)
    assert field('outputs."result[0]"').plain_name == 'outputs."result[0]"'
    assert field("outputs.result[0]").plain_name == "outputs.result.0"


@pytest.mark.parametrize(
    ("pattern", "fits", "others"),
    [
        ("eos-*", ("eos-", "eos-1"), ("xeos-1", "eos")),
        ("*eos", ("eos", "my eos"), ("eos1",)),
        ("e?s.[abc]", ("eos.a",), ("eos.d", "eosxa", "es.a")),
        ("[!a]*", ("b", "bc"), ("a", "")),
        ("a[", ("a[",), ("a",)),
        ("*", ("", "x\ny"), ()),
    ],
)
def test_patterns(pattern: str, fits: tuple[str, ...], others: tuple[str, ...]) -> None:
    assert all(re.search(glob(pattern), text) for text in fits)
    assert not any(re.search(glob(pattern), text) for text in others)


# -- what is wrong ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [  # ^ stands before the character that is pointed at
        ("^", "expected a field"),
        ("host ^", "expected ==, !="),
        ("host ^= a", "write == to compare"),
        ("host == ^", "expected what to compare host with"),
        ("host == a ^&& kind == function", "write and"),
        ("host == a ^AND kind == function", "write and"),
        ("^!host == a", "write not"),
        ("(host == a^", r"expected \) to close the one at character 1"),
        ("host == a^)", "expected and, or, or the end"),
        ('host == ^"a', "ends with the quote it began with"),
        ("^hots == a", "there is no field 'hots'; near: host"),
        ("^energy < 3", "inputs.NAME and outputs.NAME"),
        ("^exception == a", "near: exception.type, exception.message"),
        ("^env.package.numpy > 2", "near: env.packages"),
        ("^time.finished > 2d", "near: .*finished"),
        ("^inputs == 3", "needs a name after it"),
        ('inputs.^ == 3', "expected a name after the dot"),
        ('^inputs.a."x.y" == 3', "cannot be asked for"),
        ("inputs.a == ^Cu", "a text is written in quotes"),
        ("inputs.a < ^null", "compares numbers and texts"),
        ("inputs.a == [1 ^2]", "expected , or ]"),
        ("exit_code == ^one", "exit_code is a number"),
        ("exit_code ^~ 1", "~ is for text"),
        ("finished ^== 2d", "compare it with <"),
        ("finished > ^yesterday", "so long ago: 2d"),
        ("finished > ^99999999999d", "so long ago: 2d"),
        ("usage.wall_s > ^long", "a duration"),
        ("outcome == ^succeded", "near: succeeded"),
        ("kind in [function, ^join]", "is none of function, command"),
        ("env.packages.numpy > ^new", "is a version"),
        ("name ~ /a^(b/", "not a pattern: missing"),
        ("name ~ ^/a", "ends with /"),
        ('name ~ ^"[z-a]"', "not a pattern"),
        ("host in ^n1", r"expected \["),
        ("descends ^x", "descends from ID"),
        ("ancestor of ^", "the id of a task or record"),
        ("ancestor of x within ^0", "above zero"),
        ("uses value ^xyz", "64 hexadecimal digits"),
        ("(" * 40 + "^(", "levels of parentheses"),
        ("inputs.a == " + "[" * 39 + "^[", "levels"),
    ],
)  # fmt: skip
def test_errors_point_at_the_character(text: str, reason: str) -> None:
    position = text.index("^")
    with pytest.raises(ExpressionError, match=reason) as caught:
        parse(text.replace("^", "", 1), NOW)
    assert caught.value.position == position
    assert f"at character {position + 1}:" in caught.value.reason
    line, caret = caught.value.pointer.splitlines()
    assert line[len(caret) - 1 :] == text[position + 1 :][: len(line) - len(caret) + 1]


def test_position_far_to_the_right_is_shown() -> None:
    with pytest.raises(ExpressionError) as caught:
        parse("host == a and " * 100 + "hots == b", NOW)
    line, caret = caught.value.pointer.splitlines()
    assert line[len(caret) - 1 :] == "hots == b"


def test_name_of_a_field_alone() -> None:
    for text in ("", "hots", "host a", "host."):
        with pytest.raises(InvalidInput):
            parse_field(text)


WORDS = (
    *("==", "!=", "<", "~", "in", "not", "exists", "and", "or", "(", ")", "[", "]", ",", "1", "-2.5e3", "2d", "2G"),
    *('"text"', "'", '"', "null", "/a+/", "*", "descends", "from", "ancestor", "of", "uses", "value", "within"),
    *("abcdef", "2026-03-01", "\\", "=", "&&", "$", ".", "\0", "é", "inputs.a", "outputs.result[0]", 'inputs."x"'),
)
PIECES = st.sampled_from([*FIELDS, *WORDS])


def said_of(text: str) -> ExpressionError | None:
    try:
        parse(text, NOW)
    except ExpressionError as exc:
        return exc
    return None


@given(st.lists(PIECES | st.text(max_size=3), max_size=12).map(" ".join) | st.text(max_size=30))
def test_any_text_is_read_or_pointed_into(text: str) -> None:
    error = said_of(text)
    if error is not None:
        assert 0 <= error.position <= len(text)
        assert len(error.pointer.split("\n")) == 2
