"""Records as a Workflow Run RO-Crate: a folder of files with a description that repositories of data read.

The profile is Provenance Run Crate 0.5, https://w3id.org/ro/wfrun/provenance/0.5, on RO-Crate 1.1. Which field of a
record becomes what is in docs/concepts/standards.md.
"""

from __future__ import annotations

import graphlib
import json
import mimetypes
import os
import re
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pilot import __version__, values
from pilot.errors import InvalidInput
from pilot.graph import How, Link, Run, Value
from pilot.integrations.crate import Crate, Entity, Properties, each, fragment, plain
from pilot.integrations.crate_code import Environment, environment_of, tool_of
from pilot.integrations.prov import name_and_url
from pilot.integrations.published import LIMIT, TERMS, Content, Published, collect, error_of, kind_of, literal
from pilot.states import GOOD

if TYPE_CHECKING:
    from datetime import datetime

    from pilot.client import Project

NO_LICENSE = "No license is stated: ask the author."
"""What stands where a crate must name a license and nobody gave one."""

_PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": ("Process Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/workflow/0.5": ("Workflow Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/provenance/0.5": ("Provenance Run Crate", "0.5"),
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": ("Workflow RO-Crate", "1.0"),
}
_ENGINE = "https://pypi.org/project/hpc-pilot/"
_LANGUAGE = {
    "name": "graph of runs",
    "description": "Written from records: the program that submitted the tasks is not part of them.",
}
_TYPES = {"bool": "Boolean", "int": "Integer", "float": "Float", "dict": "PropertyValue"}
"""What plain data is → the type of a parameter that takes it; anything else is a text."""
_USAGE = {"wall_s": "SEC", "cpu_s": "SEC", "max_rss_bytes": "BYTE"}
"""What an attempt cost → its unit, in the vocabulary of qudt.org."""
_README = """# {name}

{description}

This folder is a [Workflow Run RO-Crate](https://w3id.org/ro/wfrun/provenance/0.5); `ro-crate-metadata.json` describes
all of it.

| | |
|---|---|
| `workflow.json` | the runs, what each was given by which other, and what it made |
| `functions/` | the source of the Python functions that ran |
| `environments/` | what they ran in: packages, machine, variables |
| `data/` | values that are files: `.npy` are NumPy arrays, `.pickle` Python objects (whoever loads one runs its code) |
"""


def write(
    project: Project, ids: Iterable[str], path: Path | str, *, data: bool = True, author: str = "", license: str = "",
    limit: int = LIMIT,
) -> Published:  # fmt: skip
    """Write some records, and all that went into them, as a crate; return what is in it.

    Args:
        project: an open one.
        ids: of tasks, whose official records are meant, or of records (``TASK:ATTEMPT``); they may be shortened.
        path: the folder to make, or, with ``.zip`` at its end, the file. It appears when it is complete.
        data: copy the values that are not in the records themselves; else only their hashes are told.
        author: who is responsible, as ``NAME`` or ``NAME <URL>``: records do not say it.
        license: of the crate, as a URL or in words.
        limit: so many records at most.

    Raises:
        PackageMissing: `rocrate` is not installed.
        TaskNotFound: a task or record does not exist, or has not ended yet.
        InvalidInput: more than `limit` records went into them, or `path` exists or cannot be written.
        ObjectCorrupt: a value is not what its hash says.
    """
    target = Path(path)
    if target.exists():
        raise InvalidInput(f"cannot write a crate to {str(target)!r}: it exists; name another, or remove it")
    crate = Crate()
    what = collect(project, ids, limit)
    _Writer(crate, what, data, author).fill(license)
    crate.write(target)
    return what


@dataclass
class _Parameter:
    """An argument or output of a tool."""

    tool: Entity
    side: str
    """``input`` or ``output``, which is also what a tool calls them."""
    name: str
    types: set[str] = field(default_factory=set)
    """Of the values it had."""


