"""`pilot site`: which machines are known, what their files say, and whether that is true."""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pilot.allocation import pilot_settings
from pilot.cli.checkup import examine, report
from pilot.cli.common import Command, Rows, console, duration, emit, escaped, json_option
from pilot.cli.completion import sites as complete_sites
from pilot.cli.site_here import Subject, checks
from pilot.cli.site_job import Trial, run
from pilot.config import FOLDER, ProjectConfig, find_project
from pilot.errors import ConfigError, InvalidInput, ProjectNotFound
from pilot.site_files import load_site, merged, site_files, site_names
from pilot.sites import here

if TYPE_CHECKING:
    from pilot.sites import Site

_COLUMNS = 100
_NODES = 2
"""Of a job that checks: enough to show what is otherwise between nodes than on one."""

_name = click.argument("name", shell_complete=complete_sites)
_queue = click.option("--queue", default="", metavar="Q", help="Partition or queue; default: the site file's.")
_account = click.option("--account", default="", metavar="A", help="What it is charged to; default: the site file's.")


@click.group(invoke_without_command=True)
@click.pass_context
def site(ctx: click.Context) -> None:
    """List, show or check the files that describe machines."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


# -- list -----------------------------------------------------------------------------------------


@site.command("list", cls=Command)
@json_option
def list_(as_json: bool) -> None:
    """List the sites that `--site` knows by name; a star marks the one that we are on."""
    config = _project()
    entries = [_entry(name, config, socket.getfqdn()) for name in site_names(config)]
    if as_json:
        emit(entries)
        return
    rows = Rows("", "site", "batch", "verified", "description")
    for entry in entries:
        mark = "[green]*[/]" if entry["here"] else ""
        said = f"[red]{escaped(entry['error'])}[/]" if entry["error"] else escaped(entry["description"])
        rows.add(mark, f"[bold]{escaped(entry['name'])}[/]", entry["batch"], entry["verified"] or "unverified", said)
    rows.print(console())


def _entry(name: str, config: ProjectConfig | None, fqdn: str) -> dict[str, Any]:
    entry = {"name": name, "description": "", "batch": "", "verified": None, "here": False, "error": ""}
    try:
        found = load_site(name, config)
    except ConfigError as exc:
        return entry | {"error": str(exc)}
    return entry | {
        "description": found.description, "batch": found.batch.system if found.batch else "",
        "verified": str(found.verified.date) if found.verified else None, "here": here(found, os.environ, fqdn),
    }  # fmt: skip


# -- show -----------------------------------------------------------------------------------------


@site.command(cls=Command)
@_name
@click.option("--script", is_flag=True, help="Print the batch script that `pilot up` would submit instead.")
@click.option("--nodes", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="Of that pilot.")
@click.option("--walltime", callback=duration, default="1h", show_default=True, metavar="T", help="Of that pilot.")
@_queue
@_account
@json_option
def show(name: str, script: bool, nodes: int, walltime: float, queue: str, account: str, as_json: bool) -> None:
    """Show what a site's file and those that it extends say together."""
    config = _project()
    files = site_files(name, config)
    found = load_site(name, config)
    if script and found.batch is None:
        raise InvalidInput(f"site {found.name!r} has no batch system: there is no script, pilots are processes here")
    if script:
        written = _subject(found, name, config, nodes, walltime, queue, account).script()
        emit({"script": written}) if as_json else click.echo(written, nl=False)
    elif as_json:
        emit({**found.model_dump(mode="json"), "files": [str(file.path) for file in files]})
    else:
        click.echo("".join(f"# {'extends ' * (number > 0)}{file.path}\n" for number, file in enumerate(files)))
        data = merged(files)
        in_order = {key: data[key] for key in type(found).model_fields if key in data}
        click.echo("\n".join(as_yaml(in_order, found.unverified)))


def as_yaml(data: Mapping[str, Any], unverified: Collection[str], within: tuple[str, ...] = ()) -> Iterator[str]:
    """Return lines of YAML, with a comment above each key of which nobody has made sure.

    Args:
        data: keys and values.
        unverified: such keys, dots between their parts.
        within: the keys in which `data` is.
    """
    import yaml

    indent = "  " * len(within)
    for key, value in data.items():
        place = (*within, str(key))
        if ".".join(place) in unverified:
            yield f"{indent}# unverified:"
        if isinstance(value, dict) and value:
            yield f"{indent}{key}:"
            yield from as_yaml(value, unverified, place)
        else:
            flow = None if isinstance(value, list) else False
            one = yaml.safe_dump(
                {key: value}, default_flow_style=flow, sort_keys=False, allow_unicode=True, width=_COLUMNS
            )  # fmt: skip
            yield from (indent + line for line in one.splitlines())


# -- check ----------------------------------------------------------------------------------------


@site.command(cls=Command)
@_name
@click.option("--in-job", is_flag=True, help="Submit a job that tries what cannot be tried from here.")
@click.option(
    "--nodes", type=click.IntRange(1), metavar="N", help=f"Of the job; default: {_NODES} with --in-job, else 1."
)
@click.option("--walltime", callback=duration, default="10m", show_default=True, metavar="T", help="Of the job.")
@_queue
@_account
@click.option(
    "--timeout", callback=duration, default="1h", show_default=True, metavar="T", help="Cancel the job after so long."
)
@json_option
def check(
    name: str, in_job: bool, nodes: int | None, walltime: float, queue: str, account: str, timeout: float, as_json: bool
) -> int:  # fmt: skip
    """Try whether what a site's file says is true; exit code 1 if anything is wrong.

    From here that are the batch system's commands and queues, modules, launchers and network interfaces, and whether
    the script would be taken. With --in-job a job on --nodes starts a small MPI program as pools are started.
    """
    config = _project()
    found = load_site(name, config)
    subject = _subject(found, name, config, nodes or (_NODES if in_job else 1), walltime, queue, account)
    if not in_job:
        return report(examine(subject, checks(found)), as_json)
    if found.batch is None:
        raise InvalidInput(f"site {found.name!r} has no batch system: `pilot doctor` tries its launcher")
    return report(examine(Trial(found, config, subject.settings, queue, account, timeout), [("job", run)]), as_json)


def _subject(
    found: Site, name: str, config: ProjectConfig | None, nodes: int, walltime_s: float, queue: str, account: str
) -> Subject:  # fmt: skip
    settings = pilot_settings(config, found, walltime_s=walltime_s, nodes=nodes)
    folder = config.pilot_folder(settings.pilot) if config else Path.cwd() / FOLDER / "pilots" / settings.pilot
    files = tuple(file.path for file in site_files(name, config))
    return Subject(found, files, settings, folder, queue, account, config)


def _project() -> ProjectConfig | None:
    """Return the project, if there is one: it may have site files of its own."""
    try:
        return find_project()
    except ProjectNotFound:
        return None
