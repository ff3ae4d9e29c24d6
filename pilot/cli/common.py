"""What the commands share: options, the open project, output."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from pilot.cli import text
from pilot.cli.app import Flags, debug_flag
from pilot.config import ProjectConfig, find_project
from pilot.errors import InvalidInput
from pilot.resources import parse_duration, parse_size
from pilot.store.access import checked, store_of
from pilot.store.mongo import Store

if TYPE_CHECKING:
    from rich.console import Console

STORE_S = 10.0
"""How long a command waits for the store before it says that it does not answer."""

_ROOM = 16
"""Width that a clipped column keeps in any case."""

F = TypeVar("F", bound=Callable[..., Any])

# -- commands and their options -------------------------------------------------------------------


class Command(click.Command):
    """A command that takes ``--debug`` behind its name too, and shows what the library has to say."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        debug = click.Option(["--debug"], is_flag=True, expose_value=False, hidden=True, callback=debug_flag)
        self.params.append(debug)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command with the library's warnings on stderr."""
        debug = ctx.ensure_object(Flags).debug
        root = logging.getLogger()
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("pilot: %(message)s"))
        level, root.level = root.level, logging.DEBUG if debug else logging.WARNING
        logging.getLogger("pymongo").setLevel(logging.WARNING)
        root.addHandler(handler)
        try:
            return super().invoke(ctx)
        finally:
            root.removeHandler(handler)
            root.level = level


def _reader(parse: Callable[[str, str], float | int]) -> Callable[[Any, click.Parameter, Any], Any]:
    """Return the callback of an option that a function of the model reads, with its message as a usage error."""

    def read(ctx: click.Context, param: click.Parameter, value: str | None) -> float | int | None:
        try:
            return None if value is None else parse(value, param.opts[0])
        except InvalidInput as exc:
            raise click.UsageError(str(exc), ctx) from exc

    return read


duration = _reader(parse_duration)
"""Callback of options like ``--walltime 30m``; the command gets seconds."""
size = _reader(parse_size)
"""Callback of options like ``--memory 2G``; the command gets bytes."""


def json_option(function: F) -> F:
    """Add ``--json``, which arrives as ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Write one JSON document; times in ISO 8601 UTC.")(
        function
    )


# -- the project ----------------------------------------------------------------------------------


class Opened(NamedTuple):
    """A project and its store."""

    config: ProjectConfig
    store: Store


@contextmanager
def opened(start: bool = True, timeout_s: float | None = None) -> Iterator[Opened]:
    """Open the store of the nearest project; the embedded server is started if need be.

    Raises:
        ProjectNotFound: there is none here or above.
        StoreError: it cannot be reached or started; the message says what to do.
    """
    config = find_project()
    with store_of(config, start, STORE_S if timeout_s is None else timeout_s) as store:
        yield Opened(config, checked(store, config))


def now() -> datetime:
    """Return the present time (UTC)."""
    return datetime.now(UTC)


# -- output ---------------------------------------------------------------------------------------


def emit(document: Any) -> None:
    """Write one JSON document to stdout."""
    click.echo(text.as_json(document))


def tell(message: str) -> None:
    """Write one line about what is going on to stderr, above a progress bar if one is shown there."""
    with suppress(OSError):  # the terminal may have gone
        sys.stderr.write(f"pilot: {text.line(message, 2000)}\n")  # not click's echo, which passes by the bar


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show on a terminal that something is being waited for."""
    out = console(stderr=True)
    with out.status(escaped(what)) if out.is_terminal else nullcontext():
        yield


def console(stderr: bool = False) -> Console:
    """Return a console: coloured on a terminal unless NO_COLOR is set, never folding lines in a pipe."""
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False)
    if not made.is_terminal:
        made.width = 1000
    return made


class Rows:
    """A table without lines that never breaks a row: one column, by custom the last, is clipped where room ends.

    Args:
        columns: the headings; none is shown if all are empty.
        right: those of numbers.
        clip: number of the column to clip.
    """

    def __init__(self, *columns: str, right: Collection[str] = (), clip: int = -1) -> None:
        self._columns = columns
        self._right = right
        self._clip = clip % len(columns)
        self._rows: list[tuple[str, ...]] = []

    def add(self, *cells: str) -> None:
        """Add a row; cells are in rich's markup."""
        self._rows.append(cells)

    def print(self, out: Console) -> None:
        """Print it as wide as the terminal allows."""
        from rich.table import Table
        from rich.text import Text

        heads = any(self._columns)
        made = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0), show_header=heads)
        lines = [self._columns, *self._rows] if heads else self._rows
        widths = [max(Text.from_markup(cell).cell_len for cell in cells) for cells in zip(*lines, strict=True)]
        room = out.width - sum(widths) - 2 * (len(widths) - 1) + widths[self._clip] if widths else 0
        for number, name in enumerate(self._columns):
            made.add_column(
                name, justify="right" if name in self._right else "left", no_wrap=True, overflow="ellipsis",
                max_width=max(_ROOM, room) if number == self._clip else None,
            )  # fmt: skip
        for cells in self._rows:
            made.add_row(*cells)
        out.print(made)


def points(out: Console, lines: Iterable[str], mark: str = "→") -> None:
    """Print plain lines with a mark before each; on a terminal they are folded between words, and indented."""
    from rich.padding import Padding
    from rich.table import Table

    for line in lines:
        if not out.is_terminal:
            out.print(f"{mark} {escaped(line)}")
            continue
        grid = Table.grid(padding=(0, 1, 0, 0))
        grid.add_row(f"[dim]{mark}[/]", escaped(line))
        out.print(Padding(grid, 0))


def escaped(words: object) -> str:
    """Return text in which rich sees no markup."""
    from rich.markup import escape

    return escape(str(words))
