"""What a site is asked for: requests, directives, scripts. Pure but for bash, which runs what was written."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pilot.allocation import batch_script, request_of
from pilot.errors import InvalidInput
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
    assert body == ["module load python", "export A='it'\"'\"'s'", "export B=2", "echo $A", "exec agent"]


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
