"""What facts of a site mean, and what batch systems say of their queues. Pure; no batch system is needed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from pilot.executors.batch import pbs, slurm
from pilot.executors.batch.command import Said
from pilot.executors.batch.jobs import QueueNow
from pilot.executors.batch.modules import load_argv, loaded
from pilot.findings import Finding, Verdict
from pilot.site_judge import judge_binding, judge_gpus, judge_nested, judge_queue, judge_ranks
from pilot.sites import Queue

SINFO = """\
debug|up|30:00|1-infinite|4
batch|up|infinite|1-infinite|4
long|down|2-12:00:00|2-8|4
gpu|up|infinite|1|2
gpu|up|infinite|1|1
"""
"""``sinfo --noheader --format=%R|%a|%l|%s|%D`` of Slurm 22.05; the last partition has nodes of two kinds."""

QSTAT = """{
	"timestamp":	1795410070,
	"pbs_version":	"23.06.06",
	"pbs_server":	"head",
	"Queue":	{
		"workq":	{
			"queue_type":	"Execution",
			"total_jobs":	4,
			"state_count":	"Transit:0 Queued:2 Held:1 Waiting:1 Running:0 Exiting:0 Begun:0 ",
			"resources_assigned":	{
				"mpiprocs":	0,
				"ncpus":	0,
				"nodect":	0
			},
			"enabled":	"True",
			"started":	"True"
		},
		"debug": {"enabled": "True", "started": "False", "resources_max": {"nodect": 2, "walltime": "01:00:00"}}
	}
}
"""
"""The first of its queues is what ``qstat -Q -f -F json`` of a real OpenPBS 23.06.06 said."""


def said(out: str, code: int = 0) -> Said:
    return Said(code, out, "")


def words(findings: Iterable[Finding]) -> list[str]:
    return [f"{one.verdict.value} {one.check}: {one.text}" for one in findings]


# -- queues ---------------------------------------------------------------------------------------


def test_what_sinfo_says_of_partitions() -> None:
    assert slurm.queues(said(SINFO)) == {
        "debug": QueueNow(True, "up", 1, None, 1800.0, 4),
        "batch": QueueNow(True, "up", 1, None, None, 4),
        "long": QueueNow(False, "down", 2, 8, 216_000.0, 4),
        "gpu": QueueNow(True, "up", 1, 1, None, 3),
    }
    assert slurm.queues(said("something else\n")) == {}


def test_what_qstat_says_of_queues() -> None:
    assert pbs.queues(said(QSTAT)) == {
        "workq": QueueNow(True, "enabled and started"),
        "debug": QueueNow(False, "not started", 1, 2, 3600.0),
    }
    assert pbs.queues(said('{"Queue": {"a": ')) == {}


@pytest.mark.parametrize(
    ("name", "queue", "expected"),
    [
        ("debug", {}, ["ok queue: debug: up, up to 00:30:00"]),
        ("debug", {"max_nodes": 4, "max_walltime": "30m"}, ["ok queue: debug: up, up to 00:30:00"]),
        ("debug", {"max_nodes": 8}, ["note queue: debug: batch.queues.debug.max_nodes is 8, but it has 4 nodes"]),
        ("debug", {"max_walltime": "1h"}, [
            "note queue: debug: batch.queues.debug.max_walltime is 01:00:00, the batch system says 00:30:00"
        ]),
        ("gpu", {"max_nodes": 2}, ["note queue: gpu: batch.queues.gpu.max_nodes is 2, the batch system says 1"]),
        ("long", {"min_nodes": 2}, ["note queue: long: is down: its jobs wait until it is open again"]),
        ("long", None, ["note queue: long: is down: its jobs wait until it is open again"]),
        ("fast", {}, [
            "wrong queue: fast: there is no such queue, but batch, debug, gpu, long; correct batch.queue or "
            "batch.queues"
        ]),
    ],
)  # fmt: skip
def test_a_queue_is_compared_with_the_file(name: str, queue: dict[str, Any] | None, expected: list[str]) -> None:
    told = None if queue is None else Queue.model_validate(queue)
    assert words(judge_queue(name, told, slurm.queues(said(SINFO)))) == expected


# -- ranks ----------------------------------------------------------------------------------------


def rank(node: str = "n1.site", cpus: Iterable[int] = range(4), gpus: int = 0, variable: str = "") -> dict[str, Any]:
    return {
        "node": node, "host": node, "cpus": list(cpus), "online": 4, "gpus": gpus, "gpu_variable": variable,
        "library": "MPICH", "rank": 0,
    }  # fmt: skip


def test_ranks_are_where_they_were_asked_to_be() -> None:
    seen = [rank(), rank(), rank("n2.site")]
    assert words(judge_ranks({"n1": 2, "n2": 1}, seen)) == [
        "ok world: one program of 3 ranks on n1, n2: MPICH",
        "ok ranks: as many on each node as asked: 2 on n1, 1 on n2",
    ]
    (_, ranks) = words(judge_ranks({"n1": 2, "n2": 1}, [rank()] * 3))
    assert ranks.startswith("wrong ranks: asked for 2 on n1, 1 on n2, there are 3 on n1: the launcher does not heed")


@pytest.mark.parametrize(
    ("cores", "order", "seen", "expected"),
    [
        (None, (), [rank()] * 2, "ok binding: every rank may use all 4 CPUs"),
        (2, (), [rank(cpus=[0, 1, 2])], "ok binding: every rank may use all 3 CPUs"),
        (None, (), [rank(cpus=[0]), rank(cpus=[1])], "wrong binding: ranks on n1.site may use different CPUs"),
        (None, (), [rank(cpus=[0])], "wrong binding: ranks on n1.site may use 1 of 4 CPUs: the job does not have the"),
        (2, (3, 4), [rank()], "wrong binding: ranks on n1.site may not use CPUs [4] of node.cpu_order"),
    ],
)
def test_binding(cores: int | None, order: tuple[int, ...], seen: list[dict[str, Any]], expected: str) -> None:
    (found,) = words(judge_binding(cores, order, seen))
    assert found.startswith(expected)


def test_more_cores_than_there_are() -> None:
    assert words(judge_binding(64, (), [rank()]))[1] == "note binding: node.cores is 64, n1.site has 4 CPUs"


def test_gpus() -> None:
    variable = "ZE_AFFINITY_MASK"
    tiles = ("0.0", "0.1", "1.0", "1.1")
    assert words(judge_gpus((), "", [rank(), rank()])) == ["ok gpus: n1.site has none, as the file says"]
    assert words(judge_gpus((), "", [rank(gpus=1)])) == ["note gpus: node.gpus is 0, but n1.site has 1 GPUs in /dev"]
    assert words(judge_gpus(tiles, variable, [rank(gpus=2)]))[0].startswith("ok gpus: n1.site has 2")
    assert words(judge_gpus(tiles, variable, [rank(variable="0,1")]))[0].startswith("ok gpus: ")
    (found,) = words(judge_gpus(tiles, variable, [rank(gpus=1)]))
    assert found.startswith(
        "wrong gpus: node.gpus is 4, but n1.site has 1 GPUs in /dev, and ZE_AFFINITY_MASK is not set"
    )


def test_a_program_beside_the_pool() -> None:
    good = {"started": True, "code": 0, "words": "", "launcher": ["/bin/srun", "-n"], "ranks": [rank(), rank("n2")]}
    text = "a program of 2 ranks on n1.site, n2 started beside the pool, by /bin/srun"
    assert judge_nested(2, good, "share").text == text
    other = judge_nested(2, good, "whole_node_free")
    assert other.text == f"{text}: launcher.programs_beside_pool, which is whole_node_free, may be share"
    assert other.verdict is Verdict.NOTE
    for told in ({"started": False, "words": "it did nothing for 60 s"}, {"code": 1}, {"ranks": [rank()]}):
        found = judge_nested(2, good | told, "share")
        assert found.verdict is Verdict.WRONG
        assert "or set launcher.programs_beside_pool to " in found.text
        assert judge_nested(2, good | told, "no").verdict is Verdict.OK


# -- modules --------------------------------------------------------------------------------------

PROFILE = """
echo "welcome to $HOSTNAME"
module() {
    case "$1:$2" in
        load:gcc) LOADEDMODULES=gcc/12 ;;
        load:mpi) [ "$LOADEDMODULES" = gcc/12 ] && LOADEDMODULES=gcc/12:mpi/4 && PATH=$PATH:$HOME/bin ;;
    esac
}
"""
"""A hierarchy of modules: one shows only when another is loaded."""


def look(home: Path, *modules: str) -> str:
    env = {"HOME": str(home), "PATH": os.defpath}
    ran = subprocess.run(
        load_argv(modules, "mympirun"), env=env, capture_output=True, text=True, check=True, timeout=60
    )
    found = loaded(said(ran.stdout))
    return f"{found.there} {found.missing} {found.program}"


def test_modules_are_loaded_one_after_the_other(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "mympirun").touch(0o755)
    assert look(tmp_path, "gcc") == "False ('gcc',) "
    (tmp_path / ".bash_profile").write_text(PROFILE)
    assert look(tmp_path, "gcc", "mpi") == f"True () {tmp_path}/bin/mympirun"
    assert look(tmp_path, "mpi", "it's; exit 3") == "True ('mpi', \"it's; exit 3\") "
