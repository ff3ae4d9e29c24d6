"""A project of its own with a running system around it: embedded server, agents, pools; and eyes and hands for tests.

Processes are found by what `/proc` says of those that bear ``PILOT_POOL`` of a pilot started here, and are
killed one by one, by number.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import psutil

import pilot
from pilot import signing
from pilot.config import ProjectConfig, create_project
from pilot.model import official_record
from pilot.settings import PilotSettings, new_pilot_id
from pilot.states import GOOD, State
from pilot.store import access, invariants, mongod
from pilot.store.local import LocalServer
from pilot.store.mongo import Store
from pilot.store.objects import Objects
from pilot.verify import Audit

T = TypeVar("T")

LAUNCHER = ("mpiexec", "--bind-to", "none", "-n", "{ranks}")
REPOSITORY = Path(__file__).parent.parent

LONG_S = 60.0
"""Deadline of what takes a second or two on an idle machine: this one has other work too."""


def wait_until(
    condition: Callable[[], T], deadline_s: float, what: str, last: Callable[[], object] | None = None,
    pause_s: float = 0.02,
) -> T:  # fmt: skip
    """Return the first true value of `condition`; on time-out say what was waited for and what was seen last.

    Args:
        what: stands after "waited 60 s until".
        last: asked for more at the time-out.
        pause_s: between two looks; more where a look costs a process.
    """
    began = time.monotonic()
    while not (seen := condition()):
        if time.monotonic() - began > deadline_s:
            more = "" if last is None else f"\n{last()}"
            raise AssertionError(f"waited {deadline_s:g} s until {what}; seen last: {seen!r}{more}")
        time.sleep(pause_s)
    return seen


@dataclass(frozen=True)
class Seen:
    """One process of a pool."""

    pid: int
    role: str
    """``launcher``, ``rank`` or ``child``."""
    rank: int
    """Of a rank, or of the slot whose child it is; -1 of a launcher."""


def processes(variable: str) -> list[Seen]:
    """Return what runs with an environment in which ``PILOT_POOL`` begins with `variable`; no zombies."""
    wanted = b"PILOT_POOL=" + variable.encode()
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error, IndexError, ValueError):
            environ = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
            if not any(entry.startswith(wanted) for entry in environ) or process.status() == psutil.STATUS_ZOMBIE:
                continue
            argv = process.cmdline()
            ranks = [entry.partition(b"=")[2] for entry in environ if entry.startswith(b"PMI_RANK=")]
            if "--child" in argv:
                found.append(Seen(process.pid, "child", int(argv[argv.index("--child") + 2])))
            elif ranks and "pilot.pool_main" in argv:
                found.append(Seen(process.pid, "rank", int(ranks[0])))
            else:
                found.append(Seen(process.pid, "launcher", -1))
    return found


def kill(pid: int, number: int = signal.SIGKILL) -> bool:
    """Send a signal; return whether the process was there."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


