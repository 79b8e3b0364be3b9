"""What follows from the runs of `live`: rates, ratios, bars. Pure, but for printing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.context import Bar
from benchmarks.live_jobs import SLOWEST_STORAGE, TRAINER_BOUND
from benchmarks.stats import Estimate

Runs = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Job -> contender -> what its process reported; one that failed has ``error`` instead of a rate."""

OURS, UNTUNED, TFDATA = "ours, dqn", "ours, untuned", "tf.data AUTOTUNE"


def rate(run: Mapping[str, Any] | None) -> float:
    """Rows/s over the whole run, start-up included; NaN where it failed or was not run."""
    return math.nan if run is None or "rows" not in run else float(run["rows"]) / float(run["seconds"])


def last_third(run: Mapping[str, Any] | None) -> float:
    """Rows/s in the last third of a run's time."""
    if run is None or "marks" not in run:
        return math.nan
    end, total = run["marks"][-1]
    begin = next((mark for mark in run["marks"] if mark[0] >= 2 / 3 * end), run["marks"][-1])
    return (total - begin[1]) / (end - begin[0]) if end > begin[0] else math.nan


def intervals(run: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Seconds since the start, and rows/s since the mark before."""
    marks = run.get("marks", [])
    return [
        (after[0], (after[1] - before[1]) / (after[0] - before[0]))
        for before, after in pairwise(marks)
        if after[0] > before[0]
    ]


def settled(run: Mapping[str, Any], best: float, share: float = 0.95) -> tuple[float, int] | None:
    """Seconds and decisions until an interval of the tuner delivered `share` of `best`; None: never."""
    changes = 0
    for decision in run.get("decisions", []):
        if (decision["delivered"] or 0.0) >= share * best:
            return float(decision["time"]), changes
        changes += decision["decided"] is not None
    return None


def geometric_mean(values: Sequence[float]) -> float:
    """Of those that are numbers; NaN where there are none."""
    known = [value for value in values if math.isfinite(value) and value > 0]
    return math.exp(sum(map(math.log, known)) / len(known)) if known else math.nan


def ratios(runs: Runs, over: str, under: str, read: Any = rate) -> dict[str, float]:
    """Job -> rate of `over` / rate of `under`, where both ran."""
    found = {
        job: read(of.get(over)) / read(of.get(under))
        for job, of in runs.items()
        if over in of and under in of
    }
    return {job: value for job, value in found.items() if math.isfinite(value)}


def to_best(runs: Runs) -> dict[str, float]:
    """Job -> our rate / that of the best of all the others."""
    found = {}
    for job, of in runs.items():
        others = [rate(run) for name, run in of.items() if name != OURS and math.isfinite(rate(run))]
        if OURS in of and others and math.isfinite(rate(of[OURS])):
            found[job] = rate(of[OURS]) / max(others)
    return found


def bars(document: Mapping[str, Any]) -> list[Bar]:
    runs: Runs = document.get("runs", {})
    against = ratios(runs, OURS, TFDATA)
    untuned = ratios(runs, OURS, UNTUNED)
    found = [
        _bar("geometric mean: ours / tf.data AUTOTUNE", 2.29, geometric_mean(list(against.values()))),
        _bar(f"{SLOWEST_STORAGE}: ours / tf.data AUTOTUNE", 2.5, against.get(SLOWEST_STORAGE)),
        _bar("worst job: ours / untuned default", 0.97, min(untuned.values(), default=None)),
        _bar("worst job: ours / best of all others", 0.97, min(to_best(runs).values(), default=None)),
        _bar(f"{TRAINER_BOUND}: ours / untuned, rows/s", 0.97, untuned.get(TRAINER_BOUND)),
    ]
    found += _lean(runs.get(TRAINER_BOUND, {}))
    return found + _speed(document)


def _lean(runs: Mapping[str, Mapping[str, Any]]) -> list[Bar]:
    """Where the trainer is the bottleneck: slots and memory of the blocks, against tf.data's way of deciding."""
    ours = runs.get(OURS, {})
    found = []
    for name in ("ours, autotune", UNTUNED):
        other = runs.get(name, {})
        for field, what in (("slots", "slots"), ("held_peak", "memory of blocks")):
            if ours.get(field) and other.get(field):
                value = float(ours[field]) / float(other[field])
                found.append(_bar(f"{TRAINER_BOUND}: {what}, ours / {name}", 0.5, value, at_least=False))
    if ours.get("peak_bytes") and runs.get(TFDATA, {}).get("peak_bytes"):
        value = ours["peak_bytes"] / runs[TFDATA]["peak_bytes"]
        found.append(_bar(f"{TRAINER_BOUND}: memory, ours / tf.data", 0.5, value, at_least=False))
    return found


def _speed(document: Mapping[str, Any]) -> list[Bar]:
    """Time and decisions until 95 % of the best allocation of the sweep."""
    times, counts = [], []
    for job, sweep in document.get("sweeps", {}).items():
        run = document["runs"].get(job, {}).get(OURS)
        if run is None or "decisions" not in run or not sweep:
            continue
        found = settled(run, sweep[0][1])
        times.append(found[0] if found else math.inf)
        counts.append(float(found[1]) if found else math.inf)
    if not times:
        return []
    return [
        _bar("worst job: seconds to 95 % of the best allocation", 30, max(times), at_least=False, unit=" s"),
        _bar("worst job: decisions to 95 % of the best allocation", 10, max(counts), at_least=False, unit=""),
    ]


def _bar(name: str, limit: float, value: float | None, *, at_least: bool = True, unit: str = "×") -> Bar:
    known = value is not None and not math.isnan(value)
    measured = Estimate(float(value), float(value), float(value)) if known and value is not None else None
    return Bar(name=name, limit=limit, unit=unit, measured=measured, at_least=at_least)


# ---- for people ----------------------------------------------------------------------------------------------


def show(document: Mapping[str, Any], console: Console) -> None:
    runs: Runs = document.get("runs", {})
    table = Table(title="Whole runs, from a cold start", title_justify="left")
    table.add_column("job")
    table.add_column("contender")
    for heading in ("rows/s", "last third", "first batch", "slots", "memory", "ours / it"):
        table.add_column(heading, justify="right")
    for job, of in runs.items():
        for name, run in sorted(of.items(), key=lambda item: -_number(rate(item[1]))):
            if "error" in run:
                table.add_row(
                    job, name, "[red]failed[/red]", run["error"].splitlines()[-1][:40], "", "", "", ""
                )
                continue
            if "cannot" in run:
                table.add_row(job, name, "–", run["cannot"], "", "", "", "")
                continue
            table.add_row(
                job,
                f"[bold]{name}[/bold]" if name == OURS else name,
                f"{rate(run):,.0f}",
                f"{last_third(run):,.0f}",
                f"{run['first_batch_s']:.2f} s",
                slots_text(run),
                f"{run.get('peak_bytes', 0) / 2**20:,.0f} MiB",
                f"{rate(of.get(OURS)) / rate(run):.2f}×" if OURS in of else "–",
            )
        table.add_section()
    console.print(table)


def slots_text(run: Mapping[str, Any]) -> str:
    """Slots at the end of a run: ``16 (13/1/1/1)``, or ``pool 2``; a dash for others' loaders."""
    allocation = run.get("allocation")
    if not allocation:
        return "–"
    if "shared" in allocation:
        return f"pool {allocation['shared']}"
    return f"{sum(allocation.values())} ({'/'.join(map(str, allocation.values()))})"


def _number(value: float) -> float:
    return value if math.isfinite(value) else -1.0
