"""A run as PNG pictures, with matplotlib (the extra ``plots``)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from intune.report import TRAINER, Run
from intune.report_charts import time_unit
from intune.simulation.page import LIGHT


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
    for one, name in run.bottlenecks:
        label = None if name in seen else name
        seen.add(name)
        axes.axvspan(one.opened / per, one.time / per, color=colours[name], alpha=0.15, lw=0, label=label)
    axes.plot(
        [one.time / per for one in run.intervals],
        [one.delivered for one in run.intervals],
        color="black",
        lw=1.3,
    )
    for change in run.changes:
        axes.axvline(change.time / per, color="grey", lw=0.4)
    axes.set_ylabel("rows/s")
    if seen:
        axes.legend(title="held up by", fontsize=8, title_fontsize=8, frameon=False)


def _slots(axes: Any, run: Run, per: float) -> None:
    colours = _colours(run)
    times = [one.began / per for one in run.intervals]
    for name in [*run.stages, "shared"]:
        values = [float(one.slots.get(name, math.nan)) for one in run.intervals]
        if any(math.isfinite(value) for value in values):
            axes.step(times, values, where="post", color=colours[name], label=name, lw=1.3)
    axes.set_ylabel("slots")
    axes.legend(fontsize=8, frameon=False)


def _memory(axes: Any, run: Run, per: float) -> None:
    times = [one.time / per for one in run.intervals]
    gib = 1024.0**3
    axes.plot(times, [one.memory / gib for one in run.intervals], color=LIGHT[0], lw=1.3, label="resident")
    axes.plot(
        times, [one.memory_limit / gib for one in run.intervals], "--", color=LIGHT[1], lw=1.0, label="limit"
    )
    axes.set_ylabel("GiB")
    axes.legend(fontsize=8, frameon=False)


def _colours(run: Run) -> dict[str, str]:
    names = [*run.stages, "shared"]
    return {name: LIGHT[number % len(LIGHT)] for number, name in enumerate(names)} | {TRAINER: "grey"}
