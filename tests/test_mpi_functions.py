"""MPI functions in the ranks of real pools: `mpi_program` plays scenarios under each MPI, tests judge its report."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pilot.executors.pool.world import EXIT_LEFTOVER
from pilot.executors.run import parts
from pilot.executors.run.wire import unpack_result, unpack_work
from pilot.model import Result
from pilot.states import Outcome
from tests.mpi_program import mpi_item
from tests.pool_program import code
from tests.pool_rig import HERE, Pool, pool

__all__ = ["pool"]

QUICK = {"grace_s": 0.5, "deadline_s": 2.0}


@pytest.fixture(autouse=True)
def program(pool: Pool) -> None:
    pool.program = HERE / "mpi_program.py"


def play(pool: Pool, *calls: tuple[str, list[int], dict[str, Any]], ranks: int = 3, **options: Any) -> list[Any]:
    """Run functions one after the other; return how each ended."""
    report = pool.plays("functions", ranks=ranks, calls=calls, **options)
    assert len(report["able"]) == ranks - 1
    return report["results"]


# -- what works ---------------------------------------------------------------------------------------


def test_ranks_are_those_of_the_members_in_their_order(pool: Pool) -> None:
    results = play(
        pool,
        ("where", [3, 1], {"gather": True}),
        ("where", [1], {}),
        ("current", [2, 3], {}),
        ("where", [4, 3, 2, 1], {"gather": True}),
        ranks=5,
    )
    assert [one["outcome"] for one in results] == ["succeeded"] * 4
    assert results[0]["values"] == {"result[0]": [0, 2], "result[1]": [1, 2]}
    assert results[0]["rank"] == 3
    assert results[1]["values"] == {"result": [0, 1]}
    assert results[2]["values"] == {"result": 2}
    assert results[3]["values"] == {f"result[{rank}]": [rank, 4] for rank in range(4)}


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_mpi_works_inside(pool: Pool, size: int) -> None:
    members = list(range(1, size + 1))
    names = ["split", "window", "nonblocking"]
    ring, *others = play(
        pool,
        ("buffers", members, {"args": {"n": 50_000}, "gather": True}),
        *((name, members, {"gather": True}) for name in names),
        ranks=size + 1,
    )
    total = float(sum(range(size)))
    assert ring["values"] == {f"result[{rank}]": [float((rank - 1) % size), total] for rank in range(size)}
    split, window, nonblocking = ([one["values"][f"result[{rank}]"] for rank in range(size)] for one in others)
    halves = [[other for other in reversed(range(size)) if other % 2 == rank % 2] for rank in range(size)]
    assert split == [[half.index(rank), len(half), sum(half)] for rank, half in enumerate(halves)]
    assert window == [10.0 + (rank - 1) % size for rank in range(size)]
    assert nonblocking == [[10 * other for other in range(size)]] * size


def test_narrow_tasks_run_beside_before_and_after(pool: Pool) -> None:
    report = pool.plays("beside", ranks=4)
    assert report["outcomes"] == {"succeeded": 20 + 20 * 3 * 5}


def test_slots_on_other_hosts_cannot_ring(pool: Pool) -> None:
    assert pool.plays("beside", ranks=4, doorbell=False, rounds=5)["outcomes"] == {"succeeded": 5 + 5 * 3 * 5}


def test_more_sets_of_ranks_than_are_kept(pool: Pool) -> None:
    report = pool.plays("many_sets", ranks=5, turns=4)
    assert report["sets"] == 64
    assert report["outcomes"] == {"succeeded": 4 * 64}


def test_large_results_are_objects_and_usage_is_of_all_ranks(pool: Pool) -> None:
    large, used = play(pool, ("grows", [1, 2], {"args": {"size": 50_000}, "gather": True}), ("uses", [1, 2], {}))
    assert large["values"] == {"result[0]": 50_000, "result[1]": 50_000}
    assert 0.35 < used["cpu_s"] < 5
    assert used["rss"] > 10_000_000


def test_output_is_that_of_rank_0_or_else_of_others(pool: Pool) -> None:
    results = play(
        pool,
        ("nothing", [1, 2], {}),
        ("says", [1, 2], {"args": {"who": 0, "text": "hello"}}),
        ("says", [1, 2], {"args": {"who": 1, "text": "there"}}),
        ("nothing", [1, 2], {}),
    )
    assert results[1]["log"]["tail"] == "raw hello\nhello\n" or results[1]["log"]["tail"] == "hello\nraw hello\n"
    assert results[1]["log"]["length"] == 16
    said = Path(results[1]["log"]["file"]).read_bytes()
    offset = results[1]["log"]["offset"]
    assert sorted(said[offset : offset + 16].split()) == [b"hello", b"hello", b"raw"]
    assert results[2]["log"]["tail"].startswith("[rank 1] ")
    assert "there" in results[2]["log"]["tail"]
    assert results[3]["log"] is None


def test_a_rank_is_as_before_after_each_function(pool: Pool) -> None:
    _, found = play(pool, ("litters", [1, 2], {}), ("finds", [1, 2], {"gather": True}))
    assert list(found["values"].values()) == [[str(pool.folder), False, False, False, "1"]] * 2


def test_ranks_are_bound_for_the_function_only(pool: Pool) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    first, free = play(
        pool,
        ("bound", [1, 2], {"cpus": [cpus[:1], cpus[-1:]], "gather": True}),
        ("bound", [1, 2], {"gather": True}),
    )
    assert list(first["values"].values()) == [cpus[:1], cpus[-1:]]
    assert list(free["values"].values()) == [cpus, cpus]


def test_message_that_nobody_received_is_not_taken_by_the_next(pool: Pool) -> None:
    calls = [("unsent", [1, 2], {}), ("hears", [1, 2], {})] * 10
    assert [one["values"]["result"] for one in play(pool, *calls)][1::2] == ["fresh"] * 10


# -- failures -----------------------------------------------------------------------------------------


def test_exception_names_rank_and_host(pool: Pool) -> None:
    bad, all_bad, good = play(
        pool,
        ("fails", [1, 2], {"args": {"who": 1, "wait": False}}),
        ("fails_everywhere", [1, 2], {}),
        ("where", [1, 2], {}),
    )
    assert bad["outcome"] == "failed"
    assert bad["failure"]["type"] == "ValueError"
    assert bad["failure"]["message"] == "rank 1 of 2 on node0: rank 1 does not like it"
    assert (bad["failure"]["rank"], bad["failure"]["host"]) == (1, "node0")
    assert "mpi_functions.py" in bad["failure"]["traceback"]
    assert "inrank.py" not in bad["failure"]["traceback"]
    assert all_bad["failure"]["traceback"].startswith("ranks 0-1 of 2, on node0, node1:\nTraceback")
    assert all_bad["failure"]["traceback"].count("Traceback") == 1
    assert good["outcome"] == "succeeded"


def test_exit_costs_the_task_only(pool: Pool) -> None:
    left, good = play(pool, ("leaves", [1, 2], {"args": {"code": 7}}), ("where", [1, 2], {}))
    assert (left["outcome"], left["exit_code"]) == ("failed", 7)
    assert "sys.exit(7)" in left["failure"]["message"]
    assert good["outcome"] == "succeeded"


def test_function_that_cannot_be_loaded_keeps_nobody_waiting(pool: Pool) -> None:
    bad, missing, good = play(
        pool,
        ("none", [1, 2], {"code": "tests.no_such_module:none"}),
        ("where", [1, 2], {"args": {"surprise": 1}}),
        ("where", [1, 2], {}),
    )
    assert bad["outcome"] == "failed"
    assert "no_such_module" in bad["failure"]["message"]
    assert missing["failure"]["type"] == "TypeError"
    assert good["outcome"] == "succeeded"


def test_other_ranks_are_interrupted_after_a_failure(pool: Pool) -> None:
    bad, good = play(pool, ("fails_late", [1, 2], {}), ("where", [1, 2], {}), limits={"grace_s": 0.5})
    assert bad["failure"]["message"] == "rank 0 of 2 on node1: rank 0 is tired"
    assert "rank 1 of 2, on node0 (ended because of another rank)" in bad["failure"]["traceback"]
    assert "forever" in bad["failure"]["traceback"]
    assert 0.4 < bad["took_s"] < 5
    assert good["outcome"] == "succeeded"


def test_rank_that_waits_in_a_collective_for_ever_is_left_in_quarantine(pool: Pool) -> None:
    code, text = pool.fails("stuck", ranks=4, limits=QUICK)
    assert code == EXIT_LEFTOVER or (pool.crashing_launcher and code < 0), text
    report = pool.report()
    assert report["bad"]["outcome"] == "failed"
    assert report["bad"]["failure"]["message"] == "rank 1 of 2 on node0: rank 1 does not like it"
    assert "rank 0 did not come back within 2 s" in report["bad"]["failure"]["traceback"]
    assert 1.5 < report["took_s"] < 8
    assert report["able"] == [2, 3]
    assert report["recycle"] == "1 of 3 slots are in quarantine"
    assert [event[:2] for event in report["events"] if event[0] != "Joined"] == [["Quarantined", [1]]]
    assert report["outcomes"].get("succeeded", 0) >= 20
    assert report["stop_s"] < 10
    assert pool.gone(5.0) == []


def test_slot_that_comes_back_late_takes_work_again(pool: Pool) -> None:
    report = pool.plays("late", limits=QUICK)
    assert report["able"] == [2]
    assert [event[:2] for event in report["events"]][-2:] == [["Quarantined", [1]], ["Joined", 1]]
    assert report["outcomes"] == {"failed": 1, "succeeded": 1}


def test_walltime_ends_what_is_in_python(pool: Pool) -> None:
    slow, stubborn, good = play(
        pool,
        ("loops", [1, 2], {"walltime_s": 0.5}),
        ("stubborn", [1, 2], {"walltime_s": 0.5}),
        ("where", [1, 2], {"walltime_s": 60}),
    )
    assert slow["outcome"] == stubborn["outcome"] == "timeout"
    assert 0.4 < slow["wall_s"] < 3
    assert "walltime" in slow["failure"]["message"]
    assert "forever" in slow["failure"]["traceback"]
    assert good["outcome"] == "succeeded"


@pytest.mark.parametrize("place", ["own node", "other node"])
def test_cancel_reaches_a_busy_rank(pool: Pool, place: str) -> None:
    names = ["loops", "stubborn"]
    report = pool.plays("cancel", ranks=4, names=names, apart=place == "other node")
    assert [report[name]["outcome"] for name in names] == ["cancelled"] * 2
    assert report["loops_s"] < 2
    assert report["able"] == [1, 2, 3]


def test_cancel_of_what_is_inside_mpi_ends_it_without_its_slots(pool: Pool) -> None:
    pool.fails("cancel", names=["waits_in_mpi"], limits=QUICK)
    report = pool.report()
    assert report["waits_in_mpi"]["outcome"] == "cancelled"
    assert report["able"] == []
    assert not report["clean"]


def test_leaks_wear_the_pool_and_nobody_is_blamed(pool: Pool) -> None:
    pools, left = 0, 1000
    while left:
        report = pool.plays("leak", count=1000)
        assert set(report["outcomes"]) <= {"succeeded", "lost"}
        assert report["recycle"] if report["done"] < left else True
        assert report["done"] > 100
        left -= report["done"]
        pools += 1
    assert pools == 1 if pool.crashing_launcher else pools > 3  # Open MPI has communicators without end


def test_pool_wants_to_be_recycled_after_many_functions(pool: Pool) -> None:
    report = pool.plays("functions", calls=[("nothing", [1, 2], {})] * 3, limits={"functions_max": 3})
    assert report["recycle"] == "it has run 3 MPI functions"


def test_ranks_without_means_refuse(pool: Pool) -> None:
    report = pool.plays("functions", calls=[("where", [1, 2], {})], refuse=True)
    assert report["results"][0]["outcome"] == "lost"
    assert "were not given" in report["results"][0]["failure"]["message"]
    assert report["able"] == []


def test_folder_of_another_submitter_is_not_mixed_in(pool: Pool) -> None:
    calls = [("where", [1, 2], {"folder": "/tmp"}), ("where", [1, 2], {"folder": "/var"})]
    report = pool.plays("functions", calls=calls)
    assert [one["outcome"] for one in report["results"]] == ["succeeded", "lost"]
    assert "Stale" in report["recycle"]
    assert report["able"] == []


def test_memory_limit_is_of_each_rank(pool: Pool) -> None:
    fits, too_much, good = play(
        pool,
        ("needs", [1, 2], {"memory_bytes": 200 << 20, "args": {"size": 50 << 20}}),
        ("needs", [1, 2], {"memory_bytes": 200 << 20, "args": {"size": 400 << 20}}),
        ("needs", [1, 2], {"args": {"size": 400 << 20}}),
    )
    assert fits["outcome"] == good["outcome"] == "succeeded"
    assert "more than its memory limit of 200 MiB" in too_much["failure"]["message"]


def test_forked_copy_of_a_rank_does_not_answer(pool: Pool) -> None:
    forked, good = play(pool, ("forks", [1, 2], {"gather": True}), ("where", [1, 2], {}))
    assert forked["values"] == {"result[0]": 0, "result[1]": 1}
    assert good["outcome"] == "succeeded"


def test_stop_waits_for_what_runs(pool: Pool) -> None:
    assert pool.plays("stop")["outcomes"] == {"succeeded": 1}


def test_killed_launcher_takes_ranks_inside_mpi_with_it(pool: Pool) -> None:
    launched = pool.start("hang")
    deadline = time.monotonic() + 60
    while not (pool.folder / "inside").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    launched.kill()
    launched.wait()
    assert pool.gone(10.0) == []


def test_crash_ends_the_program_and_leaves_words(pool: Pool) -> None:
    code, _ = pool.fails("crash", timeout_s=60)
    assert code != 0
    assert pool.gone(5.0) == []
    words = [file.read_text() for file in pool.folder.rglob("*.mpi.out")]
    assert any("Segmentation fault" in text and "dies" in text for text in words)


# -- in a program of its own --------------------------------------------------------------------------


def alone(pool: Pool, function: str, ranks: int = 2, deadline_s: float = 2.0, **options: Any) -> tuple[int, Result]:
    """Run one function as an MPI program; return its exit code and the merged result."""
    item = mpi_item("t", function, list(range(1, ranks + 1)), **options)
    frame = pool.folder / "frame"
    frame.write_bytes(parts.Isolated(unpack_work(item.frame), code(item.function or "")).pack())
    program = [sys.executable, "-P", str(HERE / "mpi_alone.py"), str(frame), str(pool.folder), str(deadline_s)]
    with pool.output.open("wb") as output:
        ended = subprocess.run(
            [*pool.argv, "-n", str(ranks), *program], env=pool.env, cwd=pool.folder, stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT, timeout=90, check=False, start_new_session=True,
        )  # fmt: skip
    found = {}
    for rank in range(ranks):
        file = Path(parts.part_file(str(pool.folder), rank))
        if file.exists():
            found[rank] = unpack_result(file.read_bytes())
    return ended.returncode, parts.merge(found, ranks, "the program ended")


def test_alone_succeeds(pool: Pool) -> None:
    code, result = alone(pool, "where", ranks=3, gather=True)
    assert code == 0, pool.output.read_text()
    assert result.outcome is Outcome.SUCCEEDED
    assert [name for name, _ in result.outputs] == ["result[0]", "result[1]", "result[2]"]
    assert (result.rank, result.host) == (1, "node1")


def test_alone_exception_beside_a_rank_in_a_collective(pool: Pool) -> None:
    code, result = alone(pool, "fails", args={"who": 1, "wait": True})
    assert code != 0
    assert result.outcome is Outcome.FAILED
    assert result.failure is not None
    assert result.failure.message == "rank 1 of 2 on node0: rank 1 does not like it"
    assert "rank 0 did not come back within 2 s" in result.failure.traceback
    assert pool.gone(5.0) == []


def test_alone_crash_leaves_no_part(pool: Pool) -> None:
    code, result = alone(pool, "dies", deadline_s=60.0)
    assert code != 0
    assert result.outcome is Outcome.CRASHED
    assert result.failure is not None
    assert "of 2 ended without a result: the program ended" in result.failure.message
    assert pool.gone(5.0) == []
