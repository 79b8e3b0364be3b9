"""The results as PNG pictures, with matplotlib (the extra ``plots``)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from intune.simulation.page import LIGHT
from intune.simulation.results import Results, best_first


def draw(results: Results, folder: Path) -> list[Path]:
    """One picture a scenario: share of the best rate over decisions, rows over the whole job, out of memory."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for scenario, path in zip(results.scenarios, paths(results.scenarios, folder), strict=True):
        summaries = results.scenarios[scenario]
        colours = {s.agent: LIGHT[number % len(LIGHT)] for number, s in enumerate(summaries)}
        ranked = best_first(summaries)[::-1]
        names = [summary.agent for summary in ranked]
        figure, axes = pyplot.subplots(
            1, 3, figsize=(15, 0.3 * len(names) + 3.2), width_ratios=(2, 1.4, 0.8), layout="constrained"
        )
        for summary in ranked:
            steps = np.arange(1, len(summary.curve) + 1)
            axes[0].plot(steps, summary.curve, color=colours[summary.agent], lw=1.4, label=summary.agent)
            axes[0].fill_between(
                steps, summary.low, summary.high, color=colours[summary.agent], alpha=0.15, lw=0
            )
        axes[0].set(xlabel="decision", ylabel="share of the best rate", ylim=(0, 1.1))
        axes[0].set_title(f"{scenario}: {ranked[0].jobs:,} jobs", loc="left", fontsize=10)
        whole = [summary.outcomes["whole"] for summary in ranked]
        middle = np.array([estimate.mean for estimate in whole])
        ends = np.array([[e.mean - e.low, e.high - e.mean] for e in whole]).T
        bars = [colours[name] for name in names]
        axes[1].barh(names, middle, color=bars, xerr=np.maximum(ends, 0.0), error_kw={"lw": 1, "capsize": 2})
        axes[1].set(xlabel="rows over the whole job, share of the best", xlim=(0, 1.05))
        killed = [summary.killed_jobs / max(summary.feasible, 1) for summary in ranked]
        axes[2].barh(names, killed, color=bars)
        axes[2].set(xlabel="jobs out of memory", yticklabels=[])
        for axis in axes:
            axis.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, dpi=150)
        pyplot.close(figure)
        written.append(path)
    return written


def paths(scenarios: Iterable[str], folder: Path) -> list[Path]:
    """Where the picture of each scenario goes; files of one name in different folders get one each."""
    made: list[Path] = []
    for scenario in scenarios:
        stem = Path(scenario).stem
        number, path = 1, folder / f"{stem}.png"
        while path in made:
            number, path = number + 1, folder / f"{stem}-{number + 1}.png"
        made.append(path)
    return made
