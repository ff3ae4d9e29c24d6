"""How compute nodes reach the store: which address, a server that listens there, and one inside of a pilot."""

from __future__ import annotations

import json
import socket
from pathlib import Path

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


def test_the_store_moves_into_a_pilot_and_back(server: LocalServer) -> None:
    server.start()
    server.promise("p1")
    assert server.away
    server.leave()
    assert not server.status().running
    server.start()  # somebody needs it before the pilot has begun
    server.take("p1", OTHER)
    server.leave()  # that one is done with it, but the pilot has it by now
    assert server.status().running
    assert not server.away
    server.give_up()
    assert not server.status().running
    server.start()
    assert not server.away
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
