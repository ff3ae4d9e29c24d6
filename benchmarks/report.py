"""From the JSON lines of a benchmark session to its report: tables with medians, ranges, ratios and verdicts.

Pure but for `main`, which renders the lines of an earlier session again:

    python benchmarks/report.py results.jsonl docs/performance.md
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TEMPLATE = Path(__file__).with_name("performance.md.in")

Line = Mapping[str, Any]
Key = tuple[str, str]
"""Script and workload."""

PEERS = {
    "parsl_htex": "Parsl HTEX",
    "dask_distributed": "Dask",
    "fireworks_rapidfire": "FireWorks",
    "mpi4py_futures": "mpi4py.futures",
    "process_pool": "ProcessPoolExecutor",
    "hyperqueue_local": "HyperQueue",
    "spawn_loop": "spawn loop",
    "mpiexec_loop": "one mpiexec per task",
    "parsl_mpi": "Parsl MPIExecutor",
    "radical_raptor": "RADICAL-Pilot RAPTOR",
    "slurm_jobs": "Slurm",
}


@dataclass(frozen=True)
class Unit:
    """How a quantity is written."""

    suffix: str
    digits: int
    lower: bool = False
    """Whether less is better."""

    def text(self, value: float) -> str:
        """Write a value with its unit."""
        return f"{value:,.{self.digits}f}{self.suffix}"


RATE = Unit("/s", 0)
MS = Unit(" ms", 1, lower=True)
BUSY = Unit(" %", 1)
IDLE = Unit(" %", 2, lower=True)
OPERATIONS = Unit("", 3, lower=True)
RATIO = Unit("", 2)
EXCESS = Unit("", 2, lower=True)
MICROSECONDS = Unit(" µs", 1, lower=True)
MEMORY = Unit(" MB", 0, lower=True)
SECONDS = Unit(" s", 2, lower=True)
COUNT = Unit("", 0, lower=True)


def named(peer: Key) -> str:
    """Return the name of a peer, and how it is set up if that is not for speed."""
    script, workload = peer
    return f"{PEERS[script]} as it comes" if workload.endswith("-default") else PEERS[script]


@dataclass(frozen=True)
class Bound:
    """A value to be reached: as it stands, or times what a peer does in the same session."""

    value: float
    peer: Key | None = None

    def text(self, unit: Unit) -> str:
        """Write it as a person would."""
        if self.peer is None:
            return f"{'≤' if unit.lower else '≥'} {unit.text(self.value)}"
        return f"≥ {self.value:g} × {named(self.peer)}"


@dataclass(frozen=True)
class Row:
    """One promise about speed: where it is measured, what it must reach and what it aims at."""

    title: str
    source: Key
    field: str
    unit: Unit
    must: tuple[Bound, ...] = ()
    aim: tuple[Bound, ...] = ()
    optional: bool = False
    """Left out when it was not measured."""


_PARSL, _HQ, _SPAWN = ("parsl_htex", "noop-default"), ("hyperqueue_local", "true"), ("spawn_loop", "true")
_CACHED = ("cached", "cached")
_NOOP, _TRUE = ("noop", "noop"), ("commands", "true")
_ARCHIVE = ("archive", "archive")
_MPI, _MIXED, _LOOP = ("mpi_functions", "mpi-noop"), ("mixed", "mixed"), ("mpiexec_loop", "mpi-noop")

_QUERY = ("query", "query")

ROWS = (
    Row("no-op functions, submit to result in hand", _NOOP, "rate_per_s", RATE,
        (Bound(6_000), Bound(5, _PARSL)), (Bound(12_000), Bound(10, _PARSL))),
    Row("the same functions cached, from equal ones of before", _CACHED, "rate_per_s", RATE, (Bound(6_000),)),
    Row("`/bin/true` commands", _TRUE, "rate_per_s", RATE, (Bound(1.2, _HQ),), (Bound(0.9, _SPAWN),)),
    Row("MPI functions on 2 ranks that do nothing", _MPI, "rate_per_s", RATE, (Bound(100, _LOOP),), (Bound(1_000),)),
    Row("submit to result, one task, pool idle", ("latency", "latency"), "median_ms", MS, (Bound(25),), (Bound(10),)),
    Row("parent to child hand-over", ("handover", "handover"), "median_ms", MS, (Bound(25),), (Bound(10),)),
    Row("32 slots × sleep(1) × 10: slots busy", ("busy", "busy"), "busy_pct", BUSY, (Bound(97),), (Bound(99),)),
    Row("mixed widths and lengths: time taken / lower bound", _MIXED, "ratio", EXCESS, (), (Bound(1.1),)),
    Row("the same by strict FIFO, if nothing cost time", _MIXED, "fifo_ratio", EXCESS),
    Row("decision where a task runs: 10,000 slots, 20 classes", ("placement", "placement"), "us_per_task", MICROSECONDS,
        (Bound(50),)),
    Row("rate at 10⁵ queued / at 10³ queued", ("depth", "depth"), "ratio", RATIO, (Bound(0.9),), (Bound(1.0),)),
    Row("rate at 10⁶ queued / at 10³ queued", ("depth", "depth-million"), "ratio", RATIO,
        (Bound(0.9),), (Bound(1.0),), optional=True),
    Row("database commands per no-op task", _NOOP, "db_commands_per_task", OPERATIONS, (Bound(0.5),), (Bound(0.05),)),
    Row("idle worker rank with its child, of a core", ("idle", "idle"), "idle_pct", IDLE, (Bound(1.0),)),
    Row("export of 10⁵ records with their tasks", _ARCHIVE, "export_per_s", RATE, (Bound(2_000),)),
    Row("import of the same into another project", _ARCHIVE, "import_per_s", RATE, (Bound(2_000),)),
    Row("memory of that import", _ARCHIVE, "rss_mb_import", MEMORY),
    Row("memory of the agent", _NOOP, "rss_mb_agent", MEMORY),
    Row("queries that go by an index, 10⁶ records: the slowest", _QUERY, "slowest_ms", MS, (Bound(50),)),
    Row("what is above or below a chain of 1,000, 10⁶ records", _QUERY, "chain_s", SECONDS, (Bound(1),)),
)  # fmt: skip

COMPARED = (
    ("no-op functions", _NOOP, ("noop", "noop-default"), "rate_per_s", RATE),
    ("`/bin/true` commands", _TRUE, ("true", "true-output"), "rate_per_s", RATE),
    ("MPI functions or programs on 2 ranks", _MPI, ("mpi-noop", "mpi-noop-two"), "rate_per_s", RATE),
    ("mixed widths and lengths: time / bound", _MIXED, ("mixed",), "ratio", EXCESS),
    ("one task, pool idle", ("latency", "latency"), ("latency",), "median_ms", MS),
    ("rate with a long queue / with a short one", ("depth", "depth"), ("queue-depth", "workflow-size"), "ratio", RATIO),
    ("database commands per no-op task", _NOOP, ("noop",), "db_commands_per_task", OPERATIONS),
)
"""What stands beside the peers: title, where ours is, workloads of theirs, the quantity."""

_SBATCH, _PILOT = ("slurm_jobs", "slurm-sbatch"), ("slurm_pilot", "slurm-pilot")

BATCH = (
    ("one `sbatch` each", _SBATCH),
    ("a job array", ("slurm_jobs", "slurm-array")),
    ("`srun` steps of one allocation, one after the other", ("slurm_jobs", "slurm-steps")),
    ("`srun` steps of one allocation, eight at a time", ("slurm_jobs", "slurm-steps-eight")),
    ("tasks of one pilot", _PILOT),
)
"""Ways to run the same commands on the same Slurm."""

ROLES = (
    ("mongod", "the database server, journal included"),
    ("coordinator", "rank 0: leases, dispatches, records"),
    ("rank", "both worker ranks"),
    ("child", "both children, in which the tasks run"),
    ("command", "the commands themselves, with their start"),
    ("agent", "heartbeats"),
    ("client", "submits, follows and decodes results"),
)


@dataclass(frozen=True)
class Spread:
    """A quantity over the rounds."""

    median: float
    low: float
    high: float
    runs: int

    def text(self, unit: Unit) -> str:
        """Write median and range."""
        middle = unit.text(self.median)
        return middle if self.runs == 1 else f"{middle} ({self.low:,.{unit.digits}f}–{self.high:,.{unit.digits}f})"


class Results:
    """The lines of a session, by script and workload."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self.facts: dict[str, Any] = {}
        self._lines: dict[Key, list[Line]] = {}
        self._errors: dict[Key, list[str]] = {}
        self._missing: dict[Key, str] = {}
        for line in lines:
            if "facts" in line:
                self.facts = dict(line["facts"])
                continue
            key = (line["script"], line["workload"])
            if "missing" in line:
                self._missing[key] = str(line["missing"])
            elif "error" in line:
                self._errors.setdefault(key, []).append(str(line["error"]))
            else:
                self._lines.setdefault(key, []).append(line)

    def tried(self) -> list[Key]:
        """Return what was tried, in that order as far as it went well."""
        return [*self._lines, *(key for key in self._errors if key not in self._lines)]

    def spread(self, key: Key, field: str) -> Spread | None:
        """Return a quantity over the rounds; None if no run gave it."""
        values = [float(line[field]) for line in self._lines.get(key, ()) if line.get(field) is not None]
        return Spread(statistics.median(values), min(values), max(values), len(values)) if values else None

    def first(self, key: Key, field: str) -> Any:
        """Return a word that is the same in all rounds, None if there is none."""
        return next((line[field] for line in self._lines.get(key, ()) if field in line), None)

    def errors(self, key: Key) -> list[str]:
        """Return why runs failed."""
        return self._errors.get(key, [])

    def missing(self, key: Key) -> str:
        """Return why a run cannot be done on this machine; empty if that was not found."""
        return self._missing.get(key, "")


