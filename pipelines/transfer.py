"""From the pipeline's columns to tensors, on the CPU without a copy and on CUDA beside the computation.

On CUDA a batch is staged in pinned memory and copied on a stream of its own, so that the copy of the next
batch overlaps the training step on this one; the consumer's stream waits for the copy by an event.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from intune.pipelines.errors import ConfigError, SchemaError
from intune.pipelines.schema import Ragged


def unlocked(array: Any) -> Any:
    """The same memory as a writable array.

    For buffers of the pipeline only: a batch that arrived through an object store belongs to its consumer alone,
    though the store hands out read-only views. (What users' functions returned is copied if it may only be read, by
    `returned.checked`.) torch has no read-only tensors and would warn about every one.
    """
    if array.flags.writeable:
        return array
    return np.asarray(_Writable(array))


class _Writable:
    __slots__ = ("__array_interface__", "owner")

    def __init__(self, owner: Any) -> None:
        self.owner = owner
        interface = dict(owner.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface


def to_tensor(column: Any) -> Any:
    """A tensor over the column's memory; strings stay Arrow arrays, lists become `Ragged` of tensors.

    Raises:
        SchemaError: for an element type that tensors do not have.
    """
    if isinstance(column, np.ndarray):
        try:
            return torch.from_numpy(unlocked(column))
        except (TypeError, ValueError) as error:
            if any(stride < 0 or stride % column.itemsize for stride in column.strides):
                return torch.from_numpy(column.copy())
            raise SchemaError(f"holds {column.dtype}, which no tensor can; convert it in a map") from error
    if isinstance(column, Ragged):
        return Ragged(to_tensor(column.values), to_tensor(column.offsets))
    return column


def to_tensors(batch: dict[str, Any]) -> dict[str, Any]:
    """Every column of a batch as by `to_tensor`."""
    try:
        return {name: to_tensor(column) for name, column in batch.items()}
    except SchemaError:
        for name, column in batch.items():
            try:
                to_tensor(column)
            except SchemaError as error:
                raise SchemaError(f"column {name!r} {error}") from error.__cause__
        raise


class Device:
    """Moves batches to one device; `stage` runs in a worker, `hand_over` in the trainer's thread.

    Args:
        name: ``"cuda"`` is the device that the calling thread uses; `name` then says which.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.cuda = name.startswith("cuda")
        if self.cuda and not torch.cuda.is_available():
            raise ConfigError(f"`device`={name!r}, but no CUDA device is available; use .to('cpu')")
        if self.cuda and torch.device(name).index is not None:
            index, count = int(torch.device(name).index), torch.cuda.device_count()
            if index >= count:
                raise ConfigError(f"`device`={name!r}, but there are only {count} CUDA device(s)")
        elif self.cuda:
            self.name = f"cuda:{torch.cuda.current_device()}"
        self._streams = threading.local()

    def stage(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch as tensors on the device; on CUDA the copies may still be under way."""
        tensors = to_tensors(batch)
        if not self.cuda:
            return tensors
        stream = self._stream()
        with torch.cuda.stream(stream):
            moved = {name: self._move(column) for name, column in tensors.items()}
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(stream)
        return Moving(moved, event, tensors)

    def hand_over(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch, safe to use on the calling thread's current stream."""
        if isinstance(batch, Moving):
            current = torch.cuda.current_stream(self.name)
            current.wait_event(batch.event)
            for column in batch.values():
                for tensor in _tensors(column):
                    tensor.record_stream(current)
            return dict(batch)
        return batch

    def _stream(self) -> Any:
        if not hasattr(self._streams, "stream"):
            self._streams.stream = torch.cuda.Stream(self.name)  # type: ignore[no-untyped-call]
        return self._streams.stream

    def _move(self, column: Any) -> Any:
        if isinstance(column, Ragged):
            return Ragged(self._move(column.values), self._move(column.offsets))
        if isinstance(column, pa.Array):
            return column
        if isinstance(column, torch.Tensor) and not column.is_cuda:
            return column.pin_memory().to(self.name, non_blocking=True)
        return column


def _tensors(column: Any) -> list[torch.Tensor]:
    """All of a column, of lists of lists too."""
    if isinstance(column, Ragged):
        return [*_tensors(column.values), *_tensors(column.offsets)]
    return [column] if isinstance(column, torch.Tensor) else []


class Moving(dict[str, Any]):
    """A batch whose copies may be under way: `event` tells when they are done; `held` keeps the source alive."""

    __slots__ = ("event", "held")

    def __init__(self, batch: dict[str, Any], event: Any, held: Any) -> None:
        super().__init__(batch)
        self.event = event
        self.held = held
