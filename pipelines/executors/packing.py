"""An object as a short stream and the bytes of its columns apart, each column laid into a segment by one copy.

Arrays, Arrow strings and tensors inside the object, at any depth, travel as bytes; everything else is pickled
(by value where its code lives in ``__main__``). An array arrives writable, whatever it was.

What is pickled by value goes along with every object, as it was when the other process got it. A class that comes
back to the process whose own it is must not be filled with that: see `unpack`.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import MemberDescriptorType
from typing import Any, NamedTuple

import cloudpickle
import numpy as np
import pyarrow as pa

from intune.pipelines.executors.decorated import decorated
from intune.pipelines.executors.segments import ALIGNMENT
from intune.pipelines.executors.shared_tensors import memory_of
from intune.pipelines.schema import Array

_PLAIN_KINDS = "biufcmMSUV"
"""Kinds of NumPy types whose elements are bytes; objects and variable-length strings hold pointers."""

_NOTHING: Array = np.empty(0, np.uint8)

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
    order: tuple[int, ...]
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


def by_value(value: Any, *, shared: bool = False) -> bytes:
    """`value` pickled, what the user's script defines by value: no other process can import it.

    Args:
        shared: have tensors in shared memory lie in the same memory where they are made again: in processes of this
            machine only. They stay alive as long as what is returned.

    In a process that `multiprocessing` spawned the script has another name, by which cloudpickle does not know it.
    """
    script = sys.modules.get("__mp_main__")
    if script is not None and script.__name__ == "__mp_main__":
        cloudpickle.register_pickle_by_value(script)
    file = io.BytesIO()
    pickler = Sharer(file, protocol=5) if shared else _Pickler(file, protocol=5)
    pickler.dump(value)
    return Holder(file.getvalue(), pickler.held) if shared and pickler.held else file.getvalue()


class Holder(bytes):
    """A stream, and what has to live as long as it."""

    held: list[Any]

    def __new__(cls, stream: bytes, held: list[Any]) -> Holder:
        """The same bytes, as another object."""
        made = super().__new__(cls, stream)
        made.held = held
        return made

    def __reduce__(self) -> Any:
        return bytes, (bytes(self),)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """Makes a class with slots again as one with slots: cloudpickle gives it a dictionary, and then its objects have a
    state that those of the class as it is in the script do not take."""

    def reducer_override(self, value: Any) -> Any:
        if (again := decorated(value)) is not None:
            return again
        reduced = super().reducer_override(value)
        if reduced is NotImplemented and _asks_others(value):
            return *value.__reduce_ex__(5), _set_attributes
        if not (isinstance(value, type) and "__slots__" in vars(value) and isinstance(reduced, tuple)):
            return reduced
        if reduced[0] is not cloudpickle.cloudpickle._make_skeleton_class:
            return reduced
        make, (kind, name, bases, options, *rest), (members, slots), *others = reduced
        if NamedTuple in bases:  # has them by itself
            return reduced
        options = {**options, "__slots__": members["__slots__"]}
        members = {
            key: member
            for key, member in members.items()
            if key != "__slots__" and not isinstance(member, MemberDescriptorType)
        }
        return make, (kind, name, bases, options, *rest), (members, slots), *others


def _asks_others(value: Any) -> bool:
    """Whether an object has a `__getattr__`, as one that passes on what it wraps, and is pickled by its attributes.

    Where it is made again it has none yet and is asked for its `__setstate__`: it looks for what it wraps, and so on.
    """
    kind: Any = type(value)
    return (
        hasattr(kind, "__getattr__")
        and not hasattr(kind, "__setstate__")
        and kind.__reduce_ex__ is object.__reduce_ex__
        and kind.__reduce__ is object.__reduce__
        and kind not in copyreg.dispatch_table
        and not isinstance(value, type)
    )


def _set_attributes(made: Any, state: Any) -> None:
    """As unpickling does it, but for asking the object."""
    attributes, slots = state if isinstance(state, tuple) else (state, None)
    if attributes:
        object.__getattribute__(made, "__dict__").update(attributes)
    for name, value in (slots or {}).items():
        setattr(made, name, value)


class Sharer(_Pickler):
    """Has tensors in shared memory lie in the same memory.

    Attributes:
        held: those tensors.
    """

    def __init__(self, file: io.BytesIO, **options: Any) -> None:
        super().__init__(file, **options)
        self.held: list[Any] = []

    def reducer_override(self, value: Any) -> Any:
        """How something is made again; asked of all but plain things."""
        reduced = memory_of(value)
        if reduced is None:
            return super().reducer_override(value)
        self.held.append(value)
        return reduced


def pack(value: Any) -> tuple[Packed, Callable[[Array], None]]:
    """`value` packed, and a function that copies its columns into memory of `Packed.size` bytes."""
    file, layout = io.BytesIO(), _Layout()
    packer = _Packer(file, layout)
    packer.dump(value)
    packed = Packed(
        size=layout.size,
        stream=file.getvalue(),
        columns=tuple(packer.columns),
        buffers=tuple(layout.buffers),
    )
    return packed, layout.copy_into


def unpack(packed: Packed, memory: Array, *, own_classes: bool = False, apart: bool = False) -> Any:
    """The value; its columns are writable views of `memory` (uint8, ``packed.size`` of it) and keep it alive.

    Args:
        apart: copy each column into memory of its own instead: who keeps one of them keeps no others.
        own_classes: leave the classes as they are that this process has already. Else they get the attributes and
            methods that they have where the value comes from.
    """
    return _Unpacker(packed, memory, _Classes() if own_classes else None, apart).load()


def unpickle(data: bytes) -> Any:
    """What was pickled, by value in part; classes that this process has already stay as they are."""
    return _Unpickler(io.BytesIO(data), _Classes()).load()


class _Layout:
    """Where columns will lie in a segment. Apart from the packer, which would otherwise refer to itself and so keep
    the columns alive until the garbage collector comes by."""

    def __init__(self) -> None:
        self.size = 0
        self.buffers: list[tuple[int, int]] = []
        self._copies: list[tuple[_Place, Array]] = []

    def copy_into(self, memory: Array) -> None:
        for place, source in self._copies:
            np.copyto(place.over(memory), source)

    def array(self, array: Array) -> _Place:
        order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
        place = _Place(self.size, array.shape, array.dtype, order)
        self.size += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        self._copies.append((place, array))
        return place

    def strings(self, array: Any) -> _Strings:
        """The visible part of the buffers only: a slice carries its whole row group along."""
        validity, offsets, data = array.buffers()
        wide = np.int64 if isinstance(array, pa.LargeStringArray | pa.LargeBinaryArray) else np.int32
        ahead = array.offset % 8  # validity is cut at whole bytes
        begin, count = array.offset - ahead, ahead + len(array)
        if len(array):
            starts = np.frombuffer(offsets, wide, count + 1, begin * np.dtype(wide).itemsize)
        else:
            ahead, starts = 0, np.zeros(1, wide)  # there may be no buffers at all
        first, last = int(starts[0]), int(starts[-1])
        nulls = array.null_count
        parts = (
            np.frombuffer(validity, np.uint8)[begin // 8 : -(-(begin + count) // 8)] if nulls else None,
            starts - starts[0] if first else starts,
            np.frombuffer(data, np.uint8)[first:last] if last > first else _NOTHING,
        )
        places = tuple(None if part is None else (self.array(part).offset, part.nbytes) for part in parts)
        return _Strings(array.type, len(array), ahead, nulls, places)

    def tensor(self, tensor: Any, torch: Any) -> _Tensor:
        """Dimensions that only lie in another order, as with `channels_last`, keep it."""
        numbers = list(range(tensor.dim()))
        order = sorted(numbers, key=tensor.stride, reverse=True)
        order = order if tensor.permute(order).is_contiguous() else numbers
        dense = tensor.resolve_conj().resolve_neg().permute(order).contiguous()
        flat = dense.reshape(-1)
        place = self.array(flat.view(torch.uint8).numpy() if len(flat) else _NOTHING)
        back = tuple(map(order.index, numbers))
        return _Tensor(place, tuple(dense.shape), back, str(tensor.dtype).removeprefix("torch."))

    def buffer(self, buffer: pickle.PickleBuffer) -> None:
        """What a class of another kind gives out of band."""
        raw = buffer.raw()
        array = np.frombuffer(raw, np.uint8) if raw.nbytes else _NOTHING
        self.buffers.append((self.array(array).offset, array.nbytes))


class _Packer(_Pickler):
    def __init__(self, file: io.BytesIO, layout: _Layout) -> None:
        super().__init__(file, protocol=5, buffer_callback=layout.buffer)
        self.columns: list[Any] = []
        self._layout = layout
        self._numbers: dict[int, tuple[int, Any]] = {}  # the object too, lest another gets its id

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
            return self._layout.array(value) if plain else None
        if kind in _STRING_TYPES:
            return self._layout.strings(value)
        if (
            kind.__module__ == "torch" and kind.__name__ == "Tensor"
        ):  # importing torch is left to who needs it
            torch = sys.modules["torch"]
            if value.requires_grad and not value.is_leaf:  # which pickling would make one of it
                raise pickle.PicklingError(
                    "a tensor that was computed with gradients would lose them on the way to another process; compute "
                    "it under torch.no_grad(), or detach() it"
                )
            dense = value.device.type == "cpu" and value.layout is torch.strided
            others = value.is_quantized or value.is_nested or value.requires_grad
            return self._layout.tensor(value, torch) if dense and not others else None
        return None


_unfinished: weakref.WeakSet[type] = weakref.WeakSet()
"""Classes that were made of a stream and do not have their attributes yet: another thread that meets one in a stream of
its own must not take it to be whole."""


class _Classes:
    """What becomes of the classes in one stream. Apart from the unpickler, which would otherwise refer to itself."""

    def __init__(self) -> None:
        self._new: list[type] = []

    def make(self, make: Callable[..., type], *arguments: Any) -> type:
        """In place of cloudpickle's functions that make a class without its attributes, or find it by its number."""
        known: type | None = cloudpickle.cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID.get(arguments[-2])
        if known is not None and known not in _unfinished:
            return known
        made = make(*arguments)
        _unfinished.add(made)
        self._new.append(made)
        return made

    def fill(self, fill: Callable[..., type], made: type, state: Any) -> type:
        """In place of cloudpickle's function that gives a class its attributes."""
        if any(made is one for one in self._new):
            fill(made, state)
            _unfinished.discard(made)
        return made


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, classes: _Classes | None, **options: Any) -> None:
        super().__init__(file, **options)
        self._classes = classes

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        if self._classes is not None and module == cloudpickle.cloudpickle.__name__:
            if name in ("_make_skeleton_class", "_make_skeleton_enum"):
                return partial(self._classes.make, found)
            if name == "_class_setstate":
                return partial(self._classes.fill, found)
        return found


