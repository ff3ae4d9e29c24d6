"""`pilot store`: the project's database server."""

from __future__ import annotations

from typing import Any

import click

from pilot.cli import common, queries, text
from pilot.cli.common import Command, console, emit, escaped, json_option, now, tell
from pilot.config import ProjectConfig, find_project, read_secret
from pilot.errors import InvalidInput, PilotError, StoreError
from pilot.fleet import look
from pilot.store import access
from pilot.store.local import LocalServer, ServerStatus
from pilot.store.mongo import Store, redact


@click.group(invoke_without_command=True)
@click.pass_context
def store(ctx: click.Context) -> None:
    """Start, stop or look at the project's database."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@store.command(cls=Command)
def start() -> None:
    """Start the embedded server; harmless if it runs."""
    server = _embedded("start")
    server.start()
    console().print(f"the store runs: {_place(server.status())}")


@store.command(cls=Command)
def stop() -> None:
    """Stop the embedded server cleanly; harmless if it does not run."""
    server = _embedded("stop")
    if server.status().running:
        _warn_of_pilots(find_project())
    stopped = server.stop()
    console().print("the store is stopped; what needs it starts it" if stopped else "the store did not run")


@store.command(cls=Command)
@json_option
def status(as_json: bool) -> int:
    """Say whether the server runs, and where; exit code 1 if it does not. Starts nothing."""
    facts = describe(find_project())
    if as_json:
        emit(facts)
    else:
        console().print(escaped(sentence(facts)))
    return 0 if facts["running"] else 1


# -- what is known of the server ------------------------------------------------------------------


def describe(config: ProjectConfig) -> dict[str, Any]:
    """Return what is known of the store's server, for JSON; starts nothing."""
    facts: dict[str, Any] = {"kind": "embedded" if config.embedded else "own", "database": config.database}
    if config.embedded:
        status = LocalServer(config.store_folder).status()
        return facts | {
            "running": status.running, "reason": status.reason, "version": status.version, "host": status.host,
            "port": status.port, "pid": status.pid, "uptime_s": status.uptime_s, "size_bytes": status.size_bytes,
        }  # fmt: skip
    facts["uri"] = redact(read_secret(config.uri_file))
    try:
        with access.store_of(config, timeout_s=common.STORE_S) as store:
            return facts | {"running": True, "reason": "", "version": queries.version(store)}
    except StoreError as exc:
        return facts | {"running": False, "reason": str(exc), "version": ""}


def sentence(facts: dict[str, Any]) -> str:
    """Return one line for people about what `describe` found."""
    where_ = f"{facts['host']}, port {facts['port']}" if facts["kind"] == "embedded" else facts["uri"].partition("?")[0]
    if not facts["running"]:
        return f"{facts['kind']} server, not running: {facts['reason']}"
    parts = [f"{'embedded ' if facts['kind'] == 'embedded' else ''}MongoDB {facts['version']} at {where_}"]
    if facts.get("uptime_s") is not None:
        parts.append(f"up {text.span(max(1.0, facts['uptime_s']))}")
    if facts.get("size_bytes"):
        parts.append(text.size(facts["size_bytes"]))
    return ", ".join(parts)


def where(config: ProjectConfig, store: Store) -> str:
    """Return kind, version and place of a server that answers, for people."""
    if config.embedded:
        return _place(LocalServer(config.store_folder).status())
    return f"MongoDB {queries.version(store)} at {redact(read_secret(config.uri_file)).partition('?')[0]}"


def _place(status: ServerStatus) -> str:
    return f"embedded MongoDB {status.version} at {status.host}, port {status.port}"


def _embedded(verb: str) -> LocalServer:
    config = find_project()
    if not config.embedded:
        uri = redact(read_secret(config.uri_file)).partition("?")[0]
        raise InvalidInput(f"cannot {verb} the store: it is a server of your own at {uri}; {verb} it there")
    return LocalServer(config.store_folder)


def _warn_of_pilots(config: ProjectConfig) -> None:
    try:
        with access.store_of(config, start=False, timeout_s=2.0) as store:
            live = [view.id for view in look(store, now(), live_only=True) if view.live]
    except PilotError:
        return  # a server that does not answer may be stopped all the more
    if live:
        tell(f"{', '.join(live)} still up: results are kept on disk until the store is back (`pilot down` ends pilots)")
