"""A batch system at work: submit a script, look at jobs, cancel them. The thin part that runs commands."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from pilot.errors import ConfigError, SchedulerError, SubmissionRejected
from pilot.executors.batch import pbs, slurm
from pilot.executors.batch.command import DEADLINE_S, Said, ask
from pilot.executors.batch.jobs import Job, Jobs, Own, QueueNow, Request
from pilot.executors.batch.script import ID, OUTPUT, SCRIPT

log = logging.getLogger(__name__)


class System(Protocol):
    """What a module that speaks a batch system's language has. All of it is pure."""

    @property
    def NAME(self) -> str: ...  # noqa: D102
    @property
    def COMMANDS(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def UNREACHABLE(self) -> re.Pattern[str]: ...  # noqa: D102
    @property
    def GONE(self) -> re.Pattern[str]: ...  # noqa: D102
    @property
    def KEYS(self) -> Mapping[str, re.Pattern[str]]: ...  # noqa: D102
    @property
    def KEPT(self) -> Sequence[str]: ...  # noqa: D102

    def directives(self, request: Request) -> list[str]: ...  # noqa: D102
    def submit_argv(self, script: str) -> list[str]: ...  # noqa: D102
    def trial_argv(self, script: str) -> list[str]: ...  # noqa: D102
    def submitted(self, said: Said) -> str | None: ...  # noqa: D102
    def status_argv(self, ids: Sequence[str], user: int) -> list[str]: ...  # noqa: D102
    def answered(self, said: Said) -> bool: ...  # noqa: D102
    def status(self, said: Said) -> dict[str, Job]: ...  # noqa: D102
    def accounting_argv(self, ids: Iterable[str]) -> list[str]: ...  # noqa: D102
    def accounting(self, said: Said) -> dict[str, Job]: ...  # noqa: D102
    def cancel_argv(self, ids: Iterable[str]) -> list[str]: ...  # noqa: D102
    def down_argv(self, hosts: Iterable[str]) -> list[str]: ...  # noqa: D102
    def down(self, said: Said) -> frozenset[str]: ...  # noqa: D102
    def queues_argv(self) -> list[str]: ...  # noqa: D102
    def queues(self, said: Said) -> dict[str, QueueNow]: ...  # noqa: D102
    def own(self, env: Mapping[str, str]) -> Own | None: ...  # noqa: D102


SYSTEMS: Mapping[str, System] = {"slurm": slurm, "pbs": pbs}
"""By the word of the site file."""


def system_of(name: str) -> System:
    """Return the batch system of this name.

    Raises:
        ConfigError: there is none.
    """
    try:
        return SYSTEMS[name]
    except KeyError:
        raise ConfigError(f"no batch system {name!r}; there are: {', '.join(SYSTEMS)}") from None


def printed(folder: Path, most: int = 300) -> str:
    """Return the end of what a job has printed, on one line; "" if nothing, or nothing yet.

    Args:
        folder: of the job.
        most: characters.
    """
    try:
        return " ".join((folder / OUTPUT).read_text(errors="replace").split())[-most:]
    except OSError:
        return ""


class Scheduler:
    """A site's batch system.

    Args:
        system: its language.
        deadline_s: when one of its commands is killed.
    """

    def __init__(self, system: System, deadline_s: float = DEADLINE_S) -> None:
        self._system = system
        self._deadline_s = deadline_s

    def submit(self, folder: Path, script: str) -> str:
        """Submit a script and return the job's id; the folder keeps both, and what the job prints.

        Raises:
            SubmissionRejected: with the batch system's own words.
            SchedulerUnreachable: it did not answer. The job may be queued all the same: look for it by its name.
            SchedulerNotFound: the command is not there.
        """
        (folder / SCRIPT).write_text(script)
        said = self._ask(self._system.submit_argv(SCRIPT), folder)
        job = self._system.submitted(said)
        if job is None:
            words = said.words or f"exit code {said.code}, and nothing else"
            raise SubmissionRejected(
                f"{self._system.NAME} refused the job of {str(folder / SCRIPT)!r}: {words}"
                f"{_advice(self._system, words)}"
            )
        (folder / ID).write_text(f"{job}\n")
        return job

    def try_out(self, folder: Path, script: str) -> str | None:
        """Return what the batch system says to a script, in this folder, without taking it; None if it cannot say.

        Raises:
            SubmissionRejected: it would refuse it, with its own words.
            SchedulerError: it did not answer, or is not there.
        """
        argv = self._system.trial_argv(SCRIPT)
        if not argv:
            return None
        (folder / SCRIPT).write_text(script)
        said = self._ask(argv, folder)
        if said.code:
            advice = _advice(self._system, said.words)
            raise SubmissionRejected(f"{self._system.NAME} would refuse the job: {said.words}{advice}")
        return said.words

    def queues(self) -> Mapping[str, QueueNow]:
        """Return what is said of the queues, by name; empty if the answer cannot be read.

        Raises:
            SchedulerError: it did not answer, refused to, or is not there.
        """
        said = self._ask(self._system.queues_argv())
        if said.code:
            raise SchedulerError(f"{self._system.NAME} does not tell of queues: {said.words}")
        return self._system.queues(said)

    def look(self, ids: Collection[str]) -> Jobs:
        """Return what is known of jobs, by one call for all of them, and one more for those that are over.

        Raises:
            SchedulerUnreachable: it did not answer: nothing is known of any.
            SchedulerError: it refused to.
        """
        wanted = sorted(ids)
        if not wanted:
            return {}
        said = self._ask(self._system.status_argv(wanted, os.getuid()))
        if not self._system.answered(said):
            raise SchedulerError(f"{self._system.NAME} does not tell of jobs: {said.words}")
        found = self._system.status(said)
        found = {job: found[job] for job in wanted if job in found}
        return {**found, **self._over([job for job in wanted if job not in found])}

    def cancel(self, ids: Iterable[str]) -> None:
        """End jobs, or take them out of the queue; of those that are over nothing is said.

        Raises:
            SchedulerUnreachable: it did not answer.
            SchedulerError: it refused to.
        """
        wanted = list(ids)
        said = self._ask(self._system.cancel_argv(wanted)) if wanted else Said(0, "", "")
        wrong = [line for line in said.err.splitlines() if line.strip() and not self._system.GONE.search(line)]
        if said.code and wrong:
            raise SchedulerError(f"{self._system.NAME} does not cancel jobs {', '.join(wanted)}: {' / '.join(wrong)}")

    def hosts(self, own: Own) -> tuple[str, ...]:
        """Return the nodes of the job that this process is part of, each once, in the batch system's order.

        Raises:
            SchedulerError: they cannot be found out.
        """
        said = self._ask(own.hosts_argv)
        hosts = tuple(dict.fromkeys(line.strip() for line in said.out.splitlines() if line.strip()))
        if said.code or not hosts:
            raise SchedulerError(f"cannot find out the nodes of job {own.id}: {said.words or 'none are named'}")
        return hosts

    def down(self, hosts: Iterable[str]) -> frozenset[str]:
        """Return which of these nodes it takes for dead; none where it ends a job with its first dead node.

        Raises:
            SchedulerError: it does not answer, or refuses to.
        """
        argv = self._system.down_argv(hosts)
        if not argv:
            return frozenset()
        said = self._ask(argv)
        if said.code:
            raise SchedulerError(f"{self._system.NAME} does not tell of nodes: {said.words}")
        return self._system.down(said)

    def _over(self, ids: Sequence[str]) -> Jobs:
        """Ask the accounting for jobs that are not in the queue; without it nothing is known of them."""
        argv = self._system.accounting_argv(ids) if ids else []
        if not argv:
            return {}
        try:
            said = self._ask(argv)
        except SchedulerError as exc:
            log.warning("cannot ask the accounting for jobs %s: %s", ", ".join(ids), exc)
            return {}
        if said.code:
            log.info("the accounting does not tell of jobs %s: %s", ", ".join(ids), said.words)
        return self._system.accounting(said)

    def _ask(self, argv: Sequence[str], cwd: Path | None = None) -> Said:
        return ask(argv, self._system.UNREACHABLE, cwd=cwd, deadline_s=self._deadline_s)


_OPTIONS = {"batch.account": "--account", "batch.queue": "--queue", "batch.queues": "--nodes and --walltime"}
"""What of `pilot up` overrules or obeys a key of the site's file."""


def _advice(system: System, words: str) -> str:
    key = next((key for key, pattern in system.KEYS.items() if pattern.search(words)), None)
    option = f", or give {_OPTIONS[key]}" if key in _OPTIONS else ""
    return "" if key is None else f"; see {key} of the site's file{option}"
