"""The benchmarks' own machinery: reports, verdicts, clean-up; that they run, not how fast."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks import report, running
from benchmarks.peers import _mixed, _slurm
from tests.conftest import need

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def line(script: str, workload: str, **fields: Any) -> dict[str, Any]:
    """Return a line as `run.py` writes it."""
    return {"script": script, "workload": workload, "ours": script not in report.PEERS, "version": "1.0", **fields}


def noop(rate: float, **fields: Any) -> dict[str, Any]:
    return line("noop", "noop", rate_per_s=rate, **fields)


def parsl(rate: float) -> dict[str, Any]:
    return line("parsl_htex", "noop-default", rate_per_s=rate)


def verdict(title: str, *lines: dict[str, Any]) -> str:
    """Return what is said of the row whose title begins so."""
    row = next(row for row in report.ROWS if row.title.startswith(title))
    return report.verdict(row, report.Results(lines))


# -- numbers ----------------------------------------------------------------------------------------


def test_spread_is_median_and_range() -> None:
    results = report.Results([noop(5000), noop(7000), noop(6500), line("noop", "noop", error="broke")])
    found = results.spread(("noop", "noop"), "rate_per_s")
    assert found is not None
    assert found == report.Spread(6500, 5000, 7000, 3)
    assert found.text(report.RATE) == "6,500/s (5,000–7,000)"
    assert results.errors(("noop", "noop")) == ["broke"]


def test_single_run_has_no_range() -> None:
    assert report.Spread(14.62, 14.62, 14.62, 1).text(report.MS) == "14.6 ms"


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (6000, 1200, "reached"),
        (5999, 1000, "**missed**: ≥ 6,000/s"),
        (7000, 1401, "**missed**: ≥ 5 × Parsl HTEX as it comes"),
        (5000, 1500, "**missed**: ≥ 6,000/s, ≥ 5 × Parsl HTEX as it comes"),
        (12000, 1200, "aim reached"),
        (12000, 1201, "reached"),
    ],
)
def test_verdict_holds_against_numbers_and_peers(ours: float, theirs: float, expected: str) -> None:
    assert verdict("no-op", noop(ours), parsl(theirs)) == expected


@pytest.mark.parametrize(
    ("median_ms", "expected"), [(9, "aim reached"), (25, "reached"), (25.1, "**missed**: ≤ 25.0 ms")]
)
def test_less_is_better_where_it_is(median_ms: float, expected: str) -> None:
    assert verdict("submit to result", line("latency", "latency", median_ms=median_ms)) == expected


def test_peer_that_failed_leaves_the_verdict_open() -> None:
    failed = line("parsl_htex", "noop-default", error="no such thing")
    assert verdict("no-op", noop(9000), failed) == "reached; Parsl HTEX as it comes not measured"
    assert verdict("no-op", noop(5000), failed) == "**missed**: ≥ 6,000/s"
    true = line("commands", "true", rate_per_s=900.0)
    assert verdict("`/bin/true`", true) == "unknown; HyperQueue not measured"


def test_row_without_a_must_has_a_verdict_on_its_aim() -> None:
    assert verdict("mixed widths", line("mixed", "mixed", ratio=1.1)) == "aim reached"
    assert verdict("mixed widths", line("mixed", "mixed", ratio=1.11)) == "aim missed"
    assert verdict("the same by strict FIFO", line("mixed", "mixed", fifo_ratio=1.2)) == ""


def test_own_failure_is_the_verdict() -> None:
    assert verdict("no-op", line("noop", "noop", error="no result\nwithin 60 s")) == "**failed**: no result within 60 s"
    assert verdict("no-op") == "not measured"


# -- the workload of mixed shapes ------------------------------------------------------------------


def shapes(*widths_and_lengths: tuple[int, float]) -> list[_mixed.Job]:
    return [_mixed.Job(index, *shape) for index, shape in enumerate(widths_and_lengths)]


def test_bound_is_the_area_or_the_longest() -> None:
    assert _mixed.bound_s(shapes((1, 1.0), (2, 1.0), (1, 2.0)), 2) == 2.5
    assert _mixed.bound_s(shapes((1, 1.0), (1, 3.0)), 2) == 3.0


def test_first_that_does_not_fit_holds_up_fifo_and_not_the_greedy() -> None:
    work = shapes((1, 1.0), (2, 1.0), (1, 1.0))
    assert _mixed.fifo_s(work, 2) == 3.0
    assert _mixed.greedy_s(work, 2) == 2.0


def test_tasks_of_one_instant_free_their_slots_together() -> None:
    work = shapes((1, 1.0), (1, 1.0), (2, 1.0), (2, 0.5))
    assert _mixed.fifo_s(work, 2) == _mixed.greedy_s(work, 2) == 2.5


def test_workload_is_the_same_for_all_and_fits() -> None:
    work = _mixed.jobs(400, 16)
    assert work == _mixed.jobs(400, 16)
    assert {job.width for job in work} == {1, 2, 4, 8}
    assert {job.width for job in _mixed.jobs(400, 2)} == {1, 2}
    assert min(job.length_s for job in work) >= 0.05
    assert max(job.length_s for job in work) <= 2.0
    assert all(job.length_s < job.walltime_s for job in work)
    assert 1.0 <= _mixed.fields(work, 16, 20.0)["greedy_ratio"] <= 1.1  # an aim of 1.10 can be reached


# -- the session -----------------------------------------------------------------------------------


def test_every_peer_has_its_script_its_name_and_a_place_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # its modules find each other as those of a program do
    run_peers = importlib.import_module("run_peers")
    compared = {workload for _, _, workloads, _, _ in report.COMPARED for workload in workloads}
    compared |= {workload for _, (_, workload) in report.BATCH}
    for run in run_peers.RUNS:
        assert (BENCHMARKS / "peers" / f"{run.peer}.py").exists()
        assert run.peer in report.PEERS
        assert run.workload in compared
    for venv in {"peers", *run_peers.OWN_VENV.values()}:
        assert (BENCHMARKS / f"requirements-{venv}.txt").exists()


def test_row_that_cannot_be_measured_here_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    run = importlib.import_module("run")
    row = run.Measure("slurm", "slurm-pilot", (), 1, script="slurm_pilot", missing=lambda: "not root")
    (found,) = run.session([row], [], 1, quick=True, peers=False)
    assert (found["script"], found["workload"], found["missing"]) == ("slurm_pilot", "slurm-pilot", "not root")
    assert report.batch(report.Results([found])) == "Not measured: not root."
    assert report.failures(report.Results([found])) == ""


def test_row_measured_apart_replaces_its_runs_and_says_so() -> None:
    before = [{"facts": {"date": "Monday", "cores": 2}}, noop(1.0), noop(2.0), parsl(3.0)]
    now = [{"facts": {"date": "Tuesday", "cores": 2, "load average": "0.5", "pilot": "0.2"}}, noop(4.0)]
    facts, *lines = report.merged(before, now, "noop")
    assert lines == [parsl(3.0), noop(4.0)]
    told = "date Tuesday; load average 0.5; pilot 0.2"
    assert facts == {"facts": {"date": "Monday", "cores": 2, "`noop`, measured apart": told}}


# -- the load of a batch system --------------------------------------------------------------------

SDIAG = """\
DBD Agent queue size: {queued}

