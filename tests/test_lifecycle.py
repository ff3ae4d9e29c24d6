"""Decisions: pure functions, facts in, decision out."""

from __future__ import annotations

import itertools
import math

import hypothesis.strategies as st
import pytest
from hypothesis import given

from pilot import lifecycle
from pilot.errors import IllegalTransition, InvalidInput
from pilot.lifecycle import Backoff, Counters, Verdict, Watch, after_attempt, settle
from pilot.model import LOST_BUDGET, new_token
from pilot.resources import Resources, parse_duration, parse_size
from pilot.states import ALLOWED, ENDED, GOOD, Outcome, State, check_move

# -- after an attempt -------------------------------------------------------------------------------

COUNTERS = st.builds(
    Counters, tried=st.integers(0, 5), lost=st.integers(0, LOST_BUDGET + 1), retries=st.integers(0, 5),
    cancel=st.booleans(),
)  # fmt: skip


@given(st.sampled_from(Outcome), COUNTERS)
def test_every_attempt_leads_somewhere_legal(outcome: Outcome, task: Counters) -> None:
    move = after_attempt(outcome, task)
    check_move(State.LEASED, move.state)
    assert (move.state is State.DONE) == (outcome in GOOD)
    assert (move.reason is not None) == (move.state is State.FAILED)
    assert move.tried - task.tried + move.lost - task.lost <= 1
    if move.state is State.READY:
        assert not task.cancel


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.TIMEOUT, Outcome.CRASHED])
def test_retries_are_spent_one_by_one(outcome: Outcome) -> None:
    task = Counters(0, 3, 2, False)
    for tried in (1, 2):
        move = after_attempt(outcome, task)
        assert move == (State.READY, tried, 3, None)
        task = task._replace(tried=move.tried)
    assert after_attempt(outcome, task) == (State.FAILED, 3, 3, outcome.value)


def test_lost_spends_a_budget_of_its_own() -> None:
    task = Counters(1, 0, 1, False)
    for lost in range(1, LOST_BUDGET + 1):
        move = after_attempt(Outcome.LOST, task)
        assert move == (State.READY, 1, lost, None)
        task = task._replace(lost=move.lost)
    assert after_attempt(Outcome.LOST, task) == (State.FAILED, 1, LOST_BUDGET + 1, "lost")


@pytest.mark.parametrize("outcome", list(Outcome))
def test_a_wish_to_cancel_yields_to_a_success_only(outcome: Outcome) -> None:
    wished = after_attempt(outcome, Counters(0, 0, 9, True)).state
    assert wished is (State.DONE if outcome in GOOD else State.CANCELLED)


# -- waiting for parents ------------------------------------------------------------------------------

PARENTS = st.dictionaries(st.sampled_from("abcdef"), st.sampled_from([*State, None]), max_size=6)


@given(PARENTS, st.sampled_from(["done", "end"]))
def test_what_waits_is_settled_by_its_parents(parents: dict[str, State | None], waits: str) -> None:
    there = {name: state for name, state in parents.items() if state is not None}
    verdict, blame = settle(parents, waits, there)
    enough = ENDED if waits == "end" else {State.DONE}
    bad = {name for name, state in parents.items() if state is None or (state in ENDED and state not in enough)}
    assert (verdict is Verdict.READY) == all(state in enough for state in parents.values())
    assert (verdict in (Verdict.MISSING, Verdict.UPSTREAM)) == bool(bad)
    assert blame in bad or (blame is None and not bad)
    if blame is not None:
        assert (verdict is Verdict.MISSING) == (blame not in there)
    again, still = settle(parents, waits, there, failed_upstream=True)
    assert (again, still) == ((verdict, blame) if bad else (Verdict.WAIT, None))


# -- states -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "new"), list(itertools.product(State, State)))
def test_moves_are_those_of_the_table(old: State, new: State) -> None:
    if (old, new) in ALLOWED:
        check_move(old, new)
        assert old is not State.DONE
        assert old is not new
    else:
        with pytest.raises(IllegalTransition, match=f"{old.value!r} to {new.value!r}"):
            check_move(old, new)


# -- liveness -----------------------------------------------------------------------------------------


def test_a_counter_that_stands_still_for_the_whole_time_is_stale() -> None:
    watch: Watch[str] = Watch(10.0)
    for now in (0.0, 4.0, 8.0, 9.9):
        assert watch.look({"a": 1, "b": int(now)}, now) == []
    assert watch.look({"a": 1, "b": 99}, 10.0) == ["a"]
    assert watch.look({"a": 1, "b": 99}, 14.0) == ["a"]  # and again, until somebody has seen to it
    assert watch.look({"a": 2, "b": 99}, 15.0) == []
    assert watch.look({"a": 2, "b": 99}, 20.0) == ["b"]


