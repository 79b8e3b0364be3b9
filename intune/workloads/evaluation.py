"""Ranking metrics of top-k recommendations: accuracy per user, and what the recommendations are like as a whole.

With ``hits`` the recommended right answers of a user among the first k, ``|T|`` the number of right answers:

========================  =====================================================================================
``recall@k``              hits / |T|
``precision@k``           hits / k
``f1@k``                  harmonic mean of the two, of each user; 0 where there is no hit
``ndcg@k``                Σ 1/log₂(1 + rank) over hits, divided by the most that min(k, |T|) hits could reach
``mrr@k``                 1/rank of the first hit, 0 without one
``hit_rate@k``            1 if there is a hit
``coverage@k``            share of the catalogue that is recommended to anybody
``serendipity@k``         hits that are not among the k most popular items, divided by min(k, those of T that are
                          not); 0 where there are none of those
``novelty@k``             mean −log₂(interactions of the item / all interactions), over everything recommended
========================  =====================================================================================

All but coverage and novelty are means over users. Popularity is that of training. The last three are defined as in
arXiv 2309.09261, section 4; an item never trained on counts as one interaction, as novelty would be infinite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from intune.pipelines.errors import ConfigError, DataError
from intune.pipelines.schema import Ragged, slice_column
from intune.pipelines.whole import at_least
from intune.workloads.pairs.data import HeldOut
from intune.workloads.pairs.distinct import among, distinct

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

NOTHING = -1
"""Stands in a ranking where there are fewer candidates than places."""

SCORES_AT_ONCE = 1 << 23
"""Numbers in a block of scores, 32 MiB: large enough for matrix products, small beside the data."""


def top_k(
    scores: Tensor,
    k: int,
    *,
    seen: Ragged | None = None,
    candidates: npt.NDArray[np.bool_] | Tensor | None = None,
) -> Ints:
    """The k best items of every row, best first, `NOTHING` where there are no more; shape ``(rows, k)``.

    Args:
        scores: shape ``(rows, items)``; −∞ takes an item out of the race. Not changed.
        k: places, at least 1.
        seen: items that each row must not get; their scores count as −∞.
        candidates: items that any row may get, shape ``(items,)``; all by default.

    Raises:
        DataError: a score is NaN, or `seen` does not have as many rows.
    """
    at_least("k", k, 1)
    if torch.isnan(scores).any():
        row = int(torch.isnan(scores).any(dim=1).nonzero()[0])
        raise DataError(f"`scores` has NaN in row {row}; the model has diverged: lower its `learning_rate`")
    masked = scores.detach().clone()
    if candidates is not None:
        masked[:, ~torch.as_tensor(candidates, device=scores.device)] = -torch.inf
    if seen is not None:
        if len(seen) != len(scores):
            raise DataError(f"`seen` has {len(seen)} rows, but `scores` has {len(scores)}; give a list a row")
        rows = np.repeat(np.arange(len(seen)), np.asarray(seen.lengths))
        index = (torch.as_tensor(rows), torch.as_tensor(np.asarray(seen.values)))
        masked[tuple(part.to(scores.device) for part in index)] = -torch.inf
    values, items = masked.topk(min(k, masked.shape[1]), dim=1)
    ranked = torch.where(torch.isneginf(values), NOTHING, items).cpu().numpy()
    return np.pad(ranked, ((0, 0), (0, k - ranked.shape[1])), constant_values=NOTHING).astype(np.int64)


def hits_of(ranked: Ints, targets: Ragged, items: int) -> npt.NDArray[np.bool_]:
    """Whether each place of `ranked` is a right answer, shape ``(rows, k)``.

    Raises:
        DataError: the number of rows differs, a row has no right answer or an item twice, or an id is out of range.
    """
    rows, k = ranked.shape
    values, lengths = np.asarray(targets.values, dtype=np.int64), np.asarray(targets.lengths)
    if len(targets) != rows:
        raise DataError(f"`targets` has {len(targets)} rows, but `ranked` has {rows}; give a list a row")
    if (lengths == 0).any():
        raise DataError(f"`targets` is empty in row {int(np.argmin(lengths))}; leave such rows out")
    if ranked.size and not NOTHING <= ranked.min() <= ranked.max() < items:
        raise DataError(
            f"`ranked` has ids from {ranked.min()} to {ranked.max()}, but there are {items} items; give "
            f"ids from 0 to {items - 1}, or {NOTHING} for an empty place"
        )
    if values.size and not 0 <= values.min() <= values.max() < items:
        raise DataError(
            f"`targets` has ids from {values.min()} to {values.max()}, but there are {items} items"
        )
    # Keys are kept apart by rows; an empty place gets one that no target has.
    stride = np.int64(items + 1)
    keys = np.arange(rows)[:, None] * stride + np.where(ranked == NOTHING, items, ranked)
    if k > 1:
        ordered = np.sort(keys, axis=1)
        twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] % stride != items)
        if twice.any():
            raise DataError(f"`ranked` has an item twice in row {int(np.argmax(twice.any(axis=1)))}")
    right = distinct(np.repeat(np.arange(rows), lengths) * stride + values)
    if len(right) != len(values):
        raise DataError("`targets` has an item twice in a row; give each right answer once")
    return among(keys, right)


def metric_names(cutoffs: Sequence[int]) -> tuple[str, ...]:
    """What `RankingMetrics.compute` gives for these values of k."""
    names = (
        "recall",
        "precision",
        "f1",
        "ndcg",
        "mrr",
        "hit_rate",
        "serendipity",
        "coverage",
        "novelty",
    )
    return (*(f"{name}@{k}" for name in names for k in sorted(set(cutoffs))), "users")


class RankingMetrics:
    """Gathers rankings, some users at a time; the metrics above at every cut-off.

    Args:
        cutoffs: the values of k.
        train_counts: interactions of each item in training, shape ``(items,)``.
    """

    def __init__(self, cutoffs: Sequence[int], train_counts: npt.NDArray[Any]) -> None:
        if not cutoffs or min(cutoffs) < 1:
            raise ConfigError(f"`cutoffs` must be whole numbers from 1, but {tuple(cutoffs)} was found")
        self.cutoffs = tuple(sorted(set(cutoffs)))
        self._items = len(train_counts)
        counts = np.maximum(np.asarray(train_counts, dtype=np.float64), 1)
        self._surprise = -np.log2(counts / max(1.0, float(np.sum(train_counts))))
        # Sorted stably by falling count: among equals the lower id is the more popular, the same in every run.
        order = np.argsort(-np.asarray(train_counts), kind="stable")
        self._popularity_rank = np.empty(self._items, dtype=np.int64)
        self._popularity_rank[order] = np.arange(self._items)
        self._per_user: dict[str, list[Floats]] = {}
        self._recommended = {k: np.zeros(self._items, dtype=np.bool_) for k in self.cutoffs}
        self._novelty = dict.fromkeys(self.cutoffs, 0.0)
        self._places = dict.fromkeys(self.cutoffs, 0)

    def update(self, ranked: Ints, targets: Ragged) -> None:
        """Count rows in.

        Args:
            ranked: items, best first, as `top_k` gives them; shape ``(rows, at least the largest cut-off)``.
            targets: the right answers of each row.

        Raises:
            DataError: as `hits_of`, or there are fewer places than the largest cut-off.
        """
        if ranked.ndim != 2 or ranked.shape[1] < self.cutoffs[-1]:
            raise DataError(
                f"`ranked` has the shape {ranked.shape}, but {self.cutoffs[-1]} places are needed; rank more items"
            )
        hits = hits_of(ranked, targets, self._items)
        relevant = np.asarray(targets.lengths).astype(np.float64)
        target_rows = np.repeat(np.arange(len(ranked)), np.asarray(targets.lengths))
        target_rank = self._popularity_rank[np.asarray(targets.values)]
        for k in self.cutoffs:
            unexpected = np.bincount(target_rows[target_rank >= k], minlength=len(ranked))
            for name, values in self._accuracy(ranked[:, :k], hits[:, :k], relevant, unexpected).items():
                self._per_user.setdefault(f"{name}@{k}", []).append(values)
            filled = ranked[:, :k][ranked[:, :k] != NOTHING]
            self._recommended[k][filled] = True
            self._novelty[k] += float(self._surprise[filled].sum())
            self._places[k] += filled.size

    def _accuracy(
        self, ranked: Ints, hits: npt.NDArray[np.bool_], relevant: Floats, unexpected: Ints
    ) -> dict[str, Floats]:
        k = hits.shape[1]
        count = hits.sum(axis=1).astype(np.float64)
        recall, precision = count / relevant, count / k
        total = recall + precision
        discount = 1 / np.log2(np.arange(2, k + 2))
        ideal = np.cumsum(discount)[np.minimum(relevant, k).astype(np.int64) - 1]
        surprising = hits & (self._popularity_rank[ranked] >= k)
        possible = np.minimum(unexpected, k)
        return {
            "recall": recall,
            "precision": precision,
            "f1": np.divide(2 * recall * precision, total, out=np.zeros_like(total), where=total > 0),
            "ndcg": (hits * discount).sum(axis=1) / ideal,
            "mrr": np.where(count > 0, 1 / (hits.argmax(axis=1) + 1), 0.0),
            "hit_rate": (count > 0).astype(np.float64),
            "serendipity": np.divide(
                surprising.sum(axis=1), possible, out=np.zeros(len(hits)), where=possible > 0
            ),
        }

    def per_user(self, name: str) -> Floats:
        """A metric such as ``"ndcg@20"`` of each row, in the order in which they came; for paired tests."""
        if name not in self._per_user:
            raise ConfigError(
                f"`name`={name!r} is no metric of a user; there are {', '.join(self._per_user)}"
            )
        return np.concatenate(self._per_user[name])

    def compute(self) -> dict[str, float]:
        """All metrics of all rows so far, named as ``"ndcg@20"``; and ``users``, the number of rows.

        Raises:
            DataError: there were no rows.
        """
        if not self._per_user:
            raise DataError("no ranking was given; nothing can be said of it")
        result = {name: float(self.per_user(name).mean()) for name in self._per_user}
        for k in self.cutoffs:
            result[f"coverage@{k}"] = float(self._recommended[k].mean())
            result[f"novelty@{k}"] = self._novelty[k] / max(1, self._places[k])
        result["users"] = float(len(self.per_user(f"recall@{self.cutoffs[0]}")))
        return result


def rank_all(
    score: Callable[[Ints], Tensor],
    held_out: HeldOut,
    *,
    cutoffs: Sequence[int] = (10, 20),
    rows_at_once: int | None = None,
) -> RankingMetrics:
    """Rank the whole catalogue for every row held out; seen and never trained items get −∞.

    Args:
        score: scores of all items for the rows at these places of `held_out`, shape ``(rows, items)``. It is called
            without gradients.
        held_out: what is asked for.
        cutoffs: the values of k.
        rows_at_once: how many rows are scored at a time; by default so many that scores take 32 MiB.
    """
    items = len(held_out.train_counts)
    step = rows_at_once if rows_at_once is not None else max(1, SCORES_AT_ONCE // max(1, items))
    metrics = RankingMetrics(cutoffs, held_out.train_counts)
    with torch.no_grad():
        for start in range(0, len(held_out), step):
            stop = min(start + step, len(held_out))
            scores = score(np.arange(start, stop))
            if scores.shape != (stop - start, items):
                raise DataError(
                    f"`score` gave the shape {tuple(scores.shape)}, but {(stop - start, items)} was asked for"
                )
            ranked = top_k(
                scores,
                metrics.cutoffs[-1],
                seen=slice_column(held_out.seen, start, stop),
                candidates=held_out.candidates,
            )
            metrics.update(ranked, slice_column(held_out.targets, start, stop))
    return metrics
