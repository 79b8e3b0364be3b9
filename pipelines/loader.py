"""`Loader`: the iterable a training loop consumes, resizable while it runs."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from types import TracebackType
from typing import Any, Literal, NoReturn

from intune.pipelines.allocation import Allocation
from intune.pipelines.budget import Budget, format_bytes
from intune.pipelines.dataset import Dataset, open_dataset
from intune.pipelines.errors import ConfigError, LoaderError, SkipLimitError
from intune.pipelines.executors.choice import Fleet, choose, detect, make_fleet
from intune.pipelines.executors.fork_server import server_pids
from intune.pipelines.files import OpenFiles
from intune.pipelines.footprint import Footprint
from intune.pipelines.joining import Joining
from intune.pipelines.memory import MemoryLedger, resident_bytes
from intune.pipelines.metrics import PipelineStats, StageMeter
from intune.pipelines.operations import Job
from intune.pipelines.pipeline import Pipeline
from intune.pipelines.plan import BLOCK_ROWS, Plan, make_plan
from intune.pipelines.pressure import Pressure
from intune.pipelines.run import Run, close_dropped, was_closed
from intune.pipelines.scheduler import Scheduler
from intune.pipelines.schema import block_rows
from intune.pipelines.whole import at_least

logger = logging.getLogger("intune")

STATE_VERSION = 1


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
        if budget is not None and not isinstance(budget, Budget):
            raise ConfigError(
                f"`budget` must be a Budget, but {type(budget).__name__} was given; "
                "write Budget.detect(cpus=…, memory='4GiB')"
            )
        self.executor = choose(executor)
        self.budget = budget if budget is not None else detect(self.executor, world_size)
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
        self._counts = _Counts()
        self._joining = Joining()
        self._resume: tuple[int, frozenset[int]] = (0, frozenset())
        self._counted: int | None = None  # the epoch of which the state that was loaded had all batches
        self._active: weakref.ref[_Epoch] | None = None
        self._last: tuple[int, int, tuple[int, ...]] = (0, 0, ())
        self._closed = False
        for _, error in self.dataset.skipped:
            self._report_skip(str(error))

    # ---- what a training loop uses ---------------------------------------------------------------------------

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self._check_usable()
        if (active := self._current()) is not None:
            active.close()
        plan = self._make_plan(self.epoch)
        epoch = _Epoch(self, plan, *self._resume)
        self._resume = (0, frozenset())  # not before: a loop that could not begin has taken nothing
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
            self._resume = (first, frozenset())
            self._last = (epoch, first, ())
        self.epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """Where the trainer is: the batches it was handed, not those made ahead. Plain numbers and strings."""
        epoch, batch, ahead = self._position()
        return {
            "version": STATE_VERSION,
            "epoch": epoch,
            "batch": batch,
            "ahead": list(ahead),
            "plan": dict(self._fingerprint),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with exactly the batch after those that `state` counts.

        Raises:
            LoaderError: the state belongs to other data, another pipeline or another share of the rows.
        """
        self._check_usable()
        try:
            version, epoch, batch = int(state["version"]), int(state["epoch"]), int(state["batch"])
            ahead, plan = frozenset(int(i) for i in state.get("ahead", ())), dict(state["plan"])
        except (KeyError, TypeError, ValueError) as error:
            raise LoaderError(
                f"`state` is not a loader's state ({error!r}); give what state_dict() returned"
            ) from error
        if version != STATE_VERSION:
            raise LoaderError(
                f"`state` has version {version}, but this is {STATE_VERSION}; it cannot be read"
            )
        mine = self._fingerprint
        for name, value in mine.items():
            if plan.get(name) != value:
                raise LoaderError(
                    f"`state` was saved with {name} {plan.get(name)!r}, but this loader has {value!r}; "
                    "its position means nothing here"
                )
        if not 0 <= batch <= len(self) or epoch < 0 or any(not batch < i < len(self) for i in ahead):
            raise LoaderError(
                f"`state` says epoch {epoch}, batch {batch}, ahead {sorted(ahead)}, but an epoch has "
                f"{len(self)} batches"
            )
        if (active := self._current()) is not None:
            active.close()
        self._active = None
        self._counted = epoch if batch == len(self) else None
        if batch == len(self):
            epoch, batch, ahead = epoch + 1, 0, frozenset()
        self.epoch = epoch
        self._resume = (batch, ahead)
        self._last = (epoch, batch, tuple(sorted(ahead)))

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
        self._check_process()
        active = self._current()
        epoch, batch, _ = self._position()
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
            epoch=epoch,
            batch=batch,
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

    def _current(self) -> _Epoch | None:
        active = self._active() if self._active is not None else None
        return active if active is not None and not active.closed else None

    def _position(self) -> tuple[int, int, tuple[int, ...]]:
        active = self._current()
        return active.position() if active is not None else self._last

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

    def _start(self, plan: Plan, first: int) -> Run:
        # "cuda" is what the trainer's thread has chosen by now; in the workers' threads it would be the first device.
        self._device = self._make_device()
        scheduler = Scheduler(
            plan,
            self.stages,
            allocation=self.allocation,
            memory=self.budget.memory,
            first_batch=first,
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
        run = Run(
            job,
            scheduler,
            retries=self.pipeline.load.retries,
            max_skipped=self._max_skipped,
            skipped=len(self.dataset.skipped),
            on_skip=_weakly(self),
            clock=self._clock,
        )
        self._fleet.start(run, self.allocation.total)
        return run

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

    def _check_usable(self) -> None:
        if self._closed:
            raise was_closed()
        self._check_process()

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise LoaderError(
                f"the loader was made in process {self._pid} and cannot be used in its fork {os.getpid()}; "
                "make it after the fork, one in each process"
            )


class _Counts:
    """What the loader counts over all epochs."""

    def __init__(self) -> None:
        self.elapsed_s = self.step_s = self.wait_s = 0.0
        self.batches = self.rows = self.redone = self.skipped = 0


class _Epoch(Iterator[dict[str, Any]]):
    """One loop over a loader. Several threads may share it: each batch goes to one of them, the end to all."""

    def __init__(self, loader: Loader, plan: Plan, first: int, ahead: frozenset[int]) -> None:
        self._loader = loader
        self._plan = plan
        self._epoch = loader.epoch
        self._counts = loader._counts
        self._clock = loader._clock
        self._next = first
        self._ahead = set(ahead)
        self._queue: deque[tuple[int, Any]] = deque()
        self._given = first > 0 or bool(ahead)
        self._output: int | None = None
        self._asked: float | None = None
        self._began = self._clock()
        self.closed = False
        self._ended = False
        # Whoever waits for a batch has the turn. The position is apart, so that another thread can close the loop
        # meanwhile. Both are reentrant: the garbage collector may run code that uses a loop within another use.
        self._turn = threading.RLock()
        self._place = threading.RLock()
        self._run = loader._start(plan, first)

    def __next__(self) -> dict[str, Any]:
        self._loader._check_process()  # in a fork the turn may be held for ever
        with self._turn:
            return self._take()

    def _take(self) -> dict[str, Any]:
        now = self._clock()
        if self._ended:
            raise StopIteration
        if self._asked is not None:
            self._counts.step_s += now - self._asked
        if self.closed:
            self._refuse()
        try:
            while not self._queue:
                if not self._fetch():
                    self._ended = True
                    if not self._given:  # an epoch without a batch would look like training
                        raise SkipLimitError(
                            f"all {self._plan.batches} batches of the epoch were skipped, each with a warning that "
                            "says why; mend the data or the function"
                        )
                    raise StopIteration
        except BaseException:
            self.close()
            # Told now; its frames hold this loop, and so the loader, which would go round.
            self._run.error = None
            raise
        with self._place:
            if self.closed:  # by another thread
                self._refuse()
            index, batch = self._queue.popleft()
            self._given = True
            self._advance(index)
        self._counts.batches += 1
        self._counts.rows += block_rows(batch)
        if self._loader._device is not None:
            batch = self._loader._device.hand_over(batch)
        self._asked = self._clock()
        self._counts.wait_s += self._asked - now
        made: dict[str, Any] = batch
        return made

    def _refuse(self) -> NoReturn:
        loader = self._loader
        at_exit = not (loader._closed or loader._finalizer.alive)
        if at_exit and threading.current_thread().daemon:
            threading.Event().wait()  # the program ends, and this thread with it: nobody is to see an error for that
        raise LoaderError(
            "this loop over the loader is over: it was closed, an error has ended it, or another loop has begun; "
            "begin a new one"
        )

    def _fetch(self) -> bool:
        """Get the next output of the workers; False at the end of the epoch."""
        if self._output is not None:
            self._run.consumed(self._output)
            self._output = None
        found = self._run.next_output()
        if found is None:
            # By another thread, perhaps before the loader knew of this loop: that is no end of the epoch.
            if self.closed or self._run.closed:
                self._refuse()
            return False
        self._output, batches = found
        start = int(self._plan.levels[-1].start[self._output])
        with self._place:
            if self.closed:
                self._refuse()
            for index, batch in enumerate(batches, start):
                if index < self._next or index in self._ahead:
                    continue  # handed over before the state was saved that this loop continues
                if batch is None:
                    self._advance(index)
                else:
                    self._queue.append((index, batch))
        return True

    def _advance(self, index: int) -> None:
        self._ahead.add(index)
        while self._next in self._ahead:
            self._ahead.discard(self._next)
            self._next += 1

    def _finish(self) -> None:
        loader = self._loader
        if loader.epoch == self._epoch:  # else `set_epoch` was called meanwhile
            loader.epoch += 1
        loader._last = (loader.epoch, 0, ())

    def position(self) -> tuple[int, int, tuple[int, ...]]:
        """Epoch, batches handed over without a gap, and those handed over beyond it."""
        with self._place:
            return self._epoch, self._next, tuple(sorted(self._ahead))

    def resize(self, allocation: Allocation) -> None:
        """Other slots for the run under way."""
        with self._run.lock:
            self._run.scheduler.resize(allocation, self._clock())
            self._run.work.notify_all()

    def read(self) -> tuple[tuple[Any, ...], int, float, int]:
        """Stages, bytes allowed, and, of all epochs so far, seconds under way and outputs made again."""
        scheduler, counts = self._run.scheduler, self._counts
        with self._run.lock:
            scheduler.tick(self._clock())
            stages, limit = scheduler.read(), scheduler.limit
        with self._place:  # else this epoch, ended just now, would count twice
            if self.closed:
                return stages, limit, counts.elapsed_s, counts.redone
            elapsed = counts.elapsed_s + self._clock() - self._began
            return stages, limit, elapsed, counts.redone + scheduler.redone

    def in_use_here(self) -> bool:
        """Whether this thread is in the middle of something that a close must not change under it."""
        placed: bool = self._place._is_owned()  # type: ignore[attr-defined]
        return placed or self._run.held_here()

    def close(self) -> None:
        """Stop the workers' work on this epoch."""
        loader = self._loader
        if os.getpid() != loader._pid:
            return  # in a fork the workers' locks may be held for ever
        with self._place:
            if self.closed:
                return
            self.closed = True
            self._counts.elapsed_s += self._clock() - self._began
            self._counts.redone += self._run.scheduler.redone
            loader._last = self.position()
            if self._next >= self._plan.batches:
                self._finish()  # by what was taken: a loop that counts its batches does not ask for one more
            self._queue.clear()
        loader._fleet.stop(self._run)

    def __del__(self) -> None:
        # A loop left early drops its iterator: the workers need not go on for nobody.
        if hasattr(self, "_run"):
            close_dropped(self._run, self.close)


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
