"""What a site is asked for: requests, directives, scripts. Pure but for bash, which runs what was written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pilot import limits
from pilot.allocation import batch_script, request_of, submit
from pilot.config import create_project
from pilot.errors import InvalidInput, SubmissionRejected
from pilot.executors.batch.scheduler import Scheduler, system_of
from pilot.executors.batch.script import export
from pilot.executors.run.launch import host_lines
from pilot.settings import PilotSettings
from pilot.site_files import load_site
from pilot.sites import Site

SETTINGS = PilotSettings("/project", "p1", "slurm", ("srun",), slots=4, slot_cores=1, nodes=2, walltime_s=3600.0)

ODD = ["a b", "'", '"', "$HOME", "`id`", "\\", "new\nline", "ünï¢ödé 雪", "!x", "-n", "a;exit 7", "#", "*", "~", ""]
"""What shells see something in."""


def site_with(system: str = "slurm", node: dict[str, Any] | None = None, **batch: Any) -> Site:
    data = load_site(system).model_dump(exclude_unset=True)
    data["batch"] |= batch
    return Site.model_validate(data | {"node": {"cores": 48, "memory": "190G", "gpus": 4} | (node or {})})


def test_queue_and_account_are_named_as_the_site_says() -> None:
    site = site_with(queue_option="--qos={queue}", account_option="--wckey={account}", queue="debug")
    script = script_of(site, account="m1")
    assert "#SBATCH --qos=debug\n#SBATCH --wckey=m1\n" in script
    assert "--partition" not in script
    script = script_of(site_with("pbs", account_option="-P {account}"), queue="express", account="m1")
    assert "#PBS -q express\n#PBS -P m1\n" in script


def script_of(site: Site, **asked: str) -> str:
    assert site.batch is not None
    return batch_script(site.batch, request_of(site, SETTINGS, **asked), ["agent"])


def test_numbers_in_directives_are_those_of_all_nodes() -> None:
    site = site_with("pbs", options=["-l ncpus={cores}", "-l ngpus={gpus},mem={memory_mb}mb", "-l storage={account}"])
    assert request_of(site, SETTINGS, account="ab1").options == (
        "-l ncpus=96", "-l ngpus=8,mem=389120mb", "-l storage=ab1",
    )  # fmt: skip


def test_numbers_that_nobody_knows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'-l mem={memory_mb}mb' of batch has {memory_mb}, but node\.memory is not"):
        site_with("pbs", node={"memory": None}, options=["-l mem={memory_mb}mb"])


def test_directives_of_a_queue_come_last() -> None:
    site = site_with(options=["--exclusive"], queues={"small": {"options": ["--mem={nodes}G"]}, "large": {}})
    assert request_of(site, SETTINGS, "small").options == ("--exclusive", "--mem=2G")
    assert request_of(site, SETTINGS, "large").options == request_of(site, SETTINGS).options == ("--exclusive",)


def test_a_pilot_of_several_blocks_goes_on_without_a_node() -> None:
    assert "#SBATCH --no-kill" not in script_of(site_with())
    site = site_with()
    assert request_of(site, replace(SETTINGS, block_nodes=1)).smaller


def test_variables_are_set_after_modules_and_before_the_lines_of_the_site() -> None:
    site = site_with(modules=["python"], env={"A": "it's", "B": "2"}, setup=["echo $A"])
    body = script_of(site).partition("\n\n")[2].splitlines()
    module, *rest = body
    assert module.startswith("module load python || { echo 'pilot: cannot load module python: ")
    assert rest == ["export A='it'\"'\"'s'", "export B=2", "echo $A", "exec agent"]


@pytest.mark.parametrize(("name", "value"), [("A-B", "x"), ("1A", "x"), ("A", "x\0"), ("A=1;B", "x")])
def test_variables_that_a_shell_cannot_have(name: str, value: str) -> None:
    with pytest.raises(InvalidInput, match="cannot set the variable"):
        export(name, value)


def test_odd_characters_reach_the_agent_through_a_shell(tmp_path: Path) -> None:
    folder = tmp_path / "".join(part.replace("/", "") for part in ODD)
    folder.mkdir()
    program = folder / "agent.py"
    program.write_text("import os, sys; print(*sys.argv, os.environ['ODD'], sep='\\0', end='')")
    site = site_with(env={"ODD": "".join(ODD)})
    assert site.batch is not None
    script = folder / "job.sh"
    script.write_text(batch_script(site.batch, request_of(site, SETTINGS), [sys.executable, str(program), *ODD]))
    ran = subprocess.run(["bash", script], capture_output=True, text=True, check=True, timeout=30)
    assert ran.stdout.split("\0") == [str(program), *ODD, "".join(ODD)]


def test_host_files() -> None:
    hosts = {"n1": 3, "n2": 2}
    assert host_lines("{host}:{ranks}", False, hosts) == "n1:3\nn2:2\n"
    assert host_lines("{host}", True, hosts) == "n1\nn1\nn1\nn2\nn2\n"


# -- limits ---------------------------------------------------------------------------------------

QUEUES = {
    "debug": {"max_nodes": 8, "max_walltime": "30m", "min_walltime": "5m"},
    "batch": {
        "min_nodes": 2,
        "sizes": [{"max_nodes": 91, "max_walltime": "2h"}, {"max_nodes": 183, "max_walltime": "6h"}],
    },
    "free": {},
}  # fmt: skip


def limited() -> Site:
    data = site_with(queues=QUEUES, account_required=True).model_dump(exclude_unset=True)
    return Site.model_validate(
        data
        | {"verified": {"date": "2026-08-01", "source": "https://docs"}, "unverified": ["batch.queues.debug.max_nodes"]}
    )


@pytest.mark.parametrize(
    ("queue", "nodes", "hours", "words"),
    [
        (
            "debug", 20, 0.5,
            "nodes 20: queue 'debug' of site 'slurm' takes at most 8 (site file key batch.queues.debug.max_nodes, from "
            "https://docs of 2026-08-01, unverified)",
        ),
        ("debug", 8, 1, "walltime 01:00:00: queue 'debug' of site 'slurm' takes at most 00:30:00 (site file key batch."
         "queues.debug.max_walltime, from https://docs of 2026-08-01)"),
        ("debug", 1, 0.01, "walltime 00:00:36: queue 'debug' of site 'slurm' takes at least 00:05:00 ("),
        ("batch", 1, 1, "nodes 1: queue 'batch' of site 'slurm' takes at least 2 (site file key batch.queues.batch.m"),
        ("batch", 90, 6, "takes at most 02:00:00 for 90 nodes (site file key batch.queues.batch.sizes, "),
        ("batch", 92, 7, "takes at most 06:00:00 for 92 nodes ("),
    ],
)  # fmt: skip
def test_what_a_queue_does_not_take_is_refused_with_its_source(
    queue: str, nodes: int, hours: float, words: str
) -> None:
    with pytest.raises(InvalidInput, match=re.escape(words)):
        limits.check(limited(), nodes, hours * 3600, queue, "m1")


def test_what_a_queue_takes_passes() -> None:
    site = limited()
    for queue, nodes, hours in (
        ("debug", 8, 0.5),
        ("batch", 183, 6),
        ("batch", 5000, 99),
        ("free", 1, 1),
        ("new", 9, 9),
    ):
        limits.check(site, nodes, hours * 3600, queue, "m1")


def test_all_limits_are_told_at_once() -> None:
    with pytest.raises(
        InvalidInput, match=r"^no account: .* `--account`, or set batch\.account .*; nodes 9: .*; wallt"
    ):
        limits.check(limited(), 9, 3600, "debug", "")


def test_an_unlisted_queue_is_only_doubted() -> None:
    assert re.search(
        r"'debugg' is none of .*\(debug, batch, free\); did you mean 'debug'\?", limits.doubt(limited(), "debugg")
    )
    assert "did you mean" not in limits.doubt(limited(), "zzz")
    assert limits.doubt(limited(), "") == limits.doubt(limited(), "free") == limits.doubt(site_with(), "any") == ""


def test_a_refused_pilot_leaves_nothing(tmp_path: Path) -> None:
    config = create_project(tmp_path)
    with pytest.raises(InvalidInput, match="no account"):
        submit(None, config, limited(), replace(SETTINGS, root=str(tmp_path)))  # type: ignore[arg-type]
    assert not (config.folder / "pilots").exists()


@pytest.mark.parametrize(
    ("system", "words", "advice"),
    [
        ("slurm", "Invalid account or account/partition combination specified",
         "; see batch.account of the site's file, or give --account"),
        ("slurm", "invalid partition specified: nosuch", "; see batch.queue of the site's file, or give --queue"),
        ("slurm", "Invalid qos specification", "; see batch.queue of"),
        ("slurm", "Requested time limit is invalid (missing or exceeds some limit)", "; see batch.queues of"),
        ("slurm", "Invalid feature specification", "; see batch.options of the site's file"),
        ("slurm", "something new", ""),
        ("pbs", "qsub: Unknown queue", "; see batch.queue of"),
        ("pbs", "qsub: Illegal attribute or resource value Resource_List.walltime", "; see batch.queues of"),
        ("pbs", "qsub: Unknown resource Resource_List.foo", "; see batch.options of"),
        ("pbs", "qsub: Invalid account", "; see batch.account of"),
        ("pbs", "qsub: Job violates queue and/or server resource limits", "; see batch.queues of"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_key_that_it_is_about(
    system: str, words: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sbatch", "qsub"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho "{words}" >&2; exit 1\n')
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(SubmissionRejected, match=re.escape(f"{words}{advice}") + ("$" if not advice else "")):
        Scheduler(system_of(system)).submit(tmp_path, "#!/bin/sh\n")
