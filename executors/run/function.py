"""One function task; the child's side."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

from pilot.calls import call
from pilot.executors.run.exchange import Exchange
from pilot.executors.run.meter import Meter
from pilot.functions import StaleModule, load
from pilot.model import Blob, FunctionCode, Work
from pilot.values import encode

OUTPUT = "result"
"""Name of the one output of a function."""

_NONE_ENCODED = encode(None)
_NONE = ((OUTPUT, Blob(_NONE_ENCODED.hash, _NONE_ENCODED.size, _NONE_ENCODED.data)),)
"""What most functions return that are called for their effects."""


class Stale(Exception):
    """The function is to be loaded in a new process; nothing of the task has run."""


class Functions:
    """The functions that a child was given, loaded when first called.

    Args:
        exchange: fetches pickles that did not come with the code.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._codes: dict[str, FunctionCode] = {}
        self._loaded: dict[str, Callable[..., Any]] = {}
        self._touched = False

    def add(self, body: bytes) -> None:
        """Take a pickled `FunctionCode`."""
        code: FunctionCode = pickle.loads(body)
        self._codes[code.hash] = code

    def __contains__(self, name: str | None) -> bool:
        return name in self._codes

    def code(self, name: str) -> FunctionCode:
        """Return what was given with this hash."""
        return self._codes[name]

    def load(self, name: str) -> Callable[..., Any]:
        """Return the function with this hash.

        Raises:
            Stale: an older version of its module is in this process, which has loaded others before.
            CodeChanged: the module's file is not the one that was submitted.
            DecodingError: it cannot be imported or unpickled here.
            ObjectMissing: its pickle is gone from the object repository.
        """
        function = self._loaded.get(name)
        if function is None:
            code = self._codes[name]
            fresh, self._touched = not self._touched, True
            data = self._exchange.fetch(code.pickle) if code.pickle is not None and code.pickle.data is None else None
            try:
                function = self._loaded[name] = load(code, data)
            except StaleModule as exc:
                if fresh:
                    raise
                raise Stale(str(exc)) from exc
        return function


def run(work: Work, functions: Functions, exchange: Exchange, meter: Meter) -> tuple[tuple[str, Blob], ...]:
    """Call the task's function and return its encoded output, kept where it belongs.

    The memory limit holds for decoding the inputs and for the call, not for importing the function: whether
    a task is the first in its child must not decide whether it fits.

    Raises:
        BaseException: whatever the function raises, and what `Functions.load` and `Exchange` do.
    """
    function = functions.load(work.function or "")
    if work.memory_bytes is None:
        value = call(function, exchange.inputs(work))
    else:
        with meter.limit(work.memory_bytes):
            value = call(function, exchange.inputs(work))
    if value is None:
        return _NONE
    return ((OUTPUT, exchange.keep(encode(value, f"the result of {work.name!r}"))),)
