"""One task at a time on an idle pool: from submission to result in hand."""

from __future__ import annotations

from typing import Any

from _harness import Settings, Workload, latency, main
from _rig import NOTES, RESULT_S, identity, ready


def one(settings: Settings) -> dict[str, Any]:
    """Submit one task after the other, each after a pause."""
    with ready(settings):
        return latency(lambda index: identity.submit(index).result(RESULT_S), settings.tasks)


if __name__ == "__main__":
    main("pilot", "hpc-pilot", {"latency": Workload(one, 50, NOTES)})
