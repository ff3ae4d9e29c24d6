"""Tasks as users write them: the `task` decorator and `command`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Generic, ParamSpec, TypeVar, overload

from pilot import calls, functions, source
from pilot.calls import COMM
from pilot.client import Project, current_project
from pilot.errors import InvalidInput
from pilot.file import File
from pilot.future import Future
from pilot.model import IN_PLACE, KEPT, Command
from pilot.progress import bar
from pilot.resources import Resources, TaskSpec, parse_caching
from pilot.states import Kind

P = ParamSpec("P")
R = TypeVar("R")

PRIORITY_MAX = 100


@dataclass(frozen=True, slots=True)
class Options:
    """How tasks are run; the keywords of `task` and `command`."""

    resources: Resources = field(default_factory=Resources)
    retries: int = 0
    priority: int = 0
    tags: tuple[str, ...] = ()
    fresh: bool = False
    gather: bool = False
    name: str | None = None
    cache: str | None = None
    """One of `pilot.resources.CACHING`, or ""; None: as `cache` or the project says."""


_caching: ContextVar[str | None] = ContextVar("caching", default=None)


@contextmanager
def cache(enable: bool | str = True) -> Iterator[None]:
    """Let what is submitted in this block take the results of equal tasks, where a task's own option says nothing.

    Holds for this thread (or asynchronous task), and stands above the project's setting.

    Args:
        enable: True; False: run everything; "environment": only results that were made in the pool's own
            environment, so that another version of a package counts as a change.

    Raises:
        InvalidInput: `enable` is none of these.
    """
    token = _caching.set(parse_caching(enable, "cache"))
    try:
        yield
    finally:
        _caching.reset(token)


def _cache_of(options: Options, project: Project) -> str:
    """Return what holds for a task that is submitted now: its own option, else the block's, else the project's."""
    for said in (options.cache, _caching.get()):
        if said is not None:
            return said
    return project.config.cache


_RESOURCE_NAMES = frozenset(
    {"cores", "memory", "walltime", "ranks", "ranks_per_node", "gpus", "nodes", "near", "contiguous"}
)
_OPTION_NAMES = _RESOURCE_NAMES | {"retries", "priority", "tags", "fresh", "gather", "name", "cache"}


def _options(program: bool = False, /, **given: Any) -> Options:
    """Check what a user wrote, for a program to be started or for a function.

    Raises:
        InvalidInput: an unknown option, a bad duration, a negative resource …; the message names it.
    """
    unknown = given.keys() - _OPTION_NAMES
    if unknown:
        raise InvalidInput(f"unknown task option {sorted(unknown)[0]!r}; there are: {', '.join(sorted(_OPTION_NAMES))}")
    tags = given.get("tags", ())
    if isinstance(tags, str) or not all(isinstance(tag, str) for tag in tags):
        raise InvalidInput(f'tags {tags!r} are not a list of strings; write tags=["eos"]')
    retries, priority = given.get("retries", 0), given.get("priority", 0)
    if not isinstance(retries, int) or retries < 0:
        raise InvalidInput(f"retries {retries!r} is not a whole number of at least 0")
    if not isinstance(priority, int) or abs(priority) > PRIORITY_MAX:
        raise InvalidInput(f"priority {priority!r} is not a whole number from -{PRIORITY_MAX} to {PRIORITY_MAX}")
    resources = Resources.of(program=program, **{name: given[name] for name in _RESOURCE_NAMES & given.keys()})
    fresh, gather = bool(given.get("fresh", False)), bool(given.get("gather", False))
    if gather and resources.ranks is None:
        raise InvalidInput("gather=True keeps the result of every rank, and this task has none; add e.g. ranks=4")
    if fresh and resources.ranks is not None:
        raise InvalidInput("fresh=True asks for a new process, but MPI tasks run in ranks that are up; leave it out")
    wish = given.get("cache")
    caching = None if wish is None else parse_caching(wish)
    return Options(resources, retries, priority, tuple(tags), fresh, gather, given.get("name"), caching)


class Task(Generic[P, R]):
    """A function that can be run by a pilot. Calling it runs it here: plain Python."""

    __pilot_task__ = True

    def __init__(self, function: Callable[P, R], options: Options) -> None:
        if options.resources.ranks is None and calls.requires(function, COMM):
            options = replace(options, resources=options.resources.with_ranks(1))
        self.function = function
        self.options = options
        functools.update_wrapper(self, function)

    def __repr__(self) -> str:
        return f"<task {self.__qualname__}>"  # type: ignore[attr-defined]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here and now; nothing is recorded."""
        return self.function(*args, **kwargs)

    def with_options(self, **changes: Any) -> Task[P, R]:
        """Return the same function with some options changed, e.g. ``walltime="2h"``."""
        old = self.options
        needs = old.resources
        given: dict[str, Any] = {
            "cores": needs.cores, "memory": needs.memory_bytes, "walltime": needs.walltime_s, "ranks": needs.ranks,
            "ranks_per_node": needs.ranks_per_node, "gpus": needs.gpus, "nodes": needs.nodes,
            "near": needs.layout == "near", "contiguous": needs.layout == "contiguous", "retries": old.retries,
            "priority": old.priority, "tags": old.tags, "fresh": old.fresh, "gather": old.gather, "name": old.name,
            "cache": False if old.cache == "" else old.cache,
        }  # fmt: skip
        return Task(self.function, _options(**{**given, **changes}))

    def submit(self, *args: Any, **kwargs: Any) -> Future:
        """Submit one call to the open project; it is durable when this returns.

        Futures may stand anywhere inside the arguments. For many calls `map` is far faster.

        Raises:
            EncodingError: an argument cannot be pickled; the message names it.
            InvalidInput: the arguments do not fit the function.
            StoreUnavailable: the task may or may not have been stored.
        """
        project = current_project()
        make = self._maker(project)
        return project.submit(make(args, kwargs) for _ in range(1))[0]

    def map(self, *iterables: Iterable[Any], **common: Any) -> list[Future]:
        """Submit one call per set of arguments, thousands per round trip, and return the futures in order.

        Args:
            iterables: of one length; the k-th call gets the k-th item of each.
            common: keyword arguments that all calls share.

        Raises:
            InvalidInput: the lengths differ, or the arguments do not fit the function.
        """
        project = current_project()
        make = self._maker(project)
        total = min((len(i) for i in iterables if isinstance(i, Sized)), default=None)
        with bar(f"submitting {self.options.name or self.__name__}", total) as advance:  # type: ignore[attr-defined]
            return project.submit((make(args, common) for args in _rows(iterables)), advance)

    def _maker(self, project: Project) -> Callable[[Sequence[Any], Mapping[str, Any]], TaskSpec]:
        """Return a function from arguments to a task; what all tasks share is done once."""
        project.check_offer(self.options.resources)
        code = functions.describe(self.function)
        project.register_function(code)
        options = self.options
        name = options.name or code.qualname
        folder = source.folder_of(self.function)
        function, encode, new_id = self.function, project.encode_input, project.new_id
        caching = _cache_of(options, project)
        mpi = options.resources.ranks is not None and calls.takes(function, COMM)
        bind = _bind_without_comm if mpi else calls.bind

        def make(args: Sequence[Any], kwargs: Mapping[str, Any]) -> TaskSpec:
            inputs = tuple(encode(key, value, name) for key, value in bind(function, args, kwargs))
            return TaskSpec(
                new_id(), Kind.FUNCTION, name, inputs, code.hash, None, options.resources, options.priority,
                options.retries, options.fresh, options.tags, folder, options.gather, cache=caching,
            )  # fmt: skip

        return make


