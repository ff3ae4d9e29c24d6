"""An exception as text: only text leaves the child, so nothing about it needs to be picklable."""

from __future__ import annotations

import os
import signal
from types import TracebackType

from pilot import model
from pilot.model import Failure
from pilot.source import show_texts

TRACEBACK_BYTES = 64 * 1024
MESSAGE_BYTES = 8 * 1024

_OURS = {os.path.dirname(__file__), os.path.dirname(model.__file__)}


def describe(error: BaseException, rank: int, host: str) -> Failure:
    """Return type, message and traceback (with source lines, causes, notes) of what a task raised.

    Our own frames above the task's are left out. Works for exceptions whose ``str()`` raises.
    """
    import traceback

    show_texts()
    trace = error.__traceback__
    while trace is not None and _ours(trace):
        trace = trace.tb_next
    formatted = traceback.TracebackException(type(error), error, trace or error.__traceback__, compact=True)
    name = type(error).__qualname__
    if type(error).__module__ not in ("builtins", "__main__"):
        name = f"{type(error).__module__}.{name}"
    last = "".join(formatted.format_exception_only()).rstrip("\n")
    _, _, message = last.partition(": ")
    text = "".join(formatted.format())
    return Failure(name, clipped(message, MESSAGE_BYTES), clipped(text, TRACEBACK_BYTES), rank, host)


def explained(failure: Failure, error: BaseException, memory_bytes: int | None) -> Failure:
    """Return the failure with what ended the task said in words, where Python's own say little."""
    if isinstance(error, SystemExit):
        return failure._replace(message=clipped(f"the task called sys.exit({error.code!r})", 1000))
    if isinstance(error, MemoryError) and memory_bytes is not None:
        text = f"the task needs more than its memory limit of {memory_bytes / (1 << 20):.0f} MiB"
        return failure._replace(message=f"{text}: {failure.message}" if failure.message else text)
    return failure


def exit_code(error: BaseException) -> int | None:
    """Return the exit code that a `SystemExit` would have given the process, None for any other error."""
    if not isinstance(error, SystemExit):
        return None
    return error.code if isinstance(error.code, int) else int(error.code is not None)


def signal_text(number: int) -> str:
    """Return "was killed by signal 11 (SIGSEGV)", with what is likely behind it."""
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = "real-time"
    text = f"was killed by signal {number} ({name})"
    if number == signal.SIGKILL:
        text += ", not sent by pilot: often the kernel's out-of-memory killer"
    return text


def clipped(text: str, most: int) -> str:
    """Return `text` as valid UTF-8 of about `most` bytes: its beginning and its end, with a note between them."""
    data = text.encode(errors="backslashreplace")
    if len(data) <= most:
        return data.decode()
    head, tail = most // 4, most - most // 4
    cut = len(data) - most
    return f"{data[:head].decode(errors='ignore')}\n[… {cut} bytes left out …]\n{data[-tail:].decode(errors='ignore')}"


def _ours(trace: TracebackType) -> bool:
    return os.path.dirname(trace.tb_frame.f_code.co_filename) in _OURS
