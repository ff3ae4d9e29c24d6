"""References to other tasks' outputs inside arguments: the links they become, the values they come back as."""

from __future__ import annotations

import threading
import time
from typing import Any

import bson
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot import values
from pilot.errors import EncodingError, ForeignFuture
from pilot.model import Link
from pilot.values import Reference, decode, encode, encode_argument, from_native, native, reencode

text = st.text(st.characters(exclude_categories=["Cs"]))


class Future:
    """As the client's: recognised by its method, and not to be pickled."""

    def __init__(self, task: str, output: str | None = None) -> None:
        self.link = (task, output)
        self.lock = threading.Lock()

    def __pilot_link__(self) -> tuple[str, str | None]:
        return self.link


class Box:
    def __init__(self, inside: Any) -> None:
        self.inside = inside


A, B = Future("a"), Future("b", "energy")


def resolve(task: str, output: str | None) -> str:
    return f"{task}/{output}"


@pytest.mark.parametrize(
    ("value", "tag", "links", "back"),
    [
        (A, b"j", [("x", "a", None)], "a/None"),
        ([1, A, (B,)], b"j", [("x[1]", "a", None), ("x[2][0]", "b", "energy")], [1, "a/None", ("b/energy",)]),
        ({"k": {'q"': A}}, b"j", [('x["k"]["q\\""]', "a", None)], {"k": {'q"': "a/None"}}),
        ({"~": A}, b"j", [('x["~"]', "a", None)], {"~": "a/None"}),
        ([A, {1, 2}, A], b"r", [("x[0]", "a", None), ("x[2]", "a", None)], ["a/None", {1, 2}, "a/None"]),
        ({3: [B]}, b"r", [("x[3][0]", "b", "energy")], {3: ["b/energy"]}),
    ],
)  # fmt: skip
def test_futures_become_links(value: Any, tag: bytes, links: list[Any], back: Any) -> None:
    encoded, found = encode_argument(value, "x", "f")
    assert encoded.data[:1] == tag
    assert found == tuple(Link(*link) for link in links)
    assert decode(encoded.data, resolve) == back


def test_futures_inside_objects() -> None:
    encoded, links = encode_argument([Box([A, B]), A], "x", "f")
    assert encoded.data[:1] == b"r"
    assert {link.task for link in links} == {"a", "b"}
    assert len(links) == 3
    assert links[-1].path.startswith("x#")
    box, last = decode(encoded.data, resolve)
    assert (box.inside, last) == (["a/None", "b/energy"], "a/None")


def test_without_a_resolver_references_stand_for_links_and_encode_as_such() -> None:
    for value in ([A, B], [A, {1}]):
        encoded, links = encode_argument(value, "x")
        back = decode(encoded.data)
        assert back[0] == Reference("a")
        assert encode_argument(back, "x")[0].data == encoded.data
        assert encode_argument(back, "x")[1] == links
    assert repr(Reference("a", "k")) == "Reference('a', 'k')"
    assert len({Reference("a"), Reference("a"), Reference("a", "k")}) == 2


def test_a_value_without_futures_is_the_same_as_argument_and_as_result() -> None:
    for value in ({1, 2}, [1, 2], Box(1), np.zeros(3), b"x"):
        argument, links = encode_argument(value, "x")
        assert links == ()
        assert argument.data == encode(value).data


@given(st.recursive(st.builds(Future, text, st.none() | text) | st.integers(), lambda x: st.lists(x) | st.tuples(x, x)))
def test_every_use_is_a_link_with_a_path_of_its_own(value: Any) -> None:
    def look(value: Any, path: str) -> list[tuple[Any, ...]]:
        if isinstance(value, Future):
            return [(path, *value.link)]
        return [x for i, v in enumerate(value) for x in look(v, f"{path}[{i}]")] if value.__class__ is not int else []

    assert [tuple(link) for link in encode_argument(value, "x")[1]] == look(value, "x")


def test_a_result_must_not_hold_futures() -> None:
    with pytest.raises(EncodingError, match="cannot be pickled"):
        encode([A], "the result of 'f'")


def test_an_error_of_the_future_itself_is_not_disguised() -> None:
    class Foreign:
        def __pilot_link__(self) -> tuple[str, str | None]:
            raise ForeignFuture("of another project")

    for value in (Foreign(), [Foreign(), {1}], Box(Foreign())):
        with pytest.raises(ForeignFuture, match="of another project"):
            encode_argument(value, "x", "f")


def test_a_hundred_thousand_futures_take_less_than_a_second() -> None:
    futures = [Future(f"task{i}") for i in range(100_000)]
    times = []
    for _ in range(3):
        started = time.process_time()
        encode_argument(futures, "futures")
        times.append(time.process_time() - started)
    encoded, links = encode_argument(futures, "futures")
    assert (len(links), links[-1].path) == (100_000, "futures[99999]")
    assert decode(encoded.data, lambda task, output: task) == [f"task{i}" for i in range(100_000)]
    assert min(times) < 1


class Pair:
    def __init__(self, *items: Any) -> None:
        self.items = items


values.register(Pair, f"{__name__}:Pair", lambda pair: pair.items, lambda plain: Pair(*plain))


def test_a_registered_type_may_hold_futures() -> None:
    encoded, links = encode_argument(Pair(1, A), "pair")
    assert encoded.data[:1] == b"j"
    assert links == (Link("pair[1]", "a", None),)
    assert decode(encoded.data, resolve).items == (1, "a/None")


def test_references_in_the_database() -> None:
    encoded, _ = encode_argument([A, 1], "x")
    tree = native(encoded.data)
    assert tree == [{"~": ["ref", "a", None]}, 1]
    stored = bson.decode(bson.encode({"value": tree}))["value"]
    assert reencode(stored) == encoded.data
    assert from_native(stored) == [Reference("a"), 1]
    assert from_native(stored, resolve) == ["a/None", 1]
