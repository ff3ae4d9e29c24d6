"""Scenarios of MPI functions for `pool_program`, which see."""

from __future__ import annotations

import time
from typing import Any

from pilot.executors.run.verdict import Item
from pilot.executors.run.wire import pack_work
from pilot.model import Blob, Placement, RankPlace, Work
from pilot.states import Kind
from pilot.values import decode, encode
from tests.pool_child import Folder
from tests.pool_program import Game, main, make_item, wait_begun


def mpi_item(task: str, function: str, members: list[int], **options: Any) -> Item:
    """Return an attempt at ``mpi_functions.FUNCTION(comm, **args)`` on these slots."""
    inputs = []
    for name, value in options.get("args", {}).items():
        encoded = encode(value)
        inputs.append((name, Blob(encoded.hash, encoded.size, encoded.data)))
    name = options.get("code", f"tests.mpi_functions:{function}")
    cpus = options.get("cpus", [()] * len(members))
    place = Placement(tuple([RankPlace(f"node{m % 2}", (m,), tuple(at)) for m, at in zip(members, cpus, strict=True)]))
    work = Work(
        task, 1, Kind.FUNCTION, function, name, None, tuple(inputs), {}, options.get("memory_bytes"), 1,
        options.get("folder", ""), ranks=len(members), gather=options.get("gather", False), place=place,
    )  # fmt: skip
    return Item(task, 1, name, options.get("walltime_s"), False, pack_work(work))


def seen(game: Game, task: str) -> dict[str, Any]:
    """Return a result as plain data."""
    result, folder = game.results[task], Folder(game.folder)
    values = {}
    for name, blob in result.outputs:
        value = decode(folder.get(blob.hash) if blob.data is None else blob.data)
        values[name] = len(value) if isinstance(value, bytes) else value
    return {
        "outcome": result.outcome.value, "values": values, "exit_code": result.exit_code, "rank": result.rank,
        "failure": result.failure and result.failure._asdict(), "wall_s": result.finished - result.started,
        "cpu_s": result.usage.cpu_s, "rss": result.usage.max_rss_bytes, "log": result.log and result.log._asdict(),
    }  # fmt: skip


def functions(game: Game) -> None:
    """Run the functions of the option `calls`, each as (name, members, options), one after the other."""
    game.report["results"] = []
    for number, (name, members, options) in enumerate(game.options["calls"]):
        game.slots.begin(mpi_item(f"f{number}", name, members, **options), members)
        took = game.until(lambda number=number: f"f{number}" in game.outcomes)  # type: ignore[misc]
        game.report["results"].append({**seen(game, f"f{number}"), "took_s": took})
    game.report["recycle"] = game.slots.recycle
    game.report["able"] = game.slots.able()


def beside(game: Game) -> None:
    """Run narrow tasks on the other slots, and on the same ones before and after MPI functions."""
    able, rounds = game.slots.able(), game.options.get("rounds", 20)
    pairs = [[1, 2], [2, 1], [2, 3], [3, 1], [1, 2, 3]]
    for number in range(rounds):
        members = pairs[number % len(pairs)]
        for slot in able:
            game.slots.dispatch(slot, [make_item(f"n{number}-{slot}-{i}", "nothing") for i in range(5)])
        game.until(lambda members=members: not any(game.slots.in_hand(slot) for slot in members))  # type: ignore[misc]
        game.slots.begin(mpi_item(f"f{number}", "buffers", members, args={"n": 1000}), members)
        assert all(list(game.slots.in_hand(slot)) == [(f"f{number}", 1)] for slot in members)
        assert not set(members) & set(game.slots.able())
        game.until(lambda: game.slots.load() == 0)


def stuck(game: Game) -> None:
    """Rank 1 fails while rank 0 is inside MPI: the function ends, one slot is in quarantine, the others go on."""
    game.slots.begin(mpi_item("bad", "fails", [1, 2], args={"who": 1, "wait": True}), [1, 2])
    game.slots.dispatch(3, [make_item(f"n{i}", "sleep", 0.01) for i in range(20)])
    game.report["took_s"] = game.until(lambda: "bad" in game.outcomes)
    game.report["bad"] = seen(game, "bad")
    game.report["able"], game.report["recycle"] = game.slots.able(), game.slots.recycle
    game.slots.begin(mpi_item("good", "where", [2, 3]), [2, 3]) if not game.slots.in_hand(3) else None
    game.until(lambda: game.slots.load() == 0)
    begin = time.monotonic()
    game.count(game.slots.stop(20.0))
    game.report["stop_s"] = time.monotonic() - begin


