"""How well a recommender ranks the next items of held-out sessions, read through a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from intune.pipelines import Pipeline
from intune.pipelines.errors import DataError
from intune.pipelines.schema import Ragged, take_column
from intune.workloads.evaluation import RankingMetrics, top_k
from intune.workloads.pairs.data import RatingData
from intune.workloads.pairs.distinct import among, distinct


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
        repeated: targets that were not asked for, since their session holds them already, or they came twice.
    """

    metrics: RankingMetrics
    cold: int
    repeated: int = 0

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
        batches: with ``items`` and ``targets``, lists of what is known and of what came next. Targets are asked for
            once, and not if the session holds them already, since they are not recommended then.
        train_counts: interactions of each item in training.
        cutoffs: the values of k.

    Raises:
        DataError: nothing is left to be asked for.
    """
    known = train_counts > 0
    metrics = RankingMetrics(cutoffs, train_counts)
    sessions = asked = cold = repeated = 0
    with torch.no_grad():
        for batch in batches:
            seen, targets = on_cpu(batch["items"]), on_cpu(batch["targets"])
            ranked = top_k(scores(batch), metrics.cutoffs[-1], seen=seen, candidates=known)
            warm, warm_rows = keep_elements(targets, known[targets.values])
            new, rows = keep_elements(warm, first_met(warm, seen, items=len(known)))
            sessions, asked = sessions + len(targets), asked + len(rows)
            cold, repeated = (
                cold + len(targets) - len(warm_rows),
                repeated + len(warm.values) - len(new.values),
            )
            if len(rows):
                metrics.update(ranked[rows], take_column(new, rows))
    if not asked:
        raise nothing_asked(sessions)
    return SessionRanking(metrics=metrics, cold=cold, repeated=repeated)


def require_questions(data: RatingData, split: Literal["valid", "test"]) -> None:
    """Raise a `DataError` where `rank_sessions` would, before anything is trained; sessions are read up to the first
    that asks for something."""
    known, sessions = data.train_counts > 0, 0
    for batch in data.batches(f"sessions/{split}", ["items", "targets"]):
        seen, targets = (_lists(batch.column(name)) for name in ("items", "targets"))
        sessions += len(targets)
        # Ids that are not the catalogue's are the pipeline's to refuse, which names the row.
        warm = np.isin(targets.values, np.flatnonzero(known))
        kept, _ = keep_elements(targets, warm)
        if first_met(kept, seen, items=max(data.items, int(seen.values.max(initial=0)) + 1)).any():
            return
    raise nothing_asked(sessions)


def nothing_asked(sessions: int) -> DataError:
    """What is raised where no held-out session asks for anything."""
    return DataError(
        f"of {sessions} held-out sessions none asks for an item that was trained on and is new to the session; make "
        f"the data set with another `split`, or without repeated interactions"
    )


def first_met(targets: Ragged, seen: Ragged, *, items: int) -> npt.NDArray[np.bool_]:
    """Whether each target is one that its row has not `seen`, the first of its kind in the row."""
    stride = np.int64(items)

    def keys(lists: Ragged) -> npt.NDArray[np.int64]:
        made: npt.NDArray[np.int64] = (
            np.repeat(np.arange(len(lists)), np.diff(lists.offsets)) * stride + lists.values
        )
        return made

    asked = keys(targets)
    first = np.zeros(len(asked), dtype=np.bool_)
    first[np.unique(asked, return_index=True)[1]] = True
    return first & ~among(asked, distinct(keys(seen)))


def _lists(column: pa.ListArray) -> Ragged:
    offsets = np.asarray(column.offsets, dtype=np.int64)
    values = np.asarray(column.flatten(), dtype=np.int64)
    return Ragged(values, offsets - offsets[0])


def on_cpu(lists: Any) -> Ragged:
    """A list column of tensors as one of NumPy arrays."""
    return Ragged(lists.values.cpu().numpy(), lists.offsets.cpu().numpy())


def keep_elements(lists: Ragged, kept: npt.NDArray[np.bool_]) -> tuple[Ragged, npt.NDArray[np.int64]]:
    """The lists with those elements only, and the rows where any is left."""
    running = np.concatenate([[0], np.cumsum(kept)])
    offsets = running[lists.offsets]
    return Ragged(lists.values[kept], offsets), np.flatnonzero(np.diff(offsets))
