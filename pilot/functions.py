"""The identity of functions: what is kept of one at submit, and how a child gets it back.

A function that can be imported is kept by name, with the digest of its module's file; any other (notebook,
script, lambda, closure, partial, bound method) by value, with its closure, defaults and globals.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from pilot.errors import CodeChanged, DecodingError, ObjectCorrupt, PilotError, PythonMismatch
from pilot.model import Blob, FunctionCode
from pilot.plain import ATOMS, dump
from pilot.source import file_digest, file_of_module, git_state, in_environment, name_code, source_of
from pilot.values import decode, digest, encode

PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
_MAX_WRAPPERS = 8


class StaleModule(CodeChanged):
    """This process imported an older text of the module. A new process will do."""


class _Known(NamedTuple):
    """A function described before, and what has to be unchanged for that to hold."""

    code: FunctionCode
    text: tuple[CodeType | None, str, tuple[str, ...]]
    """Code object, and digests of the files of its module and its classes, for which the source text was read."""
    state: Any
    """Fingerprint of a function by value; None if only pickling it again tells."""


_known: WeakKeyDictionary[Any, _Known] = WeakKeyDictionary()
_imported: dict[str, str] = {}
"""Module → digest of its file when `load` first saw it in this process."""
_started_ns = time.time_ns()


# -- at submit ------------------------------------------------------------------------------------


def describe(function: Callable[..., Any]) -> FunctionCode:
    """Return what is stored of a function: enough to run it and to read it in five years.

    Cheap when repeated. A function by value is looked at again each time, because a notebook changes the
    globals it uses; what cannot be compared quickly is pickled anew.

    Raises:
        EncodingError: it is neither importable by name nor can it be pickled.
    """
    function = _unwrap_task(function)
    module, qualname = _names(function)
    path = _import_path(function, module, qualname)
    module_file = file_of_module(module)
    module_hash = file_digest(module_file) if module_file else ""
    known = _recall(function)
    kin = _kin(function, module_file)
    text = (getattr(function, "__code__", None), module_hash, kin)
    state = (path,) if path is not None else _fingerprint(function, [])
    if known is not None and known.text == text and state is not None and known.state == state:
        return known.code
    if known is not None and known.text == text:
        source, git = known.code.source, known.code.git
    else:
        source = source_of(function)
        git = _git_around(module, module_file)
    pickle = None if path is not None else _by_value(function, module, qualname)
    source_hash = digest(source.encode("utf-8", "surrogatepass")) if source else ""
    name = path or qualname
    code = FunctionCode(
        hash="",
        module=module,
        qualname=name,
        source=source,
        source_hash=source_hash,
        module_hash=module_hash,
        pickle=pickle,
        python=PYTHON,
        git=git,
        kin=kin,
    )
    code = code._replace(hash=identity(code))
    _remember(function, _Known(code, text, state))
    return code


def _kin(function: Any, module_file: str | None) -> tuple[str, ...]:
    """Return digests of the files, other than its module's, in which the classes of a method or callable object are.

    A plugin's class decides what the method does that it inherits. What is installed is left out.
    """
    if type(function) is FunctionType:
        return ()
    owner = getattr(function, "__self__", None) if type(function) is MethodType else function
    classes = (owner if isinstance(owner, type) else type(owner)).__mro__
    files = {path for cls in classes if (path := file_of_module(cls.__module__)) and path != module_file}
    return tuple(sorted(file_digest(path) for path in files if not in_environment(path)))


def identity(code: FunctionCode) -> str:
    """Return the hash of a function: of all that decides what it does; only a pickle depends on Python's version."""
    pickled = (code.pickle.hash, code.python) if code.pickle is not None else ("", "")
    parts = [code.module, code.qualname, code.source_hash, code.module_hash, *pickled, *code.kin]
    return digest(dump(parts).encode("utf-8", "surrogatepass"))


def _git_around(module: str, module_file: str | None) -> dict[str, Any] | None:
    if module_file is None:
        return git_state(".") if module == "__main__" else None  # a notebook lies where it runs
    return None if in_environment(module_file) else git_state(module_file)


def _recall(function: Any) -> _Known | None:
    try:
        return _known.get(function)
    except TypeError:  # not hashable, or no weak references
        return None