@dataclass
class Pilot:
    """One agent that was started here, with its pools."""

    config: ProjectConfig
    settings: PilotSettings
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        folder = self.config.pilot_folder(self.id)
        folder.mkdir(parents=True)
        self.settings.write(folder / "settings.json")
        argv = [sys.executable, "-P", "-m", "pilot.agent", str(folder / "settings.json")]
        with (folder / "agent.out").open("ab") as output:
            self.process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=self.config.root,
                start_new_session=True,
            )  # fmt: skip

    @property
    def id(self) -> str:
        """The pilot's id."""
        return self.settings.pilot

    def seen(self, role: str, rank: int | None = None) -> list[int]:
        """Return the processes of a role, of one rank or of all."""
        return [one.pid for one in processes(f"{self.id}.") if one.role == role and rank in (None, one.rank)]

    def rank(self, number: int, deadline_s: float = LONG_S) -> int:
        """Return the process of one rank, waiting for it."""
        return wait_until(lambda: self.seen("rank", number), deadline_s, f"rank {number} is up", self.log)[0]

    def child(self, slot: int, deadline_s: float = LONG_S) -> int:
        """Return the child of one slot, waiting for it."""
        return wait_until(lambda: self.seen("child", slot), deadline_s, f"slot {slot} has a child", self.log)[0]

    def tree(self) -> list[int]:
        """Return all processes, agent first."""
        return [self.process.pid, *(one.pid for one in processes(f"{self.id}."))]

    def signal(self, number: int) -> None:
        """Send the agent a signal."""
        self.process.send_signal(number)

    def freeze(self) -> list[int]:
        """Stop the agent and all it has started; return whom to wake."""
        frozen: list[int] = []
        while new := [pid for pid in self.tree() if pid not in frozen]:  # until no new ones appear
            frozen += [pid for pid in new if kill(pid, signal.SIGSTOP)]
        return frozen

    def wait(self, deadline_s: float = LONG_S) -> int:
        """Wait for the agent's end and return its exit code."""
        try:
            return self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"pilot {self.id} has not ended in {deadline_s:g} s\n{self.log()}") from None

    def gone(self, deadline_s: float = LONG_S) -> None:
        """Wait until none of its processes is left."""
        wait_until(lambda: not processes(f"{self.id}."), deadline_s, f"pilot {self.id} has no process", self.log)

    def log(self, lines: int = 60) -> str:
        """Return the last lines of all its logs."""
        text = []
        for path in sorted(self.config.pilot_folder(self.id).glob("*.*")):
            if path.suffix in (".log", ".out"):
                last = path.read_text(errors="replace").splitlines()[-lines:]
                text += [f"--- {path.name}", *last]
        return "\n".join(text)

    def words(self) -> str:
        """Return all that agent and pools have logged."""
        return self.log(1_000_000)

    def kill(self) -> None:
        """End everything of it, whatever state it is in."""
        kill(self.process.pid)
        self.process.wait(10)
        for _ in range(100):
            left = processes(f"{self.id}.")
            if not left:
                return
            for one in left:
                kill(one.pid)
            time.sleep(0.02)
        raise AssertionError(f"cannot kill {processes(f'{self.id}.')} of pilot {self.id}")


