"""A wrapped DataLoader beside the DataLoader: ``python -m benchmarks.wrapped --json FILE``.

Four map-style datasets, each the pure form of what real ones do: nothing at all (so that the loaders' own cost is
left), waiting as storage does, computing in Python under its lock, and computing in NumPy outside of it. The
DataLoader takes part with 0 workers and with the best of a sweep, with workers that persist, so that none of its
epochs but the first pays for their start. All in one process, interleaved; the last of several epochs is timed: our
processes begin while the trainer makes batches already.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, Dataset

from benchmarks import environment, report, stats
from intune.adapters import TunableDataLoader
from intune.pipelines import Allocation

OURS, NONE = "wrapped", "DataLoader, 0 workers"


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to run.

    Attributes:
        json: Where to write the results.
        repeats: Timed epochs of every contender.
        epochs: Of which the last is timed.
        workers: The DataLoader's sweep.
        seed: Of the order in which contenders run.
    """

    json: Path | None = None
    repeats: int = 3
    epochs: int = 6
    workers: tuple[int, ...] = (1, 2, 4, 8)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.repeats < 1 or self.epochs < 1 or min(self.workers, default=1) < 1:
            raise SystemExit("`--repeats`, `--epochs` and each of `--workers` must be above 0")


class Nothing(Dataset[torch.Tensor]):
    """Samples that are there already."""

    def __init__(self, size: int) -> None:
        self.samples = torch.zeros(size, 16)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> torch.Tensor:
        self.work()
        return self.samples[index]

    def work(self) -> None:
        """What a sample costs."""


class Waits(Nothing):
    """Storage: 5 ms a sample."""

    def work(self) -> None:
        time.sleep(0.005)


class Holds(Nothing):
    """User code in Python: about a millisecond under its lock."""

    def work(self) -> None:
        total = 0
        for step in range(20_000):
            total += step * step


class LetsGo(Nothing):
    """User code in NumPy: about a millisecond outside the lock."""

    def work(self) -> None:
        np.sort(np.arange(120_000, dtype=np.float32)[::-1])


@dataclass(frozen=True, kw_only=True)
class Case:
    """A dataset, how it is batched, and the slots that ours gets."""

    dataset: Callable[[int], Dataset[torch.Tensor]]
    batches: int
    batch_size: int
    allocation: Allocation


CPUS = len(os.sched_getaffinity(0))

CASES: Mapping[str, Case] = {
    "nothing": Case(dataset=Nothing, batches=2000, batch_size=16, allocation=Allocation.shared(1)),
    "waits": Case(
        dataset=Waits, batches=64, batch_size=8, allocation=Allocation.per_stage({"fetch": 8, "collate": 1})
    ),
    "holds the lock": Case(dataset=Holds, batches=48, batch_size=16, allocation=Allocation.shared(CPUS)),
    "lets go of it": Case(dataset=LetsGo, batches=48, batch_size=16, allocation=Allocation.shared(CPUS)),
}


def seconds(batches: Iterable[Any]) -> float:
    """Of one epoch."""
    began = time.perf_counter()
    for _ in batches:
        pass
    return time.perf_counter() - began


def run(case: Case, contender: str, epochs: int) -> dict[str, Any]:
    """The last epoch of a contender, in seconds a batch, and what it says of itself."""
    dataset = case.dataset(case.batches * case.batch_size)
    if contender != OURS:
        workers = int(contender.split(", ")[1].split()[0])
        loader: DataLoader[Any] = DataLoader(
            dataset, case.batch_size, num_workers=workers, persistent_workers=workers > 0
        )
        times = [seconds(loader) for _ in range(epochs)]
        return {"first_s": times[0] / case.batches, "seconds": times[-1] / case.batches}
    wrapped = TunableDataLoader.wrap(DataLoader(dataset, case.batch_size), allocation=case.allocation)
    with closing(wrapped):
        times = [seconds(wrapped) for _ in range(epochs)]
        choice = wrapped.workshop.choice
    assert choice is not None
    return {
        "first_s": times[0] / case.batches,
        "seconds": times[-1] / case.batches,
        "where": choice.kind,
        "why": choice.reason,
    }


def measure(options: Options, console: Console) -> dict[str, Any]:
    """Every case, contenders interleaved."""
    contenders = [OURS, NONE, *(f"DataLoader, {count} workers" for count in options.workers)]
    found: dict[str, Any] = {}
    for name, case in CASES.items():
        runs: dict[str, list[dict[str, Any]]] = {contender: [] for contender in contenders}
        for order in stats.rounds_of(contenders, options.repeats, options.seed):
            for contender in order:
                runs[contender].append(run(case, contender, options.epochs))
                console.log(name, contender, f"{1e3 * runs[contender][-1]['seconds']:.3g} ms a batch")
        found[name] = runs
    return found


def show(found: Mapping[str, Any], console: Console) -> None:
    table = Table(title="Time of a batch, the last epoch; ours over the DataLoader's, paired by round")
    for heading in (
        "dataset",
        "wrapped",
        NONE,
        "DataLoader, best of the sweep",
        "0 workers / wrapped",
        "best / wrapped",
    ):
        table.add_column(heading, justify="left" if heading == "dataset" else "right")
    for name, runs in found.items():
        times = {contender: [one["seconds"] for one in several] for contender, several in runs.items()}
        middle = {contender: stats.estimate(several).median for contender, several in times.items()}
        best = min((contender for contender in times if contender != OURS), key=middle.__getitem__)
        ratios = [stats.ratio(times[rival], times[OURS]) for rival in (NONE, best)]
        table.add_row(
            f"{name} ({runs[OURS][-1]['where']})",
            *(f"{1e3 * middle[contender]:.3g} ms" for contender in (OURS, NONE)),
            f"{1e3 * middle[best]:.3g} ms ({best.removeprefix('DataLoader, ')})",
            *(f"{one.median:.2f} ({one.low:.2f} to {one.high:.2f})" for one in ratios),
        )
    console.print(table)


def main() -> None:
    options = tyro.cli(Options, prog="python -m benchmarks.wrapped", description=__doc__)
    console = Console()
    found = measure(options, console)
    show(found, console)
    result = {"environment": environment.describe(), "repeats": options.repeats, "cases": found}
    report.write(options.json, result)


if __name__ == "__main__":
    main()
