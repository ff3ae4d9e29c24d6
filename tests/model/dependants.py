"""Dependants: submitting and suspending against the parent's end, crashes, retries, cancels.

Whoever submits (or suspends) a child inserts it `waiting` and `unchecked`, then sets `awaited` on
the parent, then reads the parent and corrects the child. The end of a task is marked `unreleased`
only if `awaited` is set at that moment, so a task nobody waits for pays nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tests.model import chain
from tests.model.chain import (
    BAD_ENDS,
    ENDS,
    NAMES,
    Budget,
    Clauses,
    Doc,
    Phase,
    Rules,
    Scenario,
    State,
    Steps,
    Submitter,
    Walk,
    World,
)
from tests.model.search import Step
from tests.model.walks import Walks

ABSENT, READY, RUNNING = Doc("absent"), Doc("ready"), Doc("leased")


@dataclass(frozen=True)
class Dependants:
    """The model of a chain of dependants; `upstream` searches it with longer chains."""

    scenario: Scenario
    clauses: Clauses

    @property
    def name(self) -> str:
        """Name the model and the scenario."""
        return self.scenario.name

    @property
    def flow(self) -> bool:
        """Tell whether the last task is a flow: it exists, runs, and suspends itself."""
        return self.scenario.waits == "end"

    @property
    def rules(self) -> Rules:
        """Return the writes that several actors share."""
        return Rules(self.clauses, self.scenario.waits)

    def initial(self) -> World:
        """Return the scenario's tasks, with nobody on the way."""
        submitter = Submitter("start" if self.scenario.submits else "gone")
        return World(self.scenario.docs, (), submitter, self.scenario.budget)

    def steps(self, world: World) -> Steps:
        """Yield every step of every actor."""
        yield from self.submit(world)
        yield from Walks(self.clauses, self.rules, self.scenario.walks).steps(world)
        for i, doc in enumerate(world.docs):
            yield from self.run(world, i, doc)
            yield from self.person(world, i, doc)

    # ---- the submitter, or the coordinator that suspends a flow ----------------------------------

    def submit(self, world: World) -> Steps:
        """Insert the child as waiting, after its parent if that is the submitter's too.

        A flow is suspended the same way, whenever it runs, whatever became of its parent.
        """
        phase, last = world.submitter.phase, len(world.docs) - 1
        if phase == "gone" or (self.flow and phase == "start" and world.docs[last].state != "leased"):
            return
        if phase == "parent later":
            inserted = world.write(last - 1, READY)
            yield Step(f"submit: inserts {NAMES[last - 1]}, ready", _at(inserted, "gone"))
        elif phase == "start" and world.docs[last - 1] == ABSENT:
            if self.clauses.parents_first:
                inserted = world.write(last - 1, READY)
                yield Step(f"submit: inserts {NAMES[last - 1]}, ready", _at(inserted, "parent in"))
            else:
                yield self._insert(world, "parent later")
        elif self.clauses.insert_first:
            yield self._insert(world, "start" if self.flow else "gone")
        else:
            yield self._look_then_insert(world)
        if world.budget.crashes and not self.flow:
            yield Step("the submitter dies", _at(world.spend("crashes"), "gone"), owed=False)

    def _insert(self, world: World, then: Phase) -> Step[World]:
        """Insert (or suspend) the last task of the chain, before anybody looks at its parent."""
        last = len(world.docs) - 1
        unchecked = self.clauses.unchecked_marker
        child = world.docs[last]._replace(state="waiting", pending=True, unchecked=unchecked)
        correct = Walk("correct", last, "child read", "waiting")
        after = _at(world.write(last, child), then).begin(correct)
        verb = "suspend: makes" if self.flow else "submit: inserts"
        return Step(f"{verb} {NAMES[last]} waiting{', unchecked' if unchecked else ''}", after)

    def _look_then_insert(self, world: World) -> Step[World]:
        """Do it the wrong way round: look at the parent, then insert what that calls for."""
        phase, last = world.submitter.phase, len(world.docs) - 1
        above, name = NAMES[last - 1], NAMES[last]
        parent, child = world.docs[last - 1], world.docs[last]
        if phase in ("start", "parent in"):
            told = world.write(last - 1, parent._replace(awaited=True))
            return Step(f"submit: sets `awaited` on {above}", _at(told, "looking"))
        if phase == "looking":
            looked = world._replace(submitter=Submitter("looked", parent.state))
            return Step(f"submit: reads {above}, {parent.state}", looked)
        if self.rules.releases(world.submitter.parent):
            after = self.rules.released(child)
        elif world.submitter.parent in BAD_ENDS:
            after = self.rules.failed_upstream(child)
        else:
            after = child._replace(state="waiting", pending=True)
        inserted = _at(world.write(last, after), "start" if self.flow else "gone")
        return Step(f"submit: makes {name} {after.state}", inserted)

    # ---- the tasks themselves, and the people who own them ---------------------------------------

    def run(self, world: World, i: int, doc: Doc) -> Steps:
        """Lease a ready task and end it. The last task only shows that it could be leased."""
        name, leaf = NAMES[i], i == len(world.docs) - 1
        if doc.state == "ready" and (self.flow or not leaf):
            leased = world.write(i, doc._replace(state="leased"))
            if i == 0 and not self.clauses.end_marks_at_once:
                leased = leased._replace(old_awaited=doc.awaited)
            yield Step(f"{name} is leased", leased)
        elif doc.state == "leased" and leaf:
            if world.docs[i - 1].state in ENDS:
                ended = world.write(i, self.rules.ended(doc, "done"))
                yield Step(f"flow {name} finds its child ended, and is done", _at(ended, "gone"))
        elif doc.state == "leased":
            yield Step(f"{name} ends: done", self._end(world, i, "done"))
            if world.budget.fails:
                failed = self._end(world.spend("fails"), i, "failed")
                yield Step(f"{name} ends: failed", failed, owed=False)

    def _end(self, world: World, i: int, state: State) -> World:
        """End a leased task; without a marker, only its pool knows what is to be released."""
        old = None if self.clauses.end_marks_at_once or i > 0 else world.old_awaited
        ended = world.write(i, self.rules.ended(world.docs[i], state, old))
        return ended if self.clauses.end_marks else ended.begin(Walk("release", i, "read", state))

    def person(self, world: World, i: int, doc: Doc) -> Steps:
        """Cancel what has not begun; retry what has ended badly."""
        if doc.state in ("waiting", "ready") and world.budget.cancels:
            cancelled = world.spend("cancels").write(i, self.rules.ended(doc, "cancelled"))
            yield Step(f"a person cancels {NAMES[i]}", cancelled, owed=False)
        if doc.state in ("failed", "upstream", "cancelled") and world.budget.retries:
            again = self.rules.retried(doc)
            after = world.spend("retries").write(i, again)
            if not self.clauses.revive_marker and doc.awaited:
                after = after.begin(Walk("revive", i, "read", again.state))
            text = f"a person retries {NAMES[i]}: {again.state}{', revive' if again.revive else ''}"
            yield Step(text, after, owed=False)

    # ---- promises ---------------------------------------------------------------------------------

    def faults(self, before: World, after: World) -> Iterator[str]:
        """Yield what one step breaks."""
        if before.docs != after.docs:
            yield from chain.faults(self.rules, after)

    def settled(self, world: World) -> bool:
        """Tell whether all tasks have come to rest where they belong."""
        return chain.at_rest(self.rules, world)

    def doom(self, world: World) -> str:
        """Name what is stuck."""
        return chain.doom(world)


