"""Parquet files as a data set: whether they agree, and reading their row groups.

Finding them lives in `paths.py`, reading their footers in `footers.py`, what these tell of sizes in `sizes.py`,
conversion of what was read in `arrow.py`, and the order in which it is read in `plan.py`.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from intune.pipelines import arrow, footers, sizes
from intune.pipelines.ahead import made_ahead
from intune.pipelines.allocators import give_back
from intune.pipelines.budget import Usable
from intune.pipelines.errors import ConfigError, CorruptError, DataError, SchemaError
from intune.pipelines.failures import explain, is_failure
from intune.pipelines.files import UNKNOWN, OpenFiles, Version, is_local, open_file, version_of
from intune.pipelines.footers import Footer, parse_footer, read_footer
from intune.pipelines.paths import MAGIC, find, partition_keys
from intune.pipelines.plan import LoadBlock, RowGroups
from intune.pipelines.remote import fetch
from intune.pipelines.schema import Block, copy_column, in_order

FOOTER_THREADS = 16
"""Footers are small and mostly wait for storage, so more threads than cores read them."""

COLUMNS_AT_ONCE = 8
"""Columns decoded before they are put in order: 4 MiB of a usual row group, which the cache still holds."""

PARTS_AT_ONCE = 2048
"""Columns of row groups read in one call, which nothing can interrupt: each costs some 20 us, however
few rows it has."""

_EVERY_NUMBER = ""
"""In `Source.fill`, the pattern that means every number column (also numbers within lists)."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the data is, as the user said it: paths, globs, folders or URIs; nothing has been looked at."""

    paths: tuple[str, ...]
    filesystem: Any = None
    columns: tuple[str, ...] | None = None
    fill: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if not self.paths:
            raise ConfigError("`paths` is empty; give at least one file, folder, glob or URI")
        if self.filesystem is None and not all(path.strip() for path in self.paths):
            raise ConfigError(
                "`paths` holds an empty path (a variable that is not set?); '.' is the current folder"
            )


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One Parquet file: path on its filesystem, rows of each row group, what tells it from one with other content
    (a digest of the footer, which says where each column lies and how long it is), the version that was planned (by
    size, time or tag), and the footer where kept."""

    path: str
    rows: tuple[int, ...]
    digest: bytes = b""
    version: Version = UNKNOWN
    footer: Any = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Files whose footers have been read and found to agree.

    Attributes:
        filesystem: a pyarrow filesystem.
        files: the files, in the order given (globs and folders sorted by name).
        columns: names of the columns to read, in the order in which they were named.
        fills: for each column, what stands for a null (None: see `arrow.to_column`).
        schema: types as which `columns` are read, which is not how every file stores them: see `arrow.plain`.
        row_bytes: decoded bytes of a row, from types and footers.
        guessed: whether that is a guess, as it is of strings; see `sizes.py`.
        skipped: files left out under ``on_error="skip"``, with the reason.
        remote: whether reads should be joined into few, large requests.
    """

    filesystem: Any
    files: tuple[FileEntry, ...]
    columns: tuple[str, ...]
    fills: tuple[Any, ...]
    schema: pa.Schema
    row_bytes: float
    guessed: bool = False
    skipped: tuple[tuple[str, DataError], ...] = ()
    remote: bool = False

    def row_groups(self) -> RowGroups:
        """Row counts of every row group, for the plan."""
        counts = [len(file.rows) for file in self.files]
        return RowGroups(
            file=np.repeat(np.arange(len(counts), dtype=np.int64), counts),
            group=np.concatenate([np.arange(count, dtype=np.int64) for count in counts]),
            rows=np.array([rows for file in self.files for rows in file.rows], dtype=np.int64),
            row_bytes=self.row_bytes,
            guessed=self.guessed,
        )

    def fingerprint(self) -> str:
        """Identifies the rows and their order: changes if files are added, removed, renamed or rewritten."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(os.path.basename(file.path).encode())
            digest.update(np.array(file.rows, dtype=np.int64).tobytes() + file.digest)
        digest.update("\0".join(self.columns).encode())
        return digest.hexdigest()[:32]


def open_dataset(
    source: Source,
    *,
    on_error: str = "raise",
    retries: int = 0,
    sleep: Callable[[float], None] = time.sleep,
    files: OpenFiles | None = None,
) -> Dataset:
    """Find the files, read every footer (in parallel, cached in this process) and check that they agree.

    Args:
        source: what the user named.
        on_error: ``raise``, or ``skip`` to leave out files that cannot be read or do not agree.
        retries: how often storage that fails is asked again, waiting longer each time.
        sleep: waits for so many seconds.
        files: keeps what was opened for a `Reader`, where opening costs a request.

    Raises:
        NotFoundError, CorruptError, StorageError, SchemaError: the first file that cannot be used.
    """
    skip = on_error == "skip"
    filesystem, infos, skipped = find(
        source.paths, source.filesystem, skip=skip, retries=retries, sleep=sleep
    )
    entries: list[FileEntry] = []
    sampled: list[Footer] = []
    kept = 0
    types: dict[str, pa.DataType] = {}
    with made_ahead(
        lambda info: read_footer(filesystem, info, retries, sleep, files),
        infos,
        threads=max(1, min(FOOTER_THREADS, len(infos))),
        name="intune-footer",
    ) as read:
        for path, footer in zip([info.path for info in infos], read, strict=True):
            try:
                if isinstance(footer, DataError):
                    raise footer
                if not entries:
                    types = _select(path, footer.schema, source.columns)
                elif not footer.schema.equals(sampled[0].schema):
                    types = _agreed(path, footer.schema, types, entries[0].path)
            except DataError as error:
                if not skip:
                    raise
                skipped.append((path, error))
                if files is not None:
                    files.forget(path)
                continue
            # Which are kept follows from the order of the files, not from which was read first: from what they tell
            # of sizes follows the plan, which must be the same on every rank.
            kept += footer.bytes
            keep = kept <= footers.KEPT_FOOTER_BYTES
            if keep or not entries:
                sampled.append(footer)
            entries.append(
                FileEntry(
                    path=path,
                    rows=footer.rows,
                    digest=footer.digest,
                    version=footer.version,
                    footer=footer.metadata if keep else None,
                )
            )
    if kept > footers.KEPT_FOOTER_BYTES:
        give_back()  # what the others took lies scattered over the heaps of the threads that read them
    if not entries:
        raise DataError(f"none of the {len(skipped)} file(s) can be used; the first: {skipped[0][1]}")
    for name, type_ in types.items():
        _describe(entries[0].path, name, type_)
    if not any(sum(file.rows) for file in entries):
        raise DataError(f"{entries[0].path}: the data set has no rows ({len(entries)} file(s) looked at)")
    schema = pa.schema(list(types.items()))
    row_bytes, guessed = sizes.row_bytes(schema, sampled)
    return Dataset(
        filesystem=filesystem,
        files=tuple(entries),
        columns=tuple(types),
        fills=_fills(entries[0].path, sampled[0].schema.names, types, source.fill),
        schema=schema,
        row_bytes=row_bytes,
        guessed=guessed,
        skipped=tuple(skipped),
        remote=not isinstance(filesystem, fs.LocalFileSystem),
    )


def _select(path: str, schema: pa.Schema, columns: Sequence[str] | None) -> dict[str, pa.DataType]:
    """The columns to read, named or by pattern, and as what; a type that another file has to tell is left open."""
    names = schema.names
    if columns is None:
        picked = list(names)
    else:
        picked = []
        for pattern in columns:
            found = [name for name in names if name == pattern] or fnmatch.filter(names, pattern)
            if not found:
                raise SchemaError(f"{path}: no column {pattern!r}; {_there_are(path, names)}")
            picked.extend(name for name in found if name not in picked)
    if not picked:
        raise SchemaError(f"{path}: has no columns")
    types = {}
    for name in picked:
        types[name] = arrow.plain(schema.field(name).type)
        if not arrow.undecided(types[name]):
            _describe(path, name, schema.field(name).type)
    return types


def _there_are(path: str, names: Sequence[str]) -> str:
    shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    keys = ", ".join(partition_keys(path))
    return f"there are {shown}" + (f" (in folders' names, which are not read: {keys})" if keys else "")


def _describe(path: str, name: str, type_: pa.DataType) -> None:
    """Refuse a type that has no place in a batch."""
    try:
        arrow.describe(type_)
    except SchemaError as error:
        raise SchemaError(f"{path}: column {name!r} {error}") from None


def _agreed(
    path: str, schema: pa.Schema, types: dict[str, pa.DataType], first: str
) -> dict[str, pa.DataType]:
    """As what columns are read once another file is there too."""
    agreed = {}
    for name, wanted in types.items():
        index = schema.get_field_index(name)
        if index < 0:
            raise SchemaError(
                f"{path}: column {name!r} is missing, which {first} has; write it everywhere, or name in `columns=` "
                "those to read"
            )
        stored = schema.field(index).type
        both = wanted if stored.equals(wanted) else arrow.common(wanted, arrow.plain(stored))
        if both is None:
            raise SchemaError(
                f"{path}: column {name!r} is {stored}, but {wanted} in {first}; write both with one schema"
            )
        if both is not wanted and not arrow.undecided(both):
            _describe(path, name, both)
        agreed[name] = both
    return agreed


def _fills(
    path: str, names: Sequence[str], types: Mapping[str, pa.DataType], fill: Sequence[tuple[str, Any]]
) -> tuple[Any, ...]:
    """What stands for a null in each column; what is said of a column by its name must fit, a pattern may mean others
    too."""
    for name, value in fill:
        if name in types and value is not None:
            try:
                arrow.check_fill(value, types[name])
            except SchemaError as error:
                raise SchemaError(f"{path}: column {name!r} {error}") from None
        elif name not in names and name != _EVERY_NUMBER and not MAGIC.search(name):
            raise SchemaError(
                f"{path}: `fill` has a value for {name!r}, which is no column; {_there_are(path, names)}"
            )
    return tuple(_fill_for(name, type_, fill) for name, type_ in types.items())


def _fill_for(name: str, type_: pa.DataType, fill: Sequence[tuple[str, Any]]) -> Any:
    """The fill of a column: by its exact name first, then the last pattern that matches it."""
    for pattern, value in fill:
        if pattern == name:
            return value
    numeric = arrow.holds_numbers(type_)
    matches = [
        value
        for pattern, value in fill
        if (numeric if pattern == _EVERY_NUMBER else fnmatch.fnmatchcase(name, pattern))
    ]
    return matches[-1] if matches else None


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


def make_source(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    columns: Iterable[str] | None = None,
    filesystem: Any = None,
    fill: Mapping[str, Any] | float | None = None,
) -> Source:
    """A `Source` from what a user may write; a single `fill` value stands for every null number."""
    paths = [paths] if isinstance(paths, str | os.PathLike) else paths
    if not isinstance(paths, Sequence) or not all(isinstance(path, str | os.PathLike) for path in paths):
        raise ConfigError(f"`paths`={paths!r} must be a path, a glob or a URI, or a list of these")
    names: tuple[Any, ...] | None = None
    if columns is not None:
        single = isinstance(columns, str) or not isinstance(columns, Iterable)
        names = (columns,) if single else in_order(columns)
        if not all(isinstance(name, str) for name in names):
            raise ConfigError(f"`columns`={columns!r} must be names or patterns of columns")
        if not names:
            raise ConfigError("`columns` is empty; name at least one, or leave it out to read all")
    if (
        filesystem is not None
        and not isinstance(filesystem, fs.FileSystem)
        and not hasattr(filesystem, "open")
    ):
        raise ConfigError(f"`filesystem`={filesystem!r} must be a pyarrow or fsspec filesystem")
    if fill is None:
        pairs: tuple[tuple[str, Any], ...] = ()
    elif isinstance(fill, Mapping):
        pairs = tuple(fill.items())
        if not all(isinstance(name, str) for name, _ in pairs):
            raise ConfigError(f"`fill`={fill!r} must have names or patterns of columns as its keys")
    elif not isinstance(fill, int | float | np.number | np.bool_):
        raise ConfigError(
            f"`fill`={fill!r} must be a number, for all columns of numbers, or a mapping from names or patterns"
        )
    else:
        pairs = ((_EVERY_NUMBER, fill),)
    return Source(
        paths=tuple(str(Path(path)) if isinstance(path, os.PathLike) else str(path) for path in paths),
        filesystem=filesystem,
        columns=names,
        fill=pairs,
    )
