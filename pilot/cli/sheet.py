"""What `pilot show` prints: one task and its records, on a page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pilot import explain
from pilot.cli import text
from pilot.cli.common import Rows, console, escaped, now
from pilot.model import official_record
from pilot.resources import Resources

Document = dict[str, Any]

MOST = 12
"""Inputs and outputs that are shown unless all are wanted."""
_TAIL_LINES = 10


@dataclass
class Found:
    """Everything about one task."""

    task: Document
    records: list[Document]
    function: Document | None
    environments: dict[str, Document]
    trusted: dict[str, str]
    """Record id → why its signature does not fit; empty if it does."""
    sources: dict[tuple[str, str], Document]
    """(record, output) → that output, of the links that are shown."""
    same: dict[str, tuple[str, str]]
    """Hash of a value that a user gave → a record and its output with the same content."""


def shown_of(entries: Any, everything: bool) -> list[Document]:
    """Return those of a record's inputs or outputs that are shown."""
    if isinstance(entries, Mapping):  # an object that could not be read
        return []
    return list(entries if everything or len(entries) <= MOST else entries[: MOST - 2])


def print_all(found: Found, everything: bool) -> None:
    """Print a task.

    Args:
        found: what was read.
        everything: all inputs, outputs and attempts, and the source code.
    """
    task, moment = found.task, now()
    out = console()
    reason = f", {task['reason']}" if task.get("reason", task["state"]) != task["state"] else ""
    out.print(f"[bold]{task['_id']}[/]  {escaped(text.line(task['name']))}  {text.styled(task['state'])}{reason}")
    rows = Rows("", "")
    if task.get("message"):
        rows.add("message", escaped(task["message"]))
    if found.function is not None:
        rows.add("function", escaped(_function(found.function)))
    if task.get("command"):
        rows.add("command", escaped(_command(task["command"])))
    rows.add("needs", _needs(task))
    if task.get("invalid"):
        said = task["invalid"].get("reason")
        rows.add("invalid", f"[yellow]its result is not taken for equal tasks[/]{escaped(f': {said}' if said else '')}")
    if task.get("tags"):
        rows.add("tags", escaped(" ".join(task["tags"])))
    if task.get("groups"):
        rows.add("groups", escaped(", ".join(task["groups"])))
    if task.get("from"):
        rows.add("from", escaped(f"project {task['from']['project']}, imported by archive {task['from']['archive']}"))
    rows.add("submitted", f"{text.age(task['submitted'], moment)} ago, {text.iso(task['submitted'])}")
    if task.get("pending"):
        shown = ", ".join(task["pending"][:4]) + (" …" if len(task["pending"]) > 4 else "")
        rows.add("waits for", f"{text.count(len(task['pending']), 'task')}: {shown}")
    notes = task.get("notes", ())
    for note in notes if everything else notes[-1:]:
        more = f" ({len(notes) - 1} earlier, --all shows them)" if len(notes) > 1 and not everything else ""
        rows.add("note", escaped(f"{text.line(note['text'], 2000)} — {note['user']}, {text.iso(note['time'])}{more}"))
    rows.print(out)
    official = official_record(task)
    shown_records = found.records if everything else found.records[-1:]
    if len(shown_records) < len(found.records):
        earlier = ", ".join(f"{r['attempt']} {r['outcome']}" for r in found.records[:-1][-5:])
        out.print(f"[dim]earlier attempts: {earlier} (--all shows them)[/]")
    for record in shown_records:
        out.print()
        _print_record(out, found, record, record["_id"] == official, everything)
    if not found.records:
        _print_inputs_to_be(out, task)
    if everything and found.function is not None:
        from rich.syntax import Syntax

        out.print()
        out.print(Syntax(found.function["source"], "python", theme="ansi_dark", background_color="default"))


