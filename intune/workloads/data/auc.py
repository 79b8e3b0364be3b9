"""Area under the ROC curve of scores that stream by, in bounded memory."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# 65,536 bins over 32 units of logit: two scores share a bin if they differ by less than 0.0005, and their
# order then counts as a tie; on millions of distinct scores that moves the area by less than 1e-6.
BINS = 1 << 16
LIMIT = 16.0


class StreamingAUC:
    """ROC area of logits against labels, by two histograms of the logits.

    Labels may be fractions: a row with label p counts as p of a positive and 1 - p of a negative, so that the
    probabilities themselves give the area that is expected of labels drawn from them.
    """

    def __init__(self) -> None:
        self.positives = np.zeros(BINS)
        self.negatives = np.zeros(BINS)

    def update(self, logits: npt.NDArray[np.floating], labels: npt.NDArray[np.floating]) -> None:
        """Count rows in; logits beyond ±`LIMIT` count as the limit. Both of shape ``(rows,)``."""
        scaled = (logits + LIMIT) * (BINS / (2 * LIMIT))
        bins = np.clip(scaled, 0, BINS - 1).astype(np.int64)
        ones = np.bincount(bins, weights=labels, minlength=BINS)
        self.positives += ones
        self.negatives += np.bincount(bins, minlength=BINS) - ones

    def merge(self, other: StreamingAUC) -> None:
        """Count in all rows of `other`."""
        self.positives += other.positives
        self.negatives += other.negatives

    @property
    def value(self) -> float:
        """The area, ties counted half; NaN until a positive and a negative have been seen."""
        pairs = self.positives.sum() * self.negatives.sum()
        if pairs == 0:
            return float("nan")
        below = np.cumsum(self.negatives) - self.negatives
        # No product of vectors: BLAS would share it out to threads, which spin and add up in another order on every
        # machine.
        return float((self.positives * (below + 0.5 * self.negatives)).sum() / pairs)

    @property
    def positive_share(self) -> float:
        """Share of positives among the rows seen; NaN for no rows."""
        rows = self.positives.sum() + self.negatives.sum()
        return float(self.positives.sum() / rows) if rows else float("nan")
