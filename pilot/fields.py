"""What can be asked of records: the names of the fields, what they hold, and in which document each stands. Pure."""

from __future__ import annotations

import re
from difflib import get_close_matches
from enum import StrEnum
from typing import NamedTuple

from pilot.errors import InvalidInput
from pilot.states import Kind, Outcome

NAME = re.compile(r"[\w-]+")
"""What needs no quotes after a dot."""


class Type(StrEnum):
    """What a field holds, and so how what it is compared with is read."""

    TEXT = "text"
    NUMBER = "number"
    SECONDS = "seconds"
    """A number, or a duration: ``5m``."""
    BYTES = "bytes"
    """A number, or a size: ``2G``."""
    TIME = "time"
    """A moment in ISO 8601, or a duration: so long ago."""
    VERSION = "version"
    VALUE = "value"
    """Whatever a user put there."""


class Home(StrEnum):
    """In which document a field stands."""

    RECORD = "record"
    FUNCTION = "function"
    """The record names its hash."""
    ENVIRONMENT = "environment"
    """The record names its hash."""
    INPUTS = "inputs"
    """In the entry of this name in the record's list."""
    OUTPUTS = "outputs"
    REMARKS = "remarks"
    """In the task's document, where people may change it at any time; the record has none of it."""


class Field(NamedTuple):
    """One field."""

    name: str
    """As it is written."""
    type: Type
    home: Home
    path: tuple[str, ...]
    """Steps in its document; of a value, its name and the steps into it."""

    @property
    def dotted(self) -> str:
        """The path as the database writes it."""
        return ".".join(self.path)

    @property
    def of_value(self) -> bool:
        """Whether it is an input or output, or a part of one."""
        return self.home in (Home.INPUTS, Home.OUTPUTS)

    @property
    def plain_name(self) -> str:
        """The name in the one way of several in which it can be written."""
        if not self.of_value:
            return self.name
        return ".".join((self.home, *(step if NAME.fullmatch(step) else f'"{step}"' for step in self.path)))


def _fields(home: Home, *rows: tuple[str, Type, str]) -> dict[str, Field]:
    return {name: Field(name, type_, home, tuple(path.split("."))) for name, type_, path in rows}


FIELDS: dict[str, Field] = {
    **_fields(
        Home.RECORD,
        ("id", Type.TEXT, "_id"),
        ("task", Type.TEXT, "task"),
        ("attempt", Type.NUMBER, "attempt"),
        ("kind", Type.TEXT, "kind"),
        ("name", Type.TEXT, "name"),
        ("tags", Type.TEXT, "tags"),
        ("outcome", Type.TEXT, "outcome"),
        ("reason", Type.TEXT, "reason"),
        ("exit_code", Type.NUMBER, "exit_code"),
        ("exception.type", Type.TEXT, "exception.type"),
        ("exception.message", Type.TEXT, "exception.message"),
        ("submitted", Type.TIME, "time.submitted"),
        ("leased", Type.TIME, "time.leased"),
        ("started", Type.TIME, "time.started"),
        ("finished", Type.TIME, "time.finished"),
        ("usage.wall_s", Type.SECONDS, "usage.wall_s"),
        ("usage.cpu_s", Type.SECONDS, "usage.cpu_s"),
        ("usage.max_rss_bytes", Type.BYTES, "usage.max_rss_bytes"),
        ("host", Type.TEXT, "host"),
        ("rank", Type.NUMBER, "rank"),
        ("site", Type.TEXT, "site"),
        ("job", Type.TEXT, "job"),
        ("pilot", Type.TEXT, "pilot"),
        ("resources", Type.TEXT, "resources"),
        ("environment", Type.TEXT, "environment"),
        ("function.hash", Type.TEXT, "function"),
        ("command.argv", Type.TEXT, "command.argv"),
        ("command.executable", Type.TEXT, "command.executable"),
        ("command.digest", Type.TEXT, "command.digest"),
        ("flow", Type.TEXT, "called_by"),
        ("cached_from", Type.TEXT, "cached_from"),
        ("project", Type.TEXT, "from.project"),
        ("cache.saved_s", Type.SECONDS, "cache.saved_s"),
        ("cache.miss", Type.TEXT, "cache.miss"),
    ),
    **_fields(
        Home.REMARKS,
        ("group", Type.TEXT, "groups"),
    ),
    **_fields(
        Home.FUNCTION,
        ("function", Type.TEXT, "qualname"),
        ("function.module", Type.TEXT, "module"),
        ("function.source_hash", Type.TEXT, "source_hash"),
        ("function.git.commit", Type.TEXT, "git.commit"),
    ),
    **_fields(
        Home.ENVIRONMENT,
        ("env.python.version", Type.VERSION, "python.version"),
        ("env.python.implementation", Type.TEXT, "python.implementation"),
        ("env.mpi", Type.TEXT, "mpi"),
        ("env.container", Type.TEXT, "container"),
        ("env.machine.system", Type.TEXT, "machine.system"),
        ("env.machine.kernel", Type.TEXT, "machine.kernel"),
        ("env.machine.machine", Type.TEXT, "machine.machine"),
        ("env.machine.cpu", Type.TEXT, "machine.cpu"),
        ("env.machine.gpus", Type.TEXT, "machine.gpus"),
        ("env.machine.gpu_driver", Type.TEXT, "machine.gpu_driver"),
        ("env.modules", Type.TEXT, "modules"),
        ("env.site_digest", Type.TEXT, "site_digest"),
    ),
}
"""By name."""

OPEN: dict[str, Field] = {
    "inputs": Field("inputs", Type.VALUE, Home.INPUTS, ()),
    "outputs": Field("outputs", Type.VALUE, Home.OUTPUTS, ()),
    "env.packages": Field("env.packages", Type.VERSION, Home.ENVIRONMENT, ("packages",)),
    "env.variables": Field("env.variables", Type.TEXT, Home.ENVIRONMENT, ("variables",)),
}
"""What has fields of the users' own: they are named after a dot."""

CHOICES: dict[str, tuple[str, ...]] = {
    "outcome": tuple(Outcome),
    "kind": (Kind.FUNCTION, Kind.COMMAND),
}
"""Texts that a field can have, where they are known."""


def field_of(steps: tuple[str, ...], name: str) -> Field:
    """Return the field that a name, cut at its dots, means.

    Raises:
        InvalidInput: there is none; the message lists near names.
    """
    plain = ".".join(steps)
    if plain in FIELDS:
        return FIELDS[plain]
    for head, field in OPEN.items():
        beginning = tuple(head.split("."))
        if steps[: len(beginning)] == beginning:
            rest = steps[len(beginning) :]
            if not rest or "" in rest:
                raise InvalidInput(f"{head} needs a name after it: {head}.NAME")
            return Field(name, field.type, field.home, (*field.path, *rest))
    raise InvalidInput(f"there is no field {plain!r}{near(plain, [*FIELDS, *OPEN])}")


def near(word: str, words: list[str]) -> str:
    """Return a hint at those of some words that `word` may have been meant for."""
    found = get_close_matches(word, words, 3, 0.5) or [other for other in words if other.startswith(f"{word}.")][:4]
    if not found:
        return "; what tasks were given and returned is inputs.NAME and outputs.NAME" if "inputs" in words else ""
    return f"; near: {', '.join(found)}"
