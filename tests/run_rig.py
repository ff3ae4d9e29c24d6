"""A child handle with everything around it that a rank would give, and a loop that drives it."""

from __future__ import annotations

import itertools
import json
import os
import select
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pilot.calls import bind
from pilot.executors.run.handle import Child, Item, Key, Settings
from pilot.executors.run.output import Output
from pilot.executors.run.scrub import child_environment
from pilot.executors.run.sessions import remove, sessions
from pilot.executors.run.wire import pack_work
from pilot.functions import describe
from pilot.model import Blob, Command, Placement, RankPlace, Result, Work
from pilot.sites import Site, launchers
from pilot.states import Kind
from pilot.store.objects import Objects
from pilot.values import decode, encode
from tests import run_tasks

ENTRY = str(Path(__file__).parent / "run_entry.py")
REPOSITORY = str(Path(__file__).parent.parent)
_NUMBERS = itertools.count()
FAST = Settings(start_s=30.0, delays_s=(0.05, 0.05), rest_s=5.0, grace_s=0.5, cancel_grace_s=0.5, hold_s=0.3)


class Rig:
    """Use as a context manager. `root` gets project, scratch, objects, code and output directories."""

    def __init__(
        self, root: Path, settings: Settings = FAST, argv: list[str] | None = None, site: Site | None = None, **env: str
    ) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        if site is not None:
            (root / "site.json").write_text(json.dumps(launchers(site)))
        for name in ("project", "scratch", "objects", "code"):
            (root / name).mkdir(parents=True, exist_ok=True)
        self.objects = Objects(root / "objects")
        self.output = Output(root / "out" / "testhost" / "slot-1.out")
        self.pool = f"test-{os.getpid()}-{next(_NUMBERS)}"
        environ = {**child_environment(os.environ, self.pool, 1), "PYTHONPATH": REPOSITORY, **env}
        argv = argv or [sys.executable, "-P", ENTRY, str(root), str(root / "code")]
        self.child = Child(argv, environ, self.output, 3, "testhost", settings)
        self.results: dict[str, Result] = {}
        self.order: list[Key] = []
        self._numbers = itertools.count()

    def __enter__(self) -> Self:
        self.child.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.child.close()
        remove(sessions(self.pool))

    # -- making work ------------------------------------------------------------------------------

    def function(
        self, function: Callable[..., Any], *args: Any, walltime_s: float | None = None, fresh: bool = False,
        memory_bytes: int | None = None, task: str | None = None, cores: int = 1,
        linked: dict[tuple[str, str | None], Any] | None = None,
        inputs: tuple[tuple[str, Blob], ...] | None = None, wide: dict[str, Any] | None = None, **kwargs: Any,
    ) -> Item:  # fmt: skip
        code = describe(function)
        self.child.learn(code)
        if inputs is None:
            inputs = tuple((name, self.blob(value)) for name, value in bind(function, args, kwargs))
        links = {link: self.blob(value) for link, value in (linked or {}).items()}
        task = task or f"task{next(self._numbers)}"
        work = Work(
            task, 1, Kind.FUNCTION, function.__name__, code.hash, None, inputs, links, memory_bytes, cores,
            **(wide or {}),
        )  # fmt: skip
        return Item(task, 1, code.hash, walltime_s, fresh, pack_work(work))

    def command(
        self, *argv: str, walltime_s: float | None = None, memory_bytes: int | None = None, cores: int = 1,
        values: dict[str, Any] | None = None, wide: dict[str, Any] | None = None, task: str | None = None,
        **settings: Any,
    ) -> Item:  # fmt: skip
        task = task or f"task{next(self._numbers)}"
        inputs = tuple((name, self.blob(value)) for name, value in (values or {}).items())
        command = Command(argv, **settings)
        work = Work(
            task, 1, Kind.COMMAND, argv[0], None, command, inputs, {}, memory_bytes, cores, **(wide or {})
        )  # fmt: skip
        return Item(task, 1, None, walltime_s, False, pack_work(work))

    def blob(self, value: Any) -> Blob:
        encoded = encode(value)
        if encoded.size > 16 * 1024:
            return Blob(self.objects.put(encoded), encoded.size, None)
        return Blob(encoded.hash, encoded.size, encoded.data)

    # -- driving ----------------------------------------------------------------------------------

    def turn(self, longest_s: float = 0.05) -> None:
        """Wait as a rank does, then poll once."""
        now = time.monotonic()
        wake = self.child.next_wake(now)
        timeout_s = longest_s if wake is None else min(longest_s, max(0.0, wake - now))
        select.select(self.child.filenos(), (), (), timeout_s)
        for one in self.child.poll(time.monotonic()):
            assert one.task not in self.results, "an attempt was reported twice"
            self.results[one.task] = one.result()
            self.order.append(one.key)

    def until(self, done: Callable[[], bool], timeout_s: float = 30.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not done():
            assert time.monotonic() < deadline, "waited too long"
            self.turn()

    def offer(self, items: Iterable[Item]) -> None:
        for item in items:
            while not self.child.offer(item):
                self.turn()

    def run(self, *items: Item, timeout_s: float = 30.0) -> list[Result]:
        """Offer, drive until all have ended, return the results in the order of `items`."""
        self.offer(items)
        self.until(lambda: all(item.task in self.results for item in items), timeout_s)
        return [self.results[item.task] for item in items]

    def one(self, item: Item, timeout_s: float = 30.0) -> Result:
        return self.run(item, timeout_s=timeout_s)[0]

    def between(self, bad: Item) -> Result:
        """Run a task between harmless ones, all queued at once, and check these; return its result."""
        good = [self.function(run_tasks.add, i) for i in range(6)]
        results = self.run(*good[:3], bad, *good[3:])
        assert [self.value(result) for result in (*results[:3], *results[4:])] == [1, 2, 3, 4, 5, 6]
        assert [key[0] for key in self.order] == [item.task for item in (*good[:3], bad, *good[3:])]
        return results[3]

    def why(self, result: Result) -> str:
        assert result.failure
        return result.failure.message

    def tail(self, result: Result) -> str:
        return result.log.tail if result.log else ""

    def value(self, result: Result, name: str = "result") -> Any:
        blob = dict(result.outputs)[name]
        return decode(self.objects.get(blob.hash) if blob.data is None else blob.data)


def placed(*cpus: tuple[int, ...], gpus: tuple[tuple[str, ...], ...] = (), hosts: tuple[str, ...] = ()) -> Placement:
    """Return a placement of one rank for each of `cpus`, on this host unless told otherwise."""
    return Placement(
        tuple(
            RankPlace(hosts[i] if hosts else os.uname().nodename, (i + 1,), one, gpus[i] if gpus else ())
            for i, one in enumerate(cpus)
        )
    )


def wait_for(condition: Callable[[], Any], timeout_s: float = 20.0) -> Any:
    """Return the first true value of `condition`."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)
    return value


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text.rpartition(")")[2].split()[0] != "Z"
