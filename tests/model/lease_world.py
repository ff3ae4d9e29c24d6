"""Leases, the nouns: what is stored, what the processes know, and which promises there are.

Attempts number the leases from 1. A token such as "A2" is the second one of pool A's coordinators.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

NAMES = "AB"
HANDS = 2  # how many leases a pool can have in hand

BAD_OFFICIAL = "a done task whose official record is not `succeeded`"
TWO_SUCCESSES = "two succeeded records of one task"
FOREIGN_RECORD = "the official record was written under another lease than the one that ended"
ATTEMPT_FELL = "`attempt` decreased"
NO_RECORD = "a begun attempt left `leased` without a record"
NEVER_LEASED = "a record of an attempt that nobody had leased"
LIVE_POOL_REAPED = "an agent wrote off an attempt of a pool whose token is live"
SPOOL_WASTED = "an agent sets out to write off a result that lies in its own spool"
LEASED_FOR_EVER = "leased for ever"
REAPED_LEASES = "a pool goes on leasing under a reaped token after its heartbeat"
REAPED_FOR_EVER = "a pool works on for ever under a token that was reaped"


@dataclass(frozen=True)
class Clauses:
    """The clauses of the protocol; all of them in force is the protocol itself."""

    record_decides: bool = True
    """Who finds the record of an attempt already there applies the outcome stored in it."""
    pin_attempt: bool = True
    """A lease update filters on the attempt that was found."""
    keep_attempt: bool = True
    """A returned lease does not give its attempt number back."""
    return_unbegun_only: bool = True
    """A lease is returned only once the worker has confirmed that it will not begin."""
    read_back: bool = True
    """After an error or a count mismatch the pool reads back what it has leased."""
    compare: bool = True
    """A heartbeat compares what is leased under the token with what the pool holds."""
    spare_unresolved: bool = True
    """The comparison counts what an unfinished lease call asked for as held."""
    compare_reads_first: bool = True
    """The comparison reads the database first and looks at what is in hand afterwards."""
    live_filter: bool = True
    """A heartbeat is filtered on `live`; a reaped pool notices and takes a new token."""
    fence_first: bool = True
    """An agent takes a token's `live` away before it looks at the token's leases."""
    reap_again: bool = True
    """Reaping goes by the set of leases under tokens that are not live, at any time."""
    reap_pinned: bool = True
    """A reaper's update filters on the token and the attempt it has read."""
    fresh_token: bool = True
    """A restarted coordinator never uses the token of the one before it."""
    spool_token: bool = True
    """A spool is replayed under the token and attempt its results were made under."""
    spool_first: bool = True
    """An agent replays its dead pool's spool before it gives that pool's leases back."""


class Task(NamedTuple):
    """The task's document; `begun` is not stored, it is what an onlooker would know."""

    state: Literal["ready", "leased", "done"] = "ready"
    token: str = ""
    attempt: int = 0
    begun: bool = False


class Record(NamedTuple):
    """The provenance record of one attempt; its `_id` is the attempt."""

    attempt: int
    outcome: str
    token: str


class Hand(NamedTuple):
    """A lease as its pool believes to have it. From `finished` on it is in the spool as well."""

    token: str
    attempt: int
    phase: Literal["held", "recalled", "begun", "finished", "silent", "recorded"]
    outcome: str = ""


class Call(NamedTuple):
    """A lease call of a pool that is not resolved yet, and the attempt it found."""

    found: int
    phase: Literal["found", "unsure"]


class Compare(NamedTuple):
    """A comparison under way: the attempt leased under the token, and whether to return it.

    Attempt 0 is a list of what is in hand (nothing), made before the database was read.
    """

    attempt: int
    decided: bool = False


class Pool(NamedTuple):
    """A coordinator process, and the spool it leaves behind when it is dead.

    `deaf`: a heartbeat was counted although the token had been reaped.
    """

    token: str
    alive: bool = True
    hands: tuple[Hand, ...] = ()
    call: Call | None = None
    compare: Compare | None = None
    deaf: bool = False


