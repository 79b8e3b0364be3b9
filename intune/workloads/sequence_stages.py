"""Pipeline stages that make of sessions what sequence models eat: padded windows, masked items, shifted targets.

A session is a list column of item ids, oldest first. Items are 0 … n − 1; models with special rows put them after
these: n is padding, n + 1 the mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from intune.pipelines.errors import ConfigError, DataError, SchemaError
from intune.pipelines.schema import Array, Block, Column, Ragged
from intune.pipelines.transforms.base import Transform, kind_of, whole
from intune.pipelines.transforms.lists import join_rows, require_lists, windows
from intune.pipelines.transforms.mixing import key_of, mix

IGNORED = -100
"""Target of a position that nothing is predicted at; what torch's cross-entropy leaves out by default."""


@dataclass(frozen=True, kw_only=True)
class DrawEnd(Transform):
    """End each session at an item drawn at random, so that its last `length` items are another window every epoch.

    A session of `length` items or fewer stays whole; of longer ones, every window of `length` items is as likely.
    The draw depends on `seed` and on the batch's content alone, so it is the same on every executor and after a
    resume; it differs between epochs because shuffling makes other batches.

    Attributes:
        length: items of a window.
        seed: of the draw.
        column: the sessions.
        into: the shortened sessions.
    """

    rowwise: ClassVar[bool] = False

    length: int
    seed: int = 0
    column: str = "items"
    into: str = "drawn"

    def __post_init__(self) -> None:
        whole("length", self.length, 1)

    def __call__(self, block: Mapping[str, Column]) -> Block:
        """The block with shortened sessions."""
        sessions = sessions_of("DrawEnd", block, self.column)
        lengths = np.asarray(sessions.lengths)
        generator = generator_of(self.seed, sessions.values)
        ends = generator.integers(np.minimum(lengths, self.length), lengths + 1)
        places, offsets = windows(sessions.offsets, ends)
        return {**block, self.into: Ragged(sessions.values[places], offsets)}


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
        whole("length", self.length, 1)
        whole("items", self.items, 1)
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
class Cloze(Transform):
    """Mask items at random, to be predicted from both sides (BERT4Rec, arXiv 1904.06690, section 3.6).

    Every item is masked with probability `mask_share`, independently; where that spares a whole session, its last
    item is masked. As for `DrawEnd`, the draw depends on `seed` and the batch.

    Attributes:
        items: number n of items; padding is n, the mask n + 1.
        mask_share: above 0, at most 1.
        seed: of the draw.
        column: matrix of a `Window`; the masked one takes its place.
        into: int64 of the same shape, the masked items, `IGNORED` elsewhere.
    """

    rowwise: ClassVar[bool] = False

    items: int
    mask_share: float
    seed: int = 0
    column: str = "sequence"
    into: str = "target"

    def __post_init__(self) -> None:
        whole("items", self.items, 1)
        if not 0 < self.mask_share <= 1:
            raise ConfigError(f"`mask_share` must be above 0 and at most 1, but {self.mask_share} was found")

    def __call__(self, block: Mapping[str, Column]) -> Block:
        """The block with masked sequences and their targets."""
        sequence = matrix_of("Cloze", block, self.column)
        present = sequence < self.items
        masked = present & (generator_of(self.seed, sequence).random(sequence.shape) < self.mask_share)
        last = sequence.shape[1] - 1 - np.argmax(present[:, ::-1], axis=1)
        spared = np.flatnonzero(~masked.any(axis=1) & present.any(axis=1))
        masked[spared, last[spared]] = True
        return {
            **block,
            self.column: np.where(masked, self.items + 1, sequence),
            self.into: np.where(masked, sequence, IGNORED),
        }


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

        Raises:
            DataError: there is no target in the whole batch.
        """
        sequence = matrix_of("ShiftTargets", block, self.column)
        present = sequence < self.items
        known = present[:, :-1] & present[:, 1:]
        if not known.any():
            raise DataError(
                "ShiftTargets: no session of the batch has 2 items, so that there is no next item to learn from; "
                "make batches larger, or leave sessions of 1 item out when preparing the data"
            )
        return {
            **block,
            # Where padding is on the right, the last item is a target only, and must not be an input.
            self.column: np.where(known, sequence[:, :-1], self.items),
            self.into: np.where(known, sequence[:, 1:], IGNORED),
        }


@dataclass(frozen=True, kw_only=True)
class DrawNegatives(Transform):
    """For every target an item that its session does not hold, drawn uniformly (SASRec, arXiv 1808.09781).

    As for `DrawEnd`, the draw depends on `seed` and the batch. For a session of the whole catalogue, which leaves
    nothing to draw, any item is drawn.

    Attributes:
        items: number n of items.
        seed: of the draw.
        column: the sessions, a list column.
        target: matrix of targets as from `ShiftTargets`.
        into: int64, shape as `target`'s, 0 where there is no target.
    """

    rowwise: ClassVar[bool] = False

    items: int
    seed: int = 0
    column: str = "items"
    target: str = "target"
    into: str = "negative"

    def __call__(self, block: Mapping[str, Column]) -> Block:
        """The block with negatives."""
        sessions = sessions_of("DrawNegatives", block, self.column)
        target = matrix_of("DrawNegatives", block, self.target)
        rows = np.repeat(np.arange(len(sessions)), np.asarray(sessions.lengths))
        held = np.unique(rows * self.items + sessions.values)
        counts = np.bincount(held // self.items, minlength=len(sessions))
        free = np.where(counts == self.items, self.items, self.items - counts)
        drawn = generator_of(self.seed, target).integers(0, free[:, None], target.shape)
        # The r-th free item is r + j, with j held items below it: those whose own number of free ones below is ≤ r.
        starts = np.cumsum(counts) - counts
        below = held - (np.arange(len(held)) - np.repeat(starts, counts))
        row = np.arange(len(sessions))[:, None]
        passed = np.searchsorted(below, row * self.items + drawn, side="right") - starts[:, None]
        made = np.where(counts[:, None] == self.items, drawn, drawn + passed)
        return {**block, self.into: np.where(target == IGNORED, 0, made)}


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


def generator_of(seed: int, content: Array) -> np.random.Generator:
    """A generator that depends on a seed and on the content of a batch, its order included, and on nothing else."""
    words = np.ascontiguousarray(content, dtype=np.int64).view(np.uint64).ravel()
    words = words + np.arange(1, len(words) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mix(words, np.empty_like(words))
    digest = int(np.bitwise_xor.reduce(words)) if len(words) else 0
    return np.random.default_rng((key_of(seed), digest))
