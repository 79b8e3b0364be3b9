"""The planted teacher: the probability of a click that the labels of a synthetic data set are drawn from.

    logit = bias + Σ_f w_f g_f(z_f) + Σ_f v_f a_f(id_f) + w_p Σ_{f<g} ⟨u_f(id_f), u_g(id_g)⟩

with z = log1p of a count (missing and negative ones count as 0, as the usual preprocessing has it), g a flat
parabola, a an effect per id (a missing id is one more id; ids of a list are summed over √(mean length)) and u
vectors of rank 4 for a few features: the second-order interactions that a DLRM's dot products express.

Two choices make it *learnable* in one pass, so that the area under its ROC curve is a bar that a model can
reach and not only a bound:

- An id's effect shrinks with the id's frequency, by p / (p + `HALF_EFFECT_PROBABILITY`). Whoever sees an id n
  times knows its effect only to a variance of about 1 / (n · p(1-p)); effects of ids seen a handful of times
  would be noise to every model. Here nearly all variance comes from ids that a million rows show often.
- Interactions are between features of few ids, each pair of which is common.

A DLRM of the Kaggle size (SGD, one pass, no tuning) came within 0.008 of the teacher's area on 1M rows and
within 0.0025 on 4M.

Effects and vectors of the `HEAD` most frequent ids are drawn once from the seed; rarer ids have none. Nothing
is stored per row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from intune.workloads.data.auc import StreamingAUC
from intune.workloads.data.columns import CATEGORICAL, COUNT_SHAPES, MULTI_HOT_LENGTHS, CountShape
from intune.workloads.data.features import (
    CategoricalColumn,
    DenseColumn,
    Features,
    FeatureSpec,
    Stream,
    draw_features,
    generator,
)
from intune.workloads.data.ids import rank_probabilities

HALF_EFFECT_PROBABILITY = 5e-3
HEAD = 4096
DENSE_SPREAD = 1.6  # about the mean standard deviation of the logarithms
RANK = 4
INTERACTING = tuple(CATEGORICAL.index(name) for name in ("C6", "C9", "C17", "C25"))

# Shares of the logit's variance. A model without interactions falls short of the teacher's area by 0.008, more
# than the 0.005 that a good one may miss it by; with more of them, a million rows did not teach them all.
DENSE_SHARE, ID_SHARE, INTERACTION_SHARE = 0.25, 0.7, 0.05

CALIBRATION_BLOCKS = 4

Float = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Teacher:
    """A teacher whose click rate and ROC area are set.

    Attributes:
        slopes: shape ``(13, 2)``, the coefficients of each count's parabola.
        effects: per categorical feature the effects by rank, shape ``(ids + 2,)``: ids of the head, then one
            entry for all rarer ids (0), then one for a missing id.
        vectors: the same for the features in `INTERACTING`, each of shape ``(RANK, ids + 2)``.
        weights: shape ``(40,)``, of the 13 dense terms, the 26 effects and the interactions.
        bias: the constant.
        expected_auc: area that is expected of labels drawn from it, by the calibration sample.
        expected_rate: expected share of positive labels, by the same sample.
    """

    slopes: Float
    effects: tuple[Float, ...]
    vectors: tuple[Float, ...]
    weights: Float
    bias: float
    expected_auc: float
    expected_rate: float

    def logits(self, features: Features) -> Float:
        """The logit of each row's probability of a click, shape ``(rows,)``."""
        logits: Float = self.weights @ _terms(self.slopes, self.effects, self.vectors, features)
        logits += np.float32(self.bias)
        return logits

    def draw_labels(self, rng: np.random.Generator, logits: Float) -> Float:
        """A label 0 or 1 for each logit, float32."""
        return (rng.random(len(logits), dtype=np.float32) < sigmoid(logits)).astype(np.float32)


def plant_teacher(seed: int, spec: FeatureSpec, *, auc: float = 0.80, rate: float = 0.25) -> Teacher:
    """A teacher for rows of `spec`, scaled so that its ROC area is `auc` and its click rate `rate`.

    Every term is first brought to unit variance on a sample of 65,536 rows, so that each feature matters,
    whatever its distribution; the scale of all and the bias are then found by bisection on that sample.
    """
    rng = generator(seed, Stream.TEACHER)
    signs = rng.choice(np.array([-1, 1]), size=(len(COUNT_SHAPES), 2))
    slopes = (signs * rng.uniform([0.5, 0.0], [1.5, 0.3], size=signs.shape)).astype(np.float32)
    effects = tuple(_head_table(rng, cardinality, 1)[0] for cardinality in spec.cardinalities)
    vectors = tuple(_head_table(rng, spec.cardinalities[index], RANK) for index in INTERACTING)
    importance = rng.uniform(0.5, 1.5, size=len(effects))

    blocks = (
        draw_features(generator(seed, Stream.CALIBRATION, block), spec) for block in range(CALIBRATION_BLOCKS)
    )
    terms = np.concatenate([_terms(slopes, effects, vectors, block) for block in blocks], axis=1)
    weights = _unit_weights(terms.std(axis=1, dtype=np.float64), importance)
    raw = weights.astype(np.float32) @ terms
    scale, bias = _calibrate(raw.astype(np.float64), auc, rate)
    logits = scale * raw + bias
    measured = StreamingAUC()
    measured.update(logits, sigmoid(logits))
    return Teacher(
        slopes=slopes,
        effects=effects,
        vectors=vectors,
        weights=(scale * weights).astype(np.float32),
        bias=bias,
        expected_auc=measured.value,
        expected_rate=measured.positive_share,
    )


