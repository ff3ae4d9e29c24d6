"""Hints and spools: what may be lost, and what may not."""

from __future__ import annotations

import errno
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from bson import ObjectId
from bson.timestamp import Timestamp

from pilot.states import Outcome
from pilot.store import events, provenance, spool, tasks
from pilot.store.events import Tail
from pilot.store.mongo import Store
from pilot.store.spool import Spool
from pilot.store.tasks import Document
from tests import queue_rig as rig
from tests.queue_rig import Commands, kill_pool, lease, state, states, submit, task

# -- hints ------------------------------------------------------------------------------------------


def read(tail: Tail, count: int, deadline_s: float = 10.0) -> list[Document]:
    """Return the next hints, so many."""
    found: list[Document] = []
    deadline = time.monotonic() + deadline_s
    while len(found) < count:
        assert time.monotonic() < deadline, f"{count} hints should come, and these did: {found}"
        event = tail.next()
        if event is not None:
            found.append(event)
    return found


def test_a_tail_on_an_empty_collection_waits_for_the_first_hint(store: Store) -> None:
    with events.tail(store, {"kind": events.READY}, wait_ms=100) as tail:
        assert tail.next() is None
        events.hint(store, events.READY)
        assert [event["kind"] for event in read(tail, 1)] == ["ready"]
        began = time.monotonic()
        assert tail.next() is None
        assert time.monotonic() - began >= 0.09


def test_a_tail_begins_now_and_sees_what_it_asked_for(store: Store) -> None:
    events.hint(store, events.READY)
    with events.tail(store, {"kind": events.READY}, wait_ms=50) as tail:
        assert tail.next() is None
        events.hint(store, events.CANCEL)
        events.hint(store, events.READY)
        assert [event["kind"] for event in read(tail, 1)] == ["ready"]
        assert tail.next() is None


def test_every_tail_sees_every_hint_in_order(store: Store) -> None:
    with events.tail(store, {}, wait_ms=50) as one, events.tail(store, {"kind": "ended"}, wait_ms=50) as two:
        assert one.next() is None
        while two.next() is not None:
            pass
        for n in range(20):
            events.tell_ended(store, [("me", f"t{n}")])
        told = [[f"t{n}"] for n in range(20)]
        ended = [event for event in read(one, 20) if event["kind"] == "ended"]
        assert [event["tasks"] for event in ended] == told
        assert [event["tasks"] for event in read(two, 20)] == told


def test_a_hint_of_a_host_whose_clock_is_behind_is_seen(store: Store) -> None:
    """Its ObjectId says 2020; the server's time, which the tail goes by, does not."""
    with events.tail(store, {"kind": events.READY}, wait_ms=50) as tail:
        assert tail.next() is None
        old = ObjectId.from_datetime(datetime(2020, 1, 1, tzinfo=UTC))
        store.events.insert_one({"_id": old, "kind": events.READY, "at": Timestamp(0, 0)})
        (event,) = read(tail, 1)
        assert event["_id"] == old
        assert event["at"].time > 1_700_000_000


def test_clients_are_told_of_their_own_tasks_in_few_documents(store: Store) -> None:
    ended = [("a" if n % 3 else "b", f"t{n:05d}") for n in range(9000)] + [(None, "nobody's")]
    with events.tail(store, {"client": "a"}, wait_ms=50) as tail:
        assert tail.next() is None
        events.tell_ended(store, ended)
        events.tell_ended(store, [("a", "t1:3")], records=True)
        events.tell_ended(store, [(None, "nobody's")])
        *told, last = read(tail, 4)
        assert [len(event["tasks"]) for event in told] == [2000, 2000, 2000]
        assert sorted(name for event in told for name in event["tasks"]) == [t for c, t in ended if c == "a"]
        assert last["records"] == ["t1:3"]
        assert tail.next() is None


@pytest.mark.any_documents
def test_a_tail_that_writers_have_overrun_says_look_for_yourself(store: Store) -> None:
    store.events.drop()
    store.database.create_collection("events", capped=True, size=4096)
    with events.tail(store, {"kind": {"$in": ["ready", "cancel"]}}, wait_ms=50) as tail:
        assert tail.next() is None
        events.hint(store, events.CANCEL)
        assert read(tail, 1)[0]["kind"] == "cancel"
        for _ in range(500):
            events.tell_ended(store, [("somebody", "t" * 100)])
        assert store.events.count_documents({}) < 100
        events.hint(store, events.CANCEL)
        assert [event["kind"] for event in read(tail, 2)] == ["ready", "cancel"]
        assert tail.next() is None
        for _ in range(3):
            events.hint(store, events.READY)
        assert len(read(tail, 3)) == 3


def test_a_tail_survives_the_loss_of_all_hints_and_does_not_spin(raced: tuple[Store, Commands]) -> None:
    store, commands = raced
    with events.tail(store, {"kind": "ready"}, wait_ms=50) as tail:
        assert tail.next() is None
        events.hint(store, events.READY)
        read(tail, 1)
        store.events.delete_many({})
        tail.next()
        with commands.at_most(15, "ten looks at nothing"):
            for _ in range(10):
                assert tail.next() is None
        events.hint(store, events.READY)
        assert len(read(tail, 1)) == 1


# -- spool ------------------------------------------------------------------------------------------


