"""The pool's pure parts: rank 0's ledger, the batching of results, clocks, ranks by environment, message encoding."""

from __future__ import annotations

import math
import mmap
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilot.errors import PoolError
from pilot.executors.pool import messages
from pilot.executors.pool.identity import launcher_says, node, rank_from_environment
from pilot.executors.pool.ledger import Event, Failing, Finished, Joined, Ledger, Lost, Returned
from pilot.executors.pool.leftovers import remove_segments
from pilot.executors.pool.outbox import AGE_MAX_S, ITEMS_MAX, Outbox
from pilot.executors.pool.waiting import AwakeClock, Backoff, wait_readable
from pilot.executors.run.verdict import Finished as Ended
from pilot.executors.run.verdict import Item
from pilot.model import FunctionCode, Log

NODE = messages.Node((0, 1), "cpu", 1 << 30, "6.1")
HELLO = messages.Hello("node0", 1, NODE, "MPI", (4, 1), 3)


def item(task: str, function: str | None = "f", attempt: int = 1, frame: bytes = b"") -> Item:
    return Item(task, attempt, function, None, False, frame)


def ended(task: str, attempt: int = 1, body: bytes = b"") -> Ended:
    return Ended(task, attempt, body, None)


def ledger(slots: int = 2, silence_s: float = 10.0) -> Ledger:
    books = Ledger(range(1, slots + 1), silence_s, 0.0)
    for rank in books.slots:
        books.take(rank, HELLO)
    return books


# -- ledger -----------------------------------------------------------------------------------------


def test_slot_takes_work_after_its_hello() -> None:
    books = Ledger([1], 10.0, 0.0)
    with pytest.raises(PoolError, match="takes no work: not up"):
        books.dispatched(1, [item("a")], 0.0)
    assert books.take(1, HELLO) == Joined(1)
    books.dispatched(1, [item("a"), item("b")], 1.0)
    assert books.slots[1].in_hand == {("a", 1): 1.0, ("b", 1): 1.0}
    assert books.total == 2


def test_function_is_needed_once_per_slot() -> None:
    books = ledger()
    work = [item("a", "f"), item("b", "g"), item("c", "f"), item("d", None)]
    assert books.unknown(1, work) == ["f", "g"]
    books.dispatched(1, work, 0.0)
    assert books.unknown(1, [item("e", "g"), item("h", "k")]) == ["k"]
    assert books.unknown(2, work) == ["f", "g"]


def test_attempt_is_not_dispatched_twice_to_a_slot() -> None:
    books = ledger()
    books.dispatched(1, [item("a")], 0.0)
    for again in ([item("a")], [item("b"), item("b")]):
        with pytest.raises(PoolError, match="dispatched twice"):
            books.dispatched(1, again, 0.0)
    books.dispatched(1, [item("a", attempt=2)], 0.0)
    assert books.total == 2


def test_result_counts_once() -> None:
    books = ledger()
    books.dispatched(1, [item("a")], 0.0)
    event = books.take(1, messages.Results((ended("a"), ended("a"), ended("stranger"))))
    assert event == Finished(1, [ended("a")])
    assert books.total == 0


def test_empty_means_confirmed_empty() -> None:
    books = ledger()
    books.dispatched(1, [item("a"), item("b")], 0.0)
    assert books.take(1, messages.Returned(1, (("b", 1),), 1)) == Returned(1, [("b", 1)], 1, False)
    books.take(1, messages.Results((ended("a"),)))
    books.dispatched(1, [item("c")], 0.0)  # crosses the answer
    assert books.take(1, messages.Returned(2, (), 0)) == Returned(1, [], 2, False)
    assert books.take(1, messages.Returned(3, (("c", 1),), 0)) == Returned(1, [("c", 1)], 3, True)


def test_failing_slot_takes_no_work_until_it_is_able() -> None:
    books = ledger()
    assert books.take(1, messages.Failing("no memory")) == Failing(1, "no memory")
    with pytest.raises(PoolError, match="no memory"):
        books.dispatched(1, [item("a")], 0.0)
    assert books.take(1, messages.Able()) == Joined(1)
    books.dispatched(1, [item("a")], 0.0)


def test_silent_slot_is_lost_once_and_heard_no_more() -> None:
    books = ledger()
    books.dispatched(1, [item("a"), item("b")], 0.0)
    for second in range(1, 11):
        assert books.look(float(second)) == []
        books.take(2, messages.Beat(0))
    (lost,) = books.look(11.0)
    assert (lost.slot, lost.keys) == (1, [("a", 1), ("b", 1)])
    assert "silent for 11 s" in lost.reason
    assert books.look(12.0) == []
    assert books.take(1, messages.Results((ended("a"),))) is None
    assert books.total == 0
    assert books.take(1, messages.Bye()) is None
    assert books.slots[1].gone


