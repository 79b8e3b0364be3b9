"""Our own pipeline as a contender. Settings: ``executor``; ``shuffle`` (row groups of its window, 0 for none)."""

from __future__ import annotations

from benchmarks.contender import Epoch, Job, main
from benchmarks.rivals.common import start_ray
from intune.pipelines import Pipeline


def build(job: Job) -> Epoch:
    """One loader for all epochs, nothing tuned."""
    pipeline = Pipeline.from_parquet(job.files)
    if job.config.get("shuffle"):
        pipeline = pipeline.shuffle(row_groups=job.config["shuffle"], seed=0)
    pipeline = pipeline.batch(job.batch).map(job.transform, rowwise=True).to("cpu")
    loader = pipeline.loader(executor=job.config["executor"])
    return lambda: loader


def start(job: Job) -> None:
    """A cluster that is running already, if that is what the loader will use."""
    if job.config["executor"] == "ray":
        start_ray(job)


if __name__ == "__main__":
    main(build, start=start)
