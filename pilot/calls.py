"""Arguments by name, and back: what a record shows of a call, and the call made of it.

`bind` gives every argument that was passed a name of its own, in the order of the signature; `arguments`
turns names and values into a call again, in another process. Defaults are not filled in.

=============================  ==============================================
passed as                      its name
=============================  ==============================================
any parameter                  ``symbol``
one of ``*args``               ``args[0]``
one of ``**kwargs``            its key; ``kwargs["the key"]`` if that is no
                               identifier, or a positional-only parameter's
=============================  ==============================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn
from weakref import WeakKeyDictionary

from pilot.errors import InvalidInput
from pilot.plain import parse, quote

if TYPE_CHECKING:
    from inspect import Signature

COMM = "comm"
"""Parameter of an MPI function for which its pool passes the communicator; nobody else gives it a value."""

_VARARGS = 0x04  # inspect.CO_VARARGS, CO_VARKEYWORDS; a child need not import inspect for them
_VARKEYWORDS = 0x08


class _Shape(NamedTuple):
    """A signature, as far as calling goes."""

    code: CodeType | None
    """Of which it was read; IPython's autoreload puts another code into the same function."""
    names: tuple[str, ...]
    """Parameters that a positional argument can fill."""
    positional_only: int
    """How many of `names` no keyword can fill."""
    required: int
    """How many of `names` have no default."""
    keyword_only: tuple[str, ...]
    required_keywords: frozenset[str]
    args: str | None
    kwargs: str | None


_OPAQUE = _Shape(None, (), 0, 0, (), frozenset(), "args", "kwargs")
_shapes: WeakKeyDictionary[Any, _Shape] = WeakKeyDictionary()


