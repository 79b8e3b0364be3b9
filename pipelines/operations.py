"""What each kind of task does to its inputs. Pure but for reading files: any worker can run any task again.

What a task makes is in `payloads`. Under ``on_error="skip"`` a block that cannot be read is `Missing` and a batch that
cannot be made is left out; the others keep their rows and order.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from intune.pipelines import shuffle
from intune.pipelines.errors import (
    DataError,
    IntuneError,
    MemoryShortError,
    SchemaError,
    StageError,
    StageTimeout,
    StorageError,
    WorkerLostError,
)
from intune.pipelines.joining import Joining
from intune.pipelines.payloads import Missing, Partial, Piece
from intune.pipelines.plan import Ints, LoadBlock, Plan
from intune.pipelines.reading.dataset import Dataset
from intune.pipelines.reading.failures import out_of_resources
from intune.pipelines.reading.reader import COLUMNS_AT_ONCE, Reader, Stopped, describe_groups
from intune.pipelines.returned import checked, owned
from intune.pipelines.schema import Array, Block, block_rows, concat_blocks, slice_block, writable
from intune.pipelines.stages import Map

if TYPE_CHECKING:
    from intune.pipelines.transfer import Device


@dataclass(slots=True)
class Over:
    """Whether nobody wants what a job makes any more; its `Run` says so. A copy in another process hears nothing."""

    now: bool = False


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything a worker needs to run any task of an epoch.

    Attributes:
        plan: the epoch's tasks.
        dataset: the files.
        maps: the user's functions, in order.
        device: where `transfer` brings batches.
        skip: whether data that cannot be used is left out instead of ending the job.
        over: whether nobody wants it any more; asked between the calls of a task, which may take long.
        joining: what is known of the last function from epochs before.
    """

    plan: Plan
    dataset: Dataset
    maps: tuple[Map, ...] = ()
    device: str = "cpu"
    skip: bool = False
    over: Over = field(default_factory=Over, compare=False)
    joining: Joining = field(default_factory=Joining, compare=False)

    def where(self, level: int, index: int) -> str:
        """What a task works on, for a person: stage, batches and the files and row groups they come from."""
        plan = self.plan
        this = plan.levels[level]
        runs: list[tuple[int, list[int]]] = []
        for block in self._sources(level, index):
            if runs and runs[-1][0] == block.file and runs[-1][1][-1] + 1 == block.groups[0]:
                runs[-1][1].extend(block.groups)
            else:
                runs.append((block.file, list(block.groups)))
        shown = [f"{self.dataset.files[file].path}, {describe_groups(groups)}" for file, groups in runs[:3]]
        if len(runs) > 3:
            shown.append(f"and {len(runs) - 3} more")
        if all(before.operation != "batch" for before in plan.levels[: level + 1]):
            return f"stage {this.stage!r}, " + "; ".join(shown)
        what = f"batch {this.start[index]}"
        if this.stop[index] - this.start[index] > 1:
            what = f"batches {this.start[index]} to {this.stop[index] - 1}"
        return f"stage {this.stage!r}, {what} (from {'; '.join(shown)})"

    def _sources(self, level: int, index: int) -> Sequence[LoadBlock]:
        first, last = index, index + 1
        for step in range(level, 0, -1):
            this = self.plan.levels[step]
            first, last = int(this.first[first]), int(this.last[last - 1])
        return self.plan.blocks[first:last]


@dataclass(slots=True)
class Result:
    """A task's output and what had to be skipped on the way (empty unless ``on_error="skip"``)."""

    payload: Any
    skipped: list[str] = field(default_factory=list)


CallMap = Callable[[Map, Block], "dict[str, Any]"]

LOOKS = 50
"""Times within a function's time limit that it is looked whether it has returned."""


_timed = threading.local()


def cpu_seconds() -> float:
    """Seconds of processor time of the current thread, and of the threads in which `call_here` ran functions for it."""
    return time.thread_time() + float(getattr(_timed, "cpu_s", 0.0))


