"""About how large something would be when pickled, whether it can be, and whether it is as before, without copying its
arrays."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import cloudpickle
import numpy as np
import torch

from intune.adapters.dataloader.sending.long_lists import LongList, long_lists
from intune.adapters.dataloader.sending.mapped_arrays import mapped_again
from intune.pipelines.executors.decorated import decorated

MOST_STREAM = 8 << 20
"""Bytes beside its arrays up to which something is compared: more would hold up the first batches, 0.2 s a time."""

MOST_LIST = 4 << 20
"""Bytes of a long list up to which all of it is compared; of a longer one a sample."""

WHOLE = 64 << 10
"""Bytes of an array up to which all of it is compared; of a larger one `PLACES`, spread evenly: what is written over
for every sample differs nearly everywhere."""

PLACES = 64

MOST_ARRAYS = 10_000
"""Arrays of which the values are compared."""


def structure_bytes(
    value: Any,
    *,
    most: int | None = None,
    refuse: Callable[[Any], bool] = lambda part: False,
    whole: bool = False,
) -> int | None:
    """About how many bytes something would be when pickled; None if it cannot be.

    The bytes of arrays and tensors are counted and not copied; of long lists of plain things a sample tells.

    Args:
        most: bytes from which on it is not looked through any further.
        refuse: says of a part of it whether that counts as what cannot be pickled.
        whole: look through long lists too.
    """
    lists = [] if whole else long_lists(value)
    sink = _Sink(most)
    pickler = _Structure(sink, refuse)
    pickler.pass_over(lists)
    try:
        for one in lists:
            sink.count(one.size)
        pickler.dump(value)
    except Exception:  # pickling runs the code of whatever it refers to
        return sink.size if sink.full else None
    return sink.size


def fingerprint(
    value: Any, *, refuse: Callable[[Any], bool] = lambda part: False, tolerant: bool = False
) -> bytes | None:
    """The same for something that is as it was, and another one where it has changed; None if it cannot be pickled.

    Of what is too large to be compared it is always the same.

    Args:
        refuse: says of a part of it whether that counts as what cannot be pickled.
        tolerant: whether parts that cannot be pickled are passed over.
    """
    lists = [one for one in long_lists(value) if one.size > MOST_LIST]
    sink = _Hashes()
    for one in lists:
        sink.hash.update(one.sample)
    pickler = _Tolerant(sink, refuse) if tolerant else _Contents(sink, refuse)
    pickler.pass_over(lists)
    try:
        pickler.dump(value)
    except Exception:  # pickling runs the code of whatever it refers to
        return b"" if sink.full else None
    return sink.hash.digest() + pickler.hash.digest()


class _Sink(io.RawIOBase):
    """Counts what is written, up to `most` bytes."""

    def __init__(self, most: int | None = None) -> None:
        super().__init__()
        self.size = 0
        self._most = most

    @property
    def full(self) -> bool:
        """Whether it was more."""
        return self._most is not None and self.size > self._most

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        written = memoryview(data).nbytes
        self.count(written)
        return written

    def count(self, size: int) -> None:
        """As if that had been written."""
        self.size += size
        if self.full:
            raise pickle.PicklingError("more than is looked through")


class _Structure(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """Arrays and tensors are only looked at. (Not by a `persistent_id`: that is asked of every number and text.)"""

    def __init__(self, file: _Sink, refuse: Callable[[Any], bool]) -> None:
        super().__init__(file, protocol=5)
        self._file = file
        self._refuse = refuse

    def pass_over(self, lists: Sequence[LongList]) -> None:
        """As if they had been pickled."""
        self.memo = {id(one.items): (number, one.items) for number, one in enumerate(lists)}

    def reducer_override(self, value: Any) -> Any:
        if self._refuse(value):
            raise pickle.PicklingError("it is not to be pickled")
        if _is_dense(value):
            self.see(value)
            return str, ()
        if isinstance(value, io.IOBase) and not isinstance(value, io.BytesIO | io.StringIO):
            return self.reduce_file(value)
        if (again := decorated(value)) is not None:
            return again
        return super().reducer_override(value)

    def see(self, array: Any) -> None:
        """It comes by."""
        if mapped_again(array) is None:
            self._file.count(array.nbytes)

    def reduce_file(self, file: io.IOBase) -> Any:
        """Some are pickled as what they hold, which is not what a dataset has them for."""
        raise pickle.PicklingError("an open file")


class _Hashes(_Sink):
    """Hashes what is written, up to `MOST_STREAM`."""

    def __init__(self) -> None:
        super().__init__(MOST_STREAM)
        self.hash = hashlib.blake2b(digest_size=16)

    def write(self, data: Any) -> int:
        self.hash.update(data)
        return super().write(data)


class _Contents(_Structure):
    def __init__(self, file: _Hashes, refuse: Callable[[Any], bool]) -> None:
        super().__init__(file, refuse)
        self.hash = hashlib.blake2b(digest_size=16)
        self._seen = 0

    def see(self, array: Any) -> None:
        self._seen += 1
        if self._seen <= MOST_ARRAYS:
            self.hash.update(_values(array))


class _Tolerant(_Contents):
    def reduce_file(self, file: io.IOBase) -> Any:
        return str, ()

    def reducer_override(self, value: Any) -> Any:
        reduced = super().reducer_override(value)
        if reduced is not NotImplemented or isinstance(value, type) or type(value) in self.dispatch_table:
            return reduced
        try:
            return value.__reduce_ex__(pickle.DEFAULT_PROTOCOL)
        except Exception:  # a lock, a connection, or the user's own that refuses
            return str, ()


def _values(array: Any) -> bytes:
    """Some or all values of an array; nothing of one on a device, or in a file that all processes share."""
    try:
        if isinstance(array, torch.Tensor):
            array = array.detach().resolve_conj().resolve_neg()
            if array.nbytes > WHOLE:
                places = torch.arange(0, array.numel(), max(1, array.numel() // PLACES), device="cpu")
                array = array.take(places)
            return bytes(array.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
        if isinstance(array, np.memmap) and array.mode != "c":
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
