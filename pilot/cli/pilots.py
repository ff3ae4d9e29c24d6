"""`pilot up`, `pilot down` and `pilot pilots`."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from pilot import allocation, fleet, launch
from pilot.cli import text
from pilot.cli.common import (
    Command,
    Opened,
    Rows,
    console,
    duration,
    emit,
    escaped,
    json_option,
    now,
    opened,
    points,
    tell,
    waiting,
)
from pilot.cli.completion import pilots as complete_pilots
from pilot.config import find_project
from pilot.errors import InvalidInput, PilotDied, StoreUnavailable
from pilot.settings import PilotSettings
from pilot.site_files import load_site
from pilot.states import PilotState
from pilot.store import pilots as store_pilots
from pilot.store import scaling
from pilot.store.local import LocalServer
from pilot.store.mongo import Store

if TYPE_CHECKING:
    from rich.console import Console

_ASK_S = 10.0
"""How often a batch system is asked while somebody waits."""
_WIDE = 100
"""Columns of a terminal that has room for everything."""


@click.command(cls=Command)
@click.option("--slots", type=click.IntRange(1), metavar="N", help="Worker slots per node; default: as cores allow.")
@click.option("--cores-per-slot", type=click.IntRange(1), metavar="N", help="Cores of each slot; default: 1.")
@click.option("--walltime", callback=duration, metavar="T", help='End after so long: "90s", "30m", "2h".')
@click.option("--idle", callback=duration, metavar="T", help="End after so long without work.")
@click.option("--site", help="Which machine it is, or a site file; default: the project's.")
@click.option("--nodes", type=click.IntRange(1), metavar="N", help="Nodes, where there is a batch system; default: 1.")
@click.option(
    "--program-nodes", type=click.IntRange(0), default=0, metavar="N",
    help="So many of the nodes are for MPI programs only, where these cannot start beside a pool; default: none.",
)  # fmt: skip
@click.option("--queue", metavar="Q", help="Partition or queue; default: the site file's.")
@click.option("--account", metavar="A", help="What it is charged to; default: the site file's.")
@click.option("--store-in-pilot", is_flag=True, help="Run the store on the pilot's first node, not here.")
@click.option(
    "--timeout", callback=duration, metavar="T", default="60s", show_default=True, help="Give up after so long."
)
@json_option
def up(
    slots: int | None, cores_per_slot: int | None, walltime: float | None, idle: float | None, site: str | None,
    nodes: int | None, program_nodes: int, queue: str | None, account: str | None, store_in_pilot: bool,
    timeout: float, as_json: bool,
) -> None:  # fmt: skip
    """Start a pilot: on this machine, or where its site has a batch system.

    On this machine the command returns when the pilot takes work; with a batch system, when that has taken the
    job. It stays until `pilot down`, its --walltime or --idle.
    """
    config = find_project()
    machine = load_site(site or config.site, config)
    if machine.batch is None:
        if nodes or program_nodes or queue or account or store_in_pilot:
            raise click.UsageError(
                f"site {machine.name!r} has no batch system: --nodes, --program-nodes, --queue, --account and "
                "--store-in-pilot mean nothing"
            )
        _up_here(site, slots, cores_per_slot, walltime, idle, timeout, as_json)
        return
    settings = allocation.pilot_settings(
        config, machine, slots, cores_per_slot, walltime, idle, nodes or 1, program_nodes
    )  # fmt: skip
    inside = settings.store_in_pilot or store_in_pilot
    settings = replace(settings, store_in_pilot=inside)
    with opened() as project:
        if inside:
            _check_that_it_can_move(project)
        job = allocation.submit(project.store, config, machine, settings, queue or "", account or "")
    _say_queued(settings, job, as_json)
    if inside and LocalServer(config.store_folder).runs:
        tell(
            "the store still runs here, as another program uses it; a pilot that begins meanwhile waits two minutes "
            "for it, then uses it here if it can reach it"
        )


def _check_that_it_can_move(project: Opened) -> None:
    """Make sure that nobody uses the store where it is, before it moves into a pilot."""
    if not project.config.embedded:
        raise InvalidInput("--store-in-pilot moves the embedded server; this project's store is a server of your own")
    live = [view.id for view in fleet.look(project.store, now(), live_only=True) if view.live]
    if live:
        raise InvalidInput(f"the store cannot move into a pilot while others use it: {', '.join(live)}; end them first")


def _up_here(
    site: str | None, slots: int | None, cores_per_slot: int | None, walltime: float | None, idle: float | None,
    timeout: float, as_json: bool,
) -> None:  # fmt: skip
    """Start a pilot on this machine, and wait until it takes work."""
    with opened() as project:
        pilot = launch.start(
            project.config, site=site, slots=slots, slot_cores=cores_per_slot, walltime_s=walltime, idle_s=idle
        )
        try:
            with waiting(f"starting pilot {pilot.id}"):
                launch.await_up(project.store, pilot, timeout)
        except PilotDied:
            quote(pilot)
            raise
        except KeyboardInterrupt:
            store_pilots.drain(project.store, [pilot.id], now=True)
            tell(f"pilot {pilot.id} was starting; it has been told to end")
            raise
    if as_json:
        emit({"pilot": pilot.id, "slots": pilot.slots, "cores_per_slot": pilot.slot_cores, "folder": pilot.folder})
        return
    each = "" if pilot.slot_cores == 1 else f" of {pilot.slot_cores} cores"
    until = "" if walltime is None else f", for {text.span(walltime)}"
    out = console()
    out.print(f"pilot [bold]{pilot.id}[/] is up: {text.count(pilot.slots, 'slot')}{each}{until}")
    out.print("[dim]`pilot status` shows what it does, `pilot down` ends it[/]")


def _say_queued(settings: PilotSettings, job: str, as_json: bool) -> None:
    each, nodes, apart = settings.slots, settings.pool_nodes, settings.program_nodes
    if as_json:
        emit(
            {"pilot": settings.pilot, "job": job, "nodes": settings.nodes, "program_nodes": apart,
             "slots": each * nodes, "cores_per_slot": settings.slot_cores}
        )  # fmt: skip
        return
    out = console()
    size = f"{text.count(nodes, 'node')} with {text.count(each, 'slot')}{' each' if nodes > 1 else ''}"
    size += f" and {text.count(apart, 'program node')}" if apart else ""
    out.print(
        f"pilot [bold]{settings.pilot}[/] is in the queue as job {escaped(job)}: {size}, "
        f"for {text.span(settings.walltime_s or 0)}"
    )
    if settings.store_in_pilot:
        out.print("[dim]the store will run inside of it; until then, what needs it starts it here, and stops it[/]")
    out.print("[dim]`pilot pilots` shows what it waits for, `pilot down` takes it back[/]")


def quote(pilot: launch.Local) -> None:
    """Write a pilot's last words to stderr."""
    lines = pilot.last_words()
    if lines:
        sys.stderr.write(f"last words of pilot {pilot.id}:\n")
        for line in lines:
            sys.stderr.write(f"  | {line}\n")


