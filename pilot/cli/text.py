"""Words and numbers as people read them, and as JSON has them. Pure."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pilot.plain import FORM

STYLES = {
    "waiting": "cyan", "ready": "blue", "leased": "yellow", "done": "green", "failed": "red", "cancelled": "magenta",
    "starting": "blue", "running": "green", "draining": "yellow", "ended": "dim", "lost": "red", "silent": "red",
    "queued": "blue", "held": "yellow", "requeued": "yellow", "configuring": "blue", "suspended": "yellow",
    "dead": "red", "succeeded": "green", "cached": "green", "timeout": "red", "crashed": "red",
}  # fmt: skip
"""Colour of every state and outcome, and of what `fleet` makes of a pilot's heartbeat."""

# -- for people -----------------------------------------------------------------------------------


def span(seconds: float) -> str:
    """Return a duration in its two largest units at most: ``4.2 ms``, ``37 s``, ``5 min``, ``2 h 10 min``."""
    if seconds < 0.9995:
        return f"{max(seconds, 0.0) * 1e3:.3g} ms"
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def age(moment: datetime, now: datetime) -> str:
    """Return how long ago that was: ``3 s``; a moment that another clock puts into the future is now."""
    return span(max(1.0, round((now - moment).total_seconds())))


def size(count: int) -> str:
    """Return a number of bytes: ``512 B``, ``3.2 MiB``."""
    if count < 1024:
        return f"{count} B"
    value = float(count)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if value < 999.5:
            return f"{value:.3g} {unit}"
    return f"{value / 1024:.3g} TiB"


def count(number: int, what: str, many: str = "") -> str:
    """Return ``1 task`` or ``1,204 tasks``."""
    return f"{number:,} {what if number == 1 else many or what + 's'}"


def rate(per_s: float) -> str:
    """Return tasks per second, or per minute if they are few."""
    if per_s >= 9.95:
        return f"{per_s:,.0f} /s"
    return f"{per_s:.2g} /s" if per_s >= 1 or per_s == 0 else f"{per_s * 60:.2g} /min"


def line(text: str, most: int = 100) -> str:
    """Return a text on one line, clipped."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


def styled(word: str) -> str:
    """Return a state or outcome with its colour, in rich's markup."""
    style = STYLES.get(word)
    return f"[{style}]{word}[/]" if style else word


# -- values ---------------------------------------------------------------------------------------

_FIRST = 8
"""Items of a list that are shown."""
_FORMS = {"tuple": "tuple", "bytes": "bytes", "path": "Path", "complex": "complex"}


def value(entry: Mapping[str, Any], most: int = 72) -> str:
    """Return an input or output of a record, short; nothing of it is unpickled.

    Args:
        entry: has ``value`` (plain), ``data`` (an encoding) or neither (an object in the repository).
        most: characters.
    """
    if "value" in entry:
        tree = entry["value"]
        items = f" {len(tree):,} items" if isinstance(tree, list) and len(tree) > _FIRST else ""
        return _clipped(_plain(tree, most), most - len(items)) + items
    if "data" in entry:
        return _clipped(_encoding(bytes(entry["data"]), entry["size"]), most)
    return f"{size(entry['size'])} in the object repository"


def _clipped(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _plain(tree: Any, most: int) -> str:
    """Write plain data as Python would, until it is longer than anybody will see."""
    if isinstance(tree, dict):
        if tree.keys() == {FORM} and isinstance(tree[FORM], list) and tree[FORM]:
            return _form(tree[FORM], most)
        return "{" + _items((f"{key!r}: " for key in tree), tree.values(), most) + "}"
    if isinstance(tree, list):
        return "[" + _items(iter(lambda: "", None), tree, most) + "]"
    if isinstance(tree, str):
        return repr(tree[: most + 1])
    return repr(tree)


def _items(heads: Any, values: Any, most: int) -> str:
    shown: list[str] = []
    length = 0
    for head, item in zip(heads, values, strict=False):
        if length > most or len(shown) == _FIRST:
            shown.append("…")
            break
        shown.append(head + _plain(item, most))
        length += len(shown[-1]) + 2
    return ", ".join(shown)


def _form(form: Sequence[Any], most: int) -> str:
    name = str(form[0])
    if name == "tuple" and len(form) == 2 and isinstance(form[1], list):
        return "(" + _items(iter(lambda: "", None), form[1], most) + ")"
    if name == "ref":
        return "←"
    if name == "file" and len(form) == 2 and isinstance(form[1], dict):
        return _file(form[1])
    inside = ", ".join(_plain(item, most) for item in form[1:])
    return f"{_FORMS.get(name, name)}({inside})"


def _file(fields: Mapping[str, Any]) -> str:
    kind = "Tree" if fields.get("tree") else "File"
    where = ", in place" if "keep" in fields else ""
    return f"{kind}({fields['name']!r}, {size(fields['size'])}{where})"


def _encoding(data: bytes, length: int) -> str:
    kind = data[:1]
    if kind == b"j":
        return data[1:200].decode("utf-8", "replace")
    if kind == b"b":
        return repr(data[1:100])
    if kind == b"n":
        return f"NumPy array, {_array(data)}{size(length)}"
    if kind in (b"p", b"r"):
        return f"pickled, {size(length)}"
    return size(length)


def _array(data: bytes) -> str:
    from ast import literal_eval

    try:
        header = literal_eval(data[11 : 11 + int.from_bytes(data[9:11], "little")].decode("ascii").strip())
        return f"{header['descr']} {header['shape']}, "
    except (ValueError, SyntaxError, KeyError, TypeError):
        return ""


# -- for programs ---------------------------------------------------------------------------------


def iso(moment: datetime) -> str:
    """Return ``2026-03-01T12:00:00.123Z``."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def plain(tree: Any) -> Any:
    """Return documents as JSON can hold them: times in ISO 8601 UTC, bytes in base64, no NaN."""
    if isinstance(tree, Mapping):
        return {str(key): plain(item) for key, item in tree.items()}
    if isinstance(tree, list | tuple | set | frozenset):
        return [plain(item) for item in tree]
    if isinstance(tree, datetime):
        return iso(tree)
    if isinstance(tree, bytes):
        return base64.b64encode(tree).decode("ascii")
    if isinstance(tree, float) and not math.isfinite(tree):
        return repr(tree)
    return tree if tree is None or isinstance(tree, str | int | float) else str(tree)


def as_json(tree: Any) -> str:
    """Return one JSON document."""
    return json.dumps(plain(tree), indent=2, ensure_ascii=False, allow_nan=False)


def json_line(tree: Any) -> str:
    """Return one JSON document on one line."""
    return json.dumps(plain(tree), ensure_ascii=False, allow_nan=False)
