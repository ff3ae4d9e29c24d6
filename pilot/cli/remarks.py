"""`pilot tag`, `pilot note` and `pilot group`: what people write on tasks afterwards."""

from __future__ import annotations

import click

from pilot.cli import text
from pilot.cli.common import Command, Rows, console, emit, escaped, json_option, now, opened
from pilot.cli.completion import tasks as complete_tasks
from pilot.config import user_name
from pilot.store import remarks
from pilot.store import tasks as store_tasks
from pilot.store.mongo import Store

_ids = click.argument("names", nargs=-1, required=True, metavar="ID...", shell_complete=complete_tasks)


def _resolved(store: Store, names: tuple[str, ...]) -> list[str]:
    return [store_tasks.resolve(store, name)["_id"] for name in names]


# -- tags -----------------------------------------------------------------------------------------


@click.command(cls=Command)
@_ids
@click.option("--add", "-a", multiple=True, metavar="T", help="A tag to add; may be repeated.")
@click.option("--remove", "-r", multiple=True, metavar="T", help="A tag to remove; may be repeated.")
@click.pass_context
def tag(ctx: click.Context, names: tuple[str, ...], add: tuple[str, ...], remove: tuple[str, ...]) -> None:
    """Add tags to tasks, or remove them. `pilot tasks --tag T` lists who has one."""
    if not add and not remove:
        raise click.UsageError("say what to --add or to --remove", ctx)
    with opened() as project:
        ids = _resolved(project.store, names)
        remarks.tag(project.store, ids, add, remove)
        tagged = store_tasks.get(project.store, ids, ["tags"])
    for task in ids:
        click.echo(f"{task}: {' '.join(tagged[task].get('tags', ())) or 'no tags'}")


# -- notes ----------------------------------------------------------------------------------------


@click.command(cls=Command)
@_ids
@click.option("--text", "-t", "words", metavar="TEXT", help="What to write; without it, the notes are printed.")
@json_option
def note(names: tuple[str, ...], words: str | None, as_json: bool) -> None:
    """Write a note on tasks, or read what was written. Notes have an author and a time, and stay."""
    with opened() as project:
        ids = _resolved(project.store, names)
        if words is not None:
            remarks.note(project.store, ids, words, user_name(), now())
        noted = store_tasks.get(project.store, ids, ["notes"])
    if as_json:
        emit([{"task": task, "notes": noted[task].get("notes", [])} for task in ids])
    elif words is None:
        for task in ids:
            click.echo(f"{task}:" + ("" if noted[task].get("notes") else " no notes"))
            for written in noted[task].get("notes", ()):
                click.echo(f"  {text.iso(written['time'])} {written['user']}: {written['text']}")


# -- groups ---------------------------------------------------------------------------------------


@click.group(invoke_without_command=True)
@click.pass_context
def group(ctx: click.Context) -> None:
    """Put tasks into groups, take them out, list groups. `pilot tasks --group NAME` lists the tasks of one."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@group.command("list", cls=Command)
@json_option
def list_(as_json: bool) -> None:
    """List the groups that there are: those in which a task is."""
    with opened() as project:
        found = remarks.groups(project.store)
    if as_json:
        emit([{"group": name, "tasks": count} for name, count in found.items()])
        return
    if not found:
        click.echo("no group yet; `pilot group add NAME ID…` makes one")
        return
    rows = Rows("group", "tasks", right=("tasks",), clip=0)
    for name, count in found.items():
        rows.add(escaped(name), f"{count:,}")
    rows.print(console())


@group.command(cls=Command)
@click.argument("name")
@_ids
def add(name: str, names: tuple[str, ...]) -> None:
    """Put tasks into a group; the first one makes it."""
    with opened() as project:
        ids = _resolved(project.store, names)
        remarks.group(project.store, name, add=ids)
    click.echo(f"{text.count(len(set(ids)), 'task')} in group {name}")


@group.command(cls=Command)
@click.argument("name")
@click.argument("names", nargs=-1, metavar="[ID]...", shell_complete=complete_tasks)
@click.option("--all", "every", is_flag=True, help="Every task; the group is then gone.")
@click.pass_context
def remove(ctx: click.Context, name: str, names: tuple[str, ...], every: bool) -> None:
    """Take tasks out of a group."""
    if bool(names) == every:
        raise click.UsageError("name tasks, or say --all, not both", ctx)
    with opened() as project:
        ids = remarks.members(project.store, name) if every else _resolved(project.store, names)
        remarks.group(project.store, name, remove=ids)
    click.echo(f"{text.count(len(set(ids)), 'task')} not in group {name} any more")
