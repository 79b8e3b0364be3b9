"""Batches of one loop that workers are at: offered as tasks, taken in turn, and given up where the loop is left."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from intune.adapters.dataloader.indices import Item
from intune.adapters.dataloader.settings import current_device
from intune.adapters.dataloader.tasks import SEGMENT, Fetcher, Made, Tasks, chain_plan
from intune.pipelines.allocation import Allocation
from intune.pipelines.executors.threads import ThreadFleet
from intune.pipelines.memory import MemoryLedger
from intune.pipelines.metrics import StageMeter, StageStats
from intune.pipelines.pressure import Pressure
from intune.pipelines.run import Run, close_dropped
from intune.pipelines.scheduler import Scheduler

if TYPE_CHECKING:
    from intune.adapters.dataloader.tunable import TunableDataLoader


logger = logging.getLogger("intune")


class InFlight:
    """Of one loop. Its methods are for the trainer's thread, but those that ask or resize.

    Args:
        loader: whose loop it is.
        fleet: the threads that work on it.

    Attributes:
        count: batches that were offered and not taken yet.
    """

    def __init__(self, loader: TunableDataLoader, fleet: ThreadFleet) -> None:
        self._loader = loader
        self._workshop = loader.workshop
        self._settings = loader.settings
        self._pressure = Pressure()
        self.fleet = fleet
        self.meters = {name: StageMeter(name) for name in loader.stages}
        self.ledger = MemoryLedger()
        self.count = 0
        self._run: Run | None = None
        self._tasks: Tasks | None = None
        self._offered = 0
        self._held: int | None = None

    # ---- offering and taking ---------------------------------------------------------------------------------

    def offer(self, item: Item, fetcher: Fetcher) -> bool:
        """Make a task of an item; says whether it could, or has to wait until all that is under way has been taken."""
        if self._tasks is not None and self._offered == len(self._tasks.plan.levels[0]):
            if self.count:
                return False
            self.stop()
        if self._run is None:
            self._begin_run(item.rows, fetcher)
        assert self._tasks is not None
        assert self._run is not None
        if item.made is None:
            self._tasks.fetcher = fetcher  # the run may have begun before the choice was made
        self._tasks.items[self._offered] = item
        self._tasks.plan.levels[0].rows[self._offered] = item.rows  # which all levels share
        self._offered += 1
        self.count += 1
        with self._run.lock:
            self._run.scheduler.offer(self._offered)
            self._run.work.notify()
        return True

    def _begin_run(self, rows: int, fetcher: Fetcher) -> None:
        loader = self._loader
        plan = chain_plan(loader.stages, SEGMENT, max(1, rows), self._workshop.sizes.row_bytes)
        self._tasks = Tasks(
            plan=plan,
            settings=self._settings,
            fetcher=fetcher,
            watch=self._workshop.watch,
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
            now=time.monotonic(),
        )
        self._run = Run(
            self._tasks,
            scheduler,
            retries=0,
            max_skipped=0,
            on_skip=logger.warning,
            clock=time.monotonic,
            measure=self._workshop.sizes.measure,
            deliver=lambda made: [made],
        )
        self._offered = 0
        self.fleet.start(self._run, loader.allocation.total, self._tasks)
        if loader.allocation is not scheduler.allocation:  # resized meanwhile
            self.resize(loader.allocation)

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
        self.count -= 1
        self._workshop.sized = True
        taken: Made = made
        return taken

    @property
    def holding(self) -> bool:
        """Whether the trainer has what was taken last."""
        return self._held is not None

    def let_go(self) -> None:
        """The trainer is done with what was taken last."""
        if self._held is not None and self._run is not None and self._tasks is not None:
            self._run.consumed(self._held)
            self._tasks.items.pop(self._held, None)
        self._held = None

    # ---- the end ---------------------------------------------------------------------------------------------

    def take_back(self) -> list[Item]:
        """Give up what is under way, from what was taken last on; no thread is at it any more."""
        tasks = self._tasks
        assert tasks is not None
        self.stop()
        self._workshop.watch.settle(tasks)
        self._held = None
        self.count = 0
        return [item for _, item in sorted(tasks.items.items())]

    def stop(self) -> None:
        """Leave what is under way."""
        if (run := self._run) is not None:
            self.fleet.stop(run)
        self._run = self._tasks = None

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
                run.scheduler.resize(allocation, time.monotonic())
                run.work.notify_all()
            self.fleet.resize(allocation.total)

    def set_memory(self, memory: int) -> None:
        """Bytes that this loop may hold, where several share the budget."""
        if (run := self._run) is not None:
            run.scheduler.memory = memory

    def least_left(self, seconds: float) -> int | None:
        """Fewest bytes that were left to this job in the last `seconds`, as far as was looked."""
        return self._pressure.least_left(seconds)

    def read(self) -> tuple[tuple[StageStats, ...], int]:
        """Stages as they are now, and bytes that may be held; nothing where no task has been offered yet."""
        if (run := self._run) is None:
            return (), 0
        with run.lock:
            run.scheduler.tick(time.monotonic())
            return run.scheduler.read(), run.scheduler.limit
