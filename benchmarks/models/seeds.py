"""What contenders come to that are trained with several seeds: intervals, claims, rows for JSON, lines for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""97.5 % points of Student's t with n − 1 degrees of freedom, by n."""

RESAMPLES = 2000
"""Of sessions, users or steps, for an interval."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A claim, and what was measured for it.

    Attributes:
        claim: in words.
        value: a ratio.
        low, high: its 95 % interval over the test's sessions or users; None where there is none.
        limit: the least of `value`, or the most with `at_most`.
    """

    claim: str
    value: float
    low: float | None
    high: float | None
    limit: float
    at_most: bool = False
    holds: bool = field(init=False)
    significant: bool | None = field(init=False)

    def __post_init__(self) -> None:
        holds = self.value <= self.limit if self.at_most else self.value >= self.limit
        object.__setattr__(self, "holds", holds)
        above = None if self.low is None or self.high is None else self.low > 1 or self.high < 1
        object.__setattr__(self, "significant", above)

    def __str__(self) -> str:
        interval = "" if self.low is None else f" [{self.low:.3f}, {self.high:.3f}]"
        limit = f"at {'most' if self.at_most else 'least'} {self.limit}"
        verdict = "holds" if self.holds else "DOES NOT HOLD"
        sure = "" if self.significant is not False else ", not significant"
        return f"{self.claim}: {self.value:.3f}{interval}, {limit}: {verdict}{sure}"


def half_width(values: Sequence[float]) -> float | None:
    """Of the 95 % interval of the mean, by Student's t; None for one value, or more than ten."""
    if len(values) not in STUDENT:
        return None
    return float(STUDENT[len(values)] * np.std(values, ddof=1) / len(values) ** 0.5)


def ratio_over_sessions(
    over: npt.NDArray[np.float64], under: npt.NDArray[np.float64]
) -> tuple[float, float, float]:
    """Ratio of means of two paired samples, with its percentile-bootstrap 95 % interval over the pairs."""
    draws = np.random.default_rng(0).integers(0, len(over), (RESAMPLES, len(over)))
    below = under[draws].mean(axis=1)
    drawn = np.divide(over[draws].mean(axis=1), below, out=np.full(RESAMPLES, np.inf), where=below > 0)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(over.mean() / under.mean()), float(low), float(high)


def row(result: Any, **rounded: Any) -> dict[str, Any]:
    """A contender's row, ready for JSON: with mean and half of the 95 % interval over seeds, for every metric.

    Args:
        result: a dataclass with `settings` and `metrics`.
        **rounded: fields as they shall stand there.
    """
    return {
        **vars(result),
        "settings": dict(result.settings),
        **rounded,
        "mean": {name: float(np.mean(values)) for name, values in result.metrics.items()},
        "half_width": {name: half_width(values) for name, values in result.metrics.items()},
    }


def shown(made: Mapping[str, Any], metrics: Sequence[str]) -> str:
    """Those metrics of a row."""
    return "  ".join(f"{name} {interval(made['mean'][name], made['half_width'][name])}" for name in metrics)


def interval(value: float, width: float | None) -> str:
    """A mean, and half of its interval where there is one."""
    return f"{value:.4f}" + ("" if width is None else f" ± {width:.4f}")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The fields of the results in a file of such rows."""
    found = json.loads(path.read_text(encoding="utf-8"))["results"]
    return [
        {name: value for name, value in each.items() if name not in ("mean", "half_width")} for each in found
    ]


def in_lines(report: Mapping[str, Any]) -> str:
    """JSON with a line for each contender: the values of all sessions or users would otherwise take thousands."""
    return json.dumps(report).replace('{"name"', '\n{"name"')
