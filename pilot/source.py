"""Where code comes from: source text, digests of files, the state of the git repository around it."""

from __future__ import annotations

import os
import sys
from types import CodeType
from typing import Any

from pilot.values import digest

_GIT_TIMEOUT_S = 2.0
_git_states: dict[str, dict[str, Any] | None] = {}


def source_of(function: Any) -> str:
    """Return the dedented source text of a callable (of its class, for a callable object); "" if there is none."""
    import inspect
    from textwrap import dedent

    while type(function).__name__ == "partial" and callable(getattr(function, "func", None)):
        function = function.func
    if not hasattr(function, "__qualname__"):
        function = type(function)
    try:
        return dedent(inspect.getsource(function))
    except (OSError, TypeError, SyntaxError, IndexError):
        return ""


def file_of_module(name: str) -> str | None:
    """Return the path of the file an imported module was made of, or None (builtin, notebook, ``-c``)."""
    path = getattr(sys.modules.get(name), "__file__", None)
    return path if isinstance(path, str) and os.path.isfile(path) else None


def folder_of(function: Any) -> str:
    """Return the folder from which the user's modules beside a function are imported; "" if it is installed.

    That of a script or a notebook is where it lies or runs.
    """
    module = getattr(function, "__module__", None) or "__main__"
    path = file_of_module(module)
    if module == "__main__":
        return os.path.dirname(os.path.abspath(path)) if path else os.getcwd()
    if path is None or in_environment(path):
        return ""
    folder = os.path.dirname(os.path.abspath(path))
    depth = module.count(".") + (os.path.basename(path) == "__init__.py")
    for _ in range(depth):
        folder = os.path.dirname(folder)
    return folder


def file_digest(path: str) -> str:
    """Return the BLAKE2b-256 of a file, "" if it cannot be read."""
    from pilot import content  # a child that runs no such thing starts without it

    try:
        return content.of_file(path).hash
    except content.Unfit:
        return ""


def own_text(module: str, file_hash: str) -> bytes | None:
    """Return the text of an imported module of the user's own; None if it is installed, or has another hash by now."""
    path = file_of_module(module)
    if not file_hash or path is None or in_environment(path):
        return None
    try:
        with open(path, "rb") as file:
            text = file.read()
    except OSError:
        return None
    return text if digest(text) == file_hash else None


def in_environment(path: str) -> bool:
    """Whether a file belongs to the Python installation, and not to the user's own work."""
    return any(os.path.realpath(path).startswith(os.path.join(root, "")) for root in _roots())


def _roots() -> set[str]:
    roots = {os.path.dirname(os.__file__)}
    roots |= {part for part in sys.path if part.endswith(("site-packages", "dist-packages"))}
    return {os.path.realpath(root) for root in roots}


def git_state(path: str) -> dict[str, Any] | None:
    """Return ``{"commit": hash, "dirty": bool}`` of the repository around a file or directory, as first seen.

    None without a repository, a commit, a git program, or an answer within 2 s. Untracked files do not
    count as dirty.
    """
    directory = os.path.abspath(path if os.path.isdir(path) else os.path.dirname(path) or ".")
    if directory not in _git_states:
        _git_states[directory] = _ask_git(directory)
    return _git_states[directory]


def _ask_git(directory: str) -> dict[str, Any] | None:
    import subprocess

    # A hook's GIT_DIR would answer for another repository.
    environment = {k: v for k, v in os.environ.items() if k not in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")}
    environment["GIT_OPTIONAL_LOCKS"] = "0"
    argv = ["git", "-C", directory, "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    try:
        done = subprocess.run(
            argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=_GIT_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    head, commit = "# branch.oid ", ""
    for line in lines:
        if line.startswith(head):
            commit = line[len(head) :]
    if done.returncode != 0 or not commit or commit == "(initial)":
        return None
    return {"commit": commit, "dirty": any(not line.startswith("#") for line in lines)}


# -- source of functions that came by value -----------------------------------------------------------

_texts: dict[str, tuple[int, str]] = {}
"""File name that stands in the code of such a function → its first line's number, and its text."""


def name_code(function: Any, name: str, text: str) -> None:
    """Give a function that was unpickled a file name of its own, under which `show_texts` makes its text known.

    A pickle by value does not tell in which file the function was, and without lines a traceback says little.
    """
    function = getattr(function, "__func__", function)  # of a bound method
    code = getattr(function, "__code__", None)
    if isinstance(code, CodeType) and text:
        file = f"<function {name}>"
        _texts[file] = code.co_firstlineno, text
        function.__code__ = _renamed(code, file)


def _renamed(code: CodeType, file: str) -> CodeType:
    inner = [_renamed(one, file) if isinstance(one, CodeType) else one for one in code.co_consts]
    return code.replace(co_filename=file, co_consts=tuple(inner))


def show_texts() -> None:
    """Let tracebacks show the lines of functions that were given a name; call it before one is formatted."""
    import linecache

    for file, (first, text) in _texts.items():
        lines = ["\n"] * (first - 1) + text.splitlines(keepends=True)
        linecache.cache[file] = (len(text), None, lines, file)
