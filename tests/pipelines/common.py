"""What several tests of reading share."""

from __future__ import annotations

import errno
import itertools
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from intune.pipelines.schema import Ragged


def write(path: Path, table: pa.Table | None = None, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table if table is not None else pa.table({"id": [1, 2, 3]}), path, **options)
    return path


def stored(kind: str) -> Any:
    """The local filesystem: itself, as if it were remote, or written in Python."""
    local = fs.LocalFileSystem()
    if kind == "local":
        return local
    if kind == "below":
        return fs.SubTreeFileSystem("/", local)
    return fsspec.filesystem("file")


STORED = ("local", "below", "python")


def rows_as_python(columns: dict[str, Any]) -> dict[str, list[Any]]:
    made = {}
    for name, column in columns.items():
        if isinstance(column, Ragged):
            values = (
                column.values.to_pylist() if isinstance(column.values, pa.Array) else column.values.tolist()
            )
            ends = column.offsets.tolist()
            made[name] = [values[low:high] for low, high in itertools.pairwise(ends)]
        else:
            made[name] = column.to_pylist() if isinstance(column, pa.Array) else column.tolist()
    return made


class Failing(fs.FileSystemHandler):  # type: ignore[misc]
    """The local filesystem, whose requests fail as often as `failures` says, with `error` or as the system says it."""

    def __init__(self, failures: dict[str, int], error: Exception | None = None) -> None:
        self.failures = failures
        self.error = error
        self.local = fs.LocalFileSystem()

    def fail(self, what: str) -> None:
        if self.failures.get(what, 0) > 0:
            self.failures[what] -= 1
            raise self.error or OSError(errno.EAGAIN, f"{what} refused")

    def get_type_name(self) -> str:
        return f"failing-{id(self)}"

    def get_file_info(self, paths: list[str]) -> Any:
        self.fail("info")
        return self.local.get_file_info(paths)

    def get_file_info_selector(self, selector: Any) -> Any:
        self.fail("list")
        return self.local.get_file_info(selector)

    def open_input_file(self, path: str) -> Any:
        self.fail("open")
        return self.local.open_input_file(path)

    def _refuse(self, *arguments: Any, **options: Any) -> Any:
        raise NotImplementedError

    def normalize_path(self, path: str) -> str:
        return path

    open_input_stream = open_output_stream = open_append_stream = _refuse
    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = delete_file = _refuse
    move = copy_file = _refuse
