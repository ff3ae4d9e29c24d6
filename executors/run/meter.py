"""What a task costs, and its memory limit; the child's side.

Peak memory is the kernel's high-water mark of this address space (`VmHWM`, proc(5)), reset before each task. Not
`ru_maxrss`: that begins with what the process had before `exec`, the rank's size then.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Iterator

from pilot.model import Usage

_BRIEF_S = 1e-3
"""A task shorter than this cannot touch enough memory to look again: it has the size of the one before."""
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Meter:
    """Measures one task after the other: `start`, then `stop`."""

    def __init__(self) -> None:
        self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        self._status = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._refs = os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC)
        except OSError:  # not in every container
            self._refs = -1
        self._stale = True
        """Whether the mark holds the peak of a task that has ended, and the size may have changed."""
        self._peak = self._statm_pages(1) * _PAGE
        self._children = resource.getrusage(resource.RUSAGE_CHILDREN)
        self._wall = self._cpu = 0.0

    def start(self) -> None:
        """Begin a task."""
        if self._stale:
            self._stale = False
            self._reset_peak()
            self._peak = self._statm_pages(1) * _PAGE
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def stop(self) -> Usage:
        """Return what has been used since `start`, by this process and by those it has waited for."""
        wall_s = time.perf_counter() - self._wall
        used = resource.getrusage(resource.RUSAGE_SELF)
        if wall_s > _BRIEF_S:
            self._stale = True
            self._peak = self._high_water()
        peak = self._peak
        cpu_s = max(0.0, used.ru_utime + used.ru_stime - self._cpu)
        children, before = resource.getrusage(resource.RUSAGE_CHILDREN), self._children
        if children != before:
            self._children = children
            cpu_s += children.ru_utime - before.ru_utime + children.ru_stime - before.ru_stime
            if children.ru_maxrss > before.ru_maxrss:
                peak = max(peak, children.ru_maxrss * 1024)
        return Usage(wall_s, cpu_s, peak)

    @contextlib.contextmanager
    def limit(self, memory_bytes: int) -> Iterator[None]:
        """Let this process, and those it starts, have `memory_bytes` of data beyond what it has now.

        The limit is the soft RLIMIT_DATA: private writable memory, so that neither shared libraries nor
        mapped files count. Python raises `MemoryError` at it.
        """
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        wanted = self._statm_pages(5) * _PAGE + memory_bytes
        limits = [wanted, *(old for old in (soft, hard) if old != resource.RLIM_INFINITY)]
        resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))

    def _reset_peak(self) -> None:
        if self._refs >= 0:
            try:
                os.pwrite(self._refs, b"5", 0)
            except OSError:
                self._refs = -1  # from here on the peak of the whole life is the best we know

    def _high_water(self) -> int:
        text = os.pread(self._status, 4096, 0)
        at = text.find(b"VmHWM:")
        return int(text[at + 6 :].split(None, 1)[0]) * 1024 if at >= 0 else self._statm_pages(1) * _PAGE

    def _statm_pages(self, field: int) -> int:
        return int(os.pread(self._statm, 200, 0).split()[field])
