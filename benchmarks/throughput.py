"""The one command: ``python -m benchmarks.throughput --json FILE``.

Runs every section (local throughput, resizing, loader overhead, planning, storage that waits), prints tables and the
bars with their verdicts, and writes all of it to JSON, the environment included.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import tyro
from rich.console import Console

from benchmarks import data, environment, families, plot, report, storage
from benchmarks.context import Bar, Context, Section

SECTIONS = ("local", "resizing", "overhead", "planning", "storage")
"""Modules of this package, in the order they run."""

CONTENDERS = (
    *(each.name for each in (*families.OURS, *families.RIVALS, *families.LIMITS)),
    *storage.CONTENDERS,
)
"""Whom `--only` may choose from."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Our loader against the ones people use, on the same data, in one run.

    Attributes:
        json: Where to write the results.
        plot: Where to draw them (PNG, SVG or PDF; needs matplotlib).
        repeats: Timed runs of every contender, each in a fresh process.
        rows: Rows of the local data set; the section storage reads half as many.
        sections: Which sections to run.
        only: Take part only if the contender's name contains one of these (ours are "ours, …").
        quick: Small data, two repeats, no sweep: does everything work? Its numbers mean little.
        seed: Of the order in which contenders run.
        strict: End with status 1 if a bar that was measured does not hold.
    """

    json: Path | None = None
    plot: Path | None = None
    repeats: int = 5
    rows: int = data.MAIN.rows
    sections: tuple[str, ...] = SECTIONS
    only: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME …")] = ()
    quick: bool = False
    seed: int = 0
    strict: bool = False

    def __post_init__(self) -> None:
        unknown = set(self.sections) - set(SECTIONS)
        if unknown:
            raise SystemExit(
                f"`--sections` knows {', '.join(SECTIONS)}, but not {', '.join(sorted(unknown))}"
            )
        if self.repeats < 1 or self.rows < 4:
            raise SystemExit(f"`--repeats` ({self.repeats}) must be at least 1 and `--rows` ({self.rows}) 4")
        for part in self.only:
            if not any(part.lower() in name.lower() for name in CONTENDERS):
                raise SystemExit(f"`--only` {part!r} is in the name of none of {'; '.join(CONTENDERS)}")
        if self.plot is not None and "local" not in self.sections:
            raise SystemExit("`--plot` draws the section local, which `--sections` leaves out")
        report.check_plot(self.plot)


def main(options: Options) -> int:
    console = Console()
    began = time.monotonic()
    document: dict[str, Any] = {"environment": environment.describe(), "sections": {}, "bars": []}
    _show_environment(document["environment"], console)
    context = Context(
        rows=min(options.rows, 2**20) if options.quick else options.rows,
        repeats=min(options.repeats, 2) if options.quick else options.repeats,
        seed=options.seed,
        quick=options.quick,
        only=options.only,
        progress=_progress(began),
    )
    bars: list[Bar] = []
    for name in options.sections:
        section = cast(Section, importlib.import_module(f"benchmarks.{name}"))
        console.rule(section.TITLE)
        result = document["sections"][name] = section.measure(context)
        section.show(result, console)
        bars += section.bars(result)
        document["bars"] = [bar.as_dict() for bar in bars]
        document["seconds"] = time.monotonic() - began
        report.write(options.json, document)  # after each section, so that a run cut short leaves what it has
    console.rule("Summary")
    console.print(report.bars_table(bars))
    console.print(f"{document['seconds'] / 60:.1f} minutes")
    if options.plot:
        options.plot.parent.mkdir(parents=True, exist_ok=True)
        plot.draw(document, options.plot)
    return int(options.strict and any(bar.passed is False for bar in bars))


def _progress(began: float) -> Callable[[str], None]:
    """Says on stderr what runs now: one line that changes on a terminal, plain lines elsewhere."""
    console = Console(stderr=True)
    status = console.status("starting") if console.is_terminal else None

    def say(what: str) -> None:
        line = f"{time.monotonic() - began:6.0f} s  {what}"
        if status is None:
            print(line, file=sys.stderr, flush=True)
        else:
            status.update(line)
            status.start()

    return say


def _show_environment(found: dict[str, Any], console: Console) -> None:
    memory = found["memory_bytes"] / 2**30
    console.print(
        f"{found['cpu']}, {found['cores_usable']} cores, {memory:.0f} GiB, load {found['load'][0]:.1f}"
    )
    if found["load"][0] > 0.5:
        console.print("[yellow]the machine is busy with something else: the numbers will be too low[/yellow]")
    for name, versions in found["versions"].items():
        shown = ", ".join(f"{package} {version}" for package, version in versions.items() if version)
        console.print(f"{name}: {shown}", highlight=False)


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Options, prog="python -m benchmarks.throughput")))
