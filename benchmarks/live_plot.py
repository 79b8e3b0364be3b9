"""The picture of `live`: every job's rate by contender, and how ours changed over its run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import live_report

OURS_COLOUR, UNTUNED_COLOUR, OTHERS = "#c1440e", "#e0a38a", "#8b96a3"
WINDOW_S = 1.0
"""Over which a rate is drawn: batches come in bursts."""


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Draw to `path` (PNG, SVG or PDF by its suffix)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    runs = document["runs"]
    jobs = list(runs)
    figure, axes = pyplot.subplots(
        len(jobs),
        2,
        figsize=(12, 1.7 * len(jobs) + 0.8),
        squeeze=False,
        layout="constrained",
        width_ratios=(1, 1),
    )
    for (bars, lines), job in zip(axes, jobs, strict=True):
        rates = {name: live_report.rate(run) / 1e3 for name, run in runs[job].items()}
        known = sorted((name for name in rates if math.isfinite(rates[name])), key=lambda name: rates[name])
        bars.barh(known, [rates[name] for name in known], color=[colour(name) for name in known])
        for place, name in enumerate(known):
            bars.text(rates[name], place, f" {rates[name]:,.0f}", va="center", fontsize=7, color="#444444")
        bars.set_title(job, loc="left", fontsize=9)
        bars.tick_params(labelsize=7)
        for name in known:
            points = windows(live_report.intervals(runs[job][name]))
            lines.plot(
                [at for at, _ in points],
                [rate / 1e3 for _, rate in points],
                color=colour(name),
                lw=1.6 if name == live_report.OURS else 0.9,
                label=name,
            )
        for decision in runs[job].get(live_report.OURS, {}).get("decisions", []):
            if decision["decided"]:
                lines.axvline(decision["time"], color=OURS_COLOUR, lw=0.5, ls=":")
        lines.set_ylim(bottom=0)
        lines.tick_params(labelsize=7)
        for axis in (bars, lines):
            axis.spines[["top", "right"]].set_visible(False)
    axes[-1][0].set_xlabel("thousand rows/s over the whole run", fontsize=8)
    axes[-1][1].set_xlabel("seconds since the loader was made; dotted: our decisions", fontsize=8)
    where = document["environment"]
    figure.suptitle(f"{where['cores_usable']} cores ({where['cpu']}), {where['date'][:10]}", fontsize=9)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def colour(name: str) -> str:
    if name == live_report.OURS:
        return OURS_COLOUR
    return UNTUNED_COLOUR if name.startswith("ours") else OTHERS


def windows(points: list[tuple[float, float]], width: float = WINDOW_S) -> list[tuple[float, float]]:
    """Rates over at least `width` seconds: (end, rows/s) from (end of an interval, rows/s in it)."""
    found = []
    begin = before = rows = 0.0
    for at, rate in points:
        rows += rate * (at - before)
        before = at
        if at - begin >= width:
            found.append((at, rows / (at - begin)))
            begin, rows = at, 0.0
    return found
