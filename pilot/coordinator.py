"""Rank 0 of a pool: the loop between store and slots. Lease, place, dispatch, collect, commit.

The main thread speaks MPI and keeps the books; the store is spoken to by the threads of `leasing` and `commit`.
What is decided is in `lifecycle` and `placement`.
"""

from __future__ import annotations

import logging
import math
import socket
import time
from collections.abc import Sequence
from typing import Any

from pilot import lifecycle, placement, records, signing
from pilot.caching import Lookup
from pilot.commit import Committer, Ended
from pilot.errors import StoreError, StoreUnavailable
from pilot.executors.pool import ledger
from pilot.executors.pool.signals import Flags
from pilot.executors.pool.slots import Slots
from pilot.executors.run.handle import Finished
from pilot.executors.run.wire import pack_work, unpack_work
from pilot.layout import Layout, Seen, layout_of, program_nodes_of
from pilot.leasing import Leaser
from pilot.model import new_token
from pilot.prepare import Held, Preparer
from pilot.settings import PoolSettings, Wish, ranks_file, recycle_file
from pilot.states import Outcome, PilotState, PoolState
from pilot.store import pilots, tasks
from pilot.store.mongo import Store
from pilot.store.objects import Objects
from pilot.store.spool import Spool
from pilot.suspects import Journal
from pilot.wide import Started, Wide

log = logging.getLogger(__name__)

Key = tuple[str, int]

TICK_S = 0.1
CONTROL_S = 0.25


def seen(slots: Slots) -> dict[int, Seen]:
    """Return what the slots, which have all said hello, know of where they are."""
    hellos = {rank: slot.hello for rank, slot in slots.slots.items() if slot.hello is not None}
    return {rank: Seen(hello.host, hello.node.cpus, hello.node.memory_bytes) for rank, hello in hellos.items()}


def _counts(committer: Committer) -> dict[str, Any]:
    """Return what a pool's document says of the attempts that it has ended."""
    cache = {"cache": dict(committer.cache)} if any(committer.cache.values()) else {}
    return {"done": committer.counts["done"], "not_done": committer.counts["other"], **cache}


