"""The results as rows of text: for the terminal's table and the page's."""

from __future__ import annotations

from math import isfinite, isnan

from rich.table import Table

from intune.agents.summary import Estimate, Summary
from intune.simulation.results import Results, best_first

HEADINGS: dict[str, str] = {
    "of the best": "rows delivered over the whole job / those of the best allocation, with 95 % interval over jobs",
    "after 5": "share of the best rate in the interval after the fifth decision",
    "after 10": "the same after the tenth",
    "ratio": "rows over the whole job / those of the reference agent, on the same jobs",
    "out of memory": "jobs that ran out of memory, of those that an allocation exists for",
    "memory": "mean share of the limit in use",
    "slots/CPU": "mean slots in use / CPUs",
    "to 95 %": "median decisions until 95 % of the best rate, before the first resize; – if half do not get there",
    "recovery": "mean decisions from a resize to 90 % of the new best rate",
    "regret": "intervals' worth of the best rate lost over the job",
}


NARROW = ("of the best", "after 5", "ratio", "out of memory", "memory")
"""Columns shown where there is no room for all."""
WIDE = 130
"""Columns of characters that all headings need."""


def table(results: Results, scenario: str, *, width: int = WIDE) -> Table:
    """One scenario's agents, the best first; on less than `WIDE` characters the main columns only."""
    shown = [number for number, name in enumerate(HEADINGS) if width >= WIDE or name in NARROW]
    summaries = best_first(results.scenarios[scenario])
    jobs = f"{summaries[0].jobs:,} jobs, {len(summaries[0].curve)} decisions each"
    made = Table(
        title=f"{scenario}: {jobs}", title_justify="left", box=None, header_style="dim", pad_edge=False
    )
    made.add_column("agent", no_wrap=True)
    headings = list(HEADINGS)
    for number in shown:
        heading = f"/ {results.reference}" if headings[number] == "ratio" else headings[number]
        made.add_column(heading, justify="right", no_wrap=True)
    for summary in summaries:
        row = cells(summary)
        made.add_row(summary.agent, *(row[number] for number in shown))
    return made


def cells(summary: Summary) -> list[str]:
    """What stands below `HEADINGS`."""
    found = summary.outcomes
    ratio = "" if summary.ratio is None else f"{summary.ratio['whole'].mean:.2f}×"
    reached = summary.median_reached
    return [
        _interval(found["whole"]),
        _share(found["at_5"]),
        _share(found["at_10"]),
        ratio,
        f"{summary.killed_jobs:,} of {summary.feasible:,}",
        f"{found['memory'].mean:.0%}",
        f"{found['slots'].mean:.2f}",
        f"{reached:.0f}" if isfinite(reached) else "–",
        _number(found["recovery"]),
        _number(found["regret"]),
    ]


def _interval(estimate: Estimate) -> str:
    return (
        f"{estimate.mean:.3f} ({estimate.low:.3f}–{estimate.high:.3f})" if not isnan(estimate.mean) else "–"
    )


def _share(estimate: Estimate) -> str:
    return "–" if isnan(estimate.mean) else f"{estimate.mean:.3f}"


def _number(estimate: Estimate) -> str:
    return "–" if isnan(estimate.mean) else f"{estimate.mean:.1f}"
