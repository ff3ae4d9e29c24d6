"""Tasks that the tests of the whole system run; imported by children, so it is light."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any


def double(x: Any) -> Any:
    return 2 * x


def nap(x: int, seconds: float = 0.01) -> int:
    time.sleep(seconds)
    return x


def note(x: int, path: str, seconds: float = 0.0) -> int:
    """Leave a line, in one write, of who ran what."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, f"{x} {os.getpid()}\n".encode())
    os.close(descriptor)
    time.sleep(seconds)
    return x


def same(x: Any) -> Any:
    return x


def total(values: list[int]) -> int:
    return sum(values)


def add(a: Any, b: Any) -> Any:
    return a + b


# -- bad ones -------------------------------------------------------------------------------------


def fail(x: object = None) -> None:
    raise ValueError(f"told to fail with {x!r}")


def fail_until(path: str, times: int) -> int:
    """Fail the first `times` times; return the number of the attempt that did not."""
    with open(path, "a") as file:
        file.write("x")
    count = os.path.getsize(path)
    if count <= times:
        raise RuntimeError(f"failing for the {count}. time")
    return count


def exit_hard() -> None:
    os._exit(3)


def segfault() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def eat() -> int:
    held = []
    for _ in range(4000):
        held.append(bytearray(1 << 20))
    return len(held)


def shout(megabytes: int) -> str:
    line = "x" * 1023 + "\n"
    for _ in range(megabytes * 1024):
        sys.stdout.write(line)
    return "said"


def unpicklable() -> Any:
    return open(os.devnull)


class Stubborn(Exception):
    """Neither a pickle nor a text can be made of it."""

    def __str__(self) -> str:
        raise RuntimeError("no text of me")

    def __reduce__(self) -> Any:
        raise RuntimeError("no pickle of me")


def raise_stubborn() -> None:
    raise Stubborn


def wreck_surroundings() -> str:
    os.chdir("/")
    os.environ.clear()
    os.umask(0o777)
    sys.argv[:] = []
    return os.getcwd()


def surroundings() -> tuple[str, int]:
    mask = os.umask(0)
    os.umask(mask)
    return os.getcwd(), mask


def spin(seconds: float = 3600.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pass


def ignore_term(seconds: float = 3600.0) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.01)


def leave(code: object) -> None:
    sys.exit(code)  # type: ignore[arg-type]


def dig(depth: int = 0) -> int:
    return dig(depth + 1)


def interrupt() -> None:
    raise KeyboardInterrupt("from inside")


def wait_for(path: str) -> str:
    while not os.path.exists(path):
        time.sleep(0.01)
    return path


def say_and_spin(path: str) -> None:
    open(path, "w").close()
    spin()


def say_and_ignore_term(path: str) -> None:
    open(path, "w").close()
    ignore_term()


def large(megabytes: int) -> bytes:
    return os.urandom(1 << 20) * megabytes
