"""An object as a short stream and the bytes of its columns apart, each column laid into a segment by one copy.

Arrays, Arrow strings and tensors inside the object, at any depth, travel as bytes; everything else is pickled
(by value where its code lives in ``__main__``). An array arrives writable, whatever it was.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cloudpickle
import numpy as np
import pyarrow as pa

from intune.pipelines.executors.segments import ALIGNMENT
from intune.pipelines.schema import Array

_PLAIN_KINDS = "biufcmMSUV"
"""Kinds of NumPy types whose elements are bytes; objects and variable-length strings hold pointers."""

_STRING_TYPES = (pa.StringArray, pa.LargeStringArray, pa.BinaryArray, pa.LargeBinaryArray)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an array lies: enough to lay another one over the same bytes."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    order: str

    def over(self, memory: Array) -> Array:
        """The array, a view of `memory`."""
        order: Any = self.order
        return np.ndarray(self.shape, self.dtype, memory, self.offset, order=order)


@dataclass(frozen=True, slots=True)
class _Strings:
    type: pa.DataType
    length: int
    offset: int
    nulls: int
    buffers: tuple[tuple[int, int] | None, ...]


@dataclass(frozen=True, slots=True)
class _Tensor:
    place: _Place
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Packed:
    """What is sent beside the bytes.

    Attributes:
        size: bytes that the columns take in a segment.
        stream: the pickled object, columns replaced by their numbers.
        columns: where each lies.
        buffers: (offset, length) of what other classes gave out of band.
    """

    size: int
    stream: bytes
    columns: tuple[Any, ...]
    buffers: tuple[tuple[int, int], ...]


def pack(value: Any) -> tuple[Packed, Callable[[Array], None]]:
    """`value` packed, and a function that copies its columns into memory of `Packed.size` bytes."""
    packer = _Packer()
    packer.dump(value)
    packed = Packed(
        size=packer.size,
        stream=packer.file.getvalue(),
        columns=tuple(packer.columns),
        buffers=tuple(packer.buffers),
    )
    return packed, packer.lay


def unpack(packed: Packed, memory: Array) -> Any:
    """The value; its columns are writable views of `memory` (uint8, ``packed.size`` of it) and keep it alive."""
    return _Unpacker(packed, memory).load()


class _Packer(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    def __init__(self) -> None:
        self.file = io.BytesIO()
        super().__init__(self.file, protocol=5, buffer_callback=self._take_buffer)
        self.size = 0
        self.columns: list[Any] = []
        self.buffers: list[tuple[int, int]] = []
        self._numbers: dict[int, tuple[int, Any]] = {}  # the object too, lest another gets its id
        self._copies: list[tuple[_Place, Array]] = []

    def lay(self, memory: Array) -> None:
        for place, source in self._copies:
            np.copyto(place.over(memory), source)

    def persistent_id(self, value: Any) -> int | None:
        if (known := self._numbers.get(id(value))) is not None:
            return known[0]
        if (column := self._column(value)) is None:
            return None
        self._numbers[id(value)] = (len(self.columns), value)
        self.columns.append(column)
        return len(self.columns) - 1

    def _column(self, value: Any) -> Any:
        kind = type(value)
        if kind is np.ndarray:
            plain = value.dtype.kind in _PLAIN_KINDS and not value.dtype.hasobject
            return self._place(value) if plain else None
        if kind in _STRING_TYPES:
            return self._strings(value) if len(value) else None
        torch = sys.modules.get("torch")
        if torch is not None and kind is torch.Tensor:
            dense = value.device.type == "cpu" and value.layout is torch.strided and not value.is_quantized
            return self._tensor(value, torch) if dense and not value.requires_grad else None
        return None

    def _reserve(self, size: int) -> int:
        offset = self.size
        self.size += -(-size // ALIGNMENT) * ALIGNMENT
        return offset

    def _place(self, array: Array) -> _Place:
        order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
        place = _Place(self._reserve(array.nbytes), array.shape, array.dtype, order)
        self._copies.append((place, array))
        return place

    def _strings(self, array: Any) -> _Strings:
        """The visible part of the buffers only: a slice carries its whole row group along."""
        validity, offsets, data = array.buffers()
        wide = np.int64 if isinstance(array, pa.LargeStringArray | pa.LargeBinaryArray) else np.int32
        ahead = array.offset % 8  # validity is cut at whole bytes
        begin, count = array.offset - ahead, ahead + len(array)
        starts = np.frombuffer(offsets, wide, count + 1, begin * np.dtype(wide).itemsize)
        first, last = int(starts[0]), int(starts[-1])
        nulls = array.null_count
        parts = (
            np.frombuffer(validity, np.uint8)[begin // 8 : -(-(begin + count) // 8)] if nulls else None,
            starts - starts[0] if first else starts,
            np.frombuffer(data, np.uint8)[first:last] if last > first else np.empty(0, np.uint8),
        )
        places = tuple(None if part is None else (self._place(part).offset, part.nbytes) for part in parts)
        return _Strings(array.type, len(array), ahead, nulls, places)

    def _tensor(self, tensor: Any, torch: Any) -> _Tensor:
        flat = tensor.resolve_conj().resolve_neg().contiguous().reshape(-1)
        place = self._place(flat.view(torch.uint8).numpy() if len(flat) else np.empty(0, np.uint8))
        return _Tensor(place, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))

    def _take_buffer(self, buffer: pickle.PickleBuffer) -> None:
        raw = np.frombuffer(buffer.raw(), np.uint8) if buffer.raw().nbytes else np.empty(0, np.uint8)
        self.buffers.append((self._place(raw).offset, raw.nbytes))


class _Unpacker(pickle.Unpickler):
    def __init__(self, packed: Packed, memory: Array) -> None:
        super().__init__(
            io.BytesIO(packed.stream), buffers=(memory[at : at + size] for at, size in packed.buffers)
        )
        self._packed = packed
        self._memory = memory
        self._arrow: Any = None
        self._made: dict[int, Any] = {}

    def persistent_load(self, number: int) -> Any:
        if number not in self._made:
            self._made[number] = self._make(self._packed.columns[number])
        return self._made[number]

    def _make(self, column: Any) -> Any:
        if isinstance(column, _Place):
            return column.over(self._memory)
        if isinstance(column, _Strings):
            return self._strings(column)
        return self._tensor(column)

    def _strings(self, column: _Strings) -> pa.Array:
        if self._arrow is None:
            # One buffer for all, of which they are parts: that is how the ledger counts it once.
            self._arrow = pa.py_buffer(self._memory)
        buffers = [None if part is None else self._arrow.slice(*part) for part in column.buffers]
        return pa.Array.from_buffers(column.type, column.length, buffers, column.nulls, column.offset)

    def _tensor(self, column: _Tensor) -> Any:
        import torch

        dtype = getattr(torch, column.dtype)
        if not column.place.shape[0]:
            return torch.empty(column.shape, dtype=dtype)
        return torch.from_numpy(column.place.over(self._memory)).view(dtype).view(column.shape)
