"""The columns of Criteo's click logs, and what is known of each: how many values, how many are missing.

Sources: the number of distinct ids is that of the Kaggle display advertising challenge (45,840,617 rows) as
DLRM's authors use them; multi-hot lengths are those of MLPerf training's DLRM v2. Shares of missing values
and medians and means of the counts are those of the Kaggle training file, rounded: they make a synthetic row
look like a real one and nothing depends on their last digit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

LABEL = "label"
DENSE = tuple(f"I{number}" for number in range(1, 14))
CATEGORICAL = tuple(f"C{number}" for number in range(1, 27))
COLUMNS = (LABEL, *DENSE, *CATEGORICAL)

KAGGLE_ROWS = 45_840_617

# fmt: off
CARDINALITIES = (
    1460, 583, 10_131_227, 2_202_608, 305, 24, 12_517, 633, 3, 93_145, 5683, 8_351_593, 3194,
    27, 14_992, 5_461_306, 10, 5652, 2173, 4, 7_046_547, 18, 15, 286_181, 105, 142_572,
)
"""Distinct ids of C1 … C26."""

MULTI_HOT_LENGTHS = (
    3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1,
)
"""Ids per row of C1 … C26 in MLPerf's multi-hot data set."""

DENSE_MISSING = (0.45, 0.0, 0.21, 0.22, 0.03, 0.22, 0.04, 0.001, 0.04, 0.45, 0.04, 0.76, 0.22)
"""Share of rows without a value, I1 … I13."""

CATEGORICAL_MISSING = (
    0.0, 0.0, 0.034, 0.034, 0.0, 0.12, 0.0, 0.0, 0.0, 0.0, 0.0, 0.034, 0.0,
    0.0, 0.0, 0.034, 0.0, 0.0, 0.44, 0.44, 0.034, 0.76, 0.0, 0.034, 0.44, 0.44,
)
"""Share of rows without a value, C1 … C26."""
# fmt: on


@dataclass(frozen=True, slots=True)
class CountShape:
    """A count drawn as ``floor(exp(mu + sigma * normal)) - shift``: heavy-tailed, its median ``exp(mu)``."""

    mu: float
    sigma: float
    shift: int = 0


def _shape(median: float, mean: float, shift: int = 0) -> CountShape:
    # A log-normal variable has median exp(mu) and mean exp(mu + sigma² / 2).
    return CountShape(mu=math.log(median), sigma=math.sqrt(2 * math.log(mean / median)), shift=shift)


COUNT_SHAPES = (
    _shape(1.5, 5),
    _shape(10, 110, shift=3),  # I2 is the count that goes down to -3
    _shape(6, 27),
    _shape(4, 7.5),
    _shape(2800, 18_500),
    _shape(32, 116),
    _shape(3, 16),
    _shape(7, 12.5),
    _shape(38, 106),
    _shape(0.9, 1.2),
    _shape(1.5, 3.2),
    _shape(0.6, 1.5),
    _shape(4, 8.2),
)
"""How I1 … I13 are distributed."""


def scaled_cardinalities(scale: float) -> tuple[int, ...]:
    """`CARDINALITIES` times `scale`; features of up to 1,000 ids keep them all, larger ones at least 1,000.

    Small vocabularies (countries, sizes of a banner) do not shrink when fewer rows are logged; only the long
    tails of the large ones do.
    """
    return tuple(max(min(count, 1000), round(count * scale)) for count in CARDINALITIES)


def schema(*, strings: bool = False, multi_hot: bool = False) -> pa.Schema:
    """Arrow schema of a data set: ids are int64, or 8-digit hex text with `strings`; lists with `multi_hot`."""
    id_type = pa.string() if strings else pa.int64()
    if multi_hot:
        id_type = pa.list_(id_type)
    return pa.schema(
        [
            pa.field(LABEL, pa.float32(), nullable=False),
            *(pa.field(name, pa.float32()) for name in DENSE),
            *(pa.field(name, id_type) for name in CATEGORICAL),
        ]
    )


def describe_columns(*, multi_hot: bool) -> dict[str, Any]:
    """The columns' roles, as in `dataset.json`."""
    return {"label": LABEL, "dense": list(DENSE), "categorical": list(CATEGORICAL), "multi_hot": multi_hot}
