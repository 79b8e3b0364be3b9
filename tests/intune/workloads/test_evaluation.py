"""The ranking metrics against their definitions, user by user, and against torchmetrics and scikit-learn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from intune.errors import ConfigError, DataError
from intune.pipelines.schema import Ragged
from intune.workloads.evaluation import NOTHING, RankingMetrics, hits_of, metric_names, rank_all, top_k
from intune.workloads.pairs.data import HeldOut


def lists(rows: list[list[int]]) -> Ragged:
    offsets = np.cumsum([0, *(len(row) for row in rows)])
    return Ragged(np.array([value for row in rows for value in row], dtype=np.int64), offsets)


def by_definition(
    ranked: list[list[int]], targets: list[list[int]], counts: list[int], k: int
) -> dict[str, float]:
    """Every metric as its definition says, one user at a time."""
    popular = sorted(range(len(counts)), key=lambda item: (-counts[item], item))[:k]
    rows: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        rows.setdefault(name, []).append(value)

    for row, right in zip(ranked, targets, strict=True):
        row = row[:k]
        hits = [item for item in row if item in right]
        recall, precision = len(hits) / len(right), len(hits) / k
        note("recall", recall)
        note("precision", precision)
        note("f1", 2 * recall * precision / (recall + precision) if hits else 0.0)
        gain = sum(1 / math.log2(place + 2) for place, item in enumerate(row) if item in right)
        note("ndcg", gain / sum(1 / math.log2(place + 2) for place in range(min(k, len(right)))))
        note("mrr", 1 / (row.index(hits[0]) + 1) if hits else 0.0)
        note("hit_rate", float(bool(hits)))
        unexpected = [item for item in right if item not in popular]
        surprising = [item for item in hits if item not in popular]
        note("serendipity", len(surprising) / min(k, len(unexpected)) if unexpected else 0.0)
    result = {f"{name}@{k}": sum(values) / len(values) for name, values in rows.items()}
    shown = [item for row in ranked for item in row[:k] if item != NOTHING]
    result[f"coverage@{k}"] = len(set(shown)) / len(counts)
    surprises = [-math.log2(max(1, counts[item]) / sum(counts)) for item in shown]
    result[f"novelty@{k}"] = sum(surprises) / len(surprises)
    return result


@st.composite
def rankings(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]], list[int], int]:
    items = draw(st.integers(3, 12))
    rows = draw(st.integers(1, 6))
    k = draw(st.integers(1, items))
    order = st.permutations(range(items))
    ranked = [draw(order)[:k] for _ in range(rows)]
    empty = [draw(st.integers(0, k - 1)) for _ in range(rows)]
    ranked = [row[: k - gap] + [NOTHING] * gap for row, gap in zip(ranked, empty, strict=True)]
    targets = [draw(order)[: draw(st.integers(1, items))] for _ in range(rows)]
    counts = draw(st.lists(st.integers(0, 9), min_size=items, max_size=items).filter(any))
    return ranked, targets, counts, k


@given(rankings())
def test_every_metric_is_what_its_definition_says(
    case: tuple[list[list[int]], list[list[int]], list[int], int],
) -> None:
    ranked, targets, counts, k = case
    cutoffs = sorted({1, (k + 1) // 2, k})
    metrics = RankingMetrics(cutoffs, np.array(counts))
    half = len(ranked) // 2
    for part in (slice(0, half), slice(half, None)):
        if ranked[part]:
            metrics.update(np.array(ranked[part]), lists(targets[part]))
    result = metrics.compute()
    assert result.pop("users") == len(ranked)
    expected = {}
    for cutoff in cutoffs:
        expected |= by_definition(ranked, targets, counts, cutoff)
    assert result == pytest.approx(expected, abs=1e-12)


def drawn(rows: int = 40, items: int = 30, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Distinct scores above 0 (torchmetrics takes none at 0 for a hit), and right answers, some in every row."""
    rng = np.random.default_rng(seed)
    scores = torch.from_numpy(
        rng.permuted(np.tile(np.arange(1, items + 1), (rows, 1)), axis=1).astype(np.float32)
    )
    right = rng.random((rows, items)) < 0.15
    right[np.arange(rows), rng.integers(0, items, rows)] = True
    return scores, right


