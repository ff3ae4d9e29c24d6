"""Arguments by name, and back."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot.calls import arguments, bind, call
from pilot.errors import InvalidInput


def plain(a: int, b: int = 2) -> int:
    return a + b


def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


class Model:
    def __init__(self, n: int = 0) -> None:
        self.n = n

    def method(self, a: int) -> int:
        return self.n + a

    @classmethod
    def make(cls, a: int) -> int:
        return a

    def __call__(self, a: int) -> int:
        return self.n * a

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Model) and other.n == self.n

    __hash__ = None  # type: ignore[assignment]


def everything(a: Any, b: Any = 1, /, c: Any = 2, *rest: Any, k: Any, m: Any = 3, **more: Any) -> Any:
    return a, b, c, rest, k, m, more


def positional_only(a: Any = 0, b: Any = 0, /, **a_more: Any) -> Any:
    return a, b, a_more


def keywords(a: Any, b: Any = 1, c: Any = 2, *, k: Any = 3) -> Any:
    return a, b, c, k


def star(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


CALLABLES: list[Any] = [
    everything, positional_only, keywords, star, decorate(keywords), functools.partial(keywords, 1),
    functools.partial(keywords, b=1), Model(1).method, Model.make, Model(1), Model, lambda: 0,
]  # fmt: skip
keys = st.sampled_from(["a", "b", "c", "k", "m", "n", "z z", "args[0]", 'q"', "rest[0]"])
many = st.lists(st.integers(), max_size=4)
named = st.dictionaries(keys, st.integers(), max_size=4)


@given(st.sampled_from(CALLABLES), many, named)
def test_a_call_put_together_again_does_what_the_first_would(
    function: Callable[..., Any], args: list[int], kwargs: dict[str, int]
) -> None:
    try:
        expected = function(*args, **kwargs)
    except TypeError:
        with pytest.raises(InvalidInput):
            bind(function, args, kwargs)
        return
    bound = bind(function, args, kwargs)
    assert len(dict(bound)) == len(bound) == len(args) + len(kwargs)
    assert call(function, bound) == expected


@given(st.sampled_from([max, dict, int, "".join]), many, named)
def test_builtins_that_do_not_say_what_they_take_get_all(
    function: Callable[..., Any], args: list[int], kwargs: dict[str, int]
) -> None:
    try:
        inspect.signature(function)
    except ValueError:
        assert arguments(function, bind(function, args, kwargs)) == (tuple(args), kwargs)


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "names"),
    [
        (plain, (1,), {}, ["a"]),
        (plain, (), {"b": 1, "a": 2}, ["a", "b"]),
        (everything, (1, 2, 3, 4, 5), {"z": 1, "k": 2}, ["a", "b", "c", "rest[0]", "rest[1]", "k", "z"]),
        (everything, (1,), {"k": 2, "a": 3, "x y": 4}, ["a", "k", 'more["a"]', 'more["x y"]']),
        (star, (1, 2), {"x": 3, "args[0]": 4}, ["args[0]", "args[1]", "x", 'kwargs["args[0]"]']),
        (math.sqrt, (2.0,), {}, ["x"]),
        (max, (1, 2), {"key": None}, ["args[0]", "args[1]", "key"]),
    ],
)
def test_names(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], names: list[str]) -> None:
    assert [name for name, _ in bind(function, args, kwargs)] == names


MISFITS: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
    (keywords, (), {}), (keywords, (1, 2, 3, 4), {}), (keywords, (1,), {"a": 2}), (keywords, (1,), {"x": 2}),
    (everything, (), {"k": 1}), (everything, (1,), {}), (lambda: 0, (1,), {}), (lambda a: 0, (1, 2), {}),
    (lambda a, b: 0, (), {}), (lambda a, b, c: 0, (), {}), (lambda *, k, m: 0, (), {}), (lambda a, /: 0, (), {"a": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("function", "args", "kwargs"), MISFITS)
def test_misfits_are_refused_in_pythons_words(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    with pytest.raises(TypeError) as python:
        function(*args, **kwargs)
    with pytest.raises(InvalidInput) as ours:
        bind(function, args, kwargs)
    assert str(ours.value) == str(python.value)


def test_a_new_code_object_has_a_new_signature() -> None:
    def f(a: int) -> int:
        return a

    assert bind(f, (1,), {}) == [("a", 1)]
    f.__code__ = (lambda x, y: x).__code__
    assert bind(f, (1, 2), {}) == [("x", 1), ("y", 2)]


def test_call() -> None:
    assert call(keywords, [("a", 1), ("c", 5), ("k", 6)]) == (1, 1, 5, 6)
