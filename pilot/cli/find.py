"""`pilot find`: records that fit an expression."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from typing import Any

import click

from pilot.cli import queries, text
from pilot.cli.common import Command, Rows, console, escaped, now, opened, tell, waiting
from pilot.errors import ExpressionError
from pilot.records import Get
from pilot.search import Search, listed
from pilot.store import answers
from pilot.store.mongo import Store
from pilot.store.objects import Objects

Document = dict[str, Any]

MOST = 50
"""Rows of a table unless another limit is given."""

MANY = 100_000
"""Records from which on it is worth a word that all are read, or that an index is made."""


_EXAMPLES = """\b
pilot find 'outputs.result.energy < -3 and tags == "eos" and finished > 2d'
pilot find 'outcome in [failed, crashed]' --fields task,host,exception.message
pilot find 'env.packages.numpy >= 2 and function ~ "*energy"' --count
pilot find 'descends from 01nrs4becb2na7-0' --json

docs/concepts/query.md explains all fields and operators."""


def search_for(store: Store, get: Get, wanted: str | Document | None, **options: Any) -> Search:
    """Return the search for what a person asks for; what cannot be read is pointed at."""
    try:
        return Search(store, get, wanted, **options)
    except ExpressionError as exc:
        click.echo(exc.pointer, err=True)
        raise click.UsageError(exc.reason) from exc


@click.command(cls=Command, epilog=_EXAMPLES)
@click.argument("expression", metavar="[EXPR]", required=False)
@click.option("--sort", default="-finished", show_default=True, metavar="F", help="By this field; -F: largest first.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help=f"At most so many; a table has {MOST}, JSON all.")
@click.option("--fields", metavar="F,F,…", help="Show these fields instead.")
@click.option("--count", is_flag=True, help="Only say how many there are.")
@click.option("--raw", metavar="FILTER", help="A filter of MongoDB's own, as JSON, instead of EXPR.")
@click.option("--json", "as_json", is_flag=True, help="Write a line of JSON for each record, as they come.")
def find(
    expression: str | None,
    sort: str,
    limit: int | None,
    fields: str | None,
    count: bool,
    raw: str | None,
    as_json: bool,
) -> None:
    """Find records, newest first: of all attempts, however they ended."""
    if expression is not None and raw is not None:
        raise click.UsageError("give an expression or --raw, not both")
    wanted = answers.raw(raw) if raw is not None else expression
    columns = None if fields is None else _names(fields)
    with opened() as project:
        get = Objects(project.config.objects_folder).get
        most = limit or MOST
        read = limit if as_json else most + 1  # one more tells whether there are more
        search = search_for(project.store, get, wanted, sort=sort, limit=read, fields=columns)
        _prepare(search, queries.size(project.store), counting=count)
        if count:
            click.echo(search.count())
        elif as_json:
            for record in search:
                click.echo(text.json_line(record))
        else:
            _print(iter(search), most, columns)


def _names(fields: str) -> list[str]:
    return [name.strip() for name in fields.split(",") if name.strip()]


def _prepare(search: Search, records: int, counting: bool) -> None:
    """Make the indexes that are missing; say what takes long."""
    with waiting("asking the store"):
        missing = search.missing(sorted_=not counting)
    if records > MANY and missing:
        tell(f"making an index over {', '.join(missing)} of {records:,} records, once; `pilot index` lists them")
    with waiting("making an index"):
        search.prepare(sorted_=not counting)
    if records > MANY and search.reads_all:
        tell(
            f"no index leads to this: up to {records:,} records are read; `pilot index add FIELD` makes one for a value"
        )


def _print(records: Iterator[Document], most: int, columns: list[str] | None) -> None:
    found = list(islice(records, most + 1))
    if not found:
        click.echo("no such record")
        return
    shown = found[:most]
    if columns is None:
        rows = _table(shown)
    else:
        rows = Rows(*columns)
        for record in shown:
            rows.add(*(escaped(text.line(_cell(record[name]), 200)) for name in columns))
    out = console()
    rows.print(out)
    if len(found) > most:
        out.print(f"[dim]… the first {most:,}; --limit shows more, --count counts all[/]")


def _table(records: list[Document]) -> Rows:
    moment = now()
    attempts = any(record["attempt"] != 1 for record in records)
    columns = ["task", *(["attempt"] if attempts else []), "name", "outcome", "finished", "result"]
    rows = Rows(*columns, right=("attempt", "finished"))
    for record in records:
        finished = record["time"].get("finished")
        rows.add(
            f"[bold]{escaped(record['task'])}[/]", *([str(record["attempt"])] if attempts else []),
            escaped(text.line(record.get("name") or "", 40)), text.styled(record["outcome"]),
            text.age(finished, moment) if finished else "", escaped(text.line(_result(record), 200)),
        )  # fmt: skip
    return rows


def _result(record: Document) -> str:
    """Return what came of an attempt, in a few words: its result, its outputs, or why there is none."""
    outputs = listed(record, "outputs")
    if record.get("exception") or not outputs:
        return queries.cause(record)
    if len(outputs) == 1 and outputs[0]["name"] == "result":
        return text.value(outputs[0])
    return ", ".join(f"{entry['name']}: {text.value(entry, 24)}" for entry in outputs)


def _cell(found: Any) -> str:
    if found is None:
        return ""
    if isinstance(found, datetime):
        return text.iso(found)
    if isinstance(found, list) and all(isinstance(item, str) for item in found):
        return " ".join(found)
    return found if isinstance(found, str) else text.value({"value": found})
