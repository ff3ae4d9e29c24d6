"""Cancel: a person's wish against leases, returns, losses, retries by budget, and success.

Leases are told apart by their attempt alone here; `leases` shows what it takes for that to be
enough.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from tests.model.search import Step

State = Literal["waiting", "ready", "leased", "done", "failed", "cancelled"]
ENDS = frozenset({"done", "failed", "cancelled"})
RETRIES = 1  # how many failures a task survives
LOSSES = 1  # how many losses it survives, on another account
HANDS = 2  # attempts in one pool's hands: an old one whose lease was reaped, and a new one

LEASED_AGAIN = "an attempt is leased after the cancel was acknowledged"
SUCCESS_DROPPED = "a task with a succeeded record is cancelled"
CANCELLED_UNASKED = "a task is cancelled that nobody wants cancelled any more"
LOSS_BLAMED = "a task failed though it spent neither its retries nor its losses"
NO_RECORD = "a begun attempt left `leased` without a record"
CANCEL_FORGOTTEN = "a cancelled task stays in the queue"
NEVER_ENDS = "the task never ends"


@dataclass(frozen=True)
class Clauses:
    """The clauses of the protocol; all of them in force is the protocol itself."""

    cancel_at_once: bool = True
    """Cancelling is one pipeline update that decides by the state it finds."""
    return_heeds: bool = True
    """Returning the lease of a task with `cancel` set makes it cancelled, not ready."""
    failure_heeds: bool = True
    """So does a failed attempt that would be retried by budget."""
    loss_heeds: bool = True
    """So does a lost attempt."""
    release_heeds: bool = True
    """So does the release of a flow that was suspended with `cancel` set."""
    success_stands: bool = True
    """A task whose attempt succeeded is done, whatever was asked for meanwhile."""
    kill_recorded: bool = True
    """A killed attempt is ended by its record, which may turn out to be a success."""
    retry_clears: bool = True
    """A retry by a person clears `cancel`."""
    own_losses: bool = True
    """A lost attempt is charged to a budget of its own, not to the user's retries."""


class Task(NamedTuple):
    """The task's document."""

    state: State = "ready"
    attempt: int = 0
    cancel: bool = False
    tried: int = 0
    lost: int = 0


class Hand(NamedTuple):
    """An attempt in the pool's hands."""

    attempt: int
    phase: Literal["held", "recalled", "begun", "killed", "recorded"]
    outcome: str = ""


class Reap(NamedTuple):
    """An agent that takes the pool for dead, and the outcome it found on record."""

    attempt: int
    outcome: str = ""


class Budget(NamedTuple):
    """How often what nobody owes may still happen."""

    leases: int = 3
    fails: int = 0
    losses: int = 0
    recalls: int = 0
    suspends: int = 0
    cancels: int = 1
    retries: int = 0


class World(NamedTuple):
    """Everything; `cancelled` is what the person was last told, not stored anywhere."""

    task: Task
    budget: Budget
    records: tuple[tuple[int, str], ...] = ()
    hands: tuple[Hand, ...] = ()
    reap: Reap | None = None
    person_read: State | None = None
    cancelled: bool = False

    def spend(self, what: str) -> World:
        """Return the world with one use of `what` less."""
        left = {what: getattr(self.budget, what) - 1}
        return self._replace(budget=self.budget._replace(**left))

    def with_hand(self, old: Hand | None, new: Hand | None) -> World:
        """Return the world with one attempt in hand added, changed or dropped."""
        kept = [hand for hand in self.hands if hand != old]
        return self._replace(hands=tuple(sorted(kept if new is None else [*kept, new])))

    def holds(self, attempt: int) -> bool:
        """Tell whether the task is leased in this attempt."""
        return self.task.state == "leased" and self.task.attempt == attempt

    def insert(self, attempt: int, outcome: str) -> tuple[World, str, str]:
        """Insert a record, or find one; return the world, the outcome that counts, and a text."""
        for known, stored in self.records:
            if known == attempt:
                return self, stored, f"finds record {attempt} there: {stored}"
        after = self._replace(records=tuple(sorted((*self.records, (attempt, outcome)))))
        return after, outcome, f"inserts record {attempt}: {outcome}"


Steps = Iterator[Step[World]]


