"""Mixing rows within a window of blocks, in two passes that each read and write the data once.

First every block is laid out by the batch its rows go to; this happens while its columns are decoded, a few at a
time, so that they are still in the cache. Then a batch is put together from its run of rows in every block of
the window. Columns of one type travel as the rows of one matrix, so that a pass takes few calls.

Which row goes to which batch is a uniform random choice (`Plan.cells`). Inside a batch, the rows of one block
stand together, in the block's order: to a loss that is a mean over the batch it makes no difference, and it
saves a third pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from intune.pipelines.errors import SchemaError
from intune.pipelines.plan import Ints
from intune.pipelines.schema import (
    Array,
    Block,
    check_alike,
    concat_columns,
    kind_of,
    slice_column,
    take_column,
)

MOST_RUNS = 512
"""Runs of rows joined by naming each; from more, rows are put in place one by one, which then is faster."""


@dataclass(slots=True)
class Split:
    """A block laid out by destination: rows ``[edges[c], edges[c + 1])`` go to cell (batch) ``c`` of the window.

    Attributes:
        names: columns, in order.
        stacks: columns of one type as the rows of a matrix, shape ``(columns, rows)``, with their names.
        others: columns that are no plain arrays.
        edges: shape ``(cells + 1,)``, unsigned, of the fewest bytes that hold the number of rows: a large window of
            small blocks has more edges than rows.
    """

    names: tuple[str, ...]
    stacks: list[tuple[tuple[str, ...], Array]]
    others: Block
    edges: Array

    def columns(self) -> Block:
        """Its columns, as views."""
        made = {name: row for names, matrix in self.stacks for name, row in zip(names, matrix, strict=True)}
        return {**made, **self.others}

    def values(self) -> list[Any]:
        """What it keeps in memory."""
        return [*(matrix for _, matrix in self.stacks), *self.others.values(), self.edges]


def layout(cells: Array, count: int) -> tuple[Ints, Array]:
    """The order that sorts rows by cell (int64, shape ``(rows,)``), and the cells' edges in it, as of `Split`.

    Args:
        cells: cell of every row, shape ``(rows,)``; 16-bit numbers are sorted by counting, several times faster.
        count: number of cells.
    """
    edges = np.zeros(count + 1, dtype=np.int64)
    np.cumsum(np.bincount(cells, minlength=count), out=edges[1:])
    return np.argsort(cells, kind="stable"), edges.astype(np.min_scalar_type(len(cells)))


def lay_out(parts: Iterable[Block], order: Ints, edges: Array) -> Split:
    """Columns put in order, as they come, a few at a time."""
    names: list[str] = []
    stacks: list[tuple[tuple[str, ...], Array]] = []
    others: Block = {}
    for part in parts:
        names.extend(part)
        plain: dict[Any, list[str]] = {}
        for name, column in part.items():
            if isinstance(column, np.ndarray) and column.ndim == 1:
                plain.setdefault(column.dtype, []).append(name)
            else:
                others[name] = take_column(column, order)
        for dtype, group in plain.items():
            matrix: Array = np.empty((len(group), len(order)), dtype)
            for row, name in zip(matrix, group, strict=True):
                # The order holds valid positions only; "wrap" spares NumPy a copy made in case it did not.
                np.take(np.asarray(part[name]), order, out=row, mode="wrap")
            stacks.append((tuple(group), matrix))
    return Split(tuple(names), stacks, others, edges)


def gather(parts: Sequence[Split], first: int, last: int) -> Block:
    """The rows of cells ``[first, last)`` of a window, cell by cell, out of all its blocks; a `SchemaError` where
    their columns differ."""
    head, *rest = map(_kinds, parts)
    if any(kinds != head for kinds in rest):
        check_alike([part.columns() for part in parts])
        raise SchemaError("their columns come in another order, or fixed-length strings are longer in one")
    order = None
    if len(parts) * (last - first) > MOST_RUNS:
        order = _cell_order([part.edges[first : last + 1] for part in parts])
        runs = [(part, int(part.edges[first]), int(part.edges[last])) for part in parts]
    else:
        runs = [
            (part, int(part.edges[cell]), int(part.edges[cell + 1]))
            for cell in range(first, last)
            for part in parts
        ]
    made: Block = {}
    for at, (names, _) in enumerate(parts[0].stacks):
        matrix = np.concatenate([part.stacks[at][1][:, low:high] for part, low, high in runs], axis=1)
        for name, row in zip(names, matrix, strict=True):
            made[name] = row if order is None else np.take(row, order)
    for name in parts[0].others:
        column = concat_columns([slice_column(part.others[name], low, high) for part, low, high in runs])
        made[name] = column if order is None else take_column(column, order)
    return {name: made[name] for name in parts[0].names}


def places(parts: Sequence[Split], first: int, last: int, starts: Ints) -> Ints:
    """Where the rows that `gather` returns stand, if blocks of the window are missing: every cell's rows from its
    start on (`starts`, shape ``(last - first,)``), without the ones that are not there."""
    counts = sum(np.diff(part.edges[first : last + 1]).astype(np.int64) for part in parts)
    before = np.cumsum(counts) - counts
    return np.arange(int(np.sum(counts)), dtype=np.int64) + np.repeat(starts - before, counts)


def _kinds(part: Split) -> Any:
    """What blocks must have in common to be joined."""
    stacks = [(names, kind_of(matrix[0])) for names, matrix in part.stacks]
    return stacks, {name: kind_of(column) for name, column in part.others.items()}


def _cell_order(edges: Sequence[Array]) -> Ints:
    """Positions that bring rows, joined block by block, into the order of their cells."""
    cells = np.arange(len(edges[0]) - 1)
    return np.argsort(np.concatenate([np.repeat(cells, np.diff(part)) for part in edges]), kind="stable")


def columns_of(block: Block, at_once: int) -> Iterator[Block]:
    """A block's columns, a few at a time."""
    names = list(block)
    for start in range(0, len(names), at_once):
        yield {name: block[name] for name in names[start : start + at_once]}
