"""`pilot explain`: why a task is not running."""

from __future__ import annotations

from dataclasses import replace

import click

from pilot.cli import facts as reading
from pilot.cli import text
from pilot.cli.common import Command, console, emit, escaped, json_option, now, opened, points
from pilot.cli.completion import tasks as complete_tasks
from pilot.explain import reasons
from pilot.offers import usual_layout
from pilot.resources import Resources
from pilot.site_files import load_site
from pilot.states import State
from pilot.store import tasks


@click.command(cls=Command)
@click.argument("task", metavar="ID", shell_complete=complete_tasks)
@json_option
def explain(task: str, as_json: bool) -> None:
    """Say why a task is not running, and what to do about it. ID may be shortened."""
    with opened() as project:
        found = tasks.resolve(project.store, task)
        facts = reading.collect(project.store, found["_id"], now())
        if facts.task["state"] == State.READY and Resources.from_key(facts.task["class"]).program:
            facts = replace(facts, usual=usual_layout(load_site(project.config.site, project.config)))
    lines = reasons(facts)
    doc = facts.task
    if as_json:
        emit({"task": doc["_id"], "name": doc["name"], "state": doc["state"], "reasons": lines})
        return
    out = console()
    out.print(f"[bold]{doc['_id']}[/] {escaped(doc['name'])} is {text.styled(doc['state'])}")
    points(out, lines, "·")
