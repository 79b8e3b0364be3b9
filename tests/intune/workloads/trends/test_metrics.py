"""The two trend metrics against a definition by brute force: every breaking of ties, one after the other."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intune.pipelines.errors import ConfigError, DataError
from intune.workloads.trends.metrics import mean_metrics, top_weights, trend_metrics


def brute_force(forecast: list[int], truth: list[int], k: int) -> tuple[float, float | None]:
    """Mean over all sets of k items that are a top k of the forecast."""
    tops = [
        chosen
        for chosen in combinations(range(len(forecast)), k)
        if all(
            forecast[inside] >= forecast[outside]
            for inside in chosen
            for outside in set(range(len(forecast))) - set(chosen)
        )
    ]
    best = sorted(truth, reverse=True)[:k]
    precision = np.mean([sum(truth[item] >= best[-1] for item in top) / k for top in tops])
    if sum(best) <= 0:
        return float(precision), None
    return float(precision), float(np.mean([sum(truth[item] for item in top) / sum(best) for top in tops]))


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-4, 4)), min_size=2, max_size=7), st.integers(1, 7))
def test_metrics_are_the_mean_over_breakings_of_ties(pairs: list[tuple[int, int]], k: int) -> None:
    k = min(k, len(pairs))
    forecast, truth = (list(values) for values in zip(*pairs, strict=True))
    found = trend_metrics(np.array([forecast], dtype=float), np.array([truth]), cutoffs=(k,))
    precision, gain = brute_force(forecast, truth, k)
    assert found[f"precision@{k}"][0] == pytest.approx(precision)
    if gain is None:
        assert np.isnan(found[f"gain@{k}"][0])
    else:
        assert found[f"gain@{k}"][0] == pytest.approx(gain)


def test_a_case_worked_by_hand() -> None:
    # Forecast's top 2 are items 0 and 2, the true ones 0 and 1: one of two, and 5 − 1 of 5 + 3.
    found = trend_metrics(np.array([[9.0, 1, 8, 0]]), np.array([[5, 3, -1, 0]]), cutoffs=(2,))
    assert found["precision@2"][0] == 0.5
    assert found["gain@2"][0] == 0.5


def test_the_truth_itself_reaches_one_and_its_opposite_loses() -> None:
    truth = np.random.default_rng(0).integers(-5, 6, (6, 30))
    for values in trend_metrics(truth, truth, cutoffs=(5, 10)).values():
        np.testing.assert_allclose(values, 1.0)
    assert (trend_metrics(-truth, truth, cutoffs=(5,))["gain@5"] < 0).all()


def test_the_order_of_items_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    forecast, truth, order = rng.integers(0, 3, (4, 12)), rng.integers(-3, 4, (4, 12)), rng.permutation(12)
    before = trend_metrics(forecast, truth, cutoffs=(5,))
    after = trend_metrics(forecast[:, order], truth[:, order], cutoffs=(5,))
    for name, values in before.items():
        np.testing.assert_allclose(values, after[name])


def test_weights_of_a_step_sum_to_k() -> None:
    weights = top_weights(np.array([[1.0, 1, 1, 0], [4, 3, 2, 1]]), 2)
    np.testing.assert_allclose(weights, [[2 / 3, 2 / 3, 2 / 3, 0], [1, 1, 0, 0]])


def test_steps_without_gain_are_left_out_of_the_mean() -> None:
    assert mean_metrics({"gain@1": np.array([np.nan, 0.5])}) == {"gain@1": 0.5}
    assert np.isnan(mean_metrics({"gain@1": np.array([np.nan])})["gain@1"])


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(DataError, match=r"shape \(1, 2\)"):
        trend_metrics(np.zeros((1, 2)), np.zeros((1, 3)))
    with pytest.raises(DataError, match="item 1 in step 0 is nan"):
        trend_metrics(np.array([[0, np.nan]]), np.zeros((1, 2)), cutoffs=(1,))
    with pytest.raises(ConfigError, match="`cutoffs` has 3"):
        trend_metrics(np.zeros((1, 2)), np.zeros((1, 2)), cutoffs=(3,))