def measured(scores: torch.Tensor, right: np.ndarray, k: int) -> dict[str, float]:
    metrics = RankingMetrics([k], np.ones(right.shape[1], dtype=np.int64))
    metrics.update(top_k(scores, k), lists([list(np.flatnonzero(row)) for row in right]))
    return metrics.compute()


@pytest.mark.parametrize("k", [1, 5, 30])
def test_ndcg_is_that_of_scikit_learn(k: int) -> None:
    scores, right = drawn()
    expected = ndcg_score(right.astype(float), scores.numpy(), k=k)
    assert measured(scores, right, k)[f"ndcg@{k}"] == pytest.approx(expected)


@pytest.mark.parametrize("k", [1, 5, 30])
def test_accuracy_is_that_of_torchmetrics(k: int) -> None:
    pytest.importorskip("torchmetrics")
    from torchmetrics import retrieval

    scores, right = drawn(seed=1)
    rows = torch.arange(len(scores)).repeat_interleave(scores.shape[1])
    ours = measured(scores, right, k)
    theirs: dict[str, Any] = {
        "recall": retrieval.RetrievalRecall(top_k=k),
        "precision": retrieval.RetrievalPrecision(top_k=k),
        "ndcg": retrieval.RetrievalNormalizedDCG(top_k=k),
        "mrr": retrieval.RetrievalMRR(top_k=k),
        "hit_rate": retrieval.RetrievalHitRate(top_k=k),
    }
    for name, metric in theirs.items():
        expected = metric(scores.flatten(), torch.from_numpy(right).flatten(), indexes=rows)
        assert ours[f"{name}@{k}"] == pytest.approx(float(expected), abs=1e-6), name


def test_a_case_worked_by_hand() -> None:
    # Items 0 and 1 are the popular two. The user likes 1, 3 and 4 and is shown 1, 2, 3.
    metrics = RankingMetrics([2, 3], np.array([8, 4, 2, 1, 1]))
    metrics.update(np.array([[1, 2, 3]]), lists([[1, 3, 4]]))
    result = metrics.compute()
    assert result["recall@3"] == pytest.approx(2 / 3)
    assert result["precision@3"] == pytest.approx(2 / 3)
    assert result["f1@2"] == pytest.approx(2 * (1 / 3) * (1 / 2) / (5 / 6))
    assert result["ndcg@3"] == pytest.approx((1 + 0.5) / (1 + 1 / math.log2(3) + 0.5))
    assert result["mrr@3"] == 1.0
    assert result["coverage@3"] == pytest.approx(3 / 5)
    assert result["serendipity@2"] == 0.0  # the hit is popular, 3 and 4 were possible
    assert result["serendipity@3"] == pytest.approx(1 / 2)  # 3 was found; 4 was possible too
    assert result["novelty@2"] == pytest.approx((2 + 3) / 2)  # 4 of 16 and 2 of 16


def test_seen_items_are_never_recommended_even_where_all_scores_are_negative() -> None:
    scores = torch.tensor([[-1.0, -2.0, -3.0, -4.0]])
    np.testing.assert_array_equal(top_k(scores, 2, seen=lists([[0, 2]])), [[1, 3]])
    assert scores.tolist() == [[-1.0, -2.0, -3.0, -4.0]]


def test_items_never_trained_on_are_no_candidates() -> None:
    candidates = np.array([True, False, True, True])
    np.testing.assert_array_equal(top_k(torch.tensor([[0.0, 9, 1, 2]]), 2, candidates=candidates), [[3, 2]])


def test_places_that_nothing_is_left_for_stay_empty_and_are_no_hit() -> None:
    ranked = top_k(torch.tensor([[1.0, 2.0, 3.0]]), 5, seen=lists([[2]]))
    np.testing.assert_array_equal(ranked, [[1, 0, NOTHING, NOTHING, NOTHING]])
    np.testing.assert_array_equal(hits_of(ranked, lists([[0, 2]]), 3), [[False, True, False, False, False]])


