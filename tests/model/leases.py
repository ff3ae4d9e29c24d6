"""Leases: one task, two pools and their agents, and everything that can come between them.

A pool finds the task, leases it, hands it to a worker, inserts the record and ends the task. Its
agent replays the pool's spool and reaps whatever is leased under a token that is not live. Every
actor may be slow (a frozen pool is one that takes no step until it wakes), a pool may crash after
any step, an update may be answered by an error and land much later, a worker may be asked to give
a task back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tests.model.lease_world import (
    HANDS,
    LEASED_FOR_EVER,
    NAMES,
    REAPED_FOR_EVER,
    Budget,
    Call,
    Clauses,
    Compare,
    Hand,
    Pool,
    Reap,
    Record,
    Task,
    World,
    reap_faults,
    record_faults,
    task_faults,
)
from tests.model.search import Step

Steps = Iterator[Step[World]]


@dataclass(frozen=True)
class Leases:
    """The model: each method yields what one actor can do next in one of its roles."""

    scenario: str
    clauses: Clauses
    budget: Budget
    agents: int = 2

    @property
    def name(self) -> str:
        """Name the model and the scenario."""
        return f"leases: {self.scenario}"

    def initial(self) -> World:
        """Return a ready task and two idle pools."""
        pools = tuple(Pool(token=f"{name}1") for name in NAMES)
        live = frozenset(pool.token for pool in pools)
        return World(Task(), (), live, pools, (None,) * self.agents, (), self.budget)

    def steps(self, world: World) -> Steps:
        """Yield every step of every actor."""
        for i, pool in enumerate(world.pools):
            if pool.alive:
                yield from self.lease(world, i)
                yield from self.work(world, i)
                yield from self.heartbeat(world, i)
                if self.clauses.compare:
                    yield from self.comparison(world, i)
            yield from self.commit(world, i)
            yield from self.crash(world, i)
        for i in range(self.agents):
            yield from self.judge(world, i)
            yield from self.reap(world, i)
        yield from self.late_update(world)

    # ---- a pool -----------------------------------------------------------------------------

    def lease(self, world: World, i: int) -> Steps:
        """Find, update, and read back what came of it."""
        pool, task = world.pools[i], world.task
        who = NAMES[i]
        if pool.call is None:
            if task.state == "ready" and world.budget.leases and len(pool.hands) < HANDS:
                found = pool._replace(call=Call(task.attempt, "found"))
                text = f"{who} finds the task ready, attempt {task.attempt}"
                yield Step(text, world.spend("leases").with_pool(i, found), owed=False)
            return
        found_attempt, phase = pool.call
        believed = Hand(pool.token, found_attempt + 1, "held")
        unsure = pool._replace(call=Call(found_attempt, "unsure"))
        if phase == "found":
            landed = self._lease_lands(world, pool.token, found_attempt)
            if landed is not None:
                text = f"{who}'s lease update matches: attempt {landed.task.attempt} under {pool.token}"
                yield Step(text, _taken(landed, i, believed))
            else:
                yield Step(f"{who}'s lease update matches nothing", world.with_pool(i, unsure))
            if world.budget.errors:
                sent = world.spend("errors")._replace(wire=(*world.wire, (pool.token, found_attempt)))
                text = f"{who}'s lease update is answered by an error"
                yield Step(text, sent.with_pool(i, unsure), owed=False)
        elif not self.clauses.read_back:
            text = f"{who} takes attempt {believed.attempt} for leased, without reading back"
            yield Step(text, _taken(world, i, believed))
        elif world.holds(pool.token, task.attempt) and not _in_hand(pool, task.attempt):
            taken = _taken(world, i, believed._replace(attempt=task.attempt))
            yield Step(f"{who} reads back: it has leased attempt {task.attempt}", taken)
        else:
            nothing = world.with_pool(i, pool._replace(call=None))
            yield Step(f"{who} reads back: it has leased nothing", nothing)

    def _lease_lands(self, world: World, token: str, found: int) -> World | None:
        """Return the world after a lease update that matched, None if it matches nothing."""
        task = world.task
        if task.state != "ready" or (self.clauses.pin_attempt and task.attempt != found):
            return None
        return world._replace(task=Task("leased", token, task.attempt + 1))

    def work(self, world: World, i: int) -> Steps:
        """Begin, finish, or give up on what is in hand; give back what is not begun."""
        who = NAMES[i]
        for hand in world.pools[i].hands:
            if hand.phase == "held":
                begun = world.with_hand(i, hand, hand._replace(phase="begun"))
                if world.holds(hand.token, hand.attempt):
                    begun = begun._replace(task=world.task._replace(begun=True))
                yield Step(f"{who}'s worker begins attempt {hand.attempt}", begun)
            elif hand.phase == "begun":
                finished = world.with_hand(i, hand, hand._replace(phase="finished"))
                yield Step(f"{who} spools the result of attempt {hand.attempt}", finished)
            if world.budget.recalls:
                yield from self.recall(world.spend("recalls"), i, hand)
            if hand.phase == "recalled":
                returned = self._returned(world.with_hand(i, hand, None), hand.token, hand.attempt)
                yield Step(f"{who} returns the lease of attempt {hand.attempt}", returned)

    def recall(self, world: World, i: int, hand: Hand) -> Steps:
        """Ask a worker for a task back; one that has begun and fallen silent is lost."""
        who = NAMES[i]
        if hand.phase == "begun":
            lost = world.with_hand(i, hand, hand._replace(phase="silent"))
            yield Step(f"{who} gives attempt {hand.attempt} up: its worker is silent", lost, owed=False)
        elif hand.phase != "held":
            return
        elif self.clauses.return_unbegun_only:
            recalled = world.with_hand(i, hand, hand._replace(phase="recalled"))
            text = f"{who}'s worker confirms that it has not begun attempt {hand.attempt}"
            yield Step(text, recalled, owed=False)
        else:
            returned = self._returned(world, hand.token, hand.attempt)
            text = f"{who} returns the lease of attempt {hand.attempt} without asking its worker"
            yield Step(text, returned, owed=False)

    def _returned(self, world: World, token: str, attempt: int) -> World:
        """Make the task ready again, if it is still leased like this."""
        if not world.holds(token, attempt):
            return world
        kept = attempt if self.clauses.keep_attempt else attempt - 1
        return world._replace(task=Task("ready", "", kept))

    def commit(self, world: World, i: int) -> Steps:
        """Insert the record, then end the attempt as the record says: the pool or a replay."""
        who = NAMES[i] if world.pools[i].alive else f"agent {NAMES[i]}, replaying the spool,"
        for hand in world.pools[i].hands:
            if hand.phase in ("finished", "silent"):
                wanted = "succeeded" if hand.phase == "finished" else "lost"
                after, outcome, how = self._insert(world, Record(hand.attempt, wanted, hand.token))
                recorded = hand._replace(phase="recorded", outcome=outcome)
                yield Step(f"{who} {how}", after.with_hand(i, hand, recorded))
            elif hand.phase == "recorded":
                after, how = self._end(world, hand.token, hand.attempt, hand.outcome, pinned=True)
                yield Step(f"{who} {how}", after.with_hand(i, hand, None))

    def _insert(self, world: World, record: Record) -> tuple[World, str, str]:
        """Insert a record; return the world, the outcome to apply, and what happened."""
        stored = world.outcome(record.attempt)
        if stored is None:
            records = (*world.records, record)
            how = f"inserts record {record.attempt}: {record.outcome}"
            return world._replace(records=tuple(sorted(records))), record.outcome, how
        how = f"finds record {record.attempt} there: {stored}"
        if self.clauses.record_decides:
            return world, stored, f"{how}, and goes by it"
        return world, record.outcome, f"{how}, and ignores it"

    def _end(self, world: World, token: str, attempt: int, outcome: str, pinned: bool) -> tuple[World, str]:
        """Move the task out of `leased`, filtered on token and attempt."""
        task = world.task
        if task.state != "leased" or task.token != token or (pinned and task.attempt != attempt):
            return world, f"cannot end attempt {attempt}: it is no longer leased under {token}"
        state: Literal["done", "ready"] = "done" if outcome == "succeeded" else "ready"
        after = world._replace(task=Task(state, "", task.attempt))
        return after, f"ends attempt {task.attempt}: the task is {state}"

    def heartbeat(self, world: World, i: int) -> Steps:
        """Notice that the token was reaped: stop leasing, drop unstarted work, take a new one."""
        pool = world.pools[i]
        if pool.token in world.live:
            return
        if not self.clauses.live_filter:
            if not pool.deaf:
                after = world.with_pool(i, pool._replace(deaf=True))
                yield Step(f"{NAMES[i]}'s heartbeat is counted, though {pool.token} was reaped", after)
            return
        token = _next(pool.token)
        begun = tuple(hand for hand in pool.hands if hand.phase not in ("held", "recalled"))
        woken = Pool(token=token, hands=begun)
        after = world._replace(live=world.live | {token}).with_pool(i, woken)
        yield Step(f"{NAMES[i]}'s heartbeat matches nothing: it takes token {token}", after)

    def comparison(self, world: World, i: int) -> Steps:
        """Compare what is leased under the token with what is in hand; return the rest."""
        pool, task = world.pools[i], world.task
        who, compare, call = NAMES[i], pool.compare, pool.call
        idle = world.with_pool(i, pool._replace(compare=None))
        leased = world.holds(pool.token, task.attempt)
        reading = world.with_pool(i, pool._replace(compare=Compare(task.attempt)))
        decided = world.with_pool(i, pool._replace(compare=Compare(task.attempt, decided=True)))
        if compare is None and self.clauses.compare_reads_first:
            if leased:
                yield Step(f"{who} compares: attempt {task.attempt} is leased under {pool.token}", reading)
        elif compare is None:
            if not pool.hands and not call:
                listed = world.with_pool(i, pool._replace(compare=Compare(0)))
                yield Step(f"{who} lists what it holds: nothing", listed)
        elif compare.attempt == 0:
            text = f"{who} compares: attempt {task.attempt} is leased, and not on its list"
            yield Step(text, decided) if leased else Step(f"{who} compares: nothing is leased", idle)
        elif compare.decided:
            returned = self._returned(idle, pool.token, compare.attempt)
            yield Step(f"{who} returns attempt {compare.attempt}, which it does not hold", returned)
        elif _in_hand(pool, compare.attempt) or (call and self.clauses.spare_unresolved):
            yield Step(f"{who} compares: attempt {compare.attempt} is in hand", idle)
        else:
            rest = pool._replace(compare=compare._replace(decided=True))
            text = f"{who} compares: it does not hold attempt {compare.attempt}"
            yield Step(text, world.with_pool(i, rest))

    # ---- what may go wrong --------------------------------------------------------------------

    def crash(self, world: World, i: int) -> Steps:
        """Lose a pool, with or without its spool; start one again."""
        pool, who = world.pools[i], NAMES[i]
        if pool.alive and world.budget.crashes:
            spool = tuple(
                hand._replace(phase="finished", outcome="")
                for hand in pool.hands
                if hand.phase == "finished" or (hand.phase == "recorded" and hand.outcome != "lost")
            )
            crashed = world.spend("crashes")
            dead = Pool(token=pool.token, alive=False, hands=spool)
            yield Step(f"{who} crashes", crashed.with_pool(i, dead), owed=False)
            if spool:
                bare = crashed.with_pool(i, dead._replace(hands=()))
                yield Step(f"{who} crashes and its spool is lost", bare, owed=False)
        if not pool.alive and world.budget.restarts:
            token = _next(pool.token) if self.clauses.fresh_token else pool.token
            hands = pool.hands
            if not self.clauses.spool_token:
                hands = tuple(hand._replace(token=token) for hand in hands)
            started = world.spend("restarts")._replace(live=world.live | {token})
            after = started.with_pool(i, Pool(token=token, hands=hands))
            yield Step(f"{who} is started again, under token {token}", after, owed=False)

    def late_update(self, world: World) -> Steps:
        """Let a lease update whose sender saw an error land after all."""
        for token, found in world.wire:
            landed = self._lease_lands(world, token, found)
            if landed is not None:
                text = f"the update under {token} lands late: attempt {landed.task.attempt}"
                yield Step(text, landed._replace(wire=()), owed=False)

    # ---- an agent -----------------------------------------------------------------------------

    def judge(self, world: World, i: int) -> Steps:
        """See a heartbeat unchanged for the whole TTL: of a dead pool surely, of a live one rarely."""
        if world.reaps[i] is not None:
            return
        for token in sorted(world.live):
            dead = all(token != pool.token for pool in world.pools if pool.alive)
            if not dead and not world.budget.suspicions:
                continue
            after = world if dead else world.spend("suspicions")
            text = f"agent {NAMES[i]} judges {token} stale"
            if self.clauses.fence_first:
                after = after._replace(live=after.live - {token})
                text += " and takes its `live` away"
            if not self.clauses.fence_first or not self.clauses.reap_again:
                after = after.with_reap(i, Reap("read", token))
            yield Step(text, after, owed=dead)

    def reap(self, world: World, i: int) -> Steps:
        """Read a lease that is not a live pool's, insert `lost`, end the attempt."""
        reap, task, who = world.reaps[i], world.task, f"agent {NAMES[i]}"
        if reap is None:
            reapable = task.state == "leased" and task.token not in world.live
            if self.clauses.reap_again and reapable and not self._replay_is_due(world, i):
                seen = world.with_reap(i, Reap("seen", task.token, task.attempt))
                yield Step(f"{who} finds attempt {task.attempt} leased under dead {task.token}", seen)
        elif reap.phase == "read":
            if task.state == "leased" and task.token == reap.token:
                seen = world.with_reap(i, Reap("seen", task.token, task.attempt))
                yield Step(f"{who} reads the leases of {task.token}: attempt {task.attempt}", seen)
            else:
                after = world._replace(live=world.live - {reap.token}).with_reap(i, None)
                yield Step(f"{who} reads the leases of {reap.token}: none", after)
        elif reap.phase == "seen":
            after, outcome, how = self._insert(world, Record(reap.attempt, "lost", reap.token))
            recorded = reap._replace(phase="recorded", outcome=outcome)
            yield Step(f"{who} {how}", after.with_reap(i, recorded))
        else:
            after, how = self._end(world, reap.token, reap.attempt, reap.outcome, self.clauses.reap_pinned)
            after = after._replace(live=after.live - {reap.token}).with_reap(i, None)
            yield Step(f"{who} {how}", after)

    def _replay_is_due(self, world: World, i: int) -> bool:
        """Tell whether agent `i` has a result of this very lease in its dead pool's spool."""
        spool = [hand.token for hand in world.pools[i].hands if not world.pools[i].alive]
        return self.clauses.spool_first and world.task.token in spool

    # ---- promises -----------------------------------------------------------------------------

    def faults(self, before: World, after: World) -> Iterator[str]:
        """Yield what one step breaks."""
        yield from record_faults(before, after)
        yield from task_faults(before, after)
        yield from reap_faults(before, after)

    def settled(self, world: World) -> bool:
        """Tell whether the task is not stuck under a lease and every pool may go on."""
        in_order = all(pool.token in world.live for pool in world.pools if pool.alive)
        return world.task.state != "leased" and in_order

    def doom(self, world: World) -> str:
        """Name what is stuck."""
        return LEASED_FOR_EVER if world.task.state == "leased" else REAPED_FOR_EVER


