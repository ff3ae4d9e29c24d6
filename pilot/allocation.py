"""Ask a site for a pilot: what it is told, its batch script, and the submission of that."""

from __future__ import annotations

import logging
import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pilot import limits, reach
from pilot.config import ProjectConfig
from pilot.errors import InvalidInput, PilotError, SchedulerUnreachable
from pilot.executors.batch.jobs import Request
from pilot.executors.batch.scheduler import Scheduler, system_of
from pilot.executors.batch.script import export, script
from pilot.offers import usual_slots
from pilot.settings import PilotSettings, new_pilot_id
from pilot.site_files import digest_of
from pilot.sites import launchers
from pilot.states import PilotState
from pilot.store import pilots
from pilot.store.local import LocalServer
from pilot.store.mongo import Store

if TYPE_CHECKING:
    from pilot.sites import Batch, Node, Site

log = logging.getLogger(__name__)

SETTINGS = "settings.json"
"""File of a pilot's folder that tells its agent what to do."""
WARNING_S = 90.0
"""A batch system may warn so much too late: Slurm's signals come with its own clock, up to a minute off."""
RESTARTS_S = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 240.0)
"""Delays before starts of a pool in a batch job: together longer than it takes to find a node dead (Slurm: 300 s)."""


def pilot_settings(
    config: ProjectConfig | None,
    site: Site,
    slots: int | None = None,
    slot_cores: int | None = None,
    walltime_s: float | None = None,
    idle_s: float | None = None,
    nodes: int = 1,
    program_nodes: int = 0,
) -> PilotSettings:
    """Return what a new pilot is told.

    Args:
        config: the project; None: there is none, the pilot is only looked at.
        site: where it runs.
        slots: worker slots of each node; None: the site's number, or as many as the cores allow.
        slot_cores: cores of each; None: the site's number.
        walltime_s: end the pilot after so long.
        idle_s: end it after so long without work.
        nodes: of its batch job.
        program_nodes: so many of them are kept for MPI programs.

    Raises:
        InvalidInput: the site starts MPI programs beside its pools, or no node is left for a pool.
    """
    beside = site.launcher.programs_beside_pool
    if program_nodes and beside == "share":
        raise InvalidInput(
            f"program nodes {program_nodes}: site {site.name!r} starts MPI programs on the nodes of its pools "
            "(launcher.programs_beside_pool is 'share'); leave --program-nodes out"
        )
    if program_nodes >= nodes:
        raise InvalidInput(
            f"program nodes {program_nodes} of {nodes}: a pool, which starts the programs, needs a node too; "
            f"ask for more, `--nodes {program_nodes + 1}`"
        )
    slot_cores = slot_cores or site.cores_per_slot
    settings = PilotSettings(
        str(config.root) if config else "", new_pilot_id(), site.name, site.launcher.command,
        slots or usual_slots(site, slot_cores), slot_cores, nodes, batch=site.batch.system if site.batch else "",
        requeue=bool(site.batch and site.batch.requeue),
        store_in_pilot=bool(site.batch and config and config.embedded and site.reach.in_pilot),
        interfaces=site.reach.interfaces, walltime_s=walltime_s, idle_s=idle_s, site_digest=digest_of(site),
        host_line=site.launcher.host_line, line_per_rank=site.launcher.line_per_rank, launcher_env=site.launcher.env,
        one_node=site.launcher.one_node, block_nodes=site.launcher.block_nodes,
        programs_beside_pool=beside, program_nodes=program_nodes,
        pretend_nodes=site.pretend_nodes, gpus=site.node.gpu_ids, cpu_order=site.node.cpu_order or (),
        steps_max=site.max_concurrent_steps, one_node_steps="always" in site.steps, launchers=launchers(site),
    )  # fmt: skip
    if site.batch:
        settings = replace(settings, restarts_s=RESTARTS_S)
    if walltime_s is None:
        return settings
    drain_s, stop_s = min(settings.drain_s, walltime_s / 4), min(settings.stop_s, walltime_s / 8)
    return replace(settings, drain_s=drain_s, stop_s=stop_s)  # a short one leaves no time for the usual margins


def make_folder(config: ProjectConfig, settings: PilotSettings) -> Path:
    """Make the pilot's folder, with what its agent is told, and return it."""
    folder = config.pilot_folder(settings.pilot)
    folder.mkdir(parents=True, mode=0o700)
    settings.write(folder / SETTINGS)
    return folder


def agent_argv(folder: Path) -> list[str]:
    """Return the command that runs the agent of the pilot of this folder."""
    return [sys.executable, "-P", "-m", "pilot.agent", str(folder / SETTINGS)]


