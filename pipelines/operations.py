"""What each kind of task does to its inputs. Pure but for reading files: any worker can run any task again.

A task's output (its *payload*) is a block of rows before `batch` and a list of batches after it. Under
``on_error="skip"`` a block that cannot be read is `Missing` and a batch that cannot be made is None; the
others keep their rows and order.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from intune.pipelines.dataset import Dataset, Reader, describe_groups
from intune.pipelines.errors import DataError, IntuneError, SchemaError, StageError, StorageError
from intune.pipelines.plan import Ints, Level, LoadBlock, Plan
from intune.pipelines.schema import (
    Block,
    block_rows,
    concat_blocks,
    concat_columns,
    rows_of,
    slice_block,
    slice_column,
    take_block,
    take_column,
)
from intune.pipelines.stages import Map

if TYPE_CHECKING:
    from intune.pipelines.transfer import Device


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything a worker needs to run any task of an epoch.

    Attributes:
        plan: the epoch's tasks.
        dataset: the files.
        maps: the user's functions, in order.
        device: where `transfer` brings batches.
        skip: whether data that cannot be used is left out instead of ending the job.
    """

    plan: Plan
    dataset: Dataset
    maps: tuple[Map, ...] = ()
    device: str = "cpu"
    skip: bool = False

    def where(self, level: int, index: int) -> str:
        """What a task works on, for a person: stage, batches and the files and row groups they come from."""
        plan = self.plan
        this = plan.levels[level]
        blocks = self._sources(level, index)
        shown = [
            f"{self.dataset.files[block.file].path}, {describe_groups(block.groups)}" for block in blocks[:3]
        ]
        if len(blocks) > 3:
            shown.append(f"and {len(blocks) - 3} more")
        if this.operation in ("load", "split", "merge") or this.stop[index] > plan.batches:
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


@dataclass(frozen=True, slots=True)
class Missing:
    """Stands for rows that could not be read."""

    rows: int


@dataclass(slots=True)
class Split:
    """A block ordered by where its rows go: piece ``g`` is ``[edges[g], edges[g + 1])``, bound for `target`."""

    block: Block
    edges: Ints
    target: Ints

    def values(self) -> list[Any]:
        """Its columns, for those who count memory."""
        return [*self.block.values(), self.target]


@dataclass(slots=True)
class Result:
    """A task's output and what had to be skipped on the way (empty unless ``on_error="skip"``)."""

    payload: Any
    skipped: list[str] = field(default_factory=list)


CallMap = Callable[[Map, Block], "dict[str, Any]"]


