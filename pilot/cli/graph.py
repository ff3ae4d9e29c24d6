"""`pilot graph`: what came from what, as a tree, a picture, or a document."""

from __future__ import annotations

from pathlib import Path

import click

from pilot.cli import diagram, text
from pilot.cli.common import Command, console, json_option, opened, tell
from pilot.cli.completion import tasks as complete_tasks
from pilot.cli.tree import print_tree
from pilot.errors import InvalidInput
from pilot.graph import Graph
from pilot.store import graphs
from pilot.store.objects import Objects

LIMIT = 200
"""Records that people can read at once."""

_SUFFIXES = {".mmd": "mermaid", ".dot": "dot", ".gv": "dot", ".svg": "svg", ".png": "png", ".json": "json"}
_FORMATS = ("tree", "mermaid", "dot", "svg", "png", "json")


def _depth(ctx: click.Context, param: click.Parameter, value: str) -> int | None:
    """Read a number of links, or ``all``, which arrives as None."""
    if value != "all" and not value.isdecimal():
        raise click.BadParameter(f"{value!r} is neither a number of links nor `all`", ctx, param)
    return None if value == "all" else int(value)


@click.command(cls=Command)
@click.argument("what", metavar="ID", shell_complete=complete_tasks)
@click.option(
    "--up", callback=_depth, default="all", metavar="N", help="Links up, to what it came from. [default: all]"
)
@click.option("--down", callback=_depth, default="0", metavar="N|all", help="Links down, to what used it (0).")
@click.option("--siblings", is_flag=True, help="Also others that used what it directly came from.")
@click.option("--attempts", is_flag=True, help="All attempts of each task, not only the one that counts.")
@click.option("--limit", type=click.IntRange(1), default=LIMIT, show_default=True, metavar="N", help="So many records.")
@click.option("--format", "form", type=click.Choice(_FORMATS), help="Default: a tree, or by the suffix of the file.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write it there.")
@json_option
@click.pass_context
def graph(
    ctx: click.Context, what: str, up: int | None, down: int | None, siblings: bool, attempts: bool, limit: int,
    form: str | None, output: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Show what a result came from, and what was made of it.

    ID is a task, a record (TASK:ATTEMPT), an output of one (ID/OUTPUT), or the hash of a value: then all records that
    made or used this content. svg and png are drawn by Graphviz.
    """
    if as_json and form not in (None, "json"):
        raise click.UsageError("say --json or --format, not both", ctx)
    form = "json" if as_json else form or _SUFFIXES.get(output.suffix if output else "", "tree")
    if form == "png" and output is None:
        raise click.UsageError("a png is not text: name a file with -o", ctx)
    with opened() as project:
        get = Objects(project.config.objects_folder).get
        start = graphs.named(project.store, get, what)
        found = graphs.around(project.store, get, start, up, down, siblings=siblings, attempts=attempts, limit=limit)
    _write(found, form, output)
    if found.cut == "limit":
        tell(
            f"there are more than {text.count(limit, 'record')}, and the nearest are shown: see fewer with --up and "
            "--down, or more with --limit"
        )


def _write(found: Graph, form: str, output: Path | None) -> None:
    """Write a graph to a file, or to stdout.

    Raises:
        InvalidInput: the file cannot be written.
        DrawingError: no picture can be drawn.
    """
    if form == "tree" and output is None:
        print_tree(console(), found)
        return
    data = diagram.picture(found, form) if form in ("svg", "png") else _text(found, form).encode()
    if output is None:
        click.echo(data.decode(), nl=False)
        return
    try:
        output.write_bytes(data)
    except OSError as exc:
        raise InvalidInput(f"cannot write the graph to {str(output)!r}: {exc.strerror}") from exc


def _text(found: Graph, form: str) -> str:
    if form == "json":
        return text.as_json(found.document()) + "\n"
    if form == "dot":
        return diagram.dot(found)
    if form == "mermaid":
        if len(found.links) > diagram.MERMAID_LINKS:
            tell(f"Mermaid draws {diagram.MERMAID_LINKS} links unless its maxEdges is raised; this has more")
        return diagram.mermaid(found)
    out = console()
    with out.capture() as captured:
        print_tree(out, found)
    return captured.get()
