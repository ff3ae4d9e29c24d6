"""Encodings: round trips, canonical bytes, links, what cannot be encoded, what BSON gives back."""

from __future__ import annotations

import collections
import fractions
import functools
import math
import os
import pathlib
import socket
import subprocess
import sys
import threading
from typing import Any

import bson
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pilot import values
from pilot.errors import DecodingError, EncodingError, InvalidInput
from pilot.values import NOT_NATIVE, Encoded, decode, encode, encode_argument, from_native, native, reencode


def same(a: Any, b: Any) -> bool:
    """Equal in value and in every type, NaN included."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, float | np.floating):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    if isinstance(a, complex):
        return same(a.real, b.real) and same(a.imag, b.imag)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return bool(a == b)


def hash_of(value: object) -> str:
    return encode(value).hash


text = st.text(st.characters(exclude_categories=["Cs"]))
atoms = st.none() | st.booleans() | st.integers() | st.floats() | text
numpy_scalars = st.sampled_from(
    ["<f2", "<f4", "<f8", "|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8"]
).flatmap(lambda code: hnp.from_dtype(np.dtype(code)))
paths = st.sampled_from([".", "/", "a/b", "/tmp/ä b", "../../tests"]).map(pathlib.Path)
leaves = atoms | st.binary() | st.complex_numbers() | paths | numpy_scalars
keys = st.just("~") | text
plain = st.recursive(
    leaves,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(keys, inner),
    max_leaves=20,
)


# -- round trips ----------------------------------------------------------------------------------


@given(plain)
def test_plain_values_come_back_as_they_were(value: Any) -> None:
    encoded = encode(value)
    assert encoded.data[:1] in (b"j", b"b")
    assert same(decode(encoded.data), value)
    assert same(decode(memoryview(encoded.data)), value)
    assert encoded.hash == values.digest(encoded.data)
    assert encoded.size == len(encoded.data)


array_types = (
    hnp.boolean_dtypes() | hnp.integer_dtypes(endianness="?") | hnp.floating_dtypes(endianness="?")
    | hnp.complex_number_dtypes() | hnp.datetime64_dtypes() | hnp.byte_string_dtypes(min_len=1)
    | hnp.unicode_string_dtypes(min_len=1) | hnp.array_dtypes(hnp.integer_dtypes() | hnp.floating_dtypes(), max_size=3)
)  # fmt: skip


@given(hnp.arrays(array_types, hnp.array_shapes(min_dims=0, min_side=0, max_side=4)))
def test_arrays_come_back_as_they_were(array: Any) -> None:
    data = encode(array).data
    back = decode(data)
    assert data[:1] in b"np"
    assert back.dtype == array.dtype
    assert same(back, array)
    assert back.flags.writeable


def test_an_array_is_stored_as_npy(tmp_path: pathlib.Path) -> None:
    array = np.arange(12.0).reshape(3, 4)
    (tmp_path / "a.npy").write_bytes(encode(array).data[1:])
    assert same(np.load(tmp_path / "a.npy"), array)


def test_the_layout_of_an_array_does_not_count() -> None:
    array = np.arange(24).reshape(2, 3, 4)
    for other in (np.asfortranarray(array), np.repeat(array, 2, axis=1)[:, ::2], array[::-1][::-1]):
        assert hash_of(other) == hash_of(array)
        assert same(decode(encode(other).data), array)


def test_arrays_that_npy_cannot_hold_are_pickled() -> None:
    tagged = np.dtype("i4", metadata={"unit": "eV"})
    for array in (np.array([1, "a"], object), np.zeros(2, tagged), np.ma.masked_array([1, 2], np.array([False, True]))):
        data = encode(array).data
        assert data[:1] == b"p"
        assert np.all(decode(data) == array)
    assert decode(encode(np.zeros(2, tagged)).data).dtype.metadata == {"unit": "eV"}


def test_a_large_array_is_not_copied() -> None:
    array = np.zeros(1 << 20)
    encoded = encode(array)
    assert np.shares_memory(np.frombuffer(encoded.parts[-1], np.uint8), array)
    assert same(decode(encoded.data), array)


@pytest.mark.parametrize(
    "value",
    [{1, 2}, {1: "a"}, "\ud800", {"\ud800": 1}, fractions.Fraction(1, 3), np.longdouble(1) / 3, 10**5000,
     np.datetime64("2024-01-01"), collections.OrderedDict(a=1), collections.Counter("abc"), b"x" * 100_000,
     [b"x" * 100_000], bytearray(b"abc"), range(3), frozenset("a"), pathlib.PurePosixPath("a"), True + 0j],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_other_values_come_back_too(value: Any) -> None:
    back = decode(encode(value).data)
    assert type(back) is type(value)
    assert back == value


def test_deep_and_circular_values() -> None:
    deep: list[Any] = []
    for _ in range(200):
        deep = [deep]
    assert decode(encode(deep).data) == deep
    circular: list[Any] = []
    circular.append(circular)
    back = decode(encode(circular).data)
    assert back[0] is back


def test_functions_and_local_classes_are_values_too() -> None:
    class Local:
        pass

    assert decode(encode(lambda x: x + 1).data)(1) == 2
    assert decode(encode(Local()).data).__class__.__qualname__.endswith("Local")


def test_long_texts_have_the_same_bytes_as_short_ones_would(monkeypatch: pytest.MonkeyPatch) -> None:
    long = 'ä"\n\\\x00😀' * 50
    short = encode(long), encode([long])
    monkeypatch.setattr(values, "_LONG_TEXT", 7)
    for before, after in zip(short, (encode(long), encode([long])), strict=True):
        assert len(after.parts) > len(before.parts)
        assert (after.hash, after.data) == (before.hash, before.data)
    assert encode("\ud800" * 20).data[:1] == b"p"


# -- canonical ------------------------------------------------------------------------------------


def shuffled(value: Any) -> Any:
    """Return an equal value whose dicts were filled in the opposite order."""
    if type(value) is dict:
        return {k: shuffled(value[k]) for k in reversed(value)}
    if type(value) in (list, tuple):
        return type(value)(map(shuffled, value))
    return value


@given(plain)
def test_equal_values_have_equal_bytes(value: Any) -> None:
    assert encode(shuffled(value)).data == encode(value).data


@given(plain, plain)
def test_the_hash_tells_values_apart(a: Any, b: Any) -> None:
    assert (hash_of(a) == hash_of(b)) == same(a, b)


def test_types_that_python_calls_equal_differ() -> None:
    alike = [1, 1.0, True, 1 + 0j, np.float64(1), np.float32(1), np.int64(1), np.bool_(True)]
    assert len({hash_of(value) for value in alike}) == len(alike)
    assert len({hash_of(value) for value in ([1], (1,), {"~": ["tuple", [1]]}, "[1]", b"[1]", np.array([1]))}) == 6


def test_the_bytes_are_what_the_documentation_says() -> None:
    assert encode({"b": [1, 2.5, None, True], "a": "ä"}).data == 'j{"a":"ä","b":[1,2.5,null,true]}'.encode()
    assert encode((1, b"x")).data == b'j{"~":["tuple",[1,{"~":["bytes","eA=="]}]]}'
    assert encode({"~": 1}).data == b'j{"~":["dict",{"~":1}]}'
    assert encode(np.float32(3.5)).data == b'j{"~":["numpy","<f4",3.5]}'
    assert encode(pathlib.Path("a/b")).data == b'j{"~":["path","a/b"]}'
    assert encode(5).hash == "de84a2b0f84e1b9074ac30f40c085fafe27c1942ee59901bded00c5156a1f6d5"


def test_the_hash_is_the_same_in_another_process() -> None:
    code = "from pilot.values import encode; import numpy; print(encode([{'b': 1, 'a': (numpy.float64(.1),)}]).hash)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == hash_of([{"a": (np.float64(0.1),), "b": 1}])


class Box:
    def __init__(self, inside: Any) -> None:
        self.inside = inside


# -- what cannot be encoded -----------------------------------------------------------------------


class Refusing:
    def __reduce__(self) -> Any:
        raise ArithmeticError("no")


def unpicklable() -> dict[str, Any]:
    lock = threading.Lock()
    with open(os.devnull, "rb") as binary, open(os.devnull) as text_file, socket.socket() as sock:
        return {
            "lock": lock, "generator": (i for i in ()), "binary file": binary, "text file": text_file,
            "socket": sock, "lambda": lambda: lock, "thread": threading.Thread(), "refusing": Refusing(),
            "nested": {"a": [lock]}, "frame": sys._getframe(),
        }  # fmt: skip


@pytest.mark.parametrize("name", unpicklable())
def test_what_cannot_be_pickled_is_named(name: str) -> None:
    value = unpicklable()[name]
    with pytest.raises(
        EncodingError, match=r"^argument 'cfg' of 'fit' cannot be pickled: \w+: .+; pass plain data"
    ) as e:
        encode_argument(value, "cfg", "fit")
    assert type(value).__name__ in str(e.value)
    assert e.value.__cause__ is not None
    with pytest.raises(EncodingError, match=r"^the result of 'fit' cannot be pickled: "):
        encode(value, "the result of 'fit'")


def test_an_open_file_is_not_replaced_by_its_text(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a").write_text("secret")
    with open(tmp_path / "a") as file, pytest.raises(EncodingError, match="cannot pickle the open file"):
        encode(file)


def test_too_deep_recursion_is_an_encoding_error() -> None:
    box = Box(None)
    for _ in range(100_000):
        box = Box(box)
    with pytest.raises(EncodingError, match="recursion"):
        encode(box)
    while box is not None:
        box = box.inside


# -- registered types -----------------------------------------------------------------------------


class Celsius:
    def __init__(self, degrees: float) -> None:
        self.degrees = degrees

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Celsius) and other.degrees == self.degrees

    def __hash__(self) -> int:
        return hash(self.degrees)


def _to_plain(value: Celsius) -> Any:
    if value.degrees == math.inf:
        raise ValueError("too hot")
    return {"degrees": value.degrees}


values.register(Celsius, f"{__name__}:Celsius", _to_plain, lambda plain: Celsius(plain["degrees"]))


def test_registered_types_are_readable() -> None:
    data = encode([Celsius(20.0)]).data
    assert data == f'j[{{"~":["type","{__name__}:Celsius",{{"degrees":20.0}}]}}]'.encode()
    assert decode(data) == [Celsius(20.0)]
    with pytest.raises(EncodingError, match=r"argument 'x' of 'f' cannot be encoded: to_plain .* too hot"):
        encode_argument([Celsius(math.inf)], "x", "f")
    with pytest.raises(InvalidInput, match="module:qualname"):
        values.register(Celsius, "Celsius", _to_plain, _to_plain)


def test_decoding_imports_the_module_that_registers(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lengths.py").write_text(
        "from pilot.values import register\n"
        "class Metre:\n    def __init__(self, n): self.n = n\n"
        "register(Metre, 'lengths:Metre', lambda m: m.n, Metre)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert decode(b'j{"~":["type","lengths:Metre",3]}').n == 3
    with pytest.raises(DecodingError, match="does not register it"):
        decode(b'j{"~":["type","lengths:Foot",3]}')
    with pytest.raises(DecodingError, match="needs the module 'nowhere'"):
        decode(b'j{"~":["type","nowhere:Foot",3]}')


# -- damaged bytes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "data"),
    [
        (1, True),
        ([{"a": (1, b"x", 2j)}], True),
        (b"x", True),
        (np.arange(3), True),
        ({"~": ["type", "os:path", 1]}, True),  # a value that only looks like a form
        ({1, 2}, False),
    ],
)
def test_what_is_read_without_running_code(value: Any, data: bool) -> None:
    assert values.is_data(values.encode(value).data) is data


@pytest.mark.parametrize(
    "text", ['{"~":["type","antigravity:x",1]}', '[{"a":{"~":["tuple",[{"~":["type","antigravity:x",1]}]]}}]']
)
def test_a_registered_type_is_no_data(text: str) -> None:
    assert not values.is_data(b"j" + text.encode())
    assert not values.is_data(memoryview(b"j" + text.encode()))


@pytest.mark.parametrize("text", ['{"~":7}', '{"~":[]}', '{"~":["dict",7]}', '{"~":', '{"~"' + "[" * 100_000, "\udc00"])
def test_damaged_data_is_a_decoding_error(text: str) -> None:
    with pytest.raises(DecodingError):
        values.is_data(b"j" + text.encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize(
    "data",
    [b"", b"j", b"j1 2", b"j{", b"x5", b"p", b"pabc", b"r", b"rabc", b"n", b"n\x93NUMPY\x01\x00", b"j\xff",
     b'j{"~":["nothing"]}', b'j{"~":1}', b'j{"~":["path"]}', encode(np.zeros(3)).data[:-1], encode({1}).data[:-2]],
)  # fmt: skip
def test_damaged_bytes_are_a_decoding_error(data: bytes) -> None:
    with pytest.raises(DecodingError):
        decode(data)


@given(st.binary())
def test_no_json_or_array_bytes_raise_anything_else(body: bytes) -> None:
    for tag in (b"j", b"n", b"", b"?"):
        if tag or body[:1] not in (b"p", b"r"):
            try:
                decode(tag + body)
            except DecodingError:
                continue


def test_a_missing_class_is_a_decoding_error(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fleeting.py").write_text("class Thing: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    import fleeting  # type: ignore[import-not-found]

    data = encode(fleeting.Thing()).data
    assert type(decode(data)) is fleeting.Thing
    del fleeting.Thing
    with pytest.raises(DecodingError, match="Thing"):
        decode(data)
    monkeypatch.undo()
    del sys.modules["fleeting"]
    with pytest.raises(DecodingError, match="needs the module 'fleeting'"):
        decode(data)


# -- as the database keeps them -------------------------------------------------------------------


@given(plain)
def test_native_values_survive_the_database(value: Any) -> None:
    data = encode(value).data
    tree = native(data)
    if tree is NOT_NATIVE:
        return
    stored = bson.decode(bson.encode({"value": tree}))["value"]
    assert reencode(stored) == data
    assert same(from_native(stored), value)
    assert same(from_native(tree), value)


@pytest.mark.parametrize(
    "value",
    [2**63, -(2**63) - 1, [2**64], {"a\0b": 1}, {"$set": 1}, [{"$ref": "a"}], b"x", np.zeros(2), {1},
     functools.reduce(lambda inner, _: (inner,), range(40), 1)],
    ids=str,
)  # fmt: skip
def test_what_bson_cannot_hold_unchanged_is_not_native(value: Any) -> None:
    assert native(encode(value).data) is NOT_NATIVE


@pytest.mark.parametrize("value", [None, 0, 2**63 - 1, -(2**63), 1.0, float("nan"), "a\0b", {"": 1, "a.b": {}}, ()])
def test_native_values(value: Any) -> None:
    tree = native(encode(value).data)
    assert tree is not NOT_NATIVE
    assert same(from_native(bson.decode(bson.encode({"v": tree}))["v"]), value)


def test_the_value_that_says_not_native() -> None:
    assert repr(NOT_NATIVE) == "NOT_NATIVE"
    with pytest.raises(DecodingError, match="not one that was encoded here"):
        from_native(object())


# -- cost -----------------------------------------------------------------------------------------


def test_importing_it_is_light() -> None:
    code = """
