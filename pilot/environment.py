"""The environment of a pool, captured once: what somebody needs to know in five years, and no secrets."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Mapping
from typing import Any

from pilot import values

KEPT = re.compile(
    r"(PATH|LD_LIBRARY_PATH|LD_PRELOAD|PYTHON(PATH|HASHSEED|OPTIMIZE)|LANG|LC_ALL|TZ|CONDA_(PREFIX|DEFAULT_ENV)|VIRTUAL_ENV"
    r"|LOADEDMODULES|MODULEPATH|OMP_\w+|MKL_\w+|OPENBLAS_\w+|BLIS_\w+|NUMEXPR_\w+"
    r"|MPICH_\w+|FI_\w+|UCX_\w+|OMPI_MCA_\w+|MPI4PY_\w+|CUDA_\w+|ROCR_\w+|ESPRESSO_\w+|ASE_\w+)"
)
"""Variables worth keeping: what changes numbers or where code is found."""

SECRET = re.compile(r"key|token|secret|passw|credential|auth|cookie|session", re.I)
"""Names that are never kept, whatever else they match; values that look like a URI with a password neither."""

_PASSWORD = re.compile(r"://[^/\s:@]*:[^/\s@]+@")


def capture(mpi: str, variables: Mapping[str, str] = os.environ, site: str = "local") -> dict[str, Any]:
    """Return the environment document of this process, `_id` being the hash of its content.

    Nothing in it changes from job to job on the same installation.

    Args:
        mpi: what the MPI library calls itself.
        variables: the environment to choose from.
        site: name of the site.
    """
    packages = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name:
            packages[name.lower().replace(".", "-")] = distribution.version
    uname = platform.uname()
    content: dict[str, Any] = {
        "python": {"version": platform.python_version(), "implementation": sys.implementation.name},
        "packages": dict(sorted(packages.items())),
        "mpi": mpi,
        "variables": chosen(variables),
        "machine": {"system": uname.system, "kernel": uname.release, "machine": uname.machine, "cpu": _cpu_model()},
        "container": container(variables),
        "site": site,
    }
    return {"_id": values.encode(content).hash, **content}


def chosen(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that are kept, sorted by name."""
    return {name: value for name, value in sorted(variables.items()) if KEPT.fullmatch(name) and harmless(name, value)}


def harmless(name: str, value: str) -> bool:
    """Say whether nothing about a variable looks like a secret."""
    return not SECRET.search(name) and not _PASSWORD.search(value)


def scrubbed(text: str) -> str:
    """Return a text with no password in any URI."""
    return _PASSWORD.sub("://…@", text)


def container(variables: Mapping[str, str]) -> str | None:
    """Return what is known of the container this runs in, or None."""
    for name in ("APPTAINER_CONTAINER", "SINGULARITY_CONTAINER", "SHIFTER_IMAGEREQUEST"):
        if name in variables:
            return variables[name]
    return "docker" if os.path.exists("/.dockerenv") else None


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith(("model name", "Model")):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()
