"""How far two results are from each other: numbers, arrays, and whatever nests them. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from pilot import values
from pilot.errors import ObjectCorrupt, PilotError
from pilot.records import Get, blob_from

RTOL = 1e-9
"""Numbers are close, unless told otherwise, if they differ by at most so much, relative to the larger one."""

_DEPTH = 100
"""Objects nested deeper are not looked into: they may hold themselves."""


class Verdict(StrEnum):
    """What became of an output when its task ran again."""

    IDENTICAL = "identical"
    """The same bytes."""
    CLOSE = "close"
    """Other bytes, and the same but for small differences of its numbers."""
    DIFFERENT = "different"
    """Neither, or it cannot be told."""
    MISSING = "missing"
    """The run did not make it: it failed, or was not begun."""


class Distance(NamedTuple):
    """How far two values are from each other."""

    relative: float
    """The largest difference of two numbers in them, relative to the larger one; infinite: they differ otherwise."""
    where: str = ""
    """Where in them that is, as one would write it in Python."""


class Output(NamedTuple):
    """An output of a record beside that of another run."""

    name: str
    verdict: Verdict
    then: Mapping[str, Any]
    """The output as the record has it."""
    now: Mapping[str, Any] | None
    """What the other run made."""
    distance: Distance | None = None
    """Unless it is identical or missing."""
    note: str = ""
    """Why the two cannot be compared."""


def output(
    name: str, then: Mapping[str, Any], now: Mapping[str, Any] | None, get: Get, rtol: float, atol: float
) -> Output:
    """Compare an output of a record with that of another run. Verify both records first: this may unpickle.

    Args:
        name: of the output.
        then: the record's entry.
        now: the other record's; None: it has none.
        get: reads an object.
        rtol: numbers are close if they differ by at most so much, relative to the larger one,
        atol: or by so much.
    """
    if now is None:
        return Output(name, Verdict.MISSING, then, None)
    if then["hash"] == now["hash"]:
        return Output(name, Verdict.IDENTICAL, then, now)
    try:
        distance = between(_value(then, get), _value(now, get), atol)
    except PilotError as exc:
        return Output(name, Verdict.DIFFERENT, then, now, note=f"they cannot be compared: {exc}")
    verdict = Verdict.CLOSE if distance.relative <= rtol else Verdict.DIFFERENT
    return Output(name, verdict, then, now, distance)


def _value(entry: Mapping[str, Any], get: Get) -> Any:
    blob = blob_from(entry)
    if blob.data is not None and values.digest(blob.data) != blob.hash:
        raise ObjectCorrupt("the value in the record does not have its hash")
    return values.decode(get(blob.hash) if blob.data is None else blob.data)


def between(a: Any, b: Any, atol: float = 0.0) -> Distance:
    """Return how far two values are from each other.

    Numbers that differ by at most `atol` count as equal, and so do NaNs. What is no number has to be equal; other
    objects than plain data and arrays are equal if they say so, or if they are of one class and their attributes are.
    """
    return _between(a, b, atol, "", 0)


def _between(a: Any, b: Any, atol: float, where: str, depth: int) -> Distance:
    if depth > _DEPTH:
        return Distance(math.inf, where)
    if _is_number(a) and _is_number(b):
        return Distance(_relative(a, b, atol), where)
    if type(a) is not type(b):
        return Distance(math.inf, where)
    if isinstance(a, list | tuple):
        if len(a) != len(b):
            return Distance(math.inf, where)
        return _largest(
            _between(x, y, atol, f"{where}[{index}]", depth + 1) for index, (x, y) in enumerate(zip(a, b, strict=True))
        )
    if isinstance(a, dict):
        return _mappings(a, b, atol, lambda key: f"{where}[{key!r}]", depth)
    if type(a).__module__ == "numpy" and hasattr(a, "dtype") and hasattr(a, "shape"):
        return _arrays(a, b, atol, where)
    if _equal(a, b):
        return Distance(0.0)
    if hasattr(a, "__dict__") and vars(a):
        return _mappings(vars(a), vars(b), atol, lambda key: f"{where}.{key}", depth)
    return Distance(math.inf, where)


def _mappings(a: dict[Any, Any], b: dict[Any, Any], atol: float, where: Callable[[Any], str], depth: int) -> Distance:
    for key in a.keys() ^ b.keys():
        return Distance(math.inf, where(key))
    return _largest(_between(a[key], b[key], atol, where(key), depth + 1) for key in a)


def _largest(distances: Iterable[Distance]) -> Distance:
    largest = Distance(0.0)
    for distance in distances:
        if distance.relative > largest.relative:
            largest = distance
            if math.isinf(largest.relative):
                break
    return largest


def _is_number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(value, int | float | complex):
        return True
    return (
        type(value).__module__ == "numpy"
        and getattr(getattr(value, "dtype", None), "kind", "") in "iufc"
        and (value.shape == ())
    )


def _relative(a: Any, b: Any, atol: float) -> float:
    if a == b or (a != a and b != b):  # NaN is not equal to itself
        return 0.0
    try:
        apart, size = abs(a - b), max(abs(a), abs(b))
        relative = 0.0 if apart <= atol else float(apart / size)
    except (OverflowError, ValueError):
        return math.inf
    return relative if math.isfinite(relative) else math.inf


def _arrays(a: Any, b: Any, atol: float, where: str) -> Distance:
    """Compare two arrays element by element."""
    import numpy

    if a.shape != b.shape or a.dtype.names != b.dtype.names:
        return Distance(math.inf, where)
    if a.dtype.names is not None:
        return _largest(_arrays(a[name], b[name], atol, f"{where}[{name!r}]") for name in a.dtype.names)
    kinds = a.dtype.kind + b.dtype.kind
    if any(kind not in "iufc" for kind in kinds) or a.size == 0:
        return Distance(0.0 if a.dtype == b.dtype and numpy.array_equal(a, b) else math.inf, where)
    wide = numpy.complex128 if "c" in kinds else numpy.longdouble
    x, y = a.astype(wide), b.astype(wide)
    with numpy.errstate(all="ignore"):
        apart = numpy.abs(x - y)
        relative = numpy.where(apart <= atol, 0.0, apart / numpy.maximum(numpy.abs(x), numpy.abs(y)))
    same = (x == y) | ((x != x) & (y != y))
    relative = numpy.where(same, 0.0, numpy.where(numpy.isfinite(relative), relative, math.inf))
    worst = numpy.unravel_index(int(numpy.argmax(relative)), relative.shape)
    index = ", ".join(str(int(place)) for place in worst)
    return Distance(float(relative[worst]), f"{where}[{index}]" if index else where)


def _equal(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except Exception:  # noqa: BLE001  the comparison is the user's code
        return False
