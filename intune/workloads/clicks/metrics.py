"""How well a model predicts clicks: exact ROC area, log loss and normalised entropy, gathered batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from intune.pipelines.errors import DataError

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True)
class BinaryScore:
    """What was measured over all rows seen.

    Attributes:
        rows: number of rows.
        positives: number of them with label 1.
        auc: probability that a random positive is scored above a random negative, ties count half; NaN without
            a row of each kind.
        log_loss: mean −log of the probability given to what happened, in nats; NaN without rows.
        normalised_entropy: `log_loss` over that of always answering the share of positives (He et al., ADKDD
            2014): below 1 the model knows more than the average; NaN without a row of each kind.
    """

    rows: int
    positives: int
    auc: float
    log_loss: float
    normalised_entropy: float


class BinaryMetrics:
    """Gathers logits and labels of batches; keeps 5 bytes a row, since an exact area needs every score."""

    def __init__(self) -> None:
        self._logits: list[npt.NDArray[np.float32]] = []
        self._labels: list[npt.NDArray[np.bool_]] = []
        self._loss = 0.0

    def update(self, logits: Floats, labels: npt.NDArray[Any]) -> None:
        """Add a batch: logits of any float type and labels 0 or 1, both of shape ``(rows,)``.

        Raises:
            DataError: shapes differ, a logit is not a number or a label is neither 0 nor 1.
        """
        positive = check_labels(logits, labels)
        self._loss += float(losses(logits, positive).sum())
        self._logits.append(logits.astype(np.float32))
        self._labels.append(positive)

    def merge(self, other: BinaryMetrics) -> None:
        """Add all that `other` has seen (another rank's part of the data)."""
        self._loss += other._loss
        self._logits += other._logits
        self._labels += other._labels

    def compute(self) -> BinaryScore:
        """The score of everything seen so far."""
        labels = np.concatenate(self._labels) if self._labels else np.zeros(0, dtype=np.bool_)
        logits = np.concatenate(self._logits) if self._logits else np.zeros(0, dtype=np.float32)
        rows, positives = len(labels), int(labels.sum())
        log_loss = self._loss / rows if rows else float("nan")
        base = entropy(positives / rows) if rows else 0.0
        return BinaryScore(
            rows=rows,
            positives=positives,
            auc=auc(logits, labels),
            log_loss=log_loss,
            normalised_entropy=log_loss / base if base else float("nan"),
        )


def score(
    logits: Callable[[Mapping[str, Any]], torch.Tensor], batches: Iterable[Mapping[str, Any]]
) -> BinaryScore:
    """How well `logits` of a batch predict its column ``label``, over all batches; no gradients are kept."""
    metrics = BinaryMetrics()
    with torch.inference_mode():
        for batch in batches:
            metrics.update(logits(batch).float().cpu().numpy(), batch["label"].cpu().numpy())
    return metrics.compute()


def auc(scores: Floats, labels: npt.NDArray[Any]) -> float:
    """Exact area under the ROC curve, ties counted half, in O(n log n) (Mann and Whitney's U).

    Args:
        scores: shape ``(rows,)``; only their order matters.
        labels: 0 or 1, shape ``(rows,)``.

    Returns:
        The area, or NaN when there is no row of one of the two kinds.

    Raises:
        DataError: shapes differ, a score is not a number or a label is neither 0 nor 1.
    """
    positive = check_labels(scores, labels)
    order = np.argsort(scores)
    ranked = scores[order]
    # Ends of the runs of equal scores; within a run each positive beats half of the run's negatives.
    ends = (
        np.append(np.flatnonzero(ranked[1:] != ranked[:-1]) + 1, len(ranked))
        if len(ranked)
        else np.zeros(0, int)
    )
    positives_below = np.append(0, np.cumsum(positive[order], dtype=np.int64)[ends - 1])
    negatives_below = np.append(0, ends) - positives_below
    # Twice U, in integers: nothing is rounded before the one division.
    doubled = int(np.sum(np.diff(positives_below) * (negatives_below[1:] + negatives_below[:-1])))
    pairs = int(positives_below[-1]) * int(negatives_below[-1])
    return doubled / (2 * pairs) if pairs else float("nan")


def log_loss(logits: Floats, labels: npt.NDArray[Any]) -> float:
    """Mean binary cross-entropy in nats, from logits; NaN without rows. Errors as for `auc`."""
    positive = check_labels(logits, labels)
    return float(losses(logits, positive).mean()) if len(positive) else float("nan")


def normalised_entropy(logits: Floats, labels: npt.NDArray[Any]) -> float:
    """Log loss over the entropy of the labels' mean; NaN without a row of each kind. Errors as for `auc`."""
    metrics = BinaryMetrics()
    metrics.update(logits, labels)
    return metrics.compute().normalised_entropy


def losses(logits: Floats, positive: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Binary cross-entropy of each row: log(1 + exp(∓logit)), without overflow for logits of any size."""
    return np.logaddexp(0.0, np.where(positive, -logits, logits).astype(np.float64))


def entropy(share: float) -> float:
    """Entropy in nats of a coin that shows heads with probability `share`."""
    return -sum(p * float(np.log(p)) for p in (share, 1 - share) if p > 0)


def check_labels(scores: Floats, labels: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """The labels as booleans; a `DataError` where scores or labels make no sense."""
    if scores.shape != labels.shape or scores.ndim != 1:
        raise DataError(
            f"scores and labels must both have shape (rows,), but {scores.shape} and {labels.shape} were found"
        )
    if np.isnan(scores).any():
        raise DataError(
            f"{int(np.isnan(scores).sum())} of {len(scores)} scores are NaN; the model has diverged or was given "
            f"NaN: lower the learning rate, and fill missing values in the transform"
        )
    positive = labels == 1
    if not (positive | (labels == 0)).all():
        found = labels[~(positive | (labels == 0))][0]
        raise DataError(f"labels must be 0 or 1, but {found} was found")
    return np.asarray(positive, dtype=np.bool_)
