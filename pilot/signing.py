"""Signatures over what the database holds, because the database is not trusted to carry code.

A signature is the HMAC-SHA256, under the project's key, of the canonical bytes of (project id, kind,
version, fields). The functions `task_fields`, `function_fields` and `record_fields` say which fields count,
so that nobody without the key can move a payload to another task, edit a command or swap two results.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
import stat
from collections.abc import Mapping, Sequence
from hashlib import blake2b, sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pilot.errors import ConfigError, NotTrusted, ProjectError, ProjectExists, SignatureError
from pilot.model import SCHEMA
from pilot.plain import dump

if TYPE_CHECKING:
    from pilot.config import ProjectConfig
    from pilot.model import FunctionCode, Input
    from pilot.resources import TaskSpec

KEY_BYTES = 32
_PROJECT = re.compile(r"[\w-]{1,64}", re.ASCII)
_BLOCK_BYTES = 64
"""Of SHA-256."""

# -- the key --------------------------------------------------------------------------------------


def create_key(path: Path) -> bytes:
    """Write a new random key to a file that only its owner can read, and return it; errors as of `write_key`."""
    key = secrets.token_bytes(KEY_BYTES)
    write_key(path, key)
    return key


def write_key(path: Path, key: bytes) -> None:
    """Write a key to a new file that only its owner can read.

    Raises:
        ProjectExists: the file exists; a key is never overwritten, because nothing signed would verify.
        ProjectError: the file cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as exc:
        raise ProjectExists(f"the key {str(path)!r} exists already; it was left as it is") from exc
    except OSError as exc:
        raise ProjectError(f"cannot write the key {str(path)!r}: {exc.strerror}") from exc
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o600)  # whatever the umask
            file.write(key.hex().encode() + b"\n")
            file.flush()
            os.fsync(descriptor)
    except OSError as exc:
        path.unlink(missing_ok=True)
        raise ProjectError(f"cannot write the key {str(path)!r}: {exc.strerror}") from exc


