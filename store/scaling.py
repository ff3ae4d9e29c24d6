"""What scalers keep in the store: whose round it is, and what keeps them from asking for pilots.

One document for each site. Time is the server's: scalers on several hosts need not agree on theirs.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pilot.store.mongo import Store, translating

Document = dict[str, Any]

ROUND_S = 600
"""A round that has not ended by then is another's: several commands of a batch system, each killed after a minute."""
_UNTIL = {"$add": ["$$NOW", 1000 * ROUND_S]}


@translating("begin a scaler's round")
def begin(store: Store, site: str, token: str, given: str) -> Document | None:
    """Take the round of a site, or return None if another scaler is at it.

    It lasts from before the facts are read until what was asked for is written down, so that no two ever ask for
    pilots for the same backlog.

    Args:
        store: the database.
        site: its name.
        token: of this very round.
        given: how a person names the site on a command line.

    Returns:
        The site's document.
    """
    store.scalers.update_one({"_id": site}, {"$inc": {"rounds": 1}}, upsert=True)
    fields = {"holder": token, "given": {"$literal": given}, "until": _UNTIL}
    found: Document | None = store.scalers.find_one_and_update(
        {"_id": site, "$or": [{"holder": {"$exists": False}}, {"$expr": {"$lt": ["$until", "$$NOW"]}}]},
        [{"$set": fields}],
        return_document=True,
    )
    return found


@translating("go on with a scaler's round")
def renew(store: Store, site: str, token: str) -> bool:
    """Return whether the round is still ours, and make it last from now on again."""
    return store.scalers.update_one({"_id": site, "holder": token}, [{"$set": {"until": _UNTIL}}]).matched_count > 0


@translating("end a scaler's round")
def end(store: Store, site: str, token: str) -> None:
    """Leave the round to others."""
    store.scalers.update_one({"_id": site, "holder": token}, {"$unset": {"holder": "", "until": ""}})


@translating("pause a scaler")
def pause(store: Store, site: str, reason: str) -> None:
    """Write why nothing is asked for until a person says so; the first reason stands."""
    paused = {"reason": reason, "since": datetime.now(UTC)}
    store.scalers.update_one({"_id": site, "paused": {"$exists": False}}, {"$set": {"paused": paused}})


@translating("resume a scaler")
def resume(store: Store, site: str) -> Document | None:
    """Let a site's pilots be asked for again, whatever became of earlier ones; return what it was paused for."""
    found: Document | None = store.scalers.find_one_and_update(
        {"_id": site}, {"$set": {"resumed": datetime.now(UTC)}, "$unset": {"paused": ""}}
    )
    paused: Document | None = found.get("paused") if found else None
    return paused


@translating("look for paused scalers")
def paused(store: Store) -> list[Document]:
    """Return the documents of sites for which nothing is asked."""
    return list(store.scalers.find({"paused": {"$exists": True}}, sort=[("_id", 1)]))