def test_a_counter_may_jump_or_go_back() -> None:
    """Only the change counts: it is not a time, and a store restored from yesterday shows yesterday's."""
    watch: Watch[str] = Watch(2.0)
    for now, beat in enumerate((5, 1000, 3, 4, 2, 7)):
        assert watch.look({"a": beat}, float(now)) == []


def test_an_outage_of_the_store_makes_nobody_look_dead() -> None:
    watch: Watch[str] = Watch(10.0)
    assert watch.look({"a": 1}, 0.0) == []
    assert watch.look({"a": 1}, 5.0) == []
    watch.failed()
    assert watch.look({"a": 1}, 10.0) == []  # the first look since
    assert watch.look({"a": 1}, 15.0) == []
    assert watch.look({"a": 1}, 20.0) == ["a"]


def test_an_observer_that_was_stopped_has_not_watched() -> None:
    """After a suspended job wakes, observer and observed, no heartbeat has had its chance yet."""
    watch: Watch[str] = Watch(10.0)
    assert watch.look({"a": 1}, 0.0) == []
    assert watch.look({"a": 1}, 4.0) == []
    assert watch.look({"a": 1}, 5000.0) == []
    assert watch.look({"a": 1}, 5005.0) == []
    assert watch.look({"a": 1}, 5010.0) == ["a"]


def test_who_is_gone_and_comes_back_is_new() -> None:
    watch: Watch[str] = Watch(4.0)
    assert watch.look({"a": 1}, 0.0) == []
    assert watch.look({}, 2.0) == []
    assert watch.look({"a": 1}, 4.0) == []
    assert watch.look({"a": 1}, 6.0) == []
    assert watch.look({"a": 1}, 8.0) == ["a"]


@given(st.lists(st.tuples(st.floats(0.1, 30.0), st.booleans(), st.booleans()), max_size=40), st.floats(-1e6, 1e6))
def test_nobody_is_stale_who_beat_within_the_time_to_live(looks: list[tuple[float, bool, bool]], start: float) -> None:
    """Whatever the intervals between looks, their failures, and the offset of the observer's clock."""
    watch: Watch[str] = Watch(10.0)
    now, beat, unchanged_since = start, 0, math.inf
    for pause, beats, fails in looks:
        now += pause
        if beats:
            beat += 1
        if fails:
            watch.failed()
            unchanged_since = math.inf
            continue
        if beats or unchanged_since == math.inf:
            unchanged_since = now
        stale = watch.look({"a": beat}, now)
        if stale:
            assert now - unchanged_since >= 10.0 - 1e-6


# -- pace -------------------------------------------------------------------------------------------


def test_back_off_goes_on_step_by_step_and_then_gives_up() -> None:
    backoff = Backoff((0.0, 1.0, 5.0))
    assert [backoff.next() for _ in range(5)] == [0.0, 1.0, 5.0, None, None]
    backoff.reset()
    assert backoff.next() == 0.0
    assert Backoff(()).next() is None


@given(st.integers(1, 10_000), st.none() | st.floats(0, 1e6))
def test_a_pool_holds_a_second_of_work_and_one_per_slot(slots: int, mean_s: float | None) -> None:
    target = lifecycle.lease_target(slots, mean_s)
    assert slots < target <= max(lifecycle.AHEAD_MAX, 8 * slots)
    if mean_s is not None and mean_s <= 1.0:
        assert target >= 2 * slots
    if mean_s is not None and mean_s > slots:
        assert target == slots + 1


def test_what_runs_for_long_tells_how_long_tasks_take() -> None:
    assert lifecycle.expected_s(None, 0.5) is None
    assert lifecycle.expected_s(None, 5.0) == 5.0
    assert lifecycle.expected_s(0.001, 0.5) == 0.001
    assert lifecycle.expected_s(0.001, 60.0) == 60.0
    assert lifecycle.expected_s(600.0, 60.0) == 600.0


@given(st.integers(1, 10_000), st.integers(0, 20_000))
def test_no_pool_takes_and_gives_back_at_once(target: int, there: int) -> None:
    less = lifecycle.lease_less(target, there)
    assert less in (0, there - target)
    assert not (less and lifecycle.lease_more(target, there - less))


