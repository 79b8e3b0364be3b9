"""The three steps that hand-written loaders share: read a row group, cut it into batches, make tensors."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import torch
from pyarrow import fs

from benchmarks.contender import Job
from benchmarks.transform import Array

IO_THREADS = 64
"""Of Arrow's own, for far storage: more than any contender keeps at work."""


@functools.cache
def footer(path: str) -> Any:
    """The file's footer, parsed once a process."""
    return fragment(path).metadata if remote(path) else pq.read_metadata(path)


def remote(path: str) -> bool:
    """Whether a path is a URI of far storage."""
    return path.startswith("s3://")


@functools.cache
def filesystem(uri: str) -> Any:
    """Arrow's filesystem of a URI; `uri` without the path, so that there is one a process."""
    # Arrow hands reads of far storage to a pool of 8 threads, which would be as far as any loader gets.
    pa.set_io_thread_count(max(pa.io_thread_count(), IO_THREADS))
    return fs.FileSystem.from_uri(uri)[0]


def located(uri: str) -> tuple[Any, str]:
    """Filesystem and path of a URI."""
    bare, _, query = uri.removeprefix("s3://").partition("?")
    user, _, path = bare.rpartition("@")
    bucket = path.partition("/")[0]
    return filesystem(f"s3://{user}@{bucket}?{query}"), path


@functools.cache
def fragment(uri: str) -> Any:
    """A file of far storage whose size and footer are known: a row group then takes one request."""
    store, path = located(uri)
    size = store.get_file_info(path).size
    found = ds.ParquetFileFormat().make_fragment(path, filesystem=store, file_size=size)
    found.ensure_complete_metadata()
    return found


def row_groups(files: Sequence[str]) -> list[tuple[str, int]]:
    """(file, index) of every row group; the footers of far files are read side by side."""
    if files and remote(files[0]):
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(footer, files))
    return [(path, group) for path in files for group in range(footer(path).num_row_groups)]


def table(path: str, groups: Sequence[int], *, threads: bool = False) -> pa.Table:
    """Row groups as Arrow decodes them; `threads`: columns in parallel, on Arrow's own pool."""
    if remote(path):
        part = fragment(path).subset(row_group_ids=list(groups))
        return part.to_table(use_threads=threads, batch_size=1 << 20)
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

    ray.init(
        address="local",  # not one that `ray start` left a note of, running or not
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
