"""Where elements lie while they are worked on: columns side by side, in pieces that stay in a core's cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike

from intune.pipelines.schema import Array

TILE = 65_536
"""Elements worked on at once. On one core smaller pieces are as fast, but each NumPy call gives up Python's lock and
takes it again, and two threads then wait for each other: hashing 26 columns of 8,192 ids on two threads took 5.0 ns
an element with pieces of one column, 2.9 with eight. Pieces of 26 columns leave the 2 MiB second-level cache: 5.2 ns
on one thread instead of 3.0."""

_POOLED = 1 << 16
"""Bytes from which on memory comes from Arrow's pool."""

Run: TypeAlias = "Callable[[Array, Sequence[int], slice], None]"
"""Works in place on a contiguous piece, shape ``(columns, elements)``, given which columns and elements it holds."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """An operation on copies of some arrays.

    Attributes:
        arrays: of one dimension each.
        dtypes: of the copies.
        run: the operation.
    """

    arrays: Sequence[Array]
    dtypes: Sequence[np.dtype[Any]]
    run: Run


def empty(shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """An uninitialised array, C order; a large one in memory of Arrow's pool.

    The C library's allocator, which NumPy uses, gives freed memory back to the system at once, and a batch's arrays
    are allocated and freed together: new pages for four arrays of 1.7 MB took 0.42 ms each, which is half as long as
    hashing as many ids. The pool keeps pages for a while: 0.03 ms.
    """
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    if size < _POOLED:
        return np.empty(shape, dtype)
    return np.frombuffer(pa.allocate_buffer(size), dtype).reshape(shape)


def side_by_side(work: Work) -> list[Array]:
    """The results, one array each, of any lengths; those of one length and dtype are rows of one matrix."""
    made: dict[int, Array] = {}
    for (dtype, length), members in _alike(work).items():
        matrix = empty((len(members), length), dtype)
        columns = max(1, TILE // max(length, 1))
        for first in range(0, len(members), columns):
            which = members[first : first + columns]
            for start in range(0, length, TILE):
                elements = slice(start, min(start + TILE, length))
                piece = matrix[first : first + columns, elements]
                _fill(piece, [work.arrays[member] for member in which], elements)
                work.run(piece, which, elements)
        made.update(zip(members, matrix, strict=True))
    return [made[position] for position in range(len(work.arrays))]


def interleaved(work: Work) -> Array:
    """The results, all of one length n, as the columns of a C-ordered matrix, shape ``(n, len(work.arrays))``.

    Rows stay together, as models, slices and copies to a device take them. Working on columns and turning a piece
    around while it is in the cache is twice as fast as writing column by column with a stride.
    """
    length = len(work.arrays[0])
    matrix = empty((length, len(work.arrays)), np.result_type(*set(work.dtypes)))
    for (dtype, _), members in _alike(work).items():
        arrays = [work.arrays[member] for member in members]
        rows = max(1, min(length, TILE // len(members)))
        memory = empty((len(members) * rows,), dtype)
        # A slice where it will do: an index list would write element by element.
        adjacent = members[-1] - members[0] < len(members)
        columns = slice(members[0], members[-1] + 1) if adjacent else members
        for start in range(0, length, rows):
            elements = slice(start, min(start + rows, length))
            piece = memory[: len(members) * (elements.stop - start)].reshape(len(members), -1)
            _fill(piece, arrays, elements)
            work.run(piece, members, elements)
            matrix[elements, columns] = piece.T
    return matrix


def leave(piece: Array, which: Sequence[int], elements: slice) -> None:
    """Leave the piece as it is: a `Work` that only copies."""


def _alike(work: Work) -> dict[tuple[np.dtype[Any], int], list[int]]:
    """Positions of the arrays by dtype of the copy and length."""
    groups: dict[tuple[np.dtype[Any], int], list[int]] = {}
    for position, (array, dtype) in enumerate(zip(work.arrays, work.dtypes, strict=True)):
        groups.setdefault((dtype, len(array)), []).append(position)
    return groups


def _fill(piece: Array, arrays: Sequence[Array], elements: slice) -> None:
    np.concatenate([array[elements] for array in arrays], out=piece.reshape(-1))