# -- down -----------------------------------------------------------------------------------------


@click.command(cls=Command)
@click.argument("names", nargs=-1, metavar="[PILOT]...", shell_complete=complete_pilots)
@click.option("--now", "at_once", is_flag=True, help="End what runs too; it is run again by the next pilot.")
@click.option(
    "--timeout", callback=duration, metavar="T", default="2m", show_default=True, help="Wait for their end so long."
)
def down(names: tuple[str, ...], at_once: bool, timeout: float) -> int:
    """Let pilots (default: all) finish what they run, and end; wait until they have.

    Exit code 1 if one has not ended in time: it will, when its tasks have. With --now it is killed then.
    """
    with opened() as project:
        store = project.store
        views = fleet.chosen(store, names, now()) if names else fleet.look(store, now(), live_only=True)
        wanted = {view.id for view in views if view.ended is None}
        for view in views:
            if view.ended is not None:
                click.echo(f"{view.id} {view.state} {text.age(view.ended, now())} ago")
        if not wanted:
            if not names:
                click.echo("no pilot is up")
            return 0
        fleet.cancel(store, [view for view in views if view.state == PilotState.STARTING and view.batch])
        store_pilots.drain(store, wanted, now=at_once)
        inside = LocalServer(project.config.store_folder).inside if project.config.embedded else ""
        try:
            left = _await_end(store, wanted, at_once, timeout)
        except StoreUnavailable:
            if inside not in wanted:
                raise
            click.echo(f"{inside} ended, and took the store with it, which ran inside; what needs it starts it here")
            return 0
        if at_once:
            left = [view for view in left if not _killed(store, view)]
        for view in left:
            doing = f"still runs {text.count(view.busy, 'task')}" if view.busy else f"is still {view.state}"
            tell(f"{view.id} {doing} after {text.span(timeout)}; it ends after that (`pilot down --now` ends it now)")
    return 1 if left else 0


