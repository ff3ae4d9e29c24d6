"""What a coordinator's threads do when the store is slow, away or hostile; no pool, a real database."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pilot import commit, leasing, records, signing
from pilot.commit import Committer, Ended
from pilot.errors import StoreRejected, StoreUnavailable
from pilot.executors.run.verdict import Item
from pilot.layout import Layout
from pilot.leasing import Leaser
from pilot.model import Blob, Result, Usage
from pilot.prepare import Held, Refused
from pilot.states import Outcome, State
from pilot.store import dependants, pilots, provenance, spool, tasks
from pilot.store.mongo import Store
from pilot.store.spool import Spool
from tests import queue_rig
from tests.rig import LONG_S, wait_until

Document = dict[str, Any]

TOKEN = "token-of-the-test"
SIGNER = signing.Signer(bytes(32), "project")


class Anything:
    """Prepares every task without looking at it."""

    def prepare(self, docs: list[Document]) -> tuple[list[Held], list[Refused]]:
        return [Held(doc, Item(doc["_id"], doc["attempt"], None, None, False, b""), (), {}) for doc in docs], []


class Half:
    """Leaser and committer of one pool whose slots are played by the test."""

    def __init__(self, store: Store, root: Path) -> None:
        self.store = store
        self.root = root
        self.errors: list[BaseException] = []
        pilots.register(store, "pilot", "agent", {})
        pilots.open_pool(store, TOKEN, "pilot", {})
        preparer: Any = Anything()
        layout = Layout.from_document({"slots": 2})
        self.leaser = Leaser(
            store, TOKEN, preparer, pilot="pilot", layout=layout, room=lambda name: 0, end_at=None,
            beat_s=0.05, ttl_s=1.0, wake=lambda: None, failed=self.errors.append,
        )  # fmt: skip
        place = records.Place(TOKEN, {"pilot": "pilot"})
        self.committer = Committer(
            store, SIGNER, place, Spool(root, TOKEN), lambda encoded: encoded.hash, self.leaser.held, self.errors.append
        )

    def tick(self) -> bool:
        """Be the main loop and the agent for a moment."""
        self.leaser.ticked = time.monotonic()
        pilots.beat(self.store, "pilot", "agent", {})
        return True

    def take(self, count: int) -> list[Held]:
        """Lease so many attempts."""
        taken: list[Held] = []

        def enough() -> bool:
            self.tick()
            self.leaser.want(count - len(taken))
            taken.extend(self.leaser.take(count - len(taken)))
            return len(taken) == count

        wait_until(enough, LONG_S, f"{count} attempts are leased")
        self.leaser.want(0)
        return taken

    def end(self, taken: list[Held]) -> None:
        """Report that these have succeeded."""
        usage = Usage(0.0, 0.0, 0)
        self.committer.put(
            Ended(
                held.task, held,
                Result(held.item.task, held.item.attempt, Outcome.SUCCEEDED, (), None, None, 0.0, 0.0, usage, 1, "h"),
            )
            for held in taken
        )  # fmt: skip


@pytest.fixture
def half(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Half]:
    monkeypatch.setattr(leasing, "MISSED_S", 0.2)
    monkeypatch.setattr(commit, "RETRY_S", 0.05)
    queue_rig.submit(store, *(queue_rig.task(f"t{number}") for number in range(20)))
    made = Half(store, tmp_path / "spool")
    with made.committer, made.leaser:
        yield made
    pilots.close_pool(store, TOKEN, pilots.PoolState.ENDED, "the test is over")


def states(store: Store) -> set[str]:
    return set(store.tasks.distinct("state"))


def away(half: Half, monkeypatch: pytest.MonkeyPatch, kind: type[Exception] = StoreUnavailable) -> Callable[[], None]:
    """Make every commit fail; return what ends it."""
    settle = provenance.settle

    def fail(*_: object) -> Any:
        raise kind("the test says so")

    monkeypatch.setattr(provenance, "settle", fail)
    return lambda: monkeypatch.setattr(provenance, "settle", settle)


def test_what_waits_to_be_written_is_not_returned(half: Half, monkeypatch: pytest.MonkeyPatch) -> None:
    """The heartbeat returns leases that nobody holds; a result on its way to the store is held."""
    back = away(half, monkeypatch)
    half.end(half.take(20))
    until = time.monotonic() + 1.0  # five times as long as a lease may be missed
    wait_until(lambda: half.tick() and time.monotonic() > until, LONG_S, "a second has passed")
    assert states(half.store) == {State.LEASED}
    back()
    wait_until(lambda: half.tick() and states(half.store) == {State.DONE}, LONG_S, "all is written")
    wait_until(lambda: half.committer.unwritten == 0, LONG_S, "nothing waits")
    assert half.leaser.held == set()
    assert not half.root.exists() or list(half.root.iterdir()) == []
    assert half.errors == []


def test_a_result_with_two_outputs_of_one_name_is_not_recorded_as_it_is(half: Half) -> None:
    """A link could mean either; the result beside it is none the worse."""
    odd, even = half.take(2)
    blob = Blob("0" * 64, 5, b"jnull")
    usage = Usage(0.0, 0.0, 0)
    half.committer.put(
        Ended(
            held.task, held,
            Result(held.item.task, held.item.attempt, Outcome.SUCCEEDED, outputs, None, None, 0.0, 0.0, usage, 1, "h"),
        )
        for held, outputs in ((odd, (("out", blob), ("out", blob))), (even, (("out", blob), ("err", blob))))
    )  # fmt: skip
    wait_until(lambda: half.tick() and half.committer.unwritten == 0, LONG_S, "both are written")
    (bad,) = provenance.attempts(half.store, odd.item.task)
    assert (bad["outcome"], bad["reason"], bad["outputs"]) == ("failed", "record", [])
    assert "two of the outputs are called 'out'" in bad["exception"]["message"]
    (good,) = provenance.attempts(half.store, even.item.task)
    assert [entry["name"] for entry in good["outputs"]] == ["out", "err"]
    records.verify(bad, SIGNER)


def test_a_lease_whose_answer_was_lost_is_returned(half: Half) -> None:
    (doc, *_) = tasks.lease(half.store, TOKEN, tasks.ready_classes(half.store), 5, 0, queue_rig.NOW)
    assert doc["attempt"] == 1
    wait_until(lambda: half.tick() and states(half.store) == {State.READY}, LONG_S, "they are returned")


def test_all_that_comes_while_the_store_is_away_is_spooled(half: Half, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the first batch only: a pool that is killed now loses nothing."""
    taken = half.take(20)
    back = away(half, monkeypatch)
    for start in range(0, 20, 4):
        half.end(taken[start : start + 4])

        def spooled(count: int = start + 4) -> bool:
            half.tick()
            return sum(len(spool._read(path)) for path in half.root.glob("*/*.bson")) == count

        wait_until(spooled, LONG_S, f"{start + 4} results are spooled")
    back()
    assert spool.replay(half.store, half.root, TOKEN) == 20, "whoever takes us for dead can replay them"
    assert states(half.store) == {State.DONE}
    wait_until(lambda: half.tick() and half.committer.unwritten == 0, LONG_S, "we notice")
    assert half.errors == []


