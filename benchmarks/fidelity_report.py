"""What follows from the runs of `fidelity.py`: errors, rank correlations, bars, the picture. Nothing runs here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

DIFFER = 1.1
"""Ratio of two rates from which on their order matters: the error allowed of a rate. Runs of the same allocation differ
by a few percent."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """What must hold of all pipelines together."""

    name: str
    limit: float
    measured: float
    at_least: bool = False

    @property
    def passed(self) -> bool:
        """Whether it does; not if nothing was measured."""
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit


def summarise(cases: Mapping[str, Any]) -> dict[str, Any]:
    """Of every pipeline: errors on held-out allocations, rank correlation, and the fit's own error."""
    return {
        name: {"error": case["error"]} if "error" in case else _summary(case) for name, case in cases.items()
    }


def bars(cases: Mapping[str, Any]) -> list[Bar]:
    """The bars, over the held-out allocations of all pipelines; one that failed counts as wholly wrong."""
    rate: list[float] = []
    memory: list[float] = []
    agreement = pairs = 0.0
    for case in cases.values():
        if "error" in case:
            rate.append(1.0)
            memory.append(1.0)
            continue
        runs = held_out(case)
        rate += rate_errors(runs)
        memory += memory_errors(runs)
        found, count = ordered_pairs([run["rate"] for run in runs], [run["predicted_rate"] for run in runs])
        agreement, pairs = agreement + found, pairs + count
    return [
        Bar(name="rate error, median", limit=0.10, measured=_quantile(rate, 0.5)),
        Bar(name="rate error, 90th percentile", limit=0.25, measured=_quantile(rate, 0.9)),
        Bar(
            name="rank correlation over allocations",
            limit=0.95,
            measured=agreement / pairs if pairs else float("nan"),
            at_least=True,
        ),
        Bar(name="memory error, 90th percentile", limit=0.15, measured=_quantile(memory, 0.9)),
    ]


@dataclass(frozen=True, kw_only=True)
class Noise:
    """How far one visit of an allocation is from the mean of its others: what no prediction can do better than by luck.

    Attributes:
        rate_median, rate_p90: of ``|one / mean of the others - 1|``, over held-out allocations; memory_p90: of memory.
        rank: rank correlation (`ordered_pairs`) of one visit with the mean of the others; pairs: that differ.
    """

    rate_median: float
    rate_p90: float
    memory_p90: float
    rank: float
    pairs: int


def noise(cases: Mapping[str, Any]) -> Noise:
    """Of all pipelines that were visited more than once."""
    rate: list[float] = []
    memory: list[float] = []
    agreement, pairs = 0.0, 0
    for case in cases.values():
        runs = [] if "error" in case else held_out(case)
        for visit in range(min((len(run.get("rates", ())) for run in runs), default=0)):
            one, others = _apart(runs, "rates", visit), _apart(runs, "memories", visit)
            if not one[1]:
                continue
            rate += [abs(a / b - 1.0) for a, b in zip(*one, strict=True)]
            memory += [abs(a / b - 1.0) for a, b in zip(*others, strict=True)]
            found, count = ordered_pairs(one[1], one[0])
            agreement, pairs = agreement + found, pairs + count
    return Noise(
        rate_median=_quantile(rate, 0.5),
        rate_p90=_quantile(rate, 0.9),
        memory_p90=_quantile(memory, 0.9),
        rank=agreement / pairs if pairs else float("nan"),
        pairs=pairs,
    )


def _apart(runs: Sequence[Mapping[str, Any]], name: str, visit: int) -> tuple[list[float], list[float]]:
    """One visit of every allocation, and the means of the others; nothing where there are none."""
    others = [[value for at, value in enumerate(run[name]) if at != visit] for run in runs]
    if not all(others):
        return [], []
    return [run[name][visit] for run in runs], [float(np.mean(each)) for each in others]