def parse(text: str) -> list[Line]:
    """Read the lines of a session."""
    return [json.loads(line) for line in text.splitlines() if line.strip()]


# -- verdicts -------------------------------------------------------------------------------------


def needed(bound: Bound, results: Results) -> float | None:
    """Return the value that a bound asks for here; None if its peer gave no number."""
    if bound.peer is None:
        return bound.value
    peer = results.spread(bound.peer, "rate_per_s")
    return None if peer is None else bound.value * peer.median


def unmet(value: float, bounds: Sequence[Bound], unit: Unit, results: Results) -> tuple[list[Bound], list[Bound]]:
    """Return which bounds are missed, and which cannot be told."""
    missed, unknown = [], []
    for bound in bounds:
        wanted = needed(bound, results)
        if wanted is None:
            unknown.append(bound)
        elif value > wanted if unit.lower else value < wanted:
            missed.append(bound)
    return missed, unknown


def verdict(row: Row, results: Results) -> str:
    """Say what the median reaches, and what it does not."""
    found = results.spread(row.source, row.field)
    if found is None:
        errors = results.errors(row.source)
        return f"**failed**: {_plain(errors[-1])}" if errors else "not measured"
    if not (row.must or row.aim):
        return ""
    missed, unknown = unmet(found.median, row.must, row.unit, results)
    if missed:
        return f"**missed**: {', '.join(bound.text(row.unit) for bound in missed)}"
    doubt = "".join(f"; {named(bound.peer)} not measured" for bound in unknown if bound.peer)
    if doubt:
        return f"{'reached' if len(unknown) < len(row.must) else 'unknown'}{doubt}"
    aim_reached = row.aim and unmet(found.median, row.aim, row.unit, results) == ([], [])
    return "aim reached" if aim_reached else "reached" if row.must else "aim missed"


