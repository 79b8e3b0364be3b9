"""`TunableDataLoader`: a `torch.utils.data.DataLoader` whose batches are made by workers that can be resized.

The batches and their order are the DataLoader's; `docs/dataloader.md` says what differs.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal

from intune.adapters.dataloader.epoch import Epoch
from intune.adapters.dataloader.generators import generators_of, seed_state
from intune.adapters.dataloader.indices import Indices
from intune.adapters.dataloader.settings import read_settings, same_settings
from intune.adapters.dataloader.state import STATE_VERSION, SavedState, belongs_to
from intune.adapters.dataloader.workshop import Workshop
from intune.pipelines.allocation import Allocation
from intune.pipelines.budget import Budget
from intune.pipelines.epoch import Counts
from intune.pipelines.errors import ConfigError
from intune.pipelines.executors.choice import budget_for
from intune.pipelines.executors.fork_server import server_pids
from intune.pipelines.memory import resident_bytes
from intune.pipelines.metrics import PipelineStats, StageMeter, StageStats
from intune.pipelines.run import check_process, was_closed


class TunableDataLoader:
    """The batches of a DataLoader, made ahead by workers whose slots can be changed at any time.

    Its stages are ``"fetch"`` (the dataset), ``"collate"``, and ``"transfer"`` (to pinned memory) where the
    DataLoader pins and there is an accelerator. In processes, and where only one thread at a time may run the code,
    fetching and collating are one call: ``"fetch"`` then has the work of both. A loader belongs to the process that
    made it. Several loops may be under way at once and share the budget.

    Attributes a DataLoader has are its own (`dataset`, `batch_size`, `sampler`, `batch_sampler`, …).

    Use `wrap` to make one.
    """

    executor = "threads"  # of this machine, whatever a Ray that is connected has elsewhere

    def __init__(
        self,
        dataloader: Any,
        *,
        budget: Budget | None = None,
        workers: Literal["auto", "thread", "process"] = "auto",
        allocation: Allocation | Mapping[str, int] | None = None,
    ) -> None:
        self.settings = read_settings(dataloader)
        self.dataloader = dataloader
        self.budget = budget_for(self.executor, budget)
        self.stages: tuple[str, ...] = ("fetch", "collate", *(("transfer",) if self.settings.pin else ()))
        self._workers = workers
        self.workshop = Workshop(self.settings, self.budget, workers)
        self._workshops = [self.workshop]
        self.pid = os.getpid()
        self.epoch = 0
        self.counts = Counts()
        self._peak = 0  # bytes held by a loop that is over
        slots = max(1, self.budget.cpus, self.settings.num_workers)
        base = Allocation.shared(slots)
        self.allocation = self._capped(base if allocation is None else base.merged(allocation, self.stages))
        self._meters = {name: StageMeter(name) for name in self.stages}
        # Reentrant since a loop may be closed by the garbage collector, in the middle of anything.
        self._changed = threading.RLock()
        self._active: list[weakref.ref[Epoch]] = []
        self._resume: dict[str, Any] | None = None
        self._counted: int | None = None  # the epoch of which the state that was loaded had all batches
        self._last: dict[str, Any] = {"epoch": 0, "batch": 0}
        self._told: int | None = None
        self._begun = False
        self._closed = False
        self._finalizer = weakref.finalize(self, _close, self._workshops, self.pid)

    @classmethod
    def wrap(
        cls,
        dataloader: Any,
        *,
        budget: Budget | None = None,
        workers: Literal["auto", "thread", "process"] = "auto",
        allocation: Allocation | Mapping[str, int] | None = None,
    ) -> TunableDataLoader:
        """Make a DataLoader tunable.

        Args:
            dataloader: map-style or iterable-style, with any of its options; it is not changed, and nothing is
                read from it before the first loop.
            budget: CPUs and bytes it may use; by default read from what the job may really use.
            workers: where the dataset's and `collate_fn`'s code runs: ``"thread"``, ``"process"``, or ``"auto"``
                to find out on the first batches, which are made in the trainer's thread. The log says why.
            allocation: slots to begin with; by default one pool of as many as the budget has CPUs, or as the
                DataLoader has workers if that is more.

        Raises:
            ConfigError: no DataLoader, or one whose code cannot run where `workers` says.
        """
        return cls(dataloader, budget=budget, workers=workers, allocation=allocation)

    # ---- what a training loop uses ---------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:
        self._check_usable()
        for loop in self._loops():
            if loop.complete:
                loop.close()  # trainers that count the batches do not ask for one more, and may still hold it
        counted, self._counted = self._counted, None
        if counted == self.epoch:
            self.epoch += 1
            return iter(())
        self._read_settings()
        state, self._resume = self._resume, None
        self._begun = True
        reading, began = self.workshop.read(state)
        epoch = Epoch(
            self,
            reading,
            self.workshop.borrow_fleet(),
            began=began,
            done=0 if state is None else state["batch"],
            ahead=frozenset(() if state is None else state.get("ahead", ())),
        )
        with self._changed:
            self._active.append(weakref.ref(epoch))
            self._divide()
        epoch.in_flight.resize(self.allocation)  # it may have been resized before it was known to be there
        self._limit_processes()
        return epoch

    def __len__(self) -> int:
        """Batches of an epoch, as the DataLoader says."""
        return len(self.dataloader)

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next loop reads, of the one that a loaded state is in what is left; told to the sampler, and
        an iterable-style dataset, that want to know."""
        if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
            raise ConfigError(f"`epoch`={epoch!r} must be a whole number, 0 or more")
        if epoch != self.epoch:
            self._resume = None
            if epoch != self._counted:
                self._last = {"epoch": epoch, "batch": 0}
        self.epoch = epoch
        self._tell(epoch)

    def state_dict(self) -> dict[str, Any]:
        """How many batches of the epoch were handed over, and what it takes to find the next one again: the
        states of the random generators when the epoch began. Plain numbers, text, lists and tensors."""
        self.check_process()
        loops = self._loops()
        reading = loops[-1].feed.reading if loops and loops[-1].complete else None
        return {
            "version": STATE_VERSION,
            "belongs_to": belongs_to(self.settings),
            "generators": reading.at_end()
            if isinstance(reading, Indices)
            else [generator.get_state() for generator in generators_of(self.settings)],
            **seed_state(self.workshop.seed),
            "told": self._told,
            **(loops[-1].state() if loops else self._resume or self._last),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with exactly the batch after those that `state` counts.

        The sampler is read again up to there; samples of an iterable-style dataset too, and left out.

        Raises:
            LoaderError: it is no state, or that of another loader.
        """
        self._check_usable()
        saved = SavedState.read(state, self.settings)
        for loop in self._loops():
            loop.close()
        self.epoch = saved.epoch
        if saved.told is not None:
            self._tell(saved.told)
        for generator, before in zip(generators_of(self.settings), saved.generators, strict=True):
            generator.set_state(before)
        self.workshop.seed = saved.seed
        self._last = {"epoch": saved.epoch, "batch": saved.batch, "counted": saved.counted}
        self._counted = saved.counted
        self._resume = saved.resume

    def resize(self, allocation: Allocation | Mapping[str, int]) -> None:
        """Other slots from now on: takes effect at the next task and loses no batch. Worker processes that no slot is
        left for are ended some seconds later, which frees their memory; iterators keep theirs.

        More slots for ``"fetch"`` than can be used (iterators of an iterable-style dataset, or one where threads
        must not share the dataset) are cut down to that.
        """
        self._check_usable()
        self._set(self.allocation.merged(allocation, self.stages))

    def stats(self, *, resident: bool = False) -> PipelineStats:
        """What was measured so far; `resident` also adds up the resident memory of all workers (a few ms)."""
        self.check_process()
        readings = [loop.in_flight.read() for loop in self._loops()]
        with self._changed:
            # One that is closed counts itself until `leave` has taken what it counted.
            loops = [loop for ref in self._active if (loop := ref()) is not None]
            counts = self.counts
            last = self._last["epoch"], self._last["batch"]
            epoch, batch = (loops[-1].epoch, loops[-1].batch) if loops else last
            return PipelineStats(
                stages=tuple(
                    self._stage(name, loops, [stages[number] for stages, _ in readings if stages])
                    for number, name in enumerate(self.stages)
                ),
                elapsed_s=counts.elapsed_s + sum(time.monotonic() - loop.began for loop in loops),
                epoch=epoch,
                batch=batch,
                batches=counts.batches,
                rows=counts.rows,
                step_s=counts.step_s,
                wait_s=counts.wait_s,
                memory_held=sum(loop.in_flight.ledger.held for loop in loops),
                memory_peak=max([self._peak, *(loop.in_flight.ledger.peak for loop in loops)]),
                memory_resident=resident_bytes([os.getpid(), *self.workshop.processes.pids(), *server_pids()])
                if resident
                else 0,
                memory_limit=sum(limit for _, limit in readings) or self.budget.memory,
                workers_lost=self.workshop.processes.workers_lost,
                allocation=self.allocation,
                watched=True,
            )

    def least_left(self, seconds: float) -> int | None:
        """As of `Loader`: fewest bytes that were left to this job in the last `seconds`."""
        found = [loop.in_flight.least_left(seconds) for loop in self._loops()]
        return min((left for left in found if left is not None), default=None)

    @property
    def closed(self) -> bool:
        """Whether it was closed: it hands out nothing any more."""
        return self._closed

    def close(self) -> None:
        """End the workers and let go of everything; may be called again."""
        if self._closed or os.getpid() != self.pid:
            return
        for loop in self._loops():
            loop.close()
        self._closed = True
        self._finalizer()

    def __enter__(self) -> TunableDataLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError("a TunableDataLoader belongs to its process; send the DataLoader and wrap it there")

    def __getattr__(self, name: str) -> Any:
        # Private ones too: trainers ask a DataLoader for its `_index_sampler` and `_dataset_kind`.
        if name.startswith("__") or "dataloader" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.dataloader, name)

    def __setattr__(self, name: str, value: Any) -> None:
        mine = self.__dict__
        if "_finalizer" not in mine or name in mine or hasattr(type(self), name):
            object.__setattr__(self, name, value)
        else:
            setattr(self.dataloader, name, value)  # which the next loop reads

    # ---- for the loops ---------------------------------------------------------------------------------------

    def check_process(self) -> None:
        """A `LoaderError` in a fork of the process that made the loader."""
        check_process(self.pid)

    def recap(self) -> None:
        """Keep to what can be used, now that it is known where the code runs."""
        self._set(self.allocation)

    def share(self) -> int:
        """Bytes that each of the loops under way may hold."""
        return max(1, self.budget.memory // max(1, len(self._loops())))

    def leave(self, epoch: Epoch) -> None:
        """A loop is over: what it counted is the loader's from now on."""
        with self._changed:
            self._active = [ref for ref in self._active if ref() not in (None, epoch)]
            for name, meter in self._meters.items():
                meter.add(epoch.in_flight.meters[name])
            self.counts.elapsed_s += time.monotonic() - epoch.began
            self._peak = max(self._peak, epoch.in_flight.ledger.peak)
            self._last = epoch.state()
            if epoch.complete and self.epoch == epoch.epoch:  # else `set_epoch` was called meanwhile
                self.epoch += 1
            epoch.workshop.give_back_fleet(epoch.in_flight.fleet)
            self._divide()

    # ---- inside ----------------------------------------------------------------------------------------------

    def _loops(self) -> list[Epoch]:
        """Loops under way, the last begun last."""
        found = [ref() for ref in self._active]
        return [loop for loop in found if loop is not None and not loop.closed]

    def _read_settings(self) -> None:
        """Read the DataLoader's arguments again, since some may be changed between two loops.

        Raises:
            ConfigError: what they are now cannot be taken apart.
        """
        settings = read_settings(self.dataloader)
        if same_settings(settings, self.settings):
            return
        if settings.persistent and self.settings.persistent and self._begun:
            return  # as torch, whose workers keep what they were started with
        workshop = Workshop(settings, self.budget, self._workers)  # first, since it may raise
        used = [loop.workshop for loop in self._loops()]
        for former in [one for one in self._workshops if one not in used]:
            self._workshops.remove(former)
            former.close()
        self._workshops.append(workshop)
        self.settings, self.workshop = settings, workshop
        self.allocation = self._capped(self.allocation)

    def _stage(self, name: str, loops: Sequence[Epoch], now: Sequence[StageStats]) -> StageStats:
        """A stage over all loops, those under way included."""
        meter = StageMeter(name)
        for meters in (self._meters, *(loop.in_flight.meters for loop in loops)):
            meter.add(meters[name])
        return meter.read(
            slots=self.allocation.of(name),
            running=sum(stage.running for stage in now),
            queue=sum(stage.queue for stage in now),
        )

    def _divide(self) -> None:
        for loop in self._loops():
            loop.in_flight.set_memory(self.share())

    def _tell(self, epoch: int) -> None:
        """Tell the epoch to whatever of the DataLoader wants to know."""
        self._told = epoch
        batches: Any = self.dataloader.batch_sampler
        dataset = self.settings.dataset if self.settings.iterable else None
        told: list[Any] = []
        asked: list[Any] = [self.dataloader.sampler, batches, getattr(batches, "sampler", None), dataset]
        for one in asked:
            if callable(getattr(one, "set_epoch", None)) and not any(one is other for other in told):
                told.append(one)
                one.set_epoch(epoch)

    def _set(self, allocation: Allocation) -> None:
        self.allocation = self._capped(allocation)
        for loop in self._loops():
            loop.in_flight.resize(self.allocation)
        self._limit_processes()

    def _limit_processes(self) -> None:
        """No more than can be used by all loops under way."""
        self.workshop.processes.resize(max(1, len(self._loops())) * self.allocation.of("fetch"))

    def _capped(self, allocation: Allocation) -> Allocation:
        most = self.workshop.most_fetches
        if most is None or allocation.of("fetch") <= most:
            return allocation
        slots = {name: allocation.of(name) for name in self.stages}
        return Allocation.per_stage({**slots, "fetch": most}, memory=allocation.memory)

    def _check_usable(self) -> None:
        if self._closed:
            raise was_closed()
        self.check_process()


def _close(workshops: list[Workshop], pid: int) -> None:
    if os.getpid() == pid:
        for workshop in workshops:
            workshop.close()
