"""Runs recorded tasks again, in a project of their own and with the recorded code, and compares what comes out."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from graphlib import TopologicalSorter
from typing import Any

from pilot import compare, environment, launch, recorded, records, signing, verify
from pilot.compare import RTOL, Output, Verdict
from pilot.config import ProjectConfig
from pilot.errors import InvalidInput, PilotDied, SignatureError
from pilot.functions import PYTHON, code_from
from pilot.layout import Layout
from pilot.model import SCHEMA, Command, FunctionCode, official_record
from pilot.offers import usual_slots
from pilot.prepare import code_document
from pilot.resources import Resources, TaskSpec
from pilot.scratch import SITE, Scratch
from pilot.site_files import load_site
from pilot.states import ENDED, GOOD, Kind, State
from pilot.store import dependants, foreign, lineage, pilots, provenance, tasks
from pilot.store.mongo import Store
from pilot.store.objects import Objects

Document = dict[str, Any]


@dataclass(slots=True)
class Run:
    """One record, and what became of it when its task ran again."""

    record: str
    name: str
    outcome: str = "not run"
    """Of the new run."""
    reason: str = ""
    """Why it was not run, or failed."""
    outputs: list[Output] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether all outputs are identical or close."""
        return self.outcome in GOOD and all(one.verdict in (Verdict.IDENTICAL, Verdict.CLOSE) for one in self.outputs)


@dataclass(slots=True)
class Code:
    """A module whose file is not here any more as it was recorded."""

    module: str
    difference: str
    """From the recorded text, which ran, to the present one, as a unified diff."""


@dataclass(slots=True)
class Report:
    """How far a result, with all that went into it, came out again."""

    runs: list[Run] = field(default_factory=list)
    """Of every record; parents before those that used them."""
    given: list[str] = field(default_factory=list)
    """Records whose recorded outputs were used as they are."""
    code: list[Code] = field(default_factory=list)
    environment: list[environment.Difference] = field(default_factory=list)
    """In what the present environment is not the recorded one."""
    folder: str = ""
    """The project in which they ran; "" if it has been removed."""

    @property
    def good(self) -> bool:
        """Whether every output is identical or close."""
        return all(run.good for run in self.runs)

    def document(self) -> Document:
        """Return it as JSON can hold it."""
        return {
            "good": self.good, "given": self.given, "folder": self.folder,
            "runs": [
                {
                    "record": run.record, "name": run.name, "outcome": run.outcome, "reason": run.reason,
                    "outputs": [_output_document(one) for one in run.outputs],
                }
                for run in self.runs
            ],
            "code": [asdict(one) for one in self.code],
            "environment": [one._asdict() for one in self.environment],
        }  # fmt: skip


def _output_document(one: Output) -> Document:
    distance = {} if one.distance is None else {"relative": one.distance.relative, "where": one.distance.where}
    return {**one._asdict(), "verdict": one.verdict.value, "distance": distance or None}


def reproduce(
    config: ProjectConfig,
    store: Store,
    text: str,
    *,
    depth: int | None = None,
    rtol: float = RTOL,
    atol: float = 0.0,
    slots: int | None = None,
    keep: bool = False,
) -> Report:
    """Run a task, and all that went into its result, again, and compare every output with the recorded one.

    It takes a pilot on this machine and a database of its own, in ``.pilot/scratch``, where nothing of the project
    can be changed but that its object repository gets new objects.

    Args:
        config: the project.
        store: its database.
        text: id of a task that succeeded, which may be shortened, or of a record.
        depth: run again what is so many links up at most; the outputs of what is above are used as recorded.
        rtol: numbers are close if they differ by at most so much, relative to the larger one,
        atol: or by so much.
        slots: of the pilot; None: as many as cores, or as the widest task needs.
        keep: leave the project in which they ran where it is.

    Raises:
        TaskNotFound: there is no such task.
        InvalidInput: it did not succeed, or its lineage is too large.
        SignatureError: something of it is not what was written: see `pilot verify`.
        NotTrusted: something of it was imported from a project whose key is not trusted.
        PilotDied: the pilot did not come up, or died.
    """
    objects = Objects(config.objects_folder)
    signer = signing.signer_of(config)
    past = _read(store, objects, signer, text, depth)
    report = Report(given=sorted(past.given))
    with Scratch(config, past.start, keep) as scratch:
        present = _Again(scratch, past, report)
        present.lay_out(objects)
        present.run(slots)
        present.compare(objects, rtol, atol)
    report.folder = str(scratch.config.root) if keep else ""
    return report


