"""What makes two tasks equal: the keys by which the result of one is found for another. Pure.

Equal keys mean the same code, the same content of every input, and the same resources among those that programs see
and may compute by. Unequal keys may be a missed match, never a false one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from pilot.model import FunctionCode, Input, Link
from pilot.plain import dump, parse, with_references
from pilot.records import Document, Get, Sources
from pilot.resources import Resources
from pilot.values import digest

COUNTED = ("cores", "ranks", "gpus")
"""Resources that change results: threads, ranks and GPUs decide how work is divided, and so how sums are rounded.

Not memory and walltime, which decide only whether there is a result, and not where ranks are put.
"""


class Keys(NamedTuple):
    """Under what the record of an attempt is found."""

    key: str
    """Of all that has to be equal."""
    loose: tuple[Any, ...]
    """Name and inputs."""

    @property
    def like(self) -> str:
        """Of name and inputs only: what is found by this alone tells why there is nothing under `key`."""
        return _digest("like", *self.loose)


def keys_of(
    task: Mapping[str, Any],
    inputs: Sequence[Input],
    sources: Sources,
    code: FunctionCode | None,
    environment: str,
    get: Get,
) -> Keys:
    """Return the keys of a task.

    Args:
        task: its document.
        inputs: its inputs.
        sources: where those that are linked come from.
        code: its function; None: it is a command.
        environment: hash of the pool's environment; it counts if the task wants that.
        get: reads an object.

    Raises:
        ObjectMissing, ObjectCorrupt: a large argument is gone.
    """
    named = [(item.name, content_of(item, sources, get)) for item in inputs]
    command = task["command"]
    what = [task["function"], command]
    name = [code.module, code.qualname] if code is not None else [command["argv"], command["shell"]]
    needs = counted(task["class"])
    place = environment if task["cache"] == "environment" else ""
    key = _digest("key", what, named, list(needs.values()), task.get("gather", False), place)
    return Keys(key, (name, named))


@lru_cache(1000)
def counted(resources: str) -> dict[str, Any]:
    """Return those resources of a class that count, by name."""
    needs = Resources.from_key(resources)
    return {name: getattr(needs, name) for name in COUNTED}


def content_of(item: Input, sources: Sources, get: Get) -> str:
    """Return what identifies an argument's content, whichever tasks the values came from that are linked to in it.

    An argument that is a future as a whole counts as what it stands for. Where links stand in an object that only
    pickle can open, it counts as itself: equal only if the same tasks are linked to.
    """
    name, blob, links = item
    if not links:
        return blob.hash
    if len(links) == 1 and links[0].path == name:
        return _linked(links[0], sources)
    data = get(blob.hash) if blob.data is None else blob.data
    if bytes(data[:1]) != b"j":
        return blob.hash
    tree, _ = parse(str(data[1:], "utf-8"), 0)
    return _digest("linked", with_references(tree, lambda task, output: _linked(Link("", task, output), sources)))


def _linked(link: Link, sources: Sources) -> str:
    """Return what identifies the value that a link leads to."""
    found = sources[link.task, link.output]
    if len(found) == 1 and found[0].output == (link.output or "result"):
        return found[0].hash
    return _digest("part", link.output, sorted((source.output, source.hash) for source in found))


def _digest(*parts: Any) -> str:
    return digest(dump(parts).encode("utf-8", "surrogatepass"))


def difference(
    task: Mapping[str, Any], code: FunctionCode | None, earlier: Document, earlier_code: Mapping[str, Any] | None
) -> str:
    """Say in what a task differs from an earlier one of the same name and inputs; what it says ends in its record.

    Args:
        task: the task's document.
        code: its function, if it is one.
        earlier: the record of an attempt, with `LIKE_FIELDS`.
        earlier_code: digests in the document of that one's function, if it is there and another one.
    """
    record = earlier["_id"]
    if code is not None and code.hash != earlier.get("function"):
        return f"{_edited(code, earlier_code)} since {record}"
    command, old = task["command"] or {}, earlier.get("command") or {}
    other = [name for name, value in command.items() if value != old.get(name)]
    if other:
        return f"{', '.join(other)} of the command differs from that of {record}"
    now, then = counted(task["class"]), counted(earlier["resources"])
    needs = [f"{name} {_amount(now[name])}, there {_amount(then[name])}" for name in COUNTED if now[name] != then[name]]
    if needs:
        return f"it asks for other resources than {record}: {'; '.join(needs)}"
    if task["cache"] == "environment":
        return f"the environment is another one than that of {record}"
    return f"gather, or what counts for the cache, is another than in {record}"


LIKE_FIELDS = ("function", "command", "resources")
"""What `difference` has to know of a record."""

CODE_FIELDS = ("source_hash", "module_hash", "pickle.hash", "python")
"""What `difference` has to know of a function's document."""


def _edited(code: FunctionCode, old: Mapping[str, Any] | None) -> str:
    """Say what of a function is another."""
    if old is None:
        return "its code changed"
    if code.source_hash != old.get("source_hash", ""):
        return "its source was edited"
    if code.module_hash != old.get("module_hash", ""):
        return f"the file of its module {code.module} was edited"
    if code.python != old.get("python"):
        return f"Python changed from {old.get('python')} to {code.python}"
    return "what it closes over, its defaults or the globals that it uses changed"


def _amount(value: Any) -> str:
    return "none" if value is None else f"{value:g}"