@dataclass(frozen=True)
class Cancel:
    """The model: a pool, an agent that reaps it, and a person."""

    scenario: str
    clauses: Clauses
    budget: Budget

    @property
    def name(self) -> str:
        """Name the model and the scenario."""
        return f"cancel: {self.scenario}"

    def initial(self) -> World:
        """Return a ready task."""
        return World(Task(), self.budget)

    def steps(self, world: World) -> Steps:
        """Yield every step of every actor."""
        yield from self.lease(world)
        for hand in world.hands:
            yield from self.work(world, hand)
            yield from self.commit(world, hand)
        yield from self.release(world)
        yield from self.reap(world)
        yield from self.cancel(world)
        yield from self.retry(world)

    # ---- the pool ---------------------------------------------------------------------------------

    def lease(self, world: World) -> Steps:
        """Lease the task; its worker may begin at once or much later."""
        task = world.task
        if task.state == "ready" and world.budget.leases and len(world.hands) < HANDS:
            attempt = task.attempt + 1
            leased = world.spend("leases")._replace(task=task._replace(state="leased", attempt=attempt))
            yield Step(f"attempt {attempt} is leased", leased.with_hand(None, Hand(attempt, "held")))

    def work(self, world: World, hand: Hand) -> Steps:
        """Begin, finish or suspend an attempt; recall it, or kill it once `cancel` is seen."""
        attempt, wanted = hand.attempt, world.holds(hand.attempt) and world.task.cancel
        if hand.phase == "held":
            begun = world.with_hand(hand, hand._replace(phase="begun"))
            yield Step(f"attempt {attempt} begins", begun)
            recalled = hand._replace(phase="recalled")
            if wanted:
                yield Step(f"the pool recalls attempt {attempt}: cancel", world.with_hand(hand, recalled))
            elif world.budget.recalls:
                after = world.spend("recalls").with_hand(hand, recalled)
                yield Step(f"the pool recalls attempt {attempt}", after, owed=False)
        elif hand.phase == "begun":
            yield from self._finish(world, hand, "succeeded")
            if world.budget.fails:
                yield from self._finish(world.spend("fails"), hand, "failed", owed=False)
            if wanted:
                killed = world.with_hand(hand, hand._replace(phase="killed"))
                yield Step(f"the pool kills attempt {attempt}: cancel", killed)
            if world.budget.suspends:
                after = world.spend("suspends").with_hand(hand, None)
                if world.holds(attempt):
                    after = after._replace(task=world.task._replace(state="waiting"))
                yield Step(f"attempt {attempt} suspends itself", after, owed=False)

    def _finish(self, world: World, hand: Hand, outcome: str, owed: bool = True) -> Steps:
        """Insert the record of an attempt that is over."""
        after, counts, how = world.insert(hand.attempt, outcome)
        recorded = hand._replace(phase="recorded", outcome=counts)
        yield Step(f"the pool {how}", after.with_hand(hand, recorded), owed)

    def commit(self, world: World, hand: Hand) -> Steps:
        """Move the task out of `leased`, filtered on the attempt."""
        attempt, dropped = hand.attempt, world.with_hand(hand, None)
        if hand.phase == "recalled":
            task = world.task
            if world.holds(attempt):
                task = self._again(task, self.clauses.return_heeds)
            after = dropped._replace(task=task)
            yield Step(f"the pool returns attempt {attempt}: the task is {task.state}", after)
        elif hand.phase == "killed" and self.clauses.kill_recorded:
            yield from self._finish(world, hand, "cancelled")
        elif hand.phase == "killed":
            yield self._end(dropped, "the pool", attempt, "cancelled")
        elif hand.phase == "recorded":
            yield self._end(dropped, "the pool", attempt, hand.outcome)

    def _end(self, world: World, who: str, attempt: int, outcome: str) -> Step[World]:
        """Apply an outcome to the task, if this attempt is still leased."""
        if not world.holds(attempt):
            return Step(f"{who} finds attempt {attempt} ended", world)
        task = self._ended(world.task, outcome)
        text = f"{who} ends attempt {attempt} ({outcome}): the task is {task.state}"
        return Step(text, world._replace(task=task))

    def _ended(self, task: Task, outcome: str) -> Task:
        """Return the task after an attempt with this outcome."""
        if outcome == "succeeded":
            dropped = task.cancel and not self.clauses.success_stands
            return task._replace(state="cancelled" if dropped else "done")
        if outcome == "cancelled":
            return task._replace(state="cancelled")
        if outcome == "lost" and self.clauses.own_losses:
            charged = task._replace(lost=task.lost + 1)
        else:
            charged = task._replace(tried=task.tried + 1)
        if charged.tried > RETRIES or charged.lost > LOSSES:
            return charged._replace(state="failed")
        heeds = self.clauses.loss_heeds if outcome == "lost" else self.clauses.failure_heeds
        return self._again(charged, heeds)

    def _again(self, task: Task, heeds: bool) -> Task:
        """Make a task ready, or cancelled if that was asked for."""
        return task._replace(state="cancelled" if task.cancel and heeds else "ready")

    # ---- the others -------------------------------------------------------------------------------

    def release(self, world: World) -> Steps:
        """Wake a suspended flow whose children have ended."""
        if world.task.state == "waiting":
            task = self._again(world.task, self.clauses.release_heeds)
            yield Step(f"the flow is released: {task.state}", world._replace(task=task))

    def reap(self, world: World) -> Steps:
        """Take the pool for dead: insert `lost`, or go by the record that is there."""
        task, reap = world.task, world.reap
        if reap is None:
            if task.state == "leased" and world.budget.losses:
                found = world.spend("losses")._replace(reap=Reap(task.attempt))
                yield Step(f"the agent takes attempt {task.attempt} for lost", found, owed=False)
        elif not reap.outcome:
            after, outcome, how = world.insert(reap.attempt, "lost")
            yield Step(f"the agent {how}", after._replace(reap=reap._replace(outcome=outcome)))
        else:
            yield self._end(world._replace(reap=None), "the agent", reap.attempt, reap.outcome)

    def cancel(self, world: World) -> Steps:
        """Cancel the task, and tell the person so."""
        task, read = world.task, world.person_read
        if read is None:
            if task.state in ENDS or not world.budget.cancels:
                return
            asked = world.spend("cancels")
            if self.clauses.cancel_at_once:
                yield self._cancelled(asked, task.state)
            else:
                reading = asked._replace(person_read=task.state)
                yield Step(f"the person's cancel reads: {task.state}", reading, owed=False)
        else:
            yield self._cancelled(world._replace(person_read=None), read)

    def _cancelled(self, world: World, read: State) -> Step[World]:
        """Write what cancelling a task in state `read` asks for, filtered on that state."""
        task = world.task
        if task.state == read == "leased":
            task = task._replace(cancel=True)
        elif task.state == read:
            task = task._replace(state="cancelled")
        flag = ", cancel" if task.cancel else ""
        text = f"the person is told: cancelled (the task is {task.state}{flag})"
        return Step(text, world._replace(task=task, cancelled=True), owed=False)

    def retry(self, world: World) -> Steps:
        """Give an ended task back to the queue."""
        task = world.task
        if task.state in ("failed", "cancelled") and world.budget.retries:
            flag = task.cancel and not self.clauses.retry_clears
            again = task._replace(state="ready", cancel=flag)
            after = world.spend("retries")._replace(task=again, cancelled=False)
            yield Step("the person retries the task", after, owed=False)

    # ---- promises ---------------------------------------------------------------------------------

    def faults(self, before: World, after: World) -> Iterator[str]:
        """Yield what one step breaks."""
        old, new = before.task, after.task
        if old.state == new.state:
            return
        records = dict(after.records)
        if new.state == "leased" and before.cancelled:
            yield LEASED_AGAIN
        if new.state == "cancelled" and not after.cancelled:
            yield CANCELLED_UNASKED
        if new.state == "cancelled" and "succeeded" in records.values():
            yield SUCCESS_DROPPED
        failures = [list(records.values()).count(outcome) for outcome in ("failed", "lost")]
        if new.state == "failed" and failures[0] <= RETRIES and failures[1] <= LOSSES:
            yield LOSS_BLAMED
        begun = any(hand == (old.attempt, "killed", "") for hand in before.hands)
        if old.state == "leased" and begun and old.attempt not in records:
            yield NO_RECORD

    def settled(self, world: World) -> bool:
        """Tell whether the task has ended, or waits for a pool as it should."""
        idle = world.task.state == "ready" and not world.budget.leases
        return world.task.state in ENDS or (idle and not world.cancelled)

    def doom(self, world: World) -> str:
        """Name what is stuck."""
        return CANCEL_FORGOTTEN if world.cancelled else NEVER_ENDS


SCENARIOS = {
    "failures and losses": Budget(fails=2, losses=2, recalls=1),
    "suspended flows": Budget(fails=1, losses=1, recalls=1, suspends=1),
    "retried by a person": Budget(fails=1, losses=1, recalls=1, cancels=1, retries=1),
}
"""Name: what may happen besides the plain course."""

DEEP = {
    "everything": Budget(leases=4, fails=2, losses=1, recalls=1, suspends=1, cancels=2, retries=2),
}
"""Larger ones, for `python -m tests.model.run --deep`."""


def model(scenario: str, clauses: Clauses) -> Cancel:
    """Return the model of a scenario, with the clauses given."""
    return Cancel(scenario, clauses, (SCENARIOS | DEEP)[scenario])