def test_absence_of_rank_0_is_no_silence_of_a_slot() -> None:
    books = ledger(silence_s=10.0)
    for second in range(1, 6):
        books.look(float(second))
    assert books.look(500.0) == []
    for second in range(501, 505):
        assert books.look(float(second)) == []
    assert len(books.look(506.0)) == 2


def test_goodbye_with_work_in_hand_is_a_loss() -> None:
    books = ledger()
    books.dispatched(1, [item("a")], 0.0)
    event = books.take(1, messages.Bye())
    assert isinstance(event, Lost)
    assert event.keys == [("a", 1)]


def test_quiet_slots_are_pinged_even_after_goodbye() -> None:
    books = ledger()
    books.take(2, messages.Bye())
    assert books.unspoken(4.0, 5.0) == []
    books.dispatched(1, [item("a")], 4.0)
    assert books.unspoken(6.0, 5.0) == [2]
    assert books.unspoken(10.0, 5.0) == [1]


@settings(max_examples=200)
@given(st.data())
def test_every_attempt_leaves_the_ledger_exactly_once(data: st.DataObject) -> None:
    books = ledger(slots=3)
    alive: dict[tuple[str, int], int] = {}
    left: list[tuple[str, int]] = []
    now, serial = 0.0, 0

    def leave(event: Event | None) -> None:
        if isinstance(event, Finished):
            left.extend(one.key for one in event.results)
        elif isinstance(event, Returned | Lost):
            left.extend(event.keys)

    for _ in range(data.draw(st.integers(1, 40))):
        rank = data.draw(st.sampled_from([1, 2, 3]))
        theirs = [key for key, owner in alive.items() if owner == rank]
        some = tuple(data.draw(st.lists(st.sampled_from(theirs), max_size=4))) if theirs else ()
        step = data.draw(st.sampled_from(["dispatch", "results", "returned", "beat", "lose", "look", "bye"]))
        now += data.draw(st.sampled_from([0.1, 1.0, 5.0]))
        if step == "dispatch" and books.slots[rank].able:
            items = [item(f"t{serial + i}") for i in range(data.draw(st.integers(0, 5)))]
            serial += len(items)
            books.dispatched(rank, items, now)
            alive.update({one.key: rank for one in items})
        elif step == "results":
            leave(books.take(rank, messages.Results(tuple(ended(*key) for key in some))))
        elif step == "returned":
            leave(books.take(rank, messages.Returned(0, some, 1)))
        elif step == "beat":
            leave(books.take(rank, messages.Beat(1)))
        elif step == "bye":
            leave(books.take(rank, messages.Bye()))
        elif step == "lose":
            leave(books.lose(rank, "because"))
        else:
            for event in books.look(now):
                leave(event)
    in_hand = [key for slot in books.slots.values() for key in slot.in_hand]
    assert len(left) == len(set(left))
    assert sorted(left + in_hand) == sorted(alive)
    assert books.total == len(in_hand)


# -- leftovers --------------------------------------------------------------------------------------


