"""Draws the features of synthetic rows, a block at a time; labels are the teacher's business.

The unit of randomness is a block of `BLOCK_ROWS` rows with a seed of its own, made of (seed, stream, block
number). So row i of a stream is the same whatever files and row groups the rows are cut into, and blocks can
be drawn in any order, by any thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from intune.workloads.data.columns import (
    CATEGORICAL_MISSING,
    COUNT_SHAPES,
    DENSE_MISSING,
    MULTI_HOT_LENGTHS,
    CountShape,
)
from intune.workloads.data.ids import UInt32, draw_ranks

BLOCK_ROWS = 16_384
"""Rows drawn at once: few enough that a column and its temporaries stay in a core's second-level cache, many
enough that NumPy's overhead per call does not count. Part of the format: another value gives other rows."""

Mask = npt.NDArray[np.bool_]


class Stream(IntEnum):
    """What a seed is used for; streams are independent of each other."""

    TRAIN = 0
    TEST = 1
    CALIBRATION = 2
    IDS = 3
    TEACHER = 4


def generator(seed: int, stream: Stream, block: int = 0) -> np.random.Generator:
    """The random generator of one block of one stream."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed, spawn_key=(stream, block))))


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureSpec:
    """What the features of a row look like.

    Attributes:
        cardinalities: number of ids of each categorical feature.
        missing: factor on Criteo's shares of missing values, 0 (nothing is missing) to 1.
        multi_hot: lists of ids with MLPerf's mean lengths instead of one id.
    """

    cardinalities: tuple[int, ...]
    missing: float = 1.0
    multi_hot: bool = False


@dataclass(frozen=True, slots=True)
class DenseColumn:
    """Counts of one dense feature, shape ``(rows,)``, float32; `missing` marks nulls, None if there are none."""

    values: npt.NDArray[np.float32]
    missing: Mask | None


@dataclass(frozen=True, slots=True)
class CategoricalColumn:
    """Ranks of the ids of one categorical feature.

    Attributes:
        ranks: shape ``(rows,)``, or ``(values,)`` with `offsets`.
        missing: shape ``(rows,)``, marks nulls; None if there are none. Lists are empty, never null.
        offsets: shape ``(rows + 1,)``, int32; None for one id per row.
    """

    ranks: UInt32
    missing: Mask | None = None
    offsets: npt.NDArray[np.int32] | None = None


@dataclass(frozen=True, slots=True)
class Features:
    """The features of `rows` rows, columns in Criteo's order."""

    rows: int
    dense: tuple[DenseColumn, ...]
    categorical: tuple[CategoricalColumn, ...]


def draw_features(rng: np.random.Generator, spec: FeatureSpec, rows: int = BLOCK_ROWS) -> Features:
    """Features of `rows` rows; all of them independent of each other."""
    dense = tuple(
        DenseColumn(_draw_counts(rng, shape, rows), _draw_missing(rng, share * spec.missing, rows))
        for shape, share in zip(COUNT_SHAPES, DENSE_MISSING, strict=True)
    )
    features = zip(spec.cardinalities, CATEGORICAL_MISSING, MULTI_HOT_LENGTHS, strict=True)
    categorical = tuple(
        _draw_lists(rng, cardinality, length, share * spec.missing, rows)
        if spec.multi_hot
        else CategoricalColumn(
            draw_ranks(rng, cardinality, rows), _draw_missing(rng, share * spec.missing, rows)
        )
        for cardinality, share, length in features
    )
    return Features(rows, dense, categorical)


def _draw_counts(rng: np.random.Generator, shape: CountShape, rows: int) -> npt.NDArray[np.float32]:
    values = rng.standard_normal(rows, dtype=np.float32)
    values *= np.float32(shape.sigma)
    values += np.float32(shape.mu)
    np.exp(values, out=values)
    np.floor(values, out=values)
    if shape.shift:
        values -= np.float32(shape.shift)
    return values


def _draw_missing(rng: np.random.Generator, share: float, rows: int) -> Mask | None:
    if share == 0:
        return None
    # 16 random bits per decision are enough for shares given to three digits.
    bits = np.frombuffer(rng.bytes(2 * rows), dtype=np.uint16)
    return bits < np.uint16(round(share * 65536))


def _draw_lists(
    rng: np.random.Generator, cardinality: int, mean_length: int, empty_share: float, rows: int
) -> CategoricalColumn:
    """Lists, `empty_share` of them empty, the others of any length from 1 up, `mean_length` on average over all."""
    lengths = np.ones(rows, dtype=np.int64)
    longest = 2 * mean_length / (1 - empty_share) - 1
    if longest > 1:
        # Uniform in 1 … longest; where that is no whole number, the one below or above, to keep the mean.
        ends = np.floor(longest + rng.random(rows))
        lengths += (ends * rng.random(rows)).astype(np.int64)
    empty = _draw_missing(rng, empty_share, rows)
    if empty is not None:
        lengths[empty] = 0
    offsets = np.zeros(rows + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return CategoricalColumn(draw_ranks(rng, cardinality, int(offsets[-1])), offsets=offsets)