def test_what_the_store_refuses_for_good_is_spooled_too(half: Half, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = half.take(20)
    back = away(half, monkeypatch, StoreRejected)
    half.end(taken)
    wait_until(lambda: half.tick() and half.errors, LONG_S, "the pool is told to end")
    assert isinstance(half.errors[0], StoreRejected)
    assert not half.committer.close(1.0)
    back()
    assert spool.replay(half.store, half.root, TOKEN) == 20
    assert states(half.store) == {State.DONE}


def test_closing_while_the_store_is_away_spools(half: Half, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = half.take(20)
    back = away(half, monkeypatch)
    half.end(taken)
    assert not half.committer.close()
    back()
    assert spool.replay(half.store, half.root, TOKEN) == 20
    assert states(half.store) == {State.DONE}


def test_a_pool_without_an_agent_knows(half: Half) -> None:
    wait_until(lambda: half.tick() and half.leaser.store_seen, LONG_S, "it beats")
    assert not half.leaser.orphaned.is_set()

    def orphaned() -> bool:
        half.leaser.ticked = time.monotonic()
        return half.leaser.orphaned.is_set()

    wait_until(orphaned, LONG_S, "it has noticed")


def test_a_check_that_is_overtaken_looks_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parents that end one by one while a wide join is checked move it each time; it is not left to the sweep."""
    queue_rig.submit(store, queue_rig.task("parent"))
    queue_rig.open_pool(store, "pool")
    queue_rig.run(store, "pool", parent=Outcome.SUCCEEDED)
    settle = dependants.lifecycle.settle
    moves = iter(range(20))

    def overtaken(*args: Any) -> Any:
        if next(moves, None) is not None:
            store.tasks.update_one({"_id": "child"}, {"$inc": {"rev": 1}})
        return settle(*args)

    monkeypatch.setattr(dependants.lifecycle, "settle", overtaken)
    queue_rig.submit(store, queue_rig.task("child", "parent"))
    assert queue_rig.state(store, "child") == State.READY