def _remember(function: Any, known: _Known) -> None:
    try:
        _known[function] = known
    except TypeError:
        return


def _unwrap_task(function: Any) -> Any:
    """Return the function inside what `pilot.task` made: a type with ``__pilot_task__ = True``."""
    return function.function if getattr(type(function), "__pilot_task__", False) is True else function


def _names(function: Any) -> tuple[str, str]:
    """Return module and qualified name under which a person knows any callable."""
    inner = getattr(function, "func", None)
    if type(function).__name__ == "partial" and callable(inner):
        inner_module, inner_name = _names(_unwrap_task(inner))
        return inner_module, f"functools.partial({inner_name})"
    module: Any = getattr(function, "__module__", None)
    qualname: Any = getattr(function, "__qualname__", None)
    if not isinstance(qualname, str):
        qualname = f"{type(function).__qualname__}.__call__"
    return (module if isinstance(module, str) else "builtins"), qualname


def _import_path(function: Any, module: str, qualname: str) -> str | None:
    """Return the attribute path at which another process finds the function in its module, if any.

    A decorator may have put a wrapper in its place; then the path goes on through the wrapper, e.g.
    ``energy.__wrapped__``. A task is looked through without a word, here and in `load`.
    """
    there = sys.modules.get(module)
    if there is None or module == "__main__" or not _has_file(module, there) or "<" in qualname or "(" in qualname:
        return None
    found: Any = there
    try:
        for name in qualname.split("."):
            found = getattr(found, name)
    except AttributeError:
        return None
    path = qualname
    for _ in range(_MAX_WRAPPERS):
        found = _unwrap_task(found)
        if found is function or (type(function) is MethodType and found == function):
            return path
        for step in ("__wrapped__", "function"):
            inner = getattr(found, step, None)
            if callable(inner):
                found, path = inner, f"{path}.{step}"
                break
        else:
            return None
    return None


def _by_value(function: Any, module: str, qualname: str) -> Blob:
    """Pickle a function with all it needs."""
    import cloudpickle

    there = sys.modules.get(module)
    hidden = there is not None and not _has_file(module, there)
    if hidden:  # cloudpickle would write a name that leads to nothing elsewhere
        cloudpickle.register_pickle_by_value(there)
    try:
        encoded = encode(function, f"the function {qualname!r}")
    finally:
        if hidden:
            cloudpickle.unregister_pickle_by_value(there)
    return Blob(encoded.hash, encoded.size, encoded.data)


def _has_file(module: str, there: ModuleType) -> bool:
    """Whether another process can import the module, as far as can be seen from here."""
    if module == "__main__" or module in sys.builtin_module_names:  # cloudpickle knows what to do with __main__
        return True
    return module != "__mp_main__" and bool(getattr(there, "__file__", None))


# -- has a function by value changed? -------------------------------------------------------------


def _fingerprint(function: Any, seen: list[Any]) -> Any:
    """Return what the pickle of a function depends on, comparable with ``==``; None if that is not certain."""
    if type(function) is not FunctionType or function.__dict__:
        return None
    seen.append(function)
    try:
        closure = tuple(cell.cell_contents for cell in function.__closure__ or ())
    except ValueError:  # a cell not filled yet
        return None
    names = _global_names(function.__code__)
    used = [(name, function.__globals__[name]) for name in sorted(names) if name in function.__globals__]
    defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    values = [_stable(value, seen) for value in (*closure, *defaults, *(value for _, value in used))]
    if None in values:
        return None
    return function.__code__, len(closure), len(defaults), [name for name, _ in used], values