def test_the_names_of_the_metrics_are_known_beforehand() -> None:
    metrics = RankingMetrics([10, 5, 5], np.arange(1, 21))
    metrics.update(np.arange(10)[None], lists([[3]]))
    assert set(metric_names([10, 5, 5])) == metrics.compute().keys()
    assert len(metric_names([10, 5, 5])) == len(metrics.compute())


def held_out(targets: list[list[int]], seen: list[list[int]], items: int) -> HeldOut:
    return HeldOut(
        users=np.arange(len(targets)),
        targets=lists(targets),
        seen=lists(seen),
        candidates=np.ones(items, dtype=np.bool_),
        train_counts=np.arange(1, items + 1),
        cold=0,
    )


@pytest.mark.parametrize("rows_at_once", [None, 1, 3, 100])
def test_ranking_in_blocks_changes_nothing(rows_at_once: int | None) -> None:
    scores, right = drawn(seed=2)
    seen = [
        [int(row[0])] if not hit[row[0]] else [] for row, hit in zip(scores.argsort(), right, strict=True)
    ]
    asked = held_out([list(np.flatnonzero(row)) for row in right], seen, right.shape[1])
    metrics = rank_all(lambda rows: scores[rows], asked, cutoffs=(5, 10), rows_at_once=rows_at_once)
    whole = RankingMetrics([5, 10], asked.train_counts)
    whole.update(top_k(scores, 10, seen=asked.seen), asked.targets)
    assert metrics.compute() == pytest.approx(whole.compute(), abs=1e-12)
    np.testing.assert_allclose(metrics.per_user("ndcg@5"), whole.per_user("ndcg@5"))


@pytest.mark.parametrize(
    ("ranked", "targets", "message"),
    [
        ([[0, 1]], [[]], "`targets` is empty in row 0"),
        ([[0, 1]], [[0], [1]], "`targets` has 2 rows, but `ranked` has 1"),
        ([[0, 7]], [[0]], "`ranked` has ids from 0 to 7, but there are 5 items"),
        ([[0, 1]], [[5]], "`targets` has ids from 5 to 5"),
        ([[1, 1]], [[0]], "`ranked` has an item twice in row 0"),
        ([[0, 1]], [[3, 3]], "`targets` has an item twice"),
        ([[0]], [[0]], "2 places are needed"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    ranked: list[list[int]], targets: list[list[int]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        RankingMetrics([2], np.ones(5)).update(np.array(ranked), lists(targets))


def test_scores_that_are_no_numbers_or_of_another_shape_are_refused() -> None:
    with pytest.raises(DataError, match="`scores` has NaN in row 1"):
        top_k(torch.tensor([[1.0, 2.0], [float("nan"), 1.0]]), 1)
    with pytest.raises(DataError, match="`seen` has 2 rows, but `scores` has 1"):
        top_k(torch.zeros(1, 3), 1, seen=lists([[0], [1]]))
    with pytest.raises(DataError, match=r"gave the shape \(1, 2\), but \(1, 3\) was asked for"):
        rank_all(lambda rows: torch.zeros(1, 2), held_out([[0]], [[]], 3))


def test_cutoffs_names_and_empty_runs_are_checked() -> None:
    with pytest.raises(ConfigError, match="`cutoffs` must be whole numbers from 1"):
        RankingMetrics([0], np.ones(3))
    with pytest.raises(ConfigError, match="`k`=0 must be a whole number, 1 or more"):
        top_k(torch.zeros(1, 2), 0)
    metrics = RankingMetrics([1], np.ones(3))
    with pytest.raises(DataError, match="no ranking was given"):
        metrics.compute()
    metrics.update(np.array([[0]]), lists([[0]]))
    with pytest.raises(ConfigError, match="is no metric of a user"):
        metrics.per_user("coverage@1")
