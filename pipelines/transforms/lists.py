"""What transforms of list columns share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from intune.pipelines.errors import SchemaError
from intune.pipelines.schema import Ragged
from intune.pipelines.transforms.base import kind_of


def require_lists(verb: str, name: str, column: Any) -> Ragged:
    """The column as a list column; a `SchemaError` if it is none."""
    if not isinstance(column, Ragged) or not isinstance(column.offsets, np.ndarray):
        raise SchemaError(
            f"{verb}: column `{name}` holds {kind_of(column)}, but it takes list columns (Ragged of arrays)"
        )
    return column


def join_rows(columns: Sequence[Ragged]) -> Ragged:
    """One list column whose row i is row i of every column, one after another; NumPy values of one type."""
    lengths = np.stack([column.lengths for column in columns], axis=1)
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths.sum(axis=1), out=offsets[1:])
    values = np.empty(offsets[-1], columns[0].values.dtype)
    starts = offsets[:-1].copy()
    for column in columns:
        values[np.repeat(starts - column.offsets[:-1], column.lengths) + np.arange(len(column.values))] = (
            column.values
        )
        starts += column.lengths
    return Ragged(values, offsets)
