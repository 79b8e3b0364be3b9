"""Arrays that lie in a file: another process opens the file, as a fork has it open, and gets no copy."""

from __future__ import annotations

import mmap
import os
from typing import Any

import numpy as np


def mapped_again(value: Any) -> tuple[Any, ...] | None:
    """How an array is made again in another process by mapping its file, as pickle wants to know it.

    None of an array that does not lie in a file, or is a part of one that does; nor of one that is its own where it was
    written to, or whose file is gone.
    """
    if type(value) is not np.memmap or value.mode == "c":
        return None
    base: Any = value.base
    if not (isinstance(base, mmap.mmap) and value.filename and os.path.exists(value.filename)):
        return None
    mode = "r+" if value.mode == "w+" else value.mode
    order = "F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C"
    return np.memmap, (value.filename, value.dtype, mode, value.offset, value.shape, order)