def sigmoid(logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """1 / (1 + exp(-logit)), elementwise, of the logits' own type."""
    probabilities: npt.NDArray[Any] = 1 / (1 + np.exp(-logits))
    return probabilities


def _unit_weights(spread: npt.NDArray[np.float64], importance: npt.NDArray[np.float64]) -> npt.NDArray[Any]:
    """Weights that give the three kinds of terms their shares of a variance of 1.

    Every categorical feature gets its `importance`, whatever its distribution. Counts keep their proportions: one
    that hardly varies says little, as its logarithm, unscaled, is a small input that a model learns slowly.
    """
    dense = spread[: len(COUNT_SHAPES)]
    share = np.concatenate(
        [
            DENSE_SHARE * dense**2 / (dense**2).sum(),
            ID_SHARE * importance / importance.sum(),
            [INTERACTION_SHARE],
        ]
    )
    # A feature of a single id is a constant: it has no say.
    weights: npt.NDArray[Any] = np.sqrt(share) / np.where(spread > 1e-6, spread, np.inf)
    return weights


def _head_table(rng: np.random.Generator, cardinality: int, width: int) -> Float:
    """Shape ``(width, ids + 2)``: effects of the head, shrunk by frequency; of rarer ids, none; of a missing id.

    The mean over ids as they occur is zero. Otherwise the sum over a list would mostly tell its length.
    """
    probability = rank_probabilities(cardinality, HEAD)
    shrinkage = probability / (probability + HALF_EFFECT_PROBABILITY)
    table = rng.standard_normal((width, len(probability) + 2), dtype=np.float32)
    head = table[:, :-2]
    head -= (head @ (probability * shrinkage) / (probability @ shrinkage))[:, None]
    head *= shrinkage
    table[:, -2] = 0
    return table


def _terms(slopes: Float, effects: Iterable[Float], vectors: Iterable[Float], features: Features) -> Float:
    """The unweighted terms of the logit, shape ``(40, rows)``."""
    terms = np.empty((len(COUNT_SHAPES) + len(CATEGORICAL) + 1, features.rows), dtype=np.float32)
    rows = iter(terms)
    for count, shape, slope in zip(features.dense, COUNT_SHAPES, slopes, strict=True):
        _dense_term(count, shape, slope, next(rows))
    for column, table, length in zip(features.categorical, effects, MULTI_HOT_LENGTHS, strict=True):
        next(rows)[:] = _pooled(column, table, length)
    terms[-1] = _interactions(features, vectors)
    return terms


def _dense_term(column: DenseColumn, shape: CountShape, slope: Float, out: Float) -> None:
    """slope₀ x + slope₁ x², where x is the logarithm less its median, over `DENSE_SPREAD`, cut off at ±3."""
    np.maximum(column.values, 0, out=out)
    if column.missing is not None:
        out[column.missing] = 0
    np.log1p(out, out=out)
    out -= np.float32(shape.mu)
    out /= np.float32(DENSE_SPREAD)
    np.clip(out, -3, 3, out=out)
    out *= slope[0] + slope[1] * out


def _pooled(column: CategoricalColumn, table: Float, mean_length: int) -> Float:
    """Entries of `table`, shape ``(ids + 2,)``, for each row; a list's are summed over √(mean length)."""
    index = np.minimum(column.ranks, np.uint32(len(table) - 2))
    if column.missing is not None:
        index[column.missing] = len(table) - 1
    entries = np.take(table, index)
    if column.offsets is None:
        return entries
    # Differences of running sums, since ufunc.reduceat does not know empty lists.
    running = np.zeros(len(entries) + 1)
    np.cumsum(entries, out=running[1:], dtype=np.float64)
    bounds = running[column.offsets]
    return ((bounds[1:] - bounds[:-1]) / math.sqrt(mean_length)).astype(np.float32)


def _interactions(features: Features, vectors: Iterable[Float]) -> Float:
    """Sum over all pairs f < g of ⟨u_f, u_g⟩ = ½ (‖Σ u_f‖² - Σ ‖u_f‖²), as in a factorisation machine."""
    total = np.zeros(features.rows, dtype=np.float32)
    pooled = [
        [_pooled(features.categorical[index], table, MULTI_HOT_LENGTHS[index]) for table in tables]
        for index, tables in zip(INTERACTING, vectors, strict=True)
    ]
    for entries in zip(*pooled, strict=True):
        together = np.sum(entries, axis=0)
        total += together * together
        for entry in entries:
            total -= entry * entry
    total *= np.float32(0.5)
    return total


def _calibrate(raw: npt.NDArray[np.float64], auc: float, rate: float) -> tuple[float, float]:
    """Scale and bias such that ``scale * raw + bias`` has this expected ROC area and this mean probability."""
    low, high = 0.0, 64.0
    bias = math.log(rate / (1 - rate))
    for _ in range(20):
        scale = (low + high) / 2
        bias = _bias_for(scale * raw, rate, bias)
        logits = scale * raw + bias
        measured = StreamingAUC()
        measured.update(logits, sigmoid(logits))
        low, high = (scale, high) if measured.value < auc else (low, scale)
    return scale, _bias_for(scale * raw, rate, bias)


def _bias_for(logits: npt.NDArray[np.float64], rate: float, bias: float) -> float:
    """The bias at which the mean probability is `rate`: a Newton step is safe, the mean rises with the bias."""
    for _ in range(8):
        probability = sigmoid(logits + bias)
        slope = float((probability * (1 - probability)).mean())
        bias += float(np.clip((rate - probability.mean()) / max(slope, 1e-3), -2, 2))
    return bias
