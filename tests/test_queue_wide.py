"""Wide joins, wide fans, deep chains and layers: right in the end, and cheap on the way."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator

import pytest

from pilot.model import INLINE_DOCUMENT_BYTES, PENDING_MAX
from pilot.states import Outcome
from pilot.store import dependants
from pilot.store.mongo import Store
from tests import queue_rig as rig
from tests.queue_rig import Commands, task

WIDE = 100_000
BATCH = 5000


@pytest.fixture
def counted(raced: tuple[Store, Commands]) -> Iterator[tuple[Store, Commands]]:
    """Return a store that counts its commands; no document of it may be large at the end."""
    store, _ = raced
    yield raced
    sizes = [{"$project": {"size": {"$bsonSize": "$$ROOT"}}}, {"$sort": {"size": -1}}, {"$limit": 1}]
    for largest in store.tasks.aggregate(sizes):
        assert largest["size"] <= INLINE_DOCUMENT_BYTES, largest["_id"]


def tally(store: Store) -> dict[str, int]:
    """Return how many tasks are in each state; joins count as ``join-…``, those that failed as their reason."""
    kind = {"$cond": [{"$eq": ["$kind", "join"]}, "join-", ""]}
    what = {"$concat": [kind, {"$ifNull": ["$reason", "$state"]}]}
    return {group["_id"]: group["n"] for group in store.tasks.aggregate([{"$group": {"_id": what, "n": {"$sum": 1}}}])}


def drain(store: Store, token: str, outcome: Outcome = Outcome.SUCCEEDED) -> Counter[str]:
    """Lease and commit all that is ready, in batches; return how often each task was leased."""
    seen: Counter[str] = Counter()
    while held := rig.lease(store, token, BATCH):
        seen.update(held.keys())
        rig.end_all(store, token, held, outcome)
    return seen


def submit_diamond(store: Store, commands: Commands, width: int) -> None:
    """Submit p, its many children, j that joins them, and what comes after it."""
    names = [f"t{n}" for n in range(width)]
    with commands.at_most(0.02 * width, "submitting a fan"):
        rig.submit(store, task("p"))
        for start in range(0, width, BATCH):
            rig.submit(store, *(task(name, "p") for name in names[start : start + BATCH]))
    with commands.at_most(0.02 * width, "submitting a join"):
        rig.submit(store, task("j", *names), task("after", "j"))
    assert tally(store) == {"ready": 1, "waiting": width + 2, "join-waiting": width // PENDING_MAX}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_parent_of_100_000_children_and_a_join_over_them(counted: tuple[Store, Commands]) -> None:
    store, commands = counted
    pool = rig.open_pool(store, "pool")
    submit_diamond(store, commands, WIDE)
    with commands.at_most(0.01 * WIDE, "releasing the fan"):
        rig.run(store, pool, p=Outcome.SUCCEEDED)
    assert tally(store) == {"done": 1, "ready": WIDE, "waiting": 2, "join-waiting": WIDE // PENDING_MAX}
    with commands.at_most(0.05 * WIDE, "running it"):
        while "j" not in (held := rig.lease(store, pool, BATCH)):
            rig.end_all(store, pool, held)
    assert tally(store) == {"done": WIDE + 1, "leased": 1, "waiting": 1, "join-done": WIDE // PENDING_MAX}
    rig.end_all(store, pool, held)
    assert drain(store, pool) == {"after": 1}
    with commands.at_most(10, "a sweep when there is nothing to do"):
        dependants.reconcile(store)


@pytest.mark.slow
def test_a_wide_failure_goes_down_and_is_revived(counted: tuple[Store, Commands]) -> None:
    store, commands = counted
    pool = rig.open_pool(store, "pool")
    width = WIDE // 10
    submit_diamond(store, commands, width)
    with commands.at_most(0.02 * width, "failing it"):
        rig.run(store, pool, p=Outcome.FAILED)
    failed = {"failed": 1, "upstream": width + 2, "join-upstream": width // PENDING_MAX}
    assert tally(store) == failed
    with commands.at_most(0.02 * width, "the sweep that looks once more"):
        dependants.reconcile(store)
    assert tally(store) == failed
    with commands.at_most(0.03 * width, "reviving it"):
        dependants.retry(store, ["p"])
    assert tally(store) == {"ready": 1, "waiting": width + 2, "join-waiting": width // PENDING_MAX}
    rig.run(store, pool, p=Outcome.SUCCEEDED)
    assert drain(store, pool).total() == width + 2
    assert tally(store) == {"done": width + 3, "join-done": width // PENDING_MAX}


@pytest.mark.parametrize("waits", ["done", "end"])
@pytest.mark.parametrize("count", [PENDING_MAX, PENDING_MAX + 1, 3 * PENDING_MAX])
def test_a_join_with_one_parent_that_fails(counted: tuple[Store, Commands], count: int, waits: str) -> None:
    store, _ = counted
    pool = rig.open_pool(store, "pool")
    names = [f"t{n}" for n in range(count)]
    rig.submit(store, *map(task, names), task("j", *names, waits=waits), task("after", "j", waits=waits))
    joins = -(-count // PENDING_MAX) if count > PENDING_MAX else 0
    assert store.tasks.count_documents({"kind": "join"}) == joins
    held = rig.lease(store, pool, count)
    bad = names[-1]
    rig.end_all(store, pool, {bad: held.pop(bad)}, Outcome.FAILED)
    rig.end_all(store, pool, held)
    if waits == "end":
        assert drain(store, pool) == {"j": 1, "after": 1}
        return
    assert rig.states(store)["j"] == rig.states(store)["after"] == "upstream"
    assert rig.lease(store, pool) == {}
    dependants.retry(store, [bad])
    assert drain(store, pool) == {bad: 1, "j": 1, "after": 1}


def test_submitting_a_wide_join_again_makes_nothing_new(counted: tuple[Store, Commands]) -> None:
    store, _ = counted
    names = [f"t{n}" for n in range(2500)]
    documents = [*map(task, names), task("j", *names)]
    rig.repeated(store, lambda: rig.submit(store, *documents))
    deep = dependants.narrow({**documents[-1], "pending": [f"x{n}" for n in range(PENDING_MAX**2 + 1)]})
    assert [len(level) for level in deep] == [PENDING_MAX + 1, 2, 1]
    assert max(len(doc["pending"]) for level in deep for doc in level) == PENDING_MAX
    assert len({doc["_id"] for level in deep for doc in level}) == PENDING_MAX + 4


def test_joins_whose_parents_are_nearly_all_done(counted: tuple[Store, Commands]) -> None:
    """What leaves `pending` at the check differs from task to task, and must not add up in one update."""
    store, commands = counted
    pool = rig.open_pool(store, "pool")
    groups = [[f"t{n}.{k}" for k in range(200)] for n in range(100)]
    rig.submit(store, task("late"), *(task(name) for names in groups for name in names))
    held = rig.lease(store, pool, 30_000)
    late = {"late": held.pop("late")}
    for start in range(0, len(held), BATCH):
        rig.end_all(store, pool, dict(list(held.items())[start : start + BATCH]))
    with commands.at_most(80, "submitting 100 joins over 201 parents each"):
        rig.submit(store, *(task(f"j{n}", *names, "late") for n, names in enumerate(groups)))
    assert store.tasks.count_documents({"pending": ["late"]}) == 100
    rig.end_all(store, pool, late)
    assert len(drain(store, pool)) == 100


def test_a_chain_of_1000(counted: tuple[Store, Commands]) -> None:
    """Submitted at once, failed and revived level by level, then run link by link."""
    store, commands = counted
    pool = rig.open_pool(store, "pool")
    length = 1000
    with commands.at_most(20, "submitting a chain"):
        rig.submit(store, task("t0"), *(task(f"t{n}", f"t{n - 1}") for n in range(1, length)))
    assert tally(store) == {"ready": 1, "waiting": length - 1}
    with commands.at_most(7 * length, "failing a chain"):
        rig.run(store, pool, t0=Outcome.FAILED)
    assert tally(store) == {"failed": 1, "upstream": length - 1}
    with commands.at_most(5 * length, "reviving a chain"):
        dependants.retry(store, ["t0"])
    assert tally(store) == {"ready": 1, "waiting": length - 1}
    links = 50
    with commands.at_most(14 * links, "running links of a chain one by one"):
        for n in range(links):
            held = rig.lease(store, pool, 10, classes=["c1"])
            assert held.keys() == {f"t{n}"}
            rig.end_all(store, pool, held)
    assert tally(store) == {"done": links, "ready": 1, "waiting": length - links - 1}


def test_300_layers_of_300(counted: tuple[Store, Commands]) -> None:
    """Each task but those of the first layer waits for its two neighbours above; one layer, for all of it."""
    store, commands = counted
    pool = rig.open_pool(store, "pool")
    layers, width = 300, 300
    total = layers * width
    names = [[f"t{layer}.{n}" for n in range(width)] for layer in range(layers)]
    documents = [task(name) for name in names[0]]
    for above, here in itertools.pairwise(names):
        full = here[0].startswith("t150.")
        documents += [task(name, *(above if full else [above[n], above[n - 1]])) for n, name in enumerate(here)]
    with commands.at_most(0.05 * total, "submitting layers"):
        for start in range(0, total, BATCH):
            rig.submit(store, *documents[start : start + BATCH])
    few = 20
    with commands.at_most(0.15 * few * width, "running layers"):
        for layer in range(few):
            held = rig.lease(store, pool, 1000)
            assert sorted(held) == sorted(names[layer])
            rig.end_all(store, pool, held)
