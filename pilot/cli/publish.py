"""`pilot publish`: where results came from, in the words of others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from pilot.cli import text
from pilot.cli.common import Command, tell
from pilot.cli.completion import tasks as complete_tasks
from pilot.client import Project, open_project
from pilot.errors import InvalidInput
from pilot.integrations.published import LIMIT


@click.command(cls=Command)
@click.argument("ids", nargs=-1, required=True, metavar="ID...", shell_complete=complete_tasks)
@click.option(
    "--as", "standard", type=click.Choice(["prov", "ro-crate"]), required=True,
    help="W3C PROV-JSON, or a Workflow Run RO-Crate with the values as files.",
)  # fmt: skip
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="PATH",
    help="What to write; a crate is a folder, or a file if PATH ends in .zip. Default of prov: standard output.",
)  # fmt: skip
@click.option("--author", default="", metavar="WHO", help='Who is responsible: "NAME" or "NAME <URL>".')
@click.option("--license", default="", metavar="L", help="Of a crate: a URL, or words.")
@click.option("--no-data", is_flag=True, help="Of a crate: tell the hashes of large values, do not copy them.")
@click.option(
    "--limit", type=click.IntRange(1), default=LIMIT, show_default=True, metavar="N", help="So many records at most."
)
@click.pass_context
def publish(
    ctx: click.Context, ids: tuple[str, ...], standard: str, output: Path | None, author: str, license: str,
    no_data: bool, limit: int,
) -> None:  # fmt: skip
    """Write where the results of tasks came from, all the way up, in a form that others read.

    ID is a task, whose official record is meant, or a record (TASK:ATTEMPT); it may be shortened.
    """
    if standard == "prov":
        from pilot.integrations import prov

        if license or no_data:
            raise click.UsageError("--license and --no-data are of --as ro-crate", ctx)
        if output is not None and output.exists():
            raise InvalidInput(f"cannot write to {str(output)!r}: it exists; name another, or remove it")
        with open_project() as project:
            document = prov.document(project, ids, author=author, limit=limit)
            _verify(project, ids)
        written = document.serialize(format="json", indent=1)
        if output is None:
            click.echo(written)
            return
        try:
            output.write_text(written + "\n")
        except OSError as exc:
            raise InvalidInput(f"cannot write to {str(output)!r}: {exc.strerror}") from exc
        tell(f"wrote {text.count(len(document.get_records()), 'statement')} to {output}")
        return
    from pilot.integrations import rocrate

    if output is None:
        raise click.UsageError("--as ro-crate needs -o PATH", ctx)
    with open_project() as project:
        what = rocrate.write(project, ids, output, data=not no_data, author=author, license=license, limit=limit)
        _verify(project, ids)
    runs, values = len(what.graph.runs), len(what.graph.values)
    tell(f"wrote {text.count(runs, 'run')} and {text.count(values, 'value')} to {output}")
    if not license:
        tell("the crate states no license, without which nobody may use it: --license")


def _verify(project: Project, ids: Sequence[str]) -> None:
    """Say so if something of what was written is not what the pools have signed."""
    for name in ids:
        report = project.verify(name)
        if not report.good:
            tell(f"{text.count(len(report.problems), 'problem')} with {name}: `pilot verify {name}` names them")
