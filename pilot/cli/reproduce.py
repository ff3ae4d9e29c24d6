"""`pilot reproduce`: run a result again, with all that went into it, and say how far it came out the same."""

from __future__ import annotations

import math

import click
from rich.console import Console

from pilot import reproduce as reproducing
from pilot.cli import text
from pilot.cli.common import Command, Rows, console, emit, escaped, json_option, opened, waiting
from pilot.cli.completion import tasks as complete_tasks
from pilot.compare import RTOL, Output, Verdict

_STYLES = {
    Verdict.IDENTICAL: "green", Verdict.CLOSE: "yellow", Verdict.DIFFERENT: "red", Verdict.MISSING: "red",
}  # fmt: skip
_LINES = 60
"""Lines of a module's difference that are shown."""


@click.command(cls=Command)
@click.argument("task", metavar="ID", shell_complete=complete_tasks)
@click.option(
    "--depth", type=click.IntRange(0), metavar="N",
    help="Run again what is N links up at most, and take what is above as recorded; default: all.",
)  # fmt: skip
@click.option(
    "--rtol", type=click.FloatRange(0), default=RTOL, show_default=True, metavar="X",
    help="Numbers are close if they differ by at most X, relative to the larger one.",
)  # fmt: skip
@click.option(
    "--atol", type=click.FloatRange(0), default=0.0, show_default=True, metavar="X",
    help="They are close, too, if they differ by at most X.",
)  # fmt: skip
@click.option("--slots", type=click.IntRange(1), metavar="N", help="Slots of the pilot; default: as `pilot run`.")
@click.option("--keep", is_flag=True, help="Leave the project in which they ran.")
@json_option
def reproduce(
    task: str, depth: int | None, rtol: float, atol: float, slots: int | None, keep: bool, as_json: bool
) -> int:
    """Run a task, and all that went into it, again, and compare every output; exit code 1 unless all are the same.

    ID is a task's, which may be shortened, or a record's (TASK:ATTEMPT). The recorded code and inputs run, in a
    project of their own with a pilot on this machine.
    """
    with opened() as project, waiting("running it again"):
        report = reproducing.reproduce(
            project.config, project.store, task, depth=depth, rtol=rtol, atol=atol, slots=slots, keep=keep
        )
    if as_json:
        emit(report.document())
    else:
        _print(report, console())
    return 0 if report.good else 1


def _print(report: reproducing.Report, out: Console) -> None:
    for run in report.runs:
        _print_run(run, out)
    for code in report.code:
        _print_code(code, out)
    if report.environment:
        out.print("environment, as recorded and now:")
        rows = Rows("", "", "", "")
        for one in report.environment:
            then, now = ("-" if value is None else text.line(str(value), 60) for value in (one.then, one.now))
            rows.add(f"  {escaped(one.name)}", escaped(then), "→", escaped(now))
        rows.print(out)
    if report.given:
        out.print(f"as recorded, and not run again: {escaped(', '.join(report.given))}", soft_wrap=True)
    if report.folder:
        out.print(f"they ran in {escaped(report.folder)}", soft_wrap=True)
    every = [one.verdict for run in report.runs for one in run.outputs]
    counts = ", ".join(f"{every.count(verdict):,} {verdict.value}" for verdict in Verdict if verdict in every)
    tasks = text.count(len(report.runs), "task")
    out.print(f"{tasks}, {text.count(len(every), 'output')}: {counts or 'nothing to compare'}", soft_wrap=True)


def _print_run(run: reproducing.Run, out: Console) -> None:
    said = "" if run.good else f" [red]{escaped(text.line(': '.join(filter(None, (run.outcome, run.reason))), 500))}[/]"
    out.print(f"[bold]{escaped(run.record)}[/] {escaped(run.name)}{said}", soft_wrap=True)
    for one in run.outputs:
        style = _STYLES[one.verdict]
        out.print(f"  [{style}]{one.verdict.value:10}[/] {escaped(one.name)}{escaped(_how_far(one))}", soft_wrap=True)
        if one.verdict is Verdict.DIFFERENT and one.now is not None:
            out.print(f"    recorded {escaped(text.value(one.then))}", soft_wrap=True)
            out.print(f"    now      {escaped(text.value(one.now))}", soft_wrap=True)


def _how_far(one: Output) -> str:
    if one.note:
        return f": {text.line(one.note, 300)}"
    if one.distance is None:
        return ""
    where = f" at {one.distance.where}" if one.distance.where else ""
    return where if math.isinf(one.distance.relative) else f" by {one.distance.relative:.1e} at most{where}"


def _print_code(code: reproducing.Code, out: Console) -> None:
    out.print(f"module {escaped(code.module)} has changed; the recorded text ran:", soft_wrap=True)
    lines = code.difference.splitlines()
    for line in lines[:_LINES]:
        out.print(f"  {escaped(line)}", soft_wrap=True)
    if len(lines) > _LINES:
        out.print(f"  … {len(lines) - _LINES} more lines; `--json` has them all")
