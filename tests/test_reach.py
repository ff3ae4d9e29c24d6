"""How compute nodes reach the store: which address, a server that listens there, and one inside of a pilot."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from pilot import reach
from pilot.errors import ConfigError, ServerError
from pilot.reach import choose
from pilot.store.local import LocalServer
from tests.conftest import need

THERE = {"docker0": "172.17.0.1", "eth0": "10.0.0.5", "hsn0": "10.1.0.5", "ib0": "10.2.0.5", "virbr0": "192.168.1.1"}


@pytest.mark.parametrize(
    ("listed", "there", "default", "interface"),
    [
        (["hsn0"], THERE, "10.0.0.5", "hsn0"),
        (["bond0", "hsn0"], THERE, "10.0.0.5", "hsn0"),
        (["bond0"], THERE, "10.0.0.5", "ib0"),
        ([], THERE, "10.0.0.5", "ib0"),
        ([], {"eth0": "10.0.0.5", "eno1": "10.0.0.6"}, "", "eno1"),
        ([], {"docker0": "172.17.0.1", "team0": "10.0.0.7"}, "10.0.0.7", "team0"),
        ([], {"docker0": "172.17.0.1"}, "10.0.0.7", None),
        ([], {"docker0": "172.17.0.1"}, "172.17.0.1", None),
        ([], {"br-3f2a": "172.18.0.1", "br0": "10.0.0.8"}, "10.0.0.8", "br0"),
        (["docker0"], {"docker0": "172.17.0.1"}, "", "docker0"),  # they will know why
        (["hsn0"], {}, "", None),
    ],
)
def test_the_interface_that_is_taken(
    listed: list[str], there: dict[str, str], default: str, interface: str | None
) -> None:
    found = choose(listed, there, default)
    assert (found and found.interface) == interface
    if found and listed and interface not in listed:
        assert f"{', '.join(listed)} of the site's file not being there" in found.why


def test_addresses_that_lead_nowhere_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def address(words: str) -> SimpleNamespace:
        return SimpleNamespace(family=socket.AF_INET, address=words)

    there = {
        "lo": [address("127.0.0.1")],
        "enp0s20u1": [address("169.254.3.1")],
        "enp65s0": [address("169.254.7.7"), address("10.0.0.4")],
        "ib0": [address("10.2.0.4")],
    }
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: there)
    monkeypatch.setattr(psutil, "net_if_stats", lambda: {one: SimpleNamespace(isup=one != "ib0") for one in there})
    assert reach.interfaces() == {"enp65s0": "10.0.0.4"}


def test_an_interface_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="this host has no interface 'hsn7'; it has "):
        reach.address_named("hsn7")


# -- the server -------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> LocalServer:
    need("mongod")
    return LocalServer(tmp_path / "store", cache_gb=0.25)


OTHER = "127.0.0.2"
"""As good as an interface."""


def answers(server: LocalServer, address: str) -> bool:
    port = server.status().port or 0
    try:
        socket.create_connection((address, port), timeout=5.0).close()
    except OSError:
        return False
    return True


def test_a_server_listens_where_it_is_told_to_and_goes_on_so(server: LocalServer) -> None:
    server.start()
    try:
        assert not answers(server, OTHER)
        assert server.listen(OTHER)
        assert answers(server, OTHER)
        assert not server.listen(OTHER)  # nothing to be done
        server.stop()
        server.start()
        assert server.status().addresses == ("127.0.0.1", OTHER)
    finally:
        server.stop()


def test_it_listens_there_whoever_starts_it_meanwhile(server: LocalServer, tmp_path: Path) -> None:
    server.start()
    over = threading.Event()

    def start_again_and_again() -> None:
        while not over.is_set():
            LocalServer(tmp_path / "store", cache_gb=0.25).start()

    others = threading.Thread(target=start_again_and_again)
    others.start()
    try:
        assert server.listen(OTHER)
        assert answers(server, OTHER)
    finally:
        over.set()
        others.join()
        server.stop()


def test_the_store_moves_into_a_pilot_and_back(server: LocalServer) -> None:
    server.start()
    server.promise("p1")
    assert server.home == "p1"
    server.leave()
    assert not server.status().running
    server.start()  # somebody needs it before the pilot has begun
    server.take("p1", OTHER)
    server.leave()  # that one is done with it, but the pilot has it by now
    assert server.status().running
    assert server.inside == "p1"
    server.give_up("p1")
    assert not server.status().running
    server.start()
    assert server.inside == ""
    server.stop()


def test_a_store_inside_of_a_pilot_that_cannot_be_reached(server: LocalServer, tmp_path: Path) -> None:
    server.take("p1", OTHER)
    try:
        path = tmp_path / "store" / "server.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"host": "nid1", "boot": "b", "addresses": []}))
        with pytest.raises(ServerError, match=r"runs inside of pilot p1 on host 'nid1' .* back when that pilot has"):
            server.start()
    finally:
        path.unlink()
        server.stop()


def test_a_promised_store_is_stopped_by_the_last_who_uses_it(server: LocalServer) -> None:
    _, done = server.use()
    _, done_later = server.use()
    server.promise("p1")
    done()
    assert server.runs
    done()  # twice does no harm
    done_later()
    assert not server.runs
    _, done = server.use()
    server.promise("", instead_of="p2")
    assert server.home == "p1"
    server.promise("", instead_of="p1")
    done()
    assert server.runs
    server.stop()


@contextmanager
def elsewhere(directory: Path) -> Iterator[None]:
    """Let it seem as if the server ran on another host."""
    path = directory / "server.json"
    there = json.loads(path.read_text())
    path.write_text(json.dumps(there | {"host": "login1", "boot": "b"}))
    try:
        yield
    finally:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"host": there["host"], "boot": there["boot"]}))


def test_a_store_that_is_not_let_go_is_used_where_it_is(server: LocalServer, tmp_path: Path) -> None:
    server.listen(OTHER)
    server.promise("p1")
    with elsewhere(tmp_path / "store"):
        assert not server.take("p1", OTHER, patience_s=0.0)
        assert OTHER in server.uri()
        server.give_up("p1")
    server.leave()  # it is not to be stopped under the pilot that uses it
    assert server.runs
    server.stop()


def test_one_pilot_has_the_store_and_others_use_it(server: LocalServer, tmp_path: Path) -> None:
    assert server.take("p1", OTHER)
    with elsewhere(tmp_path / "store"):
        assert not server.take("p2", OTHER)
        server.give_up("p2")
    assert server.inside == "p1"
    assert server.runs
    server.give_up("p1")
    assert not server.runs
