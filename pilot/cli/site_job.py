"""`pilot site check --in-job`: submit the job that tries what cannot be tried from here, and pass on what it finds."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pilot import allocation, limits, reach
from pilot.cli import text
from pilot.cli.common import tell
from pilot.config import ProjectConfig
from pilot.errors import PilotError, SchedulerError
from pilot.executors.batch.jobs import Job
from pilot.executors.batch.scheduler import Scheduler, printed, system_of
from pilot.findings import Finding, wrong
from pilot.settings import PilotSettings
from pilot.site_probe import ProbeSettings, Results
from pilot.states import OVER
from pilot.store.access import checked, store_of

if TYPE_CHECKING:
    from pilot.sites import Site

_TICK_S = 0.2
_ASK_S = 5.0
"""How often the batch system is asked."""
_LAG_S = 15.0
"""So long after a job's end a shared file system may show its last lines."""
_WORDS = 500


@dataclass(frozen=True)
class Trial:
    """A job to be tried."""

    site: Site
    config: ProjectConfig | None
    settings: PilotSettings
    queue: str
    account: str
    timeout_s: float
    """The job is cancelled after so long, queued or running."""


def run(trial: Trial) -> Iterator[Finding]:
    """Submit the job, wait for it, and return what it finds as it does; it does not outlive this.

    Raises:
        InvalidInput: the site's queue takes no such job.
        SchedulerError: the batch system refused the job, did not answer, or is not there.
    """
    assert trial.site.batch is not None
    request = allocation.request_of(trial.site, trial.settings, trial.queue, trial.account)
    request = request._replace(warn_s=0, requeue=False, smaller=False)
    limits.check(trial.site, request.nodes, request.walltime_s, request.queue, request.account)
    yield from _store(trial.config, trial.site)
    folder = _folder(trial)
    folder.mkdir(parents=True, mode=0o700)
    told = folder / "check.json"
    site = trial.site
    ProbeSettings(trial.settings, site.node.cores, site.launcher.programs_beside_pool).write(told)
    argv = [sys.executable, "-P", "-m", "pilot.site_probe", str(told)]
    scheduler = Scheduler(system_of(trial.site.batch.system))
    job = scheduler.submit(folder, allocation.batch_script(trial.site.batch, request, argv))
    tell(f"job {job} is in the queue; its script and what it prints lie in {folder}")
    over = False
    try:
        over = yield from _await(scheduler, job, folder, trial.timeout_s)
    finally:
        if not over:
            scheduler.cancel([job])


def _folder(trial: Trial) -> Path:
    name = trial.settings.pilot
    return trial.config.folder / "checks" / name if trial.config else Path.cwd() / f"pilot-check-{name}"


def _store(config: ProjectConfig | None, site: Site) -> Iterator[Finding]:
    """Start the project's store where compute nodes reach it, as `pilot up` does."""
    if config is None:
        return
    try:
        if not site.reach.in_pilot and (words := reach.open_to(config, site)):
            tell(words)
        with store_of(config) as store:
            checked(store, config)
    except PilotError as exc:
        yield wrong("store", f"not even from here: {exc}")


def _await(
    scheduler: Scheduler, job: str, folder: Path, timeout_s: float
) -> Generator[Finding, None, bool]:  # fmt: skip
    """Pass on what the job finds, and say what it waits for; return whether it ends by itself."""
    results = Results(folder)
    deadline = time.monotonic() + timeout_s
    asked, over_at, said = -_ASK_S, 0.0, ""
    while True:
        yield from results.new()
        if results.finished:
            return True
        now = time.monotonic()
        if now - asked >= _ASK_S:
            asked = now
            words, over = _look(scheduler, job)
            over_at = over_at or (now if over else 0.0)
            if words != said:
                said = words
                tell(f"job {job}: {said}")
        if over_at and now - over_at > _LAG_S:
            last = f"; its last words: {words}" if (words := printed(folder, _WORDS)) else ""
            yield wrong("job", f"job {job} ended ({said}) before all was tried{last}; see {folder}")
            return True
        if now > deadline:
            yield wrong("job", f"job {job} was not over after {text.span(timeout_s)} ({said}), and is cancelled")
            return False
        time.sleep(_TICK_S)


def _look(scheduler: Scheduler, job: str) -> tuple[str, bool]:
    """Return what the batch system says of the job, and whether it is over. What is not listed is not over."""
    try:
        found: Job | None = scheduler.look([job]).get(job)
    except SchedulerError as exc:
        return str(exc), False
    if found is None:
        return "not listed by the batch system", False
    return f"{found.state.value}{f': {found.reason}' if found.reason else ''}", found.state in OVER
