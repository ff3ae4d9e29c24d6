"""`server.json`: which embedded server runs where, for whoever shares the project's directory, on whatever host."""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from pilot.errors import ServerError

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Record:
    """The last server that was made ready; `pid` is 0 once it was stopped."""

    pid: int = 0
    port: int = 0
    addresses: tuple[str, ...] = (LOOPBACK,)
    host: str = ""
    boot: str = ""
    version: str = ""
    started: str = ""
    home: str = ""
    """The pilot in which it is to run, or runs; empty: in none."""
    moved: bool = False
    """Whether it runs there."""

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Return what is known of the server of this directory.

        Raises:
            ServerError: it cannot be read.
        """
        try:
            found: dict[str, Any] = json.loads((directory / "server.json").read_text("utf-8"))
            return cls(**{**found, "addresses": tuple(found["addresses"])})
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return cls()  # absent or damaged: nothing is known, and mongod's own lock still guards the data
        except OSError as exc:
            raise ServerError(f"cannot read the store's directory {directory}: {exc}") from exc

    def write(self, directory: Path) -> None:
        """Replace what is known, all or nothing."""
        write_private(directory / "server.json", json.dumps(asdict(self), indent=1) + "\n")

    @property
    def here(self) -> bool:
        """Whether it was this machine's (whose name may change, as a container's does)."""
        return not self.pid or self.host == socket.gethostname() or self.boot == boot_id() != ""

    @property
    def promised(self) -> bool:
        """Whether it is to run in a pilot that has not begun."""
        return bool(self.home) and not self.moved

    @property
    def open(self) -> list[str]:
        """Return the addresses under which other machines may find it."""
        return [address for address in self.addresses if address not in (LOOPBACK, "::1")]

    def answering(self) -> str | None:
        """Return the first of them at which it answers this machine."""
        return next((address for address in self.open if not silent(address, self.port)), None)


def write_private(path: Path, text: str) -> None:
    """Replace `path`, all or nothing, by a file that only its owner can read."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def silent(address: str, port: int) -> str:
    """Return why nobody answers at an address; "" if somebody does."""
    try:
        socket.create_connection((address, port), timeout=5.0).close()
    except OSError as exc:
        return exc.strerror or str(exc)
    return ""


def own(addresses: Iterable[str]) -> list[str]:
    """Return those of `addresses` that this host has."""
    found = []
    for address in addresses:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe, suppress(OSError):
            probe.bind((address, 0))
            found.append(address)
    return found


def boot_id() -> str:
    """Return what tells this start of this machine from every other; "" if it does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""