# -- tables ---------------------------------------------------------------------------------------


def promises(results: Results) -> str:
    """Return the table of what must be reached."""
    lines = []
    for row in ROWS:
        found = results.spread(row.source, row.field)
        if found is None and (row.optional or not results.errors(row.source)):
            continue
        ours = "–" if found is None else found.text(row.unit)
        must = " and ".join(_bound(bound, found, row.unit, results) for bound in row.must)
        aim = " and ".join(bound.text(row.unit) for bound in row.aim)
        lines.append((row.title, ours, must or "–", aim or "–", verdict(row, results)))
    return table(("what", "pilot: median (range)", "must reach", "aim", "verdict"), lines)


def _bound(bound: Bound, found: Spread | None, unit: Unit, results: Results) -> str:
    text = bound.text(unit)
    wanted = needed(bound, results)
    if bound.peer is None or found is None or wanted is None:
        return text
    return f"{text} (is {found.median / wanted * bound.value:.2f} ×)"


def comparison(results: Results) -> str:
    """Return the table beside the peers, with how many times better we are by medians."""
    lines = []
    for title, ours, workloads, field, unit in COMPARED:
        mine = results.spread(ours, field)
        if mine is not None:
            version = f"pilot {results.first(ours, 'version')}"
            lines.append((title, version, mine.text(unit), "", _plain(results.first(ours, "notes") or "")))
        for script, workload in results.tried():
            if script not in PEERS or workload not in workloads:
                continue
            theirs, name = results.spread((script, workload), field), f"{PEERS[script]}"
            if theirs is None:
                errors = results.errors((script, workload))
                if errors and field != "db_commands_per_task":
                    lines.append((title, name, "failed", "", _plain(errors[-1])))
                continue
            version = str(results.first((script, workload), "version"))
            name += f" {version}" if version[:1].isdigit() else f", {version}"
            name += f", `{workload}`" if len(workloads) > 1 else ""
            notes = _plain(results.first((script, workload), "notes") or "")
            lines.append((title, name, theirs.text(unit), _times(mine, theirs, unit), notes))
    return table(("what", "system", "median (range)", "pilot is", "how"), lines)