class Rig:
    """A project in `root`. Use as a context manager: at its end everything that was started has been killed."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.config = create_project(root)
        signing.create_key(self.config.key_file)
        self.server = LocalServer(self.config.store_folder, cache_gb=0.25)
        self.pilots: list[Pilot] = []
        self._stores = contextlib.ExitStack()
        self._store: Store | None = None

    def __enter__(self) -> Self:
        try:
            self.server.start()
            access.create(self.config)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            for one in self.pilots:
                error.add_note(f"=== pilot {one.id}, exit code {one.process.poll()}\n{one.log()}")
        self.close()

    def close(self) -> None:
        """Kill the pilots and stop the server."""
        for one in self.pilots:
            one.kill()
        self._stores.close()
        self.kill_server()

    # -- parts ------------------------------------------------------------------------------------

    def start(self, slots: int = 2, **settings: Any) -> Pilot:
        """Start a pilot with short heartbeats; `settings` are fields of `PilotSettings`."""
        quick: dict[str, Any] = {"launcher": LAUNCHER, "beat_s": 0.3, "ttl_s": 3.0, "restarts_s": (0.1,) * 30}
        told = PilotSettings(
            str(self.config.root), new_pilot_id(), "local", slots=slots, slot_cores=1, **{**quick, **settings}
        )
        self.pilots.append(Pilot(self.config, told))
        return self.pilots[-1]

    def open(self) -> pilot.Project:
        """Return the project as a user's program opens it."""
        return pilot.open(self.config.root)

    @property
    def store(self) -> Store:
        """The database, for looking at."""
        if self._store is None:
            self._store = self._stores.enter_context(access.store_of(self.config, start=False, timeout_s=10.0))
        return self._store

    def server_pid(self) -> int | None:
        """Return the process of the embedded server, if it runs."""
        process = mongod.running(self.config.store_folder / "db")
        return None if process is None else process.pid

    def kill_server(self) -> None:
        """SIGKILL the server and wait for its end."""
        pid = self.server_pid()
        if pid is not None:
            kill(pid, signal.SIGCONT)
            kill(pid)
            wait_until(lambda: not psutil.pid_exists(pid) or _is_zombie(pid), LONG_S, f"mongod {pid} is gone")

    # -- looking ----------------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """Return state → number of tasks."""
        groups = self.store.tasks.aggregate([{"$group": {"_id": "$state", "n": {"$sum": 1}}}])
        return {group["_id"]: group["n"] for group in groups}

    def settled(self, deadline_s: float = LONG_S) -> dict[str, int]:
        """Wait until all tasks have ended and their dependants know; return state → number of tasks."""
        ended = [State.DONE.value, State.FAILED.value, State.CANCELLED.value]

        def over() -> bool:
            markers = [{name: True} for name in ("unreleased", "revive")]
            open_: dict[str, Any] = {"$or": [{"state": {"$nin": ended}}, *markers]}
            return self.store.tasks.count_documents(open_, limit=1) == 0

        wait_until(over, deadline_s, "all tasks have ended", lambda: (self.counts(), self.logs()))
        return self.counts()

    def logs(self) -> str:
        """Return the last lines of all pilots' logs."""
        return "\n".join(f"=== pilot {one.id}, exit code {one.process.poll()}\n{one.log(25)}" for one in self.pilots)

    def spooled(self) -> list[Path]:
        """Return the batches of results that wait for the store."""
        return list(self.config.spool_folder.glob("*/*.bson"))

    def records(self, task: str) -> list[dict[str, Any]]:
        """Return all records of a task, first attempt first."""
        return sorted(self.store.provenance.find({"task": task}), key=lambda doc: doc["attempt"])

    def check(self, ids: Iterable[str] = ()) -> None:
        """Check the invariants, and that each of `ids` is done by exactly one record that succeeded."""
        wrong = invariants.violations(self.store)
        assert wrong == [], wrong
        wanted = list(ids)
        if not wanted:
            return
        good = {
            group["_id"]: group["records"]
            for group in self.store.provenance.aggregate(
                [
                    {"$match": {"outcome": {"$in": [outcome.value for outcome in GOOD]}}},
                    {"$group": {"_id": "$task", "records": {"$push": "$_id"}}},
                ]
            )
        }
        found = {doc["_id"]: doc for doc in self.store.tasks.find({}, ["state", "official", "reason", "tried", "lost"])}
        bad = [found.get(task, task) for task in wanted if found.get(task, {}).get("state") != State.DONE]
        assert not bad, f"{len(bad)} of {len(wanted)} tasks are not done, e.g. {bad[:3]}"
        twice = {task: good.get(task) for task in wanted if good.get(task) != [official_record(found[task])]}
        assert not twice, f"not exactly one success: {list(twice.items())[:3]}"

    def check_clean(self) -> None:
        """Check that pilots which have ended left no process and nothing in the spool, and every record whole."""
        for one in self.pilots:
            assert one.process.poll() is not None, f"pilot {one.id} still runs"
            one.gone(10.0)
        left = [str(path) for path in self.config.spool_folder.glob("**/*")]
        assert left == [], f"left in the spool: {left[:5]}"
        signer = signing.Signer(signing.load_key(self.config.key_file), self.config.id)
        audit = Audit(self.store, Objects(self.config.objects_folder), signer)
        on_purpose = re.compile("^function |the object repository")  # some tests spoil these
        found = (f"{problem.of}: {problem.text}" for problem in audit.problems())
        wrong = [text for text in found if not on_purpose.search(text)]
        assert wrong == [], wrong[:5]

    def drain(self, *pilots: Pilot, deadline_s: float = LONG_S) -> list[int]:
        """SIGTERM agents (default: all that run) and return their exit codes."""
        ending = [one for one in pilots or self.pilots if one.process.poll() is None]
        for one in ending:
            one.signal(signal.SIGTERM)
        return [one.wait(deadline_s) for one in ending]


def _is_zombie(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@contextlib.contextmanager
def rig(root: Path) -> Iterator[Rig]:
    """Make a `Rig` in a short directory below `root`."""
    with Rig(root / "project") as made:
        yield made


def script(config: ProjectConfig, text: str, *args: str) -> subprocess.Popen[str]:
    """Run Python source as a user's program in the project's directory, its output piped."""
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    # Tests that were started in the background ignore Ctrl-C, and so would the program.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    return subprocess.Popen(
        [sys.executable, "-c", heard + text, *args], cwd=config.root, env=env, text=True, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def ids(futures: Sequence[pilot.Future]) -> list[str]:
    """Return the ids of futures."""
    return [future.id for future in futures]
