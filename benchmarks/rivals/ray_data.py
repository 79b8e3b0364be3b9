"""Ray Data: `read_parquet`, `map_batches`, `iter_torch_batches`, on a local Ray that is running already.

Settings: ``where`` ("tasks": the transform runs in map_batches, fused with the read; "collate": in
iter_torch_batches' collate function, an `ArrowBatchCollateFn` as Ray recommends for speed); ``rows`` (batch
size of map_batches; null: a whole block); ``prefetch`` (batches of iter_torch_batches); ``blocks``
(override_num_blocks; null: Ray's choice).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.contender import Batch, Epoch, Job, main
from benchmarks.rivals.common import arrays, located, remote, start_ray


def start(job: Job) -> None:
    """Ray as a user has it running, and Ray Data imported: no loader's imports are timed."""
    start_ray(job)
    import ray.data.collate_fn  # noqa: F401


def build(job: Job) -> Epoch:
    """One lazy dataset; each epoch executes it."""
    import ray
    from ray.data.collate_fn import ArrowBatchCollateFn

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    config = job.config
    transform = job.transform if config["where"] == "collate" else None

    class Collate(ArrowBatchCollateFn):
        def __call__(self, batch: Any) -> Any:
            columns = arrays(batch)
            done = transform(columns) if transform else columns
            return {name: torch.from_numpy(values) for name, values in done.items()}

    files, store = job.files, None
    if remote(files[0]):
        places = [located(path) for path in files]
        files, store = [path for _, path in places], places[0][0]
    dataset = ray.data.read_parquet(files, filesystem=store, override_num_blocks=config["blocks"])
    if config["where"] == "tasks":
        dataset = dataset.map_batches(
            job.transform, batch_size=config["rows"], batch_format="numpy", zero_copy_batch=True
        )

    def epoch() -> Iterator[Batch]:
        batches = dataset.iter_torch_batches(
            batch_size=job.batch, prefetch_batches=config["prefetch"], collate_fn=Collate()
        )
        return iter(batches)

    return epoch


if __name__ == "__main__":
    main(build, start=start)
