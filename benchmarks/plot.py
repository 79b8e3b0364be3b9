"""The picture of a run: rates with intervals, peak memory, time to the first batch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import stats
from benchmarks.local import row_rate


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Draw the local section of a result to `path` (PNG, SVG or PDF by its suffix)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    local = document["sections"]["local"]
    runs = {name: kept for name, kept in local["runs"].items() if kept}
    rates = {name: stats.estimate([row_rate(run) / 1e6 for run in kept]) for name, kept in runs.items()}
    names = sorted(rates, key=lambda name: rates[name].median)
    panels = {
        "million rows/s": rates,
        "peak memory, GiB": _of(runs, lambda run: run["peak_bytes"] / 2**30),
        "first batch, s": _of(runs, lambda run: run["first_batch_s"]),
    }
    figure, axes = pyplot.subplots(
        1, 3, figsize=(13, 0.4 * len(names) + 1.6), sharey=True, width_ratios=(2, 1, 1), layout="constrained"
    )
    colours = ["#c1440e" if name.startswith("ours") else "#8b96a3" for name in names]
    for axis, (label, values) in zip(axes, panels.items(), strict=True):
        middles = [values[name].median for name in names]
        below = [values[name].median - values[name].low for name in names]
        above = [values[name].high - values[name].median for name in names]
        axis.barh(names, middles, color=colours, xerr=[below, above], error_kw={"lw": 1, "capsize": 2})
        for place, middle in enumerate(middles):
            axis.text(middle, place - 0.3, f" {middle:.2f}", va="top", fontsize=7, color="#444444")
        axis.set_xlabel(label)
        axis.spines[["top", "right"]].set_visible(False)
    environment = document["environment"]
    axes[0].set_title(
        f"{local['rows']:,} rows, batches of {local['batch']:,}; {environment['cores_usable']} cores "
        f"({environment['cpu']}), {environment['date'][:10]}",
        loc="left",
        fontsize=9,
    )
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _of(runs: Mapping[str, Any], value: Any) -> dict[str, stats.Estimate]:
    return {name: stats.estimate([value(run) for run in kept]) for name, kept in runs.items()}
