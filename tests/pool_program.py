"""An MPI program for tests of `pilot.executors.pool`: rank 0 plays one scenario, the other ranks are slots.

Started as ``mpiexec -n N python -P pool_program.py SCENARIO EXPECTED_RANKS FOLDER [JSON]``. Rank 0 writes
what happened to ``FOLDER/report.json``; the tests judge it.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pilot.executors.pool.identity import rank_from_environment
from pilot.executors.run.handle import Child, Item, Settings
from pilot.executors.run.output import Output, slot_file
from pilot.executors.run.scrub import child_environment
from pilot.model import Blob, FunctionCode, Result, Work
from pilot.states import Kind
from pilot.values import encode

HERE = Path(__file__).resolve().parent
DEADLINE_S = 60.0


def make_item(task: str, function: str, *args: object, walltime_s: float | None = None, attempt: int = 1) -> Item:
    """Return an attempt at ``pool_functions.FUNCTION(*args)``."""
    inputs = []
    for place, value in enumerate(args):
        encoded = encode(value)
        inputs.append((f"a{place}", Blob(encoded.hash, encoded.size, encoded.data)))
    work = Work(task, attempt, Kind.FUNCTION, function, function, None, tuple(inputs), {}, None, 1)
    return Item(task, attempt, function, walltime_s, False, pickle.dumps(work, 5))


def code(function: str) -> FunctionCode:
    """Return the code of a function of `pool_functions`, or of ``module:function``; its name serves as its hash."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    module, _, name = function.rpartition(":")
    return FunctionCode(function, module or "pool_functions", name, "", "", "", None, python)


class Game:
    """Rank 0's slots with what has come back from them."""

    def __init__(self, folder: Path, expected: int, options: dict[str, Any]) -> None:
        from pilot.executors.pool import slots, world

        self.world = world.start(expected, options.get("doorbell", True))
        self.folder = folder
        self.options = options
        limits = slots.Limits(**options.get("limits", {}))
        settings = slots.Settings(options.get("silence_s", 60.0), options.get("ping_s", 5.0), limits)
        self.slots = slots.Slots(self.world.transport(), self.world.library, code, settings)
        self.outcomes: dict[str, list[str]] = {}
        self.results: dict[str, Result] = {}
        self.returned: list[str] = []
        self.events: list[Any] = []
        self.report: dict[str, Any] = {"library": self.world.library, "size": self.world.size}
        self.slots.wait_hello(DEADLINE_S)
        self.poll(0)

    def poll(self, timeout_s: float = 0.2) -> list[Any]:
        """Poll once and keep count of what came."""
        events: list[Any] = self.slots.poll(timeout_s)
        self.count(events)
        return events

    def count(self, events: list[Any]) -> None:
        """Keep count of what came."""
        for event in events:
            name = type(event).__name__
            if name == "Finished":
                for one in event.results:
                    result = self.results[one.task] = one.result()
                    self.outcomes.setdefault(one.task, []).append(result.outcome.value)
            elif name == "Returned":
                self.returned += [task for task, _ in event.keys]
            else:
                self.events.append(event)

    def until(self, condition: Callable[[], bool], timeout_s: float = DEADLINE_S) -> float:
        """Poll until `condition` holds; return how long it took."""
        begin = time.monotonic()
        while not condition():
            if time.monotonic() - begin > timeout_s:
                raise TimeoutError(f"waited {timeout_s} s in vain; {self.summary()}")
            self.poll()
        return time.monotonic() - begin

    def summary(self) -> dict[str, Any]:
        """Return what has come back so far."""
        return {
            "outcomes": dict(Counter(outcome for all_ in self.outcomes.values() for outcome in all_)),
            "tasks": len(self.outcomes),
            "twice": [task for task, all_ in self.outcomes.items() if len(all_) > 1],
            "returned": len(self.returned),
            "load": self.slots.load(),
            "events": [
                [type(e).__name__, getattr(e, "slot", None) or list(e.slots), getattr(e, "reason", "")]
                for e in self.events
            ],
        }

    def end(self) -> int:
        """Stop the pool and write the report."""
        from pilot.executors.pool.world import EXIT_LEFTOVER

        self.count(self.slots.stop(self.options.get("stop_s", 20.0)))
        self.report |= self.summary()
        self.report["clean"] = clean = self.slots.close()
        (self.folder / "report.json").write_text(json.dumps(self.report))
        if not clean:
            self.world.abort(EXIT_LEFTOVER, "some slots did not say goodbye")
        self.world.finish()
        return 0


