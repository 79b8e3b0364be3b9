"""SPDL's thread stages: a source of row groups, pipes with a concurrency of their own, a buffered sink.

Settings: ``load`` and ``transform`` (concurrency of two stages), or ``fused`` (of one stage that does both);
``hand`` "batch" (the pipeline hands over single batches, by a generator) or "group" (lists of the batches of a
row group, one event of SPDL's loop for eight batches); ``sink`` (its buffer, counted in what is handed over).
The threads' number is the sum of the concurrencies, as SPDL's guide advises.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from spdl.pipeline import Pipeline, PipelineBuilder

from benchmarks.contender import Batch, Epoch, Job, main
from benchmarks.rivals.common import batches_of, cut, read, row_groups


def build(job: Job) -> Epoch:
    """One pipeline an epoch, built anew as SPDL's pipelines of finite sources are."""
    groups = row_groups(job.files)
    by_batch = job.config["hand"] == "batch"

    def epoch() -> Iterator[Batch]:
        pipeline = _pipeline(job, groups, by_batch)
        with pipeline.auto_stop():
            for item in pipeline.get_iterator(timeout=300):
                if by_batch:
                    yield item
                else:
                    yield from item

    return epoch


def _pipeline(job: Job, groups: list[tuple[str, int]], by_batch: bool) -> Pipeline[Any]:
    def fused(row_group: tuple[str, int]) -> list[Batch]:
        return list(batches_of(row_group, job))

    def fused_each(row_group: tuple[str, int]) -> Iterator[Batch]:
        yield from batches_of(row_group, job)

    def transformed(columns: Any) -> list[Batch]:
        return list(cut(job.transform(columns), job.batch))

    def transformed_each(columns: Any) -> Iterator[Batch]:
        yield from cut(job.transform(columns), job.batch)

    builder = PipelineBuilder[Any, Any]().add_source(groups)
    if "fused" in job.config:
        threads = job.config["fused"]
        builder = builder.pipe(fused_each if by_batch else fused, concurrency=threads)
    else:
        threads = job.config["load"] + job.config["transform"]
        builder = builder.pipe(read, concurrency=job.config["load"])
        builder = builder.pipe(
            transformed_each if by_batch else transformed, concurrency=job.config["transform"]
        )
    return builder.add_sink(job.config["sink"]).build(num_threads=threads)


if __name__ == "__main__":
    main(build)
