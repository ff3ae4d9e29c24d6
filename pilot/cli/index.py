"""`pilot index`: what queries over records go by."""

from __future__ import annotations

import click

from pilot.cli import queries, text
from pilot.cli.common import Command, Rows, console, emit, escaped, json_option, opened, waiting
from pilot.errors import ExpressionError, InvalidInput
from pilot.expression import parse_field
from pilot.fields import Field
from pilot.store import query, schema


@click.group()
def index() -> None:
    """List, make or drop indexes over records.

    Each makes queries on a field quick and the writing of every record that has the field a little slower. Those over
    fields that all records have are made when a query needs them first; those over values when you ask for them.
    """


@index.command("list", cls=Command)
@json_option
def list_(as_json: bool) -> None:
    """List the indexes there are, with their sizes."""
    with opened() as project:
        sizes = queries.index_sizes(project.store)
    if as_json:
        emit([{"index": name, "bytes": size} for name, size in sizes.items()])
        return
    rows = Rows("index", "size", right=("size",), clip=0)
    for name, size in sizes.items():
        rows.add(escaped(name), text.size(size))
    if sizes:
        rows.print(console())
    else:
        click.echo("no index yet; queries make those that they need")


@index.command("add", cls=Command)
@click.argument("field")
def add(field: str) -> None:
    """Make an index over FIELD, for example outputs.result.energy, inputs.symbol or tags.

    It takes some seconds for a million records; others can be written meanwhile.
    """
    read = _field(field)
    with opened() as project, waiting(f"making an index over {field}"):
        query.add_index(project.store, read)


@index.command("drop", cls=Command)
@click.argument("name")
def drop(name: str) -> None:
    """Drop the index NAME of the list."""
    with opened() as project:
        there = schema.record_indexes(project.store)
        if name not in there:
            raise InvalidInput(f"there is no index {name!r}; there is {', '.join(there) or 'none'}")
        schema.drop(project.store, name)


def _field(text: str) -> Field:
    try:
        return parse_field(text)
    except ExpressionError as exc:
        click.echo(exc.pointer, err=True)
        raise click.UsageError(exc.reason) from exc
