"""Plain data as canonical JSON, with forms for what JSON has no words for.

A form is an object with the one key ``~``: ``{"~": [NAME, …]}``, NAME one of ``tuple bytes path complex
numpy dict type ref file``. `to_tree` makes them, `from_tree` reads them, `dump` and `parse` go between trees and
text. Equal values give equal text.
"""

from __future__ import annotations

import json
import sys
from binascii import a2b_base64, b2a_base64
from json.encoder import encode_basestring

from pilot.errors import DecodingError, EncodingError, InvalidInput, PilotError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, TypeAlias

    Resolve: TypeAlias = Callable[[str, str | None], Any]
    Use: TypeAlias = tuple[str, str, str | None]
    """Path, task and output of one future: a `Link` to be."""

FORM = "~"
ATOMS = frozenset({type(None), bool, int, float, str})
_STR = frozenset({str})
_MAX_DEPTH = 50
_LONG_BYTES = 1 << 16  # above, base64 costs more than readability gains: pickle


class NotPlain(Exception):
    """This value has no JSON form; pickle it."""


class Reference:
    """Stands where a linked value belongs when nobody said how to get it."""

    __slots__ = ("output", "task")

    def __init__(self, task: str, output: str | None = None) -> None:
        self.task = task
        self.output = output

    def __pilot_link__(self) -> tuple[str, str | None]:
        return self.task, self.output

    def __eq__(self, other: object) -> bool:
        return type(other) is Reference and (self.task, self.output) == (other.task, other.output)

    def __hash__(self) -> int:
        return hash((self.task, self.output))

    def __repr__(self) -> str:
        return f"Reference({self.task!r}, {self.output!r})"


# -- text -----------------------------------------------------------------------------------------


def _refuse(value: object) -> Any:
    raise TypeError(f"{type(value).__name__} is not plain data")


def _writer() -> Callable[[Any], str]:
    encoder = json.JSONEncoder(
        ensure_ascii=False, separators=(",", ":"), sort_keys=True, check_circular=False, default=_refuse
    )
    make: Any = getattr(json.encoder, "c_make_encoder", None)
    if make is None:  # pragma: no cover
        return encoder.encode
    # What `encoder.encode` makes anew each time.
    write = make(None, _refuse, encode_basestring, None, ":", ",", True, False, True)
    return lambda tree: "".join(write(tree, 0))


quote: Callable[[str], str] = encode_basestring
"""Return a string as JSON."""

dump: Callable[[Any], str] = _writer()
"""Return a tree as canonical JSON: sorted keys, no spaces, NaN and infinities by name."""

parse: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder().raw_decode
"""Return the tree that begins at an index of a text, and the index where it ends."""


# -- types of the user's own ----------------------------------------------------------------------

_TYPES: dict[type, tuple[str, Callable[[Any], Any]]] = {}
_NAMES: dict[str, Callable[[Any], Any]] = {}


def register(cls: type, name: str, to_plain: Callable[[Any], Any], from_plain: Callable[[Any], Any]) -> None:
    """Encode exact instances of `cls` as readable plain data instead of a pickle.

    Args:
        cls: the type; subclasses are not covered.
        name: ``module:qualname``. Decoding imports the module if the name is not registered yet, so the
            module must make this call when it is imported.
        to_plain: returns anything that has a plain form; equal values should give equal results.
        from_plain: its inverse.

    Raises:
        InvalidInput: `name` has another form.
    """
    module, _, qualname = name.partition(":")
    if not module or not qualname:
        raise InvalidInput(f'{name!r} does not name a type; write "module:qualname"')
    _TYPES[cls] = (name, to_plain)
    _NAMES[name] = from_plain


# -- values as trees ------------------------------------------------------------------------------


def to_tree(value: Any, path: str, uses: list[Use] | None, depth: int = 0) -> Any:
    """Return `value` with forms where JSON has no words; `value` itself where there is nothing to do.

    Args:
        path: what a person calls `value`; the paths of the uses begin with it.
        uses: where to add the futures met; None: a future is not plain.

    Raises:
        NotPlain: something in it has no form.
        EncodingError: a registered type's `to_plain` failed.
    """
    kind = type(value)
    if depth > _MAX_DEPTH:
        raise NotPlain
    if kind is list:
        return _items(value, path, uses, depth)
    if kind is dict:
        if not _STR.issuperset(map(type, value)):
            raise NotPlain
        if not ATOMS.issuperset(map(type, value.values())):
            value = {
                k: v if type(v) in ATOMS else to_tree(v, f"{path}[{quote(k)}]", uses, depth + 1)
                for k, v in value.items()
            }
        return {FORM: ["dict", value]} if FORM in value else value
    if kind is tuple:
        return {FORM: ["tuple", _items(value, path, uses, depth)]}
    if uses is not None and hasattr(kind, "__pilot_link__"):
        task, output = value.__pilot_link__()
        uses.append((path, task, output))
        return {FORM: ["ref", task, output]}
    return {FORM: _form(kind, value, path, uses, depth)}


def _items(values: Sequence[Any], path: str, uses: list[Use] | None, depth: int) -> Sequence[Any]:
    if ATOMS.issuperset(map(type, values)):
        return values
    deeper = depth + 1
    return [v if type(v) in ATOMS else to_tree(v, f"{path}[{i}]", uses, deeper) for i, v in enumerate(values)]


