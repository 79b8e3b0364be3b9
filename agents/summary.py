"""Means over jobs with confidence intervals by bootstrap, and ratios between agents that ran the same jobs. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from intune.agents.outcomes import Outcomes, Trace, mean, outcomes
from intune.envs.jobs import Floats

RESAMPLES = 400
"""Of the jobs, for an interval of 95 %: its ends are then good to about a tenth of its length."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over jobs, and where it lies with 95 % confidence."""

    mean: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float | None]:
        """For JSON, in which there is no NaN."""
        return {name: _plain(getattr(self, name)) for name in ("mean", "low", "high")}


@dataclass(frozen=True, slots=True)
class Summary:
    """What an agent came to on the jobs of one scenario.

    Attributes:
        agent: its name.
        jobs: how many; feasible: for how many of them an allocation exists that fits into memory.
        outcomes: by the names of `Outcomes`.
        killed_jobs: jobs that ran out of memory, of the feasible ones.
        median_reached: median of the decisions to 95 % over all jobs with a chance, inf if most did not get there.
        ratio: to the reference agent: of rows over the whole job, and of bytes in use; None of itself, and where the
            reference was not run.
        curve: ``[T]`` mean share of the best rate after each decision, with its interval: ``low`` and ``high``; NaN
            where no job has an allocation that fits.
        regret: ``[T]`` mean regret up to each decision, in intervals of the best rate.
    """

    agent: str
    jobs: int
    feasible: int
    outcomes: dict[str, Estimate]
    killed_jobs: int
    median_reached: float
    ratio: dict[str, Estimate] | None
    curve: Floats
    low: Floats
    high: Floats
    regret: Floats

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "jobs": self.jobs,
            "feasible": self.feasible,
            "killed_jobs": self.killed_jobs,
            "median_reached": _plain(self.median_reached),
            "outcomes": {name: estimate.as_dict() for name, estimate in self.outcomes.items()},
            "ratio": None if self.ratio is None else {k: v.as_dict() for k, v in self.ratio.items()},
            "curve": _rounded(self.curve),
            "low": _rounded(self.low),
            "high": _rounded(self.high),
            "regret": _rounded(self.regret),
        }


def summarise(traces: dict[str, Trace], *, reference: str | None = None, seed: int = 0) -> list[Summary]:
    """Summaries of agents that ran the same jobs; all are resampled alike, so that ratios are between the same jobs.

    Args:
        traces: by agent.
        reference: the agent to which ratios are given, if it is among them.
        seed: of the resampling.
    """
    rng = np.random.default_rng(seed)
    count = len(next(iter(traces.values())))
    draws = rng.multinomial(count, np.full(count, 1.0 / count), size=RESAMPLES).astype(np.float64)
    found = {name: outcomes(trace) for name, trace in traces.items()}
    base = found.get(reference) if reference is not None else None
    return [
        _summary(name, trace, found[name], None if name == reference else base, draws)
        for name, trace in traces.items()
    ]


def estimate(values: Floats, draws: Floats) -> Estimate:
    """Mean of `values`, ``[N]``, without those that are NaN; `draws`, ``[B, N]``, says how often a job is drawn."""
    there = ~np.isnan(values)
    if not there.any():
        return Estimate(float("nan"), float("nan"), float("nan"))
    each = _means(values, there, draws)
    low, high = np.quantile(each, [0.025, 0.975])
    return Estimate(float(values[there].mean()), float(low), float(high))


def ratio(values: Floats, others: Floats, draws: Floats) -> Estimate:
    """Mean of `values` / mean of `others`, both ``[N]``, of the same jobs; NaN where `others` are all 0.

    Jobs where either is NaN are left out, and draws in which all `others` are 0.
    """
    there = ~np.isnan(values + others)
    values, others, draws = values[there], others[there], draws[:, there]
    if not others.any():
        return Estimate(float("nan"), float("nan"), float("nan"))
    below = draws @ others
    each = (draws @ values)[below > 0] / below[below > 0]
    low, high = np.quantile(each, [0.025, 0.975])
    return Estimate(float(values.mean() / others.mean()), float(low), float(high))


def _summary(name: str, trace: Trace, found: Outcomes, base: Outcomes | None, draws: Floats) -> Summary:
    ratios = None
    if base is not None:
        ratios = {
            "whole": ratio(found.whole, base.whole, draws),
            "bytes": ratio(found.bytes, base.bytes, draws),
        }
    rate = trace.rate.astype(np.float64)
    low, high = _band(rate, draws)
    reached = np.where(found.found == 0, np.inf, found.reached)
    reached = reached[~np.isnan(found.found)]
    chance = trace.weight.any(axis=1)
    lost = mean(np.nan_to_num((1.0 - rate) * trace.weight)[chance]).cumsum()
    return Summary(
        agent=name,
        jobs=len(trace),
        feasible=int(trace.feasible.sum()),
        outcomes={key: estimate(column, draws) for key, column in found.as_columns().items()},
        killed_jobs=int(np.nansum(found.killed)),
        median_reached=float(np.median(reached)) if len(reached) else float("nan"),
        ratio=ratios,
        curve=mean(rate),
        low=low,
        high=high,
        regret=lost,
    )


def _band(values: Floats, draws: Floats) -> tuple[Floats, Floats]:
    """Ends of the interval of the mean of each column of `values`, ``[N, T]``."""
    there = ~np.isnan(values)
    count = draws @ there
    total = draws @ np.where(there, values, 0.0)
    each = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    none = ~there.any(axis=0)
    each[:, none] = 0.0
    low, high = np.nanquantile(each, [0.025, 0.975], axis=0)
    return np.where(none, np.nan, low), np.where(none, np.nan, high)


def _means(values: Floats, there: Any, draws: Floats) -> Floats:
    weights = draws[:, there]
    total = weights.sum(axis=1)
    means: Floats = (weights @ values[there]) / np.maximum(total, 1.0)
    return np.asarray(means[total > 0])


def _plain(value: float) -> float | None:
    return float(f"{value:.6g}") if np.isfinite(value) else None


def _rounded(values: Floats) -> list[float | None]:
    return [_plain(float(value)) for value in values]
