"""The batch script of a pilot: directives, what the site asks to be done first, and the exec of the agent. Pure."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence

from pilot.errors import InvalidInput

SCRIPT, ID, OUTPUT = "job.sh", "job.id", "job.out"
"""Files of a job, in its folder: what was submitted, what it is called, and what it prints."""

_PLAIN = re.compile(r"[\w@%+=:,./&|()\[\]{}*<>^~!;?$-]+( [\w@%+=:,./&|()\[\]{}*<>^~!;?$-]+)*")
"""What may stand in a directive as it is: words without quotes, backslashes and the sign of a comment."""

_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)


def script(directives: Sequence[str], setup: Sequence[str], argv: Sequence[str], login_shell: bool = False) -> str:
    """Return the script.

    Its last line is an `exec`: a shell in between would die of the warning signal and take the job with it.

    Args:
        directives: whole lines, ``#SBATCH …`` or ``#PBS …``.
        setup: lines of shell that come first, in this order.
        argv: what runs; any characters.
        login_shell: whether the user's profile is to be read first; some sites define `module` only there.
    """
    for word in argv:
        if "\0" in word:
            raise InvalidInput(f"cannot write a batch script: {word!r} has a NUL in it")
    first = "#!/bin/bash -l" if login_shell else "#!/bin/bash"
    return "\n".join([first, *directives, "", *setup, f"exec {shlex.join(argv)}", ""])


def export(name: str, value: str) -> str:
    """Return the line of shell that sets a variable, whatever characters its value has.

    Raises:
        InvalidInput: the name is none of a variable, or the value has a NUL in it.
    """
    if not _NAME.fullmatch(name) or "\0" in value:
        raise InvalidInput(
            f"cannot set the variable {name!r} to {value!r} in a batch script: expected a name of letters, digits and "
            "underscores, and a value without NUL"
        )
    return f"export {name}={shlex.quote(value)}"


def directive(prefix: str, option: str) -> str:
    """Return the line of one option.

    Raises:
        InvalidInput: it has what no batch system's reader of directives understands alike.
    """
    if not _PLAIN.fullmatch(option):
        raise InvalidInput(
            f"cannot write {option!r} into a batch script: expected letters, digits and punctuation without quotes, "
            "backslashes or '#'"
        )
    return f"{prefix} {option}"


def clock(seconds: float) -> str:
    """Return a time as hours, minutes and seconds, rounded up: ``30:00:00`` is more than a day in all dialects."""
    whole = math.ceil(seconds)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}"