def _times(mine: Spread | None, theirs: Spread, unit: Unit) -> str:
    if mine is None or not mine.median or not theirs.median:
        return ""
    times = theirs.median / mine.median if unit.lower else mine.median / theirs.median
    return f"{times:.2f} ×" if times < 10 else f"{times:,.0f} ×"


def batch(results: Results) -> str:
    """Return the table of what many small commands cost a batch system, or why there is none."""
    one_each = results.spread(_SBATCH, "rate_per_s")
    lines = []
    for title, key in BATCH:
        rate = results.spread(key, "rate_per_s")
        if rate is None:
            if errors := results.errors(key):
                lines.append((title, f"failed: {_plain(errors[-1])}", *[""] * 6))
            continue
        times = f"{rate.median / one_each.median:.2f} ×" if one_each else ""
        cells = [_cell(results, key, *quantity) for quantity in _OF_BATCH]
        lines.append((title, rate.text(RATE), times, *cells))
    if not lines:
        return f"Not measured: {_plain(results.missing(_PILOT)) or 'left out of this session'}."
    tasks = next(number for _, key in BATCH if (number := results.first(key, "tasks")))
    head = (f"{tasks:,} × `/bin/true` as", "tasks/s, start-up included", "to one `sbatch` each", "start-up")
    return table((*head, "once it is up", "requests", "database rows", "controllers' processor time"), lines)


_OF_BATCH = (
    ("start_s", SECONDS), ("up_rate_per_s", RATE), ("requests", COUNT), ("rows", COUNT), ("controllers_cpu_s", SECONDS),
)  # fmt: skip
"""What stands beside the rate of each way."""


def _cell(results: Results, key: Key, field: str, unit: Unit) -> str:
    found = results.spread(key, field)
    return "–" if found is None else found.text(unit)


