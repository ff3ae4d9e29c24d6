"""How many pilots a scaler asks for, and of which shape. Pure: no store, no batch system."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot.scaling import (
    AT_ONCE,
    DEATHS,
    EARLY_S,
    MARGIN_S,
    REFUSALS,
    Decision,
    Ending,
    Facts,
    Machine,
    Past,
    Seen,
    Wanted,
    Wishes,
    deaths,
    decide,
    past,
    refusals,
    usable,
)
from pilot.sites import Queue
from pilot.states import PilotState

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR = 3600.0
MACHINE = Machine(Queue(), slots=4)


def limited(**limits: Any) -> Machine:
    return MACHINE._replace(queue=Queue.model_validate(limits))


def seen(nodes: int = 1, left_s: float = HOUR, machine: Machine = MACHINE, **fields: Any) -> Seen:
    return Seen(machine.layouts(nodes), left_s, **fields)


def queued(wanted: Wanted, machine: Machine = MACHINE) -> Seen:
    return seen(wanted.nodes, usable(wanted.walltime_s), machine, queued=True)


def ended(ago_s: float, ending: Ending, words: str = "x") -> Past:
    at = NOW - timedelta(seconds=ago_s)
    return Past(at - timedelta(seconds=60), ending, at, words)


def ask(
    ready: dict[str, int], *pilots: Seen, wishes: Wishes | None = None, machine: Machine = MACHINE, **facts: Any
) -> Decision:
    return decide(Facts(ready, pilots, **facts), wishes or Wishes(), machine, NOW)


# -- how many -------------------------------------------------------------------------------------

UP = [seen() for _ in range(5)]
"""Enough of them that a round may ask for several."""


def test_without_work_nothing_is_asked_for() -> None:
    assert ask({}) == Decision((), "nothing waits")


def test_as_long_as_no_pilot_is_up_one_is_asked_for() -> None:
    found = ask({"c1": 100_000})
    assert found.wanted == (Wanted(1, HOUR),)
    assert found.why == "100,000 tasks wait; a round asks for 1 at most"


def test_with_pilots_up_a_few() -> None:
    assert len(ask({"c1": 100_000}, *UP[:2]).wanted) == 2
    assert len(ask({"c1": 100_000}, *UP).wanted) == AT_ONCE


@pytest.mark.parametrize(
    ("ready", "wanted"),
    [
        ({"c1w60": 4 * 57}, 1),  # four slots, 57 minutes
        ({"c1w60": 4 * 57 + 1}, 2),
        ({"c1w1800": 4}, 1),
        ({"c1w1800": 5}, 2),  # two would need an hour, and a pilot has 57 minutes
        ({"c1w1800r4": 2}, 2),
        ({"c2w600": 10}, 1),
        ({"c2w600": 11}, 2),
        ({"c1w600": 2, "c2w600": 9}, 1),  # one class takes what another leaves
    ],
)
def test_as_many_as_have_work_for_their_walltime(ready: dict[str, int], wanted: int) -> None:
    full = [seen(held=10**6) for _ in range(AT_ONCE)]
    assert len(ask(ready, *full).wanted) == wanted


def test_what_is_up_or_in_the_queue_takes_its_share() -> None:
    assert ask({"c1w60": 100}, seen()) == Decision((), "what is up or in the queue is enough for what waits")
    assert not ask({"c1w60": 100}, seen(queued=True)).wanted
    assert not ask({"c1w60": 100}, seen(ours=False, here=False)).wanted
    assert ask({"c1w60": 100}, seen(able=False)).wanted
    assert ask({"c1w60": 100}, seen(left_s=300.0)).wanted
    assert ask({"c1w600": 1}, seen(left_s=599.0)).wanted
    assert ask({"c1w60": 100}, seen(held=4 * 60)).wanted


def test_a_pilot_without_an_end_does_not_do_for_everything() -> None:
    assert not ask({"c1w60": 100}, seen(left_s=float("inf"))).wanted
    assert ask({"c1w60": 1000}, seen(left_s=float("inf"))).wanted
    assert not ask({"c1w36000": 4}, seen(left_s=float("inf"))).wanted


def test_tasks_without_a_walltime_last_as_long_as_others_did_lately() -> None:
    assert not ask({"c1": 200}, seen()).wanted
    assert ask({"c1": 200}, seen(), mean_s=600.0).wanted
    assert not ask({"c1": 20_000}, seen(), mean_s=0.5).wanted
    assert len(ask({"c1": 5}, mean_s=2 * HOUR).wanted) == 1  # a guess: they begin in any case


def test_so_many_are_there_even_if_nothing_waits() -> None:
    found = ask({}, seen(), wishes=Wishes(min=2))
    assert found == Decision((Wanted(1, HOUR, stays=True),), "2 are to be there (--min)")
    assert not ask({}, seen(), seen(queued=True), wishes=Wishes(min=2)).wanted
    assert ask({}, seen(ours=False), wishes=Wishes(min=1)).wanted


# -- caps -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wishes", "limits", "why"),
    [
        (Wishes(max=5), {}, "the cap of 5 (--max) is reached"),
        (Wishes(total=6), {}, "the cap of 6 over all sites (--total) is reached"),
        (Wishes(), {"max_queued": 6}, "the queue takes 6 jobs (max_queued)"),
    ],
)
def test_caps(wishes: Wishes, limits: dict[str, int], why: str) -> None:
    other = seen(here=False)
    theirs = seen(ours=False)
    found = ask({"c1": 100_000}, *UP, other, theirs, wishes=wishes, machine=limited(**limits))
    assert found.wanted == ()
    assert found.why.endswith(f"tasks wait for more pilots; {why}")


# -- shapes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "wanted"),
    [
        ("c1", Wanted(1, HOUR)),
        ("c4", Wanted(1, HOUR)),
        ("c1r5", Wanted(2, HOUR)),
        ("c2r3", Wanted(2, HOUR)),
        ("c1r4near", Wanted(1, HOUR)),
        ("c1r3p1", Wanted(3, HOUR)),
        ("c1r8n4", Wanted(4, HOUR)),
        ("c1w7200", Wanted(1, 7200 + MARGIN_S)),
    ],
)
def test_a_pilot_is_as_large_and_as_long_as_a_task_needs(key: str, wanted: Wanted) -> None:
    assert ask({key: 1}).wanted == (wanted,)


@pytest.mark.parametrize(
    ("key", "limits", "why"),
    [
        ("c5", {}, "needs 5 slots on one node, the largest node here has 4"),
        ("c1r5near", {}, "needs room for 5 ranks on one node, the best node here has it for 4"),
        ("c1g1", {}, "needs 1 GPUs on one node, the largest node here has 0"),
        ("c1r300", {}, "it takes a pool of 75 nodes, here they have at most 64 (block_nodes)"),
        ("c1r9", {"max_nodes": 2}, "it takes a pilot of 3 nodes, here they have at most 2"),
        ("c1w7200", {"max_walltime": "2h"}, "it needs a walltime of 120 min, a pilot here has at most 120 min"),
    ],
)
def test_what_no_pilot_can_run_is_named_and_no_reason_to_ask(key: str, limits: dict[str, Any], why: str) -> None:
    found = ask({key: 3}, machine=limited(**limits))
    assert found == Decision((), "no pilot of this site could run what waits", {key: why})
    assert len(ask({key: 3, "c1": 1}, machine=limited(**limits)).wanted) == 1


def test_memory_is_the_slot_s() -> None:
    small = MACHINE._replace(slot_memory=1 << 30)
    assert ask({f"c1m{1 << 30}r8": 1}, machine=small).wanted == (Wanted(2, HOUR),)
    assert ask({f"c1m{5 << 30}": 1}, machine=small).never


def test_gpus() -> None:
    assert ask({"c1r4g1": 1}, machine=MACHINE._replace(gpus=2)).wanted == (Wanted(2, HOUR),)


def test_programs_where_they_do_not_start_beside_a_pool() -> None:
    apart = MACHINE._replace(share=False)
    found = ask({"c1r4x": 1, "c1r4": 1}, machine=apart)
    assert found.wanted == (Wanted(1, HOUR),)
    assert found.never["c1r4x"].startswith("needs program nodes, here are none; this site starts MPI programs on nodes")


def test_the_queue_s_walltimes() -> None:
    assert ask({"c1": 1}, machine=limited(max_walltime="30m")).wanted == (Wanted(1, 1800),)
    assert ask({"c1": 1}, machine=limited(min_walltime="2h")).wanted == (Wanted(1, 7200),)
    assert ask({"c1": 1}, machine=limited(min_nodes=3)).wanted == (Wanted(3, HOUR),)


def test_more_nodes_where_they_are_given_longer() -> None:
    sizes = [{"max_nodes": 9, "max_walltime": "2h"}, {"max_nodes": 99, "max_walltime": "6h"}]
    assert ask({"c1w10800": 1}, machine=limited(sizes=sizes)).wanted == (Wanted(10, 10800 + MARGIN_S),)


@pytest.mark.parametrize(("count", "nodes"), [(1, 2), (4 * 57 * 2, 2), (4 * 57 * 5, 5), (10**6, 8)])
def test_as_many_nodes_as_what_waits_would_fill(count: int, nodes: int) -> None:
    assert ask({"c1w60": count}, wishes=Wishes(nodes=(2, 8))).wanted == (Wanted(nodes, HOUR),)


# -- doubts and failures --------------------------------------------------------------------------


def test_in_doubt_nothing_is_asked_for() -> None:
    found = ask({"c1": 1}, unknown="PBS does not answer", wishes=Wishes(min=3))
    assert found == Decision((), "nothing is asked for: PBS does not answer")


def test_a_refusal_is_backed_off_from_twice_as_long_each_time() -> None:
    one, two = ended(59, Ending.REFUSED, "Unknown queue"), ended(600, Ending.REFUSED)
    assert not ask({"c1": 1}, pasts=[one]).wanted
    assert "backing off until" in (why := ask({"c1": 1}, pasts=[one]).why)
    assert why.endswith("after: Unknown queue")
    later = one._replace(ended=NOW - timedelta(seconds=61))
    assert ask({"c1": 1}, pasts=[later]).wanted
    assert not ask({"c1": 1}, pasts=[later, two]).wanted
    assert ask({"c1": 1}, pasts=[later, ended(90, Ending.NONE), two]).wanted  # one was taken between them


def test_refusals_and_early_deaths_are_counted_apart_and_pause() -> None:
    mixed = [ended(600.0 * n, ending) for n in range(1, 4) for ending in (Ending.DIED, Ending.REFUSED)]
    mixed += [ended(601.0, Ending.WELL)]
    assert len(deaths(mixed)) == 1
    assert len(refusals([ended(9000.0 * n, Ending.REFUSED) for n in range(1, 5)])) == REFUSALS - 1
    refused = [ended(9000.0 * n, Ending.REFUSED, f"no {n}") for n in range(1, REFUSALS + 1)]
    assert ask({}, pasts=refused).pause == "5 submissions in a row were refused, the last one: no 1"
    died = [ended(90.0 * n, Ending.DIED, f"no {n}") for n in range(1, DEATHS + 1)]
    assert ask({}, pasts=died).why == "paused: 3 pilots in a row died early, the last one: no 1"
    assert ask({"c1": 1}, paused="so it was").why == "paused: so it was"


ENDED, LOST = PilotState.ENDED, PilotState.LOST


@pytest.mark.parametrize(
    ("state", "lasted_s", "failed", "finished", "ending"),
    [
        (PilotState.RUNNING, 9.0, False, 0, Ending.NONE),  # though it was lost before
        (ENDED, None, False, 0, Ending.NONE),  # taken back from the queue
        (ENDED, None, True, 0, Ending.REFUSED),
        (LOST, None, False, 0, Ending.DIED),
        (LOST, EARLY_S - 1, False, 0, Ending.DIED),
        (LOST, EARLY_S - 1, False, 1, Ending.WELL),
        (LOST, EARLY_S + 1, False, 0, Ending.WELL),
        (ENDED, EARLY_S + 1, True, 0, Ending.DIED),
        (ENDED, 9.0, False, 0, Ending.WELL),  # it had no work
    ],
)
def test_what_an_end_says(
    state: PilotState, lasted_s: float | None, failed: bool, finished: int, ending: Ending
) -> None:
    doc: dict[str, Any] = {"state": state.value, "created": NOW, "ended": NOW, "failed": failed}
    if lasted_s is not None:
        doc["started"] = NOW - timedelta(seconds=lasted_s)
    assert past(doc, finished).ending is ending


# -- in general -----------------------------------------------------------------------------------

KEYS = st.sampled_from(["c1", "c1w60", "c3w5000", "c1r6", "c1w900r8n4", "c9", "c1g1", "c1w90000"])
WISHES = st.builds(
    Wishes,
    st.integers(0, 4),
    st.integers(0, 12),
    st.none() | st.integers(0, 12),
    st.sampled_from([(1, None), (1, 1), (2, 5)]),
    st.sampled_from([600.0, HOUR, 9 * HOUR]),
)
MACHINES = st.sampled_from([MACHINE, limited(max_nodes=3, max_walltime="5h"), limited(max_queued=3)])


@given(st.dictionaries(KEYS, st.integers(1, 10**6)), WISHES, MACHINES, st.floats(0.001, 1e5) | st.none())
def test_caps_hold_and_asking_comes_to_an_end(
    ready: dict[str, int], wishes: Wishes, machine: Machine, mean_s: float | None
) -> None:
    """Nothing ever starts, and nothing is ever done: what is in the queue has to keep us from asking on."""
    pilots: list[Seen] = []
    for _ in range(wishes.max + 1):
        found = ask(ready, *pilots, wishes=wishes, machine=machine, mean_s=mean_s)
        assert len(found.wanted) <= 1
        pilots += [queued(one, machine) for one in found.wanted]
        if not found.wanted:
            break
    assert not found.wanted
    assert len(pilots) <= min(wishes.max, 12 if wishes.total is None else wishes.total, machine.queue.max_queued or 12)
    assert all(one.nodes >= wishes.nodes[0] for one in found.wanted)


@given(st.integers(0, 400), st.integers(1, 10), st.integers(0, 3))
def test_pilots_that_die_early_are_not_replaced_for_ever(lives_s: int, most: int, least: int) -> None:
    wishes, moment = Wishes(min(least, most), most), NOW
    live: list[tuple[datetime, Wanted]] = []
    pasts: list[Past] = []
    asked, paused = 0, ""
    for _ in range(200):
        for one in [one for one in live if moment >= one[0] + timedelta(seconds=lives_s)]:
            live.remove(one)
            pasts.append(Past(one[0], Ending.DIED, moment, "no such module"))
        facts = Facts({"c1": 10**6}, [seen() for _ in live], pasts, paused=paused)
        found = decide(facts, wishes, MACHINE, moment)
        paused = found.pause
        assert not (paused and found.wanted)
        live += [(moment, one) for one in found.wanted]
        asked += len(found.wanted)
        moment += timedelta(seconds=30)
    assert paused.endswith("pilots in a row died early, the last one: no such module")
    assert asked <= most + DEATHS
