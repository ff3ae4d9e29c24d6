"""Blocks of nodes: how they are divided, and what becomes of a block whose pool dies."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Collection
from pathlib import Path

import pytest

from pilot.block import Block
from pilot.layout import block_sizes
from pilot.pool_keeper import PoolKeeper, divided
from pilot.settings import PilotSettings
from tests.rig import wait_until

HOSTS = tuple(f"n{number}" for number in range(200))


@pytest.mark.parametrize(
    ("nodes", "most", "sizes"),
    [(0, 64, [0]), (1, 64, [1]), (64, 64, [64]), (65, 64, [33, 32]), (200, 64, [50] * 4), (3, 1, [1, 1, 1])],
)
def test_blocks_are_few_and_of_like_size(nodes: int, most: int, sizes: list[int]) -> None:
    whole = Block(HOSTS[:nodes])
    blocks = divided(whole, most, 0)
    assert [len(block.hosts) for block in blocks] == sizes
    assert tuple(itertools.chain(*(block.hosts for block in blocks))) == HOSTS[:nodes]
    assert sizes == block_sizes(nodes, most)


class Deaths:
    """A block whose launcher fails, and a batch system that says which nodes are down."""

    def __init__(self, folder: Path, hosts: tuple[str, ...], delays_s: tuple[float, ...] = (0.0, 0.0)) -> None:
        launcher = (sys.executable, "-c", "raise SystemExit('node n1 does not answer')")
        settings = PilotSettings(str(folder), "p1", "test", launcher, 2, 1, restarts_s=delays_s)
        self.down: Collection[str] = ()
        self.keeper = PoolKeeper(settings, Block(hosts), folder, itertools.count(1), lambda hosts: self.down)

    def once(self, wish: str = "") -> None:
        """Let one pool start and end."""
        self.keeper.start_if_due(wish)
        pool = self.keeper.pool
        if pool is not None:
            wait_until(lambda: pool.poll() is not None, 10.0, "the launcher has failed", pool.last_words)
            self.keeper.ended(pool.poll() or 0, wish)


def test_a_dead_node_is_left_out_from_the_next_start_on(tmp_path: Path) -> None:
    deaths = Deaths(tmp_path, ("n1", "n2"))
    deaths.once()
    deaths.down = {"n1"}
    deaths.once()
    deaths.down = ()
    assert deaths.keeper.block.hosts == ("n2",)
    assert (tmp_path / "pool-1.hosts").read_text() == "n1:3\nn2:2\n"
    assert (tmp_path / "pool-2.hosts").read_text() == "n2:3\n"


def test_a_block_without_nodes_is_over(tmp_path: Path) -> None:
    deaths = Deaths(tmp_path, ("n1",))
    deaths.once()
    deaths.down = {"n1"}
    deaths.once()
    assert (deaths.keeper.over, deaths.keeper.reason) == (True, "its nodes are down: n1")
    assert deaths.keeper.trouble == deaths.keeper.reason


def test_a_pool_that_dies_again_and_again_is_given_up_with_its_last_words(tmp_path: Path) -> None:
    deaths = Deaths(tmp_path, ("n1",))
    for number in range(3):
        assert not deaths.keeper.over
        assert ("n1 does not answer" in deaths.keeper.trouble) == (number > 0)
        deaths.once()
    assert deaths.keeper.over
    assert "its pool died 3 times in a row; last words:\nnode n1 does not answer" in deaths.keeper.reason


def test_no_pool_is_started_when_the_pilot_is_to_end(tmp_path: Path) -> None:
    deaths = Deaths(tmp_path, ("n1",))
    deaths.once("drain")
    assert deaths.keeper.over
    assert not list(tmp_path.glob("pool-*"))