def cancel(game: Game) -> None:
    """Cancel functions while they run. With `apart`, rank 0 takes itself to be on another node than the slots."""
    if game.options.get("apart"):
        game.slots._place = "elsewhere"
    for name in game.options["names"]:
        game.slots.begin(mpi_item(name, name, [1, 2]), [1, 2])
        wait_begun(game, 0.5)
        assert game.slots.cancel(name, 1)
        game.report[f"{name}_s"] = game.until(lambda name=name: name in game.outcomes)  # type: ignore[misc]
        game.report[name] = seen(game, name)
    game.report["able"] = game.slots.able()


def late(game: Game) -> None:
    """A slot that was stuck comes back."""
    flag = game.folder / "flag"
    args = {"file": str(flag)}
    game.slots.begin(mpi_item("held", "holds", [1, 2], args=args), [1, 2])
    game.until(lambda: any(type(event).__name__ == "Quarantined" for event in game.events))
    game.report["able"] = game.slots.able()
    flag.touch()
    game.until(lambda: len(game.slots.able()) == len(game.slots.slots))
    game.slots.begin(mpi_item("after", "where", [1, 2]), [1, 2])
    game.until(lambda: "after" in game.outcomes)


def stop(game: Game) -> None:
    """Stop the pool while a function runs."""
    game.slots.begin(mpi_item("short", "sleeps", [1, 2], args={"seconds": 1.0}), [1, 2])


def hang(game: Game) -> None:
    """Be inside MPI in all slots."""
    game.slots.begin(mpi_item("hang", "hangs", [1, 2], args={"file": str(game.folder / "inside")}), [1, 2])
    game.until(lambda: False, 60)


def leak(game: Game) -> None:
    """Run a function that leaks until all are done or the pool is worn; the file `left` says how many are to do."""
    counter = game.folder / "left"
    left = int(counter.read_text()) if counter.exists() else game.options["count"]
    done = 0
    while done < left and not game.slots.recycle:
        game.slots.begin(mpi_item(f"f{done}", "leaks", [1, 2], args={"count": 10}), [1, 2])
        game.until(lambda done=done: f"f{done}" in game.outcomes)  # type: ignore[misc]
        if game.outcomes[f"f{done}"] == ["succeeded"]:
            done += 1
        else:
            game.report["lost"] = seen(game, f"f{done}")
            break
    game.report["done"], game.report["recycle"] = done, game.slots.recycle
    counter.write_text(str(left - done))


def crash(game: Game) -> None:
    """A rank crashes in a function: the whole program ends."""
    game.slots.begin(mpi_item("bad", "dies", [1, 2]), [1, 2])
    game.until(lambda: False, 60)


def rate(game: Game) -> None:
    """Run null functions on pairs of slots as fast as they go."""
    count, width = game.options.get("count", 500), game.options.get("width", 2)
    able = game.slots.able()
    groups = [able[i : i + width] for i in range(0, len(able) - width + 1, width)]
    items = [mpi_item(f"t{i}", "nothing", groups[0]) for i in range(count)]
    items.reverse()
    wait_begun(game, 0.5)
    begin = time.monotonic()
    running: dict[int, list[int]] = {}
    done = 0
    while done < count:
        for group in groups:
            if group[0] not in running and items:
                running[group[0]] = group
                game.slots.begin(items.pop(), group)
        events: list[Any] = game.slots.poll(1.0)
        for event in events:
            if type(event).__name__ == "Finished":
                done += 1
                del running[event.slot]
                game.outcomes.setdefault(event.results[0].task, []).append("succeeded")
    game.report["rate"] = count / (time.monotonic() - begin)


def many_sets(game: Game) -> None:
    """Use more sets of ranks than are kept, again and again."""
    import itertools

    sets = [list(p) for n in (1, 2, 3, 4) for p in itertools.permutations(game.slots.able(), n)]
    for turn in range(game.options.get("turns", 3)):
        for number, members in enumerate(sets):
            game.slots.begin(mpi_item(f"t{turn}-{number}", "where", members), members)
            game.until(lambda turn=turn, number=number: f"t{turn}-{number}" in game.outcomes)  # type: ignore[misc]
    game.report["sets"] = len(sets)


if __name__ == "__main__":
    main(globals())
