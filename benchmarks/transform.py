"""The transform every contender runs: log1p of the dense columns, multiply-hash-modulo of the ids.

Plain NumPy on a dict of columns, so that every loader can call this very function; `tfdata.py` has the same
in TensorFlow's own operations. A contender that skips work is caught by `checksum`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

MULTIPLIER = 0x9E3779B97F4A7C15
"""Odd 64-bit constant of the hash: 2^64 divided by the golden ratio (Knuth, TAOCP 3, §6.4)."""

TABLE_ROWS = 1_000_003
"""Rows of an embedding table; no power of two, so that the modulo is a real division as with any table."""


def hash_ids(ids: Array) -> Array:
    """``(ids * MULTIPLIER mod 2^64) mod TABLE_ROWS``; int64 in, int64 out, same shape."""
    mixed = ids.view(np.uint64) * np.uint64(MULTIPLIER)
    np.remainder(mixed, np.uint64(TABLE_ROWS), out=mixed)
    return mixed.view(np.int64)


def transform(columns: Mapping[str, Array]) -> dict[str, Array]:
    """The columns ``I*`` through log1p, ``C*`` through the hash, others as they are."""
    return {name: transform_column(name, values) for name, values in columns.items()}


def transform_column(name: str, values: Array) -> Array:
    """What `transform` does to the column called `name`."""
    if name.startswith("I"):
        return np.log1p(values)
    if name.startswith("C"):
        return hash_ids(values)
    return values


def identity(columns: Mapping[str, Array]) -> dict[str, Array]:
    """The empty transform, for measuring what the loader itself costs."""
    return dict(columns)
