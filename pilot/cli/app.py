"""The command `pilot` itself: which commands there are, and what an error looks like.

Imports click and nothing heavier, so that ``pilot --help`` answers at once: a command's module is loaded when
the command is used, and the lines that the help shows of it stand here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import click
from click.shell_completion import CompletionItem

from pilot import __version__
from pilot.errors import PilotError

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


class Entry(NamedTuple):
    """One command: where it is, and what the help says of it."""

    module: str
    function: str
    help: str


SECTIONS: dict[str, dict[str, Entry]] = {
    "Projects": {
        "init": Entry("project", "init", "Make a project here, with a database of its own."),
        "status": Entry("status", "status", "Show the project at a glance, and what to do next."),
        "store": Entry("store", "store", "Start, stop or look at the project's database."),
        "objects": Entry("objects", "objects", "Look after large values and files: verify, collect, drop."),
        "doctor": Entry("doctor", "doctor", "Check everything, and say what to do about what is wrong."),
    },
    "Pilots": {
        "run": Entry("run", "run", "Run a script with a local pilot for as long as it needs one."),
        "up": Entry("pilots", "up", "Start a pilot that stays."),
        "down": Entry("pilots", "down", "Let pilots finish what they run, and end."),
        "pilots": Entry("pilots", "pilots", "List pilots."),
        "scale": Entry("scale", "scale", "Ask for pilots by what waits."),
        "site": Entry("site", "site", "List, show or check the files that describe machines."),
    },
    "Tasks": {
        "submit": Entry("submit", "submit", "Submit a command as a task."),
        "tasks": Entry("tasks", "tasks", "List tasks, newest first."),
        "show": Entry("show", "show", "Show a task and where its result came from."),
        "logs": Entry("logs", "logs", "Print what a task wrote to its output."),
        "explain": Entry("explain", "explain", "Say why a task is not running."),
        "wait": Entry("control", "wait", "Wait until tasks have ended."),
        "cancel": Entry("control", "cancel", "Cancel what has not begun, stop what runs."),
        "retry": Entry("control", "retry", "Run failed or cancelled tasks again."),
        "invalidate": Entry("control", "invalidate", "Let results not be taken for equal tasks."),
    },
    "Provenance": {
        "find": Entry("find", "find", "Find records by what they hold."),
        "graph": Entry("graph", "graph", "Show what a result came from, and what was made of it."),
        "tag": Entry("remarks", "tag", "Add tags to tasks, or remove them."),
        "note": Entry("remarks", "note", "Write a note on tasks, or read what was written."),
        "group": Entry("remarks", "group", "Put tasks into groups, take them out, list groups."),
        "verify": Entry("verify", "verify", "Check that a result and what went into it are as written."),
        "reproduce": Entry("reproduce", "reproduce", "Run a result again with the recorded code, and compare."),
        "export": Entry("archive", "export", "Write tasks and all that their results came from to one file."),
        "import": Entry("archive", "import_", "Take over what such a file holds."),
        "publish": Entry("publish", "publish", "Write where results came from as W3C PROV or as an RO-Crate."),
        "index": Entry("index", "index", "List, make or drop what queries go by."),
    },
}
COMMANDS = {name: entry for section in SECTIONS.values() for name, entry in section.items()}


@dataclass
class Flags:
    """What stands for the whole program; the object of click's contexts."""

    debug: bool = False


class Group(click.Group):
    """Knows all commands by name and loads one when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load one command."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        from importlib import import_module

        command: click.Command = getattr(import_module(f"pilot.cli.{entry.module}"), entry.function)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without loading them."""
        width = max(map(len, COMMANDS))
        for title, section in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), entry.help) for name, entry in section.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete the name of a command without loading any."""
        names = [
            CompletionItem(name, help=entry.help) for name, entry in COMMANDS.items() if name.startswith(incomplete)
        ]
        return names + click.Command.shell_complete(self, ctx, incomplete)


def debug_flag(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Note that ``--debug`` was given, wherever it stood."""
    if value:
        ctx.ensure_object(Flags).debug = True


@click.command(
    cls=Group,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="`pilot COMMAND --help` says more. Begin with `pilot init`.",
)
@click.option("-C", "directory", metavar="DIR", help="Work as if started in DIR.")
@click.option(
    "--debug", is_flag=True, expose_value=False, callback=debug_flag, help="Show tracebacks and more of the log."
)
@click.version_option(__version__, prog_name="pilot", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context, directory: str | None) -> None:
    """Run very many tasks inside batch allocations and remember how every result came about."""
    if directory is not None:
        try:
            os.chdir(directory)
        except OSError as exc:
            raise click.BadParameter(f"cannot change to {directory!r}: {exc.strerror}", ctx) from exc
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def run(argv: Sequence[str]) -> int:
    """Run one command line; return the exit code: 0, 1 for a failure, 2 for wrong usage, 130 after Ctrl-C."""
    flags = Flags()
    try:
        code = cli.main(list(argv), prog_name="pilot", standalone_mode=False, obj=flags)
        return code if isinstance(code, int) else 0
    except (click.Abort, KeyboardInterrupt):
        _say("interrupted")
        return INTERRUPTED
    except click.UsageError as exc:
        if flags.debug:
            raise
        _say(f"{exc.format_message().rstrip('.')}{_see_help(exc)}")
        return 2
    except PilotError as exc:
        if flags.debug:
            raise
        _say(str(exc))
        return 1
    except BrokenPipeError:  # whoever read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except Exception as exc:  # the one handler at the program's top
        if flags.debug:
            raise
        _say(f"cannot go on: {type(exc).__name__}: {exc}; this is a defect, `pilot --debug …` shows where")
        return 1


def _say(text: str) -> None:
    """Write one line to stderr."""
    click.echo("pilot: " + " ".join(text.split()), err=True)


def _see_help(exc: click.UsageError) -> str:
    return f"; see `{exc.ctx.command_path} --help`" if exc.ctx is not None else ""
