"""Whether a queue takes a pilot, as far as the site's file knows. Pure.

Refused here is what the batch system would refuse, or keep in the queue for ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import TYPE_CHECKING

from pilot.errors import InvalidInput
from pilot.executors.batch.script import clock

if TYPE_CHECKING:
    from pilot.sites import Queue, Site


def check(site: Site, nodes: int, walltime_s: float, queue: str, account: str) -> None:
    """Refuse what the site's file says that its batch system would refuse, or never start.

    Raises:
        InvalidInput: nodes or walltime are beyond the queue's limits (with the key, and where its value is from), or
            an account is required and none is given.
    """
    batch = site.batch
    assert batch is not None
    told = []
    if batch.account_required and not account:
        told.append(
            f"no account: site {site.name!r} charges every job to one; give `--account`, or set batch.account in the "
            "site's file"
        )
    known = batch.queues.get(queue)
    if known is not None:
        whose = f"queue {queue!r} of site {site.name!r} takes"
        told += [
            f"{asked}: {whose} {limit} ({_source(site, f'batch.queues.{queue}.{key}')})"
            for asked, limit, key in _beyond(known, nodes, walltime_s)
        ]
    if told:
        raise InvalidInput("; ".join(told))


def doubt(site: Site, queue: str) -> str:
    """Return what to tell of a queue that is none of those the site's file lists; "" if nothing.

    It is not refused: sites add queues, and their batch systems refuse what they do not have at once.
    """
    listed = site.batch.queues if site.batch else {}
    if not queue or not listed or queue in listed:
        return ""
    near = get_close_matches(queue, listed, n=2)
    like = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return (
        f"queue {queue!r} is none of those that the file of site {site.name!r} lists ({', '.join(listed)}); {like}"
        "it is asked for all the same, and its limits are not checked"
    )


def _beyond(queue: Queue, nodes: int, walltime_s: float) -> Iterator[tuple[str, str, str]]:
    """Yield what is asked, the limit that it is beyond, and that limit's key."""
    asked = f"nodes {nodes}"
    if nodes < queue.min_nodes:
        yield asked, f"at least {queue.min_nodes}", "min_nodes"
    if queue.max_nodes is not None and nodes > queue.max_nodes:
        yield asked, f"at most {queue.max_nodes}", "max_nodes"
    asked, longest = f"walltime {clock(walltime_s)}", queue.longest(nodes)
    if queue.min_walltime is not None and walltime_s < queue.min_walltime:
        yield asked, f"at least {clock(queue.min_walltime)}", "min_walltime"
    if longest is not None and walltime_s > longest:
        by_size = longest != queue.max_walltime
        yield (
            asked, f"at most {clock(longest)}" + (f" for {nodes} nodes" if by_size else ""),
            "sizes" if by_size else "max_walltime",
        )  # fmt: skip


def _source(site: Site, key: str) -> str:
    """Say which key of the site's file it is, and what it is worth."""
    seen = f", from {site.verified.source} of {site.verified.date}" if site.verified else ""
    doubtful = any(f"{key}.".startswith(f"{one}.") for one in site.unverified)
    return f"site file key {key}{seen}{', unverified' if doubtful else ''}"