def _at(world: World, phase: Phase) -> World:
    """Let the submitter go on to another phase."""
    return world._replace(submitter=Submitter(phase))


Start = tuple[tuple[Doc, ...], Budget, Literal["done", "end"]]

SCENARIOS: dict[str, Start] = {
    "submit": ((READY, ABSENT), Budget(fails=1, crashes=1), "done"),
    "submit and retry": ((READY, ABSENT), Budget(fails=2, crashes=1, retries=1), "done"),
    "submit both": ((ABSENT, ABSENT), Budget(crashes=1), "done"),
    "submit and cancel": ((READY, ABSENT), Budget(cancels=2, retries=2), "done"),
    "suspend": ((READY, RUNNING), Budget(fails=1, crashes=1, retries=1), "end"),
}
"""Name: the tasks at the start, what may happen besides the plain course, what c waits for."""

DEEP: dict[str, Start] = {
    "suspend and cancel": ((READY, RUNNING), Budget(fails=1, crashes=1, retries=1, cancels=1), "end"),
    "submit, everything": ((READY, ABSENT), Budget(fails=2, crashes=1, retries=1, cancels=1), "done"),
}
"""Larger ones, for `python -m tests.model.run --deep`."""


def model(scenario: str, clauses: Clauses, walks: int = 2) -> Dependants:
    """Return the model of a scenario, with the clauses given."""
    docs, budget, waits = (SCENARIOS | DEEP)[scenario]
    return Dependants(Scenario(f"dependants: {scenario}", docs, budget, waits, walks=walks), clauses)
