"""PyTorch's DataLoader over an IterableDataset of row groups, workers kept between epochs.

Settings: ``workers``; ``prefetch`` (items ahead of each worker); ``arrow_threads`` (Arrow's own pool decodes
the columns, for few workers); ``layout`` "columns" (one tensor a column, as everywhere else) or "packed" (the
columns of a type in one block of shared memory, cut again by the consumer: three tensors cross the process
border, not forty); ``unit`` "batch" (batches made in the worker) or "group" (a worker sends a row group, the
consumer cuts it).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from benchmarks.contender import Batch, Epoch, Job, main
from benchmarks.rivals.common import cut, read, remote, row_groups
from benchmarks.transform import Array

Packed: TypeAlias = "tuple[list[tuple[str, ...]], list[torch.Tensor]]"


class RowGroups(IterableDataset[Any]):
    """Every worker takes its share of the row groups; each item is one batch or one row group."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.row_groups = row_groups(job.files)

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        config = self.job.config
        for row_group in self.row_groups[first::step]:
            columns = self.job.transform(read(row_group, threads=config["arrow_threads"]))
            unit = len(next(iter(columns.values()))) if config["unit"] == "group" else self.job.batch
            yield from packed(columns, unit) if config["layout"] == "packed" else cut(columns, unit)


def packed(columns: Mapping[str, Array], unit: int) -> Iterator[Packed]:
    """The columns of each type as one tensor of shape (columns, rows), in shared memory from the start."""
    kinds: dict[torch.dtype, list[str]] = {}
    tensors = {name: torch.from_numpy(values) for name, values in columns.items()}
    for name, tensor in tensors.items():
        kinds.setdefault(tensor.dtype, []).append(name)
    rows = len(next(iter(columns.values())))
    for begin in range(0, rows, unit):
        blocks = []
        for dtype, names in kinds.items():
            parts = [tensors[name][begin : begin + unit] for name in names]
            shape = (len(parts), len(parts[0]))
            # In shared memory from the start, as torch's own default_collate does in a worker.
            storage = torch.UntypedStorage._new_shared(  # type: ignore[no-untyped-call]
                shape[0] * shape[1] * dtype.itemsize
            )
            block = torch.empty(0, dtype=dtype).set_(storage, 0, shape, (shape[1], 1))
            blocks.append(torch.stack(parts, out=block))
        yield [tuple(names) for names in kinds.values()], blocks


def unpacked(item: Packed) -> dict[str, torch.Tensor]:
    """Every column as a view of its block."""
    names, blocks = item
    return {
        name: row
        for kind, block in zip(names, blocks, strict=True)
        for name, row in zip(kind, block, strict=True)
    }


def build(job: Job) -> Epoch:
    """One DataLoader for all epochs."""
    config = job.config
    workers = config["workers"]
    loader = DataLoader(
        RowGroups(job),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=config["prefetch"] if workers else None,
        persistent_workers=workers > 0,
        worker_init_fn=_one_thread,
        # Arrow's S3 client does not outlive a fork.
        multiprocessing_context="spawn" if workers and remote(job.files[0]) else None,
    )

    def epoch() -> Iterator[Batch]:
        for item in loader:
            batch = unpacked(item) if config["layout"] == "packed" else item
            if config["unit"] == "batch":
                yield batch
            else:
                rows = len(next(iter(batch.values())))
                for begin in range(0, rows, job.batch):
                    yield {name: column[begin : begin + job.batch] for name, column in batch.items()}

    return epoch


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


if __name__ == "__main__":
    main(build)
