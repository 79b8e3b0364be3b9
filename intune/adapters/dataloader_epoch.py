"""One loop over a wrapped DataLoader: the trainer's thread reads the sampler, offers tasks, takes batches."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from intune.adapters.dataloader_indices import Item
from intune.adapters.dataloader_settings import current_device
from intune.adapters.dataloader_sources import Sources
from intune.adapters.dataloader_tasks import SEGMENT, Fetcher, Made, Tasks, chain_plan
from intune.pipelines.allocation import Allocation
from intune.pipelines.errors import IntuneError, LoaderError, StageTimeout
from intune.pipelines.executors.threads import ThreadFleet
from intune.pipelines.memory import MemoryLedger
from intune.pipelines.metrics import StageMeter, StageStats
from intune.pipelines.run import Run
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


class Epoch(Iterator[Any]):
    """One loop over the loader.

    Args:
        loader: whose loop this is.
        reading: where the items come from.
        fleet: the threads that work on it; given back at the end.
        began: the random generators as they were before.
        done, ahead: batches handed over before, as in `TunableDataLoader.state_dict`.
    """

    def __init__(
        self,
        loader: TunableDataLoader,
        reading: Reading,
        fleet: ThreadFleet,
        *,
        began: Mapping[str, Any],
        done: int = 0,
        ahead: frozenset[int] = frozenset(),
    ) -> None:
        self._loader = loader
        self._workshop = loader.workshop
        self._settings = loader.settings
        self._before = began
        self.reading = reading
        self.fleet = fleet
        self.epoch = loader.epoch
        self._next = done
        self._ahead = set(ahead)
        self._items: deque[Item] = deque()
        self._over = False
        self.meters = {name: StageMeter(name) for name in loader.stages}
        self.ledger = MemoryLedger()
        self._clock = loader.clock
        self.began = self._clock()
        self._asked: float | None = None
        self.closed = False
        self.run: Run | None = None
        self._tasks: Tasks | None = None
        self._offered = self._out = 0
        self._held: int | None = None
        self.fetcher: Fetcher | None = None
        # With workers the DataLoader reads ahead from here on; without, not before it is asked for a batch.
        if self._settings.num_workers:
            self._read_ahead()
            if self._workshop.choice is not None:
                self._offer()

    # ---- the trainer's side ----------------------------------------------------------------------------------

    def __next__(self) -> Any:
        now = self._clock()
        counts = self._loader.counts
        if self._asked is not None:
            counts.step_s += now - self._asked
            self._asked = None
        self._loader.check_process()
        if self.closed:
            if self._over:
                raise StopIteration
            raise LoaderError("this loop over the loader is over: it was closed; begin a new one")
        try:
            made = self._wait()
        except BaseException:
            self.close()
            raise
        counts.wait_s += (asked := self._clock()) - now
        if made is None:
            self._end()
            raise StopIteration
        self._asked = asked
        self._advance(made)
        if made.error is not None:
            # The error's traceback will hold this frame and so the loop, which must not hold the error: it would
            # end when the garbage collector comes by, in whatever thread, and not when it is dropped.
            self._let_go()
            try:
                raise made.error
            finally:
                del made
        counts.batches += 1
        counts.rows += made.rows
        return made.data

    def _wait(self) -> Made | None:
        """The next batch, waiting for it; None at the end of the epoch."""
        while True:
            self._let_go()
            self._read_ahead()
            if self._workshop.choice is None:
                self._workshop.decide(self._first_items())
                self._loader.recap()
            self._offer()
            if not self._out:
                return None
            made = self._take()
            if made is not None:
                return made

    def _take(self) -> Made | None:
        """An output of the run under way; None for one that holds no batch."""
        assert self.run is not None
        try:
            found = self.run.next_output(self._settings.timeout if self._settings.num_workers else None)
        except TimeoutError:
            raise StageTimeout(
                f"no batch came within `timeout`={self._settings.timeout:g} s of the DataLoader; allow more"
            ) from None
        if found is None:
            raise LoaderError("this loop over the loader is over: it was closed; begin a new one")
        index, (made,) = found
        self._held = index
        self._out -= 1
        self._workshop.sized = True
        if made.ended:
            assert isinstance(self.reading, Sources)
            self.reading.ended(made.item.source)
            return None
        taken: Made = made
        return taken

    def _advance(self, made: Made) -> None:
        if self._settings.in_order:
            self._next += 1
        else:
            self._ahead.add(made.item.ordinal)
            while self._next in self._ahead:
                self._ahead.discard(self._next)
                self._next += 1
        self.reading.handed_over(made.item, self._next + len(self._ahead))

    # ---- from the sampler to tasks ---------------------------------------------------------------------------

    def _lookahead(self) -> int:
        """Batches to have read beyond those handed over: two for every slot, as the scheduler may want."""
        allocation = self._loader.allocation
        slots = sum(allocation.of(stage) + 1 for stage in self._loader.stages)
        return max(2 * slots, self._settings.prefetch)

    def _pull(self) -> bool:
        """Read one item more; False at the end."""
        item = self.reading.pull()
        if item is not None:
            self._items.append(item)
        return item is not None

    def _first_items(self) -> Iterator[Item]:
        """The items to come, to be looked at; they stay to be offered."""
        number = 0
        while number < len(self._items) or self._pull():
            yield self._items[number]
            number += 1

    def _read_ahead(self) -> None:
        wanted = self._lookahead() if self._settings.num_workers or self._workshop.sized else 1
        while len(self._items) + self._out < wanted and self._pull():
            pass

    def _offer(self) -> None:
        """Make tasks of the items at hand. Until the first batch has told how large one is, only one at a time,
        beside those that are made already."""
        while self._items:
            if not self._workshop.sized and self._out and self._items[0].made is None:
                return
            if self.run is None:
                self._begin_run(self._items[0].rows)
            assert self._tasks is not None
            assert self.run is not None
            if self._offered == len(self._tasks.plan.levels[0]):
                if self._out:
                    return  # the next run begins when this one has been read to its end
                self._end_run()
                continue
            item = self._items.popleft()
            self._tasks.items[self._offered] = item
            self._tasks.plan.levels[0].rows[self._offered] = item.rows  # which all levels share
            self._offered += 1
            self._out += 1
            with self.run.lock:
                self.run.scheduler.offer(self._offered)
                self.run.work.notify()

    def _begin_run(self, rows: int) -> None:
        loader = self._loader
        if self.fetcher is None:
            self.fetcher = self._workshop.fetcher(self.reading)
        plan = chain_plan(loader.stages, SEGMENT, max(1, rows), self._workshop.sizes.row_bytes)
        self._tasks = Tasks(
            plan=plan,
            settings=self._settings,
            fetcher=self.fetcher,
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
            now=self._clock(),
        )
        self.run = Run(
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
        self.fleet.start(self.run, loader.allocation.total, self._tasks)
        if loader.allocation is not scheduler.allocation:  # resized meanwhile
            self.resize(loader.allocation)

    def _let_go(self) -> None:
        """The trainer is done with the batch it was given last."""
        if self._held is not None and self.run is not None and self._tasks is not None:
            self.run.consumed(self._held)
            self._tasks.items.pop(self._held, None)
        self._held = None

    def _end_run(self) -> None:
        self.fleet.stop()
        self.run = self._tasks = None

    # ---- what the loader asks --------------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """Whether every batch has been handed over, though the trainer may not have asked for another."""
        return self._over or (self.reading.exhausted and not self._items and not self._out)

    @property
    def batch(self) -> int:
        """Batches handed over without a gap."""
        return self._next

    def state(self) -> dict[str, Any]:
        """Where the loop is, and how it began."""
        if self.complete:
            return {"epoch": self.epoch + 1, "batch": 0}
        here = {"epoch": self.epoch, "batch": self._next, "ahead": sorted(self._ahead)}
        return {**self._before, **here, **self.reading.state()}

    def resize(self, allocation: Allocation) -> None:
        """Other slots for the run under way."""
        if (run := self.run) is not None:
            with run.lock:
                run.scheduler.resize(allocation, self._clock())
                run.work.notify_all()
            self.fleet.resize(allocation.total)

    def read(self) -> tuple[tuple[StageStats, ...], int]:
        """Stages as they are now, and bytes that may be held; nothing where no task has been offered yet."""
        if (run := self.run) is None:
            return (), 0
        with run.lock:
            run.scheduler.tick(self._clock())
            return run.scheduler.read(), run.scheduler.limit

    def set_memory(self, memory: int) -> None:
        """Bytes that this loop may hold, where several share the budget."""
        if (run := self.run) is not None:
            run.scheduler.memory = memory

    # ---- the end ---------------------------------------------------------------------------------------------

    def _end(self) -> None:
        self._over = True
        self.close()

    def close(self) -> None:
        """Stop the workers' work on this loop."""
        if self.closed or os.getpid() != self._loader.pid:
            return  # in a fork the workers' locks may be held for ever
        self.closed = True
        self.reading.leave(self._next + len(self._ahead), finished=self._over)
        self._items.clear()
        self.fleet.stop()
        self._loader.leave(self)
        self.run = self._tasks = None

    def __del__(self) -> None:
        # A loop left early drops its iterator: the workers need not go on for nobody.
        if hasattr(self, "fetcher"):
            self.close()


def _as_it_is(payload: Any) -> list[Any]:
    return [payload]


def _no_skips(message: str) -> None:
    raise IntuneError(f"nothing may be skipped here, but it was: {message}")
