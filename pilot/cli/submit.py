"""`pilot submit`: a command as a task."""

from __future__ import annotations

import os
import warnings
from typing import Any

import click

from pilot.cli import text
from pilot.cli.common import Command, duration, emit, json_option, size, tell
from pilot.cli.control import await_end
from pilot.client import open_project
from pilot.define import PRIORITY_MAX, command
from pilot.errors import InvalidInput, NotOffered
from pilot.store import tasks


def _variables(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for word in values:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise click.UsageError(f"--env {word!r} is not NAME=VALUE", ctx)
        found[name] = value
    return found


@click.command(cls=Command, context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@click.option("--cores", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="CPU cores per rank.")
@click.option("--memory", callback=size, metavar="SIZE", help='Limit of the memory of each rank: "512M", "2G".')
@click.option("--ranks", type=click.IntRange(1), metavar="N", help="Start it with MPI on so many ranks.")
@click.option("--ranks-per-node", type=click.IntRange(1), metavar="N", help="So many ranks on each node.")
@click.option("--gpus", type=float, default=0, metavar="N", help="GPUs per rank; 0.5 shares one.")
@click.option("--nodes", type=click.IntRange(1), metavar="N", help="So many whole nodes.")
@click.option("--near", is_flag=True, help="All ranks on one node.")
@click.option("--contiguous", is_flag=True, help="On nodes next to each other.")
@click.option("--walltime", callback=duration, metavar="T", help='It is killed after so long: "90s", "5m", "2h".')
@click.option("--retries", type=click.IntRange(0), default=0, metavar="N", help="Run it again so often if it fails.")
@click.option(
    "--priority", type=click.IntRange(-PRIORITY_MAX, PRIORITY_MAX), default=0, metavar="P", help="Larger is sooner."
)
@click.option("--tag", "tags", multiple=True, metavar="T", help="To find it by; may be repeated.")
@click.option(
    "--cache/--no-cache", default=None, help="Take the result of an equal task; default: as the project says."
)
@click.option("--name", metavar="NAME", help="To be shown; default: the program's.")
@click.option("--env", callback=_variables, multiple=True, metavar="K=V", help="A variable to set; may be repeated.")
@click.option("--cwd", metavar="DIR", help="Where it runs; default: here.")
@click.option("--shell", is_flag=True, help="CMD is one line for /bin/sh.")
@click.option("--wait", "wait_", is_flag=True, help="Wait for its end; exit code 1 unless it is done.")
@json_option
@click.argument("argv", nargs=-1, required=True, metavar="-- CMD [ARG]...")
@click.pass_context
def submit(
    ctx: click.Context, /, env: dict[str, str], cwd: str | None, shell: bool, wait_: bool, as_json: bool,
    argv: tuple[str, ...], tags: tuple[str, ...], **options: Any,
) -> int:  # fmt: skip
    """Submit a command as a task and print the task's id.

    Options of the command itself are safe behind `--`.
    """
    if shell and len(argv) > 1:
        raise click.UsageError("--shell takes the command as one word; put it in quotes", ctx)
    here = os.path.abspath(cwd or ".")
    try:
        line = " ".join(argv) if shell else list(argv)
        task = command(line, shell=shell, env=env, cwd=here, tags=list(tags), **options)
    except InvalidInput as exc:
        raise click.UsageError(str(exc), ctx) from exc
    with open_project() as project:
        with warnings.catch_warnings(record=True) as noted:
            warnings.simplefilter("always", NotOffered)
            found = task.submit().id
        for note in noted:
            tell(str(note.message))
        if not as_json:
            click.echo(found)
        ended = await_end(project.store, [found]) if wait_ else {}
        doc = tasks.get(project.store, [found], ["name", "state", "reason", "official"])[found]
    if as_json:
        emit({"task": found, "name": doc["name"], "state": doc["state"], "reason": doc.get("reason")})
    if wait_ and ended.get(found) != "done":
        tell(f"task {found} ended {doc['state']}: {text.line(doc.get('reason') or '')}; `pilot show {found}`")
        return 1
    return 0