def _global_names(code: CodeType) -> set[str]:
    """Return every name that the code might look up in its globals, and some it does not."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if type(constant) is CodeType:
            names |= _global_names(constant)
    return names


def _stable(value: Any, seen: list[Any]) -> Any:
    """Return something that changes when the value does, or None for what may change inside."""
    kind = type(value)
    if kind in ATOMS or kind is bytes:
        return kind, repr(value) if kind is float else value
    if kind is ModuleType or kind is BuiltinFunctionType:
        return kind, value
    if kind is tuple:
        inner = [_stable(item, seen) for item in value]
        return None if None in inner else (kind, inner)
    if kind is FunctionType:
        for index, function in enumerate(seen):
            if function is value:  # recursion; holding the function here would keep it for ever
                return "seen", index
        if _import_path(value, *_names(value)) is not None:
            return kind, value
        return _fingerprint(value, seen)
    if kind is type and _import_path(value, *_names(value)) is not None:
        return kind, value
    return None


# -- as stored ------------------------------------------------------------------------------------


def code_from(doc: Mapping[str, Any]) -> FunctionCode:
    """Return the function that a document of the `functions` collection holds."""
    pickled = doc.get("pickle")
    blob = Blob(pickled["hash"], pickled["size"], pickled.get("data")) if pickled else None
    return FunctionCode(
        doc["_id"], doc["module"], doc["qualname"], doc["source"], doc["source_hash"], doc["module_hash"], blob,
        doc["python"], doc.get("git"), tuple(doc.get("kin", ())),
    )  # fmt: skip


# -- in a child -----------------------------------------------------------------------------------


def load(code: FunctionCode, pickle_bytes: bytes | memoryview | None = None) -> Callable[..., Any]:
    """Return the function. Verify its signature first: this imports or unpickles code.

    Args:
        pickle_bytes: what the object repository holds under ``code.pickle.hash``, if it is not inline.

    Raises:
        PythonMismatch: this Python's minor version is not the submitter's.
        CodeChanged: the module's file is not the one that was submitted.
        StaleModule: it is, but this process had imported an older text; try in a new process.
        ObjectCorrupt: the pickle does not have its hash.
        DecodingError: the module cannot be imported or the pickle not be read here.
    """
    name = f"{code.module}.{code.qualname}"
    if code.python != PYTHON:
        raise PythonMismatch(
            f"the function {name!r} was submitted with Python {code.python} and this is Python {PYTHON}: "
            f"start the pilot with Python {code.python}, or submit again with Python {PYTHON}"
        )
    if code.pickle is None:
        function = _import(code, name)
    else:
        data = code.pickle.data if pickle_bytes is None else pickle_bytes
        if data is None or digest(data) != code.pickle.hash:
            raise ObjectCorrupt(f"the pickle of the function {name!r} does not have the hash {code.pickle.hash}")
        function = decode(data)
        name_code(function, name, code.source)
    if not callable(function):
        raise DecodingError(f"{name!r} is not a function here but {type(function).__qualname__}")
    return function  # type: ignore[no-any-return]


def _import(code: FunctionCode, name: str) -> Any:
    from importlib import import_module

    early = code.module in sys.modules
    try:
        if code.module_hash and not early:
            from importlib.util import find_spec

            spec = find_spec(code.module)  # look before the code of the module runs
            if spec is not None and spec.has_location and spec.origin is not None:
                _check_file(code, name, spec.origin)
        found: Any = import_module(code.module)
    except PilotError:
        raise
    except Exception as exc:
        raise DecodingError(
            f"the function {name!r} needs the module {code.module!r}, whose import failed: "
            f"{type(exc).__name__}: {exc}; put its folder on PYTHONPATH or install it where the pilot runs"
        ) from exc
    if code.module_hash:
        _check_import(code, name, early)
    try:
        for step in code.qualname.split("."):
            found = _unwrap_task(getattr(found, step))
    except AttributeError as exc:
        raise DecodingError(f"the module {code.module!r} has no {code.qualname!r} here: {exc}") from exc
    return found


def _check_file(code: FunctionCode, name: str, path: str) -> None:
    if file_digest(path) != code.module_hash:
        raise CodeChanged(
            f"the file of the function {name!r} is not the one that was submitted: {path!r}; "
            "put the old text back, or submit again"
        )


def _check_import(code: FunctionCode, name: str, early: bool) -> None:
    """Check that the text which this process imported is the submitted one.

    Args:
        early: somebody else imported the module before, so nobody took the digest at that moment.
    """
    path = file_of_module(code.module) or ""
    _check_file(code, name, path)
    if code.module not in _imported and not (early and os.stat(path).st_ctime_ns > _started_ns):
        _imported[code.module] = code.module_hash
    if _imported.get(code.module) != code.module_hash:
        raise StaleModule(
            f"the file {path!r} of the function {name!r} changed after this process had imported it; "
            "run the task in a new process"
        )
