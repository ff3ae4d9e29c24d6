"""A project inside of another, for as long as something is tried in it: its own database, its own pilot."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from pilot import launch, signing
from pilot.config import ProjectConfig, create_project
from pilot.model import new_token
from pilot.store import access
from pilot.store.local import LocalServer
from pilot.store.mongo import Store

SITE = "local"
_IDLE_S = 60.0
"""The pilot ends by itself after so long without work: whoever started it may have been killed."""
_END_S = 20.0


class Scratch:
    """A project in ``.pilot/scratch`` of another one, whose object repository it shares; a context manager.

    Args:
        outer: the other one.
        name: begins the name of its folder.
        keep: leave it there at the end.
    """

    config: ProjectConfig
    store: Store
    signer: signing.Signer

    def __init__(self, outer: ProjectConfig, name: str, keep: bool) -> None:
        self._outer = outer
        self._keep = keep
        self._root = outer.folder / "scratch" / f"{name}-{new_token(4)}"

    def __enter__(self) -> Self:
        self._root.mkdir(mode=0o700, parents=True)
        self._outer.objects_folder.mkdir(mode=0o700, exist_ok=True)
        try:
            self.config = create_project(self._root)
            self.config.objects_folder.symlink_to(self._outer.objects_folder)
            self.signer = signing.Signer(signing.create_key(self.config.key_file), self.config.id)
            access.create(self.config)
            self.store = access.store_of(self.config).__enter__()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.store.__exit__(kind, error, trace)
        self._remove()

    def _remove(self) -> None:
        LocalServer(self._root / ".pilot" / "store").stop()
        if not self._keep:
            shutil.rmtree(self._root, ignore_errors=True)
            with suppress(OSError):  # another one is there
                self._root.parent.rmdir()

    @contextmanager
    def pilot(self, slots: int, path: Path) -> Iterator[launch.Local]:
        """Have a pilot for a while; modules are searched for in `path` first, if it is there."""
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(path), os.environ.get("PYTHONPATH")]))}
        pilot = launch.start(
            self.config, site=SITE, slots=slots, idle_s=_IDLE_S, env=env if path.is_dir() else os.environ
        )
        try:
            launch.await_up(self.store, pilot)
            yield pilot
        finally:
            launch.end(pilot, _END_S)
