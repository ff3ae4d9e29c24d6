"""What the tests share: services that may be missing, the real database."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pilot
from pilot.cli.app import run
from pilot.errors import ServerNotFound
from pilot.model import new_token
from pilot.store import invariants, mongod, schema
from pilot.store.local import LocalServer
from pilot.store.mongo import Store
from tests import archive_rig, queue_rig
from tests.cli_rig import Call, Said
from tests.rig import Rig
from tests.server_rig import kill

# -- services that a machine may lack ---------------------------------------------------------------


def _mongod() -> str:
    try:
        program = mongod.find()
    except ServerNotFound as exc:
        return str(exc)
    ran = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, timeout=30)
    return "" if ran.returncode == 0 else ran.stderr.strip()


def _mpiexec() -> str:
    beside = Path(sys.executable).parent / "mpiexec"
    return "" if beside.is_file() or shutil.which("mpiexec") else f"neither {str(beside)!r} nor one on the PATH"


def _pw() -> str:
    return "" if shutil.which("pw.x") else "Quantum ESPRESSO's pw.x is not on the PATH (Debian: quantum-espresso)"


def _slurm() -> str:
    if os.geteuid() != 0:
        return "only root can bring up a cluster on this machine"
    return (
        "" if os.environ.get("CI") or os.environ.get("PILOT_TEST_SLURM") else "set PILOT_TEST_SLURM=1 to bring one up"
    )


def _dot() -> str:
    return "" if shutil.which("dot") else "Graphviz' dot is not on the PATH (Debian: graphviz)"


def roc_validator() -> Path:
    """Return the Python of an environment with `roc-validator`, which wants an older `rich` than we do."""
    return Path(os.environ.get("PILOT_TEST_ROC_VALIDATOR", Path(sys.prefix) / "roc-validator"), "bin", "python")


def _roc_validator() -> str:
    place = roc_validator()
    return "" if place.is_file() else f"no {str(place)!r} (python -m venv, pip install roc-validator)"


SERVICES: dict[str, Callable[[], str]] = {
    "mongod": _mongod, "mpiexec": _mpiexec, "pw.x": _pw, "slurm": _slurm, "dot": _dot, "roc-validator": _roc_validator,
}  # fmt: skip
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


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Give a place for a server; end whatever serves it afterwards."""
    place = tmp_path / "store"
    yield place
    if (process := mongod.running(place / "db")) is not None:
        kill(process.pid)


@pytest.fixture
def server(directory: Path) -> LocalServer:
    need("mongod")
    return LocalServer(directory)


PROJECT = "project-of-the-tests"

ANY_DOCUMENTS = "any_documents"
"""Mark of tests whose documents are not tasks and records, or that spoil the store on purpose."""


def pytest_configure(config: pytest.Config) -> None:
    """Make the mark known."""
    config.addinivalue_line("markers", f"{ANY_DOCUMENTS}: the store need not satisfy the invariants at the end")


@pytest.fixture(scope="session")
def clean_databases() -> list[str]:
    """Return the names of databases that a test has left empty, schema and all: making one takes longer."""
    return []


@pytest.fixture
def store(mongod_uri: str, clean_databases: list[str], request: pytest.FixtureRequest) -> Iterator[Store]:
    """Open a store on an empty database with our schema; check the invariants at the end."""
    new = not clean_databases
    name = f"test_{secrets.token_hex(6)}" if new else clean_databases.pop()
    with Store(mongod_uri, name) as opened:
        try:
            if new:
                schema.create(opened, PROJECT)
            yield opened
            if request.node.get_closest_marker(ANY_DOCUMENTS) is None:
                assert invariants.violations(opened) == []
                if opened.tasks.estimated_document_count() < 10_000:  # above, dropping it is quicker
                    wipe(opened)
                    clean_databases.append(name)
        finally:
            if name not in clean_databases:
                opened.database.client.drop_database(name)


def wipe(store: Store) -> None:
    """Delete everything but the schema."""
    for name in store.database.list_collection_names(filter={"name": {"$ne": "meta"}}):
        store.database[name].delete_many({})


# -- the queue --------------------------------------------------------------------------------------


@pytest.fixture
def a(store: Store) -> str:
    """Return the token of a live pool."""
    return queue_rig.open_pool(store, "pool-a")


@pytest.fixture
def b(store: Store) -> str:
    """Return the token of another live pool."""
    return queue_rig.open_pool(store, "pool-b")


@pytest.fixture
def raced(store: Store, mongod_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Store, queue_rig.Commands]]:
    """Return a second way into the same database, and what counts its commands and can do something before each."""
    with queue_rig.listening(mongod_uri, store.database.name, monkeypatch) as opened:
        yield opened


# -- a whole system ---------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def shared_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Run one project with one pilot of two slots for all tests that do not break it."""
    need("mongod")
    need("mpiexec")
    with Rig(tmp_path_factory.mktemp("shared") / "p") as made:
        made.start(slots=2)
        yield made
        made.drain()
        made.check_clean()


@pytest.fixture(scope="module")
def lobby(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Run one project without a pilot for the tests of a module that ask batch systems for theirs."""
    need("mongod")
    with Rig(tmp_path_factory.mktemp("lobby") / "p") as made:
        yield made
        made.check()


@pytest.fixture
def rig(shared_rig: Rig) -> Iterator[Rig]:
    """Yield the shared project; check the invariants at the end, and that its pilot is still the same."""
    (one,) = shared_rig.pilots
    assert one.process.poll() is None, f"the shared pilot has ended\n{one.log()}"
    coordinator = one.rank(0)
    yield shared_rig
    shared_rig.settled()
    shared_rig.check()
    assert one.seen("rank", 0) == [coordinator], f"the pool has died\n{one.log()}"


@pytest.fixture
def project(rig: Rig) -> Iterator[pilot.Project]:
    """Open the shared project."""
    with rig.open() as opened:
        yield opened


@pytest.fixture
def unique() -> str:
    """Return an input that no other test of this project has."""
    return new_token()


@pytest.fixture
def call(rig: Rig, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]) -> Call:
    """Return what runs a command of the command line in this process, in the shared project."""
    monkeypatch.chdir(rig.config.root)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*argv: str) -> Said:
        code = run(argv)
        out, err = capsysbinary.readouterr()
        return Said(code, out.decode(), err.decode())

    return call


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """Yield a file for which tasks wait; at the end it is there, so that no slot stays taken."""
    path = tmp_path / "gate"
    yield path
    path.touch()


# -- archives ---------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def made(shared_rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> archive_rig.Made:
    """Return an archive of what the shared project has run."""
    here = Path.cwd()
    try:
        return archive_rig.make(shared_rig, tmp_path_factory.mktemp("archive") / "some.pilot.zip")
    finally:
        os.chdir(here)  # `pilot -C` has changed it


@pytest.fixture
def bring(store: Store, tmp_path: Path) -> archive_rig.Import:
    """Import archives into the store of the test, with objects in ``objects``."""
    return archive_rig.importer(store, tmp_path / "objects")
