"""The three steps that hand-written loaders share: read a row group, cut it into batches, make tensors."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.contender import Job
from benchmarks.transform import Array


@functools.cache
def footer(path: str) -> Any:
    """The file's footer, parsed once a process."""
    return pq.read_metadata(path)


def row_groups(files: Sequence[str]) -> list[tuple[str, int]]:
    """(file, index) of every row group."""
    return [(path, group) for path in files for group in range(footer(path).num_row_groups)]


def table(path: str, groups: Sequence[int], *, threads: bool = False) -> pa.Table:
    """Row groups as Arrow decodes them; `threads`: columns in parallel, on Arrow's own pool."""
    with pq.ParquetFile(path, metadata=footer(path)) as file:
        return file.read_row_groups(list(groups), use_threads=threads)


def read(row_group: tuple[str, int], *, threads: bool = False) -> dict[str, Array]:
    """One row group as NumPy columns."""
    path, index = row_group
    return arrays(table(path, [index], threads=threads))


def arrays(rows: pa.Table) -> dict[str, Array]:
    """NumPy columns, without a copy where a column is one chunk."""
    return {name: rows.column(name).to_numpy() for name in rows.column_names}


def cut(columns: Mapping[str, Array], batch: int) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of at most `batch` rows, as tensors that share the columns' memory."""
    tensors = {name: torch.from_numpy(values) for name, values in columns.items()}
    rows = len(next(iter(columns.values())))
    for begin in range(0, rows, batch):
        yield {name: tensor[begin : begin + batch] for name, tensor in tensors.items()}


def batches_of(row_group: tuple[str, int], job: Job) -> list[dict[str, torch.Tensor]]:
    """Read, transform and cut one row group: the whole work in one call."""
    return list(cut(job.transform(read(row_group)), job.batch))


def start_ray(job: Job) -> None:
    """A quiet Ray of this machine's own, as a user has it running; every `job` finds the same."""
    import logging
    import os

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
