"""Medians, bootstrap intervals and paired ratios. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A median and the interval that covers it with 95 % confidence."""

    median: float
    low: float
    high: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def estimate(values: Sequence[float], seed: int = 0) -> Estimate:
    """The median of `values` and its percentile-bootstrap interval (Efron and Tibshirani 1993, ch. 13).

    With five values the interval is at best the range of the middle ones; it is honest about noise, not exact.
    """
    if not values:
        raise ValueError("`values` is empty; a median needs at least one run")
    sample = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(0, len(sample), (RESAMPLES, len(sample)))
    low, high = np.percentile(np.median(sample[draws], axis=1), [2.5, 97.5])
    return Estimate(float(np.median(sample)), float(low), float(high))


def ratio(over: Sequence[float], under: Sequence[float], seed: int = 0) -> Estimate:
    """`over` / `under`, paired: values at the same place come from the same round, so shared noise cancels."""
    if len(over) != len(under):
        raise ValueError(f"`over` has {len(over)} rounds and `under` {len(under)}; they must be paired")
    return estimate([a / b for a, b in zip(over, under, strict=True)], seed)


def rounds_of(names: Sequence[str], rounds: int, seed: int) -> list[list[str]]:
    """The order of every round: each name once, shuffled anew, so that no contender always follows another."""
    generator = np.random.default_rng(seed)
    return [[names[place] for place in generator.permutation(len(names))] for _ in range(rounds)]