class _Writer:
    """Fills one crate."""

    def __init__(self, crate: Crate, what: Published, data: bool, author: str) -> None:
        self._crate = crate
        self._what = what
        self._data = data
        self._author = author
        self._agent: Entity = None
        self._links: dict[str, list[Link]] = {run: [] for run in what.graph.runs}
        for link in what.graph.links:
            self._links[link.run].append(link)
        self._environments: dict[str, Environment] = {}
        self._tools: dict[str, Entity] = {}
        """Run → what was run."""
        self._parameters: dict[str, _Parameter] = {}
        self._examples: dict[str, dict[str, None]] = {}
        """Value → the parameters it was given for, or came out of."""
        self._values: dict[str, Entity] = {}

    def fill(self, license: str) -> None:
        """Add everything."""
        graph = self._what.graph
        if self._author:
            name, url = name_and_url(self._author)
            self._agent = self._crate.add(url or "#author", "Person", name=name)
        self._head(license)
        for digest in self._what.environments:
            self._environments[digest] = environment_of(self._crate, self._what, digest)
        for run in graph.runs.values():
            self._tools[run.id] = tool_of(self._crate, self._what, run)
            self._note_parameters(run)
        for value in graph.values.values():
            self._values[value.id] = self._value(value)
        for run in graph.runs.values():
            self._action(run)
        self._close_parameters()
        self._workflow()

    def _head(self, license: str) -> None:
        what, root = self._what, self._crate.root
        names = [f"{what.graph.runs[record].name} ({record})" for record in what.wanted[:3]]
        more = " …" if len(what.wanted) > 3 else ""
        root["name"] = f"{', '.join(names)}{more} of project {what.project}"
        root["description"] = (
            f"Results of {len(what.wanted)} runs of the project {what.project!r}: all {len(what.graph.runs)} runs that "
            "they came from, what these ran, what they were given and what they made."
        )
        for id, (name, version) in _PROFILES.items():
            self._crate.add(id, "CreativeWork", name=name, version=version)
        root["conformsTo"] = [{"@id": id} for id in _PROFILES]
        root["license"] = license or NO_LICENSE
        if license.startswith(("http://", "https://")):
            root["license"] = self._crate.add(license, "CreativeWork", name=license, url=license)
        if self._agent is not None:
            root["author"] = self._agent
        text = _README.format(name=root["name"], description=root["description"]).encode()
        self._crate.add_file(
            "README.md", lambda: memoryview(text), name="What this is", encodingFormat="text/markdown", about=root
        )

    # -- values -------------------------------------------------------------------------------------

    def _note_parameters(self, run: Run) -> None:
        """Note which parameters of its tool the values of a run were; ``energies[3]`` is a part of ``energies``."""
        tool = self._tools[run.id]
        for link in self._links[run.id]:
            name = re.split(r"[\[#]", link.label, maxsplit=1)[0] or link.label
            side = "input" if link.how is How.USED else "output"
            id = f"{tool.id}{'/' if tool.id.startswith('#') else '#'}{side}-{fragment(name)}"
            self._parameters.setdefault(id, _Parameter(tool, side, name))
            self._examples.setdefault(link.value, {})[id] = None

    def _close_parameters(self) -> None:
        for id, parameter in self._parameters.items():
            types = sorted(parameter.types)
            made = self._crate.add(id, "FormalParameter", name=parameter.name, additionalType=types)
            parameter.tool.append_to(parameter.side, made, compact=True)

    def _value(self, value: Value) -> Entity:
        """Add a value: a literal if it is plain and short, else a file, else what is known of it."""
        content = self._what.content(value)
        name = value.output or value.entry["name"]
        examples = self._examples.get(value.id, {})
        more: Properties = {
            "name": name, "identifier": f"blake2b-256:{content.file.get('hash', value.hash)}",
            "exampleOfWork": [{"@id": parameter} for parameter in examples],
        }  # fmt: skip
        id = f"#value-{fragment(f'{value.creator}/{name}' if value.creator else value.hash)}"
        kind = "File"
        if content.parts and self._data:
            kind, made = self._collection(id, value, content, more)
        elif content.plain is not values.NOT_NATIVE:
            kind = _TYPES.get(kind_of(content.plain), "Text")
            made = self._crate.add(id, "PropertyValue", value=literal(content.plain), **more)
        elif content.body is None or (not self._data and ("object" in value.entry or content.file)):
            made = self._crate.add(
                id, "CreativeWork", encodingFormat=content.media_type, contentSize=_size(value, content),
                alternateName=content.file.get("name"),
                description=f"bytes that {'are not in this crate' if content.body else 'were not to be had'}", **more,
            )  # fmt: skip
        else:
            made = self._data_file(value, content, content.body, more)
        for parameter in examples:
            self._parameters[parameter].types.add(kind)
        return made

    def _collection(self, id: str, value: Value, content: Content, more: Properties) -> tuple[str, Entity]:
        """Add a directory as a folder, or another value as the collection of the files that it names."""
        folder = self._crate.new_path(_folder(value), content.file.get("name") or more["name"], "")
        parts = [self._part(part, folder) for part in content.parts]
        if content.kind == "tree":
            return "Dataset", self._crate.add_folder(folder, contentSize=_size(value, content), hasPart=parts, **more)
        told = literal(content.plain) if content.plain is not values.NOT_NATIVE else content.kind
        made = self._crate.add(id, "Collection", hasPart=parts, mainEntity=parts[0], description=str(told), **more)
        self._crate.root.append_to("mentions", made)
        return "Collection", made

    def _part(self, part: Content, folder: str) -> Entity:
        """Add a file or a directory that lies in a folder of the crate; of what is not to be had, what is known."""
        *ways, name = part.file["name"].split("/")
        facts: Properties = {
            "name": part.file["name"], "identifier": f"blake2b-256:{part.file['hash']}",
            "contentSize": str(part.file["size"]),
        }  # fmt: skip
        where = "/".join([folder, *filter(None, map(plain, ways))])
        if part.parts:
            inner = self._crate.new_path(where, name, "")
            return self._crate.add_folder(inner, hasPart=[self._part(one, inner) for one in part.parts], **facts)
        if part.body is None:
            id = f"#file-{fragment(part.file['hash'][:16])}-{fragment(part.file['name'])}"
            return self._crate.get(id) or self._crate.add(
                id, "CreativeWork", description="bytes that were not to be had", encodingFormat=part.media_type, **facts
            )
        return self._crate.add_file(
            self._crate.new_path(where, name, ""), part.body, encodingFormat=part.media_type, **facts
        )

    def _data_file(self, value: Value, content: Content, body: Callable[[], memoryview], more: Properties) -> Entity:
        name = content.file.get("name") or more["name"]
        named = content.kind == "bytes" and bool(os.path.splitext(name)[1])  # a program's file, which says what it is
        path = self._crate.new_path(_folder(value), name, "" if named else content.suffix)
        if os.path.basename(path) != name:
            more["alternateName"] = name
        media_type = (mimetypes.guess_type(name)[0] if named else None) or content.media_type
        return self._crate.add_file(path, body, contentSize=_size(value, content), encodingFormat=media_type, **more)

    def _linked(self, runs: Iterable[Run], how: How) -> list[Entity]:
        """Return the values that runs used, or made."""
        return each(self._values[link.value] for run in runs for link in self._links[run.id] if link.how is how)

    # -- runs ---------------------------------------------------------------------------------------

    def _action(self, run: Run) -> None:
        record, id = run.record, _run_id(run.id)
        used, made = self._linked([run], How.USED), self._linked([run], How.MADE)
        command = self._what.command(run)
        variables = [
            self._crate.add(f"{id}-{fragment(name)}", "PropertyValue", name=name, value=value)
            for name, value in (command or {}).get("env", ())
        ]
        environment = self._environments.get(record.get("environment", ""))
        if environment is not None:
            used.append(environment.whole)
            variables = [*environment.variables, *variables]
        self._mention(
            id, "CreateAction" if made else "ActivateAction", name=f"run {run.id} of {run.name}",
            description=self._description(run, command), instrument=self._tools[run.id], object=used, result=made,
            environment=variables, location=self._place(run), resourceUsage=self._usage(id, run),
            **_times(run.started, run.finished), **_status([run]),
        )  # fmt: skip

    def _mention(self, id: str, kind: str, **properties: Any) -> Entity:
        """Add something that was done."""
        made = self._crate.add(id, kind, agent=self._agent, **properties)
        self._crate.root.append_to("mentions", made)
        return made

    def _description(self, run: Run, command: Properties | None) -> str:
        if run.record.get("cached_from"):
            return f"not run: its outputs were taken from {run.record['cached_from']}"
        if command is not None:
            return str(command["argv"][0]) if command["shell"] else shlex.join(command["argv"])
        inputs = [link.label for link in self._links[run.id] if link.how is How.USED]
        return f"{self._tools[run.id].get('name')}({', '.join(inputs)})"

    def _place(self, run: Run) -> Entity | None:
        name = "/".join(filter(None, (run.record.get("site"), run.record.get("host"))))
        id = f"#place-{fragment(name)}"
        return (self._crate.get(id) or self._crate.add(id, "Place", name=name)) if name else None

    def _usage(self, id: str, run: Run) -> list[Entity]:
        usage = run.record.get("usage") or {}
        return [
            self._crate.add(
                f"{id}-{name}", "PropertyValue", name=name, value=usage[name], propertyID=f"{TERMS}{name}",
                unitCode=f"https://qudt.org/vocab/unit/{unit}",
            )
            for name, unit in _USAGE.items()
            if name in usage
        ]  # fmt: skip

    # -- the workflow, which is what links the runs ---------------------------------------------------

    def _workflow(self) -> None:
        """Add the runs as the steps of a workflow, itself as something that ran once, and who ran it."""
        what, root = self._what, self._crate.root
        attempts: dict[str, list[Run]] = {}
        for run in sorted(what.graph.runs.values(), key=lambda run: run.attempt):
            attempts.setdefault(run.task, []).append(run)
        steps, controls = [], []
        for position, task in enumerate(order := self._order()):
            step, control = self._step(task, position, attempts[task])
            steps.append(step)
            controls.append(control)
        plan = [self._told(run) for task in order for run in attempts[task]]
        body = json.dumps(plan, indent=1, ensure_ascii=False).encode()
        workflow = self._crate.add_main_workflow(
            "workflow.json", body, _LANGUAGE, name=root["name"], encodingFormat="application/json", step=steps,
            hasPart=each(self._tools.values()), version=values.digest(body)[:16],
            description="The runs, what each was given by which other, and what it made.",
        )  # fmt: skip
        wanted = [what.graph.runs[record] for record in what.wanted]
        started = min((run.started for run in what.graph.runs.values() if run.started), default=None)
        finished = max((run.finished for run in wanted if run.finished), default=None)
        whole = self._mention(
            "#workflow-run", "CreateAction", name=root["name"], description=root["description"], instrument=workflow,
            object=each(self._values[one.id] for one in what.graph.values.values() if one.creator is None),
            result=self._linked(wanted, How.MADE), **_times(started, finished), **_status(wanted),
        )  # fmt: skip
        versions = {(doc.get("packages") or {}).get("hpc-pilot") for doc in what.environments.values()} - {None}
        engine = self._crate.add(
            _ENGINE, "SoftwareApplication", name="pilot", url=_ENGINE,
            softwareVersion=", ".join(sorted(map(str, versions))) or __version__,
        )  # fmt: skip
        self._mention(
            "#engine-run",
            "OrganizeAction",
            name="pilot runs the tasks",
            instrument=engine,
            object=controls,
            result=whole,
        )

    def _step(self, task: str, position: int, runs: list[Run]) -> tuple[Entity, Entity]:
        """Add a task as a step, and what its attempts were; return both."""
        last = runs[-1]
        environment = self._environments.get(last.record.get("environment", ""))
        step = self._crate.add(
            f"#step-{fragment(task)}", "HowToStep", name=last.name, position=str(position),
            workExample=self._tools[last.id], buildInstructions=environment and environment.requirements,
        )  # fmt: skip
        control = self._crate.add(
            f"#control-{fragment(task)}", "ControlAction", name=f"task {task}", instrument=step,
            object=[{"@id": _run_id(run.id)} for run in runs], **_status(runs[-1:]),
        )  # fmt: skip
        return step, control

    def _order(self) -> list[str]:
        """Return the tasks so that each comes after those that it used."""
        graph = self._what.graph
        sorter: graphlib.TopologicalSorter[str] = graphlib.TopologicalSorter()
        for run in reversed(graph.runs.values()):
            origins = (graph.origin(link.value) for link in self._links[run.id] if link.how is How.USED)
            sorter.add(run.task, *{origin.task for origin in origins if origin is not None})
        return list(sorter.static_order())

    def _told(self, run: Run) -> Properties:
        """Return a run as the workflow's file has it."""

        def told(link: Link) -> Properties:
            value = self._what.graph.values[link.value]
            said: Properties = {"name": link.label, "hash": value.hash, "entity": self._values[link.value].id}
            if link.how is How.USED and value.creator is not None:
                said |= {"from": value.creator, "output": value.output}
            return said | ({"item": link.item} if link.item is not None else {})

        links = self._links[run.id]
        return {
            "run": run.id, "name": run.name, "kind": run.kind, "outcome": run.outcome, "tool": self._tools[run.id].id,
            "command": self._what.command(run), "inputs": [told(link) for link in links if link.how is How.USED],
            "outputs": [told(link) for link in links if link.how is How.MADE],
        }  # fmt: skip


def _size(value: Value, content: Content) -> str:
    """Return the bytes of a value's body."""
    return str(content.file.get("size", value.size - 1))  # an encoding has our tag before it


def _folder(value: Value) -> str:
    """Return where in the crate the files of a value are."""
    owner = re.sub(r"[^A-Za-z0-9_-]+", "-", value.creator) if value.creator else f"given-{value.hash[:16]}"
    return f"data/{owner}"


def _run_id(record: str) -> str:
    return f"#run-{fragment(record)}"


def _times(started: datetime | None, finished: datetime | None) -> Properties:
    moments = {"startTime": started, "endTime": finished}
    return {name: moment.isoformat(timespec="milliseconds") for name, moment in moments.items() if moment is not None}


def _status(runs: Iterable[Run]) -> dict[str, str]:
    """Return whether all succeeded; if one did not, why."""
    bad = [run for run in runs if run.outcome not in GOOD]
    if not bad:
        return {"actionStatus": "http://schema.org/CompletedActionStatus"}
    why = "; ".join(f"{run.outcome}: {error_of(run.record)}".rstrip(": ") for run in bad)
    return {"actionStatus": "http://schema.org/FailedActionStatus", "error": why}
