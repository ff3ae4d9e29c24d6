"""`pilot run`: a script, and a local pilot for as long as the script and what it submitted need one."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import click

from pilot import fleet, launch
from pilot.cli import queries, text
from pilot.cli.common import Command, Opened, now, opened, tell, waiting
from pilot.cli.control import Complaints
from pilot.cli.pilots import quote
from pilot.errors import PilotDied, StoreError
from pilot.executors.batch import local
from pilot.progress import bar
from pilot.states import State
from pilot.store import pilots

_LOOK_S = 1.0
"""How often the pilot is looked at."""
_STUCK_S = 5.0
"""Nothing moves for so long, and no pilot takes what is ready: it is not waited for any longer."""
_PATIENCE_S = 5.0
"""After so long it is said what the end of the pilot waits for."""
_END_S = 60.0
"""How long a pilot that runs nothing may take to end."""
_BURIAL_S = 15.0
"""How long the pool of a dead agent may take to end."""


@click.command(cls=Command, context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--slots", type=click.IntRange(1), metavar="N", help="Worker slots; default: as many as cores allow.")
@click.option("--cores-per-slot", type=click.IntRange(1), metavar="N", help="Cores of each slot; default: 1.")
@click.argument("script", type=click.Path(exists=True))
@click.argument("args", nargs=-1, type=click.UNPROCESSED, metavar="[ARG]...")
def run(slots: int | None, cores_per_slot: int | None, script: str, args: tuple[str, ...]) -> int:
    """Start a local pilot, run SCRIPT with this Python, wait for what it submitted, end the pilot.

    The exit code is the script's. After Ctrl-C, what has not run yet stays queued.
    """
    with opened() as project, _Signals() as signals:
        pilot = launch.start(project.config, slots=slots, slot_cores=cores_per_slot)
        runner = _Runner(project, pilot, signals)
        try:
            code = runner.run([sys.executable, script, *args])
        finally:
            runner.end_pilot()
        if signals.seen:
            runner.say_what_is_queued()
    return code


class _Signals:
    """Notes Ctrl-C and the like instead of dying of them; the script, in the same group, gets its own."""

    _CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.seen = 0
        """How many came."""
        self.last = 0
        self.forward: Callable[[int], None] | None = None
        """Called with every signal that only this process got."""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        for number in self._CAUGHT:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.seen += 1
        self.last = number
        if number != signal.SIGINT and self.forward is not None:
            self.forward(number)

    @property
    def exit_code(self) -> int:
        """Exit code of a process that the last of them ended."""
        return 128 + self.last


class _Runner:
    """One run: pilot, script, and what is left of the script's tasks."""

    def __init__(self, project: Opened, pilot: launch.Local, signals: _Signals) -> None:
        self._config, self._store = project
        self._pilot = pilot
        self._signals = signals
        self._complaints = Complaints(self._store)
        self._since = time.time_ns()
        self._until: int | None = None
        self._looked = 0.0
        self._starts = 1
        self._dead = False

    def run(self, argv: list[str]) -> int:
        """Do all but ending the pilot; return the exit code."""
        if not self._start_pilot():
            return self._signals.exit_code
        code = self._run_script(argv)
        if self._signals.seen:
            return code
        whole = self._finish()
        return self._signals.exit_code if self._signals.seen else code or (0 if whole else 1)

    # -- pilot ------------------------------------------------------------------------------------

    def _start_pilot(self) -> bool:
        """Wait until the pilot takes work; False if a signal came first.

        Raises:
            PilotDied: it cannot; its last words are on stderr.
        """
        try:
            with waiting(f"starting pilot {self._pilot.id}"):
                return launch.await_up(self._store, self._pilot, stopped=lambda: self._signals.seen > 0)
        except PilotDied:
            quote(self._pilot)
            raise

    def _look(self) -> list[str]:
        """Look at the pilot now and then, say what has happened to it, return what keeps tasks from starting."""
        if time.monotonic() - self._looked < _LOOK_S:
            return []
        self._looked = time.monotonic()
        if not self._pilot.alive and not self._dead:
            self._dead = True
            reason = "its agent died"
            with contextlib.suppress(StoreError):
                reason = launch.reason_of(self._store, self._pilot) or reason
            tell(f"pilot {self._pilot.id} has ended: {reason.splitlines()[0]}; `pilot up` starts another one")
            quote(self._pilot)
        elif self._pilot.starts > self._starts and not self._dead:
            self._starts = self._pilot.starts
            log = self._pilot.folder / f"pool-{self._starts - 1}.log"
            tell(f"the pool of pilot {self._pilot.id} died and was started again; what it said: {log}")
        try:
            return self._complaints.look()
        except StoreError as exc:
            tell(f"{exc}")
            return []

    def end_pilot(self) -> None:
        """Drain the pilot and wait for its end; what runs is finished, unless another Ctrl-C or a SIGTERM comes.

        A pilot that runs nothing and does not end is killed: what it held is run again by the next one.
        """
        pilot, seen, wish, said = self._pilot, self._signals.seen, "", False
        began = looked = idle_since = time.monotonic()
        with waiting(f"ending pilot {pilot.id}"):
            while pilot.alive:
                hurry = self._signals.seen > seen or self._signals.last in (signal.SIGTERM, signal.SIGHUP)
                before, wish = wish, "now" if hurry else "drain"
                if wish != before:
                    self._ask_to_end(wish)
                moment = time.monotonic()
                if moment - looked > _LOOK_S:
                    looked = moment
                    busy = 0 if wish == "now" else self._busy()
                    idle_since = moment if busy else idle_since
                    if busy and not said and (seen or moment - began > _PATIENCE_S):
                        said = True
                        tasks = text.count(busy, "running task")
                        tell(f"{tasks} will be finished; Ctrl-C again ends them (they will run again)")
                if self._signals.seen > seen + 1 or moment - idle_since > _END_S:
                    tell(f"pilot {pilot.id} did not end and is killed; what it held is run again by the next pilot")
                    pilot.kill()
                    break
                time.sleep(0.05)
        with contextlib.suppress(StoreError):
            self._bury()

    def _ask_to_end(self, wish: str) -> None:
        if wish == "drain":
            local.stop(self._pilot.pid, self._pilot.started)
            return
        try:
            pilots.drain(self._store, [self._pilot.id], now=True)
        except StoreError as exc:
            tell(str(exc))

    def _busy(self) -> int:
        """Return how many slots of the pilot run something, 1 if the store cannot tell."""
        try:
            return sum(int(pool.get("busy", 0)) for pool in pilots.pools(self._store, self._pilot.id))
        except StoreError:
            return 1

    def _bury(self) -> None:
        """If the agent died, end the pool that it may have left."""
        deadline = time.monotonic() + _BURIAL_S
        while time.monotonic() < deadline:
            views = [view for view in fleet.look(self._store, now(), limit=1000) if view.id == self._pilot.id]
            if not views or views[0].state not in ("dead", "lost") or not fleet.bury(self._store, views[0], now=True):
                return
            time.sleep(0.1)

    # -- script -----------------------------------------------------------------------------------

    def _run_script(self, argv: list[str]) -> int:
        """Run the script in this terminal and return its exit code."""
        self._since = time.time_ns()
        process = subprocess.Popen(argv)
        self._signals.forward = process.send_signal
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = process.wait(0.2)
                    break
                self._look()
        finally:
            self._signals.forward = None
        self._until = time.time_ns()
        return code if code >= 0 else 128 - code

    def _finish(self) -> bool:
        """Wait until all that the script submitted has ended; False if some of it cannot run here."""
        left = self._left()
        if not left:
            return True
        bad = sum(queries.ends(self._store, self._since, self._until).values())
        total, moved, pause = left, time.monotonic(), 0.05
        if not sys.stderr.isatty():
            tell(f"the script has ended; waiting for {text.count(left, 'task')} that it left")
        with bar("waiting for what the script left", total, shown_from=1) as advance:
            while left and not self._signals.seen:
                time.sleep(pause)
                causes = self._look()
                asked = time.monotonic()
                before, left = left, self._left()
                pause = max(0.2, 5 * (time.monotonic() - asked))  # with a million tasks, counting them takes a while
                advance(before - left)
                if before != left:
                    moved = time.monotonic()
                if causes and time.monotonic() - moved > _STUCK_S and not self._leased():
                    break
                if self._dead and not any(view.live for view in fleet.look(self._store, now(), live_only=True)):
                    break
        if self._signals.seen:
            return False
        failed = sum(queries.ends(self._store, self._since, self._until).values()) - bad
        if failed > 0:
            tell(f"{failed:,} of {text.count(total, 'task')} did not succeed; `pilot status` shows why")
        if left:
            tell(f"{text.count(left, 'task')} left in the queue; `pilot explain ID` says why, `pilot up` goes on")
        elif not failed and not sys.stderr.isatty():
            tell(f"all {total:,} are done" if total > 1 else "it is done")
        return not left

    def _left(self) -> int:
        return sum(queries.outstanding(self._store, self._since, self._until).values())

    def _leased(self) -> int:
        return queries.outstanding(self._store, self._since, self._until)[State.LEASED]

    def say_what_is_queued(self) -> None:
        """Say how to go on after a signal."""
        with contextlib.suppress(StoreError):
            count = sum(queries.outstanding(self._store).values())
            if count:
                how = "`pilot up` goes on with them, `pilot cancel --all` drops them"
                tell(f"interrupted; {text.count(count, 'task')} still queued: {how}")
            else:
                tell("interrupted; nothing is left in the queue")
