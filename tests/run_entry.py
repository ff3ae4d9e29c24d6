"""The entry of a child, as small as can be: what `pilot.pool_main --child` does for a pool, and `--isolated`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from pilot.executors.run.child import Place, inherit, serve
from pilot.store.objects import Objects

HOST = os.environ.get("PILOT_TEST_HOST", "testhost")


def main(root: str, code: str) -> None:
    """Serve tasks; `code` goes last on the path, for modules that a test writes."""
    sys.path.append(code)
    file = Path(root, "site.json")
    site = json.loads(file.read_text()) if file.exists() else {}
    isolated = (sys.executable, "-P", __file__, "--isolated", root)
    place = Place(3, 1, HOST, f"{root}/project", f"{root}/scratch", site, isolated)
    serve(inherit(), place, Objects(Path(root, "objects")))


def alone(root: str, file: str, folder: str) -> None:
    """Be one rank of an MPI function in a program of its own."""
    from pilot.executors.pool.isolated import main as isolated
    from pilot.executors.pool.world import guarded

    guarded(lambda: isolated(file, folder, Objects(Path(root, "objects"))))


if __name__ == "__main__":
    if sys.argv[1] == "--isolated":
        alone(*sys.argv[2:])
    main(sys.argv[1], sys.argv[2])
    os._exit(0)
