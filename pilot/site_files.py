"""Site files: where they are searched for, how one extends another, and how their errors read.

A file NAME.yaml is searched for in the folders of ``$PILOT_SITES``, then in the project's ``.pilot/sites``, then among
those that are shipped; the first counts. It may say ``extends: OTHER``: mappings are merged, anything else is
replaced. One that extends its own name changes single keys of the next one on that path.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pilot import values
from pilot.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import ValidationError

    from pilot.config import ProjectConfig
    from pilot.sites import Site

SHIPPED = Path(__file__).parent / "site_configs"
VARIABLE = "PILOT_SITES"
"""Names further folders."""

_EXTENDS = "extends"
_ERRORS_MAX = 5
_VALUE_MAX = 120


class SiteFile(NamedTuple):
    """One file of those that make a site, as it stands."""

    path: Path
    data: Mapping[str, Any]


def is_path(name: str) -> bool:
    """Return whether what `--site` was given is a file's path and not a name."""
    return "/" in name or name.endswith(".yaml")


def site_folders(project: ProjectConfig | None = None) -> tuple[Path, ...]:
    """Return where site files are searched for, in this order."""
    further = [Path(folder) for folder in os.environ.get(VARIABLE, "").split(os.pathsep) if folder]
    return (*further, *([project.sites_folder] if project else []), SHIPPED)


def site_names(project: ProjectConfig | None = None) -> list[str]:
    """Return the names of all sites; files whose name begins with ``_`` are only there to be extended."""
    stems = {path.stem for folder in site_folders(project) for path in folder.glob("*.yaml")}
    return sorted(stem for stem in stems if not stem.startswith("_"))


def load_site(name: str = "local", project: ProjectConfig | None = None) -> Site:
    """Return a site, checked.

    Args:
        name: of a site, or the path of a file: it has a ``/`` or ends in ``.yaml``.
        project: whose own site files are searched too.

    Raises:
        ConfigError: no such site, or one of its files has wrong keys or values (file, key and value are named).
    """
    from pydantic import ValidationError

    from pilot.sites import Site

    files = site_files(name, project)
    try:
        return Site.model_validate(merged(files))
    except ValidationError as exc:
        raise ConfigError(_said(exc, files)) from exc


def digest_of(site: Site) -> str:
    """Return the hash of all that a site's files say together, as it was understood; not of their text."""
    return values.encode(site.model_dump(mode="json", exclude_unset=True)).hash


def site_files(name: str, project: ProjectConfig | None = None) -> list[SiteFile]:
    """Return the files that make a site: its own, then the one that this extends, and so on.

    Raises:
        ConfigError: one is not there, cannot be read, is not YAML, or they extend each other in a circle.
    """
    folders = site_folders(project)
    path = Path(name) if is_path(name) else _find(name, folders, project)
    files: list[SiteFile] = []
    while True:
        files.append(SiteFile(path, _read(path)))
        base = files[-1].data.get(_EXTENDS)
        if base is None:
            return files
        if not isinstance(base, str):
            raise ConfigError(f"site file {str(path)!r}: {_EXTENDS!r} is {base!r}: expected the name of a site")
        path = _base(path, base, folders)
        if any(path.samefile(file.path) for file in files):
            circle = " → ".join(str(one) for one in (*(file.path for file in files), path))
            raise ConfigError(f"site file {str(files[0].path)!r} extends itself in a circle: {circle}")


def merged(files: Sequence[SiteFile]) -> dict[str, Any]:
    """Return what files, each extending the next, say together. A site is called as its own file, not as its base."""
    found: dict[str, Any] = {}
    for file in reversed(files):
        found = _over(found, file.data)
    found.pop(_EXTENDS, None)
    return {**found, "name": files[0].data.get("name", files[0].path.stem)}


def _over(base: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    both = {
        key: _over(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
        for key, value in data.items()
    }
    return {**base, **both}


# -- on the disk ----------------------------------------------------------------------------------


def _find(name: str, folders: Sequence[Path], project: ProjectConfig | None) -> Path:
    for path in (folder / f"{name}.yaml" for folder in folders):
        if path.is_file():
            return path
    near = get_close_matches(name, site_names(project))
    like = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    raise ConfigError(f"no site {name!r}; {like}`pilot site list` shows all; a file of your own is given by its path")


def _base(path: Path, name: str, folders: Sequence[Path]) -> Path:
    """Return the file that another one extends; if it is of the same name, one that comes after it."""
    there = [folder / f"{name}.yaml" for folder in folders if (folder / f"{name}.yaml").is_file()]
    if path.stem == name:
        places = [number for number, one in enumerate(there) if one.samefile(path)]
        there = there[places[-1] + 1 :] if places else there
    if not there:
        raise ConfigError(f"site file {str(path)!r}: {_EXTENDS!r} is {name!r}: expected another site of this name")
    return there[0]


def _read(path: Path) -> Mapping[str, Any]:
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"cannot read the site file {str(path)!r}: {exc}") from exc
    except yaml.YAMLError as exc:
        raise ConfigError(f"site file {str(path)!r} is not YAML: {' '.join(str(exc).split())}") from exc
    if not isinstance(data, dict):
        raise ConfigError(f"site file {str(path)!r} is {data!r}: expected keys and values")
    return data


# -- errors ---------------------------------------------------------------------------------------


def _said(error: ValidationError, files: Sequence[SiteFile]) -> str:
    """Return what is wrong, by the file in which it stands."""
    data = merged(files)
    told: dict[str, tuple[Path, str]] = {}
    for one in error.errors():
        place = one["loc"] if one["type"] == "missing" else _there(data, one["loc"])
        key, words = ".".join(map(str, place)), one["msg"].removeprefix("Value error, ")
        if one["type"] == "extra_forbidden":
            words = _unknown(str(place[-1]))
        value = "missing" if one["type"] == "missing" else f"{_short(one['input'])}: {words}"
        told.setdefault(key, (_holder(files, place), f"{key!r} is {value}"))
    shown = list(told.values())[:_ERRORS_MAX]
    by_file = {path: "; ".join(words for other, words in shown if other == path) for path, _ in shown}
    more = f"; and {len(told) - len(shown)} more" if len(told) > len(shown) else ""
    return "; ".join(f"site file {str(path)!r}: {words}" for path, words in by_file.items()) + more


def _there(data: Any, place: Sequence[int | str]) -> tuple[int | str, ...]:
    """Return the part of an error's place that leads to a value; behind it comes which of several types was tried."""
    known: list[int | str] = []
    for part in place:
        try:
            data = data[part]
        except (LookupError, TypeError):
            break
        known.append(part)
    return tuple(known)


def _holder(files: Sequence[SiteFile], place: Sequence[int | str]) -> Path:
    """Return the first file in which a value stands; of one that is in none, the first file."""
    return next((file.path for file in files if place and _there(file.data, place) == tuple(place)), files[0].path)


def _unknown(key: str) -> str:
    from pilot.sites import PARTS

    near = get_close_matches(key, {other for part in PARTS for other in part.model_fields} - {key})
    return "there is no such key here" + (f"; did you mean {' or '.join(map(repr, near))}?" if near else "")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _VALUE_MAX else f"{text[:_VALUE_MAX]}…"