def _bind_without_comm(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> list[tuple[str, Any]]:
    """Bind the arguments of an MPI function, all but the communicator, which its pool gives it."""
    if COMM in kwargs:
        raise InvalidInput(f"argument {COMM!r} is the communicator, which the pool passes; leave it out of submit")
    place = calls.position(function, COMM)
    if place is not None and place < len(args):
        args = [*args[:place], None, *args[place:]]
    else:
        kwargs = {**kwargs, COMM: None}
    return [pair for pair in calls.bind(function, args, kwargs) if pair[0] != COMM]


def _rows(iterables: Sequence[Iterable[Any]]) -> Iterator[tuple[Any, ...]]:
    if not iterables:
        raise InvalidInput("map needs at least one iterable of arguments")
    try:
        yield from zip(*iterables, strict=True)
    except ValueError as exc:
        raise InvalidInput(f"map got iterables of different lengths: {exc}") from exc


@overload
def task(function: Callable[P, R], /) -> Task[P, R]: ...
@overload
def task(**options: Any) -> Callable[[Callable[P, R]], Task[P, R]]: ...
def task(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Make a function a task: ``@pilot.task`` or ``@pilot.task(cores=1, walltime="5m", retries=2)``.

    With ``ranks`` it is an MPI function: it runs on so many ranks at once, its parameter ``comm`` (or
    ``pilot.current().comm``) is their communicator, and what rank 0 returns is the result. A parameter ``comm``
    without a default makes it one, of a single rank if ``ranks`` does not say more.

    Args:
        function: when used without parentheses.
        options: ``cores`` and ``memory`` ("2G") of each rank; ``walltime`` ("5m"), after which it is killed;
            ``ranks``, ``ranks_per_node``; ``gpus`` of each rank, fractions allowed; ``nodes``: so many whole
            ones; ``near``: on one node; ``contiguous``: on neighbouring nodes; ``gather``: the result is the
            list of what all ranks return; ``retries`` of failed attempts; ``priority`` (larger is sooner);
            ``tags``; ``fresh``: run in a new process; ``name`` to be shown; ``cache``: take the result of an equal
            task if there is one, see `cache`.

    Raises:
        InvalidInput: an option is unknown or has a bad value.
    """
    checked = _options(**options)
    if function is None:
        return lambda inner: Task(inner, checked)
    if not callable(function):
        raise InvalidInput(f"task options are given by name, e.g. cores=2, not as {function!r}")
    return Task(function, checked)


@dataclass(frozen=True, slots=True)
class CommandTask:
    """A program that can be run by a pilot; made by `command`."""

    command: Command
    inputs: Mapping[str, Any]
    options: Options

    def submit(self) -> Future:
        """Submit it to the open project. Its result is its named outputs, and ``exit_code``, by name."""
        project = current_project()
        return project.submit(self._spec(project) for _ in range(1))[0]

    def map(self, count: int) -> list[Future]:
        """Submit it `count` times."""
        project = current_project()
        spec = self._spec(project)
        with bar(f"submitting {spec.name}", count) as advance:
            return project.submit((spec._replace(id=project.new_id()) for _ in range(count)), advance)

    def _spec(self, project: Project) -> TaskSpec:
        options = self.options
        project.check_offer(options.resources)
        name = options.name or (self.command.argv[0].split()[0] if self.command.shell else self.command.argv[0])
        inputs = tuple(project.encode_input(key, value, name) for key, value in self.inputs.items())
        return TaskSpec(
            project.new_id(), Kind.COMMAND, name, inputs, None, self.command, options.resources, options.priority,
            options.retries, options.fresh, options.tags, cache=_cache_of(options, project),
        )  # fmt: skip


def command(
    argv: Sequence[str] | str,
    *,
    inputs: Mapping[str, Any] | None = None,
    outputs: Mapping[str, str | File] | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    shell: bool = False,
    stdout: str | None = None,
    **options: Any,
) -> CommandTask:
    """Describe a program to run.

    Args:
        argv: program and arguments as a list; a string only with ``shell=True``.
        inputs: file name → text, bytes, a `File`, or a future of one; written into its private working directory. A
            file or directory that is kept is copied there; to one that stays in place, a symbolic link is made.
        outputs: name → glob of files to keep, relative to the working directory: as text for their bytes, as a `File`
            for files and directories as they are, which never go through memory.
        env: variables to set.
        cwd: working directory; default: a private one if there are files, else the project's.
        shell: run a string with ``/bin/sh -c``.
        stdout: name of a file in its private working directory for what it prints, e.g. to be kept as an output;
            default: that is captured for `pilot logs`.
        options: as of `task`; with ``ranks`` the site's MPI launcher starts it on so many.

    Raises:
        InvalidInput: a string without ``shell=True``, an empty list, an unknown option …
    """
    if isinstance(argv, str) != shell:
        how = "a list of arguments" if isinstance(argv, str) else "a string"
        raise InvalidInput(f"command {argv!r} should be {how}{' (or say shell=True)' if isinstance(argv, str) else ''}")
    words = (argv,) if isinstance(argv, str) else tuple(map(str, argv))
    if not words or not words[0]:
        raise InvalidInput(f"command {argv!r} names no program")
    files = {name: name for name in inputs or {}}
    for name in (*files, *((stdout,) if stdout is not None else ())):
        if not name or name.startswith("/") or ".." in name.split("/"):
            raise InvalidInput(f"file {name!r} of the command is not below its working directory")
    if options.get("gather"):
        raise InvalidInput("gather=True is for functions; name the files that a command's ranks write in outputs")
    globs = {name: glob.given if isinstance(glob, File) else glob for name, glob in (outputs or {}).items()}
    keep = {
        name: IN_PLACE if file.keep == IN_PLACE else KEPT
        for name, file in (outputs or {}).items() if isinstance(file, File)
    }  # fmt: skip
    made = Command(words, shell, cwd, dict(env or {}), files, globs, stdout, keep)
    return CommandTask(made, dict(inputs or {}), _options(True, **options))
