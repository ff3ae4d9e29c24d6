"""What the tests share: services that may be missing, the real database."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Callable, Iterator

import pytest

from pilot.errors import ServerNotFound
from pilot.store import invariants, mongod, schema
from pilot.store.local import LocalServer
from pilot.store.mongo import Store

# -- services that a machine may lack ---------------------------------------------------------------


def _mongod() -> str:
    try:
        program = mongod.find()
    except ServerNotFound as exc:
        return str(exc)
    ran = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, timeout=30)
    return "" if ran.returncode == 0 else ran.stderr.strip()


SERVICES: dict[str, Callable[[], str]] = {"mongod": _mongod}
"""For each service a function that says why it is missing; an empty string if it is there."""


def need(service: str) -> None:
    """Skip the test if `service` is missing; in CI fail, so that a green run cannot mean that nothing ran."""
    reason = SERVICES[service]()
    if reason and os.environ.get("CI"):
        pytest.fail(f"{service} is missing, and CI must have it: {reason}")
    if reason:
        pytest.skip(f"{service} is missing: {reason}")


# -- the database -----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def mongod_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run one real embedded server for the whole session; yield its URI."""
    need("mongod")
    server = LocalServer(tmp_path_factory.mktemp("mongod"))
    try:
        yield server.start(deadline_s=60)
    finally:
        server.stop()


PROJECT = "project-of-the-tests"

ANY_DOCUMENTS = "any_documents"
"""Mark of tests whose documents are not tasks and records, or that leave something wrong on purpose."""


def pytest_configure(config: pytest.Config) -> None:
    """Make the mark known."""
    config.addinivalue_line("markers", f"{ANY_DOCUMENTS}: the store need not satisfy the invariants at the end")


@pytest.fixture
def store(mongod_uri: str, request: pytest.FixtureRequest) -> Iterator[Store]:
    """Open a store on a database of its own with our schema; check the invariants, and drop it afterwards."""
    name = f"test_{secrets.token_hex(6)}"
    with Store(mongod_uri, name) as opened:
        try:
            schema.create(opened, PROJECT)
            yield opened
            if request.node.get_closest_marker(ANY_DOCUMENTS) is None:
                wrong = invariants.violations(opened)
                assert wrong == []
        finally:
            opened.database.client.drop_database(name)
