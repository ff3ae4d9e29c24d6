"""What a child puts back between tasks, so that none finds what another left; the child's side.

Working directory, environment, umask, `sys.argv`, signal handlers, alarms, standard streams and their
descriptors. Threads and processes that a task leaves behind go on; its output says so.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # its `getsignal` makes no enum members: 50 times faster
import _thread
import contextlib
import ctypes
import faulthandler
import fcntl
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import TextIO

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]

_PR_SET_PDEATHSIG = 1
_SIGNALS = range(1, 32)


def die_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """Ask the kernel to send us signal `number` when our parent ends; end at once if it is gone already."""
    LIBC.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def default_signals() -> None:
    """Undo what was inherited: ignored signals (nohup, a launcher) and a mask."""
    for number in _SIGNALS:
        if number not in (signal.SIGPIPE, signal.SIGXFSZ) and _signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


class Guard:
    """Remembers the state at the start of the child and restores it after each task.

    Args:
        workdir: where functions run.

    Raises:
        OSError: `workdir` is not a directory that can be entered.
    """

    def __init__(self, workdir: str) -> None:
        self._pipe = os.dup(1)
        self._pipe_flags = fcntl.fcntl(self._pipe, fcntl.F_GETFL) & ~os.O_NONBLOCK
        self._streams = self._open_streams()
        self._workdir = os.open(workdir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        os.fchdir(self._workdir)
        self._umask = os.umask(0)
        os.umask(self._umask)
        self._argv = list(sys.argv)
        self._environ = os.environ
        self._env_data: dict[bytes, bytes] = vars(os.environ)["_data"]
        self._env = dict(self._env_data)
        self.environment = dict(os.environ)
        """The environment at the start; do not change it."""
        self._enable_dumps()
        self._handlers = list(map(_signal.getsignal, _SIGNALS))
        self._threads, self._children = _thread._count(), _living_children()

    def _enable_dumps(self) -> None:
        """Make a crash, and the SIGQUIT that comes before a walltime's end, print where the code is."""
        faulthandler.enable(2, all_threads=False)
        faulthandler.register(signal.SIGQUIT, 2, all_threads=False)

    def _open_streams(self) -> tuple[TextIO, TextIO]:
        """Line buffered: what was printed before a crash is what explains it."""
        out, err = (
            open(number, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
            for number in (1, 2)
        )
        sys.stdout, sys.stderr = out, err
        sys.__stdout__, sys.__stderr__ = out, err  # type: ignore[misc]
        return out, err

    def handle(self, number: int, handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
        """Install a signal handler that is to be in place from now on."""
        signal.signal(number, handler)
        self._handlers[number - _SIGNALS.start] = handler

    def restore(self, task: str) -> None:
        """Put everything back and flush what was printed. `task` is named if it leaves anything running."""
        signal.alarm(0)
        if list(map(_signal.getsignal, _SIGNALS)) != self._handlers:
            self._restore_signals()
        self._restore_streams()
        os.fchdir(self._workdir)
        os.umask(self._umask)
        sys.argv = list(self._argv)
        if os.environ is not self._environ or self._env_data != self._env:
            self._restore_environment()
        self.note_leftovers(task)

    def _restore_signals(self) -> None:
        for number, handler in zip(_SIGNALS, self._handlers, strict=True):
            if handler is not None and _signal.getsignal(number) != handler:
                signal.signal(number, handler)
        self._enable_dumps()

    def _restore_streams(self) -> None:
        out, err = self._streams
        if sys.stdout is not out or sys.stderr is not err:
            with contextlib.suppress(Exception):  # these may be anything by now, or None
                sys.stdout.flush()
                sys.stderr.flush()
            sys.stdout, sys.stderr = out, err
        try:
            out.flush()
            err.flush()
        except (OSError, ValueError):  # the task closed a descriptor, or the stream itself
            sys.stdout, sys.stderr = self._streams = self._open_streams()
        LIBC.fflush(None)  # what C and Fortran printed
        os.dup2(self._pipe, 1)
        os.dup2(self._pipe, 2)
        self.restore_pipe()

    def restore_pipe(self) -> None:
        """Make the output pipe blocking: some programs set that off, for all who share it."""
        fcntl.fcntl(self._pipe, fcntl.F_SETFL, self._pipe_flags)

    def _restore_environment(self) -> None:
        os.environ = self._environ  # noqa: B003  the object itself, if it was replaced
        for name in self._env_data.keys() | self._env.keys():
            if name not in self._env:
                del os.environ[os.fsdecode(name)]
            elif self._env_data.get(name) != self._env[name]:
                os.environ[os.fsdecode(name)] = os.fsdecode(self._env[name])

    def note_leftovers(self, task: str) -> None:
        """Say in the output if more threads or processes run than before the task."""
        threads, children = _thread._count(), _living_children()
        if threads > self._threads or children > self._children:
            note = f"pilot: task {task} left {threads} threads and {children} processes running\n"
            os.write(2, note.encode())
        self._threads, self._children = threads, children


def _living_children() -> int:
    """Return how many child processes there are. None of them is waited for: they are the task's."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return 0
    try:
        with open(f"/proc/self/task/{_thread.get_native_id()}/children") as file:
            return len(file.read().split())
    except OSError:  # a kernel without it
        return 1
