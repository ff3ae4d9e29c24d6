"""`pilot tasks`: the list."""

from __future__ import annotations

import click

from pilot.cli import text
from pilot.cli.common import Command, console, emit, escaped, json_option, now, opened, table
from pilot.states import State
from pilot.store import tasks as store_tasks

_FIELDS = (
    "name", "kind", "state", "attempt", "tags", "submitted", "leased", "ended", "reason", "message", "class",
    "priority", "retries", "official",
)  # fmt: skip

STATE = click.Choice([state.value for state in State])


@click.command(cls=Command)
@click.option("--state", type=STATE, help="Only those in this state.")
@click.option("--tag", metavar="T", help="Only those with this tag.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, metavar="N", help="At most so many.")
@json_option
def tasks(state: str | None, tag: str | None, limit: int, as_json: bool) -> None:
    """List tasks, newest first."""
    with opened() as project:
        wanted = None if state is None else State(state)
        docs = store_tasks.listing(project.store, wanted, tag, limit + 1, _FIELDS)
    more, docs = len(docs) > limit, docs[:limit]
    if as_json:
        emit([{"task": doc.pop("_id"), "priority": -doc.pop("priority"), **doc} for doc in docs])
        return
    if not docs:
        click.echo("no such task" if state or tag else "no task yet; `pilot run SCRIPT` or `pilot submit -- COMMAND`")
        return
    moment = now()
    tags = any("tags" in doc for doc in docs)
    reasons = any("reason" in doc for doc in docs)
    columns = ["task", "name", "state", "attempt", *(["tags"] if tags else []), "age", *(["reason"] if reasons else [])]
    shown = table(*columns, right=("attempt", "age"), fold="reason" if reasons else "name")
    for doc in docs:
        row = [
            f"[bold]{doc['_id']}[/]", escaped(text.line(doc["name"], 40)), text.styled(doc["state"]),
            str(doc["attempt"] or ""), *([escaped(" ".join(doc.get("tags", ())))] if tags else []),
            text.age(doc["submitted"], moment),
        ]  # fmt: skip
        if reasons:
            words = ": ".join(doc[key] for key in ("reason", "message") if doc.get(key))
            row.append(escaped(text.line(words, 200)))
        shown.add_row(*row)
    out = console()
    out.print(shown)
    if more:
        out.print(f"[dim]… the newest {limit}; --limit shows more, --state and --tag fewer[/]")
