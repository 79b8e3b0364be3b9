"""Converts Criteo's click logs (Kaggle's `train.txt`, the terabyte's `day_*`; plain, gzip or zstd) to Parquet.

The layout and the columns are those of `synthetic.py`, so that what reads one data set reads the other. Counts
are float32, as models take them: whole numbers above 2**24 lose their last digits.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa

from intune.pipelines.errors import ConfigError, CorruptError, NotFoundError, StorageError
from intune.pipelines.whole import at_least
from intune.workloads.data.bad_lines import BadLines
from intune.workloads.data.columns import LABEL, describe_columns, schema
from intune.workloads.data.tsv import LONGEST_LINE, LineTooLongError, Readable, parse_block, read_blocks
from intune.workloads.data.writer import ROW_GROUP_ROWS, PartWriter, Progress, new_dataset, write_description

SPLITS = ("train", "test")
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True, kw_only=True, slots=True)
class CriteoConfig:
    """How to convert.

    Attributes:
        files: the logs to train on, in order.
        test_files: logs of which all lines are held out.
        test_every: hold out every n-th row group of `files`; None: none.
        strings: keep ids as 8-digit hex text; otherwise they become int64 in [0, 2**32).
        max_bad_lines: how many unusable lines are left out before the conversion fails.
        rows_per_file: rows of a Parquet file, rounded up to whole row groups.
        row_group_rows: rows of a row group.
    """

    files: tuple[Path, ...]
    test_files: tuple[Path, ...] = ()
    test_every: int | None = None
    strings: bool = False
    max_bad_lines: int = 1000
    rows_per_file: int = 16 * ROW_GROUP_ROWS
    row_group_rows: int = ROW_GROUP_ROWS

    def __post_init__(self) -> None:
        if not self.files:
            raise ConfigError("`files` is empty; name at least one of Criteo's log files")
        for name in ("rows_per_file", "row_group_rows"):
            at_least(name, getattr(self, name), 1)
        at_least("max_bad_lines", self.max_bad_lines, 0)
        if self.test_every is not None:
            at_least("test_every", self.test_every, 2, "10 holds out a tenth")
        if self.test_every is not None and self.test_files:
            raise ConfigError("`test_every` and `test_files` both say what to hold out; give one of them")


class RollingWriter:
    """Parts of one split, each begun when the one before has its `rows_per_file`."""

    def __init__(self, folder: Path, config: CriteoConfig) -> None:
        self.rows = 0
        self.files = 0
        self._folder = folder
        self._config = config
        groups = -(-config.rows_per_file // config.row_group_rows)
        self._file_rows = groups * config.row_group_rows
        self._part: PartWriter | None = None

    def write(self, batch: pa.RecordBatch) -> None:
        """Append the rows of `batch`."""
        start = 0
        while start < batch.num_rows:
            if self._part is None:
                self._part = self._next_part()
            piece = batch.slice(start, self._file_rows - self._part.rows)
            self._part.write(piece)
            start += piece.num_rows
            if self._part.rows == self._file_rows:
                self.finish()
        self.rows += batch.num_rows

    def _next_part(self) -> PartWriter:
        path = self._folder / f"part-{self.files:05d}.parquet"
        self.files += 1
        columns = schema(strings=self._config.strings)
        return PartWriter(path, columns, row_group_rows=self._config.row_group_rows)

    def finish(self) -> None:
        """Close the part that is open, if any."""
        if self._part is not None:
            self._part.close({"kind": "criteo", "split": self._folder.name, "rows": self._part.rows})
            self._part = None

    def __enter__(self) -> RollingWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._part is not None:
            self._part.__exit__(kind, error, trace)


def convert_criteo(config: CriteoConfig, out: Path, *, progress: Progress | None = None) -> dict[str, Any]:
    """Convert to the folder `out`, which must be new or empty; in memory of a few blocks, however long the logs.

    Returns:
        What has been written to `dataset.json` (see `read_description`).

    Raises:
        ConfigError: `out` is a file or is not empty, or `test_every` holds nothing out of so few rows.
        NotFoundError: there is no such log file.
        CorruptError: a file is not text, is cut short (gzip) or has no usable line.
        SkipLimitError: there are more bad lines than `max_bad_lines`.
        StorageError: reading or writing failed; nothing is left behind.
    """
    inputs = [(path, False) for path in config.files] + [(path, True) for path in config.test_files]
    sizes = [_size(path) for path, _ in inputs]
    bad = BadLines(config.max_bad_lines, "Criteo's logs")
    positives = 0
    with new_dataset(out) as folder, ExitStack() as stack:
        train, test = (stack.enter_context(RollingWriter(folder / split, config)) for split in SPLITS)
        router = _Router(train, test, config)
        for number, (path, held_out) in enumerate(inputs):
            rows_before = train.rows + test.rows
            for batch, position in _read_file(path, config, bad):
                (test if held_out else router).write(batch)
                positives += int(np.count_nonzero(batch.column(LABEL).to_numpy()))
                if progress is not None:
                    share = (sum(sizes[:number]) + position) / max(1, sum(sizes))
                    progress(train.rows + test.rows, min(1.0, share))
            if train.rows + test.rows == rows_before:
                found = f" ({bad.text()})" if bad.count else ""
                raise CorruptError(f"{path} has no usable line{found}; check that it is one of Criteo's logs")
        train.finish()
        test.finish()
        if config.test_every is not None and not test.rows:
            raise ConfigError(
                f"`test_every`={config.test_every} holds nothing out: {train.rows:,} rows are fewer than so many row "
                f"groups of {config.row_group_rows:,}; lower it, or `row_group_rows` to "
                f"{max(1, train.rows // config.test_every):,}"
            )
        description = {
            "kind": "criteo",
            "rows": {"train": train.rows, "test": test.rows},
            "files": {"train": train.files, "test": test.files},
            "columns": describe_columns(multi_hot=False),
            "positive_share": positives / (train.rows + test.rows),
            "sources": [str(path) for path, _ in inputs],
            "bad_lines": {"count": bad.count, "examples": bad.quoted()},
        }
        write_description(folder, description)
    return description


class _Router:
    """Deals row groups out to training and test."""

    def __init__(self, train: RollingWriter, test: RollingWriter, config: CriteoConfig) -> None:
        self._train, self._test = train, test
        self._every = config.test_every
        self._group_rows = config.row_group_rows
        self._rows = 0

    def write(self, batch: pa.RecordBatch) -> None:
        if self._every is None:
            self._train.write(batch)
            return
        start = 0
        while start < batch.num_rows:
            group, inside = divmod(self._rows, self._group_rows)
            piece = batch.slice(start, self._group_rows - inside)
            # The last of each run of `every`.
            held_out = group % self._every == self._every - 1
            (self._test if held_out else self._train).write(piece)
            start += piece.num_rows
            self._rows += piece.num_rows


def _size(path: Path) -> int:
    if path.is_dir():
        raise ConfigError(f"`files`: {path} is a folder; name the log files in it")
    try:
        return path.stat().st_size
    except FileNotFoundError:
        raise NotFoundError(f"no such file: {path}; check the path") from None
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error


def _read_file(path: Path, config: CriteoConfig, bad: BadLines) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Batches of a file's good lines, and how many of its bytes (as stored) have been read by then."""
    columns = schema(strings=config.strings)
    with _reading(path), path.open("rb") as source:
        for first_line, block in read_blocks(_decompressed(source)):
            parsed = parse_block(block, first_line, columns)
            bad.add(path, parsed.bad, parsed.describe)
            # A pipe has neither a place nor a size.
            yield parsed.batch, source.tell() if source.seekable() else 0


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except LineTooLongError as error:
        raise CorruptError(
            f"{path}: line {error} is longer than {LONGEST_LINE} bytes; this is not one of Criteo's logs"
        ) from None
    except OSError as error:
        # Arrow's decompressors raise an OSError without a number; the system's own have one.
        if error.errno is None:
            raise CorruptError(f"{path} does not decompress ({error}); get the file again") from error
        raise StorageError(f"cannot read {path}: {os.strerror(error.errno)}") from error


def _decompressed(source: BufferedReader) -> Readable:
    """Told by the first bytes, as logs are renamed more often than they are recompressed."""
    head = source.peek(4)
    for magic, codec in _MAGIC.items():
        if head.startswith(magic):
            unpacked: Readable = pa.CompressedInputStream(pa.PythonFile(source, "r"), codec)
            return unpacked
    return source
