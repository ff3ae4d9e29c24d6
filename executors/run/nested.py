"""One MPI program started from a child: its files, its launcher, a deadline for the start, what is left of it.

The launcher runs over exactly the hosts of the task's placement and starts `bind` on every rank, which takes the
rank's share and becomes the program. Whatever the launcher prints passes through here: it alone tells which rank
died of what.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import select
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pilot.executors.run import bind
from pilot.executors.run.command import redirection
from pilot.executors.run.launch import Blame, Launchers, blame, by_host, choose, host_lines
from pilot.executors.run.orphans import kill_orphans
from pilot.executors.run.scrub import MARK, OURS
from pilot.executors.run.sessions import remove, sessions
from pilot.model import RankPlace, Work

_EARLY_S = 0.01
"""Between two looks whether a rank has started."""
_LATE_S = 0.25
"""Between two looks whether the launcher has ended, should something hold its output open."""
_WORDS_BYTES = 16 * 1024
_AT_ONCE = 64 * 1024
_DEFAULT_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ)  # Python ignores them; programs should not
_TASK_VARIABLE = "PILOT_TASK"


class Program(NamedTuple):
    """What every rank is to become."""

    path: str
    argv: tuple[str, ...]
    """Its arguments, without its name."""
    env: Mapping[str, str]
    own: Mapping[str, str]
    """What of it is the command's own: told to ranks whatever their launcher does with the environment."""
    flavour_path: str
    """The file that shows which MPI it is of; empty: the pool's own."""
    stdout: str | None = None
    """File that gets its standard output; None: what the rest of its output goes to."""


class Ran(NamedTuple):
    """How it went."""

    launcher: tuple[str, ...]
    """The words of the launcher, without what it started."""
    code: int
    """As a shell command would end: 0, an exit code, or minus the signal that ended it or a rank of it."""
    started: bool
    """Whether any rank came up."""
    blamed: Blame | None
    why: str
    """For a person, if nothing started."""
    words: str
    """The end of what was printed."""
    cpu_s: float
    max_rss_bytes: int


class Nested:
    """Starts MPI programs, one after the other.

    Args:
        launchers: the site's.
        host: the node of this slot.
        folder: where a program's files lie while it runs: the slot's own, and every node sees it.
    """

    def __init__(self, launchers: Launchers, host: str, folder: str) -> None:
        self._launchers = launchers
        self._host = host
        self._folder = folder

    @contextlib.contextmanager
    def folder(self) -> Iterator[str]:
        """Make the folder of one program; remove it with all files in it.

        It is the slot's and not the task's: what a child that was killed has left is found by the next one.
        """
        self._remove_folder()
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        try:
            yield self._folder
        finally:
            self._remove_folder()

    def _remove_folder(self) -> None:
        with contextlib.suppress(OSError):
            for name in os.listdir(self._folder):
                os.unlink(os.path.join(self._folder, name))
            os.rmdir(self._folder)

    def run(self, work: Work, program: Program, folder: str) -> Ran:
        """Run the program over the task's placement to its end, in the present directory.

        Without a placement all its ranks run on this node, unbound. When it ends otherwise than well, what is left
        of it on this node is killed.

        Raises:
            InvalidInput: the site does not have the flavour that the command names.
            LauncherNotFound: no launcher for it is there.
            OSError: files cannot be written, or the launcher cannot be run.
        """
        chosen = choose(self._launchers, program.flavour_path, program.env)
        ranks = work.ranks or 1
        places = work.place.ranks if work.place is not None else (RankPlace(self._host, ()),) * ranks
        hosts = by_host(places)
        hostfile, shares = os.path.join(folder, "hosts"), os.path.join(folder, "ranks")
        started = os.path.join(folder, "started")
        with open(hostfile, "w", encoding="utf-8") as file:
            how = chosen.program.host_line, chosen.program.line_per_rank
            file.write(host_lines(*how, {host: len(here) for host, here in hosts.items()}))
        told = {
            "started": started,
            "ranks": [(host, place.cpus, place.gpus) for host, here in hosts.items() for place in here],
            "gpu_variable": self._launchers.gpu_variable,
            "memory_bytes": work.memory_bytes,
            "env": _told(program),
        }
        with open(shares, "wb") as file:
            file.write(marshal.dumps(told))
        line = chosen.line(ranks, len(hosts), hostfile, self._launchers.job)
        wrapper = [sys.executable, "-S", "-E", "-P", os.path.abspath(bind.__file__), shares]
        kept = sessions(os.environ.get("PILOT_POOL", ""), f"{work.task}.{work.attempt}")
        env = chosen.environment(program.env, program.own, hostfile, kept)
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            pid = os.posix_spawn(
                line[0], [*line, *wrapper, program.path, *program.argv], env, setsigdef=_DEFAULT_SIGNALS,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, writing, 2), (os.POSIX_SPAWN_DUP2, writing, 1), *redirection(program.stdout)
                ],
            )  # fmt: skip
            os.close(writing)
            writing = -1
            watch = _Watch(pid, reading, started, self._launchers.start_s)
            status, usage = watch.wait(work.task)
        finally:
            if os.path.exists(kept):
                remove(kept)
            os.close(reading)
            if writing >= 0:
                os.close(writing)
        return watch.judge(tuple(line), status, usage, _end_of(program.stdout))


