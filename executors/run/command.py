"""One command task; the child's side."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

from pilot.errors import InvalidInput
from pilot.executors.run.exchange import Exchange
from pilot.executors.run.failure import clipped, signal_text
from pilot.executors.run.guard import Guard, die_with_parent
from pilot.executors.run.meter import Meter
from pilot.executors.run.scrub import command_environment
from pilot.model import IN_PLACE, Blob, Command, Work
from pilot.source import file_digest
from pilot.states import Outcome
from pilot.values import encode

if TYPE_CHECKING:
    from pilot.executors.run.nested import Nested, Ran
    from pilot.file import File

EXIT_CODE = "exit_code"
"""Name of the output that every command has."""

NOT_FOUND = 127
NOT_EXECUTABLE = 126

_ZERO_ENCODED = encode(0)
_ZERO = Blob(_ZERO_ENCODED.hash, _ZERO_ENCODED.size, _ZERO_ENCODED.data)
_DEFAULT_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ)  # Python ignores them; programs should not
_SHOWN_BYTES = 500


class Ended(NamedTuple):
    """How a command ended."""

    outcome: Outcome
    exit_code: int
    """Negative: the signal that killed it."""
    why: str
    """Empty if it succeeded."""
    outputs: tuple[tuple[str, Blob], ...] = ()
    cpu_s: float = 0.0
    max_rss_bytes: int = 0
    from_outside: bool = False
    """It was ended by TERM or KILL, not necessarily for anything it did."""
    program: tuple[str, str] | None = None
    """Path and BLAKE2b-256 of the file that was executed."""
    launcher: tuple[str, ...] | None = None
    """Of an MPI program: the launcher's words."""
    at: tuple[int, str] | None = None
    """Of an MPI program: the rank that ended it, and its host."""


