"""Run very many tasks inside batch allocations and remember how every result came about.

The public names are loaded when first used, so that workers, which import modules of this package, pay for
none of it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from concurrent.futures import as_completed, wait
    from typing import Any

    from pilot.client import Project
    from pilot.client import open_project as open
    from pilot.context import Context, current
    from pilot.define import cache, command, task
    from pilot.errors import PilotError, TaskFailed
    from pilot.file import File
    from pilot.future import Future
    from pilot.plain import register
    from pilot.resources import Resources
    from pilot.states import Outcome, State

__version__ = "0.1.0"

_WHERE = {
    "Context": ("pilot.context", "Context"),
    "File": ("pilot.file", "File"),
    "Future": ("pilot.future", "Future"),
    "Outcome": ("pilot.states", "Outcome"),
    "PilotError": ("pilot.errors", "PilotError"),
    "Project": ("pilot.client", "Project"),
    "Resources": ("pilot.resources", "Resources"),
    "State": ("pilot.states", "State"),
    "TaskFailed": ("pilot.errors", "TaskFailed"),
    "as_completed": ("concurrent.futures", "as_completed"),
    "cache": ("pilot.define", "cache"),
    "command": ("pilot.define", "command"),
    "current": ("pilot.context", "current"),
    "open": ("pilot.client", "open_project"),
    "register": ("pilot.plain", "register"),
    "task": ("pilot.define", "task"),
    "wait": ("concurrent.futures", "wait"),
}

__all__ = [
    "Context", "File", "Future", "Outcome", "PilotError", "Project", "Resources", "State", "TaskFailed",
    "as_completed", "cache", "command", "current", "open", "register", "task", "wait",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'pilot' has no attribute {name!r}")
    import importlib

    module, attribute = _WHERE[name]
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
