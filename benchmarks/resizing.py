"""Section: what changing the slots ten times a second costs, in rows per second, on threads and on Ray.

In one process, epochs with steady slots and epochs resized every 100 ms take turns on the same loader; what
counts is the ratio of an epoch to the steady one before it. Run as a program, it is that process.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import data, harness, stats
from benchmarks.contender import touch
from benchmarks.context import Bar, Context
from benchmarks.transform import transform

TITLE = "Resizing every 100 ms"

EVERY_S = 0.1
STEADY = {"load": 2, "batch": 1, "transform": 2, "transfer": 1}
CHANGED = ({"load": 3, "transform": 2}, {"load": 2, "transform": 3}, {"load": 3, "transform": 3}, STEADY)


def measure(context: Context) -> dict[str, Any]:
    """One process an executor; as many pairs of epochs as repeats."""
    folder = data.ensure(data.scaled(context.rows))[0].parent
    result: dict[str, Any] = {"runs": {}, "failures": {}}
    for executor in ("threads", "ray"):
        context.progress(f"resizing on {executor}")
        command = [sys.executable, "-m", "benchmarks.resizing", str(folder), executor, str(context.repeats)]
        try:
            result["runs"][executor] = harness.run_command(command, name=f"resizing on {executor}")["pairs"]
        except harness.ContenderFailed as error:
            result["failures"][executor] = str(error)
    return result


def bars(result: Mapping[str, Any]) -> list[Bar]:
    """At least 0.95 of the steady rate."""
    return [
        Bar(
            name=f"{executor}: rate while resized every 100 ms, of the steady one",
            limit=0.95,
            unit="x",
            measured=stats.estimate([steady / resized for steady, resized in pairs]),
        )
        for executor, pairs in result["runs"].items()
    ]


def show(result: Mapping[str, Any], console: Console) -> None:
    for name, error in result["failures"].items():
        console.print(f"[red]{name} failed:[/red] {error}", highlight=False)
    for executor, pairs in result["runs"].items():
        ratio = stats.estimate([steady / resized for steady, resized in pairs])
        console.print(f"{executor}: {ratio.median:.3f} of the steady rate ({len(pairs)} pairs of epochs)")


def _epoch(loader: Any, *, resize: bool) -> float:
    """Seconds of one epoch."""
    changes = itertools.cycle(CHANGED)
    loader.resize(STEADY)
    began = time.perf_counter()
    due = began + EVERY_S
    for batch in loader:
        touch(batch)
        if resize and time.perf_counter() >= due:
            loader.resize(next(changes))
            due += EVERY_S
    return time.perf_counter() - began


def _main(folder: str, executor: str, repeats: str) -> None:
    from intune.pipelines import Pipeline

    files = sorted(Path(folder).glob("*.parquet"))
    pipeline = Pipeline.from_parquet(files).batch(8192).map(transform, rowwise=True).to("cpu")
    with pipeline.loader(executor=executor) as loader:
        _epoch(loader, resize=False)
        pairs = [
            [_epoch(loader, resize=False), _epoch(loader, resize=True)] for _ in range(max(5, int(repeats)))
        ]
    print(json.dumps({"pairs": pairs}))


if __name__ == "__main__":
    _main(*sys.argv[1:4])
