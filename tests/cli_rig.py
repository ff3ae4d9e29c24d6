"""What tests of the command line have in common."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple


class Said(NamedTuple):
    """What a command has answered."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one document on stdout."""
        assert self.code in (0, 1), self
        return json.loads(self.out)

    def checks(self, name: str) -> list[str]:
        """Return what one check found."""
        return [f"{one['verdict']}: {one['text']}" for one in self.json["checks"] if one["check"] == name]


Call = Callable[..., Said]
