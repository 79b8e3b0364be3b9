"""Section: what the loader itself costs a batch, beside a bare loop that does the same reading and cutting.

No transform, and three narrow columns, so that next to nothing else is left; and 10,000 row groups of 1,000
rows, of which every batch needs eight or nine. The overhead is the difference in CPU seconds (all threads of
the process): on a machine whose cores are all at work that is what a batch loses. Elapsed time is beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import data, families, harness, stats
from benchmarks.context import Bar, Context
from benchmarks.harness import Contender
from benchmarks.stats import Estimate

TITLE = "Loader overhead"

EMPTY, TINY = "empty transform", "tiny row groups"

BATCHES = {EMPTY: 1024, TINY: harness.BATCH}
"""Rows a batch: with the empty transform a small one, so that there are 4,096 of them and the cost of one can
be told from noise."""

LOOPS: Mapping[str, Mapping[str, Contender]] = {
    EMPTY: {
        "ours": families.THREADS,
        "bare loop": Contender(
            name="bare loop", module="benchmarks.rivals.bare", config={"threads": 2, "ahead": 3}
        ),
    },
    TINY: {
        "ours": families.THREADS,
        # Batches of 8,000 rows are what a person would make of row groups of 1,000: no rows of two reads to join.
        "bare loop": Contender(
            name="bare loop", module="benchmarks.rivals.bare", config={"threads": 2, "ahead": 3, "groups": 8}
        ),
        "bare loop, one row group a read": Contender(
            name="bare loop, one row group a read",
            module="benchmarks.rivals.bare",
            config={"threads": 2, "ahead": 24},
        ),
    },
}


def measure(context: Context) -> dict[str, Any]:
    """Both cases, their loops interleaved."""
    specs = {
        EMPTY: data.DataSpec(dense=1, ids=2, rows=2**18, files=4) if context.quick else data.NARROW,
        TINY: data.DataSpec(rows=200_000, files=2, row_group_rows=1_000, dense=1, ids=2)
        if context.quick
        else data.TINY_GROUPS,
    }
    cases: dict[str, Any] = {}
    for case, loops in LOOPS.items():
        folder = data.ensure(specs[case])[0].parent
        runs, failures = harness.interleave(
            {name: _runner(loop, folder, BATCHES[case]) for name, loop in loops.items()},
            rounds=context.repeats,
            seed=context.seed,
            progress=context.progress,
        )
        cases[case] = {"batch": BATCHES[case], "rows": specs[case].rows, "runs": runs, "failures": failures}
    return cases


def bars(result: Mapping[str, Any]) -> list[Bar]:
    """At most 50 µs a batch, in both cases."""
    return [
        Bar(
            name=f"loader overhead a batch, {case}",
            limit=50.0,
            unit=" µs",
            measured=overhead(found, "own_cpu_s"),
            at_least=False,
        )
        for case, found in result.items()
    ]


def overhead(case: Mapping[str, Any], measure_of: str) -> Estimate | None:
    """Microseconds a batch by which ours exceeds the bare loop, paired by round; None if one did not run."""
    runs = case["runs"]
    if "ours" not in runs or "bare loop" not in runs:
        return None

    ours, bare = (per_batch_us(runs[name], measure_of, case["batch"]) for name in ("ours", "bare loop"))
    return stats.estimate([mine - theirs for mine, theirs in zip(ours, bare, strict=True)])


def per_batch_us(runs: Sequence[Mapping[str, Any]], measure_of: str, batch: int) -> list[float]:
    """Microseconds that each run took for as many rows as ours has in a batch; loops cut batches differently."""
    return [1e6 * float(run[measure_of]) / float(run["rows"]) * batch for run in runs]


def show(result: Mapping[str, Any], console: Console) -> None:
    """One row a loop: rate, CPU and elapsed time for the rows of one batch."""
    for case, found in result.items():
        table = Table(
            title=f"{case}: {found['rows']:,} rows, batches of {found['batch']:,}", title_justify="left"
        )
        table.add_column("loop")
        for heading in (
            "rows/s",
            f"CPU µs / {found['batch']:,} rows",
            f"elapsed µs / {found['batch']:,} rows",
        ):
            table.add_column(heading, justify="right")
        for name, runs in found["runs"].items():
            per_batch = [per_batch_us(runs, key, found["batch"]) for key in ("own_cpu_s", "seconds")]
            rate = 1e6 * found["batch"] / median(per_batch[1])
            table.add_row(name, f"{rate:,.0f}", *(f"{median(values):,.0f}" for values in per_batch))
        console.print(table)
        for name, error in found["failures"].items():
            console.print(f"[red]{name} failed:[/red] {error}", highlight=False)


def _runner(loop: Contender, folder: Path, batch: int) -> Callable[[], dict[str, Any]]:
    return lambda: harness.run(loop, folder, batch=batch, flags=["--empty"])
