"""The language of batch systems: state words, what commands print, scripts. Pure; no batch system is needed."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pilot.errors import (
    ConfigError,
    InvalidInput,
    SchedulerError,
    SchedulerNotFound,
    SchedulerUnreachable,
    SubmissionRejected,
)
from pilot.executors.batch import pbs, slurm
from pilot.executors.batch.command import Said, ask, environment
from pilot.executors.batch.jobs import Request
from pilot.executors.batch.scheduler import Scheduler, system_of
from pilot.executors.batch.script import clock, directive, script
from pilot.states import OVER, JobState
from tests.rig import wait_until

SQUEUE_CODES = """
    BF BOOT_FAIL, CA CANCELLED, CD COMPLETED, CF CONFIGURING, CG COMPLETING, DL DEADLINE, F FAILED, NF NODE_FAIL,
    OOM OUT_OF_MEMORY, PD PENDING, PR PREEMPTED, R RUNNING, RD RESV_DEL_HOLD, RF REQUEUE_FED, RH REQUEUE_HOLD,
    RQ REQUEUED, RS RESIZING, RV REVOKED, SI SIGNALING, SE SPECIAL_EXIT, SO STAGE_OUT, ST STOPPED, S SUSPENDED,
    TO TIMEOUT
"""
"""squeue(1), "JOB STATE CODES"."""

QSTAT_STATES = "BEFHMQRSTUWX"
"""qstat(1B), "The job's state"."""

DSV = (Path(__file__).parent / "pbs" / "qstat-x-f.dsv").read_text()
"""What a real OpenPBS 23.06.06 said."""

REQUEST = Request("pilot-p1", nodes=2, walltime_s=5400, warn_s=180, queue="debug", account="m1")


def said(out: str = "", err: str = "", code: int = 0) -> Said:
    return Said(code, out, err)


# -- states ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", re.findall(r"[A-Z]\w+_?\w*(?=,|\s*$)", SQUEUE_CODES, re.MULTILINE))
def test_every_word_of_squeue_is_known(word: str) -> None:
    assert slurm.STATES[word] is not JobState.UNKNOWN


@pytest.mark.parametrize("word", QSTAT_STATES)
def test_every_letter_of_qstat_is_known(word: str) -> None:
    assert pbs.STATES[word] is not JobState.UNKNOWN


def test_ends_are_told_apart() -> None:
    words = ("TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "SUSPENDED", "REQUEUED", "COMPLETING")
    assert len({slurm.STATES[word] for word in words}) == len(words)
    assert JobState.UNKNOWN not in OVER
    assert {slurm.STATES[word] for word in ("SUSPENDED", "REQUEUED", "COMPLETING", "PENDING")}.isdisjoint(OVER)


def test_a_word_that_nobody_knows(caplog: pytest.LogCaptureFixture) -> None:
    found = slurm.status(said("7|DANCING|N/A||None\n8|RUNNING|N/A|n1|None\n"))
    assert (found["7"].state, found["8"].state) == (JobState.UNKNOWN, JobState.RUNNING)
    assert "'DANCING', which is not in its manual" in caplog.text
    assert pbs.status(said("Job Id: 1.head|job_state=Z\n"))["1.head"].state is JobState.UNKNOWN


# -- Slurm ----------------------------------------------------------------------------------------


def test_directives_of_slurm() -> None:
    request = REQUEST._replace(options=("--constraint=gpu&hbm80g", "--exclusive"), smaller=True)
    assert slurm.directives(request) == [
        "#SBATCH --job-name=pilot-p1", "#SBATCH --nodes=2", "#SBATCH --time=01:30:00", "#SBATCH --output=job.out",
        "#SBATCH --open-mode=append", "#SBATCH --no-requeue", "#SBATCH --signal=B:USR1@180", "#SBATCH --no-kill",
        "#SBATCH --partition=debug", "#SBATCH --account=m1", "#SBATCH --constraint=gpu&hbm80g", "#SBATCH --exclusive",
    ]  # fmt: skip
    bare = slurm.directives(Request("p", 1, 60.0, requeue=True))
    assert "#SBATCH --requeue" in bare
    assert not [line for line in bare if "signal" in line or "no-kill" in line]


def test_ids_that_sbatch_prints() -> None:
    assert slurm.submitted(said("1234\n")) == "1234"
    assert slurm.submitted(said("1234;cluster\n")) == "1234"
    assert slurm.submitted(said("", "sbatch: error: invalid partition specified: nosuch", 1)) is None
    assert slurm.submitted(said("Submitted batch job\n")) is None


def test_what_squeue_prints(caplog: pytest.LogCaptureFixture) -> None:
    printed = (
        "101|PENDING|N/A||Resources\n"
        "102|PENDING|2026-11-25T21:00:00||JobHeldUser\n"
        "103|RUNNING|2026-11-25T20:00:00|node[01-02]|None\n"
        "104_7|RUNNING|2026-11-25T20:00:00|node03|None\n"
        "slurm_load_jobs error: something odd\n"
        "105|PENDING|N/A||ReqNodeNotAvail, UnavailableNodes:n1|n2\n"
    )
    found = slurm.status(said(printed))
    assert {job: one.state.value for job, one in found.items()} == {
        "101": "queued", "102": "held", "103": "running", "105": "queued",
    }  # fmt: skip
    assert (found["103"].hosts, found["103"].reason, found["101"].reason) == ("node[01-02]", "", "Resources")
    assert found["102"].starts is not None
    assert found["101"].starts is None
    assert found["105"].reason.endswith("n1|n2")
    assert not caplog.records  # one odd line is none of a job, and stops nothing


def test_what_sacct_prints() -> None:
    printed = (
        "7|CANCELLED by 1000|0:15|2026-11-25T20:00:00|node01|None\n8|TIMEOUT|0:0|Unknown|node01|None\n"
        "9|FAILED|3:0|2026-11-25T20:00:00|node02|NonZeroExitCode\n10|OUT_OF_ME+|0:125|Unknown|None assigned|None\n"
    )
    found = slurm.accounting(said(printed))
    assert (found["7"].state, found["7"].signal, found["7"].word) == (JobState.CANCELLED, 15, "CANCELLED by 1000")
    assert found["8"].state is JobState.TIMEOUT
    assert (found["9"].state, found["9"].exit_code, found["9"].reason) == (JobState.FAILED, 3, "NonZeroExitCode")
    assert found["10"].hosts == ""


# -- PBS ------------------------------------------------------------------------------------------


def test_directives_of_pbs() -> None:
    request = REQUEST._replace(options=("-l select=2:ncpus=4", "-l place=scatter", "-l filesystems=home:eagle"))
    assert pbs.directives(request) == [
        "#PBS -N pilot-p1", "#PBS -l walltime=01:30:00", "#PBS -j oe", "#PBS -o job.out", "#PBS -r n", "#PBS -q debug",
        "#PBS -A m1", "#PBS -l select=2:ncpus=4", "#PBS -l place=scatter", "#PBS -l filesystems=home:eagle",
    ]  # fmt: skip


def test_what_a_real_qstat_said() -> None:
    found = pbs.status(said(DSV))
    told = {job.partition(".")[0]: one for job, one in found.items()}
    assert {job: one.state.value for job, one in told.items()} == {
        "429": "completed", "430": "held", "431": "queued", "432": "failed", "433": "timeout", "434": "cancelled",
        "435[]": "completed", "436": "held", "438": "queued",
    }  # fmt: skip
    assert (told["432"].exit_code, told["434"].signal, told["433"].exit_code) == (3, signal.SIGTERM, None)
    assert told["431"].reason.startswith("Can Never Run: Insufficient amount of resource: ncpus")
    assert told["429"].hosts == "pn1/0"
    assert told["429"].starts is not None


def test_qstat_answers_although_it_fails() -> None:
    for code in (35, 153):
        assert pbs.answered(said(DSV, "qstat: Unknown Job Id 999.head", code))
    assert not pbs.answered(said("", "qstat: illegally formed job identifier: x", 1))


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ("job_state=Q|run_count=1", "requeued"),
        ("job_state=F|substate=91", "cancelled"),
        ("job_state=F|substate=93|Exit_status=-27", "out_of_memory"),
        ("job_state=F|substate=93|Exit_status=-20", "node_fail"),
        ("job_state=F|substate=93|Exit_status=-1", "failed"),
        ("job_state=F|substate=93|Exit_status=265", "failed"),
        ("job_state=F|substate=92", "unknown"),
        ("job_state=S", "suspended"),
        ("job_state=E", "completing"),
    ],
)
def test_what_fields_of_qstat_mean(fields: str, state: str) -> None:
    assert pbs.status(said(f"Job Id: 5.head|{fields}\n"))["5.head"].state.value == state


def test_a_bar_inside_a_value() -> None:
    assert pbs.status(said(r"Job Id: 5.head|job_state=Q|comment=a\|b|queue=q"))["5.head"].reason == "a|b"


def test_ids_that_qsub_prints() -> None:
    assert pbs.submitted(said("438.head\n")) == "438.head"
    assert pbs.submitted(said("438.aurora-pbs-0001.hostmgmt.cm.aurora.alcf.anl.gov\n")) is not None
    assert pbs.submitted(said("", "qsub: Unknown queue", 170)) is None


# -- scripts --------------------------------------------------------------------------------------


def test_the_last_line_is_the_exec_of_any_words(tmp_path: Path) -> None:
    words = ["/a path/py'thon", "-P", 'x "y" $HOME `id` \\', "é\n;exit 7", "%j", "*"]
    program = ["/usr/bin/printf", "%s\\0", *words]
    text = script(slurm.directives(REQUEST), ["export A=1"], program)
    assert shlex.split(text.partition("exec ")[2]) == program
    assert text.startswith("#!/bin/bash\n#SBATCH ")
    path = tmp_path / "job.sh"
    path.write_text(text)
    printed = subprocess.run(["bash", path], capture_output=True, text=True, check=True).stdout
    assert printed.split("\0")[:-1] == words
    assert script([], [], ["true"], login_shell=True).startswith("#!/bin/bash -l\n")


@pytest.mark.parametrize("option", ["", "--comment='x'", '--a="b"', "--a=b # c", "--a=b\\c", "--a=b\n#SBATCH --x"])
def test_directives_that_readers_would_not_understand_alike(option: str) -> None:
    with pytest.raises(InvalidInput, match="into a batch script: expected letters"):
        directive("#SBATCH", option)


@pytest.mark.parametrize(
    ("seconds", "text"), [(59.2, "00:01:00"), (5400, "01:30:00"), (172800, "48:00:00"), (1, "00:00:01")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


# -- commands -------------------------------------------------------------------------------------


def program(folder: Path, name: str, text: str) -> None:
    """Write a program that stands for one of a batch system's."""
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return folder


