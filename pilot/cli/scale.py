"""`pilot scale`: ask for pilots by what waits."""

from __future__ import annotations

import json
import signal
import threading
from typing import TYPE_CHECKING, Any

import click

from pilot import scaler
from pilot.cli import text
from pilot.cli.common import Command, duration, json_option, now, opened
from pilot.errors import InvalidInput
from pilot.scaling import WALLTIME_S, Wishes
from pilot.site_files import load_site
from pilot.store import scaling

if TYPE_CHECKING:
    from pilot.scaler import Round


def _nodes(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int | None]:
    """Read ``2``, ``1..8`` or ``2..``."""
    first, dots, last = (value or "1..").partition("..")
    fewest, most = first or "1", (last if dots else first) or "0"
    if not (fewest.isdecimal() and most.isdecimal() and int(fewest) and (not int(most) or int(fewest) <= int(most))):
        raise click.UsageError(f"{param.opts[0]} {value!r} is not a range of nodes; write e.g. 4, 1..8 or 2..", ctx)
    return int(fewest), int(most) or None


@click.command(cls=Command)
@click.option("--site", metavar="S", help="Whose pilots; default: the project's site.")
@click.option(
    "--min", "least", type=click.IntRange(0), default=0, show_default=True, metavar="N",
    help="So many pilots are there even if nothing waits.",
)  # fmt: skip
@click.option(
    "--max", "most", type=click.IntRange(0), default=10, show_default=True, metavar="N",
    help="Most pilots of the scaler at this site at a time.",
)  # fmt: skip
@click.option("--total", type=click.IntRange(0), metavar="N", help="Most of the project's scalers at all sites.")
@click.option(
    "--nodes", callback=_nodes, metavar="A..B",
    help="Nodes of a pilot: as many as a task needs, at least A; up to B if what waits fills them.",
)  # fmt: skip
@click.option(
    "--walltime", callback=duration, metavar="T", default=f"{WALLTIME_S / 3600:g}h", show_default=True,
    help="Of a pilot; longer if a task that waits needs it.",
)  # fmt: skip
@click.option(
    "--idle", callback=duration, metavar="T", default=f"{scaler.IDLE_S / 60:g}m", show_default=True,
    help="A pilot ends itself after so long without work.",
)  # fmt: skip
@click.option("--queue", metavar="Q", help="Partition or queue; default: the site file's.")
@click.option("--account", metavar="A", help="What it is charged to; default: the site file's.")
@click.option(
    "--interval", callback=duration, metavar="T", default="30s", show_default=True, help="Between two rounds."
)
@click.option("--once", is_flag=True, help="Do one round, as for cron.")
@click.option("--resume", is_flag=True, help="Lift the pause of the site's scaler, and do nothing else.")
@json_option
def scale(
    site: str | None, least: int, most: int, total: int | None, nodes: tuple[int, int | None], walltime: float,
    idle: float, queue: str | None, account: str | None, interval: float, once: bool, resume: bool, as_json: bool,
) -> int:  # fmt: skip
    """Ask for pilots by what waits, until Ctrl-C; pilots without work end themselves.

    A line is printed when something changes. The exit code is 1 if the last round found the scaler paused, or its
    pilot was refused. All that is known is in the store: end it at any time, or run it with --once from cron.
    """
    if least > most:
        raise click.UsageError(f"--min {least} is more than --max {most}")
    with opened() as project:
        given = site or project.config.site
        machine = load_site(given, project.config)
        if machine.batch is None and (queue or account):
            raise click.UsageError(f"site {machine.name!r} has no batch system: --queue and --account mean nothing")
        if machine.batch is not None and machine.reach.in_pilot and project.config.embedded:
            raise InvalidInput(
                f"the store of site {machine.name!r} runs inside of a pilot, and only one can have it: start that with "
                "`pilot up`, or use a server of your own (`pilot init --store`)"
            )
        if resume:
            return _resume(scaling.resume(project.store, machine.name), machine.name, as_json)
        wishes = Wishes(least, most, total, nodes, walltime)
        asker = scaler.Scaler(project.store, project.config, machine, wishes, idle, given, queue or "", account or "")
        teller = _Teller(machine.name, as_json)
        if once:
            last = asker.round()
            teller.tell(last)
        else:
            stop = threading.Event()
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: stop.set())
            last = scaler.run(asker, interval, teller.tell, stop)
    return 0 if last.well else 1


def _resume(paused: dict[str, Any] | None, site: str, as_json: bool) -> int:
    if as_json:
        click.echo(text.as_json({"site": site, "paused": paused}))
    elif paused is None:
        click.echo(f"the scaler of site {site} was not paused")
    else:
        click.echo(f"the scaler of site {site} goes on; it was paused: {text.line(paused['reason'], 500)}")
    return 0


class _Teller:
    """Prints a round if it is not like the one before."""

    def __init__(self, site: str, as_json: bool) -> None:
        self._site = site
        self._json = as_json
        self._last = ""

    def tell(self, done: Round) -> None:
        """Print it."""
        if self._json:
            self._print(json.dumps(text.plain(_document(done, self._site)), ensure_ascii=False), "")
        else:
            self._print(_sentence(done), f"{now().astimezone():%H:%M:%S} ")

    def _print(self, line: str, before: str) -> None:
        if line != self._last:
            self._last = line
            click.echo(before + line)


def _document(done: Round, site: str) -> dict[str, Any]:
    return {"site": site, **done._asdict(), "asked": [one._asdict() for one in done.asked]}


def _sentence(done: Round) -> str:
    parts = [done.why, f"{text.count(done.up, 'pilot')} up, {done.queued} in the queue"]
    for one in done.asked:
        job = f" as job {one.job}" if one.job else ""
        parts.append(f"asked for {one.pilot}{job}: {text.count(one.nodes, 'node')} for {text.span(one.walltime_s)}")
    if done.trouble and done.trouble not in done.why:
        parts.append(text.line(done.trouble, 500))
    parts += [f"no pilot for {done.ready[name]:,} of class {name}: {why}" for name, why in done.never.items()]
    return "; ".join(parts)
