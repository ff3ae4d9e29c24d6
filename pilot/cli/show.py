"""`pilot show`: a task, its records, and where every input came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from pilot import records, signing
from pilot.cli import queries
from pilot.cli.common import Command, emit, json_option, opened
from pilot.cli.completion import tasks as complete_tasks
from pilot.cli.sheet import Found, print_all, shown_of
from pilot.config import ProjectConfig
from pilot.errors import NotTrusted, PilotError, SignatureError
from pilot.store import provenance, tasks
from pilot.store.mongo import Store
from pilot.store.objects import Objects

Document = dict[str, Any]

_TELLING = 100
_TELLING_BYTES = 16
"""Of smaller values, which are numbers and the like, it says nothing that another has the same content."""


@click.command(cls=Command)
@click.argument("task", metavar="ID", shell_complete=complete_tasks)
@click.option("--all", "everything", is_flag=True, help="All inputs, outputs and attempts, and the source code.")
@json_option
def show(task: str, everything: bool, as_json: bool) -> None:
    """Show a task: code, inputs and where they came from, outputs, time, place. ID may be shortened.

    The JSON document holds the stored documents whole: `task`, `records`, `function` and `environments`.
    """
    with opened() as project:
        found = _find(project.config, project.store, tasks.resolve(project.store, task), as_json or everything)
    if as_json:
        function = {**found.function, "pickle": None} if found.function else None
        emit(
            {
                "task": found.task, "records": found.records, "function": function,
                "environments": found.environments, "signature_problems": {k: v for k, v in found.trusted.items() if v},
            }
        )  # fmt: skip
        return
    print_all(found, everything)


# -- reading --------------------------------------------------------------------------------------


def _find(config: ProjectConfig, store: Store, task: Document, everything: bool) -> Found:
    every = provenance.attempts(store, task["_id"])
    objects = Objects(config.objects_folder)
    trusted = {}
    for record in every:
        trusted[record["_id"]] = _distrust(config, record)
        for field in ("inputs", "outputs"):
            if isinstance(record[field], Mapping) and not trusted[record["_id"]]:
                record[field] = _unpacked(record[field], objects)
    code = str(task.get("function") or "")
    functions = provenance.get_functions(store, [code]) if code else {}
    environments = {}
    for digest in {record["environment"] for record in every if record.get("environment")}:
        environment = provenance.get_environment(store, digest)
        if environment is not None:
            environments[digest] = environment
    sources = {} if everything and len(every) > 100 else _sources(store, every, everything)
    same = _same(store, every[-1:], everything)
    return Found(task, every, functions.get(code), environments, trusted, sources, same)


def _distrust(config: ProjectConfig, record: Document) -> str:
    """Return why a record is not to be trusted; empty if it is what its pool wrote."""
    try:
        signer = signing.signer_of(config)
        records.verify(record, signer)
    except NotTrusted as exc:
        return f"is that of another project: {exc}"
    except SignatureError as exc:
        return f"does not fit: {exc}"
    except PilotError as exc:
        return f"cannot be checked: {exc}"
    return ""


def _unpacked(stored: Mapping[str, Any], objects: Objects) -> Any:
    try:
        return records.unpack(stored, objects.get)
    except PilotError:
        return stored


def _sources(store: Store, every: Sequence[Document], everything: bool) -> dict[tuple[str, str], Document]:
    """Return the outputs from which the shown inputs came."""
    links = [
        (entry["source"]["record"], entry["source"]["output"])
        for record in every[-1:]
        for entry in shown_of(record["inputs"], everything)
        if "source" in entry
    ]
    parents = provenance.get(store, {name for name, _ in links}, ["outputs", "name"])
    found: dict[tuple[str, str], Document] = {}
    for name, parent in parents.items():
        for output in shown_of(parent["outputs"], True):
            found[name, output["name"]] = {**output, "from": parent["name"]}
    return found


def _same(store: Store, every: Sequence[Document], everything: bool) -> dict[str, tuple[str, str]]:
    """Return outputs with the content of inputs that were given and not linked, if they are found at once."""
    wanted = {
        entry["hash"]
        for record in every
        for entry in shown_of(record["inputs"], everything)
        if "source" not in entry and entry["size"] >= _TELLING_BYTES
    }
    few = sorted(wanted)[:_TELLING]
    return queries.made(store, few, {record["_id"] for record in every}) if few else {}
