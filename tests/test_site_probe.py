"""What is tried on the nodes of a site, with real MPI and launchers that do not work."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pilot import site_probe
from pilot.allocation import pilot_settings
from pilot.block import Block
from pilot.executors.run.orphans import find_orphans
from pilot.findings import Verdict
from pilot.pool_program import find_launcher
from pilot.site_files import load_site
from pilot.site_probe import Probe, ProbeSettings, Results
from pilot.sites import Site
from tests.conftest import need

WORKING = ("mpiexec", "--bind-to", "none", "-n", "{ranks}")


def site_with(**changes: Any) -> Site:
    return Site.model_validate(load_site("local").model_dump(exclude_unset=True) | {"slots": 2} | changes)


def found(folder: Path, site: Site, beside: str = "share") -> dict[str, list[str]]:
    """Return what is found, by check."""
    need("mpiexec")
    told = ProbeSettings(pilot_settings(None, site), site.node.cores, beside)
    said: dict[str, list[str]] = {}
    for one in Probe(told, Block(), folder).findings():
        said.setdefault(one.check, []).append(f"{one.verdict.value}: {one.text}")
    assert not [
        pid for what in ("tell", "die", "nest") for pid in find_orphans("PILOT_POOL", f"{told.pilot.pilot}.{what}")
    ]
    return said


def launcher(folder: Path, text: str) -> dict[str, Any]:
    """Return the launcher of a site, a program that is handed the command of one that works."""
    path = folder / "mylaunch"
    path.write_text(f"#!{sys.executable}\nimport subprocess, sys, time\nargv = sys.argv[1:]\n{text}\n")
    path.chmod(0o755)
    return {"command": [str(path), find_launcher(WORKING[0]) or "", *WORKING[1:]]}


def test_a_site_that_works(tmp_path: Path) -> None:
    said = found(tmp_path, site_with())
    assert [one for many in said.values() for one in many if one.startswith("wrong")] == []
    assert said["store"] == ["note: not tried: no project here; `pilot init` makes one"]
    assert said["world"][0].startswith("ok: one program of 3 ranks on ")
    assert said["kill"][0].endswith("s after the death of a rank")
    assert said["nested"][0].startswith("ok: a program of 2 ranks on ")


def test_singletons(tmp_path: Path) -> None:
    alone = launcher(tmp_path, "sys.exit(subprocess.run(argv[5:]).returncode)")
    said = found(tmp_path, site_with(launcher=alone))
    assert said["world"][0].startswith(
        "wrong: a program of 3 ranks ended with exit code 81: pool rank ?: started an MPI"
    )
    assert said["world"][0].endswith("; look at launcher.command (under Slurm `--mpi`)")
    assert said["kill"] == said["nested"] == ["note: not tried: the program does not start"]


def test_a_launcher_that_hangs_is_ended_and_the_next_thing_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_probe, "_DEATH_S", 0.5)
    hangs = "code = subprocess.run(argv).returncode\nif 'die.json' in argv[-1]: time.sleep(60)\nsys.exit(code)"
    said = found(tmp_path, site_with(launcher=launcher(tmp_path, hangs)), beside="no")
    assert said["kill"] == [
        "wrong: after the death of a rank the launcher did not end the others within 0.5 s; add to launcher.command "
        "what makes it (under Slurm `-K1`)"
    ]
    assert said["nested"][0].endswith(": launcher.programs_beside_pool, which is no, may be share")


def test_programs_that_do_not_start_beside_a_pool(tmp_path: Path) -> None:
    (tmp_path / "stuck").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "stuck").chmod(0o755)
    programs = {"mpich": {"launcher": [str(tmp_path / "stuck")]}}
    said = found(tmp_path, site_with(programs=programs, start_s=0.5))
    assert len(said["nested"]) == 1
    assert "launcher 'stuck' did not start the program: it did nothing for 0.5 s" in said["nested"][0]
    assert "set launcher.programs_beside_pool" in said["nested"][0]


def test_fewer_nodes_than_asked(tmp_path: Path) -> None:
    told = ProbeSettings(replace(pilot_settings(None, site_with()), nodes=2), None, "share")
    first = next(Probe(told, Block(("n1",), "7"), tmp_path).findings())
    assert first.text == "asked for 2 nodes, job 7 has 1 (n1); look at {nodes} in batch.options"


def test_findings_on_their_way(tmp_path: Path) -> None:
    writer, reader = Results(tmp_path), Results(tmp_path)
    assert reader.new() == []
    writer.add(site_probe.wrong("world", "a\nb"))
    with (tmp_path / "found.jsonl").open("a") as file:
        file.write('["half", "ok"')
    (one,) = reader.new()
    assert (one.check, one.verdict, one.text, reader.finished) == ("world", Verdict.WRONG, "a\nb", False)
    with (tmp_path / "found.jsonl").open("a") as file:
        file.write(', ""]\n')
    writer.finish()
    assert (len(reader.new()), reader.finished) == (1, True)
