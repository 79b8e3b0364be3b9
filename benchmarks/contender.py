"""What runs inside a contender's own fresh process: a warm-up epoch, a timed epoch, one JSON line.

With ``--live`` instead: as many epochs as fit into some seconds, from a cold start, for a job that `live` describes.

A contender is a module that calls `main(build)`. Only NumPy, Arrow and torch are imported here, since rivals
run in an environment without this package.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from benchmarks import transform as transforms
from benchmarks import user_code

Batch: TypeAlias = "Mapping[str, Any]"
"""Column name -> `torch.Tensor` (NumPy array from TensorFlow), all of the same length."""

Epoch: TypeAlias = "Callable[[], Iterable[Batch]]"
"""Every call starts one more epoch over the data."""

MARK_S = 0.2
"""Seconds between two notes of how far a live run has come."""

WARM = "warm"
"""Printed alone on a line between the two epochs: the harness stops sampling memory there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What every contender is asked to do.

    Attributes:
        files: paths, or URIs of Arrow's S3 filesystem.
        batch: rows of a batch.
        empty: without the transform.
        config: settings of the contender.
        function: of `user_code.FUNCTIONS`, to run instead of the usual transform; options: its own.
    """

    files: list[str]
    batch: int
    empty: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)
    function: str = "transform"
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def transform(self) -> Callable[[Any], dict[str, Any]]:
        """The function to apply to a dict of NumPy columns."""
        if self.empty:
            return transforms.identity
        function = user_code.FUNCTIONS[self.function]
        return functools.partial(function, **self.options) if self.options else function


def main(build: Callable[[Job], Epoch], *, start: Callable[[Job], None] = lambda job: None) -> None:
    """Run the contender that `build` makes, as the command line says, and print the result.

    `start` brings up what a user has running anyway (a Ray cluster) and is not timed; `build` counts towards
    the time to the first batch.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, help="folder of Parquet files")
    parser.add_argument("--batch", type=int, default=8192)
    parser.add_argument("--config", type=json.loads, default={}, help="settings of the contender, as JSON")
    parser.add_argument("--empty", action="store_true", help="without the transform")
    parser.add_argument("--check", action="store_true", help="add sums of every column over the epoch")
    parser.add_argument(
        "--live", type=json.loads, help="a job of `live`, as JSON: files, function, seconds, step_s"
    )
    options = parser.parse_args()
    # Arrow's arrays cannot be written to, and torch says so for each; nobody here writes to a batch.
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    if options.live is not None:
        _live(options, build, start)
        return
    if options.data is None:
        parser.error("--data or --live is needed")
    files = sorted(str(path.resolve()) for path in options.data.glob("*.parquet"))
    if not files:
        parser.error(f"no *.parquet in {options.data}")
    job = Job(files=files, batch=options.batch, empty=options.empty, config=options.config)
    start(job)
    began = time.perf_counter()
    epoch = build(job)
    cold = consume(epoch, began)
    print(WARM, flush=True)
    result = consume(epoch, time.perf_counter())
    result["epoch_start_s"] = result.pop("first_batch_s")
    result["first_batch_s"] = cold["first_batch_s"]
    if options.check:
        result["checksum"] = checksum(epoch())
    print(json.dumps(result), flush=True)


def _live(options: argparse.Namespace, build: Callable[[Job], Epoch], start: Callable[[Job], None]) -> None:
    live = options.live
    job = Job(
        files=live["files"],
        batch=options.batch,
        config=options.config,
        function=live.get("function", "transform"),
        options=live.get("options", {}),
    )
    start(job)
    if live.get("wait"):  # for whoever sets a limit to what comes from here on
        print("ready", flush=True)
        sys.stdin.readline()
    began = time.perf_counter()
    epoch = build(job)
    result = keep_on(epoch, began, seconds=float(live["seconds"]), step_s=float(live.get("step_s", 0.0)))
    report = getattr(epoch, "report", None)
    if report is not None:
        result.update(report())
    print(json.dumps(result), flush=True)


def keep_on(epoch: Epoch, began: float, *, seconds: float, step_s: float = 0.0) -> dict[str, Any]:
    """Take epochs until `seconds` since `began` are over; a trainer that waits `step_s` for its GPU at every batch.

    Returns:
        ``rows`` and ``seconds`` of the whole run, ``first_batch_s``, ``epoch_rows`` of the epochs read to
        their end, and ``marks``: pairs of seconds since `began` and
        rows so far, about five a second.
    """
    rows = batches = 0
    epochs: list[int] = []
    first: float | None = None
    now = 0.0
    marks: list[tuple[float, int]] = [(0.0, 0)]
    touched = 0.0
    cpu = time.process_time()
    while now < seconds:
        before = rows
        for batch in epoch():
            touched += touch(batch)
            rows += len(next(iter(batch.values())))
            batches += 1
            if step_s:
                time.sleep(step_s)
            now = time.perf_counter() - began
            first = now if first is None else first
            if now - marks[-1][0] >= MARK_S:
                marks.append((now, rows))
            if now >= seconds:
                break
        else:
            epochs.append(rows - before)
        if rows == before:
            raise RuntimeError("the loader delivered no batch")
    marks.append((now, rows))
    return {
        "rows": rows,
        "batches": batches,
        "epoch_rows": epochs,
        "seconds": now,
        "first_batch_s": first,
        "own_cpu_s": time.process_time() - cpu,
        "marks": marks,
        "touched": touched,
    }


def consume(epoch: Epoch, began: float) -> dict[str, Any]:
    """Take one epoch, touching every column of every batch; times in seconds since `began`."""
    rows = batches = 0
    touched = 0.0
    first = None
    cpu = time.process_time()
    for batch in epoch():
        touched += touch(batch)
        rows += len(next(iter(batch.values())))
        batches += 1
        if first is None:
            first = time.perf_counter() - began
    seconds = time.perf_counter() - began
    if first is None:
        raise RuntimeError("the loader delivered no batch")
    return {
        "rows": rows,
        "batches": batches,
        "seconds": seconds,
        "first_batch_s": first,
        "own_cpu_s": time.process_time() - cpu,
        "touched": touched,
    }


def touch(batch: Batch) -> float:
    """Read one element of every column: the batch is really there."""
    return sum(float(column[0]) for column in batch.values())


def checksum(batches: Iterable[Batch]) -> dict[str, float]:
    """Sums over an epoch that do not depend on the order of rows: of each column, and of C1·C2 row by row.

    The last one differs when the columns of a row have come apart. Integers wrap at 64 bits.
    """
    sums: dict[str, Any] = {}
    for batch in batches:
        columns = {name: np.asarray(column) for name, column in batch.items()}
        columns["C1*C2"] = columns["C1"] * columns["C2"]
        for name, values in columns.items():
            exact = values.dtype.kind == "i"
            part = values.sum(dtype=np.int64 if exact else np.float64)
            sums[name] = int(sums.get(name, 0)) + int(part) if exact else sums.get(name, 0.0) + float(part)
    return {name: value % 2**64 if isinstance(value, int) else value for name, value in sums.items()}
