"""`pilot wait`, `pilot cancel`, `pilot retry` and `pilot invalidate`."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence

import click

from pilot import explain
from pilot.cli import facts, queries, text
from pilot.cli.common import Command, duration, emit, json_option, now, opened, tell
from pilot.cli.completion import tasks as complete_tasks
from pilot.errors import InvalidInput
from pilot.progress import bar
from pilot.states import ENDED, State
from pilot.store import caching, dependants, foreign
from pilot.store import tasks as store_tasks
from pilot.store.mongo import Store

_POLL_S = (0.05, 1.0)
_COMPLAIN_S = 5.0
_CHUNK = 5000

# -- wait -----------------------------------------------------------------------------------------


@click.command(cls=Command)
@click.argument("names", nargs=-1, metavar="[ID]...", shell_complete=complete_tasks)
@click.option("--timeout", callback=duration, metavar="T", help="Give up after so long; exit code 1.")
@json_option
def wait(names: tuple[str, ...], timeout: float | None, as_json: bool) -> int:
    """Wait until tasks (default: all that there are) have ended.

    Exit code 0 if all are done, 1 if one failed, was cancelled, or has not ended in time.
    """
    with opened() as project:
        store = project.store
        if names:
            ids = [store_tasks.resolve(store, name)["_id"] for name in names]
        else:
            ids = [task for batch in queries.ids(store, queries.UNENDED) for task in batch]
        states = await_end(store, ids, timeout)
    found = Counter(states.values())
    left = len(set(ids)) - sum(found[state] for state in ENDED)
    if as_json:
        emit({"tasks": len(set(ids)), **{state.value: found[state] for state in State}, "timed_out": left > 0})
    else:
        words = ", ".join(f"{found[state]:,} {state.value}" for state in State if found[state])
        click.echo(f"{text.count(len(set(ids)), 'task')}{': ' if words else ''}{words}")
    if left:
        tell(f"{text.count(left, 'task')} have not ended within {text.span(timeout or 0)}; `pilot explain ID` says why")
    return 0 if found[State.DONE] == len(set(ids)) else 1


def await_end(store: Store, ids: Sequence[str], timeout_s: float | None = None) -> dict[str, State]:
    """Wait for these tasks to end, with a bar on a terminal, and return their states.

    What keeps them from starting is said once on stderr: a wait is never silently in vain.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    states: dict[str, State] = {}
    left = list(dict.fromkeys(ids))
    complain = Complaints(store)
    pause, most = _POLL_S
    with bar("waiting", len(left), shown_from=1) as advance:
        while left:
            chunk = left[:_CHUNK]
            states |= queries.states_of(store, chunk)
            unended = [task for task in chunk if states.get(task) not in ENDED]
            left[:_CHUNK] = unended
            advance(len(chunk) - len(unended))
            if not left or (deadline is not None and time.monotonic() > deadline):
                break
            if not unended:
                continue
            complain.look()
            time.sleep(pause if deadline is None else min(pause, max(0.0, deadline - time.monotonic())))
            pause = min(pause * 1.3, most)
    return states | queries.states_of(store, left)


def _held_up(store: Store) -> list[str]:
    """Return what keeps ready tasks from starting, without asking batch systems: this is done every few seconds."""
    moment = now()
    return explain.held_up(
        store_tasks.ready_counts(store), facts.up(store, moment), facts.queued(store, moment, ask=False)
    )


class Complaints:
    """Says on stderr, once per cause, what keeps ready tasks from starting."""

    def __init__(self, store: Store, say: Callable[[str], None] = tell) -> None:
        self._store = store
        self._say = say
        self._said: set[str] = set()
        self._next = time.monotonic() + 1.0

    def look(self) -> list[str]:
        """Look every few seconds; return the causes found now."""
        if time.monotonic() < self._next:
            return []
        self._next = time.monotonic() + _COMPLAIN_S
        causes = _held_up(self._store)
        for cause in causes:
            kind = cause.partition(" ready ")[2]
            if kind not in self._said:
                self._said.add(kind)
                self._say(cause)
        return causes


# -- cancel and retry -----------------------------------------------------------------------------