class _Unpacker(_Unpickler):
    def __init__(self, packed: Packed, memory: Array, classes: _Classes | None, apart: bool) -> None:
        parts = (memory[at : at + size] for at, size in packed.buffers)
        buffers = (part.copy() for part in parts) if apart else parts
        super().__init__(io.BytesIO(packed.stream), classes, buffers=buffers)
        self._apart = apart
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
            return self._array(column)
        if isinstance(column, _Strings):
            return self._strings(column)
        return self._tensor(column)

    def _array(self, place: _Place) -> Array:
        array = place.over(self._memory)
        return array.copy(order="K") if self._apart else array

    def _strings(self, column: _Strings) -> pa.Array:
        buffers = [None if part is None else self._buffer(*part) for part in column.buffers]
        return pa.Array.from_buffers(column.type, column.length, buffers, column.nulls, column.offset)

    def _buffer(self, at: int, size: int) -> pa.Buffer:
        if self._apart:
            return pa.py_buffer(self._memory[at : at + size].copy())
        if self._arrow is None:
            # One buffer for all, of which they are parts: that is how the ledger counts it once.
            self._arrow = pa.py_buffer(self._memory)
        return self._arrow.slice(at, size)

    def _tensor(self, column: _Tensor) -> Any:
        import torch

        dtype = getattr(torch, column.dtype)
        if not column.place.shape[0]:
            return torch.empty(column.shape, dtype=dtype).permute(column.order)
        flat = torch.from_numpy(self._array(column.place)).view(dtype)
        return flat.view(column.shape).permute(column.order)