# -- scenarios ------------------------------------------------------------------------------------


def throughput(game: Game) -> None:
    """Run many small tasks, keeping `window` in hand per slot."""
    count, window = game.options.get("count", 2000), game.options.get("window", 40)
    items = [make_item(f"t{i}", "nothing") for i in range(count)]
    items.reverse()
    able = game.slots.able()
    ranks = [slot.hello.pid for slot in game.slots.slots.values() if slot.hello]
    wait_begun(game, 0.5)
    groups = [ranks, [child for rank in ranks for child in children(rank)], [os.getpid()]]
    before = [sum(map(cpu_s, pids)) for pids in groups]
    begin = time.monotonic()
    done = 0
    while done < count:
        for slot in able:
            free = window - len(game.slots.in_hand(slot))
            if items and free >= window // 2:
                game.slots.dispatch(slot, [items.pop() for _ in range(min(free, len(items)))])
        events: list[Any] = game.slots.poll(0.2)
        for event in events:
            if type(event).__name__ == "Finished":
                done += len(event.results)
                for one in event.results:
                    game.outcomes.setdefault(one.task, []).append("succeeded")
    game.report["rate"] = count / (time.monotonic() - begin)
    spent = [(sum(map(cpu_s, pids)) - b) / count * 1e6 for pids, b in zip(groups, before, strict=True)]
    game.report["cpu_us_per_task"] = dict(zip(("rank", "child", "rank0"), spent, strict=True))


def busy(game: Game) -> None:
    """Keep every slot busy with sleeping tasks; report how busy they were."""
    each, seconds = game.options.get("each", 10), game.options.get("seconds", 1.0)
    able = game.slots.able()
    wait_begun(game, 2.0)
    begin = time.monotonic()
    left = {slot: [make_item(f"s{slot}-{i}", "sleep", seconds) for i in range(each)] for slot in able}
    for slot in able:
        game.slots.dispatch(slot, [left[slot].pop() for _ in range(2)])
    while len(game.outcomes) < each * len(able):
        for event in game.poll():
            if type(event).__name__ == "Finished" and left[event.slot]:
                game.slots.dispatch(event.slot, [left[event.slot].pop()])
    game.report["busy"] = each * seconds / (time.monotonic() - begin)


def latency(game: Game) -> None:
    """Run single tasks on an idle pool."""
    times = []
    for i in range(game.options.get("count", 10)):
        time.sleep(random.uniform(0.15, 0.25))
        begin = time.monotonic()
        game.slots.dispatch(1, [make_item(f"t{i}", "nothing")])
        game.until(lambda i=i: f"t{i}" in game.outcomes)  # type: ignore[misc]
        times.append(time.monotonic() - begin)
    game.report["median_ms"] = statistics.median(times) * 1e3
    game.report["most_ms"] = max(times) * 1e3


def recall(game: Game) -> None:
    """Recall while tasks run, many times; what came back goes to another slot. Each runs exactly once.

    With `deadly`, that share of the tasks ends its child.
    """
    count, deadly = game.options.get("count", 1500), game.options.get("deadly", 0.0)
    marks = str(game.folder / "marks")
    names = ["mark_and_leave" if random.random() < deadly else "mark" for _ in range(count)]
    items = {f"t{i}": make_item(f"t{i}", name, marks, f"t{i}") for i, name in enumerate(names)}
    able = game.slots.able()
    for slot in able:
        game.slots.dispatch(slot, [items[f"t{i}"] for i in range(count) if i % len(able) == slot - 1])
    again, answers, asked = 0, 0, 0
    deadline = time.monotonic() + DEADLINE_S
    while len(game.outcomes) < count:
        if time.monotonic() > deadline:
            raise TimeoutError(str(game.summary()))
        if random.random() < 0.2 and asked - answers < 4:
            game.slots.recall(random.choice(able), random.choice([1, 5, 20, None]))
            asked += 1
        for event in game.poll(0.002):
            if type(event).__name__ == "Returned":
                answers += 1
                again += len(event.keys)
                game.slots.dispatch(random.choice(able), [items[task] for task, _ in event.keys])
    game.until(lambda: all(slot.answered == slot.recalls for slot in game.slots.slots.values()))
    game.report["recalled"] = again
    ran = Path(marks).read_text().split()
    game.report["ran"], game.report["ran_distinct"] = len(ran), len(set(ran))
    game.report["deadly"] = names.count("mark_and_leave")


