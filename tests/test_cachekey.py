"""What makes two tasks equal; pure."""

from __future__ import annotations

import pytest

from pilot import signing
from pilot.cachekey import content_of, keys_of
from pilot.model import Blob, FunctionCode, Input, Link
from pilot.plain import Reference
from pilot.records import Source
from pilot.resources import TaskSpec
from pilot.states import Kind
from pilot.values import encode_argument


def _code() -> FunctionCode:
    return FunctionCode("f", "m", "q", "", "", "", None, "3.11")


def _no_object(name: str) -> bytes:
    raise AssertionError(f"nobody should read {name}")


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("c1", "c1m1024w60", True),
        ("c1", "c2", False),
        ("c1", "c1r1", False),
        ("c1r4", "c1r4n2", True),
        ("c1r4", "c1r4p2", True),
        ("c1r4", "c1r2", False),
        ("c1g1", "c1", False),
        ("c1r1xg0.5", "c1r1xg1", False),
    ],
)
def test_resources_that_count(one: str, other: str, equal: bool) -> None:
    def key(resources: str) -> str:
        task = {"function": "f", "command": None, "class": resources, "cache": "inputs"}
        return keys_of(task, (), {}, _code(), "", _no_object).key

    assert (key(one) == key(other)) is equal


def test_the_environment_counts_if_it_should() -> None:
    task = {"function": "f", "command": None, "class": "c1", "cache": "environment"}
    one, other = (keys_of(task, (), {}, _code(), place, _no_object) for place in ("a", "b"))
    assert one.key != other.key
    assert one.like == other.like


def test_content_of_arguments() -> None:
    def argument(value: object) -> Input:
        encoded, links = encode_argument(value, "x")
        return Input("x", Blob(encoded.hash, encoded.size, encoded.data), links)

    def content(value: object, **sources: list[Source]) -> str:
        found = {tuple(name.split("__")) if "__" in name else (name, None): s for name, s in sources.items()}
        return content_of(argument(value), found, _no_object)  # type: ignore[arg-type]

    zero = argument(0).blob.hash
    result, code = [Source("a:1", "result", zero, 2)], [Source("a:1", "exit_code", zero, 2)]
    whole = Reference("a", None)
    assert content(0) == zero
    assert content(whole, a=result) == zero
    assert content(Reference("b", None), b=result) == zero
    assert content(whole, a=code) != zero, "all of a command's outputs are a dictionary"
    assert content(Reference("a", "exit_code"), a__exit_code=code) == zero
    assert content(Reference("a", "k"), a__k=result) not in (zero, content(Reference("a", "l"), a__l=result))
    nested = content([whole, {"~": whole}, (1, whole)], a=result)
    assert nested == content([Reference("b"), {"~": Reference("b")}, (1, Reference("b"))], b=result)
    assert nested != content([whole, {"~": whole}, (1, whole)], a=code)
    assert nested != content([0, {"~": 0}, (1, 0)])
    both = [Source("a:1", "x", zero, 1), Source("a:1", "y", "1" * 64, 1)]
    assert content(whole, a=both) == content(whole, a=both[::-1])


def test_nothing_more_is_signed_of_tasks_without_caching() -> None:
    spec = TaskSpec("t", Kind.FUNCTION, "n", (Input("x", Blob("0" * 64, 1, None), (Link("x", "p", None),)),))
    plain, cached = signing.task_fields(spec), signing.task_fields(spec._replace(cache="inputs"))
    assert cached == [*plain, ["cache", "inputs"]]
    doc = {
        "task": "t",
        "attempt": 1,
        "token": "k",
        "outcome": "cached",
        "task_signature": b"",
        "inputs": [],
        "outputs": [],
    }
    seal = "digest", {"token": "k", "seq": 1, "prev": ""}
    fields = signing.record_fields(doc, *seal)
    assert signing.record_fields({**doc, "cached_from": "x:1"}, *seal) == [*fields, [None, "x:1", None]]
    assert signing.record_fields({**doc, "cache": {"key": "k", "miss": "why"}}, *seal) == [*fields, ["k", None, None]]