def call_here(stage: Map, block: Block) -> dict[str, Any]:
    """Run the user's function in this process; in a thread of its own if it has a time limit.

    Raises:
        StageTimeout: it did not return in time. A thread cannot be ended from outside: it goes on, for nobody.
        WorkerLostError: the system allows no more threads.
    """
    if stage.timeout is None:
        return stage.function(block)
    outcome: Future[dict[str, Any]] = Future()
    used: list[float] = []

    def work() -> None:
        began = time.thread_time()
        try:
            made = stage.function(block)
        except BaseException as error:
            used.append(time.thread_time() - began)
            outcome.set_exception(error)
        else:
            used.append(time.thread_time() - began)
            outcome.set_result(made)

    try:
        threading.Thread(target=work, name="intune-timed-call", daemon=True).start()
    except RuntimeError as error:
        raise WorkerLostError(
            f"no thread could be started for a call with a `timeout` ({error}); allow more processes (ulimit -u, or "
            "pids.max of the control group), or give the stage fewer slots"
        ) from error
    # In parts, so that a time for which the job as a whole stands still, the function with it, counts as one of them.
    for _ in range(LOOKS):
        if wait([outcome], stage.timeout / LOOKS).done:
            _timed.cpu_s = getattr(_timed, "cpu_s", 0.0) + used[0]
            return outcome.result()
    raise timed_out(stage)


def timed_out(stage: Map) -> StageTimeout:
    """What to raise where a stage's function took longer than its time limit."""
    return StageTimeout(
        f"the function did not return within `timeout`={stage.timeout:g} s; mend it or allow more"
    )