def _function(function: Document) -> str:
    git = function.get("git") or {}
    commit = f", git {git['commit'][:10]}{' + changes' if git.get('dirty') else ''}" if git.get("commit") else ""
    where = function["module"] if function["module"] != "__main__" else "script"
    return f"{where}.{function['qualname']}, source {function['source_hash'][:10]}{commit}"


def _command(command: Document) -> str:
    from shlex import join

    line = command["argv"][0] if command["shell"] else join(command["argv"])
    return f"{text.line(line, 300)}{' (shell)' if command['shell'] else ''}"


def _needs(task: Document) -> str:
    needs = Resources.from_key(task["class"])
    parts = [explain.asked(needs)]
    parts += [f"walltime {text.span(needs.walltime_s)}"] if needs.walltime_s else []
    parts += [f"{task['tried']} of {task['retries'] + 1} tries spent"] if task.get("retries") else []
    parts += [f"priority {-task['priority']}"] if task.get("priority") else []
    return ", ".join(parts)


def _print_record(out: Any, found: Found, record: Document, official: bool, everything: bool) -> None:
    moment = now()
    finished = record["time"].get("finished")
    when = f", {text.age(finished, moment)} ago" if finished else ""
    mark = " [dim](official record)[/]" if official else ""
    out.print(f"[bold]attempt {record['attempt']}[/]  {text.styled(record['outcome'])}{when}{mark}")
    rows = Rows("", "")
    rows.add("record", f"{record['_id']}, {_signature(found.trusted[record['_id']])}")
    rows.add("where", escaped(_place(record)))
    rows.add("time", _times(record))
    if record.get("cached_from"):
        saved = text.span(record["cache"]["saved_s"])
        rows.add("cache", f"took the result of [cyan]{record['cached_from']}[/], which ran {saved}")
    elif record.get("cache"):
        rows.add("cache", escaped(f"not used: {record['cache']['miss']}"))
    environment = found.environments.get(record.get("environment", ""))
    if environment is not None:
        rows.add("software", escaped(_software(environment)))
    if record.get("exit_code") is not None:
        rows.add("exit code", str(record["exit_code"]))
    rows.print(out)
    _print_values(out, "inputs", record["inputs"], everything, lambda entry: _origin(entry, found))
    _print_values(out, "outputs", record["outputs"], everything, lambda entry: (text.value(entry), ""))
    _print_exception(out, record.get("exception"))
    _print_log(out, record.get("output_log"))


def _signature(problem: str) -> str:
    return f"[red]its signature {escaped(problem)}[/]" if problem else "signature fits"


def _place(record: Document) -> str:
    rank = f", rank {record['rank']}" if record.get("rank", -1) >= 0 else ""
    host = f"{record['host']}{rank}" if record.get("host") else "unknown host"
    placement = record.get("placement")
    if isinstance(placement, list):
        hosts = list(dict.fromkeys(place["host"] for place in placement))
        cpus = sum(len(place.get("cpus", ())) for place in placement)
        bound = f" on {text.count(cpus, 'CPU')}" if cpus else ""
        host = f"{text.count(len(placement), 'rank')}{bound} of {', '.join(hosts[:4])}{' …' if len(hosts) > 4 else ''}"
    pilot = f", pilot {record['pilot']} on {record.get('site', '?')}" if record.get("pilot") else ""
    job = f", batch job {record['job']}" if record.get("job") else ""
    return host + pilot + job


def _times(record: Document) -> str:
    time, usage = record["time"], record.get("usage")
    parts = []
    if "started" in time:
        waited = (time["started"] - time["submitted"]).total_seconds() if "submitted" in time else None
        parts.append(f"started {text.iso(time['started'])}")
        parts += [f"{text.span(waited)} after it was submitted"] if waited is not None else []
    if usage:
        parts.append(f"ran {text.span(usage['wall_s'])}")
        parts.append(f"CPU {text.span(usage['cpu_s'])}")
        parts += [f"memory {text.size(usage['max_rss_bytes'])}"] if usage["max_rss_bytes"] else []
    return ", ".join(parts)


