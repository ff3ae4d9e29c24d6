"""The pure parts of MPI functions: rank 0's books, which communicators are kept, and the merging of parts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot.errors import PoolError
from pilot.executors.pool import messages
from pilot.executors.pool.communicators import Groups, exhausted
from pilot.executors.pool.ledger import Finished, Joined, Ledger, Lost, Quarantined
from pilot.executors.pool.messages import Begin, Free, Part
from pilot.executors.pool.together import Limits, Together
from pilot.executors.pool.watch import CANCELLED, WITH_OTHERS
from pilot.executors.run import parts
from pilot.executors.run.verdict import Item
from pilot.executors.run.wire import pack_result
from pilot.model import Blob, Failure, Log, Result, Usage
from pilot.states import Outcome

NODE = messages.Node((0, 1), "cpu", 1 << 30, "6.1")
LIMITS = Limits(grace_s=2.0, deadline_s=10.0, functions_max=1000)


class Books:
    """A ledger and what is together in it, with all slots up."""

    def __init__(self, slots: int = 4) -> None:
        self.ledger = Ledger(range(1, slots + 1), 30.0, 0.0)
        for rank in self.ledger.slots:
            self.ledger.take(rank, messages.Hello("node0", rank, NODE, "MPI", (4, 1), slots + 1))
        self.together = Together(self.ledger, LIMITS)

    def begin(self, task: str, *members: int, now: float = 0.0, walltime_s: float | None = None) -> list[Any]:
        item = Item(task, 1, "f", walltime_s, False, b"")
        return self.together.begin(item, members, now, 1000.0 + now)

    def part(self, task: str, index: int, slot: int, now: float = 1.0, **changes: Any) -> list[Any]:
        worn = changes.pop("worn", "")
        body = pack_result(result(index, task=task, **changes))
        return self.together.take(slot, Part((task, 1), index, body, None, worn), now)

    def look(self, now: float) -> list[Any]:
        return list(self.together.look(now))

    def able(self) -> list[int]:
        return [rank for rank, slot in self.ledger.slots.items() if slot.able]


def result(rank: int, outcome: Outcome = Outcome.SUCCEEDED, why: str = "", **changes: Any) -> Result:
    failure = None
    if outcome is not Outcome.SUCCEEDED:
        failure = Failure(changes.pop("type", "ValueError"), why, changes.pop("traceback", ""), rank, f"n{rank}")
    one = Result("t", 1, outcome, (), failure, None, 10.0, 20.0, Usage(10, 1, 100 + rank), rank + 1, f"n{rank}")
    return one._replace(**changes)


# -- rank 0's books -----------------------------------------------------------------------------------


def test_members_hold_the_function_until_all_have_come_back() -> None:
    books = Books()
    [(to, order)] = books.begin("t", 3, 1)
    assert to == (3, 1)
    assert isinstance(order, Begin)
    assert (order.members, order.new, order.free) == ((3, 1), True, ())
    assert books.ledger.total == 1
    assert list(books.ledger.slots[1].in_hand) == list(books.ledger.slots[3].in_hand) == [("t", 1)]
    assert books.able() == [2, 4]
    assert books.part("t", 1, 1) == []
    assert books.able() == [2, 4]
    [finished] = books.part("t", 0, 3)
    assert isinstance(finished, Finished)
    assert finished.slot == 3
    assert [(one.task, one.result().outcome) for one in finished.results] == [("t", Outcome.SUCCEEDED)]
    assert books.able() == [1, 2, 3, 4]
    assert books.ledger.total == 0
    assert books.part("t", 0, 3) == []


def test_members_must_be_distinct_and_hold_nothing() -> None:
    books = Books()
    books.ledger.dispatched(2, [Item("narrow", 1, None, None, False, b"")], 0.0)
    books.begin("t", 1)
    for members, why in (
        ((1, 3), "in MPI function t"), ((2, 3), "1 attempts in hand"), ((3, 3), "not distinct"), ((), "not distinct"),
    ):  # fmt: skip
        with pytest.raises(PoolError, match=why):
            books.begin("u", *members)
    with pytest.raises(PoolError, match="takes no work: in MPI function t"):
        books.ledger.dispatched(1, [Item("n", 1, None, None, False, b"")], 0.0)
    assert books.able() == [2, 3, 4]
    assert books.ledger.total == 2


def test_communicator_of_what_ended_well_is_freed_by_all_before_any_begins_again() -> None:
    books = Books()
    books.begin("a", 1, 2)
    books.part("a", 0, 1)
    books.part("a", 1, 2)
    [(_, again)] = books.begin("b", 1, 2)
    assert (again.number, again.group, again.new, again.free) == (2, 1, False, (1,))
    books.part("b", 0, 1)
    books.part("b", 1, 2)
    first, (to, order) = books.begin("c", 2, 3)
    assert first == ((1, 2), Free((), (2,)))
    assert (to, order.new, order.free) == ((2, 3), True, ())
    books.part("c", 0, 2)
    books.part("c", 1, 3, outcome=Outcome.FAILED)
    assert [to for to, _ in books.begin("d", 2, 3)] == [(2, 3)]  # that of a failure is never freed


def test_failure_nudges_the_others_and_then_gives_them_up() -> None:
    books = Books()
    books.begin("t", 1, 2, 3)
    books.part("t", 1, 2, now=5.0, outcome=Outcome.FAILED, why="no", traceback="Traceback: no\n")
    assert list(books.together.nudges(6.9)) == []
    assert list(books.together.nudges(7.0)) == [(1, WITH_OTHERS, ("t", 1)), (3, WITH_OTHERS, ("t", 1))]
    assert list(books.together.nudges(8.9)) == []
    assert len(list(books.together.nudges(9.0))) == 2
    assert books.part("t", 2, 3, now=9.5, outcome=Outcome.FAILED, type=parts.WITH_OTHERS) == []
    assert books.look(14.9) == []
    finished, quarantined = books.look(15.0)
    ended = finished.results[0].result()
    assert (ended.outcome, ended.failure.type) == (Outcome.FAILED, "ValueError")
    assert ended.failure.message == "rank 1 of 3 on n1: no"
    assert "did not come back within 10 s of the failure of another rank" in ended.failure.traceback
    assert isinstance(quarantined, Quarantined)
    assert quarantined.slots == (1,)
    assert books.able() == [2, 3, 4]
    assert books.ledger.slots[1].stuck
    assert books.together.recycle == "1 of 4 slots are in quarantine"
    assert books.part("t", 0, 1, now=60.0) == [Joined(1)]
    assert books.able() == [1, 2, 3, 4]
    assert books.together.recycle == ""


def test_cancel_nudges_at_once() -> None:
    books = Books()
    books.begin("t", 1, 2)
    assert not books.together.cancel(("u", 1), 3.0)
    assert books.together.cancel(("t", 1), 3.0)
    assert list(books.together.nudges(3.0)) == [(1, CANCELLED, ("t", 1)), (2, CANCELLED, ("t", 1))]
    finished, quarantined = books.look(13.0)
    assert finished.results[0].result().outcome is Outcome.CANCELLED
    assert quarantined.slots == (1, 2)


def test_walltime_that_nobody_obeys_ends_the_function() -> None:
    books = Books()
    books.begin("t", 1, 2, now=1.0, walltime_s=5.0)
    assert list(books.together.nudges(7.0)) == []  # the ranks watch it themselves
    assert books.look(15.9) == []
    finished, _ = books.look(16.0)
    ended = finished.results[0].result()
    assert ended.outcome is Outcome.TIMEOUT
    assert ended.usage.wall_s == pytest.approx(15.0)


def test_worn_ranks_take_no_more_work_and_the_pool_wants_an_end() -> None:
    books = Books(20)
    books.begin("t", 1, 2)
    books.part("t", 0, 1, outcome=Outcome.LOST, worn="no communicators")
    finished, quarantined = books.part("t", 1, 2)
    assert finished.results[0].result().outcome is Outcome.LOST
    assert quarantined == Quarantined((1,), "no communicators")
    assert 1 not in books.able()
    assert not books.ledger.slots[1].stuck
    assert books.together.recycle == "slot 1 is worn: no communicators"


def test_busy_slot_is_not_silent_and_a_lost_one_loses_the_function_once() -> None:
    books = Books()
    books.begin("t", 1, 2, 3)
    lost = [one.slot for now in range(0, 61) for one in books.ledger.look(float(now))]
    assert lost == [4]
    books.part("t", 2, 3)
    events: list[Any] = books.together.lose(books.ledger.lose(1, "it did not stop"))
    assert events[0] == Lost(1, [("t", 1)], "it did not stop")
    assert [event.slots for event in events[1:]] == [(1, 2)]
    assert books.ledger.total == 0
    assert books.able() == [3]
    assert books.part("t", 1, 2) == [Joined(2)]


@given(st.lists(st.sets(st.integers(1, 6), min_size=1), max_size=60), st.integers(1, 4))
def test_groups_are_freed_by_all_their_members_and_only_while_idle(sets: list[set[int]], most: int) -> None:
    groups = Groups(most)
    there: dict[int, tuple[int, ...]] = {}
    for number, members in enumerate(map(tuple, map(sorted, sets)), 1):
        group, new = groups.use(members, number)
        assert new == (group not in there)
        assert there.setdefault(group, members) == members
        for idle, name in groups.surplus({members[0]}):
            assert members[0] not in idle
            assert there.pop(name) == idle
        assert len(groups) == len(there)
        assert len(groups) <= most + 6 * 6


def test_other_errors_do_not_mean_that_mpi_is_exhausted() -> None:
    assert not exhausted(None)
    assert not exhausted(ValueError("0 free on this process"))


# -- merging ------------------------------------------------------------------------------------------


def test_merge_of_successes() -> None:
    one = result(0, started=5.0, outputs=(("result", Blob("h", 1, b"x")),), usage=Usage(3, 1.5, 10))
    two = result(1, finished=99.0, usage=Usage(4, 2.5, 30))
    whole = parts.merge({1: two, 0: one}, 2, "")
    assert whole.outcome is Outcome.SUCCEEDED
    assert whole.outputs == one.outputs
    assert (whole.started, whole.finished, whole.usage) == (5.0, 99.0, Usage(4, 4.0, 30))
    assert (whole.rank, whole.host, whole.failure) == (1, "n0", None)


def test_output_names() -> None:
    assert [parts.output_name(rank, False) for rank in range(3)] == ["result", None, None]
    assert [parts.output_name(rank, True) for rank in range(3)] == ["result[0]", "result[1]", "result[2]"]


def test_merge_says_which_ranks_failed_and_equal_failures_once() -> None:
    bad = {
        rank: result(rank, Outcome.FAILED, "no", traceback="Traceback\n", finished=50.0 - rank, exit_code=rank)
        for rank in (0, 1, 2, 5)
    }
    whole = parts.merge({**bad, 3: result(3), 4: result(4)}, 6, "")
    assert whole.failure is not None
    assert whole.failure.rank == 5  # the first to fail
    assert whole.exit_code == 5
    assert whole.failure.traceback == "ranks 0-2, 5 of 6, on n0, n1, n2, n5:\nTraceback\n"
    assert whole.outputs == ()


@pytest.mark.parametrize(
    ("outcomes", "whole"),
    [
        ([Outcome.FAILED, Outcome.LOST], Outcome.LOST),
        ([Outcome.FAILED, Outcome.CANCELLED], Outcome.CANCELLED),
        ([Outcome.TIMEOUT, Outcome.FAILED], Outcome.TIMEOUT),
        ([Outcome.FAILED, Outcome.TIMEOUT], Outcome.FAILED),
        ([Outcome.SUCCEEDED, Outcome.TIMEOUT], Outcome.TIMEOUT),
    ],
)
def test_merge_takes_the_cause_for_the_outcome(outcomes: list[Outcome], whole: Outcome) -> None:
    found = {rank: result(rank, outcome, finished=20.0 + rank) for rank, outcome in enumerate(outcomes)}
    assert parts.merge(found, 2, "").outcome is whole


def test_merge_with_others_is_no_cause() -> None:
    found = {
        0: result(0, Outcome.FAILED, "ended", type=parts.WITH_OTHERS, finished=1.0),
        1: result(1, Outcome.FAILED, "real", finished=2.0),
    }
    failure = parts.merge(found, 2, "").failure
    assert failure is not None
    assert failure.message == "rank 1 of 2 on n1: real"
    assert failure.traceback.index("rank 1") < failure.traceback.index("rank 0")


def test_merge_without_some_or_all_parts_is_a_crash() -> None:
    whole = parts.merge({1: result(1, Outcome.FAILED, "lost touch", traceback="T\n")}, 3, "signal 11 in rank 0")
    assert whole.outcome is Outcome.CRASHED
    assert whole.failure is not None
    assert whole.failure.message == "ranks 0, 2 of 3 ended without a result: signal 11 in rank 0"
    assert "rank 1 of 3, on n1:\nT" in whole.failure.traceback
    assert parts.merge({}, 3, "nothing").outcome is Outcome.CRASHED


def test_merge_clips_what_thousands_say() -> None:
    found = {rank: result(rank, Outcome.FAILED, "x", traceback=f"{rank}\n" * 10_000) for rank in range(300)}
    failure = parts.merge(found, 300, "").failure
    assert failure is not None
    assert len(failure.traceback) < 70_000


def test_merge_of_logs() -> None:
    mine, other = Log("f0", 0, 5, "zero\n"), Log("f1", 7, 4, "one\n")
    assert parts.merge({0: result(0, log=mine), 1: result(1, log=other)}, 2, "").log == mine
    assert parts.merge({0: result(0), 1: result(1, log=other)}, 2, "").log == Log("f1", 7, 4, "[rank 1] one\n")
    assert parts.merge({0: result(0), 1: result(1)}, 2, "").log is None
