"""What the queue promises, as a small pure model: who waits for whom, who holds what, which record came first.

It knows nothing of markers, batches and order of writes: it says what the store must have come to when all that
was left half done has been taken up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from pilot import lifecycle
from pilot.states import ENDED, GOOD, Outcome, State, check_move

Key = tuple[str, int]


@dataclass
class Task:
    """One task. While it has not been leased, what it is follows from its parents (`Model.state`)."""

    pending: set[str]
    waits: str
    retries: int
    own: State | None = None
    """State of its own making: leased, or ended by an attempt or a person. None: it waits or is ready."""
    attempt: int = 0
    tried: int = 0
    lost: int = 0
    cancel: bool = False
    token: str | None = None


@dataclass
class Model:
    """All tasks and records."""

    tasks: dict[str, Task] = field(default_factory=dict)
    records: dict[Key, Outcome] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    """Tasks that have been done: they must stay so."""

    def state(self, name: str) -> State:
        """Return what a task is when nothing is left half done."""
        task = self.tasks[name]
        if task.own is not None:
            return task.own
        ends = {parent: self.state(parent) for parent in task.pending if parent in self.tasks}
        verdict, _ = lifecycle.settle(sorted(task.pending), task.waits, ends)
        return {
            lifecycle.Verdict.READY: State.READY,
            lifecycle.Verdict.WAIT: State.WAITING,
            lifecycle.Verdict.UPSTREAM: State.FAILED,
            lifecycle.Verdict.MISSING: State.FAILED,
        }[verdict]

    def states(self) -> dict[str, State]:
        """Return what all tasks are."""
        return {name: self.state(name) for name in self.tasks}

    def lease(self, name: str, token: str) -> None:
        """Take a ready task."""
        task = self.tasks[name]
        assert self.state(name) is State.READY, f"{name} was leased, but is {self.state(name)}"
        task.own, task.token, task.pending = State.LEASED, token, set()
        task.attempt += 1

    def held(self, name: str, attempt: int, token: str) -> bool:
        """Say whether this attempt stands leased under this token."""
        task = self.tasks[name]
        return (task.own, task.attempt, task.token) == (State.LEASED, attempt, token)

    def give_back(self, keys: Iterable[Key], token: str) -> None:
        """Return attempts that have not begun."""
        for name, attempt in keys:
            if self.held(name, attempt, token):
                task = self.tasks[name]
                self._leave(task, State.CANCELLED if task.cancel else State.READY)

    def settle(self, key: Key, outcome: Outcome) -> Outcome:
        """Insert a record unless there is one; return what the record says."""
        return self.records.setdefault(key, outcome)

    def finish(self, key: Key, token: str) -> None:
        """Apply the record of an attempt, if it stands leased."""
        name, attempt = key
        if self.held(name, attempt, token):
            task = self.tasks[name]
            counters = lifecycle.Counters(task.tried, task.lost, task.retries, task.cancel)
            move = lifecycle.after_attempt(self.records[key], counters)
            task.tried, task.lost = move.tried, move.lost
            self._leave(task, move.state)
            if move.state is State.DONE:
                self.done.add(name)

    def _leave(self, task: Task, state: State) -> None:
        check_move(State.LEASED, state)
        task.own = None if state is State.READY else state
        task.token, task.cancel = None, False

    def reap(self, tokens: Iterable[str]) -> None:
        """End as `lost`, or as their records say, all attempts leased under tokens that are no live pool's."""
        for name, task in self.tasks.items():
            if task.own is State.LEASED and task.token in tokens:
                assert task.token is not None
                self.settle((name, task.attempt), Outcome.LOST)
                self.finish((name, task.attempt), task.token)

    def cancel(self, name: str, seen: State) -> None:
        """Cancel a task that the store shows as `seen`: what comes of its parents may not have reached it yet."""
        task = self.tasks[name]
        if seen in (State.WAITING, State.READY):
            assert task.own is None, f"{name} is {seen} in the store, but should be {task.own}"
            task.own = State.CANCELLED
        elif seen is State.LEASED:
            assert task.own is State.LEASED
            task.cancel = True

    def retry(self, name: str, seen: State) -> None:
        """Retry a task that the store shows as `seen`."""
        task = self.tasks[name]
        if seen in (State.FAILED, State.CANCELLED):
            assert task.own in (None, State.FAILED, State.CANCELLED), f"{name} is {seen}, but should be {task.own}"
            task.own = None
            task.tried = task.lost = 0

    def check(self) -> None:
        """Make sure that the model keeps its own promises."""
        for name, task in self.tasks.items():
            good = [n for (owner, n), outcome in self.records.items() if owner == name and outcome in GOOD]
            assert len(good) <= 1, f"{name} succeeded in attempts {good}"
            assert (task.own is State.DONE) == (name in self.done)
            assert task.own is None or task.own is State.LEASED or task.own in ENDED