def test_a_command_is_killed_at_its_deadline(bin_folder: Path, tmp_path: Path) -> None:
    child = f"import subprocess, sys; subprocess.run([{sys.executable!r}, '-c', 'import time; time.sleep(60)'])"
    program(bin_folder, "squeue", f"import os; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); {child}")
    begun = time.monotonic()
    with pytest.raises(SchedulerUnreachable, match="squeue did not answer within 1 s and was killed"):
        Scheduler(slurm, deadline_s=1.0).look(["1"])
    assert time.monotonic() - begun < 20
    group = int((tmp_path / "pid").read_text())

    def left() -> list[psutil.Process]:
        there = [one for one in psutil.process_iter() if one.pid and os.getpgid(one.pid) == group]
        return [one for one in there if one.status() != psutil.STATUS_ZOMBIE]

    wait_until(lambda: not left(), 10.0, "what it started is killed too", left)


def test_a_command_that_is_not_there() -> None:
    with pytest.raises(SchedulerNotFound, match="cannot run 'no-such-sbatch': it is not on the PATH"):
        ask(["no-such-sbatch"], slurm.UNREACHABLE)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)", "away"),
        ("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation", "away"),
        ("sbatch: error: invalid partition specified: nosuch", "refused"),
        ("sbatch: error: Batch job submission failed: Invalid account or account/partition combination", "refused"),
    ],
)
def test_unreachable_and_rejected_are_different(bin_folder: Path, tmp_path: Path, words: str, error: str) -> None:
    program(bin_folder, "sbatch", f"import sys; sys.stderr.write({words!r}); sys.exit(1)")
    kind = SchedulerUnreachable if error == "away" else SubmissionRejected
    with pytest.raises(kind, match=re.escape(words)):
        Scheduler(slurm).submit(tmp_path, "#!/bin/sh\n")


