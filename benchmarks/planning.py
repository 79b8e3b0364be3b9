"""Section: how long it takes to plan 100,000 row groups, in a fresh process and once more in the same one.

A hundred files of a thousand tiny row groups each. Beside it, what Arrow alone takes to parse the footers, one
after the other: the floor of whoever does not cache them. Run as a program, it is that process.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import data, harness, stats
from benchmarks.context import Bar, Context

TITLE = "Planning 100,000 row groups"

FILES = 100


def measure(context: Context) -> dict[str, Any]:
    """Plan in `repeats` fresh processes."""
    folder = data.copies(data.MANY_GROUPS, 3 if context.quick else FILES)[0].parent
    runs, failures = harness.interleave(
        {"planning": lambda: _in_fresh_process(folder)},
        rounds=context.repeats,
        seed=context.seed,
        progress=context.progress,
    )
    return {"runs": runs.get("planning", []), "failures": failures}


def bars(result: Mapping[str, Any]) -> list[Bar]:
    """At most two seconds."""
    found = stats.estimate([run["first_s"] for run in result["runs"]]) if result["runs"] else None
    return [Bar(name="planning 100,000 row groups", limit=2.0, unit=" s", measured=found, at_least=False)]


def show(result: Mapping[str, Any], console: Console) -> None:
    for name, error in result["failures"].items():
        console.print(f"[red]{name} failed:[/red] {error}", highlight=False)
    if not result["runs"]:
        return
    first, again, arrow = (
        stats.estimate([run[key] for run in result["runs"]]).median
        for key in ("first_s", "again_s", "arrow_s")
    )
    groups = result["runs"][0]["row_groups"]
    console.print(
        f"{groups:,} row groups: {first:.2f} s, once more {again:.2f} s; Arrow's parse of all footers {arrow:.2f} s"
    )


def plan(paths: Sequence[Path]) -> float:
    """Seconds from paths to a loader that knows its number of batches."""
    from intune.pipelines import Pipeline

    began = time.perf_counter()
    with Pipeline.from_parquet(list(paths)).batch(8192).to("cpu").loader(executor="threads") as loader:
        len(loader)
        return time.perf_counter() - began


def _in_fresh_process(folder: Path) -> dict[str, Any]:
    return harness.run_command(
        [sys.executable, "-m", "benchmarks.planning", str(folder.resolve())], name="planning"
    )


def _main(folder: str) -> None:
    import pyarrow.parquet as pq

    import intune.pipelines.loader  # noqa: F401  imports are not planning

    paths = sorted(Path(folder).glob("*.parquet"))
    first, again = plan(paths), plan(paths)
    began = time.perf_counter()
    groups = sum(pq.read_metadata(path).num_row_groups for path in paths)
    arrow = time.perf_counter() - began
    print(json.dumps({"row_groups": groups, "first_s": first, "again_s": again, "arrow_s": arrow}))


if __name__ == "__main__":
    _main(sys.argv[1])
