"""The rank's handle on its slot's child: a queue of work that survives the child's death.

Nothing here blocks and nothing happens by itself: the owner calls `Child.poll` when a descriptor of
`Child.filenos` is readable and by `Child.next_wake` at the latest. Which attempt has begun is never guessed:
what was given, minus what was answered, minus what could be taken back out of the kernel's queue, is at most
one attempt, and that one has begun.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from pilot.errors import PoolError
from pilot.executors.run.keeper import Keeper
from pilot.executors.run.output import Output
from pilot.executors.run.process import Process
from pilot.executors.run.restart import Settings
from pilot.executors.run.verdict import Finished, Item, Key
from pilot.model import FunctionCode
from pilot.states import Outcome

__all__ = ["Child", "Finished", "Item", "Key", "Settings"]

_CLOSE_S = 5.0


class Child:
    """One slot's child process, replaced whenever it must be. Use as a context manager, on the main thread.

    (The child asks the kernel to kill it when the thread that started it ends.)

    Args:
        argv: the program of the child; it must call `child.serve`.
        env: its environment, see `scrub.child_environment`.
        output: the slot's file; closed with the handle.
        rank: MPI rank, for results written here.
        host: node name, likewise.
        settings: limits and times.
    """

    def __init__(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        output: Output,
        rank: int,
        host: str,
        settings: Settings = Settings(),  # noqa: B008  frozen
    ) -> None:
        self._keeper = Keeper(lambda now: Process(argv, env, output, now), rank, host, settings)
        self._output = output
        self._settings = settings
        self._sizes: dict[Key, int] = {}
        """Size of the frame of every attempt in hand."""
        self._bytes = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start the first child, if none is there; do so before MPI is initialised. Does not wait for it to come up."""
        if self._keeper.process is None:
            self._keeper.spawn(time.monotonic())

    def close(self) -> None:
        """Kill the child and all it left behind, at once. What is in hand is forgotten: take it back before."""
        if self._keeper.process:
            self._keeper.retire(self._keeper.process, sweep=True)
        self._keeper.wait_gone(_CLOSE_S)
        self._output.close()

    # -- asking ---------------------------------------------------------------------------------

    @property
    def ending(self) -> bool:
        """Whether the pilot is ending. Set it: from then on TERM and KILL from outside mean `lost`, not `crashed`."""
        return self._keeper.ending

    @ending.setter
    def ending(self, value: bool) -> None:
        self._keeper.ending = value

    @property
    def load(self) -> int:
        """How many attempts are in hand: offered, and neither returned nor reported."""
        return len(self._sizes)

    @property
    def running(self) -> Key | None:
        """The attempt that runs, as far as can be known without asking."""
        p = self._keeper.process
        return p.sent[0][1].key if p and p.ready and p.sent else None

    @property
    def up(self) -> bool:
        """Whether a child has reported and lives, as far as is known: false while one starts."""
        return self._keeper.process is not None and self._keeper.process.ready

    def knows(self, function: str) -> bool:
        """Return whether `learn` was called for this hash."""
        return function in self._keeper.codes

    def filenos(self) -> tuple[int, ...]:
        """Return the descriptors that become readable when there is something to poll for; they change."""
        return self._keeper.process.filenos() if self._keeper.process else ()

    def next_wake(self, now: float) -> float | None:
        """Return when, at the latest, `poll` should be called (monotonic); None: when a descriptor is ready."""
        return now if self._keeper.ended else self._keeper.next_wake(now)

    # -- telling --------------------------------------------------------------------------------

    def bind(self, cpus: Sequence[int]) -> None:
        """Bind the child, and those that come after it, to the slot's CPUs; none: leave it as it is.

        A task with a placement of its own has that while it runs. Call it while none does: its end would undo it.

        Raises:
            OSError: this node has none of these CPUs, or processes may not use them. Nothing was changed.
        """
        self._keeper.bind(cpus)

    def learn(self, code: FunctionCode) -> None:
        """Keep a function's code; whatever child needs it gets it. Before the first `offer` that names it."""
        self._keeper.codes[code.hash] = pickle.dumps(code, 5)

    def offer(self, item: Item) -> bool:
        """Queue an attempt behind what is there; False if enough is there already.

        Raises:
            PoolError: its function's code was not given to `learn`, or the attempt is in hand already.
        """
        size = len(item.frame)
        if len(self._sizes) >= self._settings.most_items or (
            self._sizes and self._bytes + size > self._settings.most_bytes
        ):
            return False
        if item.function and item.function not in self._keeper.codes:
            raise PoolError(f"task {item.task} was offered before the code of its function {item.function!r}")
        if item.key in self._sizes:
            raise PoolError(f"attempt {item.attempt} of task {item.task} was offered twice")
        self._sizes[item.key] = size
        self._bytes += size
        self._keeper.waiting.append(item)
        self._keeper.pump(time.monotonic())
        return True

    def take_back(self, count: int | None = None) -> list[Item]:
        """Return up to `count` (None: all) attempts that have not begun: the last in the queue, in its order.

        They are no longer in hand, and will not begin. With `count` None, what is still in hand afterwards
        has begun or ended.
        """
        waiting = self._keeper.waiting
        self._keeper.unsend()
        number = len(waiting) if count is None else min(count, len(waiting))
        items = [waiting.pop() for _ in range(number)][::-1]
        for item in items:
            self._forget(item.key)
        self._keeper.pump(time.monotonic())
        return items

    def cancel(self, task: str, attempt: int) -> bool:
        """End an attempt. Return True if it had not begun: it is no longer in hand, nothing will be reported.

        False: it is being stopped, and how it ended comes from `poll`; or it has ended; or it is not here.
        """
        key, now = (task, attempt), time.monotonic()
        if key not in self._sizes:
            return False
        dropped = self._drop(key)
        if not dropped and not self._keeper.stop(key, Outcome.CANCELLED, now):
            dropped = self._drop(key)
        self._keeper.pump(now)
        return dropped

    def poll(self, now: float) -> list[Finished]:
        """Do what is due and return the attempts that have ended, in the order of their ends.

        Args:
            now: `time.monotonic()`.

        Raises:
            PoolError: children cannot be started, with the last one's own words; raised once per series of
                starts, and only when there is nothing to return. What is in hand stays so: take it back.
        """
        keeper = self._keeper
        keeper.turn(now)
        if keeper.ended:
            ended, keeper.ended = keeper.ended, []
            for one in ended:
                self._forget((one.task, one.attempt))
            return ended
        if why := keeper.starts.broken():
            raise PoolError(why)
        return []

    # -- inside ---------------------------------------------------------------------------------

    def _forget(self, key: Key) -> None:
        self._bytes -= self._sizes.pop(key)

    def _drop(self, key: Key) -> bool:
        """Remove an attempt that waits here; return whether it did."""
        for item in self._keeper.waiting:
            if item.key == key:
                self._keeper.waiting.remove(item)
                self._forget(key)
                return True
        return False
