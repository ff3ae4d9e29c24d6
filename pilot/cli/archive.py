"""`pilot export` and `pilot import`: provenance as one file, from project to project."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from pilot import __version__, signing
from pilot.cli import text
from pilot.cli.common import Command, Opened, emit, json_option, now, opened, tell
from pilot.cli.completion import tasks as complete_tasks
from pilot.cli.find import search_for
from pilot.errors import SignatureError
from pilot.manifest import FORMAT, Manifest
from pilot.model import new_token
from pilot.progress import bar
from pilot.store import exports, imports
from pilot.store.archive import Reader
from pilot.store.objects import Objects

_ID = re.compile(r"[\w-]+(?::\d+)?", re.ASCII)
"""What is no expression, which has spaces or operators in it."""


@click.command("export", cls=Command)
@click.argument("names", nargs=-1, metavar="[ID|EXPR]...", shell_complete=complete_tasks)
@click.option("--all", "every", is_flag=True, help="All tasks that have ended.")
@click.option("--tag", metavar="T", help="All tasks with this tag that have ended.")
@click.option(
    "-o", "--output", "path", required=True, metavar="FILE", type=click.Path(path_type=Path),
    help="The archive to write: something.pilot.zip.",
)  # fmt: skip
@click.option("--no-objects", is_flag=True, help="Leave out large values; their hashes and sizes stay.")
@click.option("--sign", "signed", is_flag=True, help="Sign the archive as a whole with the project's key.")
@json_option
@click.pass_context
def export(
    ctx: click.Context, names: tuple[str, ...], every: bool, tag: str | None, path: Path, no_objects: bool,
    signed: bool, as_json: bool,
) -> None:  # fmt: skip
    """Write tasks, and everything that their results came from, to one file.

    The tasks are named by their ids, or by an expression as `pilot find` takes it: those of the records that fit.
    With all attempts' records, the tasks whose outputs they used, functions, environments and large values.
    """
    if bool(names) + every + (tag is not None) != 1:
        raise click.UsageError("name tasks, give an expression, or say --all or --tag", ctx)
    with opened() as project:
        signer = signing.signer_of(project.config)
        total = project.store.tasks.estimated_document_count() if every else None
        with bar("exporting tasks", total) as advance:
            done = exports.export(
                project.store, Objects(project.config.objects_folder), path, _head(project, signer, names, tag),
                _asked_for(project, names, tag), values=not no_objects,
                sign=(lambda data: _signature(signer, data)) if signed else None, advance=advance,
            )  # fmt: skip
    made = done.manifest
    if as_json:
        emit(
            {
                "file": str(path.resolve()), "bytes": path.stat().st_size, "archive": made.archive, **made.counts,
                "objects": made.objects, "object_bytes": made.object_bytes, "absent": made.absent,
                "unended": done.unended, "signed": signed,
            }
        )  # fmt: skip
        return
    click.echo(
        f"{text.count(made.counts['tasks'], 'task')} with {text.count(made.counts['records'], 'record')} and "
        f"{text.count(made.objects, 'object')} in {path}, {text.size(path.stat().st_size)}"
    )
    if done.unended:
        tell(f"{text.count(done.unended, 'task')} have not ended and were left out")
    if made.absent and not no_objects:
        tell(f"{text.count(made.absent, 'object')} that are named are not in the object repository and not in the file")


def _asked_for(project: Opened, names: tuple[str, ...], tag: str | None) -> Iterator[str]:
    """Return the ids of the tasks that are asked for."""
    expressions = [name for name in names if not _ID.fullmatch(name)]
    if not expressions:
        return exports.asked_for(project.store, names, tag)
    if len(names) > 1:
        raise click.UsageError(f"give ids or one expression; {expressions[0]!r} is not an id")
    search = search_for(project.store, Objects(project.config.objects_folder).get, expressions[0])
    return (record.rpartition(":")[0] for record in search.ids())


def _head(project: Opened, signer: signing.Signer, names: tuple[str, ...], tag: str | None) -> Manifest:
    """Return what the archive says of itself before anything is in it."""
    asked = f"tag {tag}" if tag is not None else text.line(" ".join(names), 1000) or "all"
    config = project.config
    return Manifest(
        new_token(12), config.id, config.name, signing.proof(signer).hex(), __version__, text.iso(now()), asked
    )


def _signature(signer: signing.Signer, data: bytes) -> bytes:
    return signer.sign("archive", FORMAT, data.hex())


# -- import -----------------------------------------------------------------------------------------


@click.command("import", cls=Command)
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "--trust", "key_file", metavar="KEYFILE", type=click.Path(path_type=Path),
    help="Trust the key of the project that made it: a copy of its .pilot/key.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Check everything and store nothing.")
@json_option
def import_(path: Path, key_file: Path | None, dry_run: bool, as_json: bool) -> None:
    """Take over what an archive holds and this project does not have yet. Repeat it as often as you like.

    Nothing of another project is ever run. What it signed is unpickled only if you trust its key.
    """
    with opened() as project, Reader(path) as reader:
        signer, about = signing.signer_of(project.config), reader.manifest
        key = _key_of(key_file, about) if key_file is not None else None
        if key is not None:
            signer.trust(about.project, key)
        total = sum(about.counts.values()) * (1 if dry_run else 2)
        with bar("importing documents", total) as advance:
            found = imports.import_(
                project.store, Objects(project.config.objects_folder), reader, signer, now(), dry_run=dry_run,
                advance=advance,
            )  # fmt: skip
        if key is not None and not dry_run and about.project != project.config.id:
            signing.keep_trusted(project.config.trusted_folder, about.project, key)
        _show(found, about, project.config.id, dry_run, as_json)


def _key_of(path: Path, about: Manifest) -> bytes:
    """Return the key in a file.

    Raises:
        SignatureError: it is not that of the project that made the archive.
    """
    key = signing.load_key(path)
    if signing.proof(signing.Signer(key, about.project)).hex() != about.proof:
        raise SignatureError(
            f"the key in {str(path)!r} is not that of the project {about.name!r} ({about.project}), which made the "
            "archive; nothing was imported"
        )
    return key


def _show(found: imports.Imported, about: Manifest, ours: str, dry_run: bool, as_json: bool) -> None:
    document: dict[str, Any] = {
        "archive": about.archive, "project": about.project, "created": about.created, "dry_run": dry_run,
        "new": found.new, "same": found.same, "updated": found.updated, "absent": about.absent,
        "verified": found.verified, "signed": found.signed,
    }  # fmt: skip
    if as_json:
        emit(document)
        return
    verb = "would import" if dry_run else "imported"
    same = f"; {text.count(found.same['tasks'], 'task')} were here already" if found.same["tasks"] else ""
    later = f", {found.updated:,} of them brought up to date" if found.updated else ""
    click.echo(
        f"{verb} {text.count(found.new['tasks'], 'task')} with {text.count(found.new['records'], 'record')} and "
        f"{text.count(found.new['objects'], 'object')} from project {about.name} ({about.project}){same}{later}"
    )
    for project, verified in found.verified.items():
        if not verified:
            tell(
                f"the key of project {project} is not trusted: its signatures were not verified, and nothing of it is "
                "unpickled (--trust KEYFILE)"
            )
