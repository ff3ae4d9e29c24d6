"""Completion of ids and words in the shell; says nothing rather than an error, and starts nothing."""

from __future__ import annotations

from click import Context, Parameter
from click.shell_completion import CompletionItem

from pilot import fleet
from pilot.cli.common import now, opened
from pilot.config import find_project
from pilot.errors import PilotError
from pilot.site_files import site_names
from pilot.store import tasks as store_tasks

_STORE_S = 2.0
_MOST = 50


def tasks(ctx: Context, param: Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the id of one of the newest tasks."""
    try:
        with opened(start=False, timeout_s=_STORE_S) as project:
            docs = store_tasks.listing(project.store, limit=1000, fields=["name", "state"])
    except PilotError:
        return []
    fitting = [doc for doc in docs if doc["_id"].startswith(incomplete)]
    return [CompletionItem(doc["_id"], help=f"{doc['state']} {doc['name']}") for doc in fitting[:_MOST]]


def pilots(ctx: Context, param: Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the id of a pilot that is up."""
    try:
        with opened(start=False, timeout_s=_STORE_S) as project:
            views = fleet.look(project.store, now(), live_only=True)
    except PilotError:
        return []
    return [
        CompletionItem(view.id, help=f"{view.state}, {view.slots} slots")
        for view in views
        if view.id.startswith(incomplete)
    ]


def sites(ctx: Context, param: Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a site."""
    try:
        project = find_project()
    except PilotError:
        project = None
    return [CompletionItem(name) for name in site_names(project) if name.startswith(incomplete)]
