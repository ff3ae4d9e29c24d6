"""Progress bars on a terminal: nothing is shown for small jobs, in pipes and in log files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SHOWN_FROM = 5000


@contextmanager
def bar(text: str, total: int | None, shown_from: int = SHOWN_FROM) -> Iterator[Callable[[int], None]]:
    """Show progress on stderr while the body runs; yields a function that is told how many more are done.

    Args:
        text: what is going on.
        total: how many there are; None, or fewer than `shown_from`: show nothing.
        shown_from: from how many on it is worth a bar.
    """
    if total is None or total < shown_from or not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        shown = progress.add_task(text, total=total)
        yield lambda count: progress.advance(shown, count)
