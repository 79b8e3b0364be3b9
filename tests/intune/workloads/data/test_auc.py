"""The streamed ROC area against scikit-learn's."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from intune.workloads.data.auc import BINS, LIMIT, StreamingAUC


def _rows(seed: int, count: int = 20_000, spread: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1, spread, count)
    labels = (rng.random(count) < 1 / (1 + np.exp(-logits))).astype(np.float32)
    return logits, labels


@pytest.mark.parametrize("seed", range(5))
def test_area_equals_scikit_learns(seed: int) -> None:
    logits, labels = _rows(seed)
    streamed = StreamingAUC()
    for part in np.array_split(np.arange(len(logits)), 7):
        streamed.update(logits[part], labels[part])
    assert streamed.value == pytest.approx(roc_auc_score(labels, logits), abs=2e-6)
    assert streamed.positive_share == pytest.approx(labels.mean())


def test_area_is_exact_for_scores_that_tie_only_where_bins_do() -> None:
    rng = np.random.default_rng(3)
    logits = rng.integers(-20, 20, 5000) * (2 * LIMIT / BINS) * 10
    labels = (rng.random(5000) < 0.3).astype(np.float64)
    streamed = StreamingAUC()
    streamed.update(logits, labels)
    assert streamed.value == pytest.approx(roc_auc_score(labels, logits), abs=1e-12)


def test_probabilities_as_labels_give_the_expected_area() -> None:
    logits, _ = _rows(0)
    probabilities = 1 / (1 + np.exp(-logits))
    expected = StreamingAUC()
    expected.update(logits, probabilities)
    weighted = roc_auc_score(
        np.repeat([1, 0], len(logits)),
        np.tile(logits, 2),
        sample_weight=np.concatenate([probabilities, 1 - probabilities]),
    )
    assert expected.value == pytest.approx(weighted, abs=2e-6)


def test_merged_parts_equal_the_whole() -> None:
    logits, labels = _rows(1)
    whole, left, right = StreamingAUC(), StreamingAUC(), StreamingAUC()
    whole.update(logits, labels)
    left.update(logits[:123], labels[:123])
    right.update(logits[123:], labels[123:])
    left.merge(right)
    assert left.value == whole.value


def test_scores_beyond_the_limit_keep_their_side() -> None:
    streamed = StreamingAUC()
    streamed.update(np.array([-1e9, 1e9, 0.0]), np.array([0.0, 1.0, 0.0]))
    assert streamed.value == 1


def test_area_of_one_class_is_undefined() -> None:
    streamed = StreamingAUC()
    assert math.isnan(streamed.value)
    assert math.isnan(streamed.positive_share)
    streamed.update(np.array([0.0, 1.0]), np.array([1.0, 1.0]))
    assert math.isnan(streamed.value)
    assert streamed.positive_share == 1
