"""`pilot status`: the project at a glance."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import click

from pilot import explain, fleet
from pilot.cli import facts, queries, text
from pilot.cli import store as store_cli
from pilot.cli.common import Command, Opened, Rows, console, emit, escaped, json_option, now, opened, points
from pilot.cli.pilots import paused, print_pilots
from pilot.states import State
from pilot.store import caching, spool, tasks

_PROBLEMS = 5
_BAR = 48
_ENDED_SHOWN_S = 3600.0
"""A pilot that ended without being asked is worth mentioning for so long."""


@dataclass
class _Overview:
    """All that is shown."""

    opened: Opened
    at: datetime
    store: dict[str, Any]
    counts: dict[State, int]
    pilots: list[fleet.View]
    problems: list[dict[str, Any]]
    errors: dict[str, str]
    upstream: int
    spool: dict[str, int]
    held_up: list[str]
    paused: list[str]
    cache: caching.Tally

    @property
    def live(self) -> list[fleet.View]:
        """The pilots that are up or should be."""
        return [view for view in self.pilots if view.live or view.state in ("silent", "dead")]

    @property
    def rate(self) -> float:
        """Tasks ended per second, over all pilots."""
        return sum(view.rate for view in self.live)


@click.command(cls=Command)
@json_option
def status(as_json: bool) -> None:
    """Show project, store, tasks, pilots and problems, and what to do next."""
    with opened() as project:
        found = _look(project)
    if as_json:
        emit(_document(found))
    else:
        _print(found)


def _look(project: Opened) -> _Overview:
    store, moment = project.store, now()
    counts = tasks.counts(store)
    problems = queries.problems(store, _PROBLEMS) if counts[State.FAILED] else []
    return _Overview(
        project, moment, store_cli.describe(project.config), counts, fleet.look(store, moment, limit=50), problems,
        queries.errors(store, problems), queries.failed_upstream(store) if problems else 0,
        spool.waiting(project.config.spool_folder), explain.held_up(tasks.ready_counts(store), facts.up(store, moment)),
        paused(store), caching.tally(store),
    )  # fmt: skip


def _document(found: _Overview) -> dict[str, Any]:
    config = found.opened.config
    return {
        "project": {"name": config.name, "id": config.id, "root": config.root},
        "store": found.store,
        "tasks": {state.value: found.counts[state] for state in State},
        "rate_per_s": found.rate,
        "cache": found.cache._asdict(),
        "pilots": [view.document() for view in found.live],
        "problems": [
            {"task": doc["_id"], "name": doc["name"], "error": found.errors.get(doc["_id"]), "ended": doc.get("ended")}
            for doc in found.problems
        ],
        "failed_upstream": found.upstream,
        "spool": found.spool,
        "hints": _hints(found),
    }


# -- printing -------------------------------------------------------------------------------------


def _print(found: _Overview) -> None:
    out = console()
    config = found.opened.config
    rows = Rows("", "")
    rows.add("project", f"[bold]{escaped(config.name)}[/]  [dim]{escaped(config.root)}[/]")
    rows.add("store", escaped(store_cli.sentence(found.store)))
    words, bar = _tasks(found)
    rows.add("tasks", words)
    if bar:
        rows.add("", bar)
    if any(found.cache):
        rows.add("cache", _cache(found.cache))
    if found.spool:
        count = sum(found.spool.values())
        batches = "1 batch of results waits" if count == 1 else f"{count:,} batches of results wait"
        rows.add("spool", f"[yellow]{batches} for the store[/]")
    rows.print(out)
    if found.live:
        out.print()
        print_pilots(out, found.live)
    died = [view for view in found.pilots if _died(view, found.at)]
    for view in died[:3]:
        first = view.reason.splitlines()[0] if view.reason else view.state
        out.print(
            f"[red]pilot {view.id} ended {text.age(view.ended or view.started, found.at)} ago[/]: {escaped(first)}"
        )
    if found.problems:
        out.print()
        _print_problems(out, found)
    hints = _hints(found)
    if hints:
        out.print()
    points(out, hints)


def _cache(tally: caching.Tally) -> str:
    asked = tally.hits + tally.misses
    words = f"{tally.hits:,} of {asked:,} attempts ({tally.hits / asked:.0%}) took an earlier result"
    return f"{words}; that saved {text.span(tally.saved_s)}"


def _died(view: fleet.View, at: datetime) -> bool:
    if view.ended is None or (at - view.ended).total_seconds() > _ENDED_SHOWN_S:
        return False
    return view.state == "lost" or view.reason.startswith(("its pool died", "cannot start"))


def _tasks(found: _Overview) -> tuple[str, str]:
    """Return the numbers, and a bar of them."""
    total = sum(found.counts.values())
    if not total:
        return "none yet", ""
    order = (State.DONE, State.LEASED, State.READY, State.WAITING, State.CANCELLED, State.FAILED)
    words = [f"[{text.STYLES[s]}]{found.counts[s]:,} {s.value}[/]" for s in order if found.counts[s]]
    rate = f"   [dim]{text.rate(found.rate)}[/]" if found.rate else ""
    bar = "".join(f"[{text.STYLES[s]}]{'━' * width}[/]" for s, width in _widths(found.counts, order).items())
    return f"{total:,}: {', '.join(words)}{rate}", bar


def _widths(counts: dict[State, int], order: tuple[State, ...]) -> dict[State, int]:
    """Share the bar's characters among the states; none that has a task goes without."""
    total = sum(counts.values())
    widths = {state: max(1, counts[state] * _BAR // total) for state in order if counts[state]}
    widest = max(widths, key=lambda state: widths[state])
    widths[widest] += _BAR - sum(widths.values())
    return widths


def _print_problems(out: Any, found: _Overview) -> None:
    own = max(len(found.problems), found.counts[State.FAILED] - found.upstream)
    title = (
        f"[red]failed[/] [dim]first {len(found.problems)} of {own:,}[/]"
        if own > len(found.problems)
        else "[red]failed[/]"
    )
    out.print(f"{title}" + (f"[dim], and {found.upstream:,} more because of them[/]" if found.upstream else ""))
    rows = Rows("", "", "", "")
    for doc in found.problems:
        ended = f"{text.age(doc['ended'], found.at)} ago" if doc.get("ended") else ""
        error = escaped(text.line(found.errors.get(doc["_id"], ""), 200))
        rows.add(f"  [bold]{doc['_id']}[/]", escaped(text.line(doc["name"], 24)), f"[dim]{ended}[/]", error)
    rows.print(out)


def _hints(found: _Overview) -> list[str]:
    """Return what to do next, most urgent first."""
    hints = [*found.held_up, *found.paused]
    for view in found.live:
        if view.state == "dead":
            hints.append(f"the agent of pilot {view.id} died: `pilot down {view.id}` clears it away")
        elif view.state == "silent":
            old = text.span(view.heartbeat_s or 0)
            hints.append(f"pilot {view.id} on {view.host} has not been heard of for {old}: is it frozen, or cut off?")
    if found.spool:
        hints.append("the next pilot that starts writes the results that wait")
    if found.problems:
        hints.append(
            f"`pilot show {found.problems[0]['_id']}` tells all of a failure, `pilot retry --all failed` tries again"
        )
    if not sum(found.counts.values()):
        hints.append(
            "`pilot run SCRIPT` runs a Python script with a pilot; `pilot submit -- COMMAND` submits a command"
        )
    elif found.counts[State.LEASED] and not found.live:
        hints.append("what is leased by pilots that died goes back to the queue when one is up: `pilot up`")
    return hints
