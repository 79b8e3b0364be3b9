"""About how large something would be when pickled, whether it can be, and whether it is as before, without copying its
arrays."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable
from typing import Any

import cloudpickle
import numpy as np
import torch

MOST_STREAM = 16 << 20
"""Bytes beside its arrays up to which something is looked through: more would hold up the first batches."""

WHOLE = 64 << 10
"""Bytes of an array up to which all of it is compared; of a larger one `PLACES`, spread evenly: what is written over
for every sample differs nearly everywhere."""

PLACES = 64

MOST_ARRAYS = 10_000
"""Arrays of which the values are compared."""


def structure_bytes(value: Any) -> int | None:
    """About how many bytes something would be when pickled; None if it cannot be.

    The bytes of arrays and tensors are counted and not copied.
    """
    sink = _Sink()
    pickler = _Structure(sink)
    try:
        pickler.dump(value)
    except Exception:  # pickling runs the code of whatever it refers to
        return None
    return sink.size + pickler.arrays


def fingerprint(
    value: Any, *, refuse: Callable[[Any], bool] = lambda part: False, tolerant: bool = False
) -> bytes | None:
    """The same for something that is as it was, and another one where it has changed; None if it cannot be pickled.

    Of what is too large to be compared it is always the same.

    Args:
        refuse: says of a part of it whether that counts as what cannot be pickled.
        tolerant: whether parts that cannot be pickled are passed over.
    """
    sink = _Hashes()
    pickler = _Tolerant(sink, refuse) if tolerant else _Contents(sink, refuse)
    try:
        pickler.dump(value)
    except Exception:  # pickling runs the code of whatever it refers to
        return b"" if sink.size > MOST_STREAM else None
    return sink.hash.digest() + pickler.hash.digest()


class _Sink(io.RawIOBase):
    """Counts what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        written = memoryview(data).nbytes
        self.size += written
        return written


class _Structure(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    def __init__(self, file: io.RawIOBase) -> None:
        super().__init__(file, protocol=5)
        self.arrays = 0

    def persistent_id(self, value: Any) -> int | None:
        if _is_open_file(value):
            # Some are pickled as what they hold, which is not what a dataset has them for.
            raise pickle.PicklingError("an open file")
        if _is_dense(value):
            self.arrays += value.nbytes
            return 0
        return None


class _Hashes(_Sink):
    """Hashes what is written, up to `MOST_STREAM`."""

    def __init__(self) -> None:
        super().__init__()
        self.hash = hashlib.blake2b(digest_size=16)

    def write(self, data: Any) -> int:
        self.hash.update(data)
        written = super().write(data)
        if self.size > MOST_STREAM:
            raise pickle.PicklingError("more than is looked through")
        return written


class _Contents(_Structure):
    def __init__(self, file: io.RawIOBase, refuse: Callable[[Any], bool]) -> None:
        super().__init__(file)
        self.hash = hashlib.blake2b(digest_size=16)
        self._refuse = refuse
        self._seen = 0

    def reducer_override(self, value: Any) -> Any:
        if self._refuse(value):
            raise pickle.PicklingError("it is not to be pickled")
        return super().reducer_override(value)

    def persistent_id(self, value: Any) -> int | None:
        found = super().persistent_id(value)
        if found is not None:
            self._seen += 1
            if self._seen <= MOST_ARRAYS:
                self.hash.update(_values(value))
        return found


class _Tolerant(_Contents):
    def persistent_id(self, value: Any) -> int | None:
        return 0 if _is_open_file(value) else super().persistent_id(value)

    def reducer_override(self, value: Any) -> Any:
        reduced = super().reducer_override(value)
        if reduced is not NotImplemented or isinstance(value, type) or type(value) in self.dispatch_table:
            return reduced
        try:
            return value.__reduce_ex__(pickle.DEFAULT_PROTOCOL)
        except Exception:  # a lock, a connection, or the user's own that refuses
            return str, ()


def _is_open_file(value: Any) -> bool:
    return isinstance(value, io.IOBase) and not isinstance(value, io.BytesIO | io.StringIO)


def _values(array: Any) -> bytes:
    """Some or all values of an array; nothing of one that lies in a file or on a device."""
    try:
        if isinstance(array, torch.Tensor):
            array = array.detach().resolve_conj().resolve_neg()
            if array.nbytes > WHOLE:
                places = torch.arange(0, array.numel(), max(1, array.numel() // PLACES), device="cpu")
                array = array.take(places)
            return bytes(array.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
        if isinstance(array, np.memmap):
            return b""
        if array.nbytes > WHOLE:
            array = array.flat[:: max(1, array.size // PLACES)]
        return bytes(array.tobytes())
    except (RuntimeError, TypeError, NotImplementedError):
        return b""


def _is_dense(value: Any) -> bool:
    """Whether it is an array or tensor of numbers; a sparse tensor is made of others."""
    if isinstance(value, torch.Tensor):
        return value.layout is torch.strided
    return isinstance(value, np.ndarray) and not value.dtype.hasobject
