"""Dependants, the nouns: a chain of tasks, each the parent of the next, and the rules they obey.

Two tasks (p and its child c) are enough for submission against completion; a third (g, the child
of c) shows whether what happens to c reaches those who wait for it. Only the last task of the chain
is submitted while the others live. A task has one parent here: what joins add is not searched. (A
check of several parents reads all of them under one `rev` of the child, so that what is shown for
one edge should hold for each.)

`rev` is not a number here. Whoever has read a document remembers whether it is still `current`:
whether `rev` is the one it read. That is all a filter on `rev` can tell, and it keeps the state
space small.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from tests.model.search import Step

NAMES = "pcg"

State = Literal["absent", "waiting", "ready", "leased", "done", "failed", "upstream", "missing", "cancelled"]
"""`upstream` and `missing` are `failed` with that reason; `absent` is not inserted yet."""

Phase = Literal["start", "parent in", "parent later", "looking", "looked", "gone"]
"""How far the submitter has come."""

BAD_ENDS = frozenset({"failed", "upstream", "missing", "cancelled"})
ENDS = BAD_ENDS | {"done"}

WAITS_FOR_EVER = "a child waits for ever, though its parent has ended"
STAYS_FAILED = "a child stays failed upstream, though its parent is done"
NEVER_RESTS = "the tasks never come to rest"
STARTED_EARLY = "a data child may run, though its parent is not done"
WAITS_FOR_NOTHING = "a waiting task has nothing pending"
NOT_MISSING = "a child failed for a missing parent that exists"
STRAY_MARKER = "a task that has not ended is marked `unreleased`"


@dataclass(frozen=True)
class Clauses:
    """The clauses of the protocol; all of them in force is the protocol itself."""

    parents_first: bool = True
    """Parents are acknowledged before their children are inserted."""
    insert_first: bool = True
    """A child is inserted (or suspended) as waiting before its parent is looked at."""
    unchecked_marker: bool = True
    """It is inserted `unchecked`, so that a sweep looks at the parent if its submitter dies."""
    awaited_first: bool = True
    """`awaited` is set on the parent before the parent's state is read."""
    sweep_sets_awaited: bool = True
    """A sweep that checks a child sets `awaited` on the parent as its submitter would have."""
    child_first: bool = True
    """A check reads the child's `rev` before it reads the parent."""
    rev_filter: bool = True
    """A check writes only if the child's `rev` is still the one it read."""
    end_marks: bool = True
    """The end of an awaited task is marked `unreleased`."""
    end_marks_at_once: bool = True
    """One pipeline update ends the task and looks at `awaited`, rather than at an older copy."""
    upstream_marks: bool = True
    """Failing upstream is an end like any other: the task's own dependants are told."""
    release_at_once: bool = True
    """One update removes the id from `pending` and makes the child ready."""
    release_first: bool = True
    """Dependants are released before `unreleased` is cleared."""
    clear_pinned: bool = True
    """`unreleased` is cleared only if the parent's `rev` is still the one that was read."""
    upstream_unchecked: bool = True
    """Failing upstream marks the child `unchecked`: the parent may have been retried meanwhile."""
    retry_keeps_awaited: bool = True
    """A retry leaves `awaited` as it is."""
    retry_unmarks: bool = True
    """A retry drops `unreleased`."""
    retry_unchecked: bool = True
    """A retried task with something pending goes to `waiting`, `unchecked`."""
    revive_marker: bool = True
    """A retry marks the task `revive` in the same write, if it is awaited."""
    revive_unchecked: bool = True
    """Reviving a dependant marks it `unchecked`."""
    revive_pinned: bool = True
    """`revive` is cleared only if the task's `rev` is still the one that was read."""
    revive_spreads: bool = True
    """A dependant that is revived is marked `revive` itself, if it is awaited."""
    check_revives: bool = True
    """So is one that a check takes back from `upstream`."""


class Doc(NamedTuple):
    """The document of one task, as far as its dependants matter; `pending` holds its parent."""

    state: State
    pending: bool = False
    awaited: bool = False
    unreleased: bool = False
    revive: bool = False
    unchecked: bool = False


class Walk(NamedTuple):
    """Somebody on the way from a document to its parent or child: a pool, a client or a sweep.

    `seen` is the state that document had when it was read, `parent` what a check read next.
    """

    job: Literal["correct", "check", "release", "revive"]
    doc: int
    phase: str
    seen: State = "absent"
    parent: State = "absent"
    current: bool = True


class Submitter(NamedTuple):
    """The client that submits the last task, or the coordinator that suspends it."""

    phase: Phase = "start"
    parent: State = "absent"


class Budget(NamedTuple):
    """How often what nobody owes may still happen."""

    fails: int = 0
    crashes: int = 0
    retries: int = 0
    cancels: int = 0


