"""What came from what, of records that are in hand: runs, values, and the links between them. Pure.

A run is a record. A value is an output of a run, or, if it came from no run, what a user gave: such values are the
same if their content is. So every value has one creator at most, and no link leads back in time: a source is a
record that was there before the attempt which used it began, and no record is ever changed. The order in which
records are inserted is thus one in which every link leads forward, and there is no cycle.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from pilot.records import Get, unpack

Document = Mapping[str, Any]

FIELDS = (
    "task", "attempt", "name", "kind", "outcome", "function", "command.argv", "environment", "inputs", "outputs",
    "time.started", "time.finished", "tags", "host", "cached_from",
)  # fmt: skip
"""What has to be read of a record."""


class Run(NamedTuple):
    """One attempt of a task."""

    id: str
    """Of its record."""
    task: str
    attempt: int
    name: str
    kind: str
    outcome: str
    started: datetime | None
    finished: datetime | None
    cached_from: str | None
    """Of a run that is `cached`: the record whose outputs it took."""
    record: Document
    """The fields of it that were read."""


class Value(NamedTuple):
    """An input or output."""

    id: str
    """``RECORD/OUTPUT``, or ``value:HASH`` if no run made it."""
    hash: str
    size: int
    creator: str | None
    """The record of which it is an output; None: a user gave it."""
    output: str
    """Its name there; "" if it has no creator."""
    entry: Document
    """How the record, or one of those that used it, tells it; it may hold the value itself."""


class How(StrEnum):
    """What a link says."""

    USED = "used"
    """The run had the value as an input."""
    MADE = "made"
    """The value is an output of the run."""


class Link(NamedTuple):
    """One use or making of a value; a run has no two of one kind with the same label."""

    how: How
    run: str
    value: str
    label: str
    """Name of the input or output, as its record has it."""
    item: str | None = None
    """Of a use: the item of the value that was used; None: all of it."""


@dataclass(slots=True)
class Graph:
    """Runs, values and links; runs in the order in which they were added."""

    runs: dict[str, Run] = field(default_factory=dict)
    values: dict[str, Value] = field(default_factory=dict)
    links: list[Link] = field(default_factory=list)
    starts: tuple[str, ...] = ()
    """The runs that were asked for; the others are here because of them."""
    cut: str = ""
    """What keeps it from being whole: ``depth`` or ``limit``; empty: nothing."""

    def add(self, record: Document, get: Get) -> None:
        """Add a record, with its inputs and outputs; its parents are values whose creator need not be there.

        Args:
            record: with `FIELDS`.
            get: reads an object.

        Raises:
            ObjectMissing, ObjectCorrupt: a list of inputs or outputs that was too long for the record is gone.
        """
        name, time = record["_id"], record.get("time", {})
        self.runs[name] = Run(
            name, record["task"], record["attempt"], record.get("name") or "", record.get("kind") or "",
            record["outcome"], time.get("started"), time.get("finished"), record.get("cached_from"), record,
        )  # fmt: skip
        for entry in unpack(record["outputs"], get):
            made = Value(f"{name}/{entry['name']}", entry["hash"], entry["size"], name, entry["name"], entry)
            self.values[made.id] = made
            self.links.append(Link(How.MADE, name, made.id, entry["name"]))
        for entry in unpack(record["inputs"], get):
            used = used_value(entry)
            self.values.setdefault(used.id, used)
            self.links.append(Link(How.USED, name, used.id, entry["name"], entry.get("source", {}).get("item")))

    def origin(self, value: str) -> Run | None:
        """Return the run that made a value, if it is one of these."""
        creator = self.values[value].creator
        return None if creator is None else self.runs.get(creator)

    def document(self) -> dict[str, Any]:
        """Return it as plain data: `starts`, `cut`, and lists of `runs`, `values` and `links`.

        Fields that say nothing are left out of values and links. A value that is small and plain is there as
        ``value``; of others there are hash and size.
        """
        return {
            "starts": list(self.starts),
            "cut": self.cut,
            "runs": [
                {key: value for key, value in run._asdict().items() if key != "record"} for run in self.runs.values()
            ],
            "values": [_value_document(value) for value in self.values.values()],
            "links": [
                {key: value for key, value in link._asdict().items() if value is not None} for link in self.links
            ],
        }


def _value_document(value: Value) -> dict[str, Any]:
    fields: dict[str, Any] = {"id": value.id, "hash": value.hash, "size": value.size}
    if value.creator is not None:
        fields |= {"creator": value.creator, "output": value.output}
    if "value" in value.entry:
        fields["value"] = value.entry["value"]
    return fields


def used_value(entry: Document) -> Value:
    """Return the value that an input of a record names."""
    source = entry.get("source")
    if source is None:
        return Value(f"value:{entry['hash']}", entry["hash"], entry["size"], None, "", entry)
    name, output = source["record"], source["output"]
    return Value(f"{name}/{output}", entry["hash"], entry["size"], name, output, entry)


def graph_of(records: Iterable[Document], get: Get, cut: str = "", starts: Iterable[str] = ()) -> Graph:
    """Return the graph of these records, each with `FIELDS`; `cut` says what keeps it from being whole."""
    graph = Graph(starts=tuple(starts), cut=cut)
    for record in records:
        graph.add(record, get)
    return graph
