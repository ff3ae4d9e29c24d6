"""How a project's database is reached: the embedded server, or the URI of the user's own."""

from __future__ import annotations

from pilot import signing
from pilot.config import ProjectConfig, read_secret
from pilot.errors import SchemaMismatch
from pilot.store import pilots, schema
from pilot.store.local import LocalServer
from pilot.store.mongo import Store

TIMEOUT_S = 20.0
PILOT_SELECT_S = 5.0
"""Pilots spool what they cannot write, and repeat: they need not wait long for a server before they do."""


def store_of(
    config: ProjectConfig, start: bool = True, timeout_s: float = TIMEOUT_S, select_s: float | None = None
) -> Store:
    """Return the project's store, not yet open.

    Args:
        config: the project.
        start: start the embedded server if it does not run.
        timeout_s: how long its calls wait.
        select_s: how long they wait for a server that is away, if less: `PILOT_SELECT_S` for whoever goes on without.

    Raises:
        ServerError: the embedded server cannot be started, or does not run and should not be started.
        ConfigError: the URI's file is missing or open to others.
    """
    if not config.embedded:
        return Store(read_secret(config.uri_file), config.database, timeout_s=timeout_s, select_s=select_s)
    server = LocalServer(config.store_folder)
    uri, done = server.use() if start else (server.uri(), None)
    return Store(uri, config.database, timeout_s=timeout_s, select_s=select_s, after=done)


def create(config: ProjectConfig) -> None:
    """Make the database of a new project, or find that it is there."""
    with store_of(config) as store:
        schema.create(store, config.id, proof(config))


def checked(store: Store, config: ProjectConfig) -> Store:
    """Make sure that an open store has our schema and was made with our key; make it where `init` could not.

    What is found of where the store is to run is corrected too.

    Raises:
        SchemaMismatch: it is another version's or another project's.
        SignatureError: it was made with another key.
    """
    try:
        schema.check(store, config.id, proof(config))
    except SchemaMismatch:
        if not schema.empty(store):
            raise
        schema.create(store, config.id, proof(config))
    _settle(store, config)
    return store


def _settle(store: Store, config: ProjectConfig) -> None:
    """Take back what is promised to a pilot that will not come: it was cancelled, failed, or is over."""
    if not config.embedded:
        return
    server = LocalServer(config.store_folder)
    if (pilot := server.home) and not pilots.live(store, pilot):
        server.promise("", instead_of=pilot)


def proof(config: ProjectConfig) -> bytes:
    """Return what only the project's key can sign; it stands in the database from the first day."""
    return signing.proof(signing.signer_of(config))