class Operations:
    """Runs tasks; one per process, shared by its threads.

    Args:
        job: what to run.
        call: runs the user's function; another one sends it to a process.
    """

    def __init__(self, job: Job, call: CallMap = call_here, *, reader: Reader | None = None) -> None:
        self.job = job
        self._call = call
        self._reader = reader if reader is not None else Reader(job.dataset)
        self._cells = _Cells(job.plan)
        self._device: Device | None = None

    def run(self, level: int, index: int, inputs: Sequence[Any]) -> Result:
        """Do task `index` of level `level` on the outputs it takes, in order.

        Raises:
            DataError, StageError: as the task found them; `StorageError` is worth another try.
            Stopped: nobody wants the output any more.
        """
        operation = self.job.plan.levels[level].operation
        if operation == "load":
            return self._load(index)
        if operation == "merge":
            return Result(self._merge(level, index, inputs))
        if operation == "batch":
            return Result(self._batch(level, index, inputs))
        if operation == "regroup":
            return Result(self._regroup(level, index, inputs))
        if operation == "transfer":
            return Result(self._transfer(level, index, inputs))
        if isinstance(inputs[0], list):
            return self._map_batches(level, index, inputs)
        return self._map_block(level, index, inputs[0])

    def device(self) -> Device:
        """The device of `transfer`, made at first use."""
        if self._device is None:
            # Imported here since a worker process that moves nothing to a device need not pay for torch.
            from intune.pipelines.transfer import Device

            self._device = Device(self.job.device)
        return self._device

    def close(self) -> None:
        """Let go of files."""
        self._reader.close()

    def _load(self, index: int) -> Result:
        block = self.job.plan.blocks[index]
        try:
            if not self._shuffled_next(0):
                return Result(self._reader.read(block))
            order, edges = self._layout(0, index)
            return Result(shuffle.lay_out(self._reader.read_some(block), order, edges))
        except StorageError:
            raise
        except DataError as error:
            if not self.job.skip:
                raise
            return Result(Missing(block.rows), [str(error)])

    def _shuffled_next(self, level: int) -> bool:
        return self.job.plan.levels[level + 1].operation == "merge"

    def _layout(self, level: int, index: int) -> tuple[Ints, Array]:
        """How a task lays its rows out for the shuffle that follows: order and edges as in `shuffle.layout`."""
        plan = self.job.plan
        start, stop = int(plan.levels[level].start[index]), int(plan.levels[level].stop[index])
        window = plan.window_of(start)
        origin = int(plan.windows[window])
        return shuffle.layout(self._cells.of(window)[start - origin : stop - origin], plan.cell_count(window))

    def _merge(self, level: int, index: int, inputs: Sequence[Any]) -> Any:
        plan = self.job.plan
        start, stop = int(plan.levels[level].start[index]), int(plan.levels[level].stop[index])
        origin = plan.cell_of(int(plan.windows[plan.window_of(start)]))
        first, last = plan.cell_of(start) - origin, plan.cell_of(stop - 1) + 1 - origin
        parts = [part for part in inputs if not isinstance(part, Missing)]
        if not parts:
            return Missing(stop - start)
        try:
            block = shuffle.gather(parts, first, last)
        except SchemaError as error:
            raise self._unlike(level, index, error) from None
        if len(parts) == len(inputs):
            return block
        starts = np.maximum(start, (np.arange(first, last, dtype=np.int64) + origin) * plan.batch_size)
        return Partial(block, shuffle.places(parts, first, last, starts))

    def _batch(self, level: int, index: int, inputs: Sequence[Any]) -> list[Piece]:
        plan = self.job.plan
        this, before = plan.levels[level], plan.levels[level - 1]
        first = int(this.first[index])
        starts = before.start[first : first + len(inputs)].tolist()
        stops = before.stop[first : first + len(inputs)].tolist()
        edges = plan.edges[int(this.start[index]) : int(this.stop[index]) + 1].tolist()
        pieces: list[Piece] = []
        batch, at = 0, 0
        while batch < len(edges) - 1:
            low = edges[batch]
            while stops[at] <= low:
                at += 1
            end = batch + 1
            if stops[at] >= edges[end]:
                # All batches that lie in one input whole stay together: a view, cut up when it is needed.
                while end < len(edges) - 1 and edges[end + 1] <= stops[at]:
                    end += 1
                pieces.extend(_within(inputs[at], starts[at], stops[at], edges[batch : end + 1]))
            else:
                try:
                    pieces.append(_across(inputs, starts, stops, at, low, edges[end]))
                except SchemaError as error:
                    raise self._unlike(level, index, error) from None
            batch = end
        return pieces

    def _unlike(self, level: int, index: int, error: SchemaError) -> StageError:
        """Blocks that cannot be joined: which stage made them and what to do. (Those read from files are alike.)"""
        levels = self.job.plan.levels[:level]
        maker = next((below.stage for below in reversed(levels) if below.operation == "map"), "load")
        return StageError(
            f"{self.job.where(level, index)}: blocks that stage {maker!r} made cannot be joined: {error}; "
            "its function must return the same columns, of the same types, for every block"
        )

    def _regroup(self, level: int, index: int, inputs: Sequence[Any]) -> list[Piece]:
        this = self.job.plan.levels[level]
        start, stop = int(this.start[index]), int(this.stop[index])
        singles = [single for piece in self._pieces(level, index, inputs) for single in piece.singles()]
        return [singles[i - start] for i in self.job.plan.batch_order(start, stop).tolist()]

    def _map_block(self, level: int, index: int, payload: Any) -> Result:
        """The user's function on rows that are not in batches yet."""
        if isinstance(payload, Missing):
            return Result(payload)
        block = payload.block if isinstance(payload, Partial) else payload
        result = Result(Missing(block_rows(block)))
        made = None
        stage = self.job.maps[self.job.plan.levels[level].map_index]
        if block_rows(block):
            made = self._apply(stage, level, index, block, result)
        if made is None:
            return result
        if stage.workers == "thread":
            made = owned(made, block)
        result.payload = Partial(made, payload.places) if isinstance(payload, Partial) else made
        if self._shuffled_next(level):
            parts = shuffle.columns_of(made, COLUMNS_AT_ONCE)
            result.payload = shuffle.lay_out(parts, *self._layout(level, index))
        return result

    def _map_batches(self, level: int, index: int, inputs: Sequence[Any]) -> Result:
        """The user's function on batches; on many at once where it says that rows do not matter to each other."""
        stage = self.job.maps[self.job.plan.levels[level].map_index]
        joined = stage.rowwise and not self.job.skip
        # Only the last: whether the next is given batches joined would depend on this one's speed. And only where it
        # runs in this thread, whose time tells what it took.
        measured = (
            joined and stage is self.job.maps[-1] and stage.workers == "thread" and stage.timeout is None
        )
        result = Result([])
        # What comes from a process lies in memory that it shares with this one for the purpose.
        slices = stage.workers == "thread"

        def apply(block: Block) -> Block | None:
            nonlocal slices
            if self.job.over.now:
                raise Stopped
            made = self._apply(stage, level, index, block, result)
            if made is None or not slices:
                return made
            alone = owned(made, block)
            slices = alone is not made  # a function does with all batches as with the first
            return alone

        for piece in self._pieces(level, index, inputs):
            for part in [piece] if joined else piece.singles():
                if part.block is None:
                    result.payload.append(part)
                elif measured:
                    result.payload.extend(self.job.joining.results(part, apply))
                else:
                    result.payload.append(Piece(apply(part.block), part.edges))
        return result

    def _apply(self, stage: Map, level: int, index: int, block: Block, result: Result) -> Block | None:
        rows = block_rows(block)
        try:
            return checked(self._call(stage, writable(block)), rows, last=stage is self.job.maps[-1])
        except Exception as error:
            failure, cause = _failure(error, stage, self.job.where(level, index))
        # Of want of memory, of descriptors or of a process (which has a cause if it could not be started), the data is
        # not guilty: the same batch may pass the next time.
        short = isinstance(failure, MemoryShortError) or out_of_resources(cause)
        try:
            if not self.job.skip or short or (isinstance(failure, WorkerLostError) and cause is not None):
                raise failure from cause
            result.skipped.append(str(failure))
            return None
        finally:
            del failure, cause  # they hold this frame, which holds all the loader has

    def _transfer(self, level: int, index: int, inputs: Sequence[Any]) -> list[Piece]:
        pieces = self._pieces(level, index, inputs)
        if self.job.device == "cpu":
            return pieces  # `run.finalize` lays tensors over the columns
        device = self.device()
        singles = [single for piece in pieces for single in piece.singles()]
        return [
            single if single.block is None else Piece(device.stage(single.block), single.edges)
            for single in singles
        ]

    def _pieces(self, level: int, index: int, inputs: Sequence[Any]) -> list[Piece]:
        """The batches of a task, out of the lists it takes."""
        plan = self.job.plan
        this, before = plan.levels[level], plan.levels[level - 1]
        skip = int(this.start[index]) - int(before.start[this.first[index]])
        wanted = int(this.stop[index] - this.start[index])
        there = int(before.stop[this.last[index] - 1] - before.start[this.first[index]])
        # A task may take few of very many: all batches of a window in which they were mixed, each a piece by itself.
        pieces = inputs[0] if len(inputs) == 1 else list(itertools.chain.from_iterable(inputs))
        if wanted == there:
            return list(pieces)
        if len(pieces) < there:
            pieces = [single for piece in pieces for single in piece.singles()]
        return list(pieces[skip : skip + wanted])