Remote Procedure Call statistics by message type
	REQUEST_SUBMIT_BATCH_JOB                ( 4003) count:564    ave_time:2361   total_time:1332025
	MESSAGE_EPILOG_COMPLETE                 ( 6012) count:60     ave_time:513    total_time:30822
	REQUEST_STATS_INFO                      ( 2035) count:2      ave_time:231    total_time:463

Remote Procedure Call statistics by user
	root            (       0) count:1158   ave_time:2470   total_time:2861326
"""


def test_requests_are_those_by_type_without_its_own() -> None:
    assert _slurm.requests(SDIAG) == {"REQUEST_SUBMIT_BATCH_JOB": 564, "MESSAGE_EPILOG_COMPLETE": 60}
    with pytest.raises(_slurm.SlurmError, match="does not count"):
        _slurm.requests("Server thread count: 3")


def test_database_is_told_everything_when_nothing_is_queued() -> None:
    assert _slurm.settled(SDIAG.format(queued=0))
    assert not _slurm.settled(SDIAG.format(queued=10))


def batch_lines() -> list[dict[str, Any]]:
    load = {"tasks": 1000, "controllers_cpu_s": 1.25}
    pilot = {"rate_per_s": 250.0, "start_s": 3.0, "up_rate_per_s": 1500.0}
    return [
        line("slurm_jobs", "slurm-sbatch", rate_per_s=20.0, requests=2100, rows=2000, **load),
        line("slurm_jobs", "slurm-array", error="it failed"),
        line("slurm_pilot", "slurm-pilot", requests=10, rows=3, **pilot, **load),
    ]


def test_ways_to_run_commands_on_a_batch_system_stand_side_by_side() -> None:
    head, _, jobs, array, ours = report.batch(report.Results(batch_lines())).splitlines()
    assert head.startswith("| 1,000 × `/bin/true` as |")
    assert jobs == "| one `sbatch` each | 20/s | 1.00 × | – | – | 2,100 | 2,000 | 1.25 s |"
    assert array.startswith("| a job array | failed: it failed |")
    assert ours == "| tasks of one pilot | 250/s | 12.50 × | 3.00 s | 1,500/s | 10 | 3 | 1.25 s |"


def test_batch_system_that_was_left_out_is_said_to_be() -> None:
    assert report.batch(report.Results([])) == "Not measured: left out of this session."


# -- the page ---------------------------------------------------------------------------------------


@pytest.fixture
def session() -> list[dict[str, Any]]:
    """Lines of a session in which one peer failed."""
    return [
        {"facts": {"date": "2026-01-02", "cores": 2, "rounds": 3, "processor": "A | B", "MPI": ""}},
        noop(6500.0, db_commands_per_task=0.02, cpu_us_mongod=100.0, cpu_us_client=100.0, rss_mb_agent=35.2),
        parsl(1000.0),
        line("fireworks_rapidfire", "noop", rate_per_s=50.0, db_commands_per_task=40.0),
        line("spawn_loop", "true", error="a | b\nc"),
        line("latency", "latency", median_ms=10.0),
        line("process_pool", "latency", median_ms=1.0, version="Python 3.11"),
    ]


def test_page_has_every_table_and_no_place_left(session: list[dict[str, Any]]) -> None:
    page = report.render(report.TEMPLATE.read_text(), session)
    assert "{{" not in page
    assert "≥ 5 × Parsl HTEX as it comes (is 6.50 ×)" in page
    assert "| no-op functions | Parsl HTEX 1.0, `noop-default` | 1,000/s | 6.50 × |" in page
    assert "| database commands per no-op task | FireWorks 1.0 | 40.000 | 2,000 × |" in page
    assert "| one task, pool idle | ProcessPoolExecutor, Python 3.11 | 1.0 ms | 0.10 × |" in page
    assert "| `/bin/true` commands | spawn loop | failed |" in page
    assert "* spawn loop, `true`: a \\| b c" in page
    assert "* processor: A \\| B" in page
    assert "* MPI" not in page


def test_tables_are_rectangular(session: list[dict[str, Any]]) -> None:
    results = report.Results(session)
    batch = report.batch(report.Results(batch_lines()))
    for text in (report.promises(results), report.comparison(results), report.costs(results, 2), batch):
        cells = [row.replace("\\|", "").count("|") for row in text.splitlines()]
        assert len(set(cells)) == 1, text


def test_costs_add_up_to_a_rate(session: list[dict[str, Any]]) -> None:
    lines = report.costs(report.Results(session), 2).splitlines()
    assert lines[-2].startswith("| all |  | 200 µs | – |")
    assert lines[-1].startswith("| 2 cores and nothing else to wait for |  | 10,000/s | – |")


def test_unknown_place_in_the_template_is_an_error() -> None:
    with pytest.raises(KeyError):
        report.render("{{nowhere}}", [])


def test_lines_of_a_session_render_again(session: list[dict[str, Any]], tmp_path: Path) -> None:
    lines, page = tmp_path / "lines.jsonl", tmp_path / "page.md"
    lines.write_text("\n".join(json.dumps(it) for it in session))
    report.main(["report.py", str(lines), str(page)])
    assert page.read_text() == report.render(report.TEMPLATE.read_text(), session)


# -- running a script -------------------------------------------------------------------------------


def script(folder: Path, text: str) -> list[str]:
    path = folder / "measure.py"
    path.write_text(f"import os, subprocess, sys, time\n{text}\n")
    return [sys.executable, str(path)]


def test_script_gives_its_line(tmp_path: Path) -> None:
    assert running.line_of(script(tmp_path, "print('{\"a\": 1}')"), 30) == {"a": 1}


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE  # of an orphan, until init looks
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("sys.exit('first\\nthe reason')", "^the reason$"),
        ("sys.exit(3)", "^measure: ended with code 3 and said nothing$"),
        ("print('hello')", "^measure: no JSON line on standard output but 'hello"),
    ],
)
def test_script_that_fails_has_one_reason(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(running.RunError, match=reason):
        running.line_of(script(tmp_path, text), 30)


def test_deadline_leaves_nothing_behind(tmp_path: Path) -> None:
    """Neither the script, nor what it started in another session and another folder."""
    started = "subprocess.Popen(['sleep', '600'], start_new_session=True, cwd='/')"
    text = f"p = {started}\nopen({str(tmp_path / 'pid')!r}, 'w').write(f'{{p.pid}} {{os.getpid()}}')\ntime.sleep(600)"
    begun = time.monotonic()
    with pytest.raises(running.RunError, match="not finished within 2 s"):
        running.line_of(script(tmp_path, text), 2)
    assert time.monotonic() - begun < 30
    assert [pid for pid in (tmp_path / "pid").read_text().split() if lives(int(pid))] == []


def test_quick_run_measures_something_and_writes_nothing(tmp_path: Path) -> None:
    need("mongod")
    need("mpiexec")
    written = [BENCHMARKS / "results.jsonl", BENCHMARKS.parent / "docs" / "performance.md"]
    before = [path.exists() and path.stat().st_mtime_ns for path in written]
    argv = [sys.executable, str(BENCHMARKS / "run.py"), "--quick", "--only", "latency"]
    done = subprocess.run(
        argv, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr
    row = next(text for text in done.stdout.splitlines() if text.startswith("| submit to result, one task"))
    assert " ms |" in row
    assert [path.exists() and path.stat().st_mtime_ns for path in written] == before
    assert list(tmp_path.iterdir()) == []