@given(st.integers(1, 10_000), st.integers(0, 20_000))
def test_leases_are_few_and_large(target: int, there: int) -> None:
    more = lifecycle.lease_more(target, there)
    assert more in (0, target - there)
    assert more >= 0
    if there == 0:
        assert more == target
    if more:
        assert more >= target / 4 - 1


@given(st.none() | st.floats(0, 1e6))
def test_a_slot_has_one_in_reserve_unless_tasks_take_long(mean_s: float | None) -> None:
    long = mean_s is not None and mean_s > lifecycle.LONG_S
    assert 1 if long else 2 <= lifecycle.prefetch_target(mean_s) <= lifecycle.PREFETCH_MAX


def test_the_end_of_a_pilot() -> None:
    assert lifecycle.drain_at(None, 30.0) is None
    assert lifecycle.drain_at(1000.0, 30.0) == 970.0
    assert lifecycle.fits_before(None, 999.0, 1000.0)
    assert lifecycle.fits_before(5e9, 0.0, None)
    assert lifecycle.fits_before(10.0, 990.0, 1000.0)
    assert not lifecycle.fits_before(10.1, 990.0, 1000.0)


# -- durations, sizes, resources ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (90, 90), (0.5, 0.5), ("90", 90), ("90s", 90), ("5m", 300), ("5 min", 300), ("1h30m", 5400), ("1H 30M", 5400),
        ("2d", 172800), ("1.5h", 5400), ("00:10", 10), ("10:00", 600), ("01:00:00", 3600), ("1-00:00:00", 86400),
        ("2-12:30", 2 * 86400 + 12 * 3600 + 30 * 60), (" 7m ", 420),
    ],
)  # fmt: skip
def test_durations(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    ["", "  ", "0", 0, -1, "-5m", "5x", "m", "1:2", "1h-5m", "abc", None, True, math.nan, math.inf, [], "1..5h", "5m!"],
)
def test_what_is_no_duration(text: object) -> None:
    with pytest.raises(InvalidInput, match=r"^walltime .* is not a duration above zero; write"):
        parse_duration(text, "walltime")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (1, 1), ("512", 512), ("512b", 512), ("1k", 1024), ("512M", 512 << 20), ("2G", 2 << 30), ("2GiB", 2 << 30),
        ("2GB", 2 << 30), ("1.5g", 3 << 29), ("1 T", 1 << 40),
    ],
)  # fmt: skip
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", 0, -1, "-1G", "1X", "G", "1.G", None, True, 1.5, "0.5", "0.1b"])
def test_what_is_no_size(text: object) -> None:
    with pytest.raises(InvalidInput, match=r"^memory .* is not a size above zero; write"):
        parse_size(text)  # type: ignore[arg-type]


@given(
    st.integers(1, 10_000),
    st.none() | st.integers(1, 1 << 60),
    st.none() | st.floats(1e-9, 1e12) | st.integers(1, 10**9),
)
def test_a_class_is_named_and_read_back(cores: int, memory: int | None, walltime: float | None) -> None:
    """Two weeks of walltime once became ``w1.2096e+06``, which no pool could read."""
    asked = Resources(cores, memory, walltime)
    read = Resources.from_key(asked.key)
    assert (read.cores, read.memory_bytes) == (cores, memory)
    if walltime is None:
        assert read.walltime_s is None
    else:
        assert read.walltime_s == pytest.approx(walltime, rel=1e-9, abs=1.001e-3)
    assert read.key == asked.key
    assert asked.key.isascii()
    assert " " not in asked.key


@pytest.mark.parametrize("key", ["", "c", "c0x", "m5", "c1w", "c1w5m5", "c-1", "C1", "c1 "])
def test_what_names_no_class(key: str) -> None:
    with pytest.raises(InvalidInput):
        Resources.from_key(key)


@pytest.mark.parametrize("bad", [{"cores": 0}, {"cores": -1}, {"cores": 1.5}, {"cores": True}, {"cores": "2"}])
def test_cores_are_whole_and_positive(bad: dict[str, int]) -> None:
    with pytest.raises(InvalidInput, match="cores"):
        Resources(**bad)


def test_resources_as_a_user_writes_them() -> None:
    asked = Resources.of(2, memory="2G", walltime="5m")
    assert asked == Resources(2, 2 << 30, 300.0)
    assert asked.key == f"c2m{2 << 30}w300"
    assert Resources.of().key == "c1"


def test_tokens_are_not_repeated() -> None:
    tokens = {new_token() for _ in range(1000)}
    assert len(tokens) == 1000
    assert all(len(token) == 10 and token.isalnum() and token.islower() for token in tokens if not token.isdigit())