def empty(game: Game) -> None:
    """Recall everything: a slot confirms that it is empty once what runs has ended."""
    game.slots.dispatch(1, [make_item("long", "sleep", 0.5), *(make_item(f"t{i}", "sleep", 60) for i in range(30))])
    wait_begun(game, 0.3)
    game.slots.recall(1)
    game.until(lambda: len(game.returned) == 30)
    game.report["order"] = game.returned == [f"t{i}" for i in range(30)]
    game.report["left"] = list(game.slots.in_hand(1))
    game.until(lambda: "long" in game.outcomes)
    number = game.slots.recall(1)
    seen: list[Any] = []
    while not seen:
        seen = [e for e in game.poll() if type(e).__name__ == "Returned" and e.recall == number]
    game.report["empty"] = seen[0].empty


def cancel(game: Game) -> None:
    """Cancel what runs and what has not begun; the rest is unharmed."""
    game.slots.dispatch(1, [make_item("running", "sleep", 60), *(make_item(f"t{i}", "nothing") for i in range(200))])
    wait_begun(game, 0.5)
    game.slots.cancel("t5", 1)
    game.slots.cancel("t199", 1)
    game.until(lambda: len(game.returned) == 2)
    game.report["not_begun"] = sorted(game.returned)
    game.slots.cancel("running", 1)
    game.report["cancel_s"] = game.until(lambda: "running" in game.outcomes)
    game.report["running"] = game.outcomes["running"]
    game.until(lambda: game.slots.load() == 0)
    game.report["unknown"] = game.slots.cancel("nobody", 1)


def walltime(game: Game) -> None:
    """A task over its walltime ends as timeout; those behind it run."""
    game.slots.dispatch(1, [make_item("slow", "sleep", 60, walltime_s=0.5), make_item("next", "nothing")])
    game.report["timeout_s"] = game.until(lambda: game.slots.load() == 0)
    game.report["slow"] = game.outcomes["slow"]


def big(game: Game) -> None:
    """Many large frames at once, and results as large as they come."""
    count, size = game.options.get("count", 120), game.options.get("size", 200_000)
    for slot in game.slots.able():
        items = [make_item(f"s{slot}-{i}", "head", os.urandom(size), 16_000) for i in range(count)]
        game.slots.dispatch(slot, items)
    game.until(lambda: game.slots.load() == 0)


def crash(game: Game) -> None:
    """A child dies in the middle of a batch: that attempt crashed, all others succeed."""
    for slot in game.slots.able():
        items = [make_item(f"s{slot}-{i}", "nothing") for i in range(60)]
        items[30] = make_item(f"s{slot}-30", "leave", 3)
        items[45] = make_item(f"s{slot}-45", "die", int(signal.SIGSEGV))
        game.slots.dispatch(slot, items)
    game.until(lambda: game.slots.load() == 0)
    game.report["crashed"] = sorted(task for task, all_ in game.outcomes.items() if all_ == ["crashed"])


def killed(game: Game) -> None:
    """Kill a slot's rank under load: the whole program must end."""
    begin_work(game)
    hello = game.slots.slots[1].hello
    os.kill(hello.pid if hello else 0, signal.SIGKILL)
    game.until(lambda: False, 30)


def silent(game: Game) -> None:
    """Rank 0 hangs: the slots do not wait for ever."""
    begin_work(game)
    time.sleep(60)


