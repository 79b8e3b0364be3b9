"""Pipeline stages that draw at random: windows of sessions, masked items, negatives.

Their draws depend on a seed and on the batch's content, and on nothing else: they are the same on every executor, for
any number of workers and after a resume; they differ between epochs because shuffling makes other batches, unless an
epoch is a single one (see `batch_sizes.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from intune.pipelines.errors import ConfigError
from intune.pipelines.schema import Array, Block, Column, Ragged, elements
from intune.pipelines.transforms.base import Transform
from intune.pipelines.transforms.mixing import key_of, mix
from intune.pipelines.whole import at_least
from intune.workloads.pairs.distinct import distinct
from intune.workloads.sequences.stages import IGNORED, matrix_of, sessions_of


@dataclass(frozen=True, kw_only=True)
class DrawEnd(Transform):
    """End each session at an item drawn at random, so that its last `length` items are another window every epoch.

    A session of `length` items or fewer stays whole; of longer ones, every window of `length` items is as likely.

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
        at_least("length", self.length, 1)

    def __call__(self, block: Mapping[str, Column]) -> Block:
        """The block with shortened sessions."""
        sessions = sessions_of("DrawEnd", block, self.column)
        lengths = np.asarray(sessions.lengths)
        generator = generator_of(self.seed, sessions.values)
        ends = generator.integers(np.minimum(lengths, self.length), lengths + 1)
        places, offsets = elements(sessions.offsets[:-1], ends)
        return {**block, self.into: Ragged(sessions.values[places], offsets)}


@dataclass(frozen=True, kw_only=True)
class Cloze(Transform):
    """Mask items at random, to be predicted from both sides (BERT4Rec, arXiv 1904.06690, section 3.6).

    Every item is masked with probability `mask_share`, independently; where that spares a whole session, its last
    item is masked.

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
        at_least("items", self.items, 1)
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
class DrawNegatives(Transform):
    """For every target an item that its session does not hold, drawn uniformly (SASRec, arXiv 1808.09781).

    For a session of the whole catalogue, which leaves nothing to draw, any item is drawn.

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
        held = distinct(rows * self.items + sessions.values)
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


def generator_of(seed: int, content: Array) -> np.random.Generator:
    """A generator that depends on a seed and on the content of a batch, its order included, and on nothing else."""
    words = np.ascontiguousarray(content, dtype=np.int64).view(np.uint64).ravel()
    words = words + np.arange(1, len(words) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mix(words, np.empty_like(words))
    digest = int(np.bitwise_xor.reduce(words)) if len(words) else 0
    return np.random.default_rng((key_of(seed), digest))
