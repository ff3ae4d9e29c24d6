"""Projects: where one is, and what its settings say.

A project is a directory with ``.pilot/`` (mode 0700), found from the working directory upward, as git does:

    project.json    id and name of the project, kind of store; no secrets
    key             signs what the store holds (0600)
    uri             of the user's own database server, with its password (0600), or absent
    store/          the embedded database server
    objects/        values of more than 16 KiB and files, by content
    pilots/ID/      a pilot's configuration, log and captured output
    spool/TOKEN/    results that could not be written to the store yet
    work/           private working directories of commands
    scratch/        projects in which something is run again
    sites/          the project's own site files, if it has any
    trusted/ID      keys of other projects whose imported values may be unpickled (0600), if there are any
"""

from __future__ import annotations

import json
import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from pilot.errors import ConfigError, InvalidInput, ProjectExists, ProjectNotFound
from pilot.model import new_token
from pilot.resources import parse_caching

FOLDER = ".pilot"


@dataclass(frozen=True, slots=True)
class ProjectConfig:
    """Where everything of one project lies.

    Args:
        root: the project's directory, absolute.
        id: random name of the project; stands in every signature and names the database.
        name: what people call it.
        embedded: whether the store is the embedded server.
        site: where its pilots run unless told otherwise: a shipped site, or the path of a site file.
        cache: whether results of equal tasks are taken unless a task or its submitter says otherwise, and what has
            to be equal for that; see `pilot.resources.CACHING`.
    """

    root: Path
    id: str
    name: str
    embedded: bool
    site: str = "local"
    cache: str = ""

    @property
    def folder(self) -> Path:
        """The ``.pilot`` directory."""
        return self.root / FOLDER

    @property
    def key_file(self) -> Path:
        """The key that signs what the store holds."""
        return self.folder / "key"

    @property
    def uri_file(self) -> Path:
        """The URI of the user's own server."""
        return self.folder / "uri"

    @property
    def store_folder(self) -> Path:
        """Where the embedded server keeps its files."""
        return self.folder / "store"

    @property
    def objects_folder(self) -> Path:
        """The object repository."""
        return self.folder / "objects"

    @property
    def spool_folder(self) -> Path:
        """Results that wait for the store."""
        return self.folder / "spool"

    @property
    def work_folder(self) -> Path:
        """Private working directories."""
        return self.folder / "work"

    @property
    def sites_folder(self) -> Path:
        """The project's own site files."""
        return self.folder / "sites"

    @property
    def trusted_folder(self) -> Path:
        """Keys of other projects that are trusted."""
        return self.folder / "trusted"

    @property
    def database(self) -> str:
        """Name of the project's database."""
        return f"pilot_{self.id}"

    def pilot_folder(self, pilot: str) -> Path:
        """Where one pilot keeps its configuration, log and output."""
        return self.folder / "pilots" / pilot


def find_project(start: Path | str | None = None) -> ProjectConfig:
    """Return the project of `start` (default: the working directory) or of the nearest directory above.

    Raises:
        ProjectNotFound: there is none.
        ConfigError: its settings cannot be read.
    """
    here = Path(start or Path.cwd()).resolve()
    for root in (here, *here.parents):
        if (root / FOLDER / "project.json").is_file():
            return load_project(root)
    raise ProjectNotFound(
        f"no pilot project in {str(here)!r} or above it; `pilot init` makes one, or change to the project's directory"
    )


def load_project(root: Path) -> ProjectConfig:
    """Read the settings of the project in `root`.

    Raises:
        ConfigError: a key is missing, unknown or of the wrong kind.
    """
    path = root / FOLDER / "project.json"
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as exc:
        raise ConfigError(f"cannot read the project's settings {str(path)!r}: {exc}") from exc
    expected = {"id": str, "name": str, "embedded": bool, "site": str}
    if not isinstance(data, dict) or data.keys() - {"cache"} != expected.keys():
        raise ConfigError(
            f'{str(path)!r} should hold exactly the keys {sorted(expected)}, and may hold "cache"; restore the file'
        )
    for key, kind in expected.items():
        if not isinstance(data[key], kind):
            raise ConfigError(f"{str(path)!r}: {key!r} is {data[key]!r}, expected {kind.__name__}")
    try:
        cache = parse_caching(data.get("cache", False))
    except InvalidInput as exc:
        raise ConfigError(f"{str(path)!r}: {exc}") from exc
    return ProjectConfig(root.resolve(), data["id"], data["name"], data["embedded"], data["site"], cache)


def create_project(root: Path, uri: str | None = None, site: str = "local") -> ProjectConfig:
    """Make ``.pilot/`` in `root` and write its settings; the key and the store are made by the caller.

    Args:
        root: an existing directory without a project of its own.
        uri: of the user's MongoDB server; None: the embedded server.
        site: where its pilots run; see `pilot.site_files.load_site`.

    Raises:
        ProjectExists: there is a project already; nothing was changed.
        ConfigError: the directory cannot be written.
    """
    root = root.resolve()
    if uri is not None and not uri.startswith(("mongodb://", "mongodb+srv://")):
        raise InvalidInput(f"store {uri.partition('@')[2] or uri!r} is not a MongoDB URI; it begins with mongodb://")
    if (root / FOLDER / "project.json").exists():
        raise ProjectExists(f"{str(root)!r} is a pilot project already; nothing was changed")
    config = ProjectConfig(root, new_token(12), root.name or "project", uri is None, site)
    try:
        config.folder.mkdir(mode=0o700, exist_ok=True)
        config.folder.chmod(0o700)
        if uri is not None:
            write_secret(config.uri_file, uri)
        _ignore_in_git(config.folder)
        settings = {"id": config.id, "name": config.name, "embedded": config.embedded, "site": site}
        (config.folder / "project.json").write_text(json.dumps(settings, indent=2) + "\n")
    except OSError as exc:
        raise ConfigError(f"cannot make a project in {str(root)!r}: {exc}") from exc
    return config


def _ignore_in_git(folder: Path) -> None:
    (folder / ".gitignore").write_text("*\n")


def write_secret(path: Path, text: str) -> None:
    """Write a file that only its owner may read."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(text)


def read_secret(path: Path) -> str:
    """Read a secret; refuse one that others can read.

    Raises:
        ConfigError: absent, or its mode is open to group or others.
    """
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"{str(path)!r} can be read by others; run chmod 600 on it")
        return path.read_text().strip()
    except OSError as exc:
        raise ConfigError(f"cannot read {str(path)!r}: {exc}") from exc


def user_name() -> str:
    """Return who runs this process: the account's name, or its number where that has no name."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
