"""The child of a slot of `pool_program`: a real child, with a plain folder as object repository.

``python -P pool_child.py RANK HOST FOLDER``
"""

from __future__ import annotations

import sys
from pathlib import Path

from pilot.executors.run.child import Place, inherit, serve
from pilot.values import Encoded


class Folder:
    """An object repository that is good enough for a test."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def get(self, hash: str) -> bytes:
        return (self._root / hash).read_bytes()

    def put(self, encoded: Encoded) -> str:
        (self._root / encoded.hash).write_bytes(encoded.data)
        return encoded.hash


if __name__ == "__main__":
    ends = inherit()
    rank, folder = int(sys.argv[1]), Path(sys.argv[3])
    serve(ends, Place(rank, rank, sys.argv[2], str(folder), str(folder)), Folder(folder))