def _told(program: Program) -> dict[str, str]:
    """Return the variables that a rank on another node may lack, since not every launcher passes all on."""
    names = (*OURS, MARK, "OMP_NUM_THREADS")
    return {name: program.env[name] for name in names if name in program.env} | dict(program.own)


class _Watch:
    """Passes on what a launcher prints and waits for its end.

    Args:
        pid: the launcher.
        reading: pipe from which its output comes.
        marks: file in which ranks that come up leave a line each.
        start_s: time for the first one.
    """

    def __init__(self, pid: int, reading: int, marks: str, start_s: float) -> None:
        self._pid = pid
        self._reading = reading
        self._marks = marks
        self._start_s = start_s
        self._deadline = time.monotonic() + start_s
        self._words = b""
        self._late = False

    def wait(self, task: str) -> tuple[int, Any]:
        """Return the launcher's exit status and usage; it is killed if it starts nothing in time."""
        started, open_ = False, True
        while True:
            started = started or os.path.exists(self._marks)
            pause_s = _LATE_S if started else _EARLY_S
            if not open_:  # it is about to end
                time.sleep(_EARLY_S)
            elif select.select([self._reading], (), (), pause_s)[0]:
                open_ = self._pass_on()
            pid, status, usage = os.wait4(self._pid, 0 if started and not open_ else os.WNOHANG)
            if pid:
                break
            if not started and time.monotonic() > self._deadline:
                self._late = not os.path.exists(self._marks)
                if self._late:
                    kill_orphans(_TASK_VARIABLE, task, 0.0)
                    os.kill(self._pid, signal.SIGKILL)  # should it have changed its environment
                    _, status, usage = os.wait4(self._pid, 0)
                    break
        if status:
            kill_orphans(_TASK_VARIABLE, task, 0.0)  # a launcher that is killed leaves its ranks
        if open_:
            os.set_blocking(self._reading, False)
            with contextlib.suppress(BlockingIOError):
                while self._pass_on():
                    pass
        return status, usage

    def _pass_on(self) -> bool:
        """Move what has arrived to our own output; return whether there may be more."""
        data = os.read(self._reading, _AT_ONCE)
        self._words = (self._words + data)[-_WORDS_BYTES:]
        view = memoryview(data)
        while view:
            view = view[os.write(1, view) :]
        return bool(data)

    def judge(self, launcher: tuple[str, ...], status: int, usage: Any, stdout: str) -> Ran:
        """Say how the program ended, in the place of its launcher.

        Args:
            launcher: its words.
            status: how it ended.
            usage: what it used.
            stdout: the end of what went into a file instead of here: Hydra reports deaths there.
        """
        code = os.waitstatus_to_exitcode(status)
        started = os.path.exists(self._marks)
        words = self._words.decode(errors="replace")
        blamed = blame(stdout + words, self._started()) if code > 0 else None
        name = os.path.basename(launcher[0])
        why = ""
        if not started:
            how = f"did nothing for {self._start_s:g} s" if self._late else f"ended with {_said(code)}"
            why = f"launcher {name!r} did not start the program: it {how}{_last(words)}"
        elif blamed is not None and blamed.signal:
            code = -blamed.signal
        elif code > 128 and code - 128 in signal.valid_signals():
            code = 128 - code
        cpu_s, max_rss_bytes = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024
        return Ran(launcher, code, started, blamed, why, words.strip(), cpu_s, max_rss_bytes)

    def _started(self) -> dict[int, tuple[int, str]]:
        """Return rank and host of every process that came up; lines that met in the file are left out."""
        found = {}
        with contextlib.suppress(OSError), open(self._marks, encoding="utf-8", errors="replace") as file:
            for line in file:
                with contextlib.suppress(ValueError):
                    rank, pid, host = line.split()
                    found[int(pid)] = int(rank), host
        return found


def _end_of(path: str | None) -> str:
    """Return the end of a file; nothing for None, or if it cannot be read."""
    if path is None:
        return ""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _WORDS_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _said(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _last(words: str) -> str:
    """Return a launcher's last words, to be put behind a sentence."""
    text = words.strip()[-1000:]
    return f"; it printed:\n{text}" if text else ""
