"""`pilot verify`: whether a result, and all that went into it, is what was written when it came about."""

from __future__ import annotations

import click

from pilot import signing
from pilot import verify as verifying
from pilot.cli import text
from pilot.cli.common import Command, console, emit, escaped, json_option, opened, waiting
from pilot.cli.completion import tasks as complete_tasks
from pilot.store import provenance
from pilot.store.objects import Objects

_WHY_CUT = {"depth": "as deep as it was asked to go", "limit": f"{verifying.LIMIT:,} records, and no further"}


@click.command(cls=Command)
@click.argument("task", metavar="ID", shell_complete=complete_tasks)
@click.option("--depth", type=click.IntRange(0), metavar="N", help="Go up N links at most; default: all of them.")
@json_option
def verify(task: str, depth: int | None, as_json: bool) -> int:
    """Check hashes, signatures and links of a task's record and of all that went into it; exit code 1 if any is wrong.

    ID is a task's, which may be shortened, or a record's (TASK:ATTEMPT). Objects are read and their bytes compared.
    """
    with opened() as project, waiting("verifying"):
        signer = signing.signer_of(project.config)
        ids = provenance.meant(project.store, task)
        report = verifying.lineage_of(project.store, Objects(project.config.objects_folder), signer, ids, depth)
    code = 0 if report.good else 1
    if as_json:
        emit(report.document())
        return code
    out = console()
    for problem in report.problems:
        out.print(f"[red]wrong[/]  {escaped(problem.of)}: {escaped(problem.text)}", soft_wrap=True)
    seen = ", ".join(
        text.count(number, what)
        for number, what in (
            (report.records, "record"), (report.values, "value"), (report.functions, "function"),
            (report.environments, "environment"),
        )
    )  # fmt: skip
    said = "[green]all as written[/]" if report.good else f"[red]{text.count(len(report.problems), 'problem')}[/]"
    out.print(f"{seen}: {said}" + (f" ({_WHY_CUT[report.cut]})" if report.cut else ""), soft_wrap=True)
    if report.dropped:
        out.print(f"{text.count(report.dropped, 'object')}: bytes given up by `pilot objects drop`, hashes kept")
    return code