def test_submitted_where_the_script_is(bin_folder: Path, tmp_path: Path) -> None:
    program(bin_folder, "qsub", "import os, sys; open('asked', 'w').write(sys.argv[1]); print('5.head')")
    (tmp_path / "a b").mkdir()
    assert Scheduler(pbs).submit(tmp_path / "a b", "#!/bin/sh\n") == "5.head"
    assert (tmp_path / "a b" / "asked").read_text() == "job.sh"
    assert (tmp_path / "a b" / "job.sh").read_text() == "#!/bin/sh\n"
    assert (tmp_path / "a b" / "job.id").read_text() == "5.head\n"


def test_not_listed_is_not_known(bin_folder: Path) -> None:
    program(bin_folder, "squeue", "print('3|RUNNING|N/A|n1|None')")
    program(bin_folder, "sacct", "import sys; sys.exit('Slurm accounting storage is disabled')")
    assert Scheduler(slurm).look(["3", "4"]).keys() == {"3"}
    program(bin_folder, "sacct", "print('4|COMPLETED|0:0|Unknown|n1|None')")
    assert Scheduler(slurm).look(["3", "4"])["4"].state is JobState.COMPLETED
    program(bin_folder, "squeue", "import sys; sys.exit('squeue: error: odd')")
    with pytest.raises(SchedulerError, match="does not tell of jobs: squeue: error: odd"):
        Scheduler(slurm).look(["3"])
    assert Scheduler(slurm).look([]) == {}


def test_cancel_what_is_over(bin_folder: Path) -> None:
    program(bin_folder, "qdel", "import sys; sys.stderr.write('qdel: Job has finished 432.head\\n'); sys.exit(35)")
    Scheduler(pbs).cancel(["432.head"])
    program(bin_folder, "qdel", "import sys; sys.stderr.write('qdel: Unauthorized Request 432.head\\n'); sys.exit(159)")
    with pytest.raises(SchedulerError, match=r"does not cancel jobs 432\.head: qdel: Unauthorized Request"):
        Scheduler(pbs).cancel(["432.head"])


def test_environment_of_a_job_submitted_from_a_job() -> None:
    options = {"SBATCH_TIMELIMIT": "1", "SQUEUE_FORMAT": "%i"}
    env = {"PATH": "/bin", "SLURM_JOB_ID": "7", "SLURM_CONF": "/x", "A": "1", **options}
    assert environment(env) == {"PATH": "/bin", "SLURM_CONF": "/x", "A": "1"}


def test_batch_systems_that_are_not_there() -> None:
    with pytest.raises(ConfigError, match="no batch system 'lsf'; there are: slurm, pbs"):
        system_of("lsf")