class Coordinator:
    """Runs one pool until it is drained.

    Args:
        store: the database, open.
        objects: the object repository.
        signer: the project's.
        settings: from the agent.
        environment: hash of the environment document, stored already.
    """

    def __init__(
        self, store: Store, objects: Objects, signer: signing.Signer, settings: PoolSettings, environment: str,
        flags: Flags,
    ) -> None:  # fmt: skip
        self._store = store
        self._objects = objects
        self._signer = signer
        self._settings = settings
        self._environment = environment
        self._flags = flags
        self._host = socket.gethostname()
        cache = Lookup(store, objects, signer, environment, settings.root)
        self.preparer = Preparer(store, objects.get, signer, cache)
        self._held: dict[Key, Held] = {}
        self._rate = 0.0
        self._mean_s: float | None = None
        self._finished = 0
        self._cancelling: set[Key] = set()
        self._error: BaseException | None = None
        self._recalled = 0.0
        self._ended_at = 0.0
        """When a task ended last, or a slot had none (monotonic)."""
        self._asked_back: set[int] = set()
        self._layout: Layout
        self._wide: Wide
        self._journal = Journal(ranks_file(settings.control))
        self.wish = Wish.WORK
        self.recycle = ""
        """Why the pool should be started anew by its agent: its ranks are worn out, though nothing else is wrong."""

    def run(self, slots: Slots) -> int:
        """Work until drained; return the exit code. A fenced pool goes on under a new token.

        Raises:
            PilotError: the pool cannot go on; the agent replays what it spooled and returns its leases.
        """
        told = self._settings
        self._layout = layout_of(seen(slots), told.slot_cores, told.gpus, told.cpu_order)
        self._layout.programs = program_nodes_of(self._layout, told.programs_beside_pool, told.program_hosts)
        for rank, cpus in self._layout.cpus.items():
            slots.bind(rank, cpus)
        while self._run_token(slots, new_token(16)):
            pass
        self._journal.close()
        if self.recycle:
            recycle_file(self._settings.control).write_text(self.recycle)
        return 0

    # -- one token ------------------------------------------------------------------------------

    def _run_token(self, slots: Slots, token: str) -> bool:
        """Work under one token; return whether to go on under another."""
        pilots.open_pool(self._store, token, self._settings.pilot, self._pool_document())
        place = records.Place(token, self._record_fields())
        spool = Spool(self._settings.spool, token)
        unable = slots.slots.keys() - set(slots.able())
        self._wide = Wide(
            self._layout, self._settings.end_at, self._settings.steps_max, self._settings.one_node_steps, unable
        )  # fmt: skip
        leaser = Leaser(
            self._store, token, self.preparer, pilot=self._settings.pilot, layout=self._layout, room=self._wide.room,
            end_at=self._settings.end_at, beat_s=self._settings.beat_s, ttl_s=self._settings.ttl_s, wake=slots.wake,
            failed=self._fail,
        )  # fmt: skip
        committer = Committer(self._store, self._signer, place, spool, self._objects.put, leaser.held, self._fail)
        log.info("pool %s: %d slots under token %s", self._settings.launch, len(slots.slots), token)
        with committer, leaser:
            self._loop(slots, leaser, committer)
            fenced = leaser.fenced.is_set()
            self._empty(slots, leaser, committer, fenced)
            leaser.ticked = math.inf  # this loop has come to its end; the heartbeat goes on until all is written
            committer.close()
        if self._error is not None:
            raise self._error
        if not fenced:
            self._leave(token, committer, leaser.orphaned.is_set())
        return fenced and self.wish is Wish.WORK

    def _leave(self, token: str, committer: Committer, orphaned: bool) -> None:
        """Return what a lease that was under way has brought too late, and close the token."""
        if committer.unwritten:
            raise StoreUnavailable(f"{committer.unwritten} results are not in the store: they are spooled as {token!r}")
        tasks.give_back(self._store, token, tasks.held(self._store, token).items())
        reason = f"to be started anew: {self.recycle}" if self.recycle else "drained"
        last = {**_counts(committer), "chain": committer.tip()}
        pilots.close_pool(self._store, token, PoolState.ENDED, reason, last)
        if orphaned:
            pilots.end(self._store, self._settings.pilot, PilotState.LOST, "its agent died; its pool has drained")

    def _record_fields(self) -> dict[str, str]:
        """Return what all records of this pool say alike."""
        fields = {
            "pilot": self._settings.pilot, "environment": self._environment, "site": self._settings.site,
        }  # fmt: skip
        job = self._settings.job
        return {**fields, "job": job} if job else fields

    def _pool_document(self) -> dict[str, Any]:
        return {
            "launch": self._settings.launch,
            "host": self._host,
            **self._layout.document(),
            "end_at": self._settings.end_at,
            "site": self._settings.site,
        }

    def _fail(self, error: BaseException) -> None:
        """Note, from any thread, an error that ends the pool."""
        if self._error is None:
            self._error = error

    def _loop(self, slots: Slots, leaser: Leaser, committer: Committer) -> None:
        looked = 0.0
        counted, since = 0, time.monotonic()
        while self._error is None and not leaser.fenced.is_set():
            self._take(slots.poll(TICK_S), slots, leaser, committer)
            now = leaser.ticked = time.monotonic()
            if now - looked > CONTROL_S:
                looked = now
                self._look_at_control()
                self.recycle = slots.recycle or self._wide.starved()
            if now - since > 0.5:
                self._rate = (self._finished - counted) / (now - since)
                counted, since = self._finished, now
                leaser.stats = self._stats(slots, leaser, committer)
            if leaser.orphaned.is_set() and self.wish is Wish.WORK:
                log.error("the agent of pilot %s is gone, or the store for long: draining", self._settings.pilot)
                self.wish = Wish.DRAIN
            if self.recycle:
                log.warning("pool %s will be started anew: %s", self._settings.launch, self.recycle)
                return
            if self.wish is not Wish.WORK or (slots.slots and not (slots.able() or self._wide.running)):
                return
            self._cancel(slots, leaser)
            self._place(slots, leaser)
            self._feed(slots, leaser, committer)

    def _look_at_control(self) -> None:
        """Read what the agent asks, and whether the end is near."""
        try:
            self.wish = Wish(self._settings.control.read_text().strip() or Wish.WORK)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as exc:
            log.warning("cannot read %s: %s", self._settings.control, exc)
        if self._flags.ending:  # a batch system ends every process of the job, and gives us seconds
            self.wish = Wish.NOW
        end_at = self._settings.end_at
        if end_at is not None and self.wish is Wish.WORK and time.time() > end_at - self._settings.drain_s:
            self.wish = Wish.DRAIN
        if end_at is not None and time.time() > end_at - self._settings.stop_s:
            self.wish = Wish.NOW

    def _stats(self, slots: Slots, leaser: Leaser, committer: Committer) -> dict[str, Any]:
        taken = self._wide.taken  # a program has one slot's child at work, and all of its slots
        busy = sum(1 for rank in slots.slots if rank in taken or slots.in_hand(rank))
        return {
            "busy": busy, "in_hand": slots.load(), "waiting": leaser.waiting + self._wide.waiting,
            "rate": round(self._rate, 1), **_counts(committer),
            "unwritten": committer.unwritten, "chain": committer.tip(), "wish": self.wish.value,
            **self._wide.stats(time.time()),
        }  # fmt: skip

    # -- giving ---------------------------------------------------------------------------------

    def _place(self, slots: Slots, leaser: Leaser) -> None:
        """Begin what wide tasks have room, and clear the slots that are kept for the next one."""
        if not leaser.wide and not self._wide.waiting:
            return
        self._wide.add([leaser.wide.popleft() for _ in range(len(leaser.wide))])
        if late := self._wide.late(time.time()):
            self._give_back(leaser, late)
        for started in self._wide.start(time.time(), leaser.ready):
            self._begin(slots, started)
        reserved = self._wide.reserved
        for rank in reserved.slots - self._asked_back if reserved else ():
            if len(slots.in_hand(rank)) > 1:
                self._asked_back.add(rank)
                slots.recall(rank)

    def _begin(self, slots: Slots, started: Started) -> None:
        """Dispatch a wide task to the slots that were chosen for it, which hold nothing."""
        held, spots, place = started
        work = unpack_work(held.item.frame)._replace(place=place)
        item = held.item._replace(frame=pack_work(work))
        self._held[item.key] = held._replace(item=item, place=place)
        if work.ranks is None or held.program:
            slots.dispatch(spots[0].slots[0], [item])
        else:
            self._journal.began(item.key)
            slots.begin(item, [spot.slots[0] for spot in spots])

    def _feed(self, slots: Slots, leaser: Leaser, committer: Committer) -> None:
        """Give waiting narrow attempts to slots, ask for more, and even out when some slots are idle."""
        taken = self._wide.taken
        load = {rank: len(slots.in_hand(rank)) for rank in slots.able() if rank not in taken}
        moment = time.monotonic()
        if not all(load.values()):
            self._ended_at = moment
        mean_s = lifecycle.expected_s(self._mean_s, moment - self._ended_at)
        target = lifecycle.prefetch_target(mean_s)
        goal, there = lifecycle.lease_target(len(load), mean_s), sum(load.values()) + leaser.waiting
        if leaser.waiting and any(held < target for held in load.values()):
            self._share(load, target, slots, leaser)
        elif spare := lifecycle.lease_less(goal, there):
            self._part_with(spare, load, slots, leaser)
        elif any(held == 0 for held in load.values()) and moment - self._recalled > lifecycle.BORED_S:
            self._recalled = moment
            for rank, count in placement.take_back(load).items():
                if rank not in self._asked_back:
                    self._asked_back.add(rank)
                    slots.recall(rank, count)
        away = committer.away_since is not None or committer.unwritten > lifecycle.UNWRITTEN_MAX
        there = sum(load.values()) + leaser.waiting
        want = 0 if away else lifecycle.lease_more(goal, there)
        leaser.want(want, not away and self._wide.ask(moment))

    def _part_with(self, spare: int, load: dict[int, int], slots: Slots, leaser: Leaser) -> None:
        """Give back what other pools may begin sooner; first what waits here, then what waits behind long tasks."""
        waiting = min(spare, leaser.waiting)
        self._give_back(leaser, leaser.drop_last(waiting))
        behind = [rank for rank, count in load.items() if count > 1 and rank not in self._asked_back]
        for rank in behind[: spare - waiting]:
            self._asked_back.add(rank)
            slots.recall(rank, 1)

    def _share(self, load: dict[int, int], target: int, slots: Slots, leaser: Leaser) -> None:
        """Share what waits among slots; near the pilot's end only what ends in time, and nothing ahead of its turn."""
        now, end_at = time.time(), self._settings.end_at
        first = leaser.ready[0]
        walltime_s = first.item.walltime_s
        if end_at is not None and walltime_s is not None:
            if not lifecycle.fits_before(walltime_s, now, end_at):
                self._give_back(leaser, leaser.late(now, end_at))
            if not lifecycle.fits_before(2 * walltime_s, now, end_at):
                target = 1
        open_to = load
        if self._wide.reserved:
            open_to = {rank: load[rank] for rank in self._wide.open_to(first, now, list(load))}
        for rank, count in placement.share(open_to, target, leaser.waiting).items():
            given = self._uncancelled(leaser.take(count), leaser)
            if not given:
                continue
            self._held |= {held.item.key: held for held in given}
            slots.dispatch(rank, [held.item for held in given])
            load[rank] += len(given)
            self._wide.busy(rank, None if walltime_s is None else now + walltime_s * load[rank])

    def _cancel(self, slots: Slots, leaser: Leaser) -> None:
        """Pass on what should be cancelled; return what waits here."""
        waiting = set()
        while leaser.cancelled:
            key = leaser.cancelled.popleft()
            if key not in self._held:
                waiting.add(key)  # or it has ended, or is being prepared: then we are told of it again
            elif key not in self._cancelling:
                self._cancelling.add(key)
                slots.cancel(*key)
        if waiting:
            self._give_back(leaser, [*leaser.drop(waiting), *self._wide.drop(waiting)])

    # -- taking ---------------------------------------------------------------------------------

    def _take(self, events: Sequence[ledger.Event], slots: Slots, leaser: Leaser, committer: Committer) -> None:
        now = time.time()
        while leaser.refused:
            task, error = leaser.refused.popleft()
            committer.put([Ended(task, None, records.refusal(task, error, 0, self._host, now))])
        if leaser.cached:
            self._take_cached(leaser, committer, now)
        for event in events:
            if isinstance(event, ledger.Finished):
                self._ended(event.results, leaser, committer)
            elif isinstance(event, ledger.Returned):
                self._asked_back.discard(event.slot)
                self._returned(event.keys, leaser)
            elif isinstance(event, ledger.Lost):
                log.error("slot %d is lost: %s", event.slot, event.reason)
                self._asked_back.discard(event.slot)
                self._wide.lose(event.slot)
                lost = [self._held.pop(key) for key in event.keys]
                self._ended_wide([h.item.key for h in lost], 0.0)
                committer.put(
                    Ended(h.task, h, records.lost_result(h.task, event.reason, self._host, now)) for h in lost
                )
            elif isinstance(event, ledger.Quarantined):
                log.error("slots %s are out of use: %s", event.slots, event.reason)
                for slot in event.slots:
                    self._wide.lose(slot)
            elif isinstance(event, ledger.Joined):
                self._wide.regain(event.slot)
            elif isinstance(event, ledger.Failing):
                log.error("slot %d cannot start its child: %s", event.slot, event.reason)
                self._wide.lose(event.slot)
            if isinstance(event, ledger.Finished | ledger.Returned) and not slots.in_hand(event.slot):
                self._wide.idle(event.slot)

    def _take_cached(self, leaser: Leaser, committer: Committer, now: float) -> None:
        """End what needs no slot."""
        taken = [leaser.cached.popleft() for _ in range(len(leaser.cached))]
        committer.put([Ended(held.task, held, records.cached_result(held.task, self._host, now)) for held in taken])
        self._finished += len(taken)
        self._wide.hungry = True  # there may be more of them among wide tasks, however little room there is

    def _ended(self, results: Sequence[Finished], leaser: Leaser, committer: Committer) -> None:
        ended = []
        for finished in results:
            held = self._held.pop(finished.key)
            result = finished.result()
            if result.outcome is Outcome.CANCELLED and finished.key not in self._cancelling:
                result = result._replace(outcome=Outcome.LOST)  # we ended it, nobody asked to cancel it
            self._cancelling.discard(finished.key)
            wall_s = result.usage.wall_s
            if held.place is not None:
                self._ended_wide([finished.key], wall_s)
            else:
                self._ended_at = time.monotonic()
                self._mean_s = wall_s if self._mean_s is None else self._mean_s + 0.05 * (wall_s - self._mean_s)
            ended.append(Ended(held.task, held, result))
        self._finished += len(ended)
        committer.put(ended)

    def _returned(self, keys: Sequence[Key], leaser: Leaser) -> None:
        """Take attempts back that have not begun, for another slot."""
        wide = {key for key in keys if self._ended_wide([key], 0.0)}
        back = self._uncancelled([self._held.pop(key) for key in keys], leaser)
        self._wide.add([held._replace(place=None) for held in back if held.item.key in wide])
        leaser.put_first([held for held in back if held.item.key not in wide])

    def _ended_wide(self, keys: Sequence[Key], wall_s: float) -> bool:
        """Free the slots that wide tasks had; False if they were none."""
        ours = [key for key in keys if self._wide.ended(key, wall_s)]
        for key in ours:
            self._journal.ended(key)
        return bool(ours)

    def _uncancelled(self, waiting: list[Held], leaser: Leaser) -> list[Held]:
        """Return to the store those that should be cancelled, which makes them so; keep the others."""
        if not self._cancelling:
            return waiting
        ended = [held.item.key for held in waiting if held.item.key in self._cancelling]
        if ended:
            self._give_back(leaser, ended)
        return [held for held in waiting if held.item.key not in ended]

    def _give_back(self, leaser: Leaser, keys: Sequence[Key]) -> None:
        try:
            tasks.give_back(self._store, leaser.token, keys)
        except StoreError as exc:
            log.warning("cannot return %d leases; the heartbeat's comparison will: %s", len(keys), exc)
        leaser.held.difference_update(keys)
        self._cancelling.difference_update(keys)

    # -- ending ---------------------------------------------------------------------------------

    def _empty(self, slots: Slots, leaser: Leaser, committer: Committer, fenced: bool) -> None:
        """Return what has not begun, and wait for what has, unless it should end now."""
        leaser.want(0)
        if self.wish is not Wish.WORK:
            slots.announce_end()
        self._give_back(leaser, [*leaser.drop_waiting(), *self._wide.drop_waiting()])
        for rank in slots.able():
            slots.recall(rank)
        killed = False
        while slots.load() and self._error is None:
            self._take(slots.poll(TICK_S), slots, leaser, committer)
            leaser.ticked = time.monotonic()
            self._give_back(leaser, [*leaser.drop_waiting(), *self._wide.drop_waiting()])
            self._cancel(slots, leaser)
            self._look_at_control()
            if (self.wish is Wish.NOW or fenced) and not killed:
                killed = True
                for key in list(self._held):
                    slots.cancel(*key)
