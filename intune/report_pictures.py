"""A run as PNG pictures, with matplotlib (the extra ``plots``)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from intune.report import MOST_NAMED, TRAINER, Run
from intune.report_charts import MOST_POINTS, Span, coarser, joined, thin, thinned, time_unit
from intune.simulation.page import LIGHT

BESIDE: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "fontsize": 8, "frameon": False}
"""Where a legend stands: it covers nothing there, and no place has to be looked for among thousands of points."""


def draw(run: Run, folder: Path) -> list[Path]:
    """``rate.png``, ``slots.png`` and ``memory.png`` in `folder`; their paths."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    unit, per = time_unit(run.intervals[-1].time)
    written = []
    for name, draws in (("rate", _rate), ("slots", _slots), ("memory", _memory)):
        figure, axes = pyplot.subplots(figsize=(9, 3.2), layout="constrained")
        draws(axes, run, per)
        axes.set_xlabel(unit)
        axes.set_ylim(bottom=0)
        axes.set_xlim(0, run.intervals[-1].time / per)
        axes.spines[["top", "right"]].set_visible(False)
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=150)
        pyplot.close(figure)
        written.append(path)
    return written


def _rate(axes: Any, run: Run, per: float) -> None:
    colours = _colours(run)
    seen: set[str] = set()
    spans = [
        Span(start=one.opened, end=one.time, name=name, colour=colours[name]) for one, name in run.bottlenecks
    ]
    for span in coarser(joined(spans)):
        label = None if span.name in seen else span.name
        seen.add(span.name)
        axes.axvspan(span.start / per, span.end / per, color=span.colour, alpha=0.15, lw=0, label=label)
    _line(axes, run, per, [one.delivered for one in run.intervals], color="black", lw=1.3)
    for time in thin([change.time for change in run.changes]):
        axes.axvline(time / per, color="grey", lw=0.4)
    axes.set_ylabel("rows/s")
    if seen:
        _legend(axes, title="held up by", title_fontsize=8)


def _slots(axes: Any, run: Run, per: float) -> None:
    colours = _colours(run)
    kept = thin(list(run.intervals), MOST_POINTS)  # means would be slots that were never given
    times = [one.began / per for one in kept] + [run.intervals[-1].time / per]
    for name in [*run.stages, "shared"]:
        values = [float(one.slots.get(name, math.nan)) for one in [*kept, run.intervals[-1]]]
        if any(math.isfinite(value) for value in values):
            axes.step(times, values, where="post", color=colours[name], label=name, lw=1.3)
    axes.set_ylabel("slots")
    _legend(axes)


def _memory(axes: Any, run: Run, per: float) -> None:
    gib = 1024.0**3
    _line(
        axes, run, per, [one.memory / gib for one in run.intervals], color=LIGHT[0], lw=1.3, label="resident"
    )
    limit = [one.memory_limit / gib for one in run.intervals]
    _line(axes, run, per, limit, color=LIGHT[1], lw=1.0, linestyle="--", label="limit")
    axes.set_ylabel("GiB")
    _legend(axes)


def _legend(axes: Any, **looks: Any) -> None:
    """Names of the first of many."""
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[:MOST_NAMED], labels[:MOST_NAMED], **looks, **BESIDE)


def _line(axes: Any, run: Run, per: float, values: list[float], **looks: Any) -> None:
    points = thinned([one.time / per for one in run.intervals], values)
    axes.plot([at for at, _ in points], [value for _, value in points], **looks)


def _colours(run: Run) -> dict[str, str]:
    names = [*run.stages, "shared"]
    return {name: LIGHT[number % len(LIGHT)] for number, name in enumerate(names)} | {TRAINER: "grey"}
