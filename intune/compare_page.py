"""A comparison of agents as one HTML page without network or script, and as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from intune.comparing import Outcome, ratio
from intune.pipelines.budget import format_bytes
from intune.pipelines.shortened import shortened
from intune.report_charts import Series, time_chart
from intune.report_page import key, page_of
from intune.simulation.page import LIGHT


def page(outcomes: Sequence[Outcome], *, data: str, reference: str) -> str:
    """The whole page."""
    rows = "".join(
        f'<tr><td>{escape(one.agent)}</td><td class="n">{shortened(one.rate)}</td>'
        f'<td class="n">{_times(ratio(one, outcomes, reference))}</td><td class="n">{shortened(one.settled)}</td>'
        f'<td class="n">{one.waiting:.0%}</td><td class="n">{format_bytes(one.memory)}</td>'
        f"<td>{escape(words(one))}</td></tr>"
        for one in best_first(outcomes)
    )
    lines = [
        Series(name=one.agent, colour=f"var(--c{number % len(LIGHT)})", times=one.times, values=one.rates)
        for number, one in enumerate(outcomes)
    ]
    chart = time_chart(lines, up="rows/s", until=max(one.seconds for one in outcomes))
    return page_of(
        "Agents on a real pipeline",
        f"{escape(data)}. Every agent from a cold start for {outcomes[0].seconds:.0f} s, one after another; rates are "
        "of the whole run and of its last third.",
        f'<div class="chart"><table><thead><tr><th>agent</th><th class="n">rows/s</th>'
        f'<th class="n">/ {escape(reference)}</th><th class="n">last third</th><th class="n">waiting</th>'
        f'<th class="n">memory</th><th>slots at the end</th></tr></thead><tbody>{rows}</tbody></table></div>'
        f"<h2>Rate over time</h2>{key((line.name, line.colour) for line in lines)}"
        f'<div class="chart">{chart}</div>',
    )


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """A picture of the rates over time and of the whole runs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 3.4), width_ratios=(2, 1), layout="constrained")
    for number, one in enumerate(outcomes):
        axes[0].plot(one.times, one.rates, color=LIGHT[number % len(LIGHT)], lw=1.4, label=one.agent)
        axes[1].barh(one.agent, one.rate, color=LIGHT[number % len(LIGHT)])
    axes[0].set(xlabel="seconds", ylabel="rows/s")
    axes[0].set_ylim(bottom=0)
    axes[0].legend(fontsize=8, frameon=False)
    axes[1].invert_yaxis()
    axes[1].set_xlabel("rows/s over the whole run")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _times(number: float) -> str:
    return "–" if math.isnan(number) else f"{number:.2f}×"


def best_first(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """By the rate of the whole run."""
    return sorted(outcomes, key=lambda one: -one.rate)


def words(one: Outcome) -> str:
    """Slots at the end, and what went wrong."""
    slots = ", ".join(f"{name} {count}" for name, count in one.slots.items())
    return f"{slots}; tuning stopped: {one.failure}" if one.failure else slots