def costs(results: Results, cores: int) -> str:
    """Return the table of processor time per task by role, and what that alone would allow."""
    lines = []
    totals = {_NOOP: 0.0, _TRUE: 0.0}
    for role, what in ROLES:
        cells = []
        for key in (_NOOP, _TRUE):
            found = results.spread(key, f"cpu_us_{role}")
            totals[key] += found.median if found else 0.0
            cells.append(f"{found.median:,.0f} µs" if found else "–")
        size = results.spread(_NOOP, f"rss_mb_{role}")
        lines.append((role, what, *cells, size.text(MEMORY) if size else "–"))
    sums = [f"{total:,.0f} µs" if total else "–" for total in totals.values()]
    rates = [f"{cores * 1e6 / total:,.0f}/s" if total else "–" for total in totals.values()]
    lines.append(("all", "", *sums, ""))
    lines.append((f"{cores} cores and nothing else to wait for", "", *rates, ""))
    return table(("role", "what it does", "per no-op function", "per command", "memory of one"), lines)


def queries(results: Results) -> str:
    """Return the table of what queries find and how soon, and what those take that no index serves."""
    lines = []
    for one in results.first(_QUERY, "queries") or ():
        times = (MS.text(one[name]) for name in ("first_ms", "count_ms"))
        lines.append((f"`{_plain(_shortened(one['query']))}`", f"{one['found']:,}", *times))
    if not lines:
        return "Not measured."
    scan, index = (_cell(results, _QUERY, name, SECONDS) for name in ("scan_s", "index_s"))
    told = f"Without an index, the last two take {scan} at most; the slowest of the indexes is made in {index}."
    return f"{table(('query', 'records that fit', 'the first 50', 'how many'), lines)}\n\n{told}"


def _shortened(expression: str) -> str:
    return re.sub(r"[0-9a-f]{64}", lambda digest: digest[0][:5] + "…", expression)


def failures(results: Results) -> str:
    """Return what went wrong, as a list; empty if nothing did."""
    wrong = [
        f"* {PEERS.get(script, 'pilot')}, `{workload}`: {_plain(error)}"
        for script, workload in results.tried()
        for error in results.errors((script, workload))
    ]
    return "\n".join(["Runs that failed and are not in the medians:", "", *wrong]) if wrong else ""


def machine(facts: Mapping[str, Any]) -> str:
    """Return the list of what was measured on, when and with what."""
    return "\n".join(f"* {name}: {_plain(str(value))}" for name, value in facts.items() if value not in (None, ""))


def merged(before: Sequence[Line], now: Sequence[Line], row: str) -> list[Line]:
    """Put runs of one row in the place of the same runs of an earlier session; the facts tell that they are others.

    Args:
        before: the lines of the session, facts first.
        now: those of the row, facts first.
        row: its name.
    """
    anew = {(line["script"], line["workload"]) for line in now[1:]}
    kept = [line for line in before[1:] if (line["script"], line["workload"]) not in anew]
    told = "; ".join(f"{name} {value}" for name, value in now[0]["facts"].items() if name in _APART or "load" in name)
    return [{"facts": {**before[0]["facts"], f"`{row}`, measured apart": told}}, *kept, *now[1:]]


_APART = ("date", "pilot", "rounds", "Slurm")
"""Facts in which a row that was measured apart may differ from the session."""


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def render(template: str, lines: Iterable[Line]) -> str:
    """Fill the template's ``{{places}}``; what is written there by hand stays.

    Raises:
        KeyError: the template names a place that there is not.
    """
    results = Results(lines)
    cores = int(results.facts.get("cores", 1))
    places = {
        "promises": promises(results),
        "comparison": comparison(results),
        "costs": costs(results, cores),
        "batch": batch(results),
        "queries": queries(results),
        "failures": failures(results),
        "machine": machine(results.facts),
        "date": str(results.facts.get("date", "")),
        "rounds": str(results.facts.get("rounds", "")),
    }
    text = re.sub(r"\{\{(\w+)\}\}", lambda match: places[match[1]], template)
    return re.sub(r"\n{3,}", "\n\n", text)


def main(argv: Sequence[str]) -> None:
    """Render the lines of a file into another."""
    if len(argv) != 3:
        sys.exit("usage: python benchmarks/report.py LINES.jsonl OUTPUT.md")
    Path(argv[2]).write_text(render(TEMPLATE.read_text(), parse(Path(argv[1]).read_text())))


if __name__ == "__main__":
    main(sys.argv)
