"""`Loader`: the iterable a training loop consumes, resizable while it runs."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from types import TracebackType
from typing import Any, Literal

from intune.pipelines.allocation import Allocation
from intune.pipelines.budget import Budget, format_bytes
from intune.pipelines.epoch import Counts, Epoch
from intune.pipelines.errors import ConfigError, SkipLimitError
from intune.pipelines.executors.choice import Fleet, budget_for, choose, make_fleet
from intune.pipelines.executors.fork_server import server_pids
from intune.pipelines.footprint import Footprint
from intune.pipelines.joining import Joining
from intune.pipelines.memory import MemoryLedger, resident_bytes
from intune.pipelines.metrics import PipelineStats, StageMeter
from intune.pipelines.operations import Job
from intune.pipelines.pipeline import Pipeline
from intune.pipelines.plan import BLOCK_ROWS, Plan, make_plan
from intune.pipelines.position import Position
from intune.pipelines.pressure import Pressure
from intune.pipelines.reading.dataset import Dataset, open_dataset
from intune.pipelines.reading.files import OpenFiles
from intune.pipelines.run import Run, check_process, was_closed
from intune.pipelines.scheduler import Scheduler
from intune.pipelines.whole import at_least

logger = logging.getLogger("intune")


class Loader:
    """Batches of a pipeline, made by workers ahead of the trainer.

    Each ``for`` over it is one epoch; when one has been read to its end the next is another epoch, with another
    order if the pipeline shuffles. A loop that is left early begins the same epoch anew next time.
    A loader belongs to the process that made it, and one loop at a time reads it; threads may share that loop.

    Args:
        pipeline: what to run.
        executor: ``"threads"`` in this process, ``"ray"`` on a cluster (one of its own is started on this
            machine where none is connected, nor named by ``RAY_ADDRESS``), or ``"auto"``: Ray where this
            process is connected to a cluster or ``RAY_ADDRESS`` names one, else threads.
        budget: CPUs and bytes the pipeline may use; by default read from what the job may really use, on a Ray
            cluster this rank's share of the CPUs.
        allocation: slots to begin with; by default one pool: as many slots as the budget has CPUs, and on Ray,
            where a task also waits for messages, twice as many.
        rank, world_size: this trainer's share of the rows, as in `torch.distributed`.
        in_order: deliver in plan order; False delivers batches as they are finished, each exactly once.
        on_error: ``"raise"``, or ``"skip"`` to leave out files, row groups and batches that cannot be used.
        max_skipped: how many of those are tolerated in an epoch.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        executor: Literal["auto", "threads", "ray"] = "auto",
        budget: Budget | None = None,
        allocation: Allocation | Mapping[str, int] | None = None,
        rank: int = 0,
        world_size: int = 1,
        in_order: bool = True,
        on_error: Literal["raise", "skip"] = "raise",
        max_skipped: int = 100,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        world_size, rank = at_least("world_size", world_size, 1), at_least("rank", rank, 0)
        if rank >= world_size:
            raise ConfigError(f"`rank`={rank} must be below `world_size`={world_size}; ranks count from 0")
        if on_error not in ("raise", "skip"):
            raise ConfigError(f"`on_error`={on_error!r} is unknown; use 'raise' or 'skip'")
        max_skipped = at_least("max_skipped", max_skipped, 0)
        self.pipeline = pipeline
        self.order = pipeline.order()
        self.stages: tuple[str, ...] = pipeline.stage_names
        self.executor = choose(executor)
        self.budget = budget_for(self.executor, budget, world_size)
        self.rank, self.world_size = rank, world_size
        self._in_order = in_order
        self._skip = on_error == "skip"
        self._max_skipped = max_skipped
        self._clock = clock
        self._pressure = Pressure(clock=clock)
        files = OpenFiles() if self.executor == "threads" else None  # Ray's workers open their own
        self.dataset: Dataset = open_dataset(
            pipeline.load.source, on_error=on_error, retries=pipeline.load.retries, files=files
        )
        if len(self.dataset.skipped) > max_skipped:
            raise SkipLimitError(
                f"{len(self.dataset.skipped)} files were skipped, more than `max_skipped`={max_skipped}; "
                f"the last: {self.dataset.skipped[-1][1]}"
            )
        self._device = self._make_device()
        self.epoch = 0
        self._pid = os.getpid()
        if allocation is not None:
            Allocation.shared(1).merged(allocation, self.stages)  # nonsense is refused before workers start
        self._fleet = make_fleet(self.executor, pipeline.maps, self.budget, files)
        base = Allocation.shared(max(1, self._fleet.default_slots(self.budget)))
        self.allocation = base if allocation is None else base.merged(allocation, self.stages)
        self._meters = {name: StageMeter(name) for name in self.stages}
        self._finalizer = weakref.finalize(self, _close_fleet, self._fleet, self._pid)
        try:
            self._plan = self._make_plan(0)
            self._check_memory()
        except BaseException:
            self._finalizer()  # else the workers would live as long as the exception, which holds this frame
            raise
        self._ledger = MemoryLedger()
        self._counts = Counts()
        self._joining = Joining()
        self._resume: Position | None = None  # where the next loop begins, if not at the first batch
        self._counted: int | None = None  # the epoch of which the state that was loaded had all batches
        self._active: weakref.ref[Epoch] | None = None
        self._last = Position(epoch=0)  # of the trainer, when no loop is under way
        self._closed = False
        self._check_shuffle()
        for _, error in self.dataset.skipped:
            self._report_skip(str(error))

    # ---- what a training loop uses ---------------------------------------------------------------------------

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self._check_usable()
        if (active := self._current()) is not None:
            active.close()
        start = self._resume or Position(epoch=self.epoch)
        run = self._make_run(start)
        self._fleet.start(run, self.allocation.total)
        epoch = Epoch(
            run,
            start,
            fleet=self._fleet,
            counts=self._counts,
            device=self._device,
            left=self._leave,
            at_exit=self._at_exit,
        )
        self._resume = None  # not before: a loop that could not begin has taken nothing
        self._counted = None
        self._active = weakref.ref(epoch)
        epoch.resize(self.allocation)  # it may have changed while the epoch began, which on Ray takes seconds
        return epoch

    def __len__(self) -> int:
        """Batches of an epoch on this rank."""
        return self._plan.batches

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next loop reads, as `DistributedSampler.set_epoch`; of the one that a loaded state is in, it
        reads what is left."""
        epoch = at_least("epoch", epoch, 0)
        if epoch != self.epoch:
            first = len(self) if epoch == self._counted else 0
            self._resume = self._last = Position(epoch=epoch, batch=first)
        self.epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """Where the trainer is: the batches it was handed, not those made ahead. Plain numbers and strings."""
        return self._position().saved(self._fingerprint)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with exactly the batch after those that `state` counts.

        Raises:
            LoaderError: the state belongs to other data, another pipeline or another share of the rows.
        """
        self._check_usable()
        position = Position.of(state, self._fingerprint, len(self))
        if (active := self._current()) is not None:
            active.close()
        self._active = None
        self._counted = position.epoch if position.batch == len(self) else None
        if position.batch == len(self):
            position = Position(epoch=position.epoch + 1)
        self.epoch = position.epoch
        self._resume = self._last = position

    def resize(self, allocation: Allocation | Mapping[str, int]) -> None:
        """Other slots from now on: takes effect within one task, stops no worker and loses no batch.

        Args:
            allocation: slots of some or all stages, or an `Allocation`.
        """
        self._check_usable()
        self.allocation = self.allocation.merged(allocation, self.stages)
        self._fleet.resize(self.allocation.total, self._in_processes())
        if (active := self._current()) is not None:
            active.resize(self.allocation)

    def _in_processes(self) -> int:
        """Calls of functions with ``workers="process"`` that may be under way at once."""
        stages = [stage.name for stage in self.pipeline.maps if stage.workers == "process"]
        allocation = self.allocation
        return allocation.total if allocation.is_shared else sum(allocation.of(name) for name in stages)

    def stats(self, *, resident: bool = False) -> PipelineStats:
        """What was measured so far; `resident` also adds up the resident memory of all workers (a few ms)."""
        check_process(self._pid)
        active = self._current()
        position = self._position()
        counts = self._counts
        if active is not None:
            stages, limit, elapsed, redone = active.read()
        else:
            stages = tuple(
                meter.read(slots=self.allocation.of(name), running=0, queue=0)
                for name, meter in self._meters.items()
            )
            limit, elapsed, redone = self.budget.memory, counts.elapsed_s, counts.redone
        return PipelineStats(
            stages=stages,
            elapsed_s=elapsed,
            epoch=position.epoch,
            batch=position.batch,
            batches=counts.batches,
            rows=counts.rows,
            step_s=counts.step_s,
            wait_s=counts.wait_s,
            memory_held=self._ledger.held,
            memory_peak=self._ledger.peak,
            memory_resident=resident_bytes([os.getpid(), *self._fleet.pids(), *server_pids()])
            if resident
            else 0,
            memory_limit=limit,
            redone=redone,
            workers_lost=self._fleet.workers_lost,
            skipped=counts.skipped,
            allocation=self.allocation,
            # Of the memory of other machines it sees nothing.
            watched=self.executor != "ray",
        )

    def least_left(self, seconds: float) -> int | None:
        """Fewest bytes that were left to this job at any time in the last `seconds`, as far as workers here looked;
        None where nobody did."""
        return None if self.executor == "ray" else self._pressure.least_left(seconds)

    @property
    def closed(self) -> bool:
        """Whether it was closed: it hands out nothing any more."""
        return self._closed

    def close(self) -> None:
        """End the workers and let go of everything; may be called again, and by a signal handler."""
        if self._closed or os.getpid() != self._pid:
            return
        if (active := self._current()) is not None:
            if active.in_use_here():  # by what a signal handler interrupted; the workers wait for it, too
                threading.Thread(target=self.close, name="intune-close").start()
                return
            active.close()
        self._closed = True
        _close_fleet(self._fleet, self._pid)
        self._finalizer.detach()  # not before: what a second Ctrl-C cuts short is done at the end of the process

    def __reduce__(self) -> Any:
        raise TypeError("a loader belongs to its process; send the pipeline, and make a loader of it there")

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- inside ----------------------------------------------------------------------------------------------

    def _current(self) -> Epoch | None:
        active = self._active() if self._active is not None else None
        return active if active is not None and not active.closed else None

    def _position(self) -> Position:
        active = self._current()
        return active.position() if active is not None else self._last

    def _leave(self, position: Position, complete: bool) -> None:
        """A loop ended there."""
        if complete:
            if self.epoch == position.epoch:  # else `set_epoch` was called meanwhile
                self.epoch += 1
            position = Position(epoch=self.epoch)
        self._last = position

    def _at_exit(self) -> bool:
        return not (self._closed or self._finalizer.alive)

    @cached_property
    def _fingerprint(self) -> dict[str, Any]:
        """What a state belongs to; hashing the files' names and rows takes too long to do it every step."""
        shuffle = self.order.shuffle
        return {
            "data": self.dataset.fingerprint(),
            "stages": [kind for _, kind in self.order.steps if kind in ("shuffle", "batch")],
            "batch_size": self.order.batch_size,
            "drop_last": self.order.drop_last,
            "shuffle": None if shuffle is None else [shuffle.row_groups, shuffle.seed],
            "rank": self.rank,
            "world_size": self.world_size,
        }

    def _make_device(self) -> Any:
        if self.pipeline.device == "cpu":
            return None
        from intune.pipelines.transfer import Device

        return Device(self.pipeline.device)

    def _make_plan(self, epoch: int) -> Plan:
        if getattr(self, "_planned", None) != epoch:
            self._plan = make_plan(
                self.dataset.row_groups(),
                self.order,
                epoch=epoch,
                rank=self.rank,
                world_size=self.world_size,
                chunk_rows=self._chunk_rows(),
            )
            self._planned = epoch
        return self._plan

    def _chunk_rows(self) -> int:
        """Rows of a task after `batch`: a whole block where that saves calls (functions that take many batches
        at once), else what the executor prefers; out of a shuffle, what is still in the cache."""
        coarse = all(stage.rowwise for stage in self.pipeline.maps) and not self.order.mixes_rows
        return BLOCK_ROWS if coarse else self._fleet.chunk_rows

    def _make_run(self, start: Position) -> Run:
        plan = self._make_plan(start.epoch)
        # "cuda" is what the trainer's thread has chosen by now; in the workers' threads it would be the first device.
        self._device = self._make_device()
        scheduler = Scheduler(
            plan,
            self.stages,
            allocation=self.allocation,
            memory=self.budget.memory,
            first_batch=start.batch,
            in_order=self._in_order,
            ledger=self._ledger,
            meters=self._meters,
            pressed=self._pressure,
            now=self._clock(),
        )
        job = Job(
            plan=plan,
            dataset=self.dataset,
            maps=self.pipeline.maps,
            device="cpu" if self._device is None else self._device.name,
            skip=self._skip,
            joining=self._joining,
        )
        return Run(
            job,
            scheduler,
            retries=self.pipeline.load.retries,
            max_skipped=self._max_skipped,
            skipped=len(self.dataset.skipped),
            on_skip=_weakly(self),
            clock=self._clock,
        )

    def _report_skip(self, message: str) -> None:
        self._counts.skipped += 1
        logger.warning("skipped: %s", message)

    def _check_memory(self) -> None:
        least = Footprint(self._plan, self.allocation, self._meters).minimum
        if least > self.budget.memory:
            raise ConfigError(
                f"`budget` allows {format_bytes(self.budget.memory)}, but this pipeline needs about "
                f"{format_bytes(least)} at once; "
                "allow more, shuffle over fewer row groups, read fewer columns or write smaller row groups"
            )

    def _check_shuffle(self) -> None:
        shuffle, plan = self.order.shuffle, self._plan
        if shuffle and any(
            level.operation == "regroup" and len(level) == plan.batches > 1 for level in plan.levels
        ):
            logger.warning(
                "`shuffle(row_groups=%d)` after `batch(%d)` changes nothing, since so many row groups have rows for no "
                "more than one batch; give it more row groups, or shuffle before `batch`",
                shuffle.row_groups,
                plan.batch_size,
            )

    def _check_usable(self) -> None:
        if self._closed:
            raise was_closed()
        check_process(self._pid)


def _weakly(loader: Loader) -> Callable[[str], None]:
    """Tells a loader of skips without keeping it: executors' threads hold a run a little longer than anyone reads it,
    and a loader that went with the last of them would end its workers from a thread that they answer to."""
    reference = weakref.ref(loader)

    def report(message: str) -> None:
        alive = reference()
        if alive is not None:
            alive._report_skip(message)

    return report


def _close_fleet(fleet: Fleet, pid: int) -> None:
    if os.getpid() != pid:
        return
    if threading.current_thread().name.startswith("intune-"):
        # By the garbage collector or a user's function, in the middle of a task: other workers may wait for a lock
        # that this one holds, and so could not end.
        with contextlib.suppress(RuntimeError):  # the interpreter is at its end
            threading.Thread(target=_end, args=(fleet,), name="intune-close").start()
    else:
        _end(fleet)


def _end(fleet: Fleet) -> None:
    for name in fleet.close():
        logger.warning("%s did not end: a call in it takes long, or hangs; it ends with this process", name)