def bind(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return (name, value) of every argument passed, in the order of the signature.

    A function without a readable signature (some builtins) takes anything.

    Raises:
        InvalidInput: the arguments do not fit; the text is what Python would say.
    """
    shape = _shape_of(function)
    count = len(args)
    if not kwargs and shape.required <= count <= len(shape.names) and not shape.required_keywords:
        return list(zip(shape.names, args, strict=False))
    return _bind_all(function, shape, args, kwargs)


def arguments(function: Callable[..., Any], named: Iterable[tuple[str, Any]]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return what `bind` was given, up to the choice between position and keyword. Keep the order of `bind`."""
    shape = _shape_of(function)
    names = shape.names
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for name, value in named:
        if len(args) < len(names) and name == names[len(args)]:
            args.append(value)
        elif not name.endswith("]"):
            kwargs[name] = value
        elif shape.kwargs is not None and name.startswith(f'{shape.kwargs}["'):
            kwargs[parse(name, len(shape.kwargs) + 1)[0]] = value
        else:
            args.append(value)
    return tuple(args), kwargs


def call(function: Callable[..., Any], named: Iterable[tuple[str, Any]]) -> Any:
    """Call `function` with arguments as `bind` named them."""
    args, kwargs = arguments(function, named)
    return function(*args, **kwargs)


def takes(function: Callable[..., Any], name: str) -> bool:
    """Return whether the function has a parameter of this name."""
    shape = _shape_of(function)
    return name in shape.names or name in shape.keyword_only


def position(function: Callable[..., Any], name: str) -> int | None:
    """Return the number, from 0, of the positional argument that fills this parameter; None if none does."""
    names = _shape_of(function).names
    return names.index(name) if name in names else None


def requires(function: Callable[..., Any], name: str) -> bool:
    """Return whether the function has a parameter of this name without a default."""
    shape = _shape_of(function)
    return name in shape.names[: shape.required] or name in shape.required_keywords


def _shape_of(function: Callable[..., Any]) -> _Shape:
    try:
        shape = _shapes.get(function)
    except TypeError:  # not hashable, or no weak references
        return _read_shape(function)
    if shape is None or shape.code is not getattr(function, "__code__", None):
        shape = _shapes[function] = _read_shape(function)
    return shape


def _read_shape(function: Callable[..., Any]) -> _Shape:
    told = hasattr(function, "__wrapped__") or hasattr(function, "__signature__")
    if type(function) is FunctionType and not told:
        return _shape_of_code(function)
    import inspect

    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return _OPAQUE._replace(code=getattr(function, "__code__", None))
    return _shape_of_signature(signature, getattr(function, "__code__", None))


def _shape_of_code(function: FunctionType) -> _Shape:
    code = function.__code__
    count = code.co_argcount
    end = count + code.co_kwonlyargcount
    names = iter(code.co_varnames[end:])
    keyword_only = code.co_varnames[count:end]
    return _Shape(
        code=code,
        names=code.co_varnames[:count],
        positional_only=code.co_posonlyargcount,
        required=count - len(function.__defaults__ or ()),
        keyword_only=keyword_only,
        required_keywords=frozenset(keyword_only) - frozenset(function.__kwdefaults__ or ()),
        args=next(names) if code.co_flags & _VARARGS else None,
        kwargs=next(names) if code.co_flags & _VARKEYWORDS else None,
    )


def _shape_of_signature(signature: Signature, code: CodeType | None) -> _Shape:
    kinds: dict[str, list[str]] = {}
    needed = set()
    for name, parameter in signature.parameters.items():
        kinds.setdefault(parameter.kind.name, []).append(name)
        if parameter.default is parameter.empty:
            needed.add(name)
    only = kinds.get("POSITIONAL_ONLY", [])
    names = only + kinds.get("POSITIONAL_OR_KEYWORD", [])
    keyword_only = kinds.get("KEYWORD_ONLY", [])
    return _Shape(
        code=code,
        names=tuple(names),
        positional_only=len(only),
        required=sum(name in needed for name in names),
        keyword_only=tuple(keyword_only),
        required_keywords=frozenset(keyword_only) & needed,
        args=kinds.get("VAR_POSITIONAL", [None])[0],
        kwargs=kinds.get("VAR_KEYWORD", [None])[0],
    )


def _bind_all(
    function: Callable[..., Any], shape: _Shape, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> list[tuple[str, Any]]:
    names = shape.names
    if len(args) > len(names) and shape.args is None:
        _refuse(function, _too_many(shape, len(args)))
    given = dict(zip(names, args, strict=False))
    extra: dict[str, Any] = {}
    by_keyword = {*names[shape.positional_only :], *shape.keyword_only}
    for key, value in kwargs.items():
        if key in by_keyword:
            if key in given:
                _refuse(function, f"got multiple values for argument {key!r}")
            given[key] = value
        elif shape.kwargs is not None:
            plain = key.isidentifier() and key not in names
            extra[key if plain else f"{shape.kwargs}[{quote(key)}]"] = value
        elif key in names:
            _refuse(function, f"got some positional-only arguments passed as keyword arguments: {key!r}")
        else:
            _refuse(function, f"got an unexpected keyword argument {key!r}")
    missing = [name for name in names[: shape.required] if name not in given]
    if missing:
        _refuse(function, _missing(missing, "positional"))
    missing = [name for name in shape.keyword_only if name in shape.required_keywords and name not in given]
    if missing:
        _refuse(function, _missing(missing, "keyword-only"))
    bound = [(name, given[name]) for name in names if name in given]
    bound += [(f"{shape.args}[{i}]", value) for i, value in enumerate(args[len(names) :])]
    bound += [(name, given[name]) for name in shape.keyword_only if name in given]
    bound += extra.items()
    return bound


def _refuse(function: Callable[..., Any], why: str) -> NoReturn:
    raise InvalidInput(f"{getattr(function, '__qualname__', type(function).__qualname__)}() {why}")


def _too_many(shape: _Shape, count: int) -> str:
    most = len(shape.names)
    takes = str(most) if shape.required == most else f"from {shape.required} to {most}"
    were = "was" if count == 1 else "were"
    return f"takes {takes} positional argument{'' if most == 1 else 's'} but {count} {were} given"


def _missing(names: list[str], kind: str) -> str:
    quoted = [repr(name) for name in names]
    if len(quoted) > 1:
        comma = "," if len(quoted) > 2 else ""
        listed = f"{', '.join(quoted[:-1])}{comma} and {quoted[-1]}"
    else:
        listed = quoted[0]
    return f"missing {len(names)} required {kind} argument{'' if len(names) == 1 else 's'}: {listed}"
