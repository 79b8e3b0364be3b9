from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from intune.errors import DataError
from intune.workloads.clicks.metrics import BinaryMetrics, auc, log_loss, normalised_entropy, score

BOTH_LABELS = st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=60).filter(
    lambda rows: len({label for _, label in rows}) == 2
)


def split(rows: list[tuple[int, bool]]) -> tuple[np.ndarray, np.ndarray]:
    scores, labels = zip(*rows, strict=True)
    return np.array(scores, dtype=np.float32), np.array(labels, dtype=np.float32)


@given(BOTH_LABELS)
def test_area_equals_scikit_learns_with_many_ties(rows: list[tuple[int, bool]]) -> None:
    scores, labels = split(rows)
    assert auc(scores, labels) == pytest.approx(sklearn_metrics.roc_auc_score(labels, scores), abs=1e-12)


@given(BOTH_LABELS)
def test_area_is_the_share_of_pairs_in_order(rows: list[tuple[int, bool]]) -> None:
    scores, labels = split(rows)
    difference = scores[labels == 1][:, None] - scores[labels == 0][None, :]
    assert auc(scores, labels) == ((difference > 0) + 0.5 * (difference == 0)).mean()


def test_area_of_a_large_sample_equals_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random(200_000) < 0.2
    scores = (rng.normal(size=len(labels)) + labels).astype(np.float32)
    assert auc(scores, labels) == pytest.approx(sklearn_metrics.roc_auc_score(labels, scores), abs=1e-12)


def test_log_loss_equals_scikit_learns() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, size=5000)
    logits = rng.normal(size=5000)
    expected = sklearn_metrics.log_loss(labels, 1 / (1 + np.exp(-logits)))
    assert log_loss(logits, labels) == pytest.approx(expected, rel=1e-12)


def test_log_loss_does_not_overflow() -> None:
    logits = np.array([-1e4, 1e4], dtype=np.float32)
    assert log_loss(logits, np.array([0, 1])) == 0.0
    assert log_loss(logits, np.array([1, 0])) == pytest.approx(1e4)


def test_always_answering_the_mean_has_normalised_entropy_one_and_area_one_half() -> None:
    labels = np.array([1, 0, 0, 0])
    logits = np.full(4, math.log(1 / 3))
    assert normalised_entropy(logits, labels) == pytest.approx(1.0)
    assert auc(logits, labels) == 0.5


def test_batches_and_merged_parts_give_the_score_of_the_whole() -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, size=1000).astype(np.float32)
    logits = rng.normal(size=1000).astype(np.float32)
    whole, parts, other = BinaryMetrics(), BinaryMetrics(), BinaryMetrics()
    whole.update(logits, labels)
    parts.update(logits[:100], labels[:100])
    parts.update(logits[100:600], labels[100:600])
    other.update(logits[600:], labels[600:])
    parts.merge(other)
    expected, found = whole.compute(), parts.compute()
    assert found.rows == expected.rows == 1000
    assert found.positives == expected.positives == int(labels.sum())
    assert found.auc == expected.auc == auc(logits, labels)
    assert found.log_loss == pytest.approx(expected.log_loss, rel=1e-12)
    assert found.normalised_entropy == pytest.approx(normalised_entropy(logits, labels), rel=1e-12)


def test_what_cannot_be_measured_is_not_a_number() -> None:
    empty = BinaryMetrics().compute()
    assert empty.rows == 0
    assert math.isnan(empty.auc)
    assert math.isnan(empty.log_loss)
    assert math.isnan(empty.normalised_entropy)
    assert math.isnan(auc(np.zeros(3), np.ones(3)))
    assert math.isnan(normalised_entropy(np.zeros(3), np.zeros(3)))


def test_inputs_that_make_no_sense_are_refused() -> None:
    with pytest.raises(DataError, match=r"\(2,\) and \(3,\)"):
        auc(np.zeros(2), np.zeros(3))
    with pytest.raises(DataError, match="1 of 2 scores are NaN"):
        BinaryMetrics().update(np.array([0.0, np.nan]), np.zeros(2))
    with pytest.raises(DataError, match="labels must be 0 or 1, but 2"):
        log_loss(np.zeros(2), np.array([1, 2]))


def test_a_model_is_scored_over_all_batches_without_gradients() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, size=100).astype(np.float32)
    inputs = rng.normal(size=100).astype(np.float32)
    weight = torch.nn.Parameter(torch.tensor(2.0))
    batches = [
        {"x": torch.from_numpy(inputs[part]), "label": torch.from_numpy(labels[part])}
        for part in (slice(0, 30), slice(30, 100))
    ]
    found = score(lambda batch: (weight * batch["x"]).to(torch.bfloat16), batches)
    expected = (2 * torch.from_numpy(inputs)).to(torch.bfloat16).float().numpy()
    assert found.auc == auc(expected, labels)
    assert found.log_loss == pytest.approx(log_loss(expected, labels), rel=1e-6)
    assert found.rows == 100
