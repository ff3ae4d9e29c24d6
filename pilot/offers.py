"""Whether anybody can run what is submitted: refused if its site never could, a warning if no pilot up now can."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

from pilot.config import ProjectConfig
from pilot.errors import InvalidInput, NotOffered
from pilot.layout import Layout
from pilot.resources import Resources
from pilot.site_files import load_site
from pilot.store import pilots
from pilot.store.mongo import Store

if TYPE_CHECKING:
    from pilot.sites import Site


def check(store: Store, config: ProjectConfig, needs: Resources) -> None:
    """Look whether a pilot that is up, or one of the project's site, can run tasks with these needs.

    Raises:
        InvalidInput: no pilot that is up can, and the site's nodes are too small for it; the limit is named.
        NotOffered: as a warning: no pilot that is up can, or, with none up, the site's usual one could not.
    """
    up = [Layout.from_document(doc) for doc in pilots.pools(store)]
    lacks = [layout.why_never(needs.key) for layout in up]
    if up and not all(lacks):
        return
    site = load_site(config.site, config)
    if limit := over(needs, site):
        raise InvalidInput(limit)
    if why := lacks[0] if lacks else _usual(needs, site):
        whose = "no pool that is up" if up else f"no pilot that site {site.name!r} starts by itself"
        warnings.warn(
            f"{whose} can run this task: {why}; it waits until one can, `pilot explain` says what to start",
            NotOffered,
            stacklevel=5,
        )


def over(needs: Resources, site: Site) -> str:
    """Return which limit of a site's nodes a request is over; "" if none."""
    node, name = site.node, site.name
    here = needs.size if needs.layout == "near" else needs.ranks_per_node or 1
    ranks = f" on each of {here} ranks of a node" if here > 1 else ""
    if needs.gpus and not node.gpus:
        return f"gpus {needs.gpus:g}: site {name!r} has none"
    if needs.gpus * here > node.gpus:
        return f"gpus {needs.gpus:g}{ranks}: a node of site {name!r} has {node.gpus}"
    if node.cores is not None and needs.cores * here > node.cores:
        return f"cores {needs.cores}{ranks}: a node of site {name!r} has {node.cores}"
    memory = node.memory_bytes or (_memory_here() if name == "local" else None)
    if memory is not None and needs.memory_bytes is not None and needs.memory_bytes * here > memory:
        asked = f"memory {needs.memory_bytes / (1 << 30):.3g} GiB{ranks}"
        return f"{asked}: a node of site {name!r} has {memory / (1 << 30):.3g} GiB"
    return ""


def _usual(needs: Resources, site: Site) -> str:
    """Return why the pilot that the site's file describes could not run it; "" if it could, or if nobody knows."""
    layout = usual_layout(site)
    if site.slots is None and site.name != "local" and layout.home(needs.key) is layout:
        return ""
    return layout.why_never(needs.key)


def usual_layout(site: Site) -> Layout:
    """Return the pool of a pilot that is not told otherwise: one node, and no program nodes."""
    told = {"nodes": [("", usual_slots(site, site.cores_per_slot), site.node.gpus)], "slot_cores": site.cores_per_slot}
    apart = site.launcher.programs_beside_pool != "share"
    return Layout.from_document({**told, "programs": {"nodes": ()}} if apart else told)


def usual_slots(site: Site, slot_cores: int) -> int:
    """Return how many slots a node has for a pilot that is not told how many."""
    return site.slots or max(1, (site.node.cores or len(os.sched_getaffinity(0))) // slot_cores)


def _memory_here() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
