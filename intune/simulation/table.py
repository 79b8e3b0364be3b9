"""The results as rows of text: for the terminal's table and the page's."""

from __future__ import annotations

import io
from math import isfinite, isnan

from rich.console import Console
from rich.table import Table

from intune.agents.summary import Estimate, Summary
from intune.report import counted
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


MOST = 10_000
"""Characters across that no table needs."""
NARROW = ("of the best", "after 5", "ratio", "out of memory", "memory")
"""Columns shown where there is no room for all."""


def table(results: Results, scenario: str, *, width: int | None = None) -> Table:
    """One scenario's agents, the best first; the main columns only where all need more than `width` characters."""
    shown = filled(results.scenarios[scenario])
    made = _table(results, scenario, shown)
    if width is None or needed(made) <= width:
        return made
    return _table(results, scenario, [at for at in shown if list(HEADINGS)[at] in NARROW])


def needed(made: Table) -> int:
    """Characters across that a table needs, if nothing in it is to be cut."""
    # With a file and a height of its own: on a terminal that is said to be dumb rich passes over the width.
    return Console(file=io.StringIO(), width=MOST, height=25).measure(made).maximum


def _table(results: Results, scenario: str, shown: list[int]) -> Table:
    summaries = best_first(results.scenarios[scenario])
    jobs = f"{counted(summaries[0].jobs, 'job')}, {counted(len(summaries[0].curve), 'decision')} each"
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


def filled(summaries: list[Summary]) -> list[int]:
    """Numbers of the `HEADINGS` below which something stands: ratios only where the reference was among the agents."""
    compared = any(summary.ratio is not None for summary in summaries)
    return [number for number, name in enumerate(HEADINGS) if compared or name != "ratio"]


def cells(summary: Summary) -> list[str]:
    """What stands below `HEADINGS`."""
    found = summary.outcomes
    ratio = "" if summary.ratio is None else _times(summary.ratio["whole"])
    reached = summary.median_reached
    return [
        _interval(found["whole"]),
        _number(found["at_5"], ".3f"),
        _number(found["at_10"], ".3f"),
        ratio,
        f"{summary.killed_jobs:,} of {summary.feasible:,}",
        _number(found["memory"], ".0%"),
        _number(found["slots"], ".2f"),
        f"{reached:.0f}" if isfinite(reached) else "–",
        _number(found["recovery"]),
        _number(found["regret"]),
    ]


def _interval(estimate: Estimate) -> str:
    if isnan(estimate.mean):
        return "–"
    # Of a single job there is no interval.
    span = f" ({estimate.low:.3f}–{estimate.high:.3f})" if estimate.low < estimate.high else ""
    return f"{estimate.mean:.3f}{span}"


def _times(estimate: Estimate) -> str:
    return "–" if isnan(estimate.mean) else f"{estimate.mean:.2f}×"


def _number(estimate: Estimate, form: str = "z.1f") -> str:
    return "–" if isnan(estimate.mean) else format(estimate.mean, form)