def test_only_old_unmapped_segments_of_mpi_are_removed(tmp_path: Path) -> None:
    names = ["mpich_shm_1", "sm_segment.host.0.1", "ucx_shm_posix_9", "somebody_elses"]
    for name in names:
        (tmp_path / name).write_bytes(b"x" * 4096)
    with (tmp_path / "ucx_shm_posix_9").open("r+b") as file, mmap.mmap(file.fileno(), 0):
        assert remove_segments(tmp_path) == []
        assert sorted(remove_segments(tmp_path, age_min_s=-1.0)) == ["mpich_shm_1", "sm_segment.host.0.1"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["somebody_elses", "ucx_shm_posix_9"]


# -- batching ---------------------------------------------------------------------------------------


def test_results_wait_for_company_but_not_for_long() -> None:
    box = Outbox()
    assert box.due == math.inf
    assert not box.ready(100.0, 0)
    box.add([ended("a")], 1.0)
    assert not box.ready(1.0, 10)
    assert box.due == 1.0 + AGE_MAX_S
    assert box.ready(1.0 + AGE_MAX_S, 10)
    box.add([ended("b")], 2.0)
    assert box.due == 1.0 + AGE_MAX_S
    assert [one.task for one in box.take().finished] == ["a", "b"]
    assert len(box) == 0
    assert box.due == math.inf


def test_results_go_at_once_when_the_slot_runs_low_or_many_are_there() -> None:
    box = Outbox()
    box.add([ended("a")], 1.0)
    assert box.ready(1.0, 1)
    assert box.ready(1.0, 0)
    box.add([ended(f"t{i}") for i in range(ITEMS_MAX)], 1.0)
    assert box.ready(1.0, 1000)
    box.take()
    box.add([ended("big", body=bytes(5 << 20))], 1.0)
    assert box.ready(1.0, 1000)


# -- waiting ----------------------------------------------------------------------------------------


def test_backoff_grows_and_starts_again() -> None:
    backoff = Backoff(1.0, 3.0)
    assert [backoff.step() for _ in range(5)] == pytest.approx([1.0, 1.5, 2.25, 3.0, 3.03])
    assert 6.0 <= max(backoff.step() for _ in range(200)) < 6.1
    backoff.reset()
    assert backoff.step() == 1.0


def test_awake_clock_stands_still_while_away() -> None:
    clock = AwakeClock(0.0)
    assert [clock.at(now) for now in (1.0, 2.0, 102.0, 103.0)] == [1.0, 2.0, 2.0, 3.0]


def test_wait_readable_returns_what_is_ready() -> None:
    reading, writing = os.pipe()
    try:
        assert wait_readable((reading,), 0.0) == []
        os.write(writing, b"x")
        assert wait_readable((reading,), 1.0) == [reading]
        high = os.dup2(reading, 2000)
        try:
            assert wait_readable((high,), 1.0) == [2000]
        finally:
            os.close(high)
    finally:
        os.close(reading)
        os.close(writing)


# -- identity ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "rank"),
    [
        ({"PMI_RANK": "3", "PMI_SIZE": "4"}, 3),
        ({"PMIX_RANK": "0", "OMPI_COMM_WORLD_RANK": "0"}, 0),
        ({"PALS_RANKID": "17"}, 17),
        ({"SLURM_PROCID": "5"}, 5),
        ({"SLURM_PROCID": "0", "PMI_RANK": "2"}, 2),  # mpiexec inside a batch script
        ({"MPI_LOCALRANKID": "1", "SLURM_LOCALID": "1"}, None),  # ranks within a node only
        ({"PMI_RANK": "-1"}, None),
        ({"PMI_RANK": "x", "PMIX_RANK": "1"}, 1),
        ({}, None),
    ],
)
def test_rank_from_environment(env: dict[str, str], rank: int | None) -> None:
    assert rank_from_environment(env) == rank


def test_launcher_is_described() -> None:
    assert launcher_says({"PMI_RANK": "0", "PMI_SIZE": "3", "HOME": "/"}) == "PMI_RANK=0, PMI_SIZE=3"
    assert "no variable" in launcher_says({})


def test_node_is_described() -> None:
    here = node()
    assert here.cpus
    assert here.cpu_model
    assert here.memory_bytes > 1 << 20


# -- messages ---------------------------------------------------------------------------------------

CODE = FunctionCode("h", "m", "q", "", "", "", None, "3.11")


@pytest.mark.parametrize(
    "message",
    [
        HELLO, messages.Functions((CODE,)), messages.Dispatch((item("a", frame=b"\0" * 10), item("b"))),
        messages.Dispatch(()), messages.Recall(1, None), messages.Cancel((("a", 1),)), messages.Ping(),
        messages.Ending(), messages.Stop(), messages.Results(()),
        messages.Results((ended("a", 1, b"x"), Ended("b", 2, b"", Log("f", 0, 1, "")))),
        messages.Returned(0, (("a", 1),), 2), messages.Beat(3), messages.Failing("why"),
        messages.Able(), messages.Bye(),
    ],
    ids=lambda message: type(message).__name__,
)  # fmt: skip
def test_message_arrives_as_it_was_sent(message: Any) -> None:
    again = messages.decode(bytearray(messages.encode(message)))
    assert again == message
    if isinstance(again, messages.Dispatch):
        assert all(type(one) is Item for one in again.items)
    if isinstance(again, messages.Results):
        assert all(type(one) is Ended for one in again.finished)


def test_message_too_large_for_mpi_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "MESSAGE_BYTES_MAX", 1000)
    with pytest.raises(PoolError, match=r"a Failing message of \d+ bytes is over 1000"):
        messages.encode(messages.Failing("x" * 2000))
