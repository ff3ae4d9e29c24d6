"""Pickles of values: cloudpickle, with references to futures as persistent ids.

Apart from `pilot.values` because most values need none of this and cloudpickle takes 20 ms to import.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable
from json.encoder import encode_basestring
from typing import TYPE_CHECKING, Any

import cloudpickle

if TYPE_CHECKING:
    from pilot.plain import Use

_DEPTH = 20


def _reduce_text_file(file: io.TextIOWrapper) -> Any:
    """Refuse what cloudpickle would replace by a copy of the file's text."""
    for name in ("stdout", "stderr"):
        if file is getattr(sys, name):
            return getattr, (sys, name)
    raise TypeError(f"cannot pickle the open file {getattr(file, 'name', '?')!r}")


_theirs: Any = cloudpickle.Pickler.dispatch_table


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    dispatch_table = _theirs.new_child({io.TextIOWrapper: _reduce_text_file})


class _LinkingPickler(_Pickler):
    """Writes ``(task, output)`` where a future stands and remembers each use as a link."""

    def __init__(self, file: io.BytesIO, name: str, paths: dict[int, list[str]]) -> None:
        super().__init__(file, protocol=5)
        self._name = name
        self._paths = paths
        self.uses: list[Use] = []
        self._unnamed = 0

    def persistent_id(self, obj: Any) -> tuple[str, str | None] | None:
        if not hasattr(type(obj), "__pilot_link__"):
            return None
        named = self._paths.get(id(obj))
        path = named.pop() if named else f"{self._name}#{self._unnamed}"
        self._unnamed += not named
        task, output = obj.__pilot_link__()
        self.uses.append((path, task, output))
        return task, output


class _LinkingUnpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, resolve: Callable[[str, str | None], Any]) -> None:
        super().__init__(file)
        self._resolve = resolve

    def persistent_load(self, pid: Any) -> Any:
        return self._resolve(*pid)


def dump(value: object, name: str, uses: list[Use] | None) -> bytes:
    """Return tag and pickle of `value`.

    Args:
        name: the argument's name, with which the links' paths begin.
        uses: where to add the futures found; None: do not look for any.
    """
    file = io.BytesIO()
    file.write(b"p")
    if uses is None:
        _Pickler(file, protocol=5).dump(value)
    else:
        paths: dict[int, list[str]] = {}
        _find(value, name, paths, 0)
        for found in paths.values():
            found.reverse()  # taken from the end
        pickler = _LinkingPickler(file, name, paths)
        pickler.dump(value)
        if pickler.uses:
            uses.extend(pickler.uses)
            with file.getbuffer() as buffer:
                buffer[:1] = b"r"
    return file.getvalue()


def _find(value: Any, path: str, paths: dict[int, list[str]], depth: int) -> None:
    """Note where futures stand in lists, tuples and dicts. The pickler finds the others, but not their names."""
    kind = type(value)
    if kind is list or kind is tuple:
        inner: Any = ((f"{path}[{i}]", item) for i, item in enumerate(value))
    elif kind is dict:
        inner = ((f"{path}[{_key(k)}]", item) for k, item in value.items())
    else:
        if hasattr(kind, "__pilot_link__"):
            paths.setdefault(id(value), []).append(path)
        return
    if depth < _DEPTH:
        for where, item in inner:
            _find(item, where, paths, depth + 1)


def _key(key: object) -> str:
    return encode_basestring(key) if type(key) is str else repr(key) if type(key) in (int, float, bool) else "…"


def load(data: bytes | memoryview, resolve: Callable[[str, str | None], Any]) -> Any:
    """Return the value of a pickle with references, each replaced by what `resolve` returns for it."""
    file = io.BytesIO(data)
    file.seek(1)
    return _LinkingUnpickler(file, resolve).load()