def held_out(case: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Runs that the twin was not fitted to."""
    return [run for run in case["runs"] if run["held_out"]]


def rate_errors(runs: Sequence[Mapping[str, Any]]) -> list[float]:
    """``|predicted / measured - 1|``."""
    return [abs(run["predicted_rate"] / run["rate"] - 1.0) for run in runs]


def memory_errors(runs: Sequence[Mapping[str, Any]]) -> list[float]:
    """The same of resident memory."""
    return [abs(run["predicted_memory"] / run["memory"] - 1.0) for run in runs]


def ordered_pairs(measured: Sequence[float], predicted: Sequence[float]) -> tuple[float, int]:
    """Pairs in the right order less those in the wrong one, and pairs altogether, of those that differ by `DIFFER`.

    Their ratio is Goodman and Kruskal's gamma (1954), a rank correlation for ties: most allocations of a pipeline that
    is bound by its processors or its trainer are equally fast, and the order of equal rates is noise. A pair that is
    predicted to be equal (within a thousandth) counts as neither right nor wrong, but it counts.
    """
    right, count = 0.0, 0
    for at, one in enumerate(measured):
        for after in range(at + 1, len(measured)):
            ratio = one / measured[after]
            if max(ratio, 1.0 / ratio) < DIFFER:
                continue
            guess = predicted[at] / predicted[after]
            count += 1
            right += 0.0 if abs(guess - 1.0) < 1e-3 else 1.0 if (guess > 1.0) == (ratio > 1.0) else -1.0
    return right, count


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's: Pearson's correlation of the ranks, equal values at their mean rank."""
    first, second = _ranks(one), _ranks(other)
    if first.std() == 0 or second.std() == 0:
        return float("nan")
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(values: Sequence[float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    array = np.asarray(values, dtype=np.float64)
    below = (array[:, None] > array[None, :]).sum(axis=1)
    equal = (array[:, None] == array[None, :]).sum(axis=1)
    return np.asarray(below + (equal + 1) / 2.0)


def _summary(case: Mapping[str, Any]) -> dict[str, Any]:
    runs = held_out(case)
    known = [run for run in case["runs"] if not run["held_out"]]
    rates = [run["rate"] for run in runs]
    right, pairs = ordered_pairs(rates, [run["predicted_rate"] for run in runs])
    spearman = rank_correlation(rates, [run["predicted_rate"] for run in runs])
    above = [run["memory"] - case["base_bytes"] for run in runs]
    predicted = [run["predicted_memory"] - case["base_bytes"] for run in runs]
    return {
        "slowest": min(rates),
        "fastest": max(rates),
        "rate_error_median": _quantile(rate_errors(runs), 0.5),
        "rate_error_p90": _quantile(rate_errors(runs), 0.9),
        "rank": right / pairs if pairs else None,
        "pairs_that_differ": pairs,
        "spearman": spearman if np.isfinite(spearman) else None,
        "memory_error_worst": max(memory_errors(runs)),
        "memory_above_base_error_median": float(
            np.median([abs(p / max(m, 1.0) - 1.0) for p, m in zip(predicted, above, strict=True)])
        ),
        "fitted_rate_error_median": _quantile(rate_errors(known), 0.5),
    }


def _quantile(values: Sequence[float], share: float) -> float:
    return float(np.quantile(values, share)) if values else float("nan")


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Predicted against measured rates and memory, every held-out allocation of every pipeline a point."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(1, 2, figsize=(12.5, 5.6), layout="constrained")
    markers = {"cpu": "o", "lock": "s", "memory": "P", "wait": "v", "storage": "^", "trainer": "D"}
    colours = [pyplot.get_cmap("tab20")(number) for number in range(20)]
    good = [(name, case) for name, case in document["cases"].items() if "error" not in case]
    for number, (name, case) in enumerate(good):
        runs = held_out(case)
        marker, colour = markers[case["case"]["kind"]], colours[number % len(colours)]
        for axis, field, unit in ((axes[0], "rate", 1e6), (axes[1], "memory", 2.0**30)):
            axis.scatter(
                [run[field] / unit for run in runs],
                [run[f"predicted_{field}"] / unit for run in runs],
                s=26,
                marker=marker,
                color=colour,
                alpha=0.85,
                linewidths=0,
                label=name if field == "rate" else None,
            )
    for axis, title, band in ((axes[0], "million rows/s", 0.25), (axes[1], "resident memory, GiB", 0.15)):
        low, high = axis.get_xlim()[0], max(axis.get_xlim()[1], axis.get_ylim()[1])
        axis.set_xscale("log")
        axis.set_yscale("log")
        for scale in (axis.xaxis, axis.yaxis):
            scale.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
            scale.set_major_formatter("{x:g}")
            scale.set_minor_formatter(ticker.NullFormatter())
        low = max(low, min(min(each.get_offsets()[:, 0]) for each in axis.collections) * 0.8)
        line = np.geomspace(low, high, 50)
        axis.plot(line, line, color="#444444", lw=1)
        axis.fill_between(line, line * (1 - band), line * (1 + band), color="#44444418", lw=0)
        axis.set_xlabel(f"measured, {title}")
        axis.set_ylabel("predicted by the twin")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=7, frameon=False, loc="upper left")
    system = document["environment"]
    axes[0].set_title(
        f"held-out allocations; {system['cores_usable']} cores ({system['cpu']}), {system['date'][:10]}",
        loc="left",
        fontsize=9,
    )
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
