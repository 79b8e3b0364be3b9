"""About how large something would be when pickled, and whether it can be, without copying its arrays."""

from __future__ import annotations

import io
import pickle
from typing import Any

import cloudpickle
import numpy as np
import torch


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
        if isinstance(value, io.IOBase) and not isinstance(value, io.BytesIO | io.StringIO):
            # Some are pickled as what they hold, which is not what a dataset has them for.
            raise pickle.PicklingError("an open file")
        if isinstance(value, torch.Tensor | np.ndarray) and not (
            isinstance(value, np.ndarray) and value.dtype.hasobject
        ):
            self.arrays += value.nbytes
            return 0
        return None
