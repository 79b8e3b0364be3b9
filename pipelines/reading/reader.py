"""Reading row groups of a data set's files, and noticing where a file is no longer the one that was planned.

Which row groups lives in `plan.py`, conversion of what was read in `arrow.py`, requests to storage in `remote.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from intune.pipelines import arrow
from intune.pipelines.budget import Usable
from intune.pipelines.errors import CorruptError, SchemaError
from intune.pipelines.plan import LoadBlock
from intune.pipelines.reading.dataset import Dataset
from intune.pipelines.reading.failures import explain, is_failure
from intune.pipelines.reading.files import OpenFiles, Version, is_local, open_file, version_of
from intune.pipelines.reading.footers import parse_footer
from intune.pipelines.reading.remote import fetch
from intune.pipelines.schema import Block, copy_column

COLUMNS_AT_ONCE = 8
"""Columns decoded before they are put in order: 4 MiB of a usual row group, which the cache still holds."""

PARTS_AT_ONCE = 2048
"""Columns of row groups read in one call, which nothing can interrupt: each costs some 20 us, however
few rows it has."""


class Stopped(Exception):
    """A read was given up because nobody wants it any more."""


class Reader:
    """Reads load blocks; keeps files open, shared by all threads of a process (Arrow's reads are positioned).

    Args:
        dataset: the files.
        files: those open already.
        stopped: whether nobody wants what is being read any more; asked between the parts of a block of very many
            row groups, which takes seconds.
    """

    def __init__(
        self,
        dataset: Dataset,
        files: OpenFiles | None = None,
        *,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.dataset = dataset
        self._stopped = stopped
        self._files = OpenFiles() if files is None else files
        self._fills = dict(zip(dataset.columns, dataset.fills, strict=True))
        self._types = {field.name: field.type for field in dataset.schema}
        self._one_by_one: set[int] = set()
        self._known: dict[int, Version] = {}
        # Whether files that stay open can be asked at no cost if they have changed since.
        self._local = is_local(dataset.filesystem) and not isinstance(dataset.filesystem, fs.PyFileSystem)
        # Slots that wait for storage may be many more than processors, but what they fetched is decoded by as many
        # threads as there are: more would only take turns, each with a block half done.
        self._processors = threading.BoundedSemaphore(
            Usable.detect(modules={}).cpus if dataset.remote else 1 << 16
        )

    def read(self, block: LoadBlock) -> Block:
        """The rows of a load block.

        Raises:
            DataError: naming file, row group and column.
            Stopped: nobody wants them any more.
        """
        return next(self.read_some(block, len(self.dataset.columns)))

    def read_some(self, block: LoadBlock, at_once: int = COLUMNS_AT_ONCE) -> Iterator[Block]:
        """The rows of a load block, `at_once` columns after another.

        Raises:
            DataError: naming file, row group and column.
        """
        dataset = self.dataset
        where = f"{dataset.files[block.file].path}, {describe_groups(block.groups)}"
        decoding = False
        try:
            handle, source, footer = self._source(block, where)
            decoding = True
            file = pq.ParquetFile(source, metadata=footer, pre_buffer=dataset.remote)
            for at in range(0, len(dataset.columns), at_once):
                with self._processors:
                    columns = self._columns(file, block, dataset.columns[at : at + at_once], where)
                if self._local:
                    self._check_version(block.file, handle, where)  # it may have changed while it was read
                yield columns
        except Exception as error:
            if not is_failure(error, None if decoding else dataset.filesystem):
                raise
            self.forget(block.file)
            if decoding and dataset.remote and not isinstance(dataset.filesystem, fs.PyFileSystem):
                # An object that is open is not asked for its version, which costs a request: now it is worth that.
                with suppress(pa.ArrowException, OSError):
                    self._open(block.file, where)
            raise explain(error, where, decoding=decoding) from error

    def _columns(self, file: Any, block: LoadBlock, names: Sequence[str], where: str) -> Block:
        table = self._table(file, block, list(names))
        if table.num_rows < block.skip + block.rows:
            raise CorruptError(
                f"{where}: {table.num_rows} rows, but the footer promised {block.skip + block.rows}; "
                "the file was rewritten since it was planned, or is broken"
            )
        # Views of a few rows would keep the whole row group, and what they take be reckoned with for every row.
        few = block.rows * 2 < table.num_rows
        if block.skip or table.num_rows != block.rows:
            table = table.slice(block.skip, block.rows)
        columns: Block = {}
        for name in names:
            fill = self._fills[name]
            try:
                columns[name] = arrow.to_column(table.column(name), fill, self._types[name])
            except SchemaError as error:
                raise SchemaError(f"{where}: column {name!r} {error}") from error.__cause__
            except MemoryError:
                raise
            except pa.ArrowException as error:
                raise explain(error, f"{where}: column {name!r}", decoding=True) from error
            if few:
                columns[name] = copy_column(columns[name])
        return columns

    def _table(self, file: Any, block: LoadBlock, names: list[str]) -> pa.Table:
        if block.file not in self._one_by_one:
            try:
                return self._parts(file, block.groups, names, max(1, PARTS_AT_ONCE // max(1, len(names))))
            except pa.ArrowNotImplementedError:
                # Lists of dictionaries, of which every row group has one of its own, cannot be read as one table.
                if len(block.groups) == 1:
                    raise
            self._one_by_one.add(block.file)
        return self._parts(file, block.groups, names, 1)

    def _parts(self, file: Any, groups: Sequence[int], names: list[str], step: int) -> pa.Table:
        parts = []
        for at in range(0, len(groups), step):
            if self._stopped():
                raise Stopped
            parts.append(file.read_row_groups(groups[at : at + step], columns=names, use_threads=False))
        return parts[0] if len(parts) == 1 else pa.concat_tables(parts)

    def forget(self, file: int) -> None:
        """Close a file, so that the next read opens it anew (its connection may be what failed)."""
        self._files.forget(self.dataset.files[file].path)

    def close(self) -> None:
        """Let go of every file; a read in progress keeps its own."""
        self._files.close()

    def _source(self, block: LoadBlock, where: str) -> tuple[Any, Any, Any]:
        """The file of a block, what the block can be decoded from, and the file's footer."""
        dataset = self.dataset
        entry = dataset.files[block.file]
        if isinstance(dataset.filesystem, fs.PyFileSystem):
            # A file written in Python has one position, which threads cannot share, and must be closed.
            with dataset.filesystem.open_input_file(entry.path) as handle:
                self._check_version(block.file, handle, where)
                found = self._files.find(entry.path)
                if found is None:
                    found = self._files.keep(entry.path, None, self._footer(block.file, handle, where))
                footer = found[1]
                source = fetch(handle, footer, block.groups, dataset.columns)
                self._check_version(block.file, handle, where)  # it may have changed while it was fetched
                return handle, source, footer
        handle, footer = self._open(block.file, where)
        source = fetch(handle, footer, block.groups, dataset.columns) if dataset.remote else handle
        return handle, source, footer

    def _open(self, file: int, where: str) -> tuple[Any, Any]:
        entry = self.dataset.files[file]
        found = self._files.find(entry.path)
        if found is not None:
            if self._local:
                self._check_version(file, found[0], where)
            return found
        handle = open_file(self.dataset.filesystem, entry.path)
        try:
            self._check_version(file, handle, where)
            return self._files.keep(entry.path, handle, self._footer(file, handle, where), local=self._local)
        except BaseException:
            handle.close()
            raise

    def _footer(self, file: int, handle: Any, where: str) -> Any:
        entry = self.dataset.files[file]
        if entry.footer is not None:
            return entry.footer
        footer, digest = parse_footer(handle, entry.path)
        if entry.digest and digest != entry.digest:
            raise _rewritten(where)
        return footer

    def _check_version(self, file: int, handle: Any, where: str) -> None:
        """Whether a file is still the one whose footer was read: other columns may lie where the footer has these."""
        entry = self.dataset.files[file]
        version = version_of(self.dataset.filesystem, entry.path, handle)
        if not entry.version.differs(version) or self._known.get(file) == version:
            return
        # It may have been touched, or be another machine's copy; then the footer is the same.
        if entry.version.size != version.size or self._digest(entry.path, handle) != entry.digest:
            raise _rewritten(where)
        self._known[file] = version

    def _digest(self, path: str, handle: Any) -> bytes:
        """Of the footer of what `version_of` told the version of."""
        try:
            if isinstance(handle, pa.OSFile) or not self._local:
                return parse_footer(handle, path)[1]
            with self.dataset.filesystem.open_input_file(path) as there:
                return parse_footer(there, path)[1]
        except CorruptError:
            return b""


def _rewritten(where: str) -> CorruptError:
    return CorruptError(
        f"{where}: rewritten since it was planned; leave files alone while they are read, and make a new loader to "
        "read what is there now"
    )


def describe_groups(groups: Sequence[int]) -> str:
    """Row groups as a person would name them."""
    return f"row group {groups[0]}" if len(groups) == 1 else f"row groups {groups[0]} to {groups[-1]}"
