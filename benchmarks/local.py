"""Section: throughput, memory and time to the first batch on local files, against every rival at its best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import data, families, harness, report, stats, sweep
from benchmarks.context import Bar, Context
from benchmarks.harness import Contender
from benchmarks.stats import Estimate

TITLE = "Local throughput"

Runs = Sequence[Mapping[str, Any]]


def measure(context: Context) -> dict[str, Any]:
    """Sweep each rival on half the rows, then run all finalists interleaved on all of them."""
    spec = data.scaled(context.rows)
    folder = data.ensure(spec)[0].parent
    chosen, sweeps, missing = _choose(context)
    contenders = {item.name: item for item in (*families.OURS, *chosen) if context.wants(item.name)}
    results, failures = harness.interleave(
        {name: _runner(contender, folder) for name, contender in contenders.items()},
        rounds=context.repeats,
        seed=context.seed,
        progress=context.progress,
    )
    return {
        "rows": spec.rows,
        "batch": harness.BATCH,
        "sweeps": sweeps,
        "missing": missing,
        "configs": {name: contender.config for name, contender in contenders.items()},
        "runs": results,
        "failures": failures,
    }


def bars(result: Mapping[str, Any]) -> list[Bar]:
    """Bars on rates, memory and the first batch."""
    runs: Mapping[str, Runs] = result["runs"]
    ours, ray, shuffled = families.THREADS.name, families.RAY.name, families.SHUFFLED.name
    processes = families.DATALOADER_PROCESSES
    if processes not in runs:
        processes = families.DATALOADER.name

    def rate(over: str, under: str, limit: float) -> Bar:
        return Bar(
            name=f"{over} / {under}", limit=limit, unit="×", measured=ratio_of(runs, over, under, row_rate)
        )

    def first(name: str, limit: float) -> Bar:
        found = stats.estimate([run["first_batch_s"] for run in runs[name]]) if name in runs else None
        return Bar(name=f"{name}: first batch", limit=limit, unit=" s", measured=found, at_least=False)

    return [
        rate(ours, families.SPDL.name, 1.1),
        rate(ours, families.DATALOADER.name, 1.4),
        rate(ours, families.TFDATA.name, 3.0),
        rate(ours, families.BARE.name, 0.97),
        rate(ray, families.RAY_DATA.name, 2.0),
        rate(ray, processes, 1.0),
        rate(ray, ours, 0.6),
        rate(shuffled, ours, 0.8),
        first(ours, 0.3),
        first(ray, 1.5),
        Bar(
            name=f"peak memory, {ours} / {families.DATALOADER.name}",
            limit=1.0,
            unit="×",
            measured=ratio_of(runs, ours, families.DATALOADER.name, lambda run: run["peak_bytes"]),
            at_least=False,
        ),
    ]


def row_rate(run: Mapping[str, Any]) -> float:
    """Rows a second of the timed epoch."""
    return float(run["rows"]) / float(run["seconds"])


def ratio_of(
    runs: Mapping[str, Runs], over: str, under: str, value: Callable[[Mapping[str, Any]], float]
) -> Estimate | None:
    """Ratio of two contenders paired by round; None if one of them did not run to the end."""
    if over not in runs or under not in runs:
        return None
    return stats.ratio([value(run) for run in runs[over]], [value(run) for run in runs[under]])


def best_rival(runs: Mapping[str, Runs]) -> str | None:
    """The rival (no limit, none of ours) with the highest median rate."""
    names = [family.name for family in families.RIVALS if family.name in runs]
    return max(
        names, key=lambda name: stats.estimate([row_rate(run) for run in runs[name]]).median, default=None
    )


def show(result: Mapping[str, Any], console: Console) -> None:
    for name, rows in result["sweeps"].items():
        console.print(report.sweep_table(name, rows))
    runs = result["runs"]
    rival = best_rival(runs)
    console.print(
        report.rates_table(
            f"{result['rows']:,} rows, batches of {result['batch']:,}",
            rates={name: stats.estimate([row_rate(run) for run in kept]) for name, kept in runs.items()},
            ratios={name: ratio_of(runs, name, rival, row_rate) if rival else None for name in runs},
            rival=rival,
            peaks={name: stats.estimate([run["peak_bytes"] for run in kept]) for name, kept in runs.items()},
            firsts={
                name: stats.estimate([run["first_batch_s"] for run in kept]) for name, kept in runs.items()
            },
        )
    )
    for name, error in result["failures"].items():
        console.print(f"[red]{name} failed:[/red] {error}", highlight=False)
    for name in result["missing"]:
        console.print(
            f"[yellow]{name} not run:[/yellow] the rivals' environment is missing; run `make peers`"
        )


def _choose(context: Context) -> tuple[list[Contender], dict[str, list[dict[str, Any]]], list[str]]:
    """Finalists, the sweeps that chose them, and the rivals whose environment is missing."""
    chosen: list[Contender] = []
    sweeps: dict[str, list[dict[str, Any]]] = {}
    missing: list[str] = []
    for family in (*families.RIVALS, *families.LIMITS):
        if not context.wants(family.name):
            continue
        if not harness.available(family.contender({})):
            missing.append(family.name)
            continue
        if context.quick or len(family.configs) == 1:
            chosen.append(family.contender(family.configs[0]))
            continue
        folder = data.ensure(data.scaled(context.rows // 2))[0].parent
        rows = sweeps[family.name] = sweep.sweep(family, folder, progress=context.progress)
        config = sweep.best(rows)
        if config is not None:
            chosen.append(family.contender(config))
        if family is families.DATALOADER and config is not None and not config["workers"]:
            config = sweep.best(rows, lambda setting: setting["workers"] > 0)
            if config is not None:
                chosen.append(
                    Contender(
                        name=families.DATALOADER_PROCESSES,
                        module=family.module,
                        python=family.python,
                        config=config,
                    )
                )
    return chosen, sweeps, missing


def _runner(contender: Contender, folder: Path) -> Callable[[], dict[str, Any]]:
    return lambda: harness.run(contender, folder)
