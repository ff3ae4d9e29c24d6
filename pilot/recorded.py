"""The code that a record names beside the code that is here now: finds the present text, lays out the recorded one."""

from __future__ import annotations

import difflib
import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path

from pilot.values import digest


def file_here(module: str, folder: str) -> Path | None:
    """Return the file that a child would import a module from, without importing anything; None if there is none.

    Args:
        module: its full name.
        folder: the last place where modules are searched for.
    """
    own = 0 if sys.flags.safe_path else 1  # this program's own folder
    path: list[str] = [*sys.path[own:], *([folder] if folder else [])]
    name, spec = "", None
    for part in module.split("."):
        name = f"{name}.{part}" if name else part
        spec = PathFinder.find_spec(name, path)
        if spec is None:
            return None
        path = list(spec.submodule_search_locations or ())
    if spec is None or not spec.has_location or spec.origin is None:
        return None
    return Path(spec.origin)


def is_here(file: Path | None, module_hash: str) -> bool:
    """Return whether the present file is the recorded one."""
    try:
        return file is not None and digest(file.read_bytes()) == module_hash
    except OSError:
        return False


def lay_out(target: Path, module: str, text: bytes, file: Path | None) -> None:
    """Put a module with this text into a folder from which it can be imported; of its packages, the rest as it is now.

    Args:
        target: the folder; it may hold other modules already.
        module: full name of the module.
        text: of its file.
        file: the present one.
    """
    package = file is not None and file.name == "__init__.py"
    *folders, last = module.split(".")
    folders = [*folders, last] if package else folders
    there = [] if file is None else [file.parents[level] for level in range(len(folders))][::-1]
    here = target
    here.mkdir(exist_ok=True)
    for level, folder in enumerate(folders):
        here = here / folder
        if here.is_symlink():
            here.unlink()
        here.mkdir(exist_ok=True)
        if there:
            _link_all(there[level], here)
    written = here / ("__init__.py" if package else f"{last}.py")
    written.unlink(missing_ok=True)
    written.write_bytes(text)


def _link_all(there: Path, here: Path) -> None:
    """Link what is in a folder into another that does not have it, but for what Python has compiled."""
    for entry in os.scandir(there):
        link = here / entry.name
        if entry.name != "__pycache__" and not os.path.lexists(link):
            link.symlink_to(Path(entry.path).absolute())


def difference(then: bytes, file: Path | None) -> str:
    """Return a unified diff from the recorded text of a file to the present one."""
    try:
        now = file.read_text(errors="replace") if file is not None else ""
    except OSError:
        now = ""
    lines = difflib.unified_diff(
        then.decode(errors="replace").splitlines(keepends=True), now.splitlines(keepends=True), "recorded",
        str(file) if file is not None else "not found here",
    )  # fmt: skip
    return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)
