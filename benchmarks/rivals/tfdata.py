"""tf.data with AUTOTUNE. TensorFlow reads no Parquet itself, so Arrow does, inside numpy_function.

Settings: ``ops`` "native" (the transform as TensorFlow operations in a parallel map of its own),
"numpy_function" (in NumPy, together with the read) or "two" (in NumPy, in a parallel map of its own); ``order``
"map" (a parallel map over row groups) or "interleave" (a parallel interleave over files, each a sequential map
over its row groups); ``layout`` "columns" (forty tensors, as everywhere else) or "packed" (the columns of a type
stacked to one tensor, cut again by the consumer: fewer, larger operations); ``parallel`` (null: AUTOTUNE).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import tensorflow as tf

from benchmarks.contender import Batch, Epoch, Job, main
from benchmarks.rivals.common import read, row_groups
from benchmarks.transform import MULTIPLIER, TABLE_ROWS, Array


def build(job: Job) -> Epoch:
    """One dataset; each epoch iterates it."""
    loader = Loader(job)

    def epoch() -> Iterator[Batch]:
        return (loader.unpack(item) for item in loader.dataset.as_numpy_iterator())

    return epoch


class Loader:
    """The dataset and the names of what it yields."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.row_groups = row_groups(job.files)
        self.packed = job.config["layout"] == "packed"
        self.apart = job.config["ops"] == "two"
        if self.apart and self.packed:
            raise ValueError("`layout` must be columns where `ops` is two: the function takes columns")
        self.native = job.config["ops"] == "native" and not job.empty
        first = read(self.row_groups[0])
        self.names = list(first)
        self.kinds: dict[str, list[str]] = {}
        for name in self.names:
            kind = name[0] if name[0] in "IC" else "label"
            self.kinds.setdefault(kind, []).append(name)
        self.types = [first[names[0]].dtype for names in self._groups()]
        self.dataset = self._dataset()

    def unpack(self, item: tuple[Array, ...]) -> dict[str, Array]:
        """Column name -> array."""
        if not self.packed:
            return dict(zip(self.names, item, strict=True))
        return {
            name: column
            for names, block in zip(self._groups(), item, strict=True)
            for name, column in zip(names, block, strict=True)
        }

    def _groups(self) -> list[list[str]]:
        return list(self.kinds.values()) if self.packed else [[name] for name in self.names]

    def _dataset(self) -> Any:
        parallel = self.job.config["parallel"] or tf.data.AUTOTUNE
        options = tf.data.Options()
        options.deterministic = False
        indices = np.arange(len(self.row_groups))
        if self.job.config["order"] == "map":
            loaded = tf.data.Dataset.from_tensor_slices(indices).map(self._load, num_parallel_calls=parallel)
        else:
            files = [path for path, _ in self.row_groups]
            starts = tf.constant([files.index(path) for path in self.job.files], tf.int64)
            counts = tf.constant([files.count(path) for path in self.job.files], tf.int64)
            loaded = tf.data.Dataset.from_tensor_slices((starts, counts)).interleave(
                lambda start, count: tf.data.Dataset.range(start, start + count).map(self._load),
                num_parallel_calls=parallel,
            )
        if self.native:
            loaded = loaded.map(self._transform, num_parallel_calls=parallel)
        if self.apart:
            loaded = loaded.map(self._call, num_parallel_calls=parallel)
        return loaded.unbatch().prefetch(tf.data.AUTOTUNE).with_options(options)

    def _load(self, index: Any) -> Any:
        columns = tf.numpy_function(self._read, [index], [tf.as_dtype(dtype) for dtype in self.types])
        for column, names in zip(columns, self._groups(), strict=True):
            column.set_shape([None, len(names), None] if self.packed else [None, None])
        return tuple(columns)

    def _read(self, index: int) -> list[Array]:
        """A row group of n batches: every column as (n, batch), every block as (n, columns, batch)."""
        columns = read(self.row_groups[index])
        if not self.native and not self.apart:
            columns = self.job.transform(columns)
        whole = min(self.job.batch, len(columns[self.names[0]]))
        if not self.packed:
            return [columns[name].reshape(-1, whole) for name in self.names]
        return [
            np.stack([columns[name].reshape(-1, whole) for name in names], axis=1) for names in self._groups()
        ]

    def _call(self, *columns: Any) -> Any:
        """The user's function on a row group."""
        made = tf.numpy_function(self._called, columns, [tf.as_dtype(dtype) for dtype in self.types])
        for column in made:
            column.set_shape([None, None])
        return tuple(made)

    def _called(self, *columns: Array) -> list[Array]:
        shape = columns[0].shape
        flat = {name: column.reshape(-1) for name, column in zip(self.names, columns, strict=True)}
        done = self.job.transform(flat)
        return [done[name].reshape(shape) for name in self.names]

    def _transform(self, *columns: Any) -> Any:
        names = list(self.kinds) if self.packed else self.names
        return tuple(transformed(name, column) for name, column in zip(names, columns, strict=True))


def transformed(name: str, column: Any) -> Any:
    """`benchmarks.transform.transform_column` in TensorFlow's operations."""
    if name.startswith("I"):
        return tf.math.log1p(column)
    if name.startswith("C"):
        mixed = tf.bitcast(column, tf.uint64) * tf.constant(MULTIPLIER, tf.uint64)
        return tf.bitcast(tf.math.floormod(mixed, tf.constant(TABLE_ROWS, tf.uint64)), tf.int64)
    return column


if __name__ == "__main__":
    main(build)