@click.command(cls=Command)
@click.argument("names", nargs=-1, metavar="[ID]...", shell_complete=complete_tasks)
@click.option("--all", "every", is_flag=True, help="All tasks that have not ended.")
@click.option("--state", type=click.Choice([state.value for state in queries.UNENDED]), help="All tasks in this state.")
@click.option("--tag", metavar="T", help="With --all or --state: only those with this tag.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@click.pass_context
def cancel(
    ctx: click.Context, names: tuple[str, ...], every: bool, state: str | None, tag: str | None, yes: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Cancel what has not begun, stop what runs. What has ended stays as it is."""
    if bool(names) == (every or state is not None):
        raise click.UsageError("name tasks, or say --all or --state, not both", ctx)
    with opened() as project:
        store = project.store
        if names:
            ids = [store_tasks.resolve(store, name)["_id"] for name in names]
        else:
            states = queries.UNENDED if state is None else [State(state)]
            ids = [task for batch in queries.ids(store, states, tag) for task in batch]
            if ids and not yes:
                _confirm(f"cancel {text.count(len(ids), 'task')}?")
        before = queries.states_of(store, ids)
        for part in store_tasks.chunks(ids, 5000):
            store_tasks.cancel(store, part, now())
            dependants.release(store, part)
        after = queries.states_of(store, ids)
    ended = sum(1 for task in after if before[task] in ENDED)
    found = Counter(state for task, state in after.items() if before[task] not in ENDED)
    counts = {"cancelled": found[State.CANCELLED], "stopping": found[State.LEASED], "ended_before": ended}
    if as_json:
        emit(counts)
        return
    words = [f"{text.count(counts['cancelled'], 'task')} cancelled"]
    words += [f"{counts['stopping']:,} being stopped"] if counts["stopping"] else []
    words += [f"{ended:,} had ended already"] if ended else []
    click.echo(", ".join(words))


def _confirm(question: str) -> None:
    if not sys.stdin.isatty():
        raise InvalidInput(f"cannot ask `{question}` without a terminal: say --yes")
    click.confirm(question, abort=True, err=True)


@click.command(cls=Command)
@click.argument("names", nargs=-1, metavar="[ID]...", shell_complete=complete_tasks)
@click.option("--all", "state", type=click.Choice(["failed", "cancelled"]), help="All tasks in this state.")
@click.option("--tag", metavar="T", help="With --all: only those with this tag.")
@json_option
@click.pass_context
def retry(ctx: click.Context, names: tuple[str, ...], state: str | None, tag: str | None, as_json: bool) -> None:
    """Run failed or cancelled tasks again, and then what failed because of them."""
    if bool(names) == (state is not None):
        raise click.UsageError("name tasks, or say --all failed, not both", ctx)
    with opened() as project:
        store = project.store
        if names:
            docs = [store_tasks.resolve(store, name) for name in names]
            for doc in docs:
                foreign.refuse(doc)
                if doc["state"] not in (State.FAILED, State.CANCELLED):
                    raise InvalidInput(f"cannot retry task {doc['_id']}: it is {doc['state']}, not failed or cancelled")
            ids = [doc["_id"] for doc in docs]
        else:
            ids = [task for batch in queries.ids(store, [State(state or "")], tag, roots=True) for task in batch]
        count = sum(dependants.retry(store, part) for part in store_tasks.chunks(ids, 5000))
        causes = _held_up(store) if count else []
    if as_json:
        emit({"retried": count, "tasks": ids})
        return
    click.echo(f"{text.count(count, 'task')} to be run again")
    for cause in causes:
        tell(cause)


# -- invalidate -----------------------------------------------------------------------------------


@click.command(cls=Command)
@click.argument("names", nargs=-1, required=True, metavar="ID...", shell_complete=complete_tasks)
@click.option("--reason", default="", metavar="TEXT", help="Shown to whoever misses the result.")
@click.option("--undo", is_flag=True, help="Let the results be taken again.")
@json_option
def invalidate(names: tuple[str, ...], reason: str, undo: bool, as_json: bool) -> None:
    """Let results of tasks not be taken for equal tasks any more: those run, and say why.

    What was taken before stays as it is. Of a task that was cached itself, the result that it took is meant.
    """
    with opened() as project:
        ids = [store_tasks.resolve(project.store, name)["_id"] for name in names]
        made = caching.invalidate(project.store, ids, None if undo else reason, now())
    if as_json:
        emit({"invalid": not undo, "tasks": made})
        return
    shown = f"{', '.join(made[:3])}{' …' if len(made) > 3 else ''}"
    again = "can be taken again" if undo else "will not be taken again"
    click.echo(f"{text.count(len(made), 'result')} {again}: of {shown}")
