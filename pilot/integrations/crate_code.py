"""What was run and in what, as entities of a crate: functions and programs, environments."""

from __future__ import annotations

import json
import os
from typing import NamedTuple

from pilot.graph import Run
from pilot.integrations.crate import Crate, Entity, Properties, fragment
from pilot.integrations.published import Published

_REQUIREMENTS = "https://pip.pypa.io/en/stable/reference/requirements-file-format/"


class Environment(NamedTuple):
    """What runs ran in, as entities."""

    whole: Entity
    requirements: Entity
    variables: list[Entity]


def tool_of(crate: Crate, what: Published, run: Run) -> Entity:
    """Return what a run is of: a function or a program; added when first met."""
    hash = run.record.get("function")
    return _program(crate, what, run) if hash is None else _function(crate, what, hash)


def _function(crate: Crate, what: Published, hash: str) -> Entity:
    id = f"functions/{fragment(hash[:16])}.py"
    known = crate.get(id) or crate.get(f"#function-{fragment(hash)}")
    if known is not None:
        return known
    code = what.functions.get(hash, {})
    name = f"{code['module']}.{code['qualname']}" if code else f"function {hash[:10]}"
    source, git = code.get("source"), code.get("git") or {}
    commit = f", git commit {git['commit']}{' with changes' if git.get('dirty') else ''}" if git.get("commit") else ""
    more: Properties = {
        "name": name, "identifier": f"blake2b-256:{hash}", "description": f"Python function {name}{commit}",
        "programmingLanguage": _python(crate, code["python"]) if code else None,
    }  # fmt: skip
    if not source:
        return crate.add(f"#function-{fragment(hash)}", "SoftwareApplication", softwareVersion=hash[:16], **more)
    body = source.encode("utf-8", "surrogatepass")
    return crate.add_file(
        id, lambda: memoryview(body), ["File", "SoftwareSourceCode"], encodingFormat="text/x-python",
        version=hash[:16], **more,
    )  # fmt: skip


def _python(crate: Crate, version: str) -> Entity:
    id = f"#language-python-{fragment(version)}"
    return crate.get(id) or crate.add(id, "ComputerLanguage", name="Python", version=version)


def _program(crate: Crate, what: Published, run: Run) -> Entity:
    """Return the program of a command; two with the same name and different bytes are two."""
    command = what.command(run) or {}
    path = command.get("executable") or " ".join(command.get("argv") or [run.name, "?"]).split()[0]
    name, digest = os.path.basename(path), command.get("digest") or ""
    id = f"#program-{fragment(name)}-{fragment(digest[:16]) or 'unknown'}"
    return crate.get(id) or crate.add(
        id, "SoftwareApplication", name=name, description=f"Program {path}",
        softwareVersion=f"blake2b-256:{digest}" if digest else None,
    )  # fmt: skip


def environment_of(crate: Crate, what: Published, digest: str) -> Environment:
    """Add what runs ran in."""
    found, short = what.environments[digest], fragment(digest[:16])
    text = json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False).encode()
    lines = "".join(f"{name}=={version}\n" for name, version in (found.get("packages") or {}).items()).encode()
    if crate.get(_REQUIREMENTS) is None:
        crate.add(_REQUIREMENTS, "CreativeWork", name="Requirements file format of pip")
    whole = crate.add_file(
        f"environments/{short}/environment.json", lambda: memoryview(text), name=f"environment {short}",
        encodingFormat="application/json", identifier=f"blake2b-256:{digest}",
        description="What runs ran in: Python, packages, MPI, machine, variables.",
    )  # fmt: skip
    requirements = crate.add_file(
        f"environments/{short}/requirements.txt", lambda: memoryview(lines), name=f"packages of {short}",
        encodingFormat="text/plain", conformsTo={"@id": _REQUIREMENTS},
    )  # fmt: skip
    variables = [
        crate.add(f"#environment-{short}-{fragment(name)}", "PropertyValue", name=name, value=value)
        for name, value in (found.get("variables") or {}).items()
    ]
    return Environment(whole, requirements, variables)