def load_key(path: Path) -> bytes:
    """Return the key in a file.

    Raises:
        ProjectError: there is no such file, or it cannot be read, or others can read or write it.
        ConfigError: the file does not hold a key.
    """
    try:
        with open(path, "rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            text = file.read(4 * KEY_BYTES)
    except OSError as exc:
        raise ProjectError(f"cannot read the project's key {str(path)!r}: {exc.strerror}") from exc
    if mode & 0o077:
        raise ProjectError(
            f"the key {str(path)!r} is open to others (mode {mode:04o}); close it with `chmod 600 {path}`, "
            "and make a new project if somebody may have read it"
        )
    try:
        key = bytes.fromhex(text.decode("ascii").strip())
    except ValueError as exc:
        raise ConfigError(f"{str(path)!r} does not hold a key: it is not hexadecimal") from exc
    if len(key) != KEY_BYTES:
        raise ConfigError(f"{str(path)!r} does not hold a key: {len(key)} bytes, expected {KEY_BYTES}")
    return key


def keep_trusted(folder: Path, project: str, key: bytes) -> None:
    """Write down that another project's key is trusted; harmless if it is already.

    Raises:
        ProjectError: another key of that project is trusted, or the file cannot be written.
    """
    path = folder / project
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as exc:
        raise ProjectError(f"cannot make the folder {str(folder)!r}: {exc.strerror}") from exc
    try:
        write_key(path, key)
    except ProjectExists as exc:
        if load_key(path) != key:
            raise ProjectError(
                f"another key of the project {project!r} is trusted already; remove {str(path)!r} if that is over"
            ) from exc


# -- signatures -----------------------------------------------------------------------------------


class Signer:
    """Signs and verifies for one project.

    Args:
        key: the project's key, `KEY_BYTES` long.
        project: the project's id; part of every signature.
        trusted: folder of the keys of other projects that are trusted, each in a file named by the project's id.
    """

    __slots__ = ("_inner", "_others", "_outer", "_trusted", "project")

    def __init__(self, key: bytes, project: str, trusted: Path | None = None) -> None:
        # HMAC as in RFC 2104, with the key worked in once: `hmac.digest` takes most of its time for that.
        block = key.ljust(_BLOCK_BYTES, b"\0")
        self._inner = sha256(bytes(byte ^ 0x36 for byte in block))
        self._outer = sha256(bytes(byte ^ 0x5C for byte in block))
        self.project = project
        self._trusted = trusted
        self._others: dict[str, Signer] = {}

    def __repr__(self) -> str:
        return f"Signer(project={self.project!r})"  # never the key

    def trust(self, project: str, key: bytes) -> Signer:
        """Take another project's key for good as long as this object lives, and return who verifies with it."""
        self._others[project] = Signer(key, project)
        return self._others[project]

    def of(self, project: str) -> Signer:
        """Return who verifies what another project has signed, or this one itself.

        Raises:
            NotTrusted: its key is not among those that are trusted.
            ProjectError, ConfigError: its key cannot be read, or is open to others.
        """
        if project == self.project:
            return self
        if project in self._others:
            return self._others[project]
        path = self._trusted / project if self._trusted is not None and _PROJECT.fullmatch(project) else None
        if path is None or not path.exists():
            raise NotTrusted(
                f"the key of the project {project!r} is not trusted here: nothing that it signed is unpickled, run or "
                "used by tasks; `pilot import FILE --trust KEYFILE` trusts it"
            )
        return self.trust(project, load_key(path))

    def sign(self, kind: str, version: int, fields: Any) -> bytes:
        """Return the signature of `fields`, which are plain data (tuples count as lists)."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(dump([self.project, kind, version, fields]).encode("utf-8", "surrogatepass"))
        outer.update(inner.digest())
        return outer.digest()

    def verify(self, kind: str, version: int, fields: Any, signature: object) -> None:
        """Return if the signature fits. Call it before anything of the payload is unpickled or run.

        Raises:
            SignatureError: another key, another kind or version, or somebody changed the document.
        """
        try:
            expected = self.sign(kind, version, fields)
        except (TypeError, ValueError, RecursionError) as exc:
            raise SignatureError(f"cannot verify a {kind}: its fields are not plain data: {exc}") from exc
        if not isinstance(signature, bytes) or not hmac.compare_digest(expected, signature):
            raise SignatureError(
                f"the signature of a {kind} of the project {self.project!r} does not fit: it was signed with "
                "another key, or somebody changed the document; nothing of it was run"
            )


def signer_of(config: ProjectConfig) -> Signer:
    """Return who signs for a project, and verifies for those that it trusts.

    Raises:
        ProjectError, ConfigError: its key cannot be read, or is open to others.
    """
    return Signer(load_key(config.key_file), config.id, config.trusted_folder)


def proof(signer: Signer) -> bytes:
    """Return what only a project's key can sign, and anybody may see: it tells whether a key is the one."""
    return signer.sign("project", SCHEMA, [signer.project])


def chain(previous: str, signature: bytes) -> str:
    """Return the digest that binds a record to all that its coordinator wrote before.

    Args:
        previous: the digest up to the record before; "" for the first.
        signature: of the record that is added.
    """
    return blake2b(previous.encode("ascii") + b":" + signature, digest_size=32).hexdigest()


# -- which fields count ---------------------------------------------------------------------------


def task_fields(task: TaskSpec | Mapping[str, Any], inputs: Sequence[Input] | None = None) -> list[Any]:
    """Return what decides what a task runs, on what. Not its name, tags, priority and retries.

    Args:
        task: at submit the specification, later the document in the store; both give the same fields.
        inputs: read from the document; a specification has its own.

    Raises:
        KeyError: something is missing from the document.
    """
    if isinstance(task, Mapping):
        head = [task["_id"], task["kind"], task["function"], task["command"]]
        tail = [task["class"], task.get("fresh", False), task["waits"], task.get("folder", "")]
        gather, cache = task.get("gather", False), task.get("cache")
    else:
        command = None if task.command is None else task.command.document()
        head = [task.id, task.kind, task.function, command]
        tail = [task.resources.key, task.fresh, task.waits, task.folder]
        gather, cache = task.gather, task.cache
        inputs = task.inputs if inputs is None else inputs
    fields = [*head, [(name, blob.hash, links) for name, blob, links in inputs or ()], *tail, gather]
    if cache:
        fields.append(["cache", cache])
    return fields


def function_fields(code: FunctionCode) -> list[Any]:
    """Return what decides what a function does. Its source text is covered by the source's hash."""
    return [
        code.hash,
        code.module,
        code.qualname,
        code.source_hash,
        code.module_hash,
        code.pickle.hash if code.pickle is not None else None,
        code.python,
    ]


def record_fields(record: Mapping[str, Any], digest: Any, chain: Any) -> list[Any]:
    """Return what a record claims: who ended which attempt how, of what task, from what, with what.

    The task's own signature is among them: it binds the record to what the task was when it ran. So are the digest
    of the whole record and its place in its token's chain; the other fields are named for those who read only some.
    Of a task with caching on these include what others find it by, and whose outputs it took: else two results could
    be swapped by that.

    Raises:
        SignatureError: something signed is missing from the document, or has another form.
    """
    try:
        fields = [
            record["task"],
            record["attempt"],
            record["token"],
            record["outcome"],
            record["task_signature"].hex(),
            _names_and_hashes(record["inputs"]),
            _names_and_hashes(record["outputs"]),
            digest,
            chain["token"],
            chain["seq"],
            chain["prev"],
        ]
        if "cache" in record or "cached_from" in record:
            program = record.get("command", {}).get("digest")
            fields.append([record.get("cache", {}).get("key"), record.get("cached_from"), program])
        return fields
    except (KeyError, TypeError, AttributeError) as exc:
        raise SignatureError(f"cannot verify a record: it is not one: {type(exc).__name__}: {exc}") from exc


def _names_and_hashes(values: Any) -> list[Any]:
    if isinstance(values, dict):  # the list itself is an object, and its hash covers it
        return ["object", values["object"], values["count"]]
    return [(item["name"], item["hash"]) for item in values]
