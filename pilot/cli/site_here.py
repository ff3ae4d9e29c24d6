"""What `pilot site check` can try from where it is, without a job."""

from __future__ import annotations

import os
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pilot import allocation, limits, reach
from pilot.cli.checkup import Check
from pilot.config import ProjectConfig
from pilot.errors import LauncherNotFound, SchedulerError
from pilot.executors.batch.command import ask
from pilot.executors.batch.jobs import Request
from pilot.executors.batch.modules import load_argv, loaded
from pilot.executors.batch.scheduler import Scheduler, system_of
from pilot.executors.run.launch import Launchers, choose
from pilot.findings import Finding, note, ok, wrong
from pilot.pool_program import find_launcher
from pilot.settings import PilotSettings
from pilot.site_judge import judge_queue
from pilot.sites import here, launchers

if TYPE_CHECKING:
    from pilot.sites import Batch, Site

_SHELL_S = 60.0
_OPTIONAL = frozenset({"sacct"})
"""Commands without which less is known, and all works."""
_NEVER = re.compile(r"(?!)")


@dataclass(frozen=True)
class Subject:
    """What is checked."""

    site: Site
    files: tuple[Path, ...]
    """That make it."""
    settings: PilotSettings
    """Of the pilot that would be asked for."""
    folder: Path
    """Of that pilot; it need not be there."""
    queue: str
    account: str
    project: ProjectConfig | None
    """Whose store is to be reached; None: there is none here."""

    @property
    def batch(self) -> Batch:
        """How pilots get onto nodes; asked for only if they do by a batch system."""
        assert self.site.batch is not None
        return self.site.batch

    @property
    def scheduler(self) -> Scheduler:
        """The site's batch system."""
        return Scheduler(system_of(self.batch.system))

    def request(self) -> Request:
        """Return what the batch system would be asked for."""
        return allocation.request_of(self.site, self.settings, self.queue, self.account)

    def script(self) -> str:
        """Return the batch script that `pilot up` would submit."""
        return allocation.batch_script(self.batch, self.request(), allocation.agent_argv(self.folder))


def checks(site: Site) -> list[tuple[str, Check[Subject]]]:
    """Return what can be tried of a site."""
    everywhere: list[tuple[str, Check[Subject]]] = [
        ("file", _file), ("place", _place), ("python", _python), ("launcher", _launcher), ("programs", _programs),
    ]  # fmt: skip
    batch: list[tuple[str, Check[Subject]]] = [
        ("commands", _commands), ("queue", _queues), ("reach", _reach), ("script", _script),
    ]  # fmt: skip
    return [*everywhere, *(batch if site.batch else [])]


def _file(subject: Subject) -> Iterator[Finding]:
    site = subject.site
    shown = ", which extends ".join(map(str, subject.files))
    if site.verified is None:
        yield note("file", f"{shown}: nobody has compared it with the machine, or has written so under `verified`")
    else:
        yield ok("file", f"{shown}: compared on {site.verified.date} with {site.verified.source}")
    if site.unverified:
        yield note("file", f"of these keys nobody has made sure: {', '.join(site.unverified)}")


def _place(subject: Subject) -> Iterator[Finding]:
    site, fqdn = subject.site, socket.getfqdn()
    if here(site, os.environ, fqdn):
        yield ok("place", f"{fqdn} is of site {site.name}")
    elif site.detect.env or site.detect.domain:
        yield note("place", f"{fqdn} is not of site {site.name}, as `detect` has it: what follows is of this machine")


def _python(subject: Subject) -> Iterator[Finding]:
    yield ok("python", f"{sys.version.split()[0]}, {sys.executable}; compute nodes have to see it at this path")


def _launcher(subject: Subject) -> Iterator[Finding]:
    name = subject.site.launcher.command[0]
    found = find_launcher(name)
    if subject.site.batch and subject.site.batch.modules:
        modules = subject.site.batch.modules
        told = loaded(ask(load_argv(modules, name), _NEVER, deadline_s=_SHELL_S))
        found = found or told.program
        if not told.there:
            yield wrong("modules", "a login shell here has no `module` command; is this a login node of the site?")
        elif told.missing:
            text = f"{', '.join(told.missing)} cannot be loaded, or changes nothing"
            yield wrong("modules", f"{text}; `module avail` shows what there is, correct batch.modules")
        else:
            yield ok("modules", f"{', '.join(modules)} can be loaded")
    if found:
        yield ok("launcher", found)
        return
    text = f"{name!r} of launcher.command is neither beside Python nor on the PATH"
    if subject.site.batch and subject.site.batch.setup:
        yield note("launcher", f"{text}; batch.setup may change that in a job: `--in-job` tries it")
    else:
        yield wrong("launcher", f"{text}; install it, name the module under batch.modules, or correct the command")


def _programs(subject: Subject) -> Iterator[Finding]:
    site = subject.site
    if not site.programs:
        yield note("programs", "the file has no `programs`: MPI programs of tasks cannot be started")
        return
    try:
        chosen = choose(Launchers.of(launchers(site)), "", os.environ)
    except LauncherNotFound as exc:
        yield note("programs", f"{exc}; in a job that may be otherwise: `--in-job` tries it")
        return
    yield ok("programs", f"{chosen.flavour}: {chosen.path}")


# -- batch system ---------------------------------------------------------------------------------


def _commands(subject: Subject) -> Iterator[Finding]:
    system = system_of(subject.batch.system)
    missing = [name for name in system.COMMANDS if shutil.which(name) is None]
    if needed := [name for name in missing if name not in _OPTIONAL]:
        text = f"{', '.join(needed)} of {system.NAME} not on the PATH"
        yield wrong("commands", f"{text}; is this a login node of the site, or is a module to be loaded first?")
    elif missing:
        yield note("commands", f"{', '.join(missing)} not on the PATH: less is known of jobs that are over")
    else:
        yield ok("commands", f"{', '.join(system.COMMANDS)} of {system.NAME} are there")


def _queues(subject: Subject) -> Iterator[Finding]:
    batch = subject.batch
    said = subject.scheduler.queues()
    if not said:
        yield note("queue", f"{batch.system} answers, but tells of no queue that can be read")
        return
    if batch.queue_option:
        yield note("queue", f"{batch.queue_option!r} names no partition: queues cannot be looked up")
        return
    asked = subject.queue or batch.queue
    names: list[str] = [asked, *batch.queues] if asked else [*batch.queues]
    for name in dict.fromkeys(names):
        yield from judge_queue(name, batch.queues.get(name), said)
    if not asked:
        yield note("queue", f"none is named, the default is taken; there are {', '.join(sorted(said))}")


def _reach(subject: Subject) -> Iterator[Finding]:
    yield from reach.findings(subject.site, subject.project)


def _script(subject: Subject) -> Iterator[Finding]:
    batch = subject.batch
    request = subject.request()
    limits.check(subject.site, request.nodes, request.walltime_s, request.queue, request.account)
    with tempfile.TemporaryDirectory(prefix="pilot-check-") as folder:
        try:
            words = subject.scheduler.try_out(Path(folder), subject.script())
        except SchedulerError as exc:
            yield wrong("script", f"{exc}; `pilot site show {subject.site.name} --script` prints the script")
            return
    if words is None:
        text = f"{system_of(batch.system).NAME} cannot say whether it would take the script"
        yield note("script", f"{text}; `pilot site show {subject.site.name} --script` prints it, `--in-job` tries")
    else:
        yield ok("script", words or "it would be taken")
