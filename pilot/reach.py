"""How compute nodes reach the store: at which of this host's addresses, or on a node, inside of a pilot."""

from __future__ import annotations

import logging
import re
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from pilot.config import ProjectConfig
from pilot.errors import ConfigError, StoreError
from pilot.findings import Finding, note, ok, wrong
from pilot.settings import PilotSettings
from pilot.store.local import LocalServer
from pilot.store.server_record import silent

if TYPE_CHECKING:
    from pilot.sites import Site

logger = logging.getLogger(__name__)

USUAL = ("ib", "hsn", "ipogif", "bond", "en", "eth")
"""How the names of interfaces between login and compute nodes begin, the fast ones first. The preference is that of
radical.utils (``host.py``), the names those of Dragon (``facts.py``) and Polaris' ``bond0``."""


OF_THIS_HOST = re.compile(r"lo|(docker|podman|cni|lxc|lxd|veth|virbr|vmnet)\w*|br-\w+")
"""Interfaces that lead to containers and virtual machines of this host, or nowhere. A site's file may name them."""

_NOWHERE = ("127.", "169.254.")
"""Loopback, and what an interface gives itself where nobody assigns addresses: a management controller on USB."""
_KEEP_S = 0.5
_AGAIN_S = 10.0
"""Until a server that could not be started anew inside of its pilot is tried once more."""


class Address(NamedTuple):
    """An address of this host."""

    interface: str
    address: str
    why: str
    """Why this one; for a person."""


def choose(listed: Sequence[str], there: Mapping[str, str], default: str = "") -> Address | None:
    """Choose the address at which the store listens for compute nodes. Pure.

    Args:
        listed: interfaces that the site's file names, in order.
        there: interface → IPv4 address, of those that are up.
        default: address from which this host reaches the rest of the world; "": none.

    Returns:
        The first one listed that is there; with none, the first of a usual name; else that of the default route. None:
        there is none.
    """
    for name in listed:
        if name in there:
            return Address(name, there[name], "the site's file names it")
    missing = f"{', '.join(listed)} of the site's file not being there, " if listed else ""
    there = {name: address for name, address in there.items() if not OF_THIS_HOST.fullmatch(name)}
    for beginning in USUAL:
        for name in sorted(there):
            if re.fullmatch(rf"{beginning}\w*", name):
                return Address(name, there[name], f"{missing}it is the fastest by its name")
    for name, address in there.items():
        if address == default:
            return Address(name, address, f"{missing}it has the default route")
    return None


def interfaces() -> dict[str, str]:
    """Return the IPv4 addresses of this host's interfaces that are up; no loopback, and none that nobody assigned."""
    import psutil

    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    found = {}
    for name, addresses in psutil.net_if_addrs().items():
        mine = [one.address for one in addresses if one.family == socket.AF_INET]
        mine = [one for one in mine if not one.startswith(_NOWHERE)]
        if name in up and mine:
            found[name] = mine[0]
    return found


def default_address() -> str:
    """Return the address from which this host reaches others; "" if it reaches none. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # RFC 5737: nobody's
        except OSError:
            return ""
        return str(probe.getsockname()[0])


def address_for(listed: Sequence[str]) -> Address:
    """Return the address of this host at which compute nodes reach it, as far as can be known from here.

    Args:
        listed: interfaces that the site's file names, in order.

    Raises:
        ConfigError: this host has no address but loopback.
    """
    found = choose(listed, interfaces(), default_address())
    if found is None:
        raise ConfigError("this host has no network interface that other nodes could reach, only loopback")
    return found


def address_named(name: str) -> str:
    """Return the address of an interface of this host, or the address itself if it is one of them.

    Raises:
        ConfigError: it is neither.
    """
    there = interfaces()
    if name in there.values():
        return name
    if name not in there:
        shown = ", ".join(f"{one} ({address})" for one, address in there.items()) or "none but loopback"
        raise ConfigError(f"this host has no interface {name!r}; it has {shown}")
    return there[name]


def findings(site: Site, config: ProjectConfig | None) -> Iterator[Finding]:
    """Tell, as far as can be known from here, whether a site's compute nodes will reach the store.

    Args:
        site: whose.
        config: of the project whose store it is; None: none is at hand.

    Raises:
        ConfigError: this host has no address but loopback.
    """
    if config is not None and not config.embedded:
        yield note("reach", "the store is a server of your own; `pilot site check --in-job` tries it from a node")
        return
    if site.reach.in_pilot:
        yield ok("reach", "the store runs inside of the pilot")
        return
    listed, there = site.reach.interfaces, interfaces()
    chosen = choose(listed, there, default_address())
    if listed and not any(name in there for name in listed):
        shown = ", ".join(f"{name} {address}" for name, address in sorted(there.items())) or "none but loopback"
        named = ", ".join(listed)
        yield wrong("reach", f"none of {named} is here with an address, but {shown}; correct reach.interfaces")
    elif chosen is None:
        yield wrong("reach", "this host has no network interface that other nodes could reach, only loopback")
    else:
        yield ok("reach", f"{chosen.interface}, {chosen.address}: {chosen.why}")
    if config is None or chosen is None:
        return
    status = LocalServer(config.store_folder).status()
    if not status.running:
        yield note("reach", f"the store does not run ({status.reason}); `pilot up` makes it listen at {chosen.address}")
    elif chosen.address not in status.addresses:
        yield note("reach", f"the store does not listen at {chosen.address} yet; `pilot up` sees to that")
    elif silence := silent(chosen.address, status.port or 0):
        yield wrong("reach", f"the store listens at {chosen.address}:{status.port}, but does not answer: {silence}")
    else:
        yield ok("reach", f"the store answers at {chosen.address}:{status.port}")
    yield note("reach", "whether compute nodes reach it, only `pilot site check --in-job` can tell")


def open_to(config: ProjectConfig, site: Site) -> str:
    """Make the embedded server listen where the site's compute nodes reach it.

    Returns:
        What was done, for a person; "": nothing had to be.
    """
    if not config.embedded:
        return ""
    chosen = address_for(site.reach.interfaces)
    if not LocalServer(config.store_folder).listen(chosen.address):
        return ""
    return f"the store listens at {chosen.address} ({chosen.interface}) too, for compute nodes: {chosen.why}"


@contextmanager
def inside(config: ProjectConfig, settings: PilotSettings) -> Iterator[None]:
    """Run the embedded server on this node, where login and compute nodes reach it, until the pilot has ended.

    If it runs elsewhere and stays there, it is used there.

    Raises:
        ServerError: it cannot run here, or stays where this node cannot reach it.
        ConfigError: this node has no address but loopback.
    """
    server = LocalServer(config.store_folder)
    try:
        if server.take(settings.pilot, address_for(settings.interfaces).address):
            with _kept_up(server):
                yield
        else:
            logger.warning("the store stays where it runs, as it is used there")
            yield
    finally:
        server.give_up(settings.pilot)


@contextmanager
def _kept_up(server: LocalServer) -> Iterator[None]:
    """Start the server anew whenever it ends.

    A batch system that ends a job signals all processes of it: the server ends first, while pools and agent still have
    to write what they know.
    """
    over = threading.Event()

    def keep() -> None:
        wait_s = _KEEP_S
        while not over.wait(wait_s):
            wait_s = _KEEP_S
            try:
                if not server.runs:
                    logger.warning("the store has ended before its pilot: starting it anew")
                    server.start()
            except StoreError as exc:
                logger.error("%s", exc)
                wait_s = _AGAIN_S

    thread = threading.Thread(target=keep, name="store", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
