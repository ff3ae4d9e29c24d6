"""How a project's database is reached: the embedded server, or the URI of the user's own."""

from __future__ import annotations

from pilot.config import ProjectConfig, read_secret
from pilot.errors import StoreError
from pilot.store import schema
from pilot.store.local import LocalServer
from pilot.store.mongo import Store

TIMEOUT_S = 20.0


def store_of(config: ProjectConfig, start: bool = True, timeout_s: float = TIMEOUT_S) -> Store:
    """Return the project's store, not yet open.

    Args:
        config: the project.
        start: start the embedded server if it does not run.
        timeout_s: how long its calls wait.

    Raises:
        ServerError: the embedded server cannot be started, or does not run and should not be started.
        ConfigError: the URI's file is missing or open to others.
    """
    if not config.embedded:
        return Store(read_secret(config.uri_file), config.database, timeout_s=timeout_s)
    server = LocalServer(config.store_folder)
    return Store(server.start() if start else server.uri(), config.database, timeout_s=timeout_s)


def create(config: ProjectConfig) -> None:
    """Make the database of a new project, or find that it is there."""
    with store_of(config) as store:
        schema.create(store, config.id)


def checked(store: Store, config: ProjectConfig) -> Store:
    """Make sure that an open store has our schema; make it where `init` could not.

    Raises:
        SchemaMismatch: it is another version's or another project's.
    """
    try:
        schema.check(store, config.id)
    except StoreError:
        if store.meta.count_documents({}, limit=1):
            raise
        schema.create(store, config.id)
    return store
