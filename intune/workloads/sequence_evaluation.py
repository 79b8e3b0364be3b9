"""How well a recommender ranks the next items of held-out sessions, read through a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from intune.pipelines import Pipeline
from intune.pipelines.errors import DataError
from intune.pipelines.schema import Ragged, take_column
from intune.workloads.evaluation import RankingMetrics, top_k


class SequenceRecommender(Protocol):
    """What ranks the items that may follow a session."""

    def scores(self, batch: Mapping[str, Any]) -> Tensor:
        """Scores of all items, shape ``(rows, items)``, for a batch that `scoring_stages` made."""

    def scoring_stages(self, pipeline: Pipeline) -> Pipeline:
        """The stages from batches of sessions, a list column ``items``, to what `scores` takes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SessionRanking:
    """What came out.

    Attributes:
        metrics: of every session that something was asked of, in order.
        cold: sessions that nothing was asked of, since none of their targets was ever trained on.
    """

    metrics: RankingMetrics
    cold: int

    def compute(self) -> dict[str, float]:
        """All metrics, and ``cold``."""
        return {**self.metrics.compute(), "cold": float(self.cold)}


def rank_sessions(
    scores: Callable[[Mapping[str, Any]], Tensor],
    batches: Iterable[Mapping[str, Any]],
    *,
    train_counts: npt.NDArray[np.int64],
    cutoffs: Sequence[int] = (10, 20),
) -> SessionRanking:
    """Rank the catalogue for every session; items of the session and items never trained on get −∞.

    Args:
        scores: of all items, shape ``(rows, items)``.
        batches: with ``items`` and ``targets``, lists of what is known and of what came next.
        train_counts: interactions of each item in training.
        cutoffs: the values of k.

    Raises:
        DataError: nothing is left to be asked for.
    """
    known = train_counts > 0
    metrics = RankingMetrics(cutoffs, train_counts)
    asked = cold = 0
    with torch.no_grad():
        for batch in batches:
            seen, targets = on_cpu(batch["items"]), on_cpu(batch["targets"])
            ranked = top_k(scores(batch), metrics.cutoffs[-1], seen=seen, candidates=known)
            warm, rows = keep_elements(targets, known[targets.values])
            asked, cold = asked + len(rows), cold + len(targets) - len(rows)
            if len(rows):
                metrics.update(ranked[rows], take_column(warm, rows))
    if not asked:
        raise DataError(
            f"of {cold} held-out sessions none asks for an item that was trained on; make the data set with another "
            f"`split`"
        )
    return SessionRanking(metrics=metrics, cold=cold)


def on_cpu(lists: Any) -> Ragged:
    """A list column of tensors as one of NumPy arrays."""
    return Ragged(lists.values.cpu().numpy(), lists.offsets.cpu().numpy())


def keep_elements(lists: Ragged, kept: npt.NDArray[np.bool_]) -> tuple[Ragged, npt.NDArray[np.int64]]:
    """The lists with those elements only, and the rows where any is left."""
    running = np.concatenate([[0], np.cumsum(kept)])
    offsets = running[lists.offsets]
    return Ragged(lists.values[kept], offsets), np.flatnonzero(np.diff(offsets))
