"""The entry of a child, as small as can be: what `pilot.pool_main --child` does for a pool."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pilot.executors.run.child import Place, inherit, serve
from pilot.store.objects import Objects


def main(root: str, code: str) -> None:
    """Serve tasks; `code` goes last on the path, for modules that a test writes."""
    sys.path.append(code)
    serve(inherit(), Place(3, 1, "testhost", f"{root}/project", f"{root}/scratch"), Objects(Path(root, "objects")))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
    os._exit(0)
