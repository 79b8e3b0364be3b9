"""Writes a data set to disk so that it is there as a whole or not at all.

Nothing here knows what the columns mean; see `synthetic.py` and `criteo.py`.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from intune.pipelines.errors import ConfigError, StorageError
from intune.workloads.data.description import DATASET_FILE, SCHEMA_VERSION

METADATA_KEY = "intune"
ROW_GROUP_ROWS = 65_536
COMPRESSION_LEVEL = 1  # level 3 was 10 % slower to write, no smaller on these columns
UNFINISHED = ".unfinished-"

Progress = Callable[[int, float], None]
"""Called with the rows written so far and the share of the work that is done, 0 to 1; from one thread at a time."""


@contextmanager
def new_dataset(out: Path) -> Iterator[Path]:
    """Folder to fill with a data set that appears in `out` when the block ends without an exception.

    What is written goes to a folder with a hidden name inside `out`, on the same file system, and is moved
    up at the end: `out` may be a mount point or a folder whose parent cannot be written. After an exception,
    Ctrl-C included, `out` is as it was, and does not exist if it did not.

    Raises:
        ConfigError: `out` is a file or a folder with something in it.
        StorageError: `out` cannot be created or written.
    """
    with storage_errors(out):
        _check_vacant(out)
        created = _make_folders(out)
    try:
        with storage_errors(out):
            unfinished = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=out))
            unfinished.chmod(out.stat().st_mode & 0o777)
        try:
            yield unfinished
            with storage_errors(out):
                # The description goes last: whoever sees it sees all of the data.
                for entry in sorted(unfinished.iterdir(), key=lambda path: path.name == DATASET_FILE):
                    entry.rename(out / entry.name)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except BaseException:
        for folder in reversed(created):
            # Not empty: someone else has put something there meanwhile, which is theirs to keep.
            with suppress(OSError):
                folder.rmdir()
        raise


def _check_vacant(out: Path) -> None:
    try:
        str(out.absolute()).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"`out`={str(out)!r} is not written in UTF-8, which Parquet's readers need; choose another name"
        ) from error
    if not out.exists():
        return
    if not out.is_dir():
        raise ConfigError(f"`out` must be a folder, but {out} is a file; choose another name")
    found = sorted(entry.name for entry in out.iterdir())
    if not found:
        return
    if all(name.startswith(UNFINISHED) for name in found):
        raise ConfigError(
            f"`out`: {out} holds what a killed run left ({found[0]}), or another run is writing there now; "
            f"remove {out / found[0]} or choose another folder"
        )
    raise ConfigError(
        f"`out` must be a new or an empty folder, but {out} holds {len(found)} entries ({found[0]}, …); "
        f"choose another folder or empty this one"
    )


def _make_folders(out: Path) -> list[Path]:
    """Create `out` and its parents; returns those that did not exist, outermost first."""
    missing = [folder for folder in (out, *out.parents) if not folder.exists()][::-1]
    out.mkdir(parents=True, exist_ok=True)
    return missing


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns an `OSError` of the block into a `StorageError` that names `path` and says what to do."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        # Where the file would have ended up, not where it is while the data set is unfinished.
        path = Path(*(part for part in path.parts if not part.startswith(UNFINISHED)))
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "make room or choose a folder on another disk; what was written has been removed"
            raise StorageError(f"no space left to write {path}; {remedy}") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StorageError(
                f"no permission to write {path} ({os.strerror(error.errno)}); choose another folder"
            ) from error
        raise StorageError(f"cannot write {path}: {error}") from error


class PartWriter:
    """One Parquet file, zstd, in row groups of exactly `row_group_rows` (the last may be smaller).

    Batches of any size may be written. Close it, or leave its `with` block by an exception.
    """

    def __init__(self, path: Path, schema: pa.Schema, *, row_group_rows: int = ROW_GROUP_ROWS) -> None:
        self.path = path
        self.rows = 0
        self._row_group_rows = row_group_rows
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = 0
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # No page index and no statistics: nobody looks up a click by its count, and they cost time.
            self._writer = pq.ParquetWriter(
                path, schema, compression="zstd", compression_level=COMPRESSION_LEVEL, write_statistics=False
            )

    def write(self, batch: pa.RecordBatch) -> None:
        """Append the rows of `batch`."""
        start = 0
        while start < batch.num_rows:
            piece = batch.slice(start, self._row_group_rows - self._pending_rows)
            self._pending.append(piece)
            self._pending_rows += piece.num_rows
            start += piece.num_rows
            if self._pending_rows == self._row_group_rows:
                self._flush()
        self.rows += batch.num_rows

    def _flush(self) -> None:
        table = pa.Table.from_batches(self._pending)
        self._pending.clear()
        self._pending_rows = 0
        with storage_errors(self.path):
            self._writer.write_table(table, row_group_size=self._row_group_rows)

    def close(self, description: Mapping[str, Any]) -> None:
        """Finish the file, with `description` as JSON under `METADATA_KEY` in its key-value metadata."""
        if self._pending:
            self._flush()
        with storage_errors(self.path):
            self._writer.add_key_value_metadata({METADATA_KEY: json.dumps(description)})
            self._writer.close()

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            # Closing writes the footer, which fails again on a full disk; the file is about to be removed.
            with suppress(OSError):
                self._writer.close()


def write_description(folder: Path, description: Mapping[str, Any]) -> None:
    """Write `description`, JSON values only, to the `dataset.json` of `folder`."""
    text = json.dumps({"schema_version": SCHEMA_VERSION, **description}, indent=2, allow_nan=False)
    with storage_errors(folder):
        (folder / DATASET_FILE).write_text(text + "\n", encoding="utf-8")


def folder_bytes(folder: Path) -> int:
    """Bytes of all files under `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