# -- what is recorded -----------------------------------------------------------------------------


@dataclass(slots=True)
class _Past:
    """The records that are to come out again, verified, with all that is needed to run their tasks."""

    start: str
    """The task that was asked for."""
    records: dict[str, Document]
    """By id, parents before those that used them."""
    specs: dict[str, TaskSpec]
    """By record."""
    codes: dict[str, Document]
    """Documents of functions, by hash."""
    given: dict[str, Document]
    """Records just above: their outputs are used."""
    environments: list[Document]


def _read(store: Store, objects: Objects, signer: signing.Signer, text: str, depth: int | None) -> _Past:
    """Read a result's lineage, and make sure that nobody has changed it."""
    (start, *others) = provenance.meant(store, text)
    walk = lineage.ancestors(store, objects.get, [start], depth)
    if walk.cut == "limit":
        raise InvalidInput(f"cannot run {lineage.LIMIT:,} and more tasks again for {start!r}: say with --depth how far")
    report = verify.lineage_of(store, objects, signer, [start], depth)
    if not report.good:
        raise SignatureError(
            f"cannot run {start!r} again: {report.problems[0].of}: {report.problems[0].text}; "
            f"`pilot verify {start}` tells all"
        )
    found = provenance.get(store, walk.distance)
    if others or found[start]["outcome"] not in GOOD:
        raise InvalidInput(f"cannot compare anything with {start!r}: its outcome is {found[start]['outcome']!r}")
    sources = {name: set(lineage.sources(records.unpack(doc["inputs"], objects.get))) for name, doc in found.items()}
    order = [name for name in TopologicalSorter(sources).static_order() if name in found]
    specs = _specs(store, objects, signer, [found[name] for name in order])
    functions = {spec.function for spec in specs.values() if spec.function}
    names = {doc["environment"] for doc in found.values() if "environment" in doc}
    environments = [doc for name in sorted(names) if (doc := provenance.get_environment(store, name)) is not None]
    given = provenance.get(store, set().union(*sources.values()) - found.keys())
    for doc in (*found.values(), *given.values()):
        records.verify(doc, signer)  # what was imported must be trusted: it is unpickled here
    return _Past(
        found[start]["task"], {name: found[name] for name in order}, specs, provenance.get_functions(store, functions),
        given, environments,
    )  # fmt: skip


def _specs(store: Store, objects: Objects, signer: signing.Signer, docs: Sequence[Document]) -> dict[str, TaskSpec]:
    """Return, by record, the tasks as they were submitted: it is their inputs that hold the links."""
    there = tasks.get(store, [doc["task"] for doc in docs])
    specs = {}
    for doc in docs:
        task = there.get(doc["task"])
        if task is None:
            raise InvalidInput(f"cannot run {doc['_id']!r} again: its task is not in this project, only its record is")
        inputs = records.unpack_inputs(task["inputs"], objects.get)
        by = signer.of(task["from"]["project"]) if "from" in task else signer
        by.verify("task", SCHEMA, signing.task_fields(task, inputs), task.get("signature"))
        if task["signature"] != doc["task_signature"]:
            raise SignatureError(f"task {task['_id']!r} is not the one that record {doc['_id']!r} is of")
        specs[doc["_id"]] = TaskSpec(
            task["_id"], Kind(task["kind"]), task["name"], inputs, task["function"],
            Command.from_document(task["command"]) if task["command"] else None, Resources.from_key(task["class"]),
            -task["priority"], task["retries"], task.get("fresh", False), tuple(task.get("tags", ())),
            task.get("folder", ""), task.get("gather", False), task["waits"],
        )  # fmt: skip
    return specs