def _form(kind: type, value: Any, path: str, uses: list[Use] | None, depth: int) -> list[Any]:
    """Return the form of a value that is neither an atom nor a container."""
    known = _TYPES.get(kind)
    if known is not None:
        try:
            plain = known[1](value)
        except (PilotError, MemoryError):
            raise
        except Exception as exc:
            raise EncodingError(
                f"to_plain of the registered type {known[0]!r} failed: {type(exc).__name__}: {exc}"
            ) from exc
        return ["type", known[0], plain if type(plain) in ATOMS else to_tree(plain, path, uses, depth + 1)]
    if kind is bytes and len(value) <= _LONG_BYTES:
        return ["bytes", b2a_base64(value, newline=False).decode()]
    if kind is complex:
        return ["complex", value.real, value.imag]
    if kind.__name__ == "PosixPath" and kind.__module__ in ("pathlib", "pathlib._local"):
        return ["path", str(value)]
    generic = getattr(sys.modules.get("numpy"), "generic", None)
    if generic is not None and isinstance(value, generic):
        dtype = value.dtype
        if dtype.kind in "fiub" and dtype.itemsize <= 8 and dtype.type is kind and _numpy_type(dtype.str) is kind:
            return ["numpy", dtype.str, value.item()]
    if hasattr(kind, "__pilot_form__"):
        form: list[Any] = value.__pilot_form__()
        return form
    raise NotPlain


def _numpy_type(code: str) -> Any:
    return sys.modules["numpy"].dtype(code).type


# -- and back -------------------------------------------------------------------------------------


def from_tree(tree: Any, resolve: Resolve) -> Any:
    """Return the value of a tree, with `resolve(task, output)` where references stand.

    Raises:
        DecodingError: a registered type that its module does not register.
    """
    # From the top down: the object in a ``dict`` form looks like a form itself.
    kind = type(tree)
    if kind is list:
        return [x if type(x) in ATOMS else from_tree(x, resolve) for x in tree]
    if kind is dict:
        if FORM in tree:
            name, *rest = tree[FORM]
            return _READERS[name](resolve, *rest)
        return _members(resolve, tree)
    return tree


def only_data(tree: Any) -> bool:
    """Whether `from_tree` makes nothing but plain data of a tree: it would import and call no registered type."""
    kind = type(tree)
    if kind is list:
        return all(only_data(x) for x in tree if type(x) not in ATOMS)
    if kind is dict:
        if FORM not in tree:
            return all(only_data(x) for x in tree.values() if type(x) not in ATOMS)
        name, *rest = tree[FORM]
        if name == "dict":  # as in `from_tree`: what looks like a form in it is none
            return all(only_data(x) for members in rest for x in members.values())
        return name != "type" and all(only_data(x) for x in rest)
    return True


def _members(resolve: Resolve, tree: dict[str, Any]) -> dict[str, Any]:
    return {k: v if type(v) in ATOMS else from_tree(v, resolve) for k, v in tree.items()}


def _read_type(resolve: Resolve, name: str, plain: Any) -> Any:
    if name not in _NAMES:
        __import__(name.partition(":")[0])
        if name not in _NAMES:
            raise DecodingError(f"a value is of the type {name!r}, whose module does not register it when imported")
    return _NAMES[name](from_tree(plain, resolve))


def _read_path(resolve: Resolve, text: str) -> Any:
    import pathlib

    return pathlib.Path(text)


def _read_file(resolve: Resolve, fields: dict[str, Any]) -> Any:
    __import__("pilot.file")  # above this layer, and few values need it
    return sys.modules["pilot.file"].File.read(fields)


def _read_numpy(resolve: Resolve, code: str, number: Any) -> Any:
    import numpy

    return numpy.dtype(code).type(number)


_READERS: dict[str, Callable[..., Any]] = {
    "tuple": lambda resolve, items: tuple(from_tree(items, resolve)),
    "dict": _members,
    "bytes": lambda resolve, text: a2b_base64(text),
    "complex": lambda resolve, real, imag: complex(real, imag),
    "path": _read_path,
    "numpy": _read_numpy,
    "type": _read_type,
    "ref": lambda resolve, task, output: resolve(task, output),
    "file": _read_file,
}


# -- what a tree refers to ------------------------------------------------------------------------


def with_references(tree: Any, replace: Resolve) -> Any:
    """Return a tree with the form ``["ref", replace(task, output)]`` where references stand."""
    kind = type(tree)
    if kind is list:
        return [x if type(x) in ATOMS else with_references(x, replace) for x in tree]
    if kind is not dict:
        return tree
    if FORM not in tree:
        return _members_with(tree, replace)
    name, *rest = tree[FORM]
    if name == "ref":
        return {FORM: [name, replace(*rest)]}
    if name == "dict":  # its object looks like a form itself
        return {FORM: [name, _members_with(rest[0], replace)]}
    return {FORM: [name, *rest[:-1], with_references(rest[-1], replace)]}


def _members_with(tree: dict[str, Any], replace: Resolve) -> dict[str, Any]:
    return {k: v if type(v) in ATOMS else with_references(v, replace) for k, v in tree.items()}