def broken(game: Game) -> None:
    """Raise in rank 0 while slots work: the whole program must end."""
    begin_work(game)
    raise RuntimeError("rank 0 is broken on purpose")


def frozen(game: Game) -> None:
    """Freeze a slot: it is lost with its keys, once; the other goes on. Thawed, it is heard no more, but stops."""
    begin_work(game)
    hello = game.slots.slots[1].hello
    assert hello is not None
    os.kill(hello.pid, signal.SIGSTOP)
    in_hand = len(game.slots.in_hand(1))
    game.report["lost_s"] = game.until(lambda: any(type(event).__name__ == "Lost" for event in game.events))
    lost = [event for event in game.events if type(event).__name__ == "Lost"]
    game.report["lost_keys"], game.report["were_in_hand"] = sum(len(e.keys) for e in lost), in_hand
    game.slots.dispatch(2, [make_item("after", "nothing")])
    for key in list(game.slots.in_hand(2)):
        if key != ("after", 1):
            game.slots.cancel(*key)
    if game.options["thaw"]:
        os.kill(hello.pid, signal.SIGCONT)
        game.until(lambda: game.slots.slots[1].gone)
    game.until(lambda: game.slots.load() == 0)
    game.report["after"] = game.outcomes["after"]


def paused(game: Game) -> None:
    """Rank 0 itself is away for longer than the deadline: that proves nothing against the slots."""
    time.sleep(4)
    game.poll()
    game.slots.dispatch(1, [make_item("after", "nothing")])
    game.until(lambda: game.slots.load() == 0)


def stopping(game: Game) -> None:
    """Stop with work queued: what runs is finished, the rest returned, every slot says goodbye."""
    for slot in game.slots.able():
        game.slots.dispatch(slot, [make_item(f"s{slot}-{i}", "sleep", 0.6) for i in range(50)])
    wait_begun(game, 0.3)


def failing(game: Game) -> None:
    """Slots whose child cannot start say so and return what they were given."""
    game.slots.dispatch(1, [make_item(f"t{i}", "nothing") for i in range(5)])
    game.until(lambda: any(type(e).__name__ == "Failing" and e.slot == 1 for e in game.events))
    game.report["able"] = game.slots.able()


def recovers(game: Game) -> None:
    """Children cannot start for a while."""
    game.slots.dispatch(1, [make_item(f"t{i}", "nothing") for i in range(3)])
    game.until(lambda: any(type(e).__name__ == "Failing" and e.slot == 1 for e in game.events))
    game.until(lambda: len(game.returned) == 3)
    (game.folder / "healed").touch()
    game.until(lambda: 1 in game.slots.able())
    game.slots.dispatch(1, [make_item("after", "nothing")])
    game.until(lambda: "after" in game.outcomes)


def signals(game: Game) -> None:
    """A scheduler's TERM hits every rank at once: they go on until they are told to stop."""
    game.slots.dispatch(1, [make_item("long", "sleep", 1)])
    wait_begun(game, 0.3)
    for slot in game.slots.slots.values():
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(slot.hello.pid if slot.hello else 0, number)
    game.until(lambda: game.slots.load() == 0)


def idle(game: Game) -> None:
    """Do nothing and measure what that costs a slot and its child."""
    wait_begun(game, 1.0)
    pids = [slot.hello.pid for slot in game.slots.slots.values() if slot.hello]
    families = [[pid, *children(pid)] for pid in pids]
    game.report["processes"] = [len(family) for family in families]
    before = [sum(map(cpu_s, family)) for family in families]
    own, begin = time.process_time(), time.monotonic()
    wait_begun(game, game.options.get("seconds", 3.0))
    spent = time.monotonic() - begin
    game.report["slots_cpu"] = [(sum(map(cpu_s, f)) - b) / spent for f, b in zip(families, before, strict=True)]
    game.report["rank0_cpu"] = (time.process_time() - own) / spent


def hello(game: Game) -> None:
    """Only start, and stop."""
    game.report["hosts"] = [slot.hello.host for slot in game.slots.slots.values() if slot.hello]


