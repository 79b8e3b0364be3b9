"""Features: shares of missing values, heavy tails, list lengths; independence of blocks."""

import numpy as np
import pytest

from intune.workloads.data.columns import (
    CARDINALITIES,
    CATEGORICAL_MISSING,
    DENSE_MISSING,
    MULTI_HOT_LENGTHS,
    scaled_cardinalities,
)
from intune.workloads.data.features import (
    BLOCK_ROWS,
    Features,
    FeatureSpec,
    Stream,
    draw_features,
    generator,
)

SPEC = FeatureSpec(cardinalities=scaled_cardinalities(0.01))


def _block(
    spec: FeatureSpec = SPEC, seed: int = 0, stream: Stream = Stream.TRAIN, block: int = 0
) -> Features:
    return draw_features(generator(seed, stream, block), spec)


def test_a_block_is_the_same_each_time_and_unlike_others() -> None:
    first, again = _block(), _block()
    assert np.array_equal(first.dense[4].values, again.dense[4].values)
    assert np.array_equal(first.categorical[2].ranks, again.categorical[2].ranks)
    for other in (_block(seed=1), _block(stream=Stream.TEST), _block(block=1)):
        assert not np.array_equal(first.dense[4].values, other.dense[4].values)
        assert not np.array_equal(first.categorical[2].ranks, other.categorical[2].ranks)


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0])
def test_missing_values_have_criteos_shares(factor: float) -> None:
    features = _block(FeatureSpec(cardinalities=SPEC.cardinalities, missing=factor))
    columns = [*features.dense, *features.categorical]
    shares = np.array([0.0 if column.missing is None else column.missing.mean() for column in columns])
    assert shares == pytest.approx(factor * np.array([*DENSE_MISSING, *CATEGORICAL_MISSING]), abs=0.02)
    if factor == 0:
        assert all(column.missing is None for column in columns)


def test_counts_are_whole_heavy_tailed_and_only_the_second_is_negative() -> None:
    for number, column in enumerate(_block().dense, start=1):
        assert np.array_equal(column.values, np.floor(column.values))
        assert column.values.min() == (-3 if number == 2 else 0) or number == 5
        assert column.values.mean() > 1.1 * np.median(column.values)
    assert np.mean(_block().dense[1].values < 0) > 0.05


def test_lists_have_mlperfs_mean_lengths_are_uneven_and_sometimes_empty() -> None:
    spec = FeatureSpec(cardinalities=SPEC.cardinalities, multi_hot=True)
    features = _block(spec)
    for column, length, share in zip(
        features.categorical, MULTI_HOT_LENGTHS, CATEGORICAL_MISSING, strict=True
    ):
        assert column.offsets is not None
        lengths = np.diff(column.offsets)
        assert len(lengths) == BLOCK_ROWS
        assert column.offsets[-1] == len(column.ranks)
        assert lengths.mean() == pytest.approx(length, rel=0.1)
        assert (lengths == 0).mean() == pytest.approx(share, abs=0.02)
        if length > 1:
            assert lengths.std() > 0.4 * length
            assert lengths.max() <= 2 * length / (1 - share)


def test_small_vocabularies_keep_their_size_and_large_ones_shrink() -> None:
    scaled = scaled_cardinalities(0.01)
    for full, small in zip(CARDINALITIES, scaled, strict=True):
        assert small == full if full <= 1000 else small == max(1000, round(full / 100))
    assert scaled_cardinalities(1.0) == CARDINALITIES
