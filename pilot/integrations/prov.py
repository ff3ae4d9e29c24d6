"""Records as a W3C PROV document: runs are activities, values are entities, what they ran is a plan.

PROV-DM, https://www.w3.org/TR/prov-dm/; PROV-JSON, https://www.w3.org/submissions/prov-json/. Which field of a record
becomes what is in docs/concepts/standards.md.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from pilot import values
from pilot.graph import How, Run, Value
from pilot.integrations.published import LIMIT, TERMS, Content, Published, collect, error_of, literal, package

if TYPE_CHECKING:
    from pilot.client import Project

Attributes = list[tuple[Any, Any]]

_WITH_URL = re.compile(r"(.*?)\s*<(\S+)>\s*")


def document(project: Project, ids: Iterable[str], author: str = "", limit: int = LIMIT) -> Any:
    """Return some records, and all that went into them, as a `prov.model.ProvDocument`.

    ``.serialize()`` of it gives PROV-JSON, ``.get_provn()`` PROV-N.

    Args:
        project: an open one.
        ids: of tasks, whose official records are meant, or of records (``TASK:ATTEMPT``); they may be shortened.
        author: who is responsible, as ``NAME`` or ``NAME <URL>``: records do not say it.
        limit: so many records at most.

    Raises:
        PackageMissing: `prov` is not installed.
        TaskNotFound: a task or record does not exist, or has not ended yet.
        InvalidInput: more than `limit` records went into them.
    """
    package("prov.model")
    return _Writer(collect(project, ids, limit), author).write()


def name_and_url(author: str) -> tuple[str, str]:
    """Return the two parts of ``NAME <URL>``; the URL may be absent."""
    found = _WITH_URL.fullmatch(author)
    return (found[1] or found[2], found[2]) if found else (author.strip(), "")


class _Writer:
    """Writes one document."""

    def __init__(self, what: Published, author: str) -> None:
        model, constants = package("prov.model"), package("prov.constants")
        self._what = what
        self._author = author
        self._made: dict[str, list[Value]] = {}
        """Run → its outputs; of runs that are not in the graph, those that others used."""
        for value in what.graph.values.values():
            if value.creator is not None:
                self._made.setdefault(value.creator, []).append(value)
        self._prov: Any = constants.PROV
        self._identifier: Any = model.Identifier
        self._document: Any = model.ProvDocument()
        self._term: Any = self._document.add_namespace("pilot", TERMS)
        self._here: Any = self._document.add_namespace("project", f"arcp://name,{quote(what.id, safe='')}/")

    def write(self) -> Any:
        """Return the document."""
        if self._author:
            self._person()
        for digest in self._what.environments:
            self._environment(digest)
        for hash in sorted({run.record["function"] for run in self._runs() if run.record.get("function")}):
            self._function(hash)
        for run in self._runs():
            self._run(run)
        for record in sorted(self._made.keys() - self._what.graph.runs.keys()):  # nothing but its name is left
            self._document.activity(self._run_id(record), None, None, [(self._prov["type"], self._term["Run"])])
        for value in self._what.graph.values.values():
            self._value(value)
        for link in self._what.graph.links:
            if link.how is How.USED:
                pairs = [(self._prov["role"], link.label), *self._some(("item", link.item))]
                value = self._what.graph.values[link.value]
                self._document.usage(self._run_id(link.run), self._value_id(value), None, None, pairs)
        return self._document

    # -- names --------------------------------------------------------------------------------------

    def _runs(self) -> Iterable[Run]:
        return self._what.graph.runs.values()

    def _id(self, kind: str, *parts: str) -> Any:
        """Return a qualified name whose local part every notation of PROV can write, whatever the parts hold."""
        return self._here["/".join((kind, *(quote(part, safe="").replace("~", "%7E") for part in parts)))]

    def _run_id(self, record: str) -> Any:
        task, _, attempt = record.rpartition(":")
        return self._id("run", task, attempt)

    def _value_id(self, value: Value) -> Any:
        if value.creator is None:
            return self._id("given", value.hash)
        task, _, attempt = value.creator.rpartition(":")
        return self._id("output", task, attempt, value.output)

    def _some(self, *pairs: tuple[str, Any]) -> Attributes:
        """Return attributes in our namespace, without those that say nothing."""
        kept = [(name, value) for name, value in pairs if value not in (None, "")]
        return [(self._term[name], literal(value) if isinstance(value, int) else value) for name, value in kept]

    # -- agents and plans ---------------------------------------------------------------------------

    def _person(self) -> None:
        name, url = name_and_url(self._author)
        attributes = [(self._prov["type"], self._prov["Person"]), (self._prov["label"], name)]
        if url:
            attributes.append((self._term["url"], self._identifier(url)))
        self._document.agent(self._here["author"], attributes)

    def _pilot(self, run: Run) -> Any:
        """Return the agent that ran it, and see that the document has it; None if nobody knows."""
        name = run.record.get("pilot")
        if not name:
            return None
        agent = self._id("pilot", name)
        if not self._document.get_record(agent):
            attributes = [(self._prov["type"], self._prov["SoftwareAgent"]), (self._prov["label"], f"pilot {name}")]
            more = self._some(("site", run.record.get("site")), ("job", run.record.get("job")))
            self._document.agent(agent, attributes + more)
            if self._author:
                self._document.delegation(agent, self._here["author"])
        return agent

    def _plan(self, run: Run) -> Any:
        """Return what was run: its function or command."""
        if run.record.get("function"):
            return self._id("function", run.record["function"])
        command = self._what.command(run)
        if command is None:
            return None
        plan = self._id("command", values.encode(command).hash)
        if not self._document.get_record(plan):
            attributes = [
                (self._prov["type"], self._prov["Plan"]), (self._prov["type"], self._term["Command"]),
                (self._prov["label"], shlex.join(command["argv"])),
            ]  # fmt: skip
            pairs = [
                (name.replace("_", "-"), value if isinstance(value, str | bool) else json.dumps(value))
                for name, value in sorted(command.items())
                if value not in (None, [])
            ]
            self._document.entity(plan, attributes + self._some(*pairs))
        return plan

    def _function(self, hash: str) -> None:
        code = self._what.functions.get(hash, {})
        git = code.get("git") or {}
        attributes: Attributes = [
            (self._prov["type"], self._prov["Plan"]), (self._prov["type"], self._term["Function"]),
        ]  # fmt: skip
        if code:
            attributes.append((self._prov["label"], f"{code['module']}.{code['qualname']}"))
        attributes += self._some(
            ("hash", hash), ("module", code.get("module")), ("qualname", code.get("qualname")),
            ("source", code.get("source")), ("source-hash", code.get("source_hash")),
            ("module-hash", code.get("module_hash")), ("python", code.get("python")),
            ("git-commit", git.get("commit")), ("git-dirty", git.get("dirty")),
        )  # fmt: skip
        self._document.entity(self._id("function", hash), attributes)

    def _environment(self, digest: str) -> None:
        """Write an environment: the collection of its packages."""
        found = self._what.environments[digest]
        python, machine = found.get("python") or {}, found.get("machine") or {}
        attributes: Attributes = [
            (self._prov["type"], self._prov["Collection"]), (self._prov["type"], self._term["Environment"]),
            (self._prov["label"], f"Python {python.get('version')} at {found.get('site')}"),
        ]  # fmt: skip
        attributes += self._some(
            ("hash", digest), ("python", python.get("version")), ("implementation", python.get("implementation")),
            ("mpi", found.get("mpi")), ("container", found.get("container")), ("site", found.get("site")),
            *((name, machine.get(name)) for name in ("system", "kernel", "machine", "cpu")),
            *(("variable", f"{name}={value}") for name, value in (found.get("variables") or {}).items()),
        )  # fmt: skip
        environment = self._document.entity(self._id("environment", digest), attributes)
        for name, version in (found.get("packages") or {}).items():
            member = self._id("package", name, version)
            if not self._document.get_record(member):
                pairs = self._some(("package", name), ("version", version))
                self._document.entity(member, [(self._prov["label"], f"{name} {version}"), *pairs])
            self._document.membership(environment, member)

    # -- runs and values ----------------------------------------------------------------------------

    def _run(self, run: Run) -> None:
        record, usage = run.record, run.record.get("usage") or {}
        attributes: Attributes = [(self._prov["type"], self._term["Run"]), (self._prov["label"], run.name or run.task)]
        if place := "/".join(filter(None, (record.get("site"), record.get("host")))):
            attributes.append((self._prov["location"], place))
        attributes += self._some(
            ("task", run.task), ("attempt", run.attempt), ("kind", run.kind), ("outcome", run.outcome),
            ("error", error_of(record)), ("exit-code", record.get("exit_code")),
            ("submitted", record["time"].get("submitted")), ("wall-s", usage.get("wall_s")),
            ("cpu-s", usage.get("cpu_s")), ("max-rss-bytes", usage.get("max_rss_bytes")),
            *(("tag", tag) for tag in record.get("tags") or ()),
        )  # fmt: skip
        activity = self._document.activity(self._run_id(run.id), run.started, run.finished, attributes)
        agent, plan = self._pilot(run), self._plan(run)
        if agent is not None or plan is not None:
            self._document.association(activity, agent, plan)
        if record.get("environment"):
            role = [(self._prov["role"], "environment")]
            self._document.usage(activity, self._id("environment", record["environment"]), None, None, role)
        if record.get("cached_from"):
            self._cached(run, record["cached_from"])

    def _cached(self, run: Run, origin: str) -> None:
        """Say from which run a cached one has its outputs."""
        self._document.communication(self._run_id(run.id), self._run_id(origin))
        every = self._what.graph.values
        for value in self._made.get(run.id, ()):
            copied = every.get(f"{origin}/{value.output}")
            if copied is not None:
                self._document.derivation(self._value_id(value), self._value_id(copied), self._run_id(run.id))

    def _value(self, value: Value) -> None:
        content = self._what.content(value)
        attributes: Attributes = [
            (self._prov["type"], self._term["Value"]), (self._prov["label"], value.output or value.entry["name"]),
        ]  # fmt: skip
        if content.plain is not values.NOT_NATIVE:
            attributes.append((self._prov["value"], literal(content.plain)))
        attributes += self._some(
            ("hash", value.hash), ("size", value.size), ("kind", content.kind), ("media-type", content.media_type),
            *((f"file-{name}", fact) for name, fact in content.file.items()),
        )  # fmt: skip
        if content.parts:
            attributes.append((self._prov["type"], self._prov["Collection"]))
        entity = self._document.entity(self._value_id(value), attributes)
        self._parts(entity, content)
        if value.creator is not None:
            role = [(self._prov["role"], value.output)]
            self._document.generation(entity, self._run_id(value.creator), None, None, role)

    def _parts(self, whole: Any, content: Content) -> None:
        """Write the files that a directory or another value holds, as its members."""
        for part in content.parts:
            name, digest = part.file["name"], part.file["hash"]
            member = self._id("file", digest, name)
            if not self._document.get_record(member):
                kinds = [(self._prov["type"], self._prov["Collection"])] if part.parts else []
                pairs = self._some(("kind", part.kind), *((f"file-{key}", fact) for key, fact in part.file.items()))
                self._parts(self._document.entity(member, [*kinds, (self._prov["label"], name), *pairs]), part)
            self._document.membership(whole, member)
