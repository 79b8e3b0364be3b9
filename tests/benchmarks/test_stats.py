"""Medians, intervals, paired ratios and the order of rounds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import stats

rates = st.lists(st.floats(0.1, 1e7), min_size=1, max_size=9)


@given(rates)
@settings(max_examples=25)
def test_the_interval_holds_the_median_and_stays_within_the_runs(values: list[float]) -> None:
    found = stats.estimate(values)
    assert min(values) <= found.low <= found.median <= found.high <= max(values)
    assert found.median == np.median(values)


def test_the_interval_covers_the_true_median_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(100):
        found = stats.estimate(list(generator.normal(10.0, 1.0, 15)))
        covered += found.low <= 10.0 <= found.high
    assert 87 <= covered <= 100


def test_a_ratio_is_paired_so_that_noise_common_to_a_round_cancels() -> None:
    noise = [1.0, 3.0, 0.5, 2.0, 10.0]
    found = stats.ratio([2.0 * factor for factor in noise], noise)
    assert (found.low, found.median, found.high) == (2.0, 2.0, 2.0)


def test_unpaired_rounds_and_no_runs_are_refused() -> None:
    with pytest.raises(ValueError, match="paired"):
        stats.ratio([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="empty"):
        stats.estimate([])


def test_each_round_runs_everyone_once_in_an_order_of_its_own() -> None:
    names = list("abcdefgh")
    rounds = stats.rounds_of(names, 6, seed=3)
    assert all(sorted(order) == names for order in rounds)
    assert len({tuple(order) for order in rounds}) > 1
    assert rounds == stats.rounds_of(names, 6, seed=3)
    assert rounds != stats.rounds_of(names, 6, seed=4)