class Commands:
    """Runs commands.

    Args:
        exchange: values in and out.
        guard: knows the environment in which commands start, and keeps our signal handler.
        project: working directory of a command that names none; others are relative to it.
        scratch: where private working directories are made.
        rank: process id of the child's rank.
        nested: gives what starts MPI programs.
    """

    def __init__(
        self, exchange: Exchange, guard: Guard, project: str, scratch: str, rank: int, nested: Callable[[], Nested]
    ) -> None:  # fmt: skip
        self._exchange = exchange
        self._guard = guard
        self._project = project
        self._scratch = scratch
        self._rank = rank
        self._nested = nested
        self._found: dict[tuple[str, str], str] = {}
        self._armed = self._running = self._terminated = False

    def arm(self) -> None:
        """See that no program outlives the rank: it stays in our process group, and the rank's death tells us.

        While a program runs a TERM does not end this process: the program has it too, and its end is to be
        reported. Lasts until `disarm`, because a switch costs as much as a tenth of a small program.
        """
        if not self._armed:
            self._armed = True
            self._guard.handle(signal.SIGTERM, self._on_term)
            die_with_parent(self._rank, signal.SIGTERM)

    def disarm(self) -> None:
        """Die of signals and with the rank at once again, as functions need it: they may never come back to Python."""
        if self._armed:
            die_with_parent(self._rank, signal.SIGKILL)
            self._guard.handle(signal.SIGTERM, signal.SIG_DFL)
            self._armed = False

    @contextmanager
    def supervised(self) -> Iterator[None]:
        """Hold while a program runs: TERM is its, and is remembered in `terminated`."""
        self.arm()
        self._running, self._terminated = True, False
        try:
            yield
        finally:
            self._running = False

    @property
    def terminated(self) -> bool:
        """Whether TERM came while the last program ran."""
        return self._terminated

    def _on_term(self, number: int, frame: FrameType | None) -> None:
        if os.getppid() != self._rank:
            os.killpg(0, signal.SIGKILL)
        self._terminated = True
        if not self._running:
            self.disarm()
            os.kill(os.getpid(), signal.SIGTERM)

    def workdir(self, work: Work) -> tuple[str, bool]:
        """Return a command's working directory, and whether it is private, i.e. made for it and removed after success.

        Private if it names none and has files or outputs: side by side, equal names would meet.
        """
        command = _command_of(work)
        if command.cwd is not None:
            return os.path.join(self._project, command.cwd), False
        if command.files or command.outputs or command.stdout:
            return os.path.join(self._scratch, f"{work.task}.{work.attempt}"), True
        return self._project, False

    def run(self, work: Work, meter: Meter, variables: Mapping[str, str]) -> Ended:
        """Run the task's command to its end and collect its outputs.

        Args:
            work: the task.
            meter: limits its memory.
            variables: what its share of the node adds to its environment.

        Raises:
            InvalidInput: a file or output leads out of the working directory, or a file's input is no text or bytes.
            LauncherNotFound: the launcher of its MPI is not there.
            PilotError: a value cannot be fetched or kept.
            OSError: files cannot be written or read.
        """
        command = _command_of(work)
        workdir, private = self.workdir(work)
        if private:
            os.makedirs(workdir, exist_ok=True)
        self._write_files(work, command, workdir)
        ended = self._run_in(workdir, work, meter, variables)
        if ended.outcome is Outcome.SUCCEEDED and command.outputs:
            outputs, missing = self._collect(command, workdir, removed=private and not _stays(command))
            ended = ended._replace(outputs=ended.outputs + outputs)
            if missing:
                ended = ended._replace(outcome=Outcome.FAILED, why=missing)
        if private and ended.outcome is not Outcome.SUCCEEDED:
            return ended._replace(why=f"{ended.why}; its working directory was kept: {workdir!r}")
        if private and not _stays(command):
            import shutil

            shutil.rmtree(workdir, ignore_errors=True)
        return ended

    # -- before -----------------------------------------------------------------------------------

    def _write_files(self, work: Work, command: Command, workdir: str) -> None:
        if not command.files:
            return
        values = dict(self._exchange.inputs(work, frozenset(command.files.values())))
        for name, source in command.files.items():
            path = os.path.join(workdir, _inside(name, "file"))
            value: Any = values.get(source)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if hasattr(value, "__pilot_form__"):
                _put_file(value, path)
                continue
            if isinstance(value, str):
                value = value.encode()
            if not isinstance(value, bytes | bytearray | memoryview):
                raise InvalidInput(
                    f"the file {name!r} of the command is made of the input {source!r}, which is of type "
                    f"{type(value).__name__!r}; give text, bytes or a pilot.File"
                )
            with open(path, "wb") as file:
                file.write(value)

    # -- the program --------------------------------------------------------------------------------

    def _run_in(self, workdir: str, work: Work, meter: Meter, variables: Mapping[str, str]) -> Ended:
        command = _command_of(work)
        argv = ["/bin/sh", "-c", command.argv[0]] if command.shell else list(command.argv)
        added = {**variables, **command.env}
        env = command_environment(self._guard.environment, work.task, work.attempt, work.cores, added)
        program = self._find(argv[0], env.get("PATH", os.defpath))
        moved = workdir != self._project
        try:
            if moved:
                os.chdir(workdir)
        except OSError as error:
            return Ended(Outcome.FAILED, NOT_FOUND, f"cannot enter its directory {workdir!r}: {error.strerror}")
        try:
            with self.supervised():
                if work.ranks is None:
                    return self._execute(work, program, argv, env, workdir, meter)
                return self._launch(work, program, argv, env, workdir)
        finally:
            if moved:
                os.chdir(self._project)

    def _execute(
        self, work: Work, program: str, argv: list[str], env: dict[str, str], workdir: str, meter: Meter
    ) -> Ended:  # fmt: skip
        try:
            with nullcontext() if work.memory_bytes is None else meter.limit(work.memory_bytes):
                actions = redirection(_stdout_of(work))
                pid = os.posix_spawn(program, argv, env, setsigdef=_DEFAULT_SIGNALS, file_actions=actions)
        except OSError as error:
            return _not_started(argv[0], workdir, error)
        _, status, usage = os.wait4(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        why = f"the program {_shown(work)} {_ending(code)}" if code else ""
        return self._ended(code, why, program, workdir, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)

    def _launch(self, work: Work, program: str, argv: list[str], env: dict[str, str], workdir: str) -> Ended:
        """Run an MPI program; its launcher speaks for it."""
        from pilot.executors.run.nested import Program

        command = _command_of(work)
        path = os.path.join(workdir, program)
        if not os.access(path, os.X_OK):  # the launcher would be blamed
            number = errno.EACCES if os.path.exists(path) else errno.ENOENT
            return _not_started(argv[0], workdir, OSError(number, os.strerror(number)))
        shows = self._first_program(argv[-1], env) if command.shell else path
        nested = self._nested()
        with nested.folder() as folder:
            ran = nested.run(work, Program(program, tuple(argv[1:]), env, command.env, shows, _stdout_of(work)), folder)
        if not ran.started:
            return Ended(Outcome.LOST, ran.code, ran.why, launcher=ran.launcher)
        ended = self._ended(ran.code, _ending_of(work, ran), program, workdir, ran.cpu_s, ran.max_rss_bytes)
        at = None if ran.blamed is None or ran.blamed.rank < 0 else (ran.blamed.rank, ran.blamed.host)
        return ended._replace(launcher=ran.launcher, at=at)

    def _ended(self, code: int, why: str, program: str, workdir: str, cpu_s: float, max_rss_bytes: int) -> Ended:
        outcome = Outcome.CRASHED if code < 0 else Outcome.FAILED if code else Outcome.SUCCEEDED
        outside = code != 0 and (self._terminated or -code in (signal.SIGTERM, signal.SIGKILL))
        kept = ((EXIT_CODE, self._exchange.keep(encode(code)) if code else _ZERO),)
        path = os.path.join(workdir, program)
        return Ended(outcome, code, why, kept, cpu_s, max_rss_bytes, outside, (path, file_digest(path)))

    def _find(self, program: str, search: str) -> str:
        """Return the file to execute; a bare name that is nowhere on the task's PATH stays one, to be refused."""
        if "/" in program:
            return program
        found = self._found.get((program, search))
        if found is None or not os.access(found, os.X_OK):
            candidates = (os.path.join(folder, program) for folder in search.split(":"))
            usable = (path for path in candidates if os.access(path, os.X_OK) and os.path.isfile(path))
            found = self._found[program, search] = next(usable, f"/nonexistent/{program}")
        return found

    def _first_program(self, script: str, env: Mapping[str, str]) -> str:
        """Return the file of the first program of a shell command: its MPI is taken for that of all."""
        words = [word for word in script.split() if word != "exec" and "=" not in word]
        return self._find(words[0], env.get("PATH", os.defpath)) if words else ""

    # -- after --------------------------------------------------------------------------------------

    def _collect(self, command: Command, workdir: str, removed: bool) -> tuple[tuple[tuple[str, Blob], ...], str]:
        """Return the outputs found, and what to say if one is missing: then none was kept.

        Args:
            command: what ran.
            workdir: where.
            removed: it will be, after this.
        """
        found: dict[str, list[str]] = {}
        for name, pattern in command.outputs.items():
            kept = name in command.keep
            found[name] = _matches(_inside(pattern, "output"), workdir, kept)
            if not found[name]:
                what = "file or directory" if kept else "file"
                return (), f"its output {name!r} is missing: no {what} matches {pattern!r} in {workdir!r}"
        outputs: list[tuple[str, Blob]] = []
        for name, paths in found.items():
            keep = command.keep.get(name)
            contents = {path: _content(os.path.join(workdir, path), keep, removed) for path in paths}
            value = contents[paths[0]] if len(paths) == 1 else contents
            outputs.append((name, self._exchange.keep(encode(value, f"the output {name!r}"))))
        return tuple(outputs), ""


def _stays(command: Command) -> bool:
    """Whether a private working directory is not removed, since it is the place of an output that stays in place."""
    return IN_PLACE in command.keep.values()


def _shown(work: Work) -> str:
    return repr(clipped(" ".join(_command_of(work).argv), _SHOWN_BYTES))


def _ending(code: int) -> str:
    return signal_text(-code) if code < 0 else f"ended with exit code {code}"


def _ending_of(work: Work, ran: Ran) -> str:
    """Say how an MPI program ended; empty if well."""
    if not ran.code:
        return ""
    known = ran.blamed is not None and ran.blamed.rank >= 0
    one = f"rank {ran.blamed.rank} of {work.ranks} of " if ran.blamed is not None and known else ""
    how = _ending(ran.code)
    if ran.blamed is not None and not known and ran.code == -signal.SIGKILL:
        how = "ended by signal 9 (SIGKILL): of a rank that was killed, or its launcher's, after a rank had left early"
    return f"{one}the program {_shown(work)} {how}"


def redirection(stdout: str | None) -> list[tuple[int, int, str, int, int]]:
    """Return what opens a file as a program's standard output; nothing for None."""
    return [] if stdout is None else [(os.POSIX_SPAWN_OPEN, 1, stdout, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)]


def _stdout_of(work: Work) -> str | None:
    """Return the file, below the working directory, that gets a command's standard output."""
    stdout = _command_of(work).stdout
    return None if stdout is None else _inside(stdout, "file")


def _command_of(work: Work) -> Command:
    if work.command is None:
        raise InvalidInput(f"task {work.task} is to run a command but has none")
    return work.command


def _inside(path: str, what: str) -> str:
    if os.path.isabs(path) or ".." in path.split("/") or path.endswith("/"):
        raise InvalidInput(f"the {what} {path!r} of the command is not a relative path below its working directory")
    return path


def _not_started(program: str, workdir: str, error: OSError) -> Ended:
    """Say why a program could not be started, with the exit code a shell would give."""
    code = NOT_FOUND if error.errno == errno.ENOENT else NOT_EXECUTABLE
    if error.errno == errno.ENOENT:
        there = "/" in program and os.path.exists(os.path.join(workdir, program))
        why = "the interpreter in its first line does not exist" if there else "not found"
    elif error.errno == errno.ENOEXEC:
        why = "neither a program for this machine nor a script with #! in its first line"
    else:
        why = str(error.strerror)
    return Ended(Outcome.FAILED, code, f"cannot run the program {clipped(program, _SHOWN_BYTES)!r}: {why}")


def _matches(pattern: str, workdir: str, directories: bool) -> list[str]:
    """Return what a glob fits: files, and if `directories` those too, but then nothing that lies in one of them."""
    import glob

    paths = sorted(glob.glob(pattern, root_dir=workdir, recursive=True))
    if not directories:
        return [path for path in paths if os.path.isfile(os.path.join(workdir, path))]
    found: dict[str, None] = {}
    for path in paths:
        parts = path.rstrip("/").split("/")
        if parts != [""] and not any("/".join(parts[:end]) in found for end in range(1, len(parts))):
            found["/".join(parts)] = None
    return list(found)


def _content(path: str, keep: str | None, owned: bool) -> Any:
    """Return an output: its bytes, or a `pilot.File`, which may be linked if it is ours."""
    if keep is None:
        with open(path, "rb") as file:
            return file.read()
    from pilot.file import File

    made = File(path, IN_PLACE if keep == IN_PLACE else True)
    made.owned = owned
    return made


def _put_file(file: File, path: str) -> None:
    """Make an input that is a `pilot.File`: a copy, or, of one that stays in place, a symbolic link to it."""
    if file.keep != IN_PLACE:
        file.copy_to(path)
        return
    target = file.path
    with suppress(FileNotFoundError):
        if os.path.realpath(path) == os.path.realpath(target):
            return
        os.unlink(path)
    os.symlink(target, path)
