"""An RO-Crate that is being made, with the package `rocrate`: entities, and files whose bytes come at the end."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pilot.errors import InvalidInput
from pilot.integrations.published import package

Properties = dict[str, Any]
Entity = Any
"""One of the package's, which has no types."""

_CONTEXT = "https://w3id.org/ro/terms/workflow-run/context"
_TERMS = {"buildInstructions": "https://codemeta.github.io/terms/buildInstructions"}
_PIECE = 1 << 20


class Crate:
    """A crate of RO-Crate 1.1, with the terms of workflow runs; nothing is written before `write`."""

    def __init__(self) -> None:
        self._model = package("rocrate.model")
        self._crate: Any = package("rocrate.rocrate").ROCrate(version="1.1")
        self._crate.metadata.extra_contexts.append(_CONTEXT)
        self._crate.metadata.extra_terms.update(_TERMS)
        self._file = _file_class()
        self._paths: set[str] = set()

    @property
    def root(self) -> Entity:
        """The crate as a whole."""
        return self._crate.root_dataset

    def get(self, id: str) -> Entity | None:
        """Return the entity with this id, if there is one."""
        return self._crate.get(id)

    def add(self, id: str, kind: str, **properties: Any) -> Entity:
        """Add an entity that is no file; properties that say nothing are left out."""
        return self._crate.add(
            self._model.ContextEntity(self._crate, id, properties={"@type": kind, **said(properties)})
        )

    def add_file(
        self, path: str, read: Callable[[], memoryview], kind: list[str] | None = None, **properties: Any
    ) -> Entity:
        """Add a file; `read` is called when it is written, and then its SHA-256 is noted."""
        types = {} if kind is None else {"@type": kind}
        return self._crate.add(self._file(self._crate, read, path, properties={**types, **said(properties)}))

    def add_folder(self, path: str, **properties: Any) -> Entity:
        """Add a folder, of files that are added for themselves."""
        return self._crate.add(self._model.Dataset(self._crate, None, path, properties=said(properties)))

    def add_main_workflow(self, path: str, body: bytes, language: Properties, **properties: Any) -> Entity:
        """Add the file that the crate is about, in a language of its own."""
        spoken = self._crate.add(
            self._model.ComputerLanguage(self._crate, f"#language-{fragment(language['name'])}", properties=language)
        )
        kinds = ["File", "SoftwareSourceCode", "ComputationalWorkflow", "HowTo"]
        workflow = self.add_file(path, lambda: memoryview(body), kinds, programmingLanguage=spoken, **properties)
        self._crate.mainEntity = workflow
        self._crate.metadata["conformsTo"] = [
            {"@id": "https://w3id.org/ro/crate/1.1"}, {"@id": "https://w3id.org/workflowhub/workflow-ro-crate/1.0"},
        ]  # fmt: skip
        return workflow

    def new_path(self, folder: str, name: str, suffix: str) -> str:
        """Return a path that no other file has, of plain letters whatever `name` holds.

        Args:
            folder: where; of plain letters.
            name: what somebody called it.
            suffix: how the path shall end; empty: as the name does.
        """
        stem, extension = os.path.splitext(plain(name))
        if suffix:
            stem, extension = stem + extension.removesuffix(suffix), suffix
        stem, extension = stem[-60:] or "value", extension[:20]
        path, number = f"{folder}/{stem}{extension}", 1
        while path in self._paths:
            number += 1
            path = f"{folder}/{stem}-{number}{extension}"
        self._paths.add(path)
        return path

    def write(self, path: Path) -> None:
        """Write it to a folder, or a ``.zip`` file, which appears when it is complete.

        Raises:
            InvalidInput: it cannot be written there.
            ObjectCorrupt: a file's bytes are not what their hash says.
        """
        partial = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
        try:
            (self._crate.write_zip if path.suffix == ".zip" else self._crate.write)(partial)
            partial.rename(path)
        except OSError as exc:
            raise InvalidInput(f"cannot write a crate to {str(path)!r}: {exc.strerror or exc}") from exc
        finally:
            if partial.is_dir():
                shutil.rmtree(partial)
            else:
                partial.unlink(missing_ok=True)


def plain(name: str) -> str:
    """Return a name in plain letters, which is no way out of a folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._")


def said(properties: Properties) -> Properties:
    """Return the properties that say something; one thing stands without a list around it."""
    kept = {name: value for name, value in properties.items() if value not in (None, "", [])}
    return {name: value[0] if isinstance(value, list) and len(value) == 1 else value for name, value in kept.items()}


def each(entities: Iterable[Entity]) -> list[Entity]:
    """Return entities, each once."""
    return list({entity.id: entity for entity in entities}.values())


def fragment(text: str) -> str:
    """Return a text as a part of an identifier."""
    return quote(text, safe="")


def _file_class() -> Any:
    """Return the package's class of files, with a function that gives the bytes as source."""
    file: Any = package("rocrate.model").File

    class Body(file):  # type: ignore[misc]
        """A file whose bytes come from a function, piece by piece when it is written."""

        def stream(self, chunk_size: int = _PIECE) -> Iterator[tuple[str, memoryview]]:
            body, state = self.source(), sha256()
            for start in range(0, max(1, len(body)), _PIECE):  # an empty file is a piece too
                piece = body[start : start + _PIECE]
                state.update(piece)
                yield self.id, piece
            self["sha256"] = state.hexdigest()

        def write(self, base_path: Path) -> None:
            self._write_from_stream(Path(base_path) / self.id)

    return Body
