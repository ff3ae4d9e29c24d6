"""`pilot tasks`: the list."""

from __future__ import annotations

from typing import Any

import click

from pilot.cli import queries, text
from pilot.cli.common import Command, Rows, console, emit, escaped, json_option, now, opened
from pilot.model import official_record
from pilot.states import State
from pilot.store import tasks as store_tasks

_FIELDS = (
    "name", "kind", "state", "attempt", "tags", "groups", "submitted", "leased", "ended", "reason", "message", "class",
    "priority", "retries", "official",
)  # fmt: skip

STATE = click.Choice([state.value for state in State])


@click.command(cls=Command)
@click.option("--state", type=STATE, help="Only those in this state.")
@click.option("--tag", metavar="T", help="Only those with this tag.")
@click.option("--group", metavar="G", help="Only those in this group.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, metavar="N", help="At most so many.")
@json_option
def tasks(state: str | None, tag: str | None, group: str | None, limit: int, as_json: bool) -> None:
    """List tasks, newest first."""
    with opened() as project:
        wanted = None if state is None else State(state)
        docs = store_tasks.listing(project.store, wanted, tag, limit + 1, _FIELDS, group)
        more, docs = len(docs) > limit, docs[:limit]
        errors = queries.errors(project.store, docs)
    if as_json:
        emit([_document(doc, errors) for doc in docs])
        return
    if not docs:
        click.echo(
            "no such task" if state or tag or group else "no task yet; `pilot run SCRIPT` or `pilot submit -- COMMAND`"
        )
        return
    moment = now()
    tags = any("tags" in doc for doc in docs)
    reasons = any("reason" in doc for doc in docs)
    columns = ["task", "name", "state", "attempt", *(["tags"] if tags else []), "age", *(["reason"] if reasons else [])]
    rows = Rows(*columns, right=("attempt", "age"), clip=-1 if reasons else 1)
    for doc in docs:
        row = [
            f"[bold]{doc['_id']}[/]", escaped(text.line(doc["name"], 40)), text.styled(doc["state"]),
            str(doc["attempt"] or ""), *([escaped(" ".join(doc.get("tags", ())))] if tags else []),
            text.age(doc["submitted"], moment),
        ]  # fmt: skip
        if reasons:
            row.append(escaped(text.line(errors.get(doc["_id"], ""), 200)))
        rows.add(*row)
    out = console()
    rows.print(out)
    if more:
        out.print(f"[dim]… the newest {limit}; --limit shows more, --state, --tag and --group fewer[/]")


def _document(doc: dict[str, Any], errors: dict[str, str]) -> dict[str, Any]:
    """Return a listed task for JSON: priority as it was given, names instead of marks."""
    fields = {
        key: value for key, value in doc.items() if key not in ("_id", "priority", "official", "class", "message")
    }
    return {
        "task": doc["_id"], **fields, "priority": -doc["priority"], "resources": doc["class"],
        "error": errors.get(doc["_id"]), "record": official_record(doc),
    }  # fmt: skip