def _await_end(store: Store, wanted: set[str], at_once: bool, timeout_s: float) -> list[fleet.View]:
    """Wait for pilots to end, and bury those whose agents have died here; return those that are left."""
    deadline = time.monotonic() + timeout_s
    left = set(wanted)
    asked = -_ASK_S
    pools_of: dict[str, fleet.View] = {}
    with waiting(f"waiting for {', '.join(sorted(left))} to end"):
        while True:
            ask = time.monotonic() - asked >= _ASK_S
            asked = time.monotonic() if ask else asked
            there = fleet.look(store, now(), limit=1000, ask=ask)
            views = {view.id: view for view in there if view.id in wanted}
            for name in sorted(left):
                view = views.get(name)
                if view is not None and view.state == "dead":
                    pools_of[name] = view
                if name in pools_of and fleet.bury(store, pools_of[name], at_once):
                    continue
                if view is None or not view.live:
                    left.discard(name)
                    _say_end(view, name, name in pools_of)
            if not left or time.monotonic() > deadline:
                return [views[name] for name in sorted(left) if name in views]
            time.sleep(0.2)


def _killed(store: Store, view: fleet.View) -> bool:
    """Kill a pilot that has not ended when told to end at once, if it runs on this machine."""
    if not fleet.kill(store, view):
        return False
    click.echo(f"{view.id} did not end by itself and was killed; what it held is run again by the next pilot")
    return True


def _say_end(view: fleet.View | None, name: str, dead: bool) -> None:
    if view is not None and view.state == "silent":
        tell(f"{name} has not been heard of for {text.span(view.heartbeat_s or 0)}; if it lives, it will end")
    elif dead:
        click.echo(f"{name} lost: its agent had died; what it held goes back to the queue when a pilot is up")
    else:
        click.echo(f"{name} ended")


# -- list -----------------------------------------------------------------------------------------


@click.command(cls=Command)
@click.option("--live", is_flag=True, help="Only those that are up.")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, metavar="N", help="At most so many.")
@json_option
def pilots(live: bool, limit: int, as_json: bool) -> None:
    """List pilots, newest first."""
    with opened() as project:
        views = fleet.look(project.store, now(), live_only=live, limit=limit)
        resting = paused(project.store)
    if as_json:
        emit([view.document() for view in views])
    elif not views:
        click.echo("no pilot is up; `pilot up` starts one" if live else "no pilot yet; `pilot up` starts one")
    else:
        print_pilots(console(), views, reasons=True)
    if not as_json:
        points(console(), resting)


def paused(store: Store) -> list[str]:
    """Return for which sites no pilots are asked, why, and what to do."""
    return [
        f"no pilots are asked for at site {doc['_id']}: {text.line(doc['paused']['reason'], 500)}; "
        f"`pilot scale --resume --site {doc['given']}` goes on"
        for doc in scaling.paused(store)
    ]


def print_pilots(out: Console, views: Sequence[fleet.View], reasons: bool = False) -> None:
    """Print a table of pilots; a narrow terminal gets fewer columns."""
    moment = now()
    wide = out.width >= _WIDE
    batch = any(view.batch for view in views)
    columns = ["pilot", *(["job"] if batch else []), "state", *(["site"] if wide else []), "host"]
    columns += [*(["nodes"] if batch else []), "slots", "busy", "rate", "heartbeat"]
    columns += [*(["age"] if wide else []), "ends", *(["why"] if reasons else [])]
    rows = Rows(*columns, right=("nodes", "slots", "busy"))
    for view in views:
        live = view.live or view.state in ("silent", "dead")
        cells = {
            "pilot": f"[bold]{view.id}[/]",
            "job": escaped(view.job or ""),
            "state": state(view),
            "site": escaped(view.site),
            "host": escaped(text.line(view.host, 24)),
            "nodes": str(view.nodes),
            "slots": str(view.slots) + (f" × {view.slot_cores}" if view.slot_cores > 1 else ""),
            "busy": str(view.busy) if live else "",
            "rate": text.rate(view.rate) if live and view.rate else "",
            "heartbeat": heartbeat(view),
            "age": text.age(view.started, moment),
            "ends": ends(view),
            "why": escaped(text.line(view.reason, 200)),
        }
        rows.add(*(cells[column] for column in columns))
    rows.print(out)


def state(view: fleet.View) -> str:
    """Return a pilot's state with its colour; that of its job while it waits for nodes."""
    if view.state == PilotState.STARTING and view.queue:
        return text.styled(view.queue)
    if view.state == "running" and not view.up:
        return text.styled("starting")
    return text.styled("draining" if view.state == "running" and view.drain else view.state)


def heartbeat(view: fleet.View) -> str:
    """Return how old its last sign of life is; red if that is too old."""
    if view.heartbeat_s is None or view.state == PilotState.STARTING:
        return ""
    old = f"{text.span(max(1.0, view.heartbeat_s))} ago"
    return f"[red]{old}[/]" if view.state in ("silent", "dead") else old


def ends(view: fleet.View) -> str:
    """Return when it will end or has ended."""
    if view.ended is not None:
        return f"{text.age(view.ended, now())} ago"
    return f"in {text.span(max(0.0, (view.end_at - now()).total_seconds()))}" if view.end_at is not None else ""