def _software(environment: Document) -> str:
    machine = environment["machine"]
    mpi = str(environment["mpi"]).replace("\0", "").strip().splitlines()
    parts = [
        f"Python {environment['python']['version']}", text.line(mpi[0] if mpi else "no MPI", 30),
        f"{len(environment['packages'])} packages", machine["cpu"] or machine["machine"],
        f"{machine['system']} {machine['kernel']}",
    ]  # fmt: skip
    return ", ".join(parts)


def _print_values(
    out: Any, title: str, entries: Any, everything: bool, described: Callable[[Document], tuple[str, str]]
) -> None:
    """Print inputs or outputs, a row for each: name, value, where it came from, hash.

    Args:
        out: the console.
        title: what they are.
        entries: as the record has them.
        everything: all of them.
        described: returns value, and origin in rich's markup, of one.
    """
    if not entries:
        return
    count = entries["count"] if isinstance(entries, Mapping) else len(entries)
    shown = shown_of(entries, everything)
    rows = Rows("", "", "", "", clip=1)
    for entry in shown:
        value, origin = described(entry)
        rows.add(f"  {escaped(entry['name'])}", escaped(value), origin, f"[dim]{entry['hash'][:10]}[/]")
    out.print(f"{title} [dim]({count:,})[/]" if count > 1 else title)
    if shown:
        rows.print(out)
    if len(shown) < count:
        out.print(f"  [dim]… {count - len(shown):,} more (--all shows them)[/]")


def _origin(entry: Document, found: Found) -> tuple[str, str]:
    """Return an input's value, and where that came from."""
    if "source" not in entry:
        same = found.same.get(entry["hash"])
        also = f", same content as [cyan]{same[0]}[/]{escaped(_output(same[1]))}" if same else ""
        return text.value(entry), f"[dim]given[/]{also}"
    source = entry["source"]
    origin = found.sources.get((source["record"], source["output"]))
    shown = text.value(origin) if origin is not None else text.size(entry["size"])
    item = f"[{source['item']!r}]" if "item" in source else ""
    parent = f" {escaped(text.line(origin['from'], 24))}" if origin is not None else ""
    return shown, f"← [cyan]{source['record']}[/]{parent}{escaped(_output(source['output']) + item)}"


def _output(name: str) -> str:
    return "" if name == "result" else f" {name}"


def _print_exception(out: Any, exception: Document | None) -> None:
    if exception is None:
        return
    out.print(f"[red]{escaped(exception['type'])}[/]: {escaped(exception['message'])}", soft_wrap=True)
    if exception.get("traceback"):
        for line in exception["traceback"].rstrip().splitlines():
            out.print(f"  [dim]│[/] {escaped(line)}", soft_wrap=True)


def _print_log(out: Any, log: Document | None) -> None:
    if log is None:
        return
    lines = log["tail"].rstrip().splitlines()
    more = f", its last {_TAIL_LINES} lines" if len(lines) > _TAIL_LINES else ""
    out.print(f"output [dim]({text.size(log['length'])}{more}; `pilot logs` prints all)[/]")
    for line in lines[-_TAIL_LINES:]:
        out.print(f"  [dim]│[/] {escaped(line)}", soft_wrap=True)


def _print_inputs_to_be(out: Any, task: Document) -> None:
    """Show the inputs of a task of which there is no record yet."""
    entries = task["inputs"]
    if isinstance(entries, Mapping) or not entries:
        return
    rows = Rows("", "", "")
    for entry in shown_of(entries, False):
        links = entry.get("links", ())
        linked = f"← {', '.join(str(link[1]) for link in links[:3])}{' …' if len(links) > 3 else ''}" if links else ""
        rows.add(f"  {escaped(entry['name'])}", escaped(text.value(entry)), escaped(linked) or "[dim]given[/]")
    out.print("inputs")
    rows.print(out)
    if len(entries) > MOST:
        out.print(f"  [dim]… {len(entries) - MOST + 2:,} more[/]")
