"""The tables a person reads, as rich renderables. Nothing is measured or decided here."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.context import Bar
from benchmarks.stats import Estimate


def check_plot(path: Path | None) -> None:
    """Say before anything runs that a picture is wanted and cannot be drawn."""
    if path is not None and importlib.util.find_spec("matplotlib") is None:
        raise SystemExit("`--plot` needs matplotlib: pip install 'intune[plots]'")


def check_chosen(only: Iterable[str], known: Iterable[str]) -> None:
    """Say before anything runs that a name is chosen that nobody has."""
    names = tuple(known)
    for name in only:
        if name not in names:
            raise SystemExit(f"`--only` knows {'; '.join(names)}, but not {name!r}")


def write(path: Path | None, found: Any) -> None:
    """As JSON, or as the text that it is, into a file whose folder need not be there: what took an hour to measure
    must not be lost to that. Nothing where there is no file to write."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = found if isinstance(found, str) else json.dumps(found, indent=1)
        path.write_text(text + "\n", encoding="utf-8")


def write_whole(path: Path | None, found: Any) -> None:
    """The same, but nobody ever sees the file half written: a run that was cut short goes on from it."""
    if path is not None:
        unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
        write(unfinished, found)
        unfinished.replace(path)


def rates_table(
    title: str,
    *,
    rates: Mapping[str, Estimate],
    ratios: Mapping[str, Estimate | None],
    rival: str | None,
    peaks: Mapping[str, Estimate],
    firsts: Mapping[str, Estimate],
) -> Table:
    """Contenders, fastest first: rate with interval, ratio to the best rival, peak memory, first batch."""
    table = Table(title=title, title_justify="left")
    table.add_column("contender")
    headings = ("rows/s", "95 % interval", f"/ {rival or 'best rival'}", "peak memory", "first batch")
    for heading in headings:
        table.add_column(heading, justify="right")
    for name, rate in sorted(rates.items(), key=lambda item: -item[1].median):
        ratio = ratios[name]
        table.add_row(
            f"[bold]{name}[/bold]" if name.startswith("ours") else name,
            millions(rate.median),
            f"{millions(rate.low)} – {millions(rate.high)}",
            f"{ratio.median:.2f}×" if ratio else "–",
            f"{peaks[name].median / 2**20:,.0f} MiB",
            f"{firsts[name].median:.2f} s",
        )
    return table


def sweep_table(name: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Every setting of a rival, the chosen one first."""
    table = Table(title=f"{name}: settings tried", title_justify="left")
    table.add_column("setting", overflow="fold")
    table.add_column("rows/s, each run", justify="right")
    for number, row in enumerate(rows):
        setting = json.dumps(row["config"])
        outcome = "failed" if row["error"] else "  ".join(millions(rate) for rate in row["rates"])
        table.add_row(f"[bold]{setting}[/bold]" if number == 0 else setting, outcome)
    return table


def bars_table(bars: Sequence[Bar]) -> Table:
    """What must hold, and whether it does."""
    table = Table(title="Bars", title_justify="left")
    table.add_column("what")
    for heading in ("must be", "measured", "95 % interval"):
        table.add_column(heading, justify="right")
    table.add_column("")
    verdicts = {True: "[green]pass[/green]", False: "[red]FAIL[/red]", None: "[yellow]not measured[/yellow]"}
    for bar in bars:
        found = bar.measured
        table.add_row(
            bar.name,
            f"{'≥' if bar.at_least else '≤'} {bar.limit:g}{bar.unit}",
            f"{found.median:.3g}{bar.unit}" if found else "–",
            f"{found.low:.3g} – {found.high:.3g}" if found else "–",
            verdicts[bar.passed],
        )
    return table


def millions(rate: float) -> str:
    """Rows a second, as ``2.31M``."""
    return f"{rate / 1e6:.2f}M"