def request_of(site: Site, settings: PilotSettings, queue: str = "", account: str = "") -> Request:
    """Return what the site's batch system is asked for.

    Raises:
        InvalidInput: no walltime is given; without one nobody knows when to drain.
    """
    batch = site.batch
    assert batch is not None
    if settings.walltime_s is None:
        raise InvalidInput(f"a pilot of site {settings.site!r} needs a walltime: `--walltime 2h`")
    queue, account = queue or batch.queue, account or batch.account
    return Request(
        f"pilot-{settings.pilot}", settings.nodes, settings.walltime_s,
        warn_s=math.ceil(min(settings.drain_s + WARNING_S, settings.walltime_s / 2)),
        queue=queue, queue_option=batch.queue_option, account=account, account_option=batch.account_option,
        options=_options(batch, site.node, settings.nodes, queue, account), requeue=settings.requeue,
        smaller=settings.pool_nodes > settings.block_nodes,
    )  # fmt: skip


def _options(batch: Batch, node: Node, nodes: int, queue: str, account: str) -> tuple[str, ...]:
    """Return the site's further directives with their numbers filled in, then those of the queue."""
    of_queue = batch.queues[queue].options if queue in batch.queues else ()
    places = {
        "nodes": nodes, "cores": nodes * (node.cores or 0), "gpus": nodes * node.gpus,
        "memory_mb": nodes * (node.memory_bytes or 0) // (1 << 20), "account": account,
    }  # fmt: skip
    return tuple(option.format(**places) for option in (*batch.options, *of_queue))


def batch_script(batch: Batch, request: Request, argv: Sequence[str]) -> str:
    """Return the script of a pilot. Pure: the same site and request give the same text."""
    modules = [_loaded(module) for module in batch.modules]
    exports = [export(name, value) for name, value in batch.env.items()]
    directives = system_of(batch.system).directives(request)
    return script(directives, [*modules, *exports, *batch.setup], argv, batch.login_shell)


def _loaded(module: str) -> str:
    """Return the line that loads a module, or ends the job with a word that `pilot pilots` shows."""
    words = f"pilot: cannot load module {module}: correct batch.modules in the site file"
    return f"module load {shlex.quote(module)} || {{ echo {shlex.quote(words)}; exit 1; }}"


def ask_for(store: Store, config: ProjectConfig, settings: PilotSettings, scaler: bool = False) -> None:
    """Write that a pilot is asked for; `scaler`: by one, not by a person."""
    fields = {
        "site": settings.site, "batch": settings.batch, "nodes": settings.pool_nodes,
        "slots": settings.slots * settings.pool_nodes, "slot_cores": settings.slot_cores, "ttl_s": settings.ttl_s,
        "folder": str(config.pilot_folder(settings.pilot)), "walltime_s": settings.walltime_s,
    }  # fmt: skip
    pilots.ask_for(store, settings.pilot, {**fields, "scaler": True} if scaler else fields)


def submit(
    store: Store,
    config: ProjectConfig,
    site: Site,
    settings: PilotSettings,
    queue: str = "",
    account: str = "",
    scaler: bool = False,
) -> str:
    """Submit a pilot to the site's batch system and return its job's id.

    It is in the store before it is in the queue, so that nothing that was submitted is unknown. Its folder keeps the
    script, the job's id and what the job prints.

    Raises:
        InvalidInput: no walltime is given, a value cannot stand in a script, or the site's queue takes no such pilot;
            nothing was written or submitted.
        SubmissionRejected: with the batch system's own words; the pilot has ended.
        SchedulerError: the batch system did not answer, or is not there.
    """
    assert site.batch is not None
    request = request_of(site, settings, queue, account)
    limits.check(site, request.nodes, request.walltime_s, request.queue, request.account)
    if words := limits.doubt(site, request.queue):
        log.warning("%s", words)
    text = batch_script(site.batch, request, agent_argv(config.pilot_folder(settings.pilot)))
    if not settings.store_in_pilot and (words := reach.open_to(config, site)):
        log.warning("%s", words)
        pilots.beat_of(store, settings.pilot)  # a read is repeated by the driver, and finds the new connection
    folder = make_folder(config, settings)
    ask_for(store, config, settings, scaler)
    if settings.store_in_pilot:  # after that: a promise to a pilot that nobody knows is taken back
        LocalServer(config.store_folder).promise(settings.pilot)
    try:
        job = Scheduler(system_of(site.batch.system)).submit(folder, text)
    except SchedulerUnreachable:
        raise  # it may be queued all the same: then it registers itself
    except PilotError as exc:
        pilots.end(store, settings.pilot, PilotState.ENDED, str(exc), failed=True)
        if settings.store_in_pilot:
            LocalServer(config.store_folder).promise("", instead_of=settings.pilot)
        raise
    pilots.note(store, settings.pilot, {"job": job, "submitted": datetime.now(UTC)})
    return job
