"""How far two results are from each other."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot import records, values
from pilot.compare import Distance, Verdict, between, output
from pilot.store.objects import Objects


class Thing:
    def __init__(self, **attributes: object) -> None:
        self.__dict__.update(attributes)


class Stubborn:
    def __eq__(self, other: object) -> bool:
        raise TypeError("never compare me")

    __hash__ = None  # type: ignore[assignment]


RECORD = np.dtype([("e", "f8"), ("s", "U3")])

NEAR: list[tuple[Any, Any, float, str]] = [
    (1, 1, 0.0, ""),
    (1, 1.0, 0.0, ""),
    (math.nan, math.nan, 0.0, ""),
    (math.inf, math.inf, 0.0, ""),
    (0.0, -0.0, 0.0, ""),
    (4.0, 2.0, 0.5, ""),
    (-1.0, 1.0, 2.0, ""),
    (0, 1e-300, 1.0, ""),
    (10**400, 10**400 + 1, 0.0, ""),
    (1 + 2j, 1 + 2j, 0.0, ""),
    ([1.0, {"a": (2.0, 4.0)}], [1.0, {"a": (2.0, 5.0)}], 0.2, "[1]['a'][1]"),
    ({"x": [8.0], "y": "same"}, {"y": "same", "x": [6.0]}, 0.25, "['x'][0]"),
    (np.array([[1.0, 2.0], [4.0, math.nan]]), np.array([[1.0, 2.0], [3.0, math.nan]]), 0.25, "[1, 0]"),
    (np.array(4.0), np.array(3.0), 0.25, ""),
    (np.float64(4), 3, 0.25, ""),
    (np.array([1, 2]), np.array([1.0, 2.0]), 0.0, "[0]"),
    (np.array([2j]), np.array([1j]), 0.5, "[0]"),
    (np.array([(4.0, "a")], RECORD), np.array([(3.0, "a")], RECORD), 0.25, "['e'][0]"),
    (Thing(a=4.0, b="x"), Thing(a=3.0, b="x"), 0.25, ".a"),
    ({1, 2}, {2, 1}, 0.0, ""),
    (np.array([]), np.array([]), 0.0, ""),
    (np.array(["a"]), np.array(["a"]), 0.0, ""),
]


@pytest.mark.parametrize(("a", "b", "relative", "where"), NEAR, ids=lambda value: str(value)[:30])
def test_near(a: Any, b: Any, relative: float, where: str) -> None:
    for x, y in ((a, b), (b, a)):
        found = between(x, y)
        assert found.relative == pytest.approx(relative)
        assert found.where == where or relative == 0.0


FAR: list[tuple[Any, Any, str]] = [
    (1.0, "1.0", ""),
    (True, 1, ""),
    (None, 0, ""),
    ("a", "b", ""),
    (1.0, math.nan, ""),
    (1.0, math.inf, ""),
    ([1], [1, 2], ""),
    ([1], (1,), ""),
    ({"a": 1}, {"b": 1}, ""),
    ({"a": {"b": "x"}}, {"a": {"b": "y"}}, "['a']['b']"),
    (np.zeros(2), np.zeros(3), ""),
    (np.array([1.0, math.nan]), np.array([1.0, 2.0]), "[1]"),
    (np.array(["a"]), np.array(["b"]), ""),
    (np.array([(4.0, "a")], RECORD), np.array([(4.0, "b")], RECORD), "['s']"),
    (Thing(a=1), Thing(a=1, b=1), ".b"),
    (Stubborn(), Stubborn(), ""),
    (b"a", b"b", ""),
]


@pytest.mark.parametrize(("a", "b", "where"), FAR, ids=lambda value: str(value)[:30])
def test_far(a: Any, b: Any, where: str) -> None:
    found = between(a, b)
    assert math.isinf(found.relative)
    assert where in found.where


def test_what_holds_itself() -> None:
    a: list[Any] = []
    b: list[Any] = []
    a.append(a)
    b.append(b)
    assert math.isinf(between(a, b).relative)


def test_an_absolute_tolerance() -> None:
    assert between([1e-17, 1.0], [-3e-17, 1.0], atol=1e-15) == Distance(0.0)
    assert between(np.array([1e-17]), np.array([-3e-17]), atol=1e-15).relative == 0.0
    assert between(1e-17, -3e-17).relative > 1.0


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(plain)
def test_everything_is_at_no_distance_from_itself(value: Any) -> None:
    assert between(value, values.decode(values.encode(value).data)).relative == 0.0


def test_outputs(tmp_path: Path) -> None:
    objects = Objects(tmp_path / "objects")

    def entry(value: object) -> dict[str, Any]:
        blob = records.blob_of(values.encode(value), objects.put)
        return {
            "hash": blob.hash,
            "size": blob.size,
            **({"object": True} if blob.data is None else {"data": blob.data}),
        }

    def verdict(then: object, now: object, rtol: float = 1e-9) -> Verdict:
        return output("x", entry(then), entry(now), objects.get, rtol, 0.0).verdict

    big = np.linspace(0, 1, 10_000)
    assert verdict(big, big) is Verdict.IDENTICAL
    assert verdict(big, big * (1 + 1e-12)) is Verdict.CLOSE
    assert verdict(big, big * (1 + 1e-12), 1e-13) is Verdict.DIFFERENT
    assert verdict({"a": 1.0}, {"a": "1"}) is Verdict.DIFFERENT
    assert output("x", entry(1), None, objects.get, 1e-9, 0.0).verdict is Verdict.MISSING
    gone = output("x", {"hash": "0" * 64, "size": 5, "object": True}, entry(1), objects.get, 1e-9, 0.0)
    assert gone.verdict is Verdict.DIFFERENT
    assert "cannot be compared" in gone.note
