"""Dependants, the verbs: what a check, a release and a revival do, step by step.

All three start from a marker, so any pool, client or sweep can do them, several at once, and one
that dies on the way is simply replaced: check (from `unchecked`, the child's), release (from
`unreleased`, the parent's) and revive (from `revive`, the parent's). `correct` is the check of
whoever has just inserted the child; it differs from a sweep's only in that it needs no marker.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.model.chain import BAD_ENDS, ENDS, NAMES, Clauses, Doc, Rules, State, Steps, Walk, World
from tests.model.search import Step


@dataclass(frozen=True)
class Walks:
    """The steps of everybody who follows a marker."""

    clauses: Clauses
    rules: Rules
    most: int

    def steps(self, world: World) -> Steps:
        """Yield every step of every walk, and every start of one that a marker asks for."""
        if len(world.walks) < self.most:
            for i, doc in enumerate(world.docs):
                yield from self.start(world, i, doc)
        for walk in sorted(set(world.walks)):
            if walk.job == "release":
                yield from self.release(world, walk)
            elif walk.job == "revive":
                yield from self.revive(world, walk)
            else:
                yield from self.check(world, walk)
            if world.budget.crashes:
                crashed = world.spend("crashes").finish(walk)
                yield Step(f"who was to {walk.job} {NAMES[walk.doc]} dies", crashed, owed=False)

    def start(self, world: World, i: int, doc: Doc) -> Steps:
        """Find a marked document and read it."""
        name = NAMES[i]
        if doc.unchecked:
            if self.clauses.child_first:
                walk = Walk("check", i, "child read", doc.state)
                yield Step(f"check: reads {name}, {doc.state}", world.begin(walk))
            else:
                walk = Walk("check", i, "parent only", parent=world.docs[i - 1].state)
                told = _awaited(world, i - 1)
                yield Step(f"check: reads {NAMES[i - 1]} before {name}, {walk.parent}", told.begin(walk))
        if doc.unreleased and doc.state in ENDS:
            walk = Walk("release", i, "read", doc.state)
            yield Step(f"release: reads {name}, {doc.state}", world.begin(walk))
        if doc.revive:
            yield Step(f"revive: reads {name}, {doc.state}", world.begin(Walk("revive", i, "read")))

    # ---- check: a child that may have missed its parent's end ------------------------------------

    def check(self, world: World, walk: Walk) -> Steps:
        """Set `awaited` on the parent, read it, correct the child: in this order."""
        above, job = NAMES[walk.doc - 1], walk.job
        parent = world.docs[walk.doc - 1]
        reads = f"{job}: reads {above}, {parent.state}"
        if walk.phase == "parent only":
            child = world.docs[walk.doc]
            read = walk._replace(phase="parent read", seen=child.state, current=True)
            yield Step(f"{job}: reads {NAMES[walk.doc]}, {child.state}", world.finish(walk).begin(read))
        elif walk.phase == "child read" and job == "check" and not self.clauses.sweep_sets_awaited:
            yield Step(reads, world.move(walk, "parent read", parent.state))
        elif walk.phase == "child read" and self.clauses.awaited_first:
            told = _awaited(world, walk.doc - 1)
            yield Step(f"{job}: sets `awaited` on {above}", told.move(walk, "parent told"))
        elif walk.phase == "child read":
            yield Step(reads, world.move(walk, "parent unaware", parent.state))
        elif walk.phase == "parent unaware":
            told = _awaited(world, walk.doc - 1).move(walk, "parent read", walk.parent)
            yield Step(f"{job}: sets `awaited` on {above}", told)
        elif walk.phase == "parent told":
            yield Step(reads, world.move(walk, "parent read", parent.state))
        else:
            yield self._correct(world, walk)

    def _correct(self, world: World, walk: Walk) -> Step[World]:
        """Write what the parent's state means for the child."""
        child, name = world.docs[walk.doc], NAMES[walk.doc]
        done = world.finish(walk)
        if child.state != walk.seen or (self.clauses.rev_filter and not walk.current):
            return Step(f"{walk.job}: {name} has changed since it was read", done)
        if child.state == "waiting":
            after = self._waiting(child, walk.parent)
        elif child.state == "upstream" and walk.parent not in BAD_ENDS:
            # It waits again, and is looked at again, rather than judged by what may be old.
            revive = child.awaited and self.clauses.check_revives
            after = self.rules.revived(child)._replace(unchecked=True, revive=revive)
        else:
            after = child._replace(unchecked=False)
        return Step(f"{walk.job}: {name} is {after.state}{_marks(after)}", done.write(walk.doc, after))

    def _waiting(self, child: Doc, parent: State) -> Doc:
        """Return what becomes of a waiting child whose parent was read in this state."""
        if self.rules.releases(parent):
            return self.rules.released(child)
        if parent in BAD_ENDS:
            return self.rules.failed_upstream(child)
        if parent == "absent":
            return self.rules.ended(child, "missing")._replace(unchecked=False)
        return child._replace(unchecked=False)

    # ---- release: the dependants of a task that has ended ----------------------------------------

    def release(self, world: World, walk: Walk) -> Steps:
        """Release or fail the waiting dependants, then clear the marker."""
        if walk.phase == "half":
            child = world.docs[walk.doc + 1]
            if child.state == "waiting" and not child.pending:
                world = world.write(walk.doc + 1, child._replace(state="ready"))
            yield Step(f"release: makes {NAMES[walk.doc + 1]} ready", world.move(walk, "released"))
        elif (walk.phase == "read") == self.clauses.release_first:
            yield self._release(world, walk)
        else:
            yield self._clear(world, walk)

    def _release(self, world: World, walk: Walk) -> Step[World]:
        """Apply the end that was read to whoever waits for it."""
        name, seen = NAMES[walk.doc], f"({NAMES[walk.doc]} was read {walk.seen})"
        on = world.move(walk, "released") if self.clauses.release_first else world.finish(walk)
        child = world.docs[walk.doc + 1]
        if child.state != "waiting" or not child.pending:
            return Step(f"release: nobody waits for {name} {seen}", on)
        if not self.rules.releases(walk.seen):
            after = self.rules.failed_upstream(child)
        elif self.clauses.release_at_once:
            after = self.rules.released(child)
        else:
            half = world.move(walk, "half").write(walk.doc + 1, child._replace(pending=False))
            return Step(f"release: takes {name} out of `pending` {seen}", half)
        text = f"release: {NAMES[walk.doc + 1]} is {after.state}{_marks(after)} {seen}"
        return Step(text, on.write(walk.doc + 1, after))

    def _clear(self, world: World, walk: Walk) -> Step[World]:
        """Clear `unreleased`, unless the task has ended anew since it was read."""
        doc, name = world.docs[walk.doc], NAMES[walk.doc]
        on = world.finish(walk) if self.clauses.release_first else world.move(walk, "cleared")
        same = doc.state in ENDS and doc.unreleased and (walk.current or not self.clauses.clear_pinned)
        if not same:
            return Step(f"release: {name} has changed since it was read", on)
        cleared = on.write(walk.doc, doc._replace(unreleased=False))
        return Step(f"release: clears `unreleased` of {name}", cleared)

    # ---- revive: the dependants of a task that was given another chance --------------------------

    def revive(self, world: World, walk: Walk) -> Steps:
        """Take the dependants back from `upstream`, then clear the marker."""
        doc, name = world.docs[walk.doc], NAMES[walk.doc]
        if walk.phase == "read":
            child = world.docs[walk.doc + 1]
            moved = world.move(walk, "revived")
            if child.state == "upstream":
                after = self.rules.revived(child)
                text = f"revive: {NAMES[walk.doc + 1]} is waiting{_marks(after)}"
                yield Step(text, moved.write(walk.doc + 1, after))
            else:
                yield Step(f"revive: nobody failed for {name}", moved)
        elif walk.current or not self.clauses.revive_pinned:
            cleared = world.finish(walk).write(walk.doc, doc._replace(revive=False))
            yield Step(f"revive: clears `revive` of {name}", cleared)
        else:
            yield Step(f"revive: {name} has changed since it was read", world.finish(walk))


def _awaited(world: World, i: int) -> World:
    """Set `awaited` on a document, whatever its state, if it is there at all."""
    if world.docs[i].state == "absent":
        return world
    return world.write(i, world.docs[i]._replace(awaited=True))


def _marks(doc: Doc) -> str:
    """Return the markers that stand on a document, for a trace."""
    names = ("unchecked", "unreleased", "revive")
    return "".join(f", {name}" for name in names if getattr(doc, name))