import sys
import pilot
before = set(sys.modules)
import pilot.values
new = set(sys.modules) - before
heavy = {"typing", "dataclasses", "inspect", "logging", "hashlib", "pickle", "cloudpickle", "numpy", "pathlib", "bson"}
print(len(new), *sorted(new & heavy))
"""
    env = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-P", "-c", code], env=env, capture_output=True, text=True, check=True)
    out = done.stdout.split()
    assert out[1:] == []
    assert int(out[0]) <= 35


BIG = """
import resource, sys, time
from pathlib import Path
from pilot.store.objects import Objects
from pilot.values import decode, encode
kind, root = sys.argv[1], Path(sys.argv[2])
size = (2 << 30) + 12345
if kind == "array":
    import numpy
    value = numpy.ones(size, numpy.uint8)
else:
    value = {1: b"x" * size}  # int key: pickled
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
t = [time.perf_counter()]
encoded = encode(value); t.append(time.perf_counter())
objects = Objects(root / "objects")
name = objects.put(encoded); t.append(time.perf_counter())
written = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
del encoded
data = objects.get(name); t.append(time.perf_counter())
back = decode(data); t.append(time.perf_counter())
assert type(back) is type(value)
assert bool((back == value).all()) if kind == "array" else back == value
steps = [round(b - a, 2) for a, b in zip(t, t[1:])]
print(kind, "value+python MiB", base >> 10, "after put", written >> 10, "encode put get decode s", *steps)
print(written / base)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["array", "pickle"])
def test_values_of_more_than_two_gib(kind: str, tmp_path: pathlib.Path) -> None:
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    if available < 8 << 30 or free < 3 << 30:
        pytest.skip(f"needs 8 GiB of memory and 3 GiB of disk; there are {available >> 30} and {free >> 30}")
    done = subprocess.run([sys.executable, "-c", BIG, kind, str(tmp_path)], capture_output=True, text=True, check=False)
    for file in (tmp_path / "objects").rglob("*"):
        if file.is_file():
            file.unlink()
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    assert float(done.stdout.split()[-1]) < 2.3  # times the value: encoding makes at most one copy


def test_encoded_joins_its_parts_once() -> None:
    encoded = Encoded.of((b"b", memoryview(b"abc")))
    assert encoded.data == b"babc"
    assert encoded.size == 4
    assert encoded.hash == encode(b"abc").hash
