"""What `docs/generate.py` writes is in the repository as it would write it now."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
MADE: dict[str, Any] = runpy.run_path(str(ROOT / "docs" / "generate.py"))
FILES: dict[Path, str] = MADE["generated"]()
HOW = "is not what the site files say; run `python docs/generate.py`, and look at the difference"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_generated_files_are_current(path: Path) -> None:
    assert path.is_file(), f"{path} is not there; run `python docs/generate.py`"
    assert path.read_text() == FILES[path], f"{path} {HOW}"


def test_nothing_of_a_former_site_is_left() -> None:
    assert MADE["stale"]() == [], "run `python docs/generate.py`"


def _misfits(value: Any, schema: dict[str, Any], parts: dict[str, Any], where: str = "") -> list[str]:
    """Return keys of a site file that the schema does not have, as far as it is made of objects and arrays."""
    options = [schema, *schema.get("anyOf", [])]
    for option in options:
        option = parts[option["$ref"].rpartition("/")[2]] if "$ref" in option else option
        if isinstance(value, dict) and ("properties" in option or isinstance(option.get("additionalProperties"), dict)):
            inner = option.get("properties", {})
            found = []
            for key, one in value.items():
                of_key = inner.get(key) or option.get("additionalProperties")
                found += _misfits(one, of_key, parts, f"{where}.{key}") if of_key else [f"{where}.{key}"]
            return found
        if isinstance(value, list) and "items" in option:
            return [it for one in value for it in _misfits(one, option["items"], parts, where)]
    return []


@pytest.mark.parametrize("path", sorted((ROOT / "site-configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_schema_has_every_key_of_the_shipped_files(path: Path) -> None:
    schema = MADE["schema"]()
    assert _misfits(yaml.safe_load(path.read_text()), schema, schema["$defs"]) == []
    assert _misfits({"launcher": {"cmd": []}}, schema, schema["$defs"]) == [".launcher.cmd"]
