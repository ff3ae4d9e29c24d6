"""`pilot init`: make a project, or nothing."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

import click

from pilot import signing
from pilot.cli import common
from pilot.cli.common import Command, console, escaped, tell
from pilot.cli.store import where
from pilot.config import FOLDER, ProjectConfig, create_project, find_project, load_project
from pilot.errors import PilotError, ProjectError, ProjectExists, ProjectNotFound, StoreError
from pilot.site_files import is_path, load_site
from pilot.store import access, schema
from pilot.store.local import LocalServer


@click.command(cls=Command)
@click.option("--store", "uri", metavar="URI", help="Use a MongoDB server of your own; `-` asks for its URI.")
@click.option("--site", default="local", show_default=True, help="Where its pilots run: a site, or a site file.")
@click.argument("directory", default=".", type=click.Path(exists=True, file_okay=False))
def init(uri: str | None, site: str, directory: str) -> None:
    """Make a project in DIRECTORY (default: here).

    Without --store its database is a private mongod, started when it is first needed.
    """
    root = Path(directory).resolve()
    load_site(site)
    if uri == "-":
        uri = click.prompt("URI of the MongoDB server", hide_input=True, err=True).strip()
    with suppress(ProjectNotFound):
        outer = find_project(root)
        if outer.root != root:
            tell(f"note: {str(root)!r} is inside of the project {str(outer.root)!r}; it gets one of its own")
    half = _half_made(root)
    config = _complete(half) if half is not None else _make(root, uri, _settled(site))
    _show(config, "completed the half-made project" if half is not None else "made project")


def _settled(site: str) -> str:
    """Return a site file's path so that it means the same in every directory."""
    return str(Path(site).resolve()) if is_path(site) else site


def _half_made(root: Path) -> ProjectConfig | None:
    """Return the project that an `init` left without a key because it was killed, or None."""
    if not (root / FOLDER / "project.json").is_file():
        return None
    config = load_project(root)
    if config.key_file.exists():
        raise ProjectExists(f"{str(root)!r} is a pilot project already; nothing was changed")
    return config


def _complete(config: ProjectConfig) -> ProjectConfig:
    """Give a project without a key what it lacks, unless its database was made with a key that is gone."""
    with access.store_of(config, timeout_s=common.STORE_S) as store:
        if not schema.empty(store):
            raise ProjectError(
                f"cannot make a key for {str(config.root)!r}: its database was made with another one, "
                f"which is gone; restore {str(config.key_file)!r} from a backup"
            )
        signing.create_key(config.key_file)
        schema.create(store, config.id, access.proof(config))
    return config


def _make(root: Path, uri: str | None, site: str) -> ProjectConfig:
    """Make a project; if any step fails, take back what was made, so that a later `init` starts afresh."""
    folder = root / FOLDER
    before = set(os.listdir(folder)) if folder.is_dir() else None
    config = create_project(root, uri, site)
    try:
        signing.create_key(config.key_file)
        with access.store_of(config, timeout_s=common.STORE_S) as store:
            schema.create(store, config.id, access.proof(config))
    except BaseException as exc:
        _take_back(folder, before)
        if isinstance(exc, StoreError):
            raise type(exc)(f"cannot make a project in {str(root)!r}: {exc} (nothing was left behind)") from exc
        raise
    return config


def _take_back(folder: Path, before: set[str] | None) -> None:
    with suppress(PilotError):
        LocalServer(folder / "store").stop(20.0)
    if before is None:
        shutil.rmtree(folder, ignore_errors=True)
        return
    for name in set(os.listdir(folder)) - before:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _show(config: ProjectConfig, what: str) -> None:
    out = console()
    out.print(f"{what} [bold]{escaped(config.name)}[/] in {escaped(config.folder)}")
    with access.store_of(config) as store:
        out.print(f"  store  {escaped(where(config, store))}")
    out.print(
        f"  key    {escaped(config.key_file)} [dim](signs tasks and results: keep it, and keep it to yourself)[/]"
    )
    out.print("[dim]next: `pilot run SCRIPT`, or `pilot up` and `pilot submit -- COMMAND`[/]")