def storm(expected: int, folder: Path, options: dict[str, Any]) -> int:
    """Large messages between rank 0 and each other rank, many in both directions at once. No slots here."""
    from pilot.executors.pool import world
    from pilot.executors.pool.messages import Failing

    here = world.start(expected, options.get("doorbell", True))
    transport = here.transport()
    peers = range(1, here.size) if here.rank == 0 else range(1)
    count, size = options.get("count", 60), options.get("size", 1_000_000)
    got: dict[int, list[str]] = {peer: [] for peer in peers}
    for number in range(count):
        for peer in peers:
            transport.send(peer, Failing(f"{number:06d}" + "x" * (size if number % 2 else 10)))
    deadline = time.monotonic() + DEADLINE_S
    while any(len(texts) < count for texts in got.values()) and time.monotonic() < deadline:
        received = transport.receive()
        if received is None:
            time.sleep(0.0002)
        elif isinstance(received[1], Failing):
            got[received[0]].append(received[1].reason[:6])
    clean = transport.flush(10)
    if here.rank == 0:
        report: dict[str, Any] = {"clean": clean, "twice": [], "load": 0, "sent": count}
        report["received"] = [len(texts) for texts in got.values()]
        report["in_order"] = all(texts == sorted(texts) for texts in got.values())
        (folder / "report.json").write_text(json.dumps(report))
    here.finish()
    return 0


# -- helpers --------------------------------------------------------------------------------------


def begin_work(game: Game) -> None:
    """Give every slot one long task and some behind it."""
    for slot in game.slots.able():
        game.slots.dispatch(slot, [make_item(f"s{slot}-{i}", "sleep", 60) for i in range(10)])
    wait_begun(game, 0.5)


def wait_begun(game: Game, seconds: float) -> None:
    """Poll for some time."""
    deadline = time.monotonic() + seconds
    while (left_s := deadline - time.monotonic()) > 0:
        game.poll(left_s)


def children(pid: int) -> list[int]:
    """Return the processes that a process started."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def cpu_s(pid: int) -> float:
    """Return how long a process, with all its threads, was on a CPU."""
    return sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir()) / 1e9


def main(scenarios: dict[str, Any]) -> None:
    """Be rank 0, which plays one of the scenarios, or a slot."""
    scenario, expected, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    options: dict[str, Any] = json.loads(sys.argv[4]) if len(sys.argv) > 4 else {}
    rank = rank_from_environment(os.environ)
    if scenario == "storm":
        from pilot.executors.pool.world import guarded

        guarded(lambda: storm(expected, folder, options))
    if rank:
        slot(rank, expected, folder, options, scenario)
    from pilot.executors.pool.world import guarded

    def play() -> int:
        game = Game(folder, expected, options)
        scenarios[scenario](game)
        return game.end()

    guarded(play)


def slot(rank: int, expected: int, folder: Path, options: dict[str, Any], scenario: str) -> None:
    """Be a slot until the end."""
    env = child_environment(os.environ, "test-pool", 1)
    env["PYTHONPATH"] = os.pathsep.join([str(HERE), env.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    host = f"node{rank % 2}"
    argv = options.get("child") or [sys.executable, "-P", str(HERE / "pool_child.py"), str(rank), host, str(folder)]
    limits = Settings()
    if scenario == "recovers":
        argv = ["/bin/sh", "-c", 'test -e "$0" && exec "$@"', str(folder / "healed"), *argv]
        limits = Settings(delays_s=(0.1,), rest_s=0.5)
    child = Child(argv, env, Output(slot_file(folder, host, rank)), rank, host, limits)
    child.start()
    from pilot.executors.pool import worker, world

    settings = worker.Settings(doorbell=options.get("doorbell", True), **options.get("worker", {}))
    from pilot.executors.pool.inrank import Means
    from tests.pool_child import Folder

    means = Means(Folder(folder), str(folder), slot_file(folder, host, rank).with_suffix(".mpi.out"))
    world.guarded(lambda: worker.run(child, expected, host, settings, None if options.get("refuse") else means))


if __name__ == "__main__":
    main(globals())