# -- what runs ------------------------------------------------------------------------------------


class _Again:
    """Lays out recorded tasks in a scratch project, runs them, and fills a report."""

    def __init__(self, scratch: Scratch, past: _Past, report: Report) -> None:
        self._scratch = scratch
        self._past = past
        self._report = report
        self._runs = {name: Run(name, doc.get("name") or "") for name, doc in past.records.items()}
        self._of_task = {doc["task"]: self._runs[name] for name, doc in past.records.items()}
        report.runs = list(self._runs.values())
        self._code_folder = scratch.config.root / "code"
        self._texts: dict[str, str] = {}
        """Module → hash of the text that it has here."""
        self._bad: dict[str, str] = {}
        """Function → why it cannot be run."""

    # -- code -------------------------------------------------------------------------------------

    def lay_out(self, objects: Objects) -> None:
        """Store functions, and the recorded text of modules that have changed since."""
        folders = {spec.function: spec.folder for spec in self._past.specs.values() if spec.function}
        for name, folder in folders.items():
            doc = self._past.codes.get(name)
            why = "its function is not in the store" if doc is None else self._lay_out(doc, folder, objects)
            if why:
                self._bad[name] = why

    def _lay_out(self, doc: Document, folder: str, objects: Objects) -> str:
        """Make a function ready to be run as it was recorded; return why that cannot be."""
        code = code_from(doc)
        if code.pickle is not None and code.python != PYTHON:
            return (
                f"its function {code.qualname!r} was kept by value, which Python {code.python} can read; this is "
                f"Python {PYTHON}: start `pilot reproduce` with that one"
            )
        if code.pickle is None and code.module_hash and (why := self._lay_out_module(code, folder, doc, objects)):
            return why
        code = code._replace(python=PYTHON)  # what is kept by name runs with any; the report tells the difference
        signature = self._scratch.signer.sign("function", SCHEMA, signing.function_fields(code))
        provenance.put_functions(self._scratch.store, [code_document(code, signature)])
        return ""

    def _lay_out_module(self, code: FunctionCode, folder: str, doc: Document, objects: Objects) -> str:
        known = self._texts.setdefault(code.module, code.module_hash)
        if known != code.module_hash:
            return f"another text of its module {code.module!r} runs for a task beside it: reproduce that one alone"
        file = recorded.file_here(code.module, folder)
        if recorded.is_here(file, code.module_hash):
            return ""
        if not doc.get("module_text"):
            where = f"in {str(file)!r}" if file is not None else "not here"
            return (
                f"its module {code.module!r} is another one now ({where}), and its text was not kept: it was installed"
            )
        if not any(one.module == code.module for one in self._report.code):
            text = bytes(objects.get(code.module_hash))
            recorded.lay_out(self._code_folder, code.module, text, file)
            self._report.code.append(Code(code.module, recorded.difference(text, file)))
        return ""

    # -- tasks ------------------------------------------------------------------------------------

    def run(self, slots: int | None) -> None:
        """Run the tasks, and wait for their ends."""
        store, now = self._scratch.store, datetime.now(UTC)
        for doc in self._past.given.values():
            body = {key: value for key, value in doc.items() if key not in (*records.SEAL, "from")}
            seal = partial(records.seal, signer=self._scratch.signer)
            provenance.insert(store, [provenance.encode(body, seal, records.minimal)[0]])
            foreign.adopt(store, doc["task"], doc.get("name") or "", doc["attempt"], now)
        widest = max((spec.resources.size * spec.resources.cores for spec in self._past.specs.values()), default=1)
        count = slots or max(widest, usual_slots(load_site(SITE), 1))
        with self._scratch.pilot(count, self._code_folder) as pilot:
            (pool,) = pilots.pools(store, pilot.id)
            layout = Layout.from_document(pool)
            documents = [
                self._document(spec, now)
                for name, spec in self._past.specs.items()
                if self._runs_here(name, spec, layout)
            ]
            dependants.submit(store, documents)
            self._await([doc["_id"] for doc in documents], pilot)

    def _runs_here(self, name: str, spec: TaskSpec, layout: Layout) -> bool:
        """Return whether a task can be run; if not, its run says why."""
        absent = [parent for parent in spec.parents if parent in self._of_task and self._of_task[parent].reason]
        reason = self._bad.get(spec.function or "", "") or layout.why_never(spec.resources.key)
        if absent:
            reason = f"its parent {absent[0]} was not run"
        self._runs[name].reason = reason
        return not reason

    def _document(self, spec: TaskSpec, now: datetime) -> Document:
        put = Objects(self._scratch.config.objects_folder).put
        signature = self._scratch.signer.sign("task", SCHEMA, signing.task_fields(spec))
        inputs = records.pack_inputs(spec.inputs, put)
        return tasks.document(spec, inputs, client="", seq=time.time_ns(), now=now, signature=signature)

    def _await(self, ids: Sequence[str], pilot: launch.Local) -> None:
        """Wait until all have ended.

        Raises:
            PilotDied: nobody will run them.
        """
        left = list(ids)
        while left:
            began = time.monotonic()
            alive = pilot.alive
            states = tasks.get(self._scratch.store, left, ["state"])
            left = [task for task in left if State(states[task]["state"]) not in ENDED]
            if left and not alive:
                reason = launch.reason_of(self._scratch.store, pilot) or "its agent ended"
                raise PilotDied(f"cannot run {left[0]!r} again: pilot {pilot.id} died: {reason}; see {pilot.folder}")
            time.sleep(max(0.05, 5 * (time.monotonic() - began)) if left else 0.0)

    # -- outputs ----------------------------------------------------------------------------------

    def compare(self, objects: Objects, rtol: float, atol: float) -> None:
        """Compare what came out with what is recorded."""
        store = self._scratch.store
        ends = tasks.get(store, [doc["task"] for doc in self._past.records.values()], ["official", "reason", "message"])
        officials = {name: official_record(doc) for name, doc in ends.items()}
        there = provenance.get(store, [name for name in officials.values() if name])
        folders = {spec.folder for spec in self._past.specs.values() if spec.folder}
        with _importable(folders):
            for name, doc in self._past.records.items():
                run = self._runs[name]
                new = there.get(officials.get(doc["task"]) or "")
                if new is not None:
                    records.verify(new, self._scratch.signer)
                    run.outcome = new["outcome"]
                    run.reason = new.get("exception", {}).get("message", "")
                elif not run.reason:
                    run.reason = str(ends.get(doc["task"], {}).get("message") or "what it needs failed")
                made = _outputs(new, objects)
                run.outputs = [
                    compare.output(output, entry, made.get(output), objects.get, rtol, atol)
                    for output, entry in _outputs(doc, objects).items()
                ]
        self._compare_environments([doc["environment"] for doc in there.values() if "environment" in doc])

    def _compare_environments(self, names: Sequence[str]) -> None:
        now = provenance.get_environment(self._scratch.store, names[0]) if names else None
        if now is not None:
            path = now["variables"].pop("PYTHONPATH", "")  # our folder is no difference
            if own := path.removeprefix(str(self._code_folder)).removeprefix(os.pathsep):
                now["variables"]["PYTHONPATH"] = own
            found = [one for then in self._past.environments for one in environment.differences(then, now)]
            self._report.environment = [one for place, one in enumerate(found) if one not in found[:place]]


def _outputs(record: Mapping[str, Any] | None, objects: Objects) -> dict[str, Document]:
    return {} if record is None else {entry["name"]: entry for entry in records.unpack(record["outputs"], objects.get)}


@contextmanager
def _importable(folders: set[str]) -> Iterator[None]:
    """Let pickles find the user's own modules for a while."""
    added = [folder for folder in sorted(folders) if folder not in sys.path]
    sys.path += added
    try:
        yield
    finally:
        for folder in added:
            if folder in sys.path:
                sys.path.remove(folder)
