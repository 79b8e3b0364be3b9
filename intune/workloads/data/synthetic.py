"""Writes a Criteo-like data set whose labels come from a planted teacher, so that the best AUC is known.

Layout: `OUT/train/part-00000.parquet` …, `OUT/test/part-00000.parquet` … (held out: other rows, same
teacher) and `OUT/dataset.json`. Columns: `label` (float32, 0 or 1), `I1` … `I13` (float32 counts, some
negative), `C1` … `C26` (int64 in [0, 2**32); 8-digit hex strings with `strings`; lists with `multi_hot`).
Missing counts and ids are nulls, a missing list is empty.

Row i of a split depends on the seed, the cardinalities, `missing` and `multi_hot`, and not on the number of
rows, files, row groups or threads. (NumPy picks its vector instructions by the processor: between two kinds of
processors an exponential may differ in its last bit and, once in millions of rows, a value.)
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from intune.pipelines.budget import Usable
from intune.pipelines.errors import ConfigError
from intune.pipelines.whole import at_least
from intune.workloads.data.auc import StreamingAUC
from intune.workloads.data.columns import (
    CATEGORICAL,
    KAGGLE_ROWS,
    describe_columns,
    scaled_cardinalities,
    schema,
)
from intune.workloads.data.features import (
    BLOCK_ROWS,
    CategoricalColumn,
    Features,
    FeatureSpec,
    Stream,
    draw_features,
    generator,
)
from intune.workloads.data.ids import format_hex, mix_ids
from intune.workloads.data.teacher import Teacher, plant_teacher
from intune.workloads.data.writer import ROW_GROUP_ROWS, PartWriter, Progress, new_dataset, write_description

DEFAULT_FILE_ROW_GROUPS = 4
MOST_THREADS = 4  # beyond, Python's lock between NumPy calls leaves little to gain

T = TypeVar("T")

SPLITS = {"train": Stream.TRAIN, "test": Stream.TEST}


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticConfig:
    """What to generate.

    Attributes:
        rows: rows to train on.
        test_rows: rows held out; a tenth of `rows` if None.
        seed: decides everything random.
        scale: factor on the cardinalities of Criteo's Kaggle data; `rows` / 45,840,617 if None. Features of up
            to 1,000 ids keep all of them.
        missing: factor on Criteo's shares of missing values; 0: nothing is missing, 1: as in Criteo.
        multi_hot: lists of ids, of uneven lengths with MLPerf's means, some empty.
        strings: ids as 8-digit hex text instead of int64.
        files: files to cut the training rows into; if None, four row groups each. The test rows are cut into
            files of about the same size.
        row_group_rows: rows per row group.
    """

    rows: int
    test_rows: int | None = None
    seed: int = 0
    scale: float | None = None
    missing: float = 1.0
    multi_hot: bool = False
    strings: bool = False
    files: int | None = None
    row_group_rows: int = ROW_GROUP_ROWS

    def __post_init__(self) -> None:
        for name in ("rows", "test_rows", "files", "row_group_rows"):
            value = getattr(self, name)
            if value is not None:
                at_least(name, value, 1)
        at_least("seed", self.seed, 0)
        if self.scale is not None and not 0 < self.scale <= 100:
            raise ConfigError(
                f"`scale` must lie in (0, 100], but {self.scale} was given; 1 gives Criteo's cardinalities"
            )
        if not 0 <= self.missing <= 1:
            raise ConfigError(
                f"`missing` must lie in [0, 1], but {self.missing} was given; 1 gives Criteo's shares"
            )
        if self.files is not None and self.files > self.rows:
            raise ConfigError(
                f"`files` must not exceed `rows`, but {self.files} files were asked for {self.rows} rows"
            )

    @property
    def feature_spec(self) -> FeatureSpec:
        """What the features look like."""
        scale = self.rows / KAGGLE_ROWS if self.scale is None else self.scale
        return FeatureSpec(
            cardinalities=scaled_cardinalities(scale), missing=self.missing, multi_hot=self.multi_hot
        )

    def bounds(self, split: str) -> list[int]:
        """First rows of the split's files, and its number of rows: file k has rows [b[k], b[k + 1])."""
        train_files = self.files or math.ceil(self.rows / (DEFAULT_FILE_ROW_GROUPS * self.row_group_rows))
        if split == "train":
            return _cut(self.rows, train_files, self.row_group_rows)
        rows = max(1, self.rows // 10) if self.test_rows is None else self.test_rows
        files = min(rows, max(1, round(rows * train_files / self.rows)))
        return _cut(rows, files, self.row_group_rows)


def _cut(rows: int, files: int, row_group_rows: int) -> list[int]:
    groups = math.ceil(rows / row_group_rows)
    if files <= groups:
        # At the ends of row groups, so that all row groups but the last are full.
        return [min(rows, file * groups // files * row_group_rows) for file in range(files)] + [rows]
    return [file * rows // files for file in range(files + 1)]


@dataclass(frozen=True, slots=True)
class SyntheticRows:
    """Source of a synthetic data set's rows, block by block; safe to use from several threads."""

    config: SyntheticConfig
    spec: FeatureSpec
    teacher: Teacher
    keys: npt.NDArray[np.uint32]

    @classmethod
    def of(cls, config: SyntheticConfig) -> SyntheticRows:
        """The rows that `config` describes."""
        spec = config.feature_spec
        keys = generator(config.seed, Stream.IDS).integers(0, 1 << 32, len(CATEGORICAL), dtype=np.uint32)
        return cls(config, spec, plant_teacher(config.seed, spec), keys)

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema of the rows."""
        return schema(strings=self.config.strings, multi_hot=self.config.multi_hot)

    def batches(self, split: str, start: int, stop: int) -> Iterator[tuple[pa.RecordBatch, Any, Any]]:
        """Rows [start, stop) of a split, at most `BLOCK_ROWS` at a time: columns, teacher's logits, labels."""
        for block in range(start // BLOCK_ROWS, math.ceil(stop / BLOCK_ROWS)):
            first = block * BLOCK_ROWS
            inside = slice(max(start - first, 0), min(stop - first, BLOCK_ROWS))
            rng = generator(self.config.seed, SPLITS[split], block)
            features = draw_features(rng, self.spec)
            logits = self.teacher.logits(features)
            labels = self.teacher.draw_labels(rng, logits)
            batch = self._to_arrow(features, labels).slice(inside.start, inside.stop - inside.start)
            yield batch, logits[inside], labels[inside]

    def _to_arrow(self, features: Features, labels: npt.NDArray[np.float32]) -> pa.RecordBatch:
        arrays = [pa.array(labels)]
        arrays += [pa.array(column.values, mask=column.missing) for column in features.dense]
        arrays += [
            self._ids(column, int(key)) for column, key in zip(features.categorical, self.keys, strict=True)
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def _ids(self, column: CategoricalColumn, key: int) -> pa.Array:
        ids = mix_ids(column.ranks, key)
        if self.config.strings:
            array = format_hex(ids, None if column.missing is None else ~column.missing)
        else:
            array = pa.array(ids.astype(np.int64), mask=column.missing)
        return array if column.offsets is None else pa.ListArray.from_arrays(pa.array(column.offsets), array)


class _Totals:
    """What the threads add up."""

    def __init__(self, rows: int, progress: Progress | None) -> None:
        self.rows = rows
        self.done = 0
        self.progress = progress
        self.lock = threading.Lock()
        self.stopped = threading.Event()
        self.auc = {split: StreamingAUC() for split in SPLITS}

    def next_of(self, parts: Iterator[T]) -> T | None:
        """The next of an iterator that the threads share; None at its end."""
        with self.lock:
            return next(parts, None)

    def advance(self, rows: int) -> None:
        """Count rows as written; `CancelledError` if the others have stopped."""
        if self.stopped.is_set():
            raise CancelledError
        with self.lock:
            self.done += rows
            if self.progress is not None:
                self.progress(self.done, self.done / self.rows)


def write_synthetic(
    config: SyntheticConfig,
    out: Path,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the data set to the folder `out`, which must be new or empty.

    Args:
        config: what to write.
        out: where.
        threads: files written at once; the CPUs this process may use, at most 4, if None. Memory grows
            with it, by about one row group each, and not with `rows`.
        progress: called after each block of rows.

    Returns:
        What has been written to `dataset.json` (see `read_description`).

    Raises:
        ConfigError: `out` is a file or is not empty, or `threads` is not positive.
        StorageError: `out` cannot be written, for instance as the disk is full; nothing is left behind.
    """
    if threads is not None:
        at_least("threads", threads, 1)
    bounds = {split: config.bounds(split) for split in SPLITS}
    files = sum(len(starts) - 1 for starts in bounds.values())
    totals = _Totals(sum(starts[-1] for starts in bounds.values()), progress)
    with new_dataset(out) as folder:
        source = SyntheticRows.of(config)
        parts = (
            (split, folder / split / f"part-{file:05d}.parquet", start, stop)
            for split, starts in bounds.items()
            for file, (start, stop) in enumerate(pairwise(starts))
        )

        def write_parts() -> None:
            try:
                while (part := totals.next_of(parts)) is not None:
                    _write_part(source, *part, totals)
            except BaseException:
                totals.stopped.set()
                raise

        workers = min(files, threads or min(MOST_THREADS, Usable.detect().cpus))
        pool = ThreadPoolExecutor(workers)
        try:
            for future in as_completed([pool.submit(write_parts) for _ in range(workers)]):
                future.result()
        finally:
            # After Ctrl-C the threads stop at their next block.
            totals.stopped.set()
            pool.shutdown(wait=True)
        description = _describe(config, source, totals)
        write_description(folder, description)
    return description


def _write_part(
    source: SyntheticRows, split: str, path: Path, start: int, stop: int, totals: _Totals
) -> None:
    config = source.config
    auc = StreamingAUC()
    with PartWriter(path, source.schema, row_group_rows=config.row_group_rows) as writer:
        for batch, logits, labels in source.batches(split, start, stop):
            writer.write(batch)
            auc.update(logits, labels)
            totals.advance(batch.num_rows)
        writer.close(
            {
                "kind": "synthetic",
                "seed": config.seed,
                "split": split,
                "first_row": start,
                "rows": stop - start,
                "teacher_auc": _finite(auc.value),
                "teacher_expected_auc": source.teacher.expected_auc,
            }
        )
    with totals.lock:
        totals.auc[split].merge(auc)


def _describe(config: SyntheticConfig, source: SyntheticRows, totals: _Totals) -> dict[str, Any]:
    bounds = {split: config.bounds(split) for split in SPLITS}
    return {
        "kind": "synthetic",
        "rows": {split: bounds[split][-1] for split in SPLITS},
        "files": {split: len(bounds[split]) - 1 for split in SPLITS},
        "columns": describe_columns(multi_hot=config.multi_hot),
        "cardinalities": dict(zip(CATEGORICAL, source.spec.cardinalities, strict=True)),
        "teacher": {
            "auc": {split: _finite(totals.auc[split].value) for split in SPLITS},
            "expected_auc": source.teacher.expected_auc,
        },
        "positive_share": {split: totals.auc[split].positive_share for split in SPLITS},
        "options": asdict(config),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
