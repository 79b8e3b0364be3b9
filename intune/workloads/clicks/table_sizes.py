"""How many rows embedding tables get: the published sizes for Criteo's data, and rules for other data or a budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from intune.pipelines.errors import ConfigError

KAGGLE_SIZES = (
    *(1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194),
    *(27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572),
)
"""Distinct values of C1 … C26 in Criteo's Kaggle data (7 days)."""

TERABYTE_SIZES = (
    *(10000000, 39060, 17295, 7424, 20265, 3, 7122, 1543, 63, 10000000, 3067956, 405282, 10),
    *(2209, 11938, 155, 4, 976, 14, 10000000, 10000000, 10000000, 590152, 12973, 108, 36),
)
"""Distinct values of C1 … C26 in Criteo's 1 TB data (24 days), indices modulo 10 million."""

MLPERF_SIZES = (
    *(39884406, 39043, 17289, 7420, 20263, 3, 7120, 1543, 63, 38532951, 2953546, 403346, 10),
    *(2208, 11938, 155, 4, 976, 14, 39979771, 25641295, 39664984, 585935, 12972, 108, 36),
)
"""As in the MLPerf training benchmark v1 (DLRM): indices modulo 40 million."""

MLPERF_V2_SIZES = (
    *(40000000, 39060, 17295, 7424, 20265, 3, 7122, 1543, 63, 40000000, 3067956, 405282, 10),
    *(2209, 11938, 155, 4, 976, 14, 40000000, 40000000, 40000000, 590152, 12973, 108, 36),
)
"""As in the MLPerf training benchmark v2 (DLRM-DCNv2, multi-hot): indices modulo 40 million."""

DEMO_TABLE_ROWS = 100_000
"""Cap of a table in the demo presets: 26 such tables of width 16 hold at most 166 MB."""

LEAST_ROWS = 4096
"""Rows of the smallest table: hashed, the three values of C9 then collide once in 1,400 times, where a table of
three rows would lose one of them in seven cases of nine."""

ROWS_PER_ID = 16
"""Rows per id where a table is small: one id in sixteen shares its row with another."""

ROOMY_ROWS = 65_536
"""Tables are made no larger than this for the sake of fewer collisions; beyond, ids are mostly rare ones."""


def hashed_rows(cardinalities: Sequence[int], most: int | None = None) -> tuple[int, ...]:
    """Rows of tables whose ids are hashed: more than there are ids where ids are few, so that few collide.

    Args:
        cardinalities: distinct ids of each feature.
        most: largest table; None for no limit.
    """
    roomy = (max(count, LEAST_ROWS, min(ROWS_PER_ID * count, ROOMY_ROWS)) for count in cardinalities)
    return tuple(rows if most is None else min(rows, most) for rows in roomy)


def shared_rows(cardinalities: Sequence[int], total: int) -> tuple[int, ...]:
    """`total` rows divided among per-feature tables in proportion to their ids, each at least one row.

    The usual way to hash each feature within a budget: every table is the same factor smaller than its vocabulary. What
    rounding leaves over goes to those with the largest remainders, so that exactly `total` rows are used and a
    comparison at equal numbers of parameters is one.

    Args:
        cardinalities: distinct ids of each feature.
        total: rows of all tables.

    Raises:
        ConfigError: there are more features than rows.
    """
    if total < len(cardinalities):
        raise ConfigError(
            f"{len(cardinalities)} tables need a row each, but {total} rows were found; allow more parameters"
        )
    counts = np.maximum(np.asarray(cardinalities, dtype=np.float64), 1)
    rows = np.ones(len(counts), dtype=np.int64)
    # A row each first; the rest in proportion to the ids that still want one.
    exact = (total - len(counts)) * counts / counts.sum()
    rows += exact.astype(np.int64)
    left = total - int(rows.sum())
    rows[np.argsort(-(exact % 1), kind="stable")[:left]] += 1
    return tuple(int(count) for count in rows)
