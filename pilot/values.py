"""Values as bytes, and their identity.

An encoding is self-describing: one tag byte, then the body. The BLAKE2b-256 of all of it, tag included,
is the value's identity. Equal hash means equal content; unequal hash may be a missed match.

====== ===========================================================================================
tag    body
====== ===========================================================================================
``j``  canonical JSON (sorted keys, no spaces, UTF-8) of plain data: None, bool, int, float, str,
       list, and dict with string keys; what JSON lacks stands in the forms of `pilot.plain`
``b``  a `bytes` value itself
``n``  a NumPy array in the .npy format, C order
``p``  anything else: cloudpickle, protocol 5
``r``  the same, with persistent ids ``(task, output)`` where references to other tasks' outputs stand
====== ===========================================================================================

Every worker's child imports this module: no typing, no dataclasses, and pickle, NumPy and cloudpickle
only where a value needs them.
"""

from __future__ import annotations

from io import BytesIO

from pilot.errors import DecodingError, EncodingError, PilotError
from pilot.plain import ATOMS, FORM, NotPlain, Reference, dump, from_tree, only_data, parse, quote, register, to_tree

try:
    from _blake2 import blake2b  # hashlib loads OpenSSL too: 3 ms and two libraries in every child
except ImportError:  # pragma: no cover
    from hashlib import blake2b

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any, TypeAlias

    from pilot.model import Link
    from pilot.plain import Resolve, Use

    Part: TypeAlias = bytes | memoryview

__all__ = [
    "NOT_NATIVE", "Encoded", "Reference", "decode", "digest", "encode", "encode_argument", "files_in",
    "from_native", "hasher", "is_data", "native", "reencode", "register",
]  # fmt: skip

NOT_NATIVE: Any = type("NotNative", (), {"__repr__": lambda self: "NOT_NATIVE"})()
"""What `native` returns for an encoding that is kept as bytes. (None is a value.)"""

_MAX_NATIVE_DEPTH = 64  # MongoDB stores 100 levels, and a record has some of its own
_LONG_TEXT = 1 << 24  # characters; above, a string is encoded in pieces to spare memory
_JOINED_BYTES = 1 << 16  # a body up to this is copied behind its tag
_MAX_HEADER = 10_000  # what NumPy agrees to read


class Encoded:
    """A value as bytes: its identity, its size, and the bytes in parts that are not joined without need.

    A part may be a view of the caller's own array: store it before the array changes.
    """

    __slots__ = ("hash", "parts", "size")

    def __init__(self, hash: str, size: int, parts: tuple[Part, ...]) -> None:
        self.hash = hash
        self.size = size
        self.parts = parts

    @classmethod
    def of(cls, parts: Sequence[Part]) -> Encoded:
        """Hash and measure `parts`."""
        return cls(digest(*parts), sum(map(len, parts)), tuple(parts))

    @property
    def data(self) -> bytes:
        """The whole encoding as one piece; copies when there are several parts."""
        first = self.parts[0]
        return first if len(self.parts) == 1 and type(first) is bytes else b"".join(self.parts)


def hasher() -> blake2b:
    """Return a new BLAKE2b-256 to update with the pieces of an encoding."""
    return blake2b(digest_size=32)


def digest(*parts: Part) -> str:
    """Return the BLAKE2b-256 of the parts, one after the other, in hexadecimal."""
    state = hasher()
    for part in parts:
        state.update(part)
    return state.hexdigest()


# -- encode ---------------------------------------------------------------------------------------


def encode(value: object, what: str = "the value") -> Encoded:
    """Encode any value.

    Args:
        what: names the value in errors: ``"the result of 'fit'"``.

    Raises:
        EncodingError: it cannot be pickled; the message names it and says why.
    """
    return _encode(value, what, "", None)


def encode_argument(value: object, name: str, function: str = "") -> tuple[Encoded, tuple[Link, ...]]:
    """Encode one argument of a call in which futures may stand anywhere, however nested.

    A future is any object with a method ``__pilot_link__() -> (task, output | None)``. Each use becomes a
    link whose path reads as a person would write it: ``futures[3]``, ``cfg["a"]``, and ``name#0``,
    ``name#1`` … inside objects that only pickle can open.

    Raises:
        EncodingError: it cannot be pickled; the message names argument and function.
    """
    uses: list[Use] = []
    encoded = _encode(value, name, function, uses)
    if not uses:
        return encoded, ()
    from pilot.model import Link

    return encoded, tuple([Link(*use) for use in uses])