def _failure(error: Exception, stage: Map, where: str) -> tuple[IntuneError, BaseException | None]:
    """What to raise for what a function raised, naming the place, and its cause."""
    # But for failures of storage: those are tried again, and the function may have changed what it was given.
    if isinstance(error, IntuneError) and not isinstance(error, StorageError):
        # A class of the user's own may want other arguments.
        with contextlib.suppress(Exception):
            return type(error)(f"{where}: {error}"), error.__cause__
    function = stage.function.func if isinstance(stage.function, partial) else stage.function
    name = getattr(function, "__qualname__", type(function).__qualname__)
    try:
        said = str(error)
    except Exception:  # of a class of the user's
        said = "(its text cannot be made)"
    remedy = "mend the function, or skip such batches with on_error='skip'"
    if out_of_resources(error):
        remedy = (
            "nothing is wrong with the batch, so it is not skipped either: give the pipeline fewer slots or less "
            "`memory`, or allow the job more memory and open files (its control group, ulimit -v, -n)"
        )
    return StageError(f"{where}: {name} raised {type(error).__name__}: {said}; {remedy}"), error


def _within(block: Any, start: int, stop: int, edges: list[int]) -> list[Piece]:
    """Batches between `edges` out of the one block, for rows ``[start, stop)``, that holds them all."""
    if isinstance(block, Missing):
        return [Piece(None, edges)]
    if isinstance(block, Partial):
        return [_single([_rows(block, low, high, start)]) for low, high in itertools.pairwise(edges)]
    low = edges[0]
    return [Piece(slice_block(block, low - start, edges[-1] - start), [edge - low for edge in edges])]


def _across(
    inputs: Sequence[Any], starts: list[int], stops: list[int], at: int, low: int, high: int
) -> Piece:
    """One batch, rows ``[low, high)``, out of several blocks from the one at `at` on."""
    parts = []
    while at < len(inputs) and starts[at] < high:
        if not isinstance(inputs[at], Missing):
            parts.append(_rows(inputs[at], max(low, starts[at]), min(high, stops[at]), starts[at]))
        at += 1
    return _single(parts)


def _single(parts: list[Block]) -> Piece:
    """One batch of these rows; left out if there are none."""
    parts = [part for part in parts if block_rows(part)]
    if not parts:
        return Piece(None, [0, 0])
    block = concat_blocks(parts)
    return Piece(block, [0, block_rows(block)])


def _rows(block: Any, low: int, high: int, start: int) -> Block:
    """Rows ``[low, high)`` of the sequence out of a block whose first stands at `start`."""
    if isinstance(block, Partial):
        return slice_block(block.block, *np.searchsorted(block.places, [low, high]).tolist())
    return slice_block(block, low - start, high - start)


class _Cells:
    """Where the rows of the windows go, each window's computed once by whichever thread needs it first."""

    KEPT = 4

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, Any] = OrderedDict()

    def of(self, window: int) -> Any:
        with self._lock:
            if window not in self._kept:
                self._kept[window] = self._plan.cells(window)
                while len(self._kept) > self.KEPT:
                    self._kept.popitem(last=False)
            return self._kept[window]
