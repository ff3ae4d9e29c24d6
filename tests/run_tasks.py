"""Functions that the children under test run: the good ones and the bad ones."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pilot.context


def nothing() -> None:
    return None


def add(a: Any, b: Any = 1) -> Any:
    return a + b


def size(data: Any) -> int:
    return len(data)


def big(count: int) -> bytes:
    return b"x" * count


def pid() -> int:
    return os.getpid()


def context() -> Any:
    c = pilot.context.current()
    return [c.task, c.attempt, c.name, c.workdir, c.slot, c.rank, c.host, c.comm]


# -- bad ends -------------------------------------------------------------------------------------


def leave(code: int) -> None:
    os._exit(code)


def segfault() -> None:
    print("before the crash")
    ctypes.string_at(0)


def kill_self(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(30)


def sys_exit(code: Any) -> None:
    sys.exit(code)


def interrupt() -> None:
    raise KeyboardInterrupt


def eat(count: int) -> int:
    return len(bytearray(count))


def unpicklable() -> Any:
    return threading.Lock()


class Awkward(Exception):
    """Cannot be pickled, nor shown."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def __str__(self) -> str:
        raise RuntimeError("no text")


def awkward() -> None:
    raise Awkward


def fail(text: str) -> None:
    try:
        {}["cause"]
    except KeyError as exc:
        raise ValueError(text) from exc


def recurse() -> None:
    recurse()


def sleep(seconds: float, mark: str = "") -> float:
    if mark:
        Path(mark).touch()
    time.sleep(seconds)
    return seconds


def stubborn(mark: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Path(mark).touch()
    while True:
        time.sleep(60)


def stop_self() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def close_descriptors() -> None:
    os.closerange(3, 100)
    time.sleep(60)


# -- untidy ---------------------------------------------------------------------------------------


def untidy(where: str) -> None:
    os.chdir(where)
    os.environ["UNTIDY"] = "yes"
    os.environ.pop("HOME", None)
    os.environ["PATH"] = "/nowhere"
    os.umask(0o777)
    sys.argv[:] = ["untidy"]
    sys.argv.append("more")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.alarm(1)
    print("printed before", end="")
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    sys.stderr.close()


def state() -> Any:
    return {
        "cwd": os.getcwd(), "env": {k: v for k, v in os.environ.items() if k not in ("PWD", "OLDPWD")},
        "shell": subprocess.run(["/bin/sh", "-c", "echo $UNTIDY:$HOME"], capture_output=True, text=True).stdout,
        "umask": _umask(), "argv": list(sys.argv), "alarm": signal.alarm(0),
        "signals": [str(signal.getsignal(n)) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)],
        "streams": [sys.stdout.fileno(), sys.stderr.fileno()],
    }  # fmt: skip


def _umask() -> int:
    old = os.umask(0)
    os.umask(old)
    return old


def move_output(file: str) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT, 0o600)
    os.dup2(descriptor, 1)
    os.close(2)
    print("into the file")


def unblock_output() -> None:
    """What some programs do to a standard output that they share with us."""
    os.set_blocking(1, False)


def replace_environ() -> None:
    os.environ = {"ONLY": "this"}  # type: ignore[assignment]  # noqa: B003


def spawn(count: int, seconds: float, session: bool) -> list[int]:
    """Leave processes behind."""
    return [subprocess.Popen(["sleep", str(seconds)], start_new_session=session).pid for _ in range(count)]


def spawn_and_wait(mark: str, session: bool) -> None:
    Path(mark).write_text(" ".join(map(str, [os.getpid(), *spawn(2, 300, session)])))
    time.sleep(300)


def leave_and_fork(seconds: float) -> None:
    """Die while a copy of this process holds all its descriptors."""
    if os.fork() == 0:
        time.sleep(seconds)
        os._exit(0)
    os._exit(5)


def leave_thread() -> None:
    threading.Thread(target=time.sleep, args=(300,), daemon=True).start()


def fork_and_return() -> int:
    """Both copies come back to the child's loop; one of them must not go on."""
    return 0 if os.fork() else 1


def fork_and_exit() -> int:
    if os.fork() == 0:
        sys.exit(3)
    os.wait()
    return os.getppid()


def print_much(count: int) -> int:
    line = "x" * 99 + "\n"
    for _ in range(count // 100):
        sys.stdout.write(line)
    return count


def print_text(text: str, error: str = "") -> None:
    sys.stdout.write(text)
    sys.stderr.write(error)


def print_in_c(text: str) -> None:
    ctypes.CDLL(None).printf(text.encode())


def print_slowly(text: str, times: int, mark: str) -> None:
    for _ in range(times):
        print(text, flush=True)
        time.sleep(0.02)
    Path(mark).touch()
    time.sleep(300)


def use_cpu(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def use_cpu_in_child(seconds: float) -> None:
    code = f"import time\nend = time.process_time() + {seconds}\nwhile time.process_time() < end: pass"
    subprocess.run([sys.executable, "-c", code], check=True)


# -- shares of a node -----------------------------------------------------------------------------


def share() -> Any:
    return {"pid": os.getpid(), "cpus": sorted(os.sched_getaffinity(0)), "threads": os.environ.get("OMP_NUM_THREADS")}


def thread_cpus() -> Any:
    return [sorted(os.sched_getaffinity(int(thread))) for thread in os.listdir("/proc/self/task")]


def variable(name: str) -> Any:
    return os.getpid(), os.environ.get(name)


# -- MPI functions; the runner passes the communicator ----------------------------------------------


def ranks_of(comm: Any = None) -> Any:
    return comm.allgather(comm.rank)


def cpus_of_ranks(comm: Any = None) -> Any:
    return comm.allgather(sorted(os.sched_getaffinity(0)))


def kill_rank(rank: int, number: int, comm: Any = None) -> None:
    comm.Barrier()
    if comm.rank == rank:
        os.write(2, b"the last words\n")
        os.kill(os.getpid(), number)
    comm.Barrier()


def raise_in_rank(rank: int, comm: Any = None) -> None:
    if comm.rank == rank:
        raise ValueError("bad rank")


def hang_in_ranks(mark: str, comm: Any = None) -> None:
    comm.Barrier()
    Path(mark).touch()
    time.sleep(300)
