"""A task's result that is not there yet: a `concurrent.futures.Future` with a task's id."""

from __future__ import annotations

import concurrent.futures
import threading
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED, PENDING
from typing import TYPE_CHECKING, Any, Protocol

from pilot.errors import PilotError, TaskError
from pilot.states import State

_OVER = frozenset({CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED})
_looking = threading.Lock()
"""Held for the moment in which a future gets its condition, or ends without one."""


class Owner(Protocol):
    """What a future needs of its project."""

    def record_of(self, task: str) -> dict[str, Any] | None:
        """Return the official record, or the latest one there is."""
        ...

    def state_of(self, task: str) -> State:
        """Return the task's state as the store has it now."""
        ...

    def cancel(self, *tasks: str | Future) -> None:
        """Ask that tasks be cancelled."""

    def value_of(self, record: bytes) -> Any:
        """Return the value of the outputs of a record, which is verified first."""


class Future(concurrent.futures.Future[Any]):
    """The result of one task; made by `submit`, `map` or `Project.task`, not by hand.

    It may stand anywhere inside the arguments of other tasks, and so may ``future["name"]``: the named output
    of a command, or that item of a function's result.

    A program may hold a million of them, and most are looked at only after they have ended: so one is a single
    object, and gets what waiting takes (condition and lists, ten objects for the garbage collector) when somebody
    first waits for it.
    """

    _exception = None
    _decoded = False
    _made: threading.Condition | None = None

    def __init__(self, task: str, owner: Owner) -> None:  # not the base class's, which makes all that
        self.id = task
        self._owner = owner
        self._state = PENDING
        self._result: Any = None

    if not TYPE_CHECKING:  # for which the base class has it as an attribute, and so it is to be

        @property
        def _condition(self) -> threading.Condition:
            """What the base class guards everything with."""
            with _looking:
                if self._made is None:
                    self._waiters = []
                    self._done_callbacks = []
                    self._made = threading.Condition()
                return self._made

    def __repr__(self) -> str:
        return f"<Future {self.id} {self._ended_state() or 'not ended'}>"

    def __getitem__(self, name: str) -> Output:
        return Output(self, name)

    def __iter__(self) -> Any:
        raise TypeError("a future cannot be iterated; use future.result() or future['name']")

    def __reduce__(self) -> Any:
        raise PilotError(
            f"the future of task {self.id!r} cannot be pickled by itself; pass it as an argument of another task"
        )

    def __pilot_link__(self) -> tuple[str, str | None]:
        """Say which output of which task this stands for."""
        return self.id, None

    @property
    def project(self) -> Owner:
        """The project it belongs to."""
        return self._owner

    @property
    def state(self) -> State:
        """The task's state: from memory if it has ended, else asked of the store."""
        return self._ended_state() or self._owner.state_of(self.id)

    def _ended_state(self) -> State | None:
        if not self.done():
            return None
        if self.cancelled():
            return State.CANCELLED
        error = super().exception(0)
        if error is not None and not isinstance(error, TaskError):
            return None  # the project was closed before
        return State.DONE if error is None else State.FAILED

    def record(self) -> dict[str, Any] | None:
        """Return the task's provenance document: the official one, else the latest attempt's, else None."""
        return self._owner.record_of(self.id)

    def cancel(self) -> bool:
        """Ask that the task be cancelled; True unless it has ended already.

        It is over when the future says `cancelled`: a task that runs is stopped by its pool, and a success
        that comes first stands.
        """
        if self.done():
            return self.cancelled()
        self._owner.cancel(self)
        return True

    def result(self, timeout: float | None = None) -> Any:
        """Return the task's value, waiting for it up to `timeout` seconds.

        Raises:
            TaskFailed: it failed; the text has the remote traceback, host and task id.
            concurrent.futures.CancelledError: it was cancelled.
            TimeoutError: it has not ended in time.
            SignatureError: its record is not what the pool wrote.
            DecodingError: its value does not load here.
        """
        if self._state != FINISHED or self._exception is not None:
            super().result(timeout)
        if not self._decoded:  # by whoever asks, not by the watcher; of two who ask at once both get the first's value
            value = self._owner.value_of(self._result)
            with _looking:
                if not self._decoded:
                    self._result, self._decoded = value, True
        return self._result

    def done(self) -> bool:
        """Say whether it has ended, well or badly."""
        return self._state in _OVER

    def end_well(self, record: bytes) -> None:
        """Give it the record of its success; for its project."""
        with _looking:
            if self._made is None:  # nobody waits
                self._result, self._state = record, FINISHED
                return
        self.set_result(record)

    def end_cancelled(self) -> None:
        """Mark it cancelled; for its project."""
        if super().cancel():
            self.set_running_or_notify_cancel()


class Output:
    """One named output of a task that has not ended; stands in arguments like a future."""

    __slots__ = ("future", "name")

    def __init__(self, future: Future, name: str) -> None:
        if not isinstance(name, str):
            raise TypeError(f"an output is named by a string, not by {name!r}")
        self.future = future
        self.name = name

    def __repr__(self) -> str:
        return f"<Output {self.name!r} of task {self.future.id}>"

    def __pilot_link__(self) -> tuple[str, str | None]:
        """Say which output of which task this stands for."""
        return self.future.id, self.name

    @property
    def project(self) -> Owner:
        """The project it belongs to."""
        return self.future.project

    def result(self, timeout: float | None = None) -> Any:
        """Return the value of this output; raises as `Future.result` does."""
        return self.future.result(timeout)[self.name]
