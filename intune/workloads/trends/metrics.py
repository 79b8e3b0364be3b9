"""How well the items that are about to trend were foreseen, step by step. Pure.

TrendRec's authors (RecSys 2023) judge by two metrics of their own whose formulas were not at hand; these two are ours.
With the k items of the highest forecast in a step:

- ``precision@k``: the share of them that are among the k items of the highest true acceleration;
- ``gain@k``: the acceleration they collect over that of the best k items: 1 at best, below 0 for items that slow down.

Forecasts that are equal at the k-th place share the places left, so that no order of ids decides: what is given is the
mean over random breakings of ties. Of true accelerations all that equal the k-th count as among the best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from intune.pipelines.errors import ConfigError, DataError

Floats = npt.NDArray[np.floating[Any]]


def top_weights(forecast: Floats, k: int) -> npt.NDArray[np.float64]:
    """Probability of every item to be among the k highest of its step, ties broken at random; shape as `forecast`."""
    kth = np.partition(forecast, -k, axis=-1)[..., -k, None]
    above = forecast > kth
    tied = forecast == kth
    places = k - above.sum(axis=-1, keepdims=True)
    weights: npt.NDArray[np.float64] = above + tied * (places / tied.sum(axis=-1, keepdims=True))
    return weights


def trend_metrics(
    forecast: Floats, truth: npt.NDArray[Any], *, cutoffs: Sequence[int] = (10, 20)
) -> Mapping[str, npt.NDArray[np.float64]]:
    """``precision@k`` and ``gain@k`` of every step, each of shape ``(steps,)``.

    A step in which even the best k items do not accelerate has nothing to gain: its gain is NaN.

    Args:
        forecast: a score an item, the highest expected to trend, shape ``(steps, items)``.
        truth: accelerations, same shape.
        cutoffs: values of k.

    Raises:
        DataError: shapes differ, or a value is not a number.
        ConfigError: a k is not from 1 to the number of items.
    """
    forecast, truth = np.asarray(forecast), np.asarray(truth)
    if forecast.shape != truth.shape or forecast.ndim != 2:
        raise DataError(
            f"`forecast` has the shape {forecast.shape} and `truth` {truth.shape}, but both must be (steps, items)"
        )
    for name, values in (("forecast", forecast), ("truth", truth)):
        if not np.isfinite(values).all():
            step, item = np.argwhere(~np.isfinite(values))[0]
            raise DataError(
                f"`{name}` of item {item} in step {step} is {values[step, item]}; give finite numbers"
            )
    made: dict[str, npt.NDArray[np.float64]] = {}
    for k in cutoffs:
        if not 1 <= k <= truth.shape[1]:
            raise ConfigError(f"`cutoffs` has {k}, but there are {truth.shape[1]} items; choose 1 to that")
        weights = top_weights(forecast, k)
        highest = np.partition(truth, -k, axis=1)[:, -k:]
        best = highest.sum(axis=1).astype(np.float64)
        made[f"precision@{k}"] = (weights * (truth >= highest[:, :1])).sum(axis=1) / k
        collected = (weights * truth).sum(axis=1)
        made[f"gain@{k}"] = np.divide(collected, best, out=np.full(len(best), np.nan), where=best > 0)
    return made


def mean_metrics(by_step: Mapping[str, npt.NDArray[np.float64]]) -> dict[str, float]:
    """Mean over the steps in which each is defined; NaN where it never is."""
    return {
        name: float(np.mean(values[~np.isnan(values)])) if (~np.isnan(values)).any() else float("nan")
        for name, values in by_step.items()
    }
