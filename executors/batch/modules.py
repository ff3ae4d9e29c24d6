"""Whether a site's modules can be loaded and bring what they should: one login shell asked for all of them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pilot.executors.batch.command import Said

_SCRIPT = """
program=$1; shift
if type module; then there=yes; else there=no; fi >/dev/null 2>&1
for name in "$@"; do
    before=$LOADEDMODULES
    module load "$name" >/dev/null 2>&1
    case ":$LOADEDMODULES:" in
        ":$before:") printf 'missing\\t%s\\n' "$name" ;;
    esac
done
printf 'module\\t%s\\n' "$there"
printf 'program\\t%s\\n' "$(command -v -- "$program")"
"""
"""Loads one after the other, as a batch script does: many show only when others are loaded. Its words are arguments."""


class Loaded(NamedTuple):
    """What a login shell made of the modules."""

    there: bool
    """Whether there is a `module` command."""
    missing: tuple[str, ...]
    """Those that could not be loaded."""
    program: str
    """Where the program is after loading them; empty: nowhere."""


def load_argv(modules: Sequence[str], program: str) -> list[str]:
    """Return the command that loads modules in a login shell of its own and looks for a program."""
    return ["bash", "-lc", _SCRIPT, "bash", program, *modules]


def loaded(said: Said) -> Loaded:
    """Read what the command of `load_argv` printed; a profile may have printed other lines before."""
    rows = [line.partition("\t") for line in said.out.splitlines()]
    missing = tuple(value for key, _, value in rows if key == "missing")
    told = {key: value for key, _, value in rows}
    return Loaded(told.get("module") == "yes", missing, told.get("program", ""))