def _encode(value: object, name: str, function: str, uses: list[Use] | None) -> Encoded:
    kind = type(value)
    if kind is bytes:
        return Encoded.of((b"b", value))  # type: ignore[arg-type]
    if kind is str and len(value) > _LONG_TEXT:  # type: ignore[arg-type]
        return _encode_long_text(value, name, function)  # type: ignore[arg-type]
    try:
        tree = value if kind in ATOMS else to_tree(value, name, uses)
    except (NotPlain, RecursionError):
        return _encode_other(value, kind, name, function, uses)
    except EncodingError as exc:
        raise EncodingError(f"{_describe(name, function, uses)} cannot be encoded: {exc}") from exc.__cause__
    try:
        text = dump(tree)
        if len(text) > _LONG_TEXT:
            return Encoded.of((b"j", text.encode()))
        data = ("j" + text).encode()
    except (ValueError, RecursionError):  # lone surrogates; integers of thousands of digits
        return _encode_other(value, kind, name, function, uses)
    return Encoded(blake2b(data, digest_size=32).hexdigest(), len(data), (data,))


def _describe(name: str, function: str, uses: list[Use] | None) -> str:
    if uses is None:
        return name
    return f"argument {name!r} of {function!r}" if function else f"argument {name!r}"


def _encode_long_text(value: str, name: str, function: str) -> Encoded:
    """Write the same bytes as for a short text without a second copy of the whole."""
    try:
        pieces = [quote(value[i : i + _LONG_TEXT])[1:-1].encode() for i in range(0, len(value), _LONG_TEXT)]
    except UnicodeEncodeError:
        return _encode_pickle(value, name, function, None)
    return Encoded.of((b'j"', *pieces, b'"'))


def _encode_other(value: Any, kind: type, name: str, function: str, uses: list[Use] | None) -> Encoded:
    if kind.__module__ == "numpy" and kind.__name__ == "ndarray":
        parts = _array_parts(value)
        if parts is not None:
            return Encoded.of(parts)
    return _encode_pickle(value, name, function, uses)


# -- arrays ---------------------------------------------------------------------------------------


def _array_parts(array: Any) -> tuple[Part, ...] | None:
    """Return an array as .npy, its memory as a view; None for what that format cannot hold."""
    import numpy
    from numpy.lib import format as npy

    dtype = array.dtype
    if dtype.hasobject or dtype.itemsize == 0 or not _npy_keeps(dtype):
        return None
    if dtype.names is not None and npy.descr_to_dtype(npy.dtype_to_descr(dtype)) != dtype:
        return None  # titles, overlapping fields
    # Written here and not by NumPy, whose padding changed between versions: the bytes are an identity.
    header = f"{{'descr': {npy.dtype_to_descr(dtype)!r}, 'fortran_order': False, 'shape': {array.shape!r}, }}"
    padded = header + " " * (-(len(header) + 11) % 64) + "\n"
    if not padded.isascii() or len(padded) > _MAX_HEADER:
        return None
    head = b"n\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded.encode("ascii")
    flat: Any = numpy.asarray(array, order="C").reshape(-1).view(numpy.uint8)
    body = memoryview(flat)
    return (head + body,) if len(body) <= _JOINED_BYTES else (head, body)


def _npy_keeps(dtype: Any) -> bool:
    if dtype.metadata is not None or dtype.kind not in "biufcmMSUV":
        return False
    if dtype.subdtype is not None:
        return _npy_keeps(dtype.subdtype[0])
    return all(_npy_keeps(field[0]) for field in (dtype.fields or {}).values())


def _read_array(data: Part) -> Any:
    import numpy
    from numpy.lib import format as npy

    head = BytesIO(bytes(data[1 : 11 + int.from_bytes(data[9:11], "little")]))
    if npy.read_magic(head) != (1, 0):
        raise DecodingError("an array has a version of .npy that is not read here; a newer pilot wrote it")
    shape, _, dtype = npy.read_array_header_1_0(head)
    flat = numpy.frombuffer(data, dtype, offset=1 + head.tell())
    return flat.reshape(shape).copy()  # the user's to change, and free of the file it came from


# -- pickles --------------------------------------------------------------------------------------

_ADVICE = "pass plain data, arrays or importable objects, and make files, locks and connections inside the task"


def _encode_pickle(value: object, name: str, function: str, uses: list[Use] | None) -> Encoded:
    from pilot.pickles import dump as dump_pickle

    if uses is not None:
        uses.clear()  # what the walk found before it gave up; the pickler finds all
    try:
        return Encoded.of((dump_pickle(value, name, uses),))
    except (PilotError, MemoryError):
        raise
    except Exception as exc:
        raise EncodingError(
            f"{_describe(name, function, uses)} cannot be pickled: {type(value).__name__}: {exc}; {_ADVICE}"
        ) from exc


# -- decode ---------------------------------------------------------------------------------------


