"""A repository for files, a tree, and eyes for both."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pilot.context import here
from pilot.store import care
from pilot.store.objects import Objects
from pilot.values import decode, encode


def make_tree(path: Path) -> Path:
    """Make a directory with all that may be in a tree."""
    (path / "sub" / "deep").mkdir(parents=True)
    (path / "empty").mkdir()
    (path / "Al.upf").write_text("aluminium")
    (path / "sub" / "Cu.upf").write_text("copper")
    (path / "sub" / "deep" / "same.upf").write_text("copper")
    (path / "sub.txt").write_text("")
    (path / "run.sh").write_text("#!/bin/sh\n")
    (path / "run.sh").chmod(0o755)
    return path


@contextlib.contextmanager
def keeping(root: Path) -> Iterator[Objects]:
    """Make a repository into which files are kept; afterwards no temporary file is left."""
    made = Objects(root)
    here.repository = made
    yield made
    here.repository = None
    assert not list(root.glob("tmp/*"))


def there_and_back(value: Any) -> Any:
    """Return what another process gets of a value."""
    return decode(encode(value).data)


def kept(objects: Objects) -> set[str]:
    """Return the hashes of all objects."""
    return {one.hash for one in care.kept(objects)}
