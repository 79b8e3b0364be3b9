"""Grain: a MapDataset of row groups, read by its threads or worker processes, flat-mapped into batches.

Grain's own ParquetIterDataset yields single rows, a Python dict each, so elements here are row groups, as
Grain's guide advises for work that frees the GIL. Settings: ``threads`` and ``buffer`` (ReadOptions),
``processes`` (mp_prefetch, 0 for none).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
import torch

from benchmarks.contender import Batch, Epoch, Job, main
from benchmarks.rivals.common import cut, read, row_groups
from benchmarks.transform import Array


class Batches(grain.experimental.FlatMapTransform):  # type: ignore[misc]
    """A row group into its batches; views, so it costs next to nothing in the consumer's thread."""

    max_fan_out = 1_000

    def __init__(self, batch: int) -> None:
        self._batch = batch

    def flat_map(self, element: dict[str, Array]) -> list[dict[str, torch.Tensor]]:
        return list(cut(element, self._batch))


def build(job: Job) -> Epoch:
    """One dataset, iterated anew every epoch."""
    groups = row_groups(job.files)
    options = grain.ReadOptions(num_threads=job.config["threads"], prefetch_buffer_size=job.config["buffer"])

    def load(index: int) -> dict[str, Array]:
        return job.transform(read(groups[index]))

    dataset = grain.MapDataset.source(np.arange(len(groups))).map(load).to_iter_dataset(options)
    if job.config["processes"]:
        workers = grain.MultiprocessingOptions(num_workers=job.config["processes"], per_worker_buffer_size=2)
        dataset = dataset.mp_prefetch(workers)
    batches: Any = grain.experimental.FlatMapIterDataset(dataset, Batches(job.batch))

    def epoch() -> Iterator[Batch]:
        return iter(batches)

    return epoch


if __name__ == "__main__":
    from absl import app

    # Grain's worker processes need absl's flags parsed; ours are argparse's, so absl sees none.
    app.run(lambda _: main(build), argv=["grain"])