def _taken(world: World, i: int, hand: Hand) -> World:
    pool = world.pools[i]
    hands = tuple(sorted({*pool.hands, hand}))
    return world.with_pool(i, pool._replace(hands=hands, call=None))


def _in_hand(pool: Pool, attempt: int) -> bool:
    return any(hand.token == pool.token and hand.attempt == attempt for hand in pool.hands)


def _next(token: str) -> str:
    return f"{token[0]}{int(token[1:]) + 1}"


SCENARIOS = {
    "reaping": (Budget(suspicions=1), 2),
    "crashes": (Budget(suspicions=1, crashes=1), 1),
    "restarts": (Budget(crashes=1, restarts=1), 2),
    "recalls": (Budget(suspicions=1, recalls=1), 1),
    "recalls, three leases": (Budget(leases=3, recalls=1), 1),
    "errors": (Budget(leases=3, errors=1), 1),
    "errors and recalls": (Budget(leases=3, recalls=1, errors=1), 1),
    "errors and reaping": (Budget(suspicions=1, errors=1), 1),
}
"""Name: what may happen besides the plain course, and the number of agents that reap."""

DEEP = {
    "two agents and a crash": (Budget(suspicions=1, crashes=1), 2),
    "three leases, reaped twice": (Budget(leases=3, suspicions=2), 2),
    "three leases, everything but crashes": (Budget(leases=3, suspicions=1, recalls=1, errors=1), 1),
    "everything": (
        Budget(suspicions=1, crashes=1, restarts=1, recalls=1, errors=1),
        1,
    ),
}
"""Larger ones, for `python -m tests.model.run --deep`."""


def model(scenario: str, clauses: Clauses) -> Leases:
    """Return the model of a scenario, with the clauses given."""
    budget, agents = (SCENARIOS | DEEP)[scenario]
    return Leases(scenario, clauses, budget, agents)