class Reap(NamedTuple):
    """What an agent is doing about a lease under `token`."""

    phase: Literal["read", "seen", "recorded"]
    token: str
    attempt: int = 0
    outcome: str = ""


class Budget(NamedTuple):
    """How often what nobody owes may still happen."""

    leases: int = 2
    suspicions: int = 0
    crashes: int = 0
    restarts: int = 0
    recalls: int = 0
    errors: int = 0


class World(NamedTuple):
    """Everything: the database, what the processes know, and what is on the wire."""

    task: Task
    records: tuple[Record, ...]
    live: frozenset[str]
    pools: tuple[Pool, ...]
    reaps: tuple[Reap | None, ...]
    wire: tuple[tuple[str, int], ...]
    budget: Budget

    def spend(self, what: str) -> World:
        """Return the world with one use of `what` less."""
        left = {what: getattr(self.budget, what) - 1}
        return self._replace(budget=self.budget._replace(**left))

    def with_pool(self, i: int, pool: Pool) -> World:
        """Return the world with pool `i` changed."""
        return self._replace(pools=(*self.pools[:i], pool, *self.pools[i + 1 :]))

    def with_hand(self, i: int, old: Hand, new: Hand | None) -> World:
        """Return the world with one lease in pool `i`'s hands changed or dropped."""
        kept = [hand for hand in self.pools[i].hands if hand != old]
        hands = sorted(kept if new is None else [*kept, new])
        return self.with_pool(i, self.pools[i]._replace(hands=tuple(hands)))

    def with_reap(self, i: int, reap: Reap | None) -> World:
        """Return the world with agent `i` at another point of its reaping."""
        return self._replace(reaps=(*self.reaps[:i], reap, *self.reaps[i + 1 :]))

    def outcome(self, attempt: int) -> str | None:
        """Return the outcome on record for `attempt`, if there is one."""
        return next((r.outcome for r in self.records if r.attempt == attempt), None)

    def holds(self, token: str, attempt: int) -> bool:
        """Tell whether the task is leased under this token, in this attempt."""
        return self.task[:3] == ("leased", token, attempt)


def task_faults(before: World, after: World) -> Iterator[str]:
    """Yield what a step breaks that concerns the task's document."""
    old, new = before.task, after.task
    if new.attempt < old.attempt:
        yield ATTEMPT_FELL
    deaf = {pool.token for pool in before.pools if pool.deaf}
    if old.state != "leased" == new.state and new.token in deaf:
        yield REAPED_LEASES
    if old.state == "leased" != new.state and old.begun and after.outcome(old.attempt) is None:
        yield NO_RECORD
    if new.state == "done" != old.state:
        official = [record for record in after.records if record.attempt == new.attempt]
        if [record.outcome for record in official] != ["succeeded"]:
            yield BAD_OFFICIAL
        if any(record.token != old.token for record in official):
            yield FOREIGN_RECORD


def record_faults(before: World, after: World) -> Iterator[str]:
    """Yield what a step breaks that concerns the records."""
    if before.records == after.records:
        return
    if sum(record.outcome == "succeeded" for record in after.records) > 1:
        yield TWO_SUCCESSES
    (record,) = set(after.records) - set(before.records)
    if record.attempt > before.task.attempt:
        yield NEVER_LEASED
    if before.reaps != after.reaps and record.token in before.live:
        yield LIVE_POOL_REAPED


def reap_faults(before: World, after: World) -> Iterator[str]:
    """Yield what a step breaks by which an agent sets out to write an attempt off."""
    for pool, old, new in zip(before.pools, before.reaps, after.reaps, strict=False):
        if old is None and new is not None and not pool.alive:
            spool = [(hand.token, hand.attempt) for hand in pool.hands]
            if (new.token, new.attempt) in spool:
                yield SPOOL_WASTED