@pytest.fixture
def spooled(store: Store, a: str, tmp_path: Path) -> Path:
    """Return the root of a spool that holds the results of p (succeeded) and q (failed); children c and d wait."""
    submit(store, task("p"), task("q"), task("c", "p"), task("d", "q"))
    lease(store, a)
    pool = Spool(tmp_path, a)
    pool.write([rig.record("p", 1, a, Outcome.SUCCEEDED)])
    pool.write([rig.record("q", 1, a, Outcome.FAILED)])
    return tmp_path


AFTER = {"p": "done", "q": "failed", "c": "ready", "d": "upstream"}


def test_a_spool_is_replayed_once(store: Store, a: str, spooled: Path) -> None:
    assert spool.waiting(spooled) == {a: 2}
    assert (spooled / a).stat().st_mode & 0o777 == 0o700
    assert spool.replay(store, spooled, "somebody else") == 0
    assert states(store)["p"] == "leased"
    assert spool.replay(store, spooled, a) == 2
    assert states(store) == AFTER
    assert list(spooled.iterdir()) == []
    rig.untouched(store, lambda: spool.replay(store, spooled, a))
    assert spool.replay(store, spooled, a) == 0
    assert spool.waiting(spooled) == {}
    assert spool.waiting(spooled / "nowhere") == {}


def test_a_replay_that_dies_is_taken_up_by_the_next(store: Store, a: str, spooled: Path, tmp_path: Path) -> None:
    files = {path: path.read_bytes() for path in (spooled / a).iterdir()}
    before = rig.whole(store)
    for writes in range(50):
        with rig.crash_after(store, writes) as crashed:
            spool.replay(store, spooled, a)
        assert spool.replay(store, spooled, a) <= 2
        rig.quiesce(store)
        assert states(store) == AFTER, f"after {writes} writes"
        assert not (spooled / a).exists()
        if not crashed:
            break
        for path, content in files.items():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        for name, documents in before.items():
            store.database[name].delete_many({})
            if documents:
                store.database[name].insert_many(documents)
    assert writes > 4


def test_a_pool_that_could_commit_after_all_is_not_doubled(store: Store, a: str, spooled: Path) -> None:
    rig.commit(store, a, {("p", 1): Outcome.SUCCEEDED, ("q", 1): Outcome.FAILED})
    rig.untouched(store, lambda: spool.replay(store, spooled, a))


def test_what_was_reaped_before_the_replay_stays_lost(store: Store, a: str, spooled: Path) -> None:
    kill_pool(store, a)
    rig.reap(store)
    assert states(store) == {"p": "ready", "q": "ready", "c": "waiting", "d": "waiting"}
    rig.untouched(store, lambda: spool.replay(store, spooled, a))
    assert [doc["outcome"] for doc in provenance.attempts(store, "p")] == ["lost"]


@pytest.mark.parametrize("write", range(1, 9))
def test_two_agents_replay_one_spool_at_once(store: Store, a: str, spooled: Path, write: int) -> None:
    counts: list[int] = []

    def meanwhile(number: int) -> None:
        if number == write:
            counts.append(spool.replay(store, spooled, a))

    with rig.faulty(store, rig.calling(store, meanwhile)):
        spool.replay(store, spooled, a)
    assert states(store) == AFTER
    assert not (spooled / a).exists()


def test_half_a_batch_is_no_batch(store: Store, a: str, spooled: Path) -> None:
    half = spooled / a / "00000003.partial"
    half.write_bytes(rig.record("c", 1, a, Outcome.SUCCEEDED).raw[:20])
    assert spool.waiting(spooled) == {a: 2}
    assert spool.replay(store, spooled, a) == 2
    assert not half.exists()


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-7], lambda data: data + b"\x99", lambda data: b"\0" * len(data), lambda data: b"x" * 3],
    ids=["cut off", "too long", "zeros", "short"],
)
def test_a_damaged_file_is_set_aside_and_the_others_count(
    store: Store, a: str, spooled: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    path = min((spooled / a).iterdir())
    path.write_bytes(damage(path.read_bytes()))
    assert spool.replay(store, spooled, a) == 1
    assert "cannot replay" in caplog.text
    assert path.with_suffix(".damaged").exists()
    assert (state(store, "p"), state(store, "q")) == ("leased", "failed")
    assert spool.replay(store, spooled, a) == 0
    kill_pool(store, a)
    rig.reap(store)
    assert tasks.get(store, ["p"])["p"]["lost"] == 1


def test_an_empty_file_is_nothing(store: Store, a: str, spooled: Path) -> None:
    (spooled / a / "00000000.bson").write_bytes(b"")
    assert spool.replay(store, spooled, a) == 2
    assert states(store) == AFTER


@contextmanager
def no_room(size: int) -> Iterator[None]:
    """Let this process write no file above a size, so that it is as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_nothing_half_written(store: Store, a: str, tmp_path: Path) -> None:
    submit(store, *(task(f"t{n}") for n in range(500)))
    held = lease(store, a)
    batch = [rig.record(name, attempt, a, Outcome.SUCCEEDED) for name, attempt in held.items()]
    pool = Spool(tmp_path, a)
    kept = pool.write(batch[:100])
    with no_room(10_000), pytest.raises(OSError) as caught:  # noqa: PT011  its number is looked at
        pool.write(batch[100:])
    assert caught.value.errno in (errno.EFBIG, errno.ENOSPC)
    assert list((tmp_path / a).iterdir()) == [kept]
    assert pool.write(batch[100:]) > kept
    assert spool.replay(store, tmp_path, a) == 500
    assert set(states(store).values()) == {"done"}
