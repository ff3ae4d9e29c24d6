"""The environment of a pool, captured once: what somebody needs to know in five years, and no secrets."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pilot import values

KEPT = re.compile(
    r"(PATH|LD_LIBRARY_PATH|LD_PRELOAD|PYTHON(PATH|HASHSEED|OPTIMIZE)|LANG|LC_ALL|TZ|CONDA_(PREFIX|DEFAULT_ENV)|VIRTUAL_ENV"
    r"|MODULEPATH|OMP_\w+|MKL_\w+|OPENBLAS_\w+|BLIS_\w+|NUMEXPR_\w+"
    r"|MPICH_\w+|FI_\w+|UCX_\w+|OMPI_MCA_\w+|MPI4PY_\w+|CUDA_\w+|ROCR_\w+|ESPRESSO_\w+|ASE_\w+)"
)
"""Variables worth keeping: what changes numbers or where code is found."""

CHANGING = re.compile(r"\w+_VISIBLE_DEVICES|OMPI_MCA_(ess|orte|pmix|prte|plm|ras|rmaps|shmem|initial|app)_\w+|\w+_URI")
"""Those of them that are not: they say which job, or which part of it, this is."""

SECRET = re.compile(r"key|token|secret|passw|pwd|credential|auth|cookie|session|private|signature", re.I)
"""Names that are never kept, whatever else they match."""

_SECRETS = re.compile(
    r"://[^/\s@]+@"  # a URI with a user, and perhaps a password
    r"|(key|token|secret|passw\w*|pwd|credential\w*|auth\w*|cookie|session\w*|signature|sig)[\"']?\s*[=:]\s*\S"
    r"|\b(bearer|basic)\s+\S{8,}"
    r"|\b(AKIA|ASIA|AROA|AIDA)[0-9A-Z]{16}\b|\bgh[a-z]_\w{20,}|\bgithub_pat_\w{20,}|\bglpat-|\bxox[a-z]-|\bhf_\w{20,}|\bsk-\w{16,}"
    r"|\bAIza[\w-]{30,}|\beyJ[\w-]{8,}\.|-----BEGIN",
    re.I,
)
"""Values that are secrets, or hold one, by their form: of such a variable only the name is kept."""

_RANDOM = re.compile(
    r"(?<![0-9A-Za-z])[0-9a-fA-F]{32,}(?![0-9A-Za-z])"
    r"|(?<![0-9A-Za-z_+=])(?=\w*[a-z])(?=\w*[A-Z])(?=\w*\d)[0-9A-Za-z_+]{36,}={0,2}"
    r"|^(?=.*[a-z])(?=.*[A-Z])(?=.*\d)[0-9A-Za-z+][0-9A-Za-z+/]{35,}={0,2}$"
)
"""What may be one, being long and without a sense: of a list of paths only that path is hidden."""

HIDDEN = "***"
"""Stands for what was left out."""


def capture(
    mpi: str, variables: Mapping[str, str] = os.environ, site: str = "local", site_digest: str = ""
) -> dict[str, Any]:
    """Return the environment document of this process, `_id` being the hash of its content.

    Nothing in it changes from job to job on the same installation. Starts no program.

    Args:
        mpi: what the MPI library calls itself.
        variables: the environment to choose from, without a launcher's identity of a rank.
        site: name of the site.
        site_digest: hash of its description as the pilot read it.
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
        "modules": [name for name in variables.get("LOADEDMODULES", "").split(":") if name],
        "variables": chosen(variables),
        "machine": {
            "system": uname.system, "kernel": uname.release, "machine": uname.machine, "cpu": _cpu_model(), **gpus(),
        },
        "container": container(variables),
        "site": site,
        "site_digest": site_digest,
    }  # fmt: skip
    return {"_id": identity(content), **content}


def identity(content: Mapping[str, Any]) -> str:
    """Return the hash of an environment: that of all it says, `_id` left out."""
    return values.digest(values.reencode(dict(content)))


def chosen(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that are kept, sorted by name, without what is a secret or may be one."""
    return {
        name: without_secrets(value)
        for name, value in sorted(variables.items())
        if KEPT.fullmatch(name) and not CHANGING.fullmatch(name) and not SECRET.search(name)
    }


def harmless(name: str, value: str) -> bool:
    """Say whether nothing about a variable looks like a secret."""
    return not SECRET.search(name) and without_secrets(value) == value


def scrubbed(text: str) -> str:
    """Return a text with `HIDDEN` in place of lines with something that is a secret by its form."""
    return "\n".join(HIDDEN if _SECRETS.search(line) else line for line in text.splitlines())


def without_secrets(value: str) -> str:
    """Return a variable's value with `HIDDEN` in place of what is a secret by its form, or of all if that is safer."""
    if _SECRETS.search(value):
        return HIDDEN
    return ":".join(HIDDEN if _RANDOM.search(part) else part for part in value.split(":"))


class Difference(NamedTuple):
    """Something in which two environments differ."""

    name: str
    """Of the field: ``packages.numpy``."""
    then: Any
    """None: it was not there."""
    now: Any


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Return in what two environment documents differ, sorted by name."""
    before, after = _flat(then), _flat(now)
    return [
        Difference(name, before.get(name), after.get(name))
        for name in sorted(before.keys() | after.keys())
        if name != "_id" and before.get(name) != after.get(name)
    ]


def _flat(document: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return the fields of nested mappings under their full names."""
    found: dict[str, Any] = {}
    for key, value in document.items():
        found |= _flat(value, f"{before}{key}.") if isinstance(value, Mapping) else {f"{before}{key}": value}
    return found


def container(variables: Mapping[str, str]) -> str | None:
    """Return what is known of the container this runs in, or None."""
    for name in ("APPTAINER_CONTAINER", "SINGULARITY_CONTAINER", "SHIFTER_IMAGEREQUEST"):
        if name in variables:
            return without_secrets(variables[name])
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


_MAKERS = {"0x1002": "AMD", "0x8086": "Intel", "0x10de": "NVIDIA"}
"""PCI vendors of GPUs; others make what a server shows its console with."""


def gpus(root: Path = Path("/")) -> dict[str, Any]:
    """Return this node's GPUs as `gpus`, one after the other, and `gpu_driver`; nothing without any.

    Read from files that drivers show, as their programs may take seconds.

    Args:
        root: where ``proc`` and ``sys`` are.
    """
    found, driver = _nvidia(root / "proc/driver/nvidia")
    if not found:
        cards = [
            _card(card / "device")
            for card in sorted((root / "sys/class/drm").glob("card[0-9]*"))
            if "-" not in card.name
        ]
        found, driver = [card for card in cards if card], _text(root / "sys/module/amdgpu/version")
    if not found:
        return {}
    return {"gpus": found, "gpu_driver": driver} if driver else {"gpus": found}


def _nvidia(folder: Path) -> tuple[list[str], str]:
    told = [_text(file) for file in sorted((folder / "gpus").glob("*/information"))]
    models = [match[1].strip() for text in told if (match := re.search(r"^Model:(.*)$", text, re.M))]
    driver = re.search(r"Kernel Module\D*([\d.]+)", _text(folder / "version"))
    return models, driver[1] if driver else ""


def _card(device: Path) -> str:
    maker = _MAKERS.get(_text(device / "vendor"))
    if maker is None:
        return ""
    return _text(device / "product_name") or f"{maker} {_text(device / 'device')}"


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return ""
