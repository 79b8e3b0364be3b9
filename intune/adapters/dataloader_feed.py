"""From what a loop is read from to tasks under way: reads ahead, offers tasks, takes their outputs in turn."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from intune.adapters.dataloader_caution import Caution
from intune.adapters.dataloader_choice import DRAWS
from intune.adapters.dataloader_indices import Item, global_states, restore
from intune.adapters.dataloader_seed import EpochSeed
from intune.adapters.dataloader_settings import current_device
from intune.adapters.dataloader_sources import Sources
from intune.adapters.dataloader_tasks import (
    SEGMENT,
    Fetcher,
    Made,
    MapFetcher,
    Tasks,
    chain_plan,
    pinned_here,
)
from intune.adapters.dataloader_watch import Watched
from intune.pipelines.allocation import Allocation
from intune.pipelines.errors import IntuneError
from intune.pipelines.executors.threads import ThreadFleet
from intune.pipelines.memory import MemoryLedger
from intune.pipelines.metrics import StageMeter, StageStats
from intune.pipelines.pressure import Pressure
from intune.pipelines.run import Run, close_dropped
from intune.pipelines.scheduler import Scheduler

if TYPE_CHECKING:
    from intune.adapters.dataloader import TunableDataLoader


class Reading(Protocol):
    """What an epoch is read from: `Indices` of a sampler, or `Sources` of an iterable-style dataset."""

    @property
    def exhausted(self) -> bool:
        """Whether its end was seen."""

    def pull(self) -> Item | None:
        """What the next batch is made of; None at the end."""

    def handed_over(self, item: Item, delivered: int) -> None:
        """A batch has gone to the trainer, which has `delivered` in all."""

    def state(self) -> dict[str, Any]:
        """What a saved state must keep beside the number of batches handed over."""

    def leave(self, delivered: int, *, finished: bool) -> None:
        """The loop is over."""


class Feed:
    """What one loop has under way. Its methods are for the trainer's thread, but those that ask or resize.

    Args:
        loader: whose loop it is.
        reading: where items come from.
        fleet: the threads that work on it.
        resumed: whether the loop goes on with what was read already.
    """

    def __init__(
        self, loader: TunableDataLoader, reading: Reading, fleet: ThreadFleet, *, resumed: bool = False
    ) -> None:
        self._loader = loader
        self._workshop = loader.workshop
        self._settings = loader.settings
        self._clock = loader.clock
        self._pressure = Pressure(clock=loader.clock)
        self.reading = reading
        self.fleet = fleet
        self.meters = {name: StageMeter(name) for name in loader.stages}
        self.ledger = MemoryLedger()
        self._fetcher: Fetcher | None = None
        self._run: Run | None = None
        self._tasks: Tasks | None = None
        self._watched: Watched | None = None
        self._items: deque[Item] = deque()
        self._failure: Exception | None = None
        self._caution = Caution(
            loader.settings,
            self._workshop.verdict,
            code=self._workshop.auto or loader.settings.iterable,
            resumed=resumed,
        )
        self._offered = 0
        self._held: int | None = None
        self.out = 0

    @property
    def spent(self) -> bool:
        """Whether everything that was read has been taken, and there is no more to read."""
        return self.reading.exhausted and not self._items and not self.out

    # ---- reading and offering --------------------------------------------------------------------------------

    def _lookahead(self) -> int:
        """Batches to have read beyond those handed over: two for every slot, as the scheduler may want."""
        allocation = self._loader.allocation
        slots = sum(allocation.of(stage) + 1 for stage in self._loader.stages)
        return max(2 * slots, self._settings.prefetch)

    def _pull(self) -> bool:
        """Read one item more; False at the end, or after what could not be read."""
        if self._failure is not None:
            return False
        try:
            item = self.reading.pull()
        except Exception as error:
            self._failure = error
            return False
        if item is not None:
            self._items.append(item)
        return item is not None

    def raise_failure(self) -> None:
        """Everything before it has been handed over: raise what the sampler raised, if it did."""
        if self._failure is not None:
            raise self._failure

    def _first_items(self) -> Iterator[Item]:
        """The items to come, to be looked at; they stay to be offered. No more than the trainer has asked for, while
        nobody knows whether there may be."""
        number = 0
        while number < len(self._items) or self._pull():
            yield self._items[number]
            number += 1
            if not self._caution.look(self._items[0]):
                return

    def _holds(self) -> bool:
        return bool(self._items) and not self._caution.look(self._items[0])

    def begin_batch(self) -> None:
        """The trainer asks for a batch."""
        if not self._workshop.here:
            self._caution.begin()

    def decide(self) -> None:
        """Choose where batches are made; not yet while it is not known whether more may be read for that."""
        if self._failure is not None and not self._items:
            return
        with self._workshop.deciding:
            if self._workshop.choice is None:  # else a loop in another thread has chosen meanwhile
                self._workshop.decide(self._first_items(), self.seed or EpochSeed(0), held=self._holds)
        self._heed()
        self._loader.recap()

    def look(self, made: Made) -> None:
        """A batch was made while it was not known whether more may be read."""
        if not made.ended and not self._workshop.here:
            self._caution.look(made.item)
            self._heed()

    def _heed(self) -> None:
        workshop = self._workshop
        if workshop.auto and workshop.verdict.reason and not workshop.here:
            workshop.go_here(workshop.verdict.reason, warn=False)
            self._loader.recap()

    def read_ahead(self) -> None:
        """Read as far as the slots may want; as the DataLoader does without workers, one item at first."""
        workshop = self._workshop
        ahead = self._settings.num_workers or (
            workshop.sized and not workshop.here and workshop.verdict.ahead
        )
        wanted = self._lookahead() if ahead else 1
        while len(self._items) + self.out < wanted and self._pull():
            pass

    def make(self) -> Made | None:
        """The next batch, made in the trainer's thread; None at the end. No task of it: handing a batch from thread to
        thread takes some 0.2 ms, more than many take to be made."""
        if not self._items:
            return None
        workshop, item = self._workshop, self._items.popleft()
        began, ran_s = self._clock(), time.thread_time()
        if now := item.made is None:
            workshop.make(item, self._the_fetcher(), self.seed)
        made: Made = item.made
        item.made = None  # the two would keep each other until the garbage collector comes by
        if self._settings.pin and made.error is None and not made.ended:
            made = pinned_here(made, self._settings)
        seconds, cpu_s = self._clock() - began, time.thread_time() - ran_s
        if not made.ended:
            self._book(made, seconds, cpu_s)
            # A loop's first batch warms up.
            if now and item.ordinal and workshop.took(seconds, cpu_s):
                self._loader.recap()
        return made

    def _book(self, made: Made, seconds: float, cpu_s: float) -> None:
        """Count a batch that was made in the trainer's thread: all the work is that of the first stage."""
        first, *_ = meters = list(self.meters.values())
        for meter in meters:
            meter.tasks += 1
            meter.rows += made.rows
        first.bytes_out += sum(self._workshop.sizes.measure(made).values())
        first.done_s += seconds
        first.cpu_s += cpu_s
        first.pass_time(seconds, 1, 1, shared=False, ready=False)

    def offer(self) -> None:
        """Make tasks of the items at hand. Until the first batch has told how large one is, only one at a time,
        beside those that are made already."""
        while self._items and not self._workshop.here:
            if not self._workshop.sized and self.out and self._items[0].made is None:
                return
            if self._run is None:
                self._begin_run(self._items[0].rows)
            assert self._tasks is not None
            assert self._run is not None
            if self._offered == len(self._tasks.plan.levels[0]):
                if self.out:
                    return  # the next run begins when this one has been read to its end
                self.stop()
                continue
            if self._items[0].made is None:
                self._tasks.fetcher = self._the_fetcher()  # the run may have begun before the choice was made
                self._workshop.send_changes()
            item = self._items.popleft()
            self._tasks.items[self._offered] = item
            self._tasks.plan.levels[0].rows[self._offered] = item.rows  # which all levels share
            self._offered += 1
            self.out += 1
            with self._run.lock:
                self._run.scheduler.offer(self._offered)
                self._run.work.notify()

    def _begin_run(self, rows: int) -> None:
        loader = self._loader
        plan = chain_plan(loader.stages, SEGMENT, max(1, rows), self._workshop.sizes.row_bytes)
        self._tasks = Tasks(
            plan=plan,
            settings=self._settings,
            fetcher=self._the_fetcher(),
            device=current_device() if self._settings.pin else None,
        )
        scheduler = Scheduler(
            plan,
            loader.stages,
            allocation=loader.allocation,
            memory=loader.share(),
            offered=0,
            in_order=self._settings.in_order,
            ledger=self.ledger,
            meters=self.meters,
            pressed=self._pressure,
            now=self._clock(),
        )
        self._run = Run(
            self._tasks,
            scheduler,
            retries=0,
            max_skipped=0,
            on_skip=_no_skips,
            clock=self._clock,
            measure=self._workshop.sizes.measure,
            deliver=_as_it_is,
        )
        self._offered = 0
        self._watched = Watched(self._tasks, self._workshop.watch)
        self.fleet.start(self._run, loader.allocation.total, self._watched)
        if loader.allocation is not scheduler.allocation:  # resized meanwhile
            self.resize(loader.allocation)

    def _the_fetcher(self) -> Fetcher:
        if self._workshop.choice is None:
            return MapFetcher(self._settings)  # until then all that is offered is made already
        if self._fetcher is None:
            self._fetcher = self._workshop.fetcher(self.reading)
        return self._fetcher

    @property
    def seed(self) -> EpochSeed | None:
        """Of the epoch's workers; None for an iterable-style dataset, whose iterators know it."""
        return getattr(self.reading, "seed", None)

    # ---- taking ----------------------------------------------------------------------------------------------

    def take(self, timeout: float | None) -> Made | None:
        """The next output, waiting for it; None if the loop was closed meanwhile.

        Raises:
            TimeoutError: it did not come within `timeout` seconds.
        """
        assert self._run is not None
        found = self._run.next_output(timeout)
        if found is None:
            return None
        self._held, (made,) = found
        self.out -= 1
        self._workshop.sized = True
        taken: Made = made
        return taken

    def reconsider(self, made: Made) -> bool:
        """Whether what was taken has to be made again, and what comes after it, in the trainer's own thread: there its
        code fails not, or draws the random numbers it should."""
        workshop, states = self._workshop, None
        if self._held is None:
            return False  # it was made there
        if made.error is not None and self.seed is not None:
            workshop.mend(made, self.seed)
        reason = workshop.objects(made)
        if reason and self.seed is not None:
            again = replace(made.item, made=None)
            workshop.make(again, self._the_fetcher(), self.seed)
            if again.made.error is not None:
                return False  # here too
            made.item.made = again.made
        if not reason and made.error is None and workshop.watch.suspects(made.item.ordinal):
            states = global_states()
            if workshop.make(replace(made.item, made=None), self._the_fetcher(), self.seed):
                reason = f"{DRAWS}, though not for the first batches"
        if not reason:
            return False
        workshop.go_here(reason)
        self._begin_anew(made.item)
        if states is not None:
            restore(states)
        self._loader.recap()
        return True

    def _begin_anew(self, item: Item) -> None:
        """Take back what is under way, from `item` on, which was taken last."""
        assert self._tasks is not None
        assert self._watched is not None
        self._items.extendleft(reversed([found for _, found in sorted(self._tasks.items.items())]))
        watched = self._watched
        self.stop()
        self._workshop.watch.settle(watched)
        self._fetcher = self._held = None
        self.out = 0
        if isinstance(self.reading, Sources):
            self.reading.begin_anew(item)

    def let_go(self) -> None:
        """The trainer is done with what was taken last."""
        if self._held is not None and self._run is not None and self._tasks is not None:
            self._run.consumed(self._held)
            self._tasks.items.pop(self._held, None)
        self._held = None

    def stop(self) -> None:
        """Leave what is under way."""
        if (run := self._run) is not None:
            self.fleet.stop(run)
        self._run = self._tasks = self._watched = None

    def close_dropped(self, close: Callable[[], None]) -> None:
        """`close` a loop that nobody refers to any more, see `run.close_dropped`."""
        if (run := self._run) is None:
            close()
        else:
            close_dropped(run, close)

    # ---- for the loader --------------------------------------------------------------------------------------

    def resize(self, allocation: Allocation) -> None:
        """Other slots for the run under way."""
        if (run := self._run) is not None:
            with run.lock:
                run.scheduler.resize(allocation, self._clock())
                run.work.notify_all()
            self.fleet.resize(allocation.total)

    def least_left(self, seconds: float) -> int | None:
        """Fewest bytes that were left to this job in the last `seconds`, as far as was looked."""
        return self._pressure.least_left(seconds)

    def read(self) -> tuple[tuple[StageStats, ...], int]:
        """Stages as they are now, and bytes that may be held; nothing where no task has been offered yet."""
        if (run := self._run) is None:
            return (), 0
        with run.lock:
            run.scheduler.tick(self._clock())
            return run.scheduler.read(), run.scheduler.limit

    def set_memory(self, memory: int) -> None:
        """Bytes that this loop may hold, where several share the budget."""
        if (run := self._run) is not None:
            run.scheduler.memory = memory


def _as_it_is(payload: Any) -> list[Any]:
    return [payload]


def _no_skips(message: str) -> None:
    raise IntuneError(f"nothing may be skipped here, but it was: {message}")