class World(NamedTuple):
    """Everything: the documents, who is on the way between them, and what may still happen."""

    docs: tuple[Doc, ...]
    walks: tuple[Walk, ...]
    submitter: Submitter
    budget: Budget
    old_awaited: bool = False
    """p's `awaited` as the pool that runs it read it; used only by `end_marks_at_once`."""

    def spend(self, what: str) -> World:
        """Return the world with one use of `what` less."""
        left = {what: getattr(self.budget, what) - 1}
        return self._replace(budget=self.budget._replace(**left))

    def write(self, i: int, doc: Doc) -> World:
        """Write document `i`; a change of state, `pending` or `unchecked` bumps its `rev`."""
        old = self.docs[i]
        docs = (*self.docs[:i], doc, *self.docs[i + 1 :])
        if (old.state, old.pending, old.unchecked) == (doc.state, doc.pending, doc.unchecked):
            return self._replace(docs=docs)
        walks = [walk._replace(current=False) if walk.doc == i else walk for walk in self.walks]
        return self._replace(docs=docs, walks=tuple(sorted(walks)))

    def begin(self, walk: Walk) -> World:
        """Send somebody on the way."""
        return self._replace(walks=tuple(sorted((*self.walks, walk))))

    def finish(self, walk: Walk) -> World:
        """Take one walk away."""
        rest = list(self.walks)
        rest.remove(walk)
        return self._replace(walks=tuple(rest))

    def move(self, walk: Walk, phase: str, parent: State = "absent") -> World:
        """Let a walk go on to its next phase."""
        return self.finish(walk).begin(walk._replace(phase=phase, parent=parent))


Steps = Iterator[Step[World]]


@dataclass(frozen=True)
class Scenario:
    """Where a search starts, and how often what nobody owes may happen."""

    name: str
    docs: tuple[Doc, ...]
    budget: Budget
    waits: Literal["done", "end"] = "done"
    submits: bool = True
    walks: int = 2


@dataclass(frozen=True)
class Rules:
    """The writes that several actors share."""

    clauses: Clauses
    waits: Literal["done", "end"]

    def ended(self, doc: Doc, state: State, awaited: bool | None = None) -> Doc:
        """End a task; `awaited` overrides what the document says."""
        marked = doc.awaited if awaited is None else awaited
        return doc._replace(state=state, unreleased=marked and self.clauses.end_marks)

    def released(self, child: Doc) -> Doc:
        """Take the parent out of a child's `pending` and make the child ready."""
        return child._replace(state="ready", pending=False, unchecked=False)

    def failed_upstream(self, child: Doc) -> Doc:
        """Fail a waiting child for its parent's sake; the parent stays in `pending`."""
        unchecked = self.clauses.upstream_unchecked
        failed = self.ended(child, "upstream", None if self.clauses.upstream_marks else False)
        return failed._replace(pending=True, unchecked=unchecked)

    def retried(self, doc: Doc) -> Doc:
        """Give an ended task back to the queue, or to its parent if it still waits for that."""
        return doc._replace(
            state="waiting" if doc.pending else "ready",
            unchecked=doc.pending and self.clauses.retry_unchecked,
            revive=doc.awaited and self.clauses.revive_marker,
            unreleased=doc.unreleased and not self.clauses.retry_unmarks,
            awaited=doc.awaited and self.clauses.retry_keeps_awaited,
        )

    def revived(self, child: Doc) -> Doc:
        """Take a dependant back from `upstream`: its parent was retried."""
        return child._replace(
            state="waiting",
            unchecked=self.clauses.revive_unchecked,
            revive=child.awaited and self.clauses.revive_spreads,
            unreleased=False,
        )

    def releases(self, parent: State) -> bool:
        """Tell whether a parent in this state lets its child run."""
        return parent == "done" or (self.waits == "end" and parent in ENDS)


def faults(rules: Rules, after: World) -> Iterator[str]:
    """Yield the promises that do not hold in `after`."""
    for doc in after.docs:
        if doc.state == "waiting" and not doc.pending:
            yield WAITS_FOR_NOTHING
        if doc.unreleased and doc.state not in ENDS:
            yield STRAY_MARKER
    for parent, child in zip(after.docs, after.docs[1:], strict=False):
        if child.state == "missing" and parent.state != "absent":
            yield NOT_MISSING
        if rules.waits == "done" and child.state in ("ready", "leased", "done") and parent.state != "done":
            yield STARTED_EARLY


def at_rest(rules: Rules, world: World) -> bool:
    """Tell whether nobody is on the way, no marker stands, and every task is where it belongs."""
    submitting = world.submitter.phase != "gone" and rules.waits == "done"
    if world.walks or submitting:
        return False
    if any(doc.unreleased or doc.revive or doc.unchecked for doc in world.docs):
        return False
    if any(doc.state not in ENDS and doc.state != "absent" for doc in world.docs[:-1]):
        return False
    pairs = zip(world.docs, world.docs[1:], strict=False)
    return not any(_misplaced(rules, parent.state, child.state) for parent, child in pairs)


def _misplaced(rules: Rules, parent: State, child: State) -> bool:
    """Tell whether a child is not where an ended parent should have brought it."""
    if child in ("absent", "cancelled"):
        return False
    if parent == "absent":
        return child != "missing"
    if rules.waits == "end":
        return child not in ENDS
    return child not in (("ready", "done", "failed") if parent == "done" else ("upstream",))


def doom(world: World) -> str:
    """Name the promise broken by a world that can never come to rest."""
    for parent, child in zip(world.docs, world.docs[1:], strict=False):
        if child.state == "waiting" and parent.state in ENDS:
            return WAITS_FOR_EVER
        if child.state == "upstream" and parent.state not in BAD_ENDS:
            return STAYS_FAILED
    return NEVER_RESTS
