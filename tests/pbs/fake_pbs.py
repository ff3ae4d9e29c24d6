#!/usr/bin/env python3
"""A stand-in for OpenPBS: `qsub`, `qstat`, `qdel` and `qrun` by the name under which it is called.

It runs jobs for real, one process each on this machine, at once if the file `free` in its folder says that there are
nodes enough, and says what a real OpenPBS 23.06 said (tests/pbs/qstat-x-f.dsv, and its error messages and exit codes).
The folder is $FAKE_PBS.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

HOME = Path(os.environ["FAKE_PBS"])
QUEUES = ("workq", "debug")
KILL_S = 5.0
"""Between SIGTERM and SIGKILL, as `kill_delay` of a real one."""


def main() -> int:
    """Be the program whose name was called."""
    name = Path(sys.argv[0]).name
    if (HOME / "away").exists():
        sys.stderr.write(f"Connection refused\n{name}: cannot connect to server head (errno=111)\n")
        return 111
    return {"qsub": qsub, "qstat": qstat, "qdel": qdel, "qrun": qrun}[name](sys.argv[1:])


# -- qsub -----------------------------------------------------------------------------------------


def qsub(words: list[str]) -> int:
    """Queue a script, and start it when there are nodes."""
    script = Path(words[-1])
    if not script.is_file():
        sys.stderr.write("qsub: script file:: No such file or directory\n")
        return 1
    options: dict[str, str] = {}
    for line in script.read_text().splitlines():
        if line.startswith("#PBS "):
            key, _, value = line[5:].partition(" ")
            if key == "-l":
                resource, _, amount = value.partition("=")
                key, value = f"-l {resource}", amount
            options[key] = value
    if options.get("-q", "workq") not in QUEUES:
        sys.stderr.write("qsub: Unknown queue\n")
        return 170
    if not re.fullmatch(r"\d+:\d\d:\d\d", options.get("-l walltime", "1:00:00")):
        sys.stderr.write("qsub: Illegal attribute or resource value Resource_List.walltime\n")
        return 166
    unknown = [key for key in options if key.startswith("-l ") and key[3:] not in ("walltime", "select", "place")]
    if unknown:
        sys.stderr.write(f"qsub: Unknown resource Resource_List.{unknown[0][3:]}\n")
        return 187
    number = 1 + max([int(path.stem) for path in HOME.glob("*.json")], default=0)
    job = {
        "id": f"{number}.head", "script": str(script.resolve()), "options": options, "job_state": "Q", "substate": "10",
        "cwd": os.getcwd(), "queue": options.get("-q", "workq"),
    }  # fmt: skip
    nodes = int(re.match(r"\d+", options.get("-l select", "1"))[0])  # type: ignore[index]
    if nodes > 3:
        job["comment"] = f"Can Never Run: Insufficient amount of resource: ncpus (R: {4 * nodes} A: 12 T: 12)"
    write(number, job)
    print(job["id"])
    if nodes <= 3 and (HOME / "free").exists():
        sys.stdout.flush()
        start(number)
    return 0


def qrun(ids: list[str]) -> int:
    """Start a job now, as an operator may."""
    start(int(ids[0].partition(".")[0]))
    return 0


def start(number: int) -> None:
    """Run a job behind our back, as its MoM does."""
    if os.fork():
        return
    os.setsid()
    for descriptor in (0, 1, 2):
        os.close(descriptor)
    os.open(os.devnull, os.O_RDWR)
    os.dup(0)
    os.dup(0)
    job = read(number)
    options = job["options"]
    hours, minutes, seconds = map(int, options.get("-l walltime", "1:00:00").split(":"))
    walltime_s = 3600 * hours + 60 * minutes + seconds
    nodefile = HOME / f"{number}.nodes"
    nodefile.write_text(f"{os.uname().nodename}\n")
    output = Path(job["cwd"], options.get("-o", f"{options['-N']}.o{number}"))
    env = {
        **os.environ, "PBS_JOBID": job["id"], "PBS_NODEFILE": str(nodefile), "PBS_O_WORKDIR": job["cwd"],
        "PBS_ENVIRONMENT": "PBS_BATCH",
    }  # fmt: skip
    with output.open("ab") as file:
        process = subprocess.Popen(
            ["/bin/bash", job["script"]], cwd=os.path.expanduser("~"), env=env, stdin=subprocess.DEVNULL, stdout=file,
            stderr=file, start_new_session=True,
        )  # fmt: skip
    begun = time.monotonic()
    update(
        number, job_state="R", substate="42", pid=process.pid, exec_host=f"{os.uname().nodename}/0", run_count="1",
        stime=time.strftime("%a %b %d %H:%M:%S %Y"), comment="Job run at now on (pn1:ncpus=1)",
    )  # fmt: skip
    termed = 0.0
    timeout = False
    while process.poll() is None:
        now = time.monotonic()
        timeout = timeout or now - begun > walltime_s
        if (timeout or (HOME / f"{number}.del").exists()) and not termed:
            termed = now
            signal_all(process.pid, signal.SIGTERM)
        elif termed and now - termed > KILL_S:
            signal_all(process.pid, signal.SIGKILL)
        time.sleep(0.05)
    code = process.returncode
    deleted = (HOME / f"{number}.del").exists()
    status = -29 if timeout else 256 - code if code < 0 else code
    substate = "91" if deleted else "92" if status == 0 else "93"
    update(number, job_state="F", substate=substate, Exit_status=str(status))
    os._exit(0)


def signal_all(session: int, number: int) -> None:
    """Signal every process of a job, in whatever session: a MoM does so."""
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            try:
                environ = (path / "environ").read_bytes()
            except OSError:
                continue
            if {f"PBS_JOBID={job_of(session)}".encode(), f"FAKE_PBS={HOME}".encode()} <= set(environ.split(b"\0")):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(path.name), number)


def job_of(pid: int) -> str:
    """Return the job whose script is this process."""
    for path in HOME.glob("*.json"):
        job = json.loads(path.read_text())
        if job.get("pid") == pid:
            return str(job["id"])
    return "none"


# -- qstat, qdel ----------------------------------------------------------------------------------


def qstat(words: list[str]) -> int:
    """Print what is known of jobs, one line each, or of queues as JSON."""
    if words == ["-Q", "-f", "-F", "json"]:
        state = {"queue_type": "Execution", "enabled": "True", "started": "True"}
        most = {"resources_max": {"nodect": 1, "walltime": "01:00:00"}}
        print(json.dumps({"pbs_server": "head", "Queue": {"workq": state, "debug": {**state, **most}}}))
        return 0
    ids = [word for word in words if word[0].isdigit()]
    assert words[: len(words) - len(ids)] == ["-x", "-f", "-F", "dsv"], f"not faked: qstat {shlex.join(words)}"
    code = 0
    for name in ids or [f"{path.stem}.head" for path in HOME.glob("*.json")]:
        path = HOME / f"{name.partition('.')[0]}.json"
        if not path.is_file():
            sys.stderr.write(f"qstat: Unknown Job Id {name}\n")
            code = 153
            continue
        job = json.loads(path.read_text())
        shown = {key: value for key, value in job.items() if key not in ("id", "script", "options", "cwd", "pid")}
        fields = {"Job_Name": job["options"].get("-N", ""), **shown, "server": "head"}
        line = "|".join(f"{key}={str(value).replace('|', chr(92) + '|')}" for key, value in fields.items())
        print(f"Job Id: {job['id']}|{line}")
    return code


def qdel(ids: list[str]) -> int:
    """End jobs."""
    code = 0
    for name in ids:
        number = int(name.partition(".")[0])
        path = HOME / f"{number}.json"
        if not path.is_file():
            sys.stderr.write(f"qdel: Unknown Job Id {name}\n")
            code = 153
        elif read(number)["job_state"] == "F":
            sys.stderr.write(f"qdel: Job has finished {name}\n")
            code = 35
        elif read(number)["job_state"] == "Q":
            update(number, job_state="F", substate="91")
        else:
            (HOME / f"{number}.del").touch()
    return code


# -- files ----------------------------------------------------------------------------------------


def read(number: int) -> dict:  # type: ignore[type-arg]
    """Return a job."""
    return json.loads((HOME / f"{number}.json").read_text())  # type: ignore[no-any-return]


def write(number: int, job: dict) -> None:  # type: ignore[type-arg]
    """Replace a job's file, all or nothing."""
    partial = HOME / f"{number}.partial{os.getpid()}"
    partial.write_text(json.dumps(job))
    partial.rename(HOME / f"{number}.json")


def update(number: int, **fields: object) -> None:
    """Change a job."""
    write(number, {**read(number), **fields})


if __name__ == "__main__":
    sys.exit(main())
