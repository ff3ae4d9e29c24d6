"""`pilot site`: what it lists, shows and tries, from here and in a job of a batch system."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pilot.cli.app import run
from pilot.cli.site import as_yaml
from pilot.cli.site_job import _await
from pilot.errors import SchedulerUnreachable
from pilot.executors.batch.jobs import Job, Jobs
from pilot.findings import Verdict
from pilot.site_files import load_site
from pilot.sites import Site, here
from pilot.states import JobState
from tests import batch_rig
from tests.cli_rig import Call, Said
from tests.conftest import need
from tests.rig import Rig

MINE: dict[str, Any] = {
    "extends": "slurm", "description": "Mine", "detect": {"env": {"MY_MACHINE": "yes"}}, "slots": 2,
    "verified": {"date": "2026-08-01", "source": "https://docs"}, "unverified": ["batch.queues.debug", "node.cores"],
    "batch": {"queues": {"debug": {"max_walltime": "30m"}}, "account_required": True},
}  # fmt: skip


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Run commands in an empty directory, which is searched for site files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PILOT_SITES", str(tmp_path))

    def called(*words: str) -> Said:
        code = run(words)
        return Said(code, *capfd.readouterr())

    return called


def write(name: str, **data: Any) -> None:
    Path(f"{name}.yaml").write_text(yaml.safe_dump(data))


# -- list and show --------------------------------------------------------------------------------


def test_a_list_marks_where_we_are(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    write("mine", **MINE)
    write("broken", extends="slurm", slots=0)
    monkeypatch.setenv("MY_MACHINE", "yes")
    entries = {entry["name"]: entry for entry in call("site", "list", "--json").json}
    assert entries.keys() >= {"mine", "broken", "local", "slurm", "pbs"}
    assert entries["mine"] == {
        "name": "mine", "description": "Mine", "batch": "slurm", "verified": "2026-08-01", "here": True, "error": "",
    }  # fmt: skip
    assert "'slots' is 0" in entries["broken"]["error"]
    lines = call("site", "list").out.splitlines()
    assert [line.split()[:4] for line in lines if "Mine" in line] == [["*", "mine", "slurm", "2026-08-01"]]
    assert [line.split()[:3] for line in lines if "without a batch" in line] == [["local", "unverified", "This"]]


@pytest.mark.parametrize(
    ("detect", "env", "fqdn", "expected"),
    [
        ({}, {}, "login1.x.org", False),
        ({"domain": "x.org"}, {}, "login1.x.org", True),
        ({"domain": ".x.org"}, {}, "x.org", True),
        ({"domain": "x.org"}, {}, "login1.box.org", False),
        ({"env": {"A": "1"}}, {"A": "1"}, "h", True),
        ({"env": {"A": "1"}, "domain": "x.org"}, {"A": "2"}, "h", False),
    ],
)
def test_where_we_are(detect: dict[str, Any], env: dict[str, str], fqdn: str, expected: bool) -> None:
    site = Site.model_validate(load_site().model_dump(exclude_unset=True) | {"detect": detect})
    assert here(site, env, fqdn) is expected


def test_a_site_is_shown_as_its_files_say_together(call: Call) -> None:
    write("mine", **MINE)
    shown = call("site", "show", "mine").out
    assert shown.startswith(f"# {Path.cwd()}/mine.yaml\n# extends ")
    data = yaml.safe_load(shown)
    assert (data["name"], data["batch"]["system"], data["batch"]["queues"]) == (
        "mine", "slurm", {"debug": {"max_walltime": "30m"}},
    )  # fmt: skip
    assert "    # unverified:\n    debug:\n      max_walltime: 30m\n" in shown
    assert "  # unverified:\n  cores: 4\n" in shown
    told = call("site", "show", "mine", "--json").json
    assert told["batch"]["queues"]["debug"]["max_walltime"] == 1800
    assert told["files"][0] == f"{Path.cwd()}/mine.yaml"


@pytest.mark.parametrize("name", ["local", "slurm", "pbs"])
def test_what_is_shown_is_the_site(name: str) -> None:
    data = load_site(name).model_dump(mode="json", exclude_unset=True)
    assert yaml.safe_load("\n".join(as_yaml(data, {"batch", "launcher.command", "name"}))) == data


def test_the_script_is_that_of_a_pilot(call: Call) -> None:
    write("mine", **MINE)
    script = call("site", "show", "mine", "--script", "--nodes", "3", "--walltime", "30m", "--account", "m1").out
    assert script.startswith("#!/bin/bash\n#SBATCH --job-name=pilot-p")
    assert "#SBATCH --nodes=3\n#SBATCH --time=00:30:00\n" in script
    assert "#SBATCH --account=m1\n" in script
    assert script.splitlines()[-1].startswith(f"exec {sys.executable} -P -m pilot.agent {Path.cwd()}/.pilot/pilots/p")
    assert list(Path.cwd().iterdir()) == [Path.cwd() / "mine.yaml"]


def test_what_cannot_be_shown_or_tried(call: Call) -> None:
    assert "no site 'nowhere'" in call("site", "show", "nowhere").err
    assert "site 'local' has no batch system" in call("site", "show", "local", "--script").err
    assert call("site", "check", "local", "--in-job").err.strip() == (
        "pilot: site 'local' has no batch system: `pilot doctor` tries its launcher"
    )
    assert call("site").out == call("site", "--help").out


# -- check ----------------------------------------------------------------------------------------


def program(name: str, text: str) -> None:
    """Write a program that stands for one of a batch system's."""
    path = Path("bin", name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def slurm(call: Call, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Put programs on the PATH that say what those of a Slurm do."""
    for name in ("sbatch", "squeue", "scancel", "scontrol", "sacct", "srun"):
        program(name, "exit 0")
    program("sinfo", "echo 'debug|up|30:00|1-infinite|4'")
    monkeypatch.setenv("PATH", f"{Path.cwd()}/bin", prepend=os.pathsep)
    return call


def test_a_site_that_is_as_its_file_says(slurm: Call) -> None:
    write("mine", **MINE)
    program("sbatch", 'grep -q "^#SBATCH --account=m1$" "$2" && echo "sbatch: Job 7 to start at noon" >&2')
    said = slurm("site", "check", "mine", "--account", "m1", "--json")
    assert said.code == 0, said
    assert said.checks("queue")[0] == "ok: debug: up, up to 00:30:00"
    assert said.checks("script") == ["ok: sbatch: Job 7 to start at noon"]
    assert said.checks("launcher") == [f"ok: {Path.cwd()}/bin/srun"]
    assert said.checks("place")[0].startswith("note: ")
    assert said.checks("file")[1] == "note: of these keys nobody has made sure: batch.queues.debug, node.cores"


def test_a_site_that_is_not(slurm: Call) -> None:
    batch = MINE["batch"] | {"queues": {"debug": {"max_nodes": 8}}, "queue": "fast", "modules": ["nosuch"]}
    write("mine", **MINE | {"batch": batch, "reach": {"interfaces": ["hsn0"]}, "launcher": {"command": ["nosuchrun"]}})
    program("sbatch", "echo 'sbatch: error: invalid partition specified: fast' >&2; exit 1")
    said = slurm("site", "check", "mine", "--json")
    assert said.code == 1
    assert said.checks("queue") == [
        "wrong: fast: there is no such queue, but debug; correct batch.queue or batch.queues",
        "note: debug: batch.queues.debug.max_nodes is 8, but it has 4 nodes",
    ]
    assert said.checks("modules")[0].startswith("wrong: ")
    assert said.checks("launcher")[0].startswith("wrong: 'nosuchrun' of launcher.command is neither beside Python nor")
    assert said.checks("reach")[0].startswith("wrong: none of hsn0 is here with an address, but ")
    assert said.checks("script")[0].startswith("wrong: no account: site 'mine' charges every job to one")
    script = slurm("site", "check", "mine", "--account", "m1", "--json").checks("script")[0]
    assert script.startswith(
        "wrong: Slurm would refuse the job: sbatch: error: invalid partition specified: fast; see "
    )
    lines = slurm("site", "check", "mine").out.splitlines()
    assert lines[-1] == "5 checks wrong"
    assert any(line.startswith("wrong  reach      none of hsn0") for line in lines)


def test_commands_that_are_not_there(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    said = call("site", "check", "pbs", "--json")
    assert said.checks("commands")[0].startswith("wrong: qsub, qstat, qdel of PBS not on the PATH; is this a login")
    assert said.checks("script")[0].startswith("note: PBS cannot say whether it would take the script; ")


# -- in a job -------------------------------------------------------------------------------------


@pytest.fixture
def fake_pbs(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put programs on the PATH that say what those of a PBS do; return the folder in which they keep jobs."""
    return batch_rig.fake_pbs(tmp_path_factory.mktemp("pbs"), monkeypatch)


@pytest.fixture
def job_site(call: Call, fake_pbs: Path) -> Call:
    """Return commands in a directory with a site whose batch system runs jobs on this machine."""
    need("mpiexec")
    batch = {"queue": "workq", "options": ["-l select={nodes}:ncpus=1"]}
    write("sim", extends="pbs", slots=2, batch=batch, unverified=["node.cores"])
    return call


def test_a_job_tries_what_cannot_be_tried_from_here(job_site: Call) -> None:
    said = job_site("site", "check", "sim", "--in-job", "--nodes", "1", "--walltime", "5m", "--json")
    assert said.code == 0, said
    assert [one["check"] for one in said.json["checks"] if one["check"] != "binding"] == [
        "job", "store", "world", "ranks", "gpus", "kill", "nested",
    ]  # fmt: skip
    assert said.checks("store") == ["note: not tried: no project here; `pilot init` makes one"]
    (folder,) = Path.cwd().glob("pilot-check-*")
    assert folder.stat().st_mode & 0o077 == 0
    assert {"job.sh", "job.id", "job.out", "found.jsonl"} <= {path.name for path in folder.iterdir()}


def test_a_job_reaches_the_store_of_the_project(job_site: Call, lobby: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(lobby.config.root)
    said = job_site("site", "check", "sim", "--in-job", "--nodes", "1", "--json")
    assert said.checks("store")[0].endswith(" reaches the project's store")
    assert len(list(lobby.config.folder.glob("checks/*/job.id"))) == 1


def test_a_job_that_does_not_start_is_taken_back(job_site: Call, fake_pbs: Path) -> None:
    (fake_pbs / "free").unlink()
    said = job_site("site", "check", "sim", "--in-job", "--nodes", "5", "--timeout", "0.5s", "--json")
    assert said.code == 1
    (text,) = said.checks("job")
    assert text.startswith("wrong: job 1.head was not over after 500 ms (queued: Can Never Run: Insufficient amount of")
    assert json.loads((fake_pbs / "1.json").read_text())["substate"] == "91"


def test_what_qsub_refuses(job_site: Call) -> None:
    said = job_site("site", "check", "sim", "--in-job", "--queue", "nosuch", "--json")
    assert "qsub: Unknown queue" in said.checks("job")[0]


class Asked:
    """Stands for a batch system that says one thing of every job."""

    def __init__(self, state: JobState | None) -> None:
        self._state = state

    def look(self, ids: list[str]) -> Jobs:
        if self._state is None:
            raise SchedulerUnreachable("squeue did not answer")
        return {job: Job(job, self._state, "F", exit_code=3) for job in ids}


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (JobState.FAILED, "job 7 ended (failed) before all was tried; its last words: no such python; see "),
        (None, "job 7 was not over after 500 ms (squeue did not answer), and is cancelled"),
    ],
)
def test_a_job_that_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: JobState | None, words: str
) -> None:
    monkeypatch.setattr("pilot.cli.site_job._LAG_S", 0.1)
    (tmp_path / "job.out").write_text("no such\npython\n")
    (finding,) = _await(Asked(state), "7", tmp_path, 0.5)  # type: ignore[arg-type]
    assert finding.verdict is Verdict.WRONG
    assert finding.text.startswith(words)
