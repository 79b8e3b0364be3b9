"""Pipeline stages that make of sessions what sequence models eat: padded windows, shifted targets.

A session is a list column of item ids, oldest first. Items are 0 … n − 1; models with special rows put them after
these: n is padding, n + 1 the mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from intune.pipelines.errors import ConfigError, DataError, SchemaError
from intune.pipelines.schema import Array, Block, Column, Ragged
from intune.pipelines.transforms.base import Transform, kind_of
from intune.pipelines.transforms.lists import join_rows, require_lists
from intune.pipelines.whole import at_least

IGNORED = -100
"""Target of a position that nothing is predicted at; what torch's cross-entropy leaves out by default."""


@dataclass(frozen=True, kw_only=True)
class AppendTargets(Transform):
    """Put the held-out items of each session after those known, to measure the loss on them.

    Attributes:
        column: the sessions.
        targets: the held-out items, a list column.
        into: both, a list column.
    """

    column: str = "items"
    targets: str = "targets"
    into: str = "drawn"

    def __call__(self, block: Mapping[str, Column]) -> Block:
        """The block with the longer sessions."""
        parts = [sessions_of("AppendTargets", block, name) for name in (self.column, self.targets)]
        return {**block, self.into: join_rows(parts)}


@dataclass(frozen=True, kw_only=True)
class Window(Transform):
    """The last `length` items of each session as rows of a matrix; shorter ones are padded.

    Attributes:
        column: the sessions.
        length: items kept, 1 or more.
        items: number n of items; an id outside 0 … n − 1 is an error. Padding is n.
        side: where padding goes: ``"left"`` puts every session's last item in the last column.
        into: the matrix, int64, shape ``(rows, length)``.
    """

    length: int
    items: int
    column: str = "items"
    side: Literal["left", "right"] = "left"
    into: str = "sequence"

    def __post_init__(self) -> None:
        at_least("length", self.length, 1)
        at_least("items", self.items, 1)
        if self.side not in ("left", "right"):
            raise ConfigError(f"`side`={self.side!r} is unknown; use 'left' or 'right'")

    def __call__(self, block: Mapping[str, Column]) -> Block:
        """The block with the matrix.

        Raises:
            DataError: an empty session, or an id that is not one of the `items`.
        """
        sessions = sessions_of("Window", block, self.column)
        lengths = np.asarray(sessions.lengths)
        if len(lengths) and lengths.min() < 1:
            raise DataError(
                f"Window: session {int(np.argmin(lengths))} of `{self.column}` is empty; "
                f"leave empty sessions out when preparing the data"
            )
        values = sessions.values
        outside = np.flatnonzero((values < 0) | (values >= self.items))
        if len(outside):
            raise DataError(
                f"Window: `{self.column}` has the item {int(values[outside[0]])}, but the catalogue has "
                f"{self.items} items, 0 to {self.items - 1}; number items anew or give the whole catalogue"
            )
        kept = np.minimum(lengths, self.length)
        matrix = np.full((len(sessions), self.length), self.items, dtype=np.int64)
        column = np.arange(self.length)
        first = self.length - kept if self.side == "left" else np.zeros_like(kept)
        filled = (column >= first[:, None]) & (column < (first + kept)[:, None])
        source = (sessions.offsets[1:] - kept - first)[:, None] + column
        matrix[filled] = values[source[filled]]
        return {**block, self.into: matrix}


@dataclass(frozen=True, kw_only=True)
class MaskNext(Transform):
    """Append the mask to each sequence, to ask BERT4Rec for the next item; the first column makes room.

    Attributes:
        items: number n of items; padding is n, the mask n + 1.
        column: matrix of a `Window` padded on the left.
    """

    items: int
    column: str = "sequence"

    def __call__(self, block: Mapping[str, Column]) -> Block:
        """The block with moved sequences."""
        sequence = matrix_of("MaskNext", block, self.column)
        moved = np.roll(sequence, -1, axis=1)
        moved[:, -1] = self.items + 1
        return {**block, self.column: moved}


@dataclass(frozen=True, kw_only=True)
class ShiftTargets(Transform):
    """Input and target of next-item models: all items but the last, and all but the first.

    Attributes:
        items: number n of items; padding is n.
        column: matrix of a `Window` of one more column than the model takes; the input takes its place.
        into: int64, shape ``(rows, length)``, the item after each position, `IGNORED` where there is none.
    """

    items: int
    column: str = "sequence"
    into: str = "target"

    def __call__(self, block: Mapping[str, Column]) -> Block:
        """The block with inputs and targets.

        A session of one item has no next and gets no target.
        """
        sequence = matrix_of("ShiftTargets", block, self.column)
        present = sequence < self.items
        known = present[:, :-1] & present[:, 1:]
        return {
            **block,
            # Where padding is on the right, the last item is a target only, and must not be an input.
            self.column: np.where(known, sequence[:, :-1], self.items),
            self.into: np.where(known, sequence[:, 1:], IGNORED),
        }


def sessions_of(verb: str, block: Mapping[str, Any], column: str) -> Ragged:
    """The list column of sessions; a `SchemaError` where there is none or its items are not whole numbers."""
    if column not in block:
        raise SchemaError(f"{verb}: there is no column `{column}`; the block has {', '.join(block)}")
    sessions = require_lists(verb, column, block[column])
    if not isinstance(sessions.values, np.ndarray) or sessions.values.dtype.kind not in "iu":
        raise SchemaError(
            f"{verb}: column `{column}` holds lists of {kind_of(sessions.values)}, but sessions are lists of item "
            f"ids, whole numbers"
        )
    return sessions


def matrix_of(verb: str, block: Mapping[str, Any], column: str) -> Array:
    """The integer matrix of that name; a `SchemaError` where there is none."""
    matrix = block.get(column)
    if not isinstance(matrix, np.ndarray) or matrix.ndim != 2 or matrix.dtype.kind not in "iu":
        raise SchemaError(
            f"{verb}: `{column}` must be a matrix of item ids, as `Window` makes it, but "
            f"{'nothing' if matrix is None else kind_of(matrix)} was found"
        )
    return matrix
