"""An archive of what a real pool has run, and archives as somebody has changed them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import bson
import pytest

import pilot
from pilot import signing
from pilot.cli.app import run
from pilot.errors import TaskFailed
from pilot.manifest import MANIFEST, object_entry
from pilot.store import imports
from pilot.store.archive import Reader, split
from pilot.store.mongo import Store
from pilot.store.objects import Objects
from pilot.values import digest
from tests.rig import Rig

Entries = dict[str, bytes]
Import = Callable[..., imports.Imported]
"""Imports an archive into the store of a test."""

LONG = "x" * 20_000
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SIGNER = signing.Signer(b"k" * 32, "importer")

# -- an archive -------------------------------------------------------------------------------------


@pilot.task(tags=["made"])
def double(x: int) -> int:
    return 2 * x


@pilot.task
def total(parts: list[int]) -> int:
    return sum(parts)


@pilot.task
def repeated(text: str, count: int) -> str:
    return text * count


@pilot.task
def odd(x: int) -> set[int]:
    return {x}


@pilot.task(retries=1)
def bad(x: int) -> None:
    raise ValueError(x)


class Made(NamedTuple):
    """What a project has run, and the archive of it."""

    path: Path
    ids: dict[str, str]
    key_file: Path
    project: str

    def signer(self) -> signing.Signer:
        """Return the signer of the project that made the archive."""
        return signing.Signer(signing.load_key(self.key_file), self.project)


def make(rig: Rig, path: Path) -> Made:
    """Run tasks on a real pool and export some of them by name, through the command line."""
    with rig.open():
        parts = double.map(range(4))
        sum_ = total.submit(parts)
        text = repeated.submit(LONG, sum_)
        strange = odd.submit(sum_)
        failed = bad.submit(sum_)
        after = total.submit([failed])
        shell = pilot.command(
            ["sh", "-c", "cat in > out"], inputs={"in": LONG}, outputs={"out": "out"}, name="copy"
        ).submit()
        apart = double.submit(1000)
        assert text.result(60) == LONG * 12
        assert strange.result(60) == {12}
        assert shell.result(60)["out"] == LONG.encode()
        assert apart.result(60) == 2000
        with pytest.raises(TaskFailed):
            after.result(60)
    rig.settled()
    ids = {
        "part": parts[1].id, "sum": sum_.id, "text": text.id, "odd": strange.id, "bad": failed.id, "after": after.id,
        "shell": shell.id, "apart": apart.id,
    }  # fmt: skip
    names = [ids[name] for name in ("text", "odd", "after", "shell")]
    assert run(["-C", str(rig.config.root), "export", *names, "-o", str(path), "--sign"]) == 0
    return Made(path, ids, rig.config.key_file, rig.config.id)


def importer(store: Store, folder: Path) -> Import:
    """Return what imports an archive into a store, with the object repository in a folder."""

    def bring(path: Path, signer: signing.Signer = SIGNER, **options: Any) -> imports.Imported:
        with Reader(path) as reader:
            return imports.import_(store, Objects(folder), reader, signer, NOW, **options)

    return bring


# -- its entries ------------------------------------------------------------------------------------


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