def call_here(stage: Map, block: Block) -> dict[str, Any]:
    """Run the user's function in this thread."""
    return stage.function(block)


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
        self._permutations = _Permutations(job.plan)
        self._device: Device | None = None

    def run(self, level: int, index: int, inputs: Sequence[Any]) -> Result:
        """Do task `index` of level `level` on the outputs it takes, in order.

        Raises:
            DataError, StageError: as the task found them; `StorageError` is worth another try.
        """
        this = self.job.plan.levels[level]
        operation = this.operation
        if operation == "load":
            return self._load(index)
        if operation == "split":
            return Result(self._split(level, index, inputs[0]))
        if operation == "merge":
            return Result(self._merge(level, index, inputs))
        if operation == "batch":
            return Result(self._batch(level, index, inputs))
        if operation == "regroup":
            return Result(self._regroup(this, index, inputs))
        if operation == "map":
            return self._map(level, index, inputs)
        return Result(self._transfer(level, index, inputs))

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
            return Result(self._reader.read(block))
        except StorageError:
            raise
        except DataError as error:
            if not self.job.skip:
                raise
            return Result(Missing(block.rows), [str(error)])

    def _split(self, level: int, index: int, block: Any) -> Any:
        if isinstance(block, Missing):
            return block
        plan = self.job.plan
        this, merge = plan.levels[level], plan.levels[level + 1]
        start, stop = int(this.start[index]), int(this.stop[index])
        window = plan.window_of(start)
        origin = int(plan.windows[window])
        target = self._permutations.of(window)[start - origin : stop - origin]
        first = int(np.searchsorted(merge.start, origin))
        last = int(np.searchsorted(merge.start, plan.windows[window + 1]))
        cuts = merge.start[first:last] - origin
        piece = np.searchsorted(cuts, target, side="right") - 1
        order = np.argsort(piece.astype(np.uint16 if len(cuts) < 65_536 else np.int64), kind="stable")
        edges = np.zeros(len(cuts) + 1, dtype=np.int64)
        np.cumsum(np.bincount(piece, minlength=len(cuts)), out=edges[1:])
        return Split(take_block(block, order), edges, target[order])

    def _merge(self, level: int, index: int, inputs: Sequence[Any]) -> Any:
        plan = self.job.plan
        this = plan.levels[level]
        origin = int(plan.windows[plan.window_of(int(this.start[index]))])
        piece = index - int(np.searchsorted(this.start, origin))
        parts = [part for part in inputs if not isinstance(part, Missing)]
        if not parts:
            return Missing(int(this.rows[index]))
        ranges = [(int(part.edges[piece]), int(part.edges[piece + 1])) for part in parts]
        target = np.concatenate([part.target[a:b] for part, (a, b) in zip(parts, ranges, strict=True)])
        order = (
            np.argsort(target)
            if len(parts) < len(inputs)
            else _inverse(target, int(this.start[index]) - origin)
        )
        return {
            name: _gather(
                [slice_column(part.block[name], a, b) for part, (a, b) in zip(parts, ranges, strict=True)],
                order,
            )
            for name in parts[0].block
        }

    def _batch(self, level: int, index: int, inputs: Sequence[Any]) -> list[Block | None]:
        plan = self.job.plan
        this, before = plan.levels[level], plan.levels[level - 1]
        first = int(this.first[index])
        starts = before.start[first : first + len(inputs)].tolist()
        stops = before.stop[first : first + len(inputs)].tolist()
        edges = plan.edges[int(this.start[index]) : int(this.stop[index]) + 1].tolist()
        batches: list[Block | None] = []
        at = 0
        for low, high in itertools.pairwise(edges):
            while stops[at] <= low:
                at += 1
            parts: list[Block] = []
            piece = at
            while piece < len(inputs) and starts[piece] < high:
                if not isinstance(inputs[piece], Missing):
                    begin, end = max(low, starts[piece]), min(high, stops[piece])
                    parts.append(_rows(inputs[piece], begin, end, starts[piece], stops[piece]))
                piece += 1
            parts = [part for part in parts if block_rows(part)] if len(parts) > 1 else parts
            batches.append(concat_blocks(parts) if parts and block_rows(parts[0]) else None)
        return batches

    def _regroup(self, this: Level, index: int, inputs: Sequence[Any]) -> list[Block | None]:
        start, stop = int(this.start[index]), int(this.stop[index])
        batches = [batch for part in inputs for batch in part]
        return [batches[i - start] for i in self.job.plan.batch_order(start, stop).tolist()]

    def _map(self, level: int, index: int, inputs: Sequence[Any]) -> Result:
        stage = self.job.maps[self.job.plan.levels[level].map_index]
        if not isinstance(inputs[0], list):
            result = Result(inputs[0])
            if not isinstance(inputs[0], Missing):
                result.payload = self._apply(stage, level, index, inputs[0], result)
                if result.payload is None:
                    result.payload = Missing(block_rows(inputs[0]))
            return result
        result = Result([])
        for batch in self._batches(level, index, inputs):
            made = None if batch is None else self._apply(stage, level, index, batch, result)
            result.payload.append(made)
        return result

    def _apply(self, stage: Map, level: int, index: int, block: Block, result: Result) -> Block | None:
        rows = block_rows(block)
        try:
            return checked(self._call(stage, block), rows)
        except IntuneError as error:
            failure: IntuneError = type(error)(f"{self.job.where(level, index)}: {error}")
            cause: BaseException | None = error.__cause__
        except Exception as error:
            name = getattr(stage.function, "__qualname__", type(stage.function).__qualname__)
            failure = StageError(
                f"{self.job.where(level, index)}: {name} raised {type(error).__name__}: {error}; "
                "mend the function, or skip such batches with on_error='skip'"
            )
            cause = error
        if not self.job.skip:
            raise failure from cause
        result.skipped.append(str(failure))
        return None

    def _transfer(self, level: int, index: int, inputs: Sequence[Any]) -> list[Any]:
        if self.job.device == "cpu":
            return self._batches(level, index, inputs)  # `run.finalize` lays tensors over the columns
        device = self.device()
        return [
            None if batch is None else device.stage(batch) for batch in self._batches(level, index, inputs)
        ]

    def _batches(self, level: int, index: int, inputs: Sequence[Any]) -> list[Any]:
        """The batches of a task, out of the lists it takes."""
        plan = self.job.plan
        this, before = plan.levels[level], plan.levels[level - 1]
        begin = int(this.start[index]) - int(before.start[this.first[index]])
        if len(inputs) == 1 and begin == 0 and before.stop[this.first[index]] == this.stop[index]:
            return list(inputs[0])
        together = [batch for part in inputs for batch in part]
        return together[begin : begin + int(this.stop[index] - this.start[index])]


def checked(made: Any, rows: int) -> Block:
    """What a user's function returned, if it is a block of `rows` rows; else a `StageError` saying why not."""
    if not isinstance(made, dict) or not made:
        raise StageError(
            f"the function returned {type(made).__name__} where a non-empty dict of columns is wanted; "
            "return dict[str, column]"
        )
    for name, column in made.items():
        try:
            length = rows_of(column)
        except SchemaError as error:
            raise StageError(
                f"the function returned a column {name!r} that cannot be used: {error}"
            ) from None
        if length != rows:
            raise StageError(
                f"the function returned {length} rows in column {name!r} for a batch of {rows}; "
                "every column must have as many rows as the batch"
            )
    return made


def _rows(block: Block, low: int, high: int, start: int, stop: int) -> Block:
    """Rows ``[low, high)`` of the sequence out of a block that stands for ``[start, stop)``.

    A block with rows missing (skipped) is shorter than that; what is left keeps its order.
    """
    have = block_rows(block)
    if have == stop - start:
        return slice_block(block, low - start, high - start)
    return slice_block(block, min(low - start, have), min(high - start, have))


def _inverse(target: Ints, origin: int) -> Ints:
    """Positions that put rows bound for consecutive places from `origin` on into their places."""
    order = np.empty(len(target), dtype=np.int64)
    order[target - origin] = np.arange(len(target), dtype=np.int64)
    return order


def _gather(parts: list[Any], order: Ints) -> Any:
    return take_column(concat_columns(parts), order)


class _Permutations:
    """The windows' permutations, each computed once by whichever thread needs it first."""

    KEPT = 4

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, Ints] = OrderedDict()

    def of(self, window: int) -> Ints:
        with self._lock:
            if window not in self._kept:
                self._kept[window] = self._plan.permutation(window)
                while len(self._kept) > self.KEPT:
                    self._kept.popitem(last=False)
            return self._kept[window]