def decode(data: Part, resolve: Resolve | None = None) -> Any:
    """Return the value that `data` encodes. Verify signatures and hashes first: pickles run code.

    Args:
        resolve: called with (task, output) for every link, returns the linked value; without it a
            `Reference` stands there.

    Raises:
        DecodingError: damaged bytes, or a module that the value needs is missing here.
    """
    tag = bytes(data[:1])
    try:
        if tag == b"j":
            text = data.decode() if type(data) is bytes else str(data, "utf-8")
            tree, end = parse(text, 1)
            if end != len(text):
                raise DecodingError(f"an encoded value has {len(text) - end} characters too many: it is damaged")
            return from_tree(tree, resolve or Reference) if f'"{FORM}"' in text else tree
        if tag == b"b":
            return bytes(data[1:])
        if tag == b"n":
            return _read_array(data)
        if tag == b"p":
            import pickle

            return pickle.loads(memoryview(data)[1:])
        if tag == b"r":
            from pilot.pickles import load

            return load(data, resolve or Reference)
    except (PilotError, MemoryError):
        raise
    except ModuleNotFoundError as exc:
        raise DecodingError(
            f"a value needs the module {exc.name!r}, which is not found here; install it where the pilot runs"
        ) from exc
    except Exception as exc:
        raise DecodingError(f"a stored value cannot be read: {type(exc).__name__}: {exc}") from exc
    raise DecodingError(f"an encoded value begins with {tag!r}: it is damaged, or a newer pilot wrote it")


def is_data(data: Part) -> bool:
    """Whether to decode these bytes runs no code, whoever wrote them: no pickle, and no registered type.

    Raises:
        DecodingError: damaged bytes.
    """
    tag = bytes(data[:1])
    if tag != b"j":
        return tag in (b"b", b"n")
    try:
        text = str(data, "utf-8")
        return f'"{FORM}"' not in text or only_data(parse(text, 1)[0])
    except (ValueError, TypeError, AttributeError, RecursionError) as exc:
        raise DecodingError(f"a stored value cannot be read: {type(exc).__name__}: {exc}") from exc


_FILE_MARK = b'{"~":["file",'
_MAY_NAME_FILES = (b"j", b"p", b"r")
_FILE_FORM_BYTES = 4096
"""What a form of a file has at most: a name is 255 bytes."""


def names_files(encoded: Encoded) -> bool:
    """Whether a value names any files."""
    return encoded.parts[0][:1] in _MAY_NAME_FILES and any(_FILE_MARK in bytes(part) for part in encoded.parts)


def files_in(data: Part) -> list[dict[str, Any]]:
    """Return the fields of the forms of all files that an encoding names (`pilot.file`); nothing of it is unpickled."""
    if bytes(data[:1]) not in _MAY_NAME_FILES:
        return []
    if type(data) is bytes and _FILE_MARK not in data:
        return []
    import re

    view = memoryview(data)
    starts = [found.start() for found in re.finditer(re.escape(_FILE_MARK), view)]
    texts = [str(bytes(view[start : start + _FILE_FORM_BYTES]), "utf-8", "ignore") for start in starts]
    return [fields for text in texts if (fields := _file_form(text)) is not None]


def _file_form(text: str) -> dict[str, Any] | None:
    """Return the fields of the form of a file with which a text begins; None if it only looks so, as in a pickle."""
    try:
        _, fields = parse(text, 0)[0][FORM]
        kinds = [type(fields[name]) for name in ("name", "hash", "size")]
    except (ValueError, KeyError, TypeError):
        return None
    return fields if kinds == [str, str, int] and len(fields["hash"]) == 64 else None


# -- readable in the database ---------------------------------------------------------------------


def native(data: bytes) -> Any:
    """Return an encoding as BSON can hold it, so that people can read and query it, or `NOT_NATIVE`.

    Only plain data (tag ``j``), with its forms as they are, whose integers fit 64 bits and whose keys the
    database takes unchanged. `reencode` gives the same bytes back.
    """
    if data[:1] != b"j":
        return NOT_NATIVE
    tree = parse(data.decode(), 1)[0]
    return tree if _fits([tree], 0) else NOT_NATIVE


def _fits(values: Iterable[Any], depth: int) -> bool:
    for value in values:
        kind = type(value)
        if kind is int:
            if not -(1 << 63) <= value < 1 << 63:
                return False
        elif kind is dict:
            # "$" begins operators, and the driver makes its own object of {"$ref": …}
            if depth > _MAX_NATIVE_DEPTH or any("\0" in k or k[:1] == "$" for k in value):
                return False
            if not _fits(value.values(), depth + 1):
                return False
        elif kind is list and (depth > _MAX_NATIVE_DEPTH or not _fits(value, depth + 1)):
            return False
    return True


def reencode(tree: Any) -> bytes:
    """Return the encoding from which `native` made `tree`, also after the database stored it.

    Raises:
        DecodingError: somebody put something else in its place.
    """
    try:
        return b"j" + dump(tree).encode()
    except (TypeError, ValueError, RecursionError) as exc:
        raise DecodingError(f"a stored value is not one that was encoded here: {exc}") from exc


def from_native(tree: Any, resolve: Resolve | None = None) -> Any:
    """Return the value that `native` made `tree` of, with Python's own types in place of the driver's.

    Raises:
        DecodingError: as `decode`.
    """
    return decode(reencode(tree), resolve)
