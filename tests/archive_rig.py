"""Archives as somebody has changed them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bson

from pilot.manifest import MANIFEST, object_entry
from pilot.store.archive import split
from pilot.values import digest

Entries = dict[str, bytes]


def entries(path: Path) -> Entries:
    """Return all entries of an archive."""
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


def write(path: Path, content: Entries) -> Path:
    """Write an archive of these entries, each as it is."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in content.items():
            file.writestr(name, data)
    return path


def altered(source: Path, path: Path, change: Callable[[Entries], object], honest: bool = False) -> Path:
    """Write an archive anew with other entries.

    Args:
        source: the archive.
        path: the new one.
        change: changes the entries in place.
        honest: make sizes, hashes and counts of the manifest fit again, as a careful forger would.
    """
    content = entries(source)
    change(content)
    if honest:
        told = json.loads(content[MANIFEST])
        for entry in told["entries"]:
            data = content[entry["name"]]
            entry |= {"size": len(data), "blake2b": digest(data)}
            if entry["name"].endswith(".bson"):
                entry["documents"] = len(split(data) or ())
        for kind in told["counts"]:
            told["counts"][kind] = sum(e["documents"] for e in told["entries"] if e["name"].startswith(f"{kind}/"))
        content[MANIFEST] = json.dumps(told).encode()
    return write(path, content)


def documents(content: Entries, kind: str) -> list[dict[str, Any]]:
    """Return the documents of one kind, of an archive with one entry of them."""
    return [bson.decode(raw) for raw in split(content[f"{kind}/000000.bson"]) or ()]


def changing(kind: str, change: Callable[[dict[str, Any]], object], first: Callable[[Any], bool] = bool) -> Any:
    """Return what changes the first document of a kind that is wanted."""

    def change_one(content: Entries) -> None:
        found = documents(content, kind)
        change(next(doc for doc in found if first(doc)))
        content[f"{kind}/000000.bson"] = b"".join(bson.encode(doc) for doc in found)

    return change_one


def told(**fields: Any) -> Any:
    """Return what changes fields of the manifest."""

    def change(content: Entries) -> None:
        content[MANIFEST] = json.dumps(json.loads(content[MANIFEST]) | fields).encode()

    return change


def object_names(content: Entries) -> list[str]:
    """Return the names of entries that are objects, the largest first."""
    names = [name for name in content if name.startswith(object_entry("0" * 64)[:8])]
    return sorted(names, key=lambda name: -len(content[name]))
