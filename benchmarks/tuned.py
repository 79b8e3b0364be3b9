"""Our own pipeline as `live` runs it: tuned by an agent, left alone, or led through a list of allocations.

Settings: ``agent`` (null: untuned), ``processes`` (the function in processes of its own), ``rowwise``, ``allocation``
(slots by stage, or ``{"shared": n}``), ``memory`` (bytes of blocks), ``sweep`` (allocations to measure one after
another, ``each_s`` seconds each).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.contender import Batch, Epoch, Job, main
from benchmarks.rivals.common import located, remote
from intune import tune
from intune.decisions import Entry
from intune.pipelines import Allocation, Pipeline

SETTLING_S = 0.6
"""Of a sweep's allocation that are not counted: what the one before had made is still delivered."""


def build(job: Job) -> Epoch:
    """One loader for all epochs."""
    config = job.config
    pipeline = pipeline_of(job)
    options: dict[str, Any] = {"executor": "threads"}
    if config.get("allocation"):
        options["allocation"] = allocation_of(config["allocation"])
    if config.get("memory"):
        options["memory"] = config["memory"]
    loader = tune(pipeline, agent=config.get("agent"), knowledge=False, **options)
    if config.get("sweep"):
        return Swept(loader, config["sweep"], float(config["each_s"]))
    return Run(loader)


def pipeline_of(job: Job) -> Pipeline:
    """What a user would write for the job."""
    store = None
    files = job.files
    if remote(files[0]):
        places = [located(path) for path in files]
        files, store = [path for _, path in places], places[0][0]
    workers = "process" if job.config.get("processes") else "thread"
    read = Pipeline.from_parquet(files, filesystem=store).batch(job.batch)
    return read.map(job.transform, rowwise=job.config.get("rowwise", True), workers=workers).to("cpu")  # type: ignore[arg-type]


def allocation_of(slots: Mapping[str, int]) -> Allocation:
    return Allocation.shared(slots["shared"]) if "shared" in slots else Allocation.per_stage(slots)


class Run:
    """Epochs of a loader, and what its tuner did."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __call__(self) -> Iterator[Batch]:
        return iter(self.loader)

    def report(self) -> dict[str, Any]:
        """For the contender's result; ends the loader."""
        stats = self.loader.stats()
        tuner = self.loader.controller
        found = {
            "decisions": [decision(entry) for entry in self.loader.decisions],
            "allocation": stats.allocation.as_dict(),
            "slots": stats.allocation.total,
            "held_peak": stats.memory_peak,
            "wait_share": stats.wait_share,
            "rounds": 0 if tuner is None else tuner.rounds,
            "failure": repr(self.loader.failure),
        }
        self.loader.close()
        return found


def decision(entry: Entry) -> dict[str, Any]:
    """What is kept of a decision."""
    full = entry.as_dict()
    kept = (
        "time",
        "delivered",
        "waiting",
        "cpus_used",
        "memory_used",
        "interval",
        "allocation",
        "decided",
        "reason",
    )
    stages = [
        {key: stage[key] for key in ("name", "busy", "cpu", "starved", "blocked", "rate")}
        for stage in full["stages"]
    ]
    return {**{key: full[key] for key in kept}, "stages": stages}


class Swept:
    """Epochs in which one allocation after another is in force."""

    def __init__(self, loader: Any, allocations: Sequence[Mapping[str, int]], each_s: float) -> None:
        self.loader = loader
        self.left = list(allocations)
        self.each_s = each_s
        self.rates: list[tuple[Mapping[str, int], float]] = []
        self._now: Mapping[str, int] | None = None
        self._since = 0.0
        self._rows = 0

    def __call__(self) -> Iterator[Batch]:
        for batch in self.loader:
            self._count(len(next(iter(batch.values()))), time.perf_counter())
            yield batch

    def report(self) -> dict[str, Any]:
        """Rates by allocation, the best first."""
        self.loader.close()
        return {"sweep": sorted(self.rates, key=lambda pair: -pair[1])}

    def _count(self, rows: int, now: float) -> None:
        if self._now is None or now - self._since >= self.each_s:
            if self._now is not None:
                self.rates.append((self._now, self._rows / (now - self._since - 0.0)))
            self._now = self.left.pop(0) if self.left else self._now
            assert self._now is not None
            self.loader.loader.resize(allocation_of(self._now))
            self._since, self._rows = now + SETTLING_S, 0
        elif now >= self._since:
            self._rows += rows


if __name__ == "__main__":
    main(build)
