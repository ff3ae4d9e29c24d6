"""The wide tasks of one pool: those that are leased and wait for room, those that run, the slots kept for the next.

Wide is whatever takes more than one slot, GPUs, whole nodes, or MPI. Who gets which slots is decided by
`placement.Planner`; this keeps its books up to date and remembers what it decided. No store, no MPI, no clock.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Container, Iterable, Mapping, Sequence, Sized
from typing import Any, NamedTuple

from pilot import lifecycle
from pilot.board import Board, Shape, Spots, slots_of
from pilot.layout import Layout
from pilot.model import Placement
from pilot.placement import Planner, Reservation, Waiting
from pilot.prepare import Held

Key = tuple[str, int]


HUNGRY_S = 1.0
"""How often to look for wide tasks while nothing has changed here."""


PARKED_MAX = 100
"""How many of the tasks that wait for room are named in the heartbeat."""


LAUNCHER = Shape(mpi=True)
"""What a program on program nodes takes of the pool: a slot, whose child runs the launcher."""


class Started(NamedTuple):
    """A task that is to begin now, and where."""

    held: Held
    spots: Spots
    """What it takes of the pool; of a program on program nodes the slot of its launcher."""
    place: Placement
    """Where its ranks are."""


class _Running(NamedTuple):
    spots: Spots
    apart: Spots
    """On program nodes."""
    line: _Line


class _Line(NamedTuple):
    """Who queues together: one class, one priority; programs apart, as they may take job steps."""

    priority: int
    key: str
    program: bool
    apart: bool
    """Whether it runs on program nodes."""

    @property
    def name(self) -> str:
        return f"{self.key} {self.program}"


class Wide:
    """Books of the wide tasks.

    Args:
        layout: of the pool.
        end_at: when the pilot ends (seconds since the epoch), or None.
        steps_max: how many MPI programs that take a job step may run at a time; None: as many as there is room for.
        one_node_steps: whether programs on one node take one too.
        lost: slots that take no work, from the start.
    """

    def __init__(
        self,
        layout: Layout,
        end_at: float | None = None,
        steps_max: int | None = None,
        one_node_steps: bool = False,
        lost: Iterable[int] = (),
    ) -> None:
        self._layout = layout
        self._planner = Planner(Board(layout.nodes))
        self._programs = layout.programs or Layout((), layout.slot_cores)
        self._apart = Planner(Board(self._programs.nodes))
        self._end_at = end_at
        self._steps_max = steps_max
        self._one_node_steps = one_node_steps
        self._lines: dict[_Line, deque[Held]] = {}
        self._running: dict[Key, _Running] = {}
        self._steps = 0
        self._held: Counter[str] = Counter()
        """Of each class, how many wait or run."""
        self._mean_s: dict[str, float] = {}
        self._removed: set[int] = set()
        self._changed = False
        self._asked = -HUNGRY_S
        self.hungry = True
        """Whether there may be room for more since the last lease."""
        self.taken: set[int] = set()
        """Slots of wide tasks that run."""
        self.reserved: Reservation | None = None
        """Slots kept for the next wide task; narrow work stays off them unless it ends in time."""
        for slot in lost:
            self.lose(slot)

    # -- leasing --------------------------------------------------------------------------------

    def ask(self, now: float) -> bool:
        """Return whether to look for more work to lease: when room has come, and now and then for unseen classes."""
        if not self.hungry and now - self._asked < HUNGRY_S:
            return False
        self.hungry, self._asked = False, now
        return True

    def room(self, key: str) -> int:
        """Return how many more tasks of a class to lease now. Any thread may ask."""
        target = lifecycle.lease_target(self._layout.at_once(key), self._mean_s.get(key))
        return lifecycle.lease_more(target, self._held[key])

    def add(self, held: Iterable[Held]) -> None:
        """Take leased tasks that wait for room."""
        for one in held:
            self._line_of(one).append(one)
            self._held[one.task["class"]] += 1
            self._changed = True

    def drop(self, keys: Container[Key]) -> list[Key]:
        """Take out those of `keys` that have not begun."""
        dropped = []
        for line, waiting in self._lines.items():
            gone = [one.item.key for one in waiting if one.item.key in keys]
            if gone:
                self._lines[line] = deque(one for one in waiting if one.item.key not in keys)
                self._held[line.key] -= len(gone)
                dropped += gone
        if dropped:
            self._changed = self.hungry = True
        return dropped

    def drop_waiting(self) -> list[Key]:
        """Take out all that have not begun."""
        return self.drop({one.item.key for waiting in self._lines.values() for one in waiting})

    def stats(self, now: float) -> dict[str, Any]:
        """Return what the pool's heartbeat tells of those that wait, for `pilot explain`."""
        lines = sorted(self._lines, key=lambda line: line.priority)
        parked = [(held.item.task, line.program) for line in lines for held in self._lines[line]][:PARKED_MAX]
        stepless = [task for task, program in parked if program and self._steps_left <= 0]
        found: dict[str, Any] = {"parked": [task for task, _ in parked], "stepless": stepless, "kept": None}
        if self._programs.nodes:
            apart = {spot.node for running in self._running.values() for spot in running.apart}
            found["program_nodes_busy"] = len(apart)
        if self.reserved is not None:
            at = self.reserved.at
            key, _, _ = self.reserved.key.partition(" ")
            in_s = None if at is None else round(at - now, 1)
            found["kept"] = {"class": key, "slots": len(self.reserved.slots), "in_s": in_s}
        return found

    @property
    def waiting(self) -> int:
        """How many are leased and have not begun."""
        return sum(map(len, self._lines.values()))

    @property
    def running(self) -> int:
        """How many run."""
        return len(self._running)

    # -- placing --------------------------------------------------------------------------------

    def start(self, now: float, narrow: Sequence[Held]) -> list[Started]:
        """Decide what begins now, and which slots are kept for what cannot yet; the decisions count as carried out.

        Args:
            now: seconds since the epoch, as everywhere here.
            narrow: what waits for a single slot, the first one first.
        """
        if not self._changed:
            return []
        self._changed = False
        self._lines = {line: waiting for line, waiting in self._lines.items() if waiting}
        lines = {(line.name, line.priority): line for line in self._lines}
        apart = self._plan_apart(now)
        waiting = [self._launchers(line, apart) if line.apart else self._waiting(line) for line in self._lines]
        if narrow:
            first = narrow[0]
            shape, walltime_s = self._layout.shape(first.task["class"]), first.item.walltime_s
            waiting.append(Waiting("", shape, walltime_s, first.task["priority"], first.task["seq"], len(narrow)))
        plan = self._planner.plan([one for one in waiting if one.count], now)
        self.reserved = plan.reserved
        started = []
        for start in plan.starts:
            line = lines[start.key, start.priority]
            limited = line.program and self._steps_max is not None
            step = self._takes_step(line, start.spots)
            self._changed |= limited and not step  # it was counted as if it took one: there is room for another
            if step and self._steps_left <= 0:  # others have taken the steps, or it was to have slots kept for it
                self._changed = True  # what it was to have is for those that need no step
                continue
            held = self._lines[line].popleft()
            there = apart[line].popleft() if line.apart else ()
            self._begin(held, _Running(start.spots, there, line), now)
            place = self._programs.placement(there) if there else self._layout.placement(start.spots)
            started.append(Started(held, start.spots, place))
        return started

    def late(self, now: float) -> list[Key]:
        """Take out what would not end before its pilot does, if it began now."""
        if self._end_at is None:
            return []
        late: set[Key] = set()
        for waiting in self._lines.values():  # of one class, and so of one walltime
            if waiting and not lifecycle.fits_before(waiting[0].item.walltime_s, now, self._end_at):
                late.update(one.item.key for one in waiting)
        return self.drop(late) if late else []

    def ended(self, key: Key, wall_s: float) -> bool:
        """Free the slots of a task that has ended or was not begun; False if it was none of ours."""
        running = self._running.pop(key, None)
        if running is None:
            return False
        line = running.line
        self._planner.end(running.spots)
        if running.apart:
            self._apart.end(running.apart)
        self._held[line.key] -= 1
        self._steps -= self._takes_step(line, running.spots)
        mean = self._mean_s.get(line.key)
        self._mean_s[line.key] = wall_s if mean is None else mean + 0.05 * (wall_s - mean)
        self.taken.difference_update(slots_of(running.spots))
        self._changed = self.hungry = True
        return True

    # -- slots ----------------------------------------------------------------------------------

    def open_to(self, held: Held, now: float, slots: Sequence[int]) -> list[int]:
        """Return those of `slots` to which this narrow task, and others like it, may go."""
        return self._planner.open_to(held.item.walltime_s, now, slots, held.task["priority"])

    def busy(self, slot: int, until: float | None) -> None:
        """Note that a slot has narrow work, perhaps until then."""
        self._planner.busy(slot, until)
        self._changed |= self.reserved is not None

    def idle(self, slot: int) -> None:
        """Note that a slot holds nothing."""
        self._planner.idle(slot)
        self._changed = self._changed or bool(self.waiting)

    def lose(self, slot: int) -> None:
        """Note that a slot takes no work: it is lost, quarantined, or cannot start its child."""
        if slot not in self._removed:
            self._removed.add(slot)
            self._planner.remove(slot)
            self._changed = True

    def regain(self, slot: int) -> None:
        """Note that a slot takes work again."""
        if slot in self._removed:
            self._removed.discard(slot)
            self._planner.restore(slot)
            self._changed = True

    def starved(self) -> str:
        """Return why something that waits can never begin on the slots that are left; "" if nothing."""
        if not self._removed:
            return ""
        left = [
            node._replace(slots=tuple([slot for slot in node.slots if slot not in self._removed]))
            for node in self._layout.nodes
        ]
        board = Board(left)
        for line, waiting in self._lines.items():
            shape = LAUNCHER if line.apart else self._layout.shape(line.key)
            if waiting and (why := board.why_never(shape)):
                return f"a task of class {line.key} {why}, as {len(self._removed)} slots are out of use"
        return ""

    # -- inside ---------------------------------------------------------------------------------

    def _line_of(self, held: Held) -> deque[Held]:
        key = held.task["class"]
        apart = held.program and bool(self._programs.nodes) and not self._programs.why_never(key)
        line = _Line(held.task["priority"], key, held.program, apart)
        return self._lines.setdefault(line, deque())

    def _plan_apart(self, now: float) -> dict[_Line, deque[Spots]]:
        """Choose program nodes for what could begin now, if there are slots for the launchers."""
        lines = {(line.name, line.priority): line for line in self._lines if line.apart}
        places: dict[_Line, deque[Spots]] = {line: deque() for line in lines.values()}
        if lines:
            waiting = [self._waiting(line) for line in places]
            for start in self._apart.plan([one for one in waiting if one.count], now).starts:
                places[lines[start.key, start.priority]].append(start.spots)
        return places

    def _launchers(self, line: _Line, places: Mapping[_Line, Sized]) -> Waiting:
        """Return the slots that programs wait for which have room on program nodes."""
        first = self._lines[line][0]
        return Waiting(
            line.name, LAUNCHER, first.item.walltime_s, line.priority, first.task["seq"], len(places[line])
        )  # fmt: skip

    def _waiting(self, line: _Line) -> Waiting:
        waiting = self._lines[line]
        count = len(waiting)
        first = waiting[0]
        shape = (self._programs if line.apart else self._layout).shape(line.key)
        if line.program and count > self._steps_left:
            if self._steps_left > 0:
                count = int(self._steps_left)
            elif line.apart or self._one_node_steps or shape.several_nodes:
                count = 0
            else:
                shape = shape._replace(layout="near")  # there it takes no step
        return Waiting(line.name, shape, first.item.walltime_s, line.priority, first.task["seq"], count)

    @property
    def _steps_left(self) -> float:
        return math.inf if self._steps_max is None else self._steps_max - self._steps

    def _takes_step(self, line: _Line, spots: Spots) -> bool:
        """Say whether a start takes a step: of a launcher that starts ranks on other nodes than its own it does."""
        return line.program and (line.apart or self._one_node_steps or len({spot.node for spot in spots}) > 1)

    def _begin(self, held: Held, running: _Running, now: float) -> None:
        walltime_s = held.item.walltime_s
        until = None if walltime_s is None else now + walltime_s
        self._planner.begin(running.spots, until)
        if running.apart:
            self._apart.begin(running.apart, until)
        self._running[held.item.key] = running
        self._steps += self._takes_step(running.line, running.spots)
        self.taken.update(slots_of(running.spots))
