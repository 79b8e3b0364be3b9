"""Parquet files as a data set: finding them, reading their footers once, and reading row groups.

Conversion of what was read lives in `arrow.py`; the order in which it is read in `plan.py`.
"""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import os
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from intune.pipelines import arrow
from intune.pipelines.budget import Usable
from intune.pipelines.errors import (
    ConfigError,
    CorruptError,
    DataError,
    IntuneError,
    MemoryShortError,
    NotFoundError,
    SchemaError,
    StorageError,
)
from intune.pipelines.files import OpenFiles
from intune.pipelines.plan import LoadBlock, RowGroups
from intune.pipelines.remote import fetch
from intune.pipelines.retries import retry_delay
from intune.pipelines.schema import Block

T = TypeVar("T")

FOOTER_THREADS = 16
"""Footers are small and mostly wait for storage, so more threads than cores read them."""

KEPT_FOOTER_BYTES = 64 << 20
"""Footers up to this many encoded bytes stay in memory; those of very large data sets are read again when a
file is opened, since decoded they take several times as much."""

COLUMNS_AT_ONCE = 8
"""Columns decoded before they are put in order: 4 MiB of a usual row group, which the cache still holds."""

PARTS_AT_ONCE = 2048
"""Columns of row groups read in one call, which nothing can interrupt: each costs some 20 us, however
few rows it has."""

_EVERY_NUMBER = ""
"""In `Source.fill`, the pattern that means every number column (also numbers within lists)."""

_TAIL = 64 << 10
"""Bytes read from the end of a file at first: one request fetches the footer of nearly every file."""


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


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One Parquet file: path on its filesystem, rows of each row group, what tells it from one with other content
    (a digest of the footer, which says where each column lies and how long it is), and the footer where kept."""

    path: str
    rows: tuple[int, ...]
    digest: bytes = b""
    footer: Any = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Files whose footers have been read and found to agree.

    Attributes:
        filesystem: a pyarrow filesystem.
        files: the files, in the order given (globs and folders sorted by name).
        columns: names of the columns to read, in the order in which they were named.
        fills: for each column, what stands for a null (None: see `arrow.to_column`).
        schema: Arrow schema of `columns`.
        row_bytes: decoded bytes of a row, estimated from types and footers.
        skipped: files left out under ``on_error="skip"``, with the reason.
        remote: whether reads should be joined into few, large requests.
    """

    filesystem: Any
    files: tuple[FileEntry, ...]
    columns: tuple[str, ...]
    fills: tuple[Any, ...]
    schema: pa.Schema
    row_bytes: float
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
        )

    def fingerprint(self) -> str:
        """Identifies the rows and their order: changes if files are added, removed, renamed or rewritten."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(os.path.basename(file.path).encode())
            digest.update(np.array(file.rows, dtype=np.int64).tobytes() + file.digest)
        digest.update("\0".join(self.columns).encode())
        return digest.hexdigest()[:32]


def resolve(
    source: Source, *, skip: bool = False, retries: int = 0, sleep: Callable[[float], None] = time.sleep
) -> tuple[Any, list[str], list[tuple[str, DataError]]]:
    """The filesystem, the files that `source` names (sorted within each glob or folder), and the paths that
    name none, which are an error unless `skip`."""
    if source.filesystem is not None:
        filesystem = source.filesystem
        if not isinstance(filesystem, fs.FileSystem):
            filesystem = fs.PyFileSystem(fs.FSSpecHandler(filesystem))
        paths = list(source.paths)
    elif any("://" in path for path in source.paths):
        filesystem, paths = _from_uris(source.paths)
    else:
        filesystem, paths = fs.LocalFileSystem(), [os.path.abspath(path) for path in source.paths]
    files: list[str] = []
    missing: list[tuple[str, DataError]] = []
    for path in paths:
        try:
            files.extend(_patiently(partial(_expand, filesystem, path), path, retries, sleep))
        except DataError as error:
            if not skip:
                raise
            missing.append((path, error))
    return filesystem, files, missing


def _patiently(call: Callable[[], T], where: str, retries: int, sleep: Callable[[float], None]) -> T:
    """What `call` returns; storage that fails is asked again, and what is wrong explained."""
    attempt = 1
    while True:
        try:
            return call()
        except DataError:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            explained = explain(error, where)
            if not isinstance(explained, StorageError):
                raise explained from error
            if attempt > retries:
                raise StorageError(f"{explained} (gave up after {attempt} tries)") from error
        sleep(retry_delay(attempt))
        attempt += 1


def _from_uris(uris: Sequence[str]) -> tuple[Any, list[str]]:
    first: Any = None
    paths: list[str] = []
    for uri in uris:
        # What follows a "?" are options of the filesystem, or else it stands for any character.
        plain, mark, query = uri.partition("?")
        if "=" not in query:
            plain, mark, query = uri, "", ""
        base, star, rest = plain.partition("*")
        head, slash, tail = base.rpartition("/") if star else (plain, "", "")
        try:
            filesystem, path = fs.FileSystem.from_uri(f"{head}{mark}{query}")
        except (pa.ArrowInvalid, ValueError, TypeError) as error:
            raise ConfigError(f"`paths` holds {uri!r}, which no filesystem takes: {error}") from error
        if first is not None and filesystem != first:
            raise ConfigError("`paths` name more than one filesystem; read them as pipelines of their own")
        first = filesystem
        paths.append(f"{path}{slash}{tail}{star}{rest}" if star else path)
    return first, paths


def _expand(filesystem: Any, path: str) -> list[str]:
    """A file, the files of a folder, or those that match a glob."""
    info = filesystem.get_file_info(path)
    # What is there by that very name is meant, whatever characters it has.
    if info.type == fs.FileType.NotFound and glob.has_magic(path):
        return _glob(filesystem, path)
    if info.type == fs.FileType.NotFound:
        raise NotFoundError(f"{path}: no such file or folder")
    if info.type != fs.FileType.Directory:
        return [path]
    selector = fs.FileSelector(path, recursive=True)
    found = sorted(
        item.path
        for item in filesystem.get_file_info(selector)
        if item.is_file
        and item.path.endswith((".parquet", ".pq"))
        # Hidden below the folder; what the folder itself lies in is the user's business.
        and "/." not in item.path.removeprefix(path.rstrip("/"))
    )
    if not found:
        raise NotFoundError(f"{path}: the folder holds no .parquet file")
    return found


def _glob(filesystem: Any, pattern: str) -> list[str]:
    root = pattern[: min(i for i, char in enumerate(pattern) if char in "*?[")].rpartition("/")[0]
    if not root and pattern.startswith("/"):
        root = "/"
    here = "./" if not root and isinstance(filesystem, fs.LocalFileSystem) else ""
    root, pattern = root or here[:1], here + pattern
    if filesystem.get_file_info(root).type == fs.FileType.NotFound:
        raise NotFoundError(f"{pattern}: matches nothing, since {root} does not exist")
    deep = "**" in pattern or "/" in pattern[len(root) + 1 :]
    items = filesystem.get_file_info(fs.FileSelector(root, recursive=deep))
    levels = None if "**" in pattern else pattern.count("/")
    found = sorted(
        item.path.removeprefix(here)
        for item in items
        if item.is_file
        and fnmatch.fnmatchcase(item.path, pattern)
        and (levels is None or item.path.count("/") == levels)
    )
    if not found:
        raise NotFoundError(
            f"{pattern}: matches no file (glob.escape says how to write a [ that is part of a name)"
        )
    return found


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
    filesystem, paths, skipped = resolve(source, skip=on_error == "skip", retries=retries, sleep=sleep)
    with ThreadPoolExecutor(
        max(1, min(FOOTER_THREADS, len(paths))), thread_name_prefix="intune-footer"
    ) as pool:
        footers = list(pool.map(lambda path: _footer(filesystem, path, retries, sleep, files), paths))
    good: list[tuple[str, _Footer]] = []
    wanted: tuple[pa.Schema, tuple[str, ...]] | None = None
    for path, footer in zip(paths, footers, strict=True):
        try:
            if isinstance(footer, DataError):
                raise footer
            if wanted is None:
                wanted = _select(path, footer.schema, source.columns)
            else:
                _check_agrees(path, footer.schema, wanted[0], good[0][0])
        except DataError as error:
            if on_error != "skip":
                raise
            skipped.append((path, error))
            if files is not None:
                files.forget(path)
            continue
        good.append((path, footer))
    if wanted is None:
        raise DataError(f"none of the {len(skipped)} file(s) can be used; the first: {skipped[0][1]}")
    keep = sum(footer.bytes for _, footer in good) <= KEPT_FOOTER_BYTES
    if files is not None and not keep:
        files.close()  # each keeps its footer
    entries = tuple(
        FileEntry(path=path, rows=footer.rows, digest=footer.digest, footer=footer.metadata if keep else None)
        for path, footer in good
    )
    if not any(sum(file.rows) for file in entries):
        raise DataError(f"{entries[0].path}: the data set has no rows ({len(entries)} file(s) looked at)")
    schema, columns = wanted
    return Dataset(
        filesystem=filesystem,
        files=entries,
        columns=columns,
        fills=tuple(_fill_for(name, schema.field(name).type, source.fill) for name in columns),
        schema=schema,
        row_bytes=_row_bytes(schema, [footer for _, footer in good]),
        skipped=tuple(skipped),
        remote=not isinstance(filesystem, fs.LocalFileSystem),
    )


@dataclass(frozen=True, kw_only=True)
class _Footer:
    filesystem: Any
    metadata: Any
    schema: pa.Schema
    rows: tuple[int, ...]
    digest: bytes
    bytes: int
    data_bytes: int


_footers: OrderedDict[tuple[Any, ...], _Footer] = OrderedDict()
_footers_lock = threading.Lock()


def _footer(
    filesystem: Any, path: str, retries: int, sleep: Callable[[float], None], files: OpenFiles | None
) -> _Footer | DataError:
    """The footer of one file, or what is wrong with it (so that threads need not be cancelled)."""
    try:
        return _patiently(partial(_read_footer, filesystem, path, files), path, retries, sleep)
    except DataError as error:
        return error


def _read_footer(filesystem: Any, path: str, files: OpenFiles | None) -> _Footer:
    info = filesystem.get_file_info(path)
    key = (filesystem.type_name, path, info.size, info.mtime_ns)
    with _footers_lock:
        kept = _footers.get(key)
    # Two buckets, or two folders seen as roots, may have files of one name, length and time.
    if info.mtime_ns is not None and kept is not None and kept.filesystem.equals(filesystem):
        return kept
    if info.size is not None and info.size < 12:
        raise CorruptError(f"{path}: {info.size} bytes are too few for a Parquet file; remove or rewrite it")
    handle = filesystem.open_input_file(path)
    stays_open = False
    try:
        metadata, digest = _parse_footer(handle, path)
        # A local file costs nothing to open; one written in Python has one position, which threads cannot share.
        if files is not None and not isinstance(filesystem, fs.LocalFileSystem | fs.PyFileSystem):
            stays_open = files.keep_early(path, handle, metadata)
    finally:
        if not stays_open:
            handle.close()
    try:
        schema = metadata.schema.to_arrow_schema()
        counts = Counter(schema.names)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise explain(error, path, decoding=True) from error
    for name, count in counts.items():
        if count > 1:
            raise SchemaError(f"{path}: column {name!r} is there twice; give every column a name of its own")
    sampled = range(0, metadata.num_row_groups, max(1, metadata.num_row_groups // 16))
    footer = _Footer(
        filesystem=filesystem,
        metadata=metadata,
        schema=schema,
        rows=tuple([metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]),
        digest=digest,
        bytes=metadata.serialized_size,
        data_bytes=int(
            sum(metadata.row_group(i).total_byte_size for i in sampled)
            * (metadata.num_row_groups / max(1, len(sampled)))
        ),
    )
    with _footers_lock:
        _footers[key] = footer
        while sum(other.bytes for other in _footers.values()) > KEPT_FOOTER_BYTES and len(_footers) > 1:
            _footers.popitem(last=False)
    return footer


def _parse_footer(handle: Any, path: str) -> tuple[Any, bytes]:
    """The footer of an open file, and a digest of its bytes. They are read first and decoded then, so that it is
    known which failed."""
    size = handle.size()
    tail = handle.read_at(min(_TAIL, size), max(0, size - _TAIL))
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if len(tail) < length <= size:
        tail = handle.read_at(length, size - length)
    try:
        metadata = pq.read_metadata(pa.BufferReader(tail))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise explain(error, path, decoding=True) from error
    return metadata, hashlib.blake2b(tail[-length:], digest_size=8).digest()


def explain(error: BaseException, where: str, *, decoding: bool = False) -> IntuneError:
    """What a failure of Arrow or of the storage means, naming the place and the remedy.

    Args:
        error: what was raised.
        where: file, and row groups where known.
        decoding: the bytes were there already, or the file is a local one: what fails is what they say, unless
            the error has a system's number. (Arrow raises `OSError` for both.)
    """
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return MemoryShortError(
            f"{where}: there is not memory enough to read it ({text}); nothing is wrong with the file: give the "
            "pipeline fewer slots or less `memory`, read fewer columns, or write smaller row groups"
        )
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"{where}: no such file (removed since its footer was read?)")
    if decoding and not (isinstance(error, OSError) and error.errno is not None):
        return CorruptError(f"{where}: cannot be decoded ({text}); write it again, or leave it out")
    return StorageError(f"{where}: storage failed ({text}); check that it can be reached")


def _select(path: str, schema: pa.Schema, columns: Sequence[str] | None) -> tuple[pa.Schema, tuple[str, ...]]:
    """The columns to read, named or by pattern, with their types checked."""
    names = schema.names
    if columns is None:
        picked = list(names)
    else:
        picked = []
        for pattern in columns:
            found = [name for name in names if name == pattern] or fnmatch.filter(names, pattern)
            if not found:
                shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
                raise SchemaError(f"{path}: no column {pattern!r}; there are {shown}")
            picked.extend(name for name in found if name not in picked)
    if not picked:
        raise SchemaError(f"{path}: has no columns")
    for name in picked:
        try:
            arrow.describe(schema.field(name).type)
        except SchemaError as error:
            raise SchemaError(f"{path}: column {name!r} {error}") from None
    return pa.schema([schema.field(name).remove_metadata() for name in picked]), tuple(picked)


def _check_agrees(path: str, schema: pa.Schema, wanted: pa.Schema, first: str) -> None:
    for want in wanted:
        index = schema.get_field_index(want.name)
        if index < 0:
            raise SchemaError(f"{path}: column {want.name!r} is missing, which {first} has")
        if not schema.field(index).type.equals(want.type):
            raise SchemaError(
                f"{path}: column {want.name!r} is {schema.field(index).type}, but {want.type} in {first}; "
                "write both with one schema"
            )


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


def _row_bytes(schema: pa.Schema, footers: Sequence[_Footer]) -> float:
    """Decoded bytes of a row: exact for numbers; columns of varying length by their share in the footers."""
    fixed = [arrow.row_bytes(item.type) for item in schema]
    known = sum(size for size in fixed if size is not None)
    varying = sum(size is None for size in fixed)
    rows = max(1, sum(sum(footer.rows) for footer in footers))
    encoded = sum(footer.data_bytes for footer in footers) / rows
    return max(1.0, known + encoded * varying / max(1, len(footers[0].schema)))


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
            source, footer = self._source(block)
            decoding = True
            file = pq.ParquetFile(source, metadata=footer, pre_buffer=dataset.remote)
            for at in range(0, len(dataset.columns), at_once):
                with self._processors:
                    columns = self._columns(file, block, dataset.columns[at : at + at_once], where)
                yield columns
        except (pa.ArrowException, OSError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            self.forget(block.file)
            raise explain(error, where, decoding=decoding) from error

    def _columns(self, file: Any, block: LoadBlock, names: Sequence[str], where: str) -> Block:
        table = self._table(file, list(block.groups), list(names))
        if table.num_rows < block.skip + block.rows:
            raise CorruptError(
                f"{where}: {table.num_rows} rows, but the footer promised {block.skip + block.rows}; "
                "the file was rewritten since it was planned, or is broken"
            )
        if block.skip or table.num_rows != block.rows:
            table = table.slice(block.skip, block.rows)
        columns: Block = {}
        for name in names:
            fill = self._fills[name]
            try:
                columns[name] = arrow.to_column(table.column(name), fill)
            except SchemaError as error:
                raise SchemaError(f"{where}: column {name!r} {error}") from error.__cause__
            except MemoryError:
                raise
            except pa.ArrowException as error:
                raise CorruptError(f"{where}: column {name!r} cannot be decoded ({error})") from error
        return columns

    def _table(self, file: Any, groups: list[int], names: list[str]) -> pa.Table:
        step = max(1, PARTS_AT_ONCE // max(1, len(names)))
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

    def _source(self, block: LoadBlock) -> tuple[Any, Any]:
        """What a block can be decoded from, and the file's footer."""
        dataset = self.dataset
        if isinstance(dataset.filesystem, fs.PyFileSystem):
            # A file written in Python has one position, which threads cannot share, and must be closed.
            path = dataset.files[block.file].path
            with dataset.filesystem.open_input_file(path) as handle:
                footer = dataset.files[block.file].footer or _parse_footer(handle, path)
                return fetch(handle, footer, block.groups, dataset.columns), footer
        handle, footer = self._handle(block.file)
        if dataset.remote:
            handle = fetch(handle, footer, block.groups, dataset.columns)
        return handle, footer

    def _handle(self, file: int) -> tuple[Any, Any]:
        entry = self.dataset.files[file]
        found = self._files.find(entry.path)
        if found is not None:
            return found
        handle = self.dataset.filesystem.open_input_file(entry.path)
        footer = entry.footer if entry.footer is not None else _parse_footer(handle, entry.path)
        return self._files.keep(entry.path, handle, footer)


def describe_groups(groups: Sequence[int]) -> str:
    """Row groups as a person would name them."""
    return f"row group {groups[0]}" if len(groups) == 1 else f"row groups {groups[0]} to {groups[-1]}"


def make_source(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    columns: Sequence[str] | None = None,
    filesystem: Any = None,
    fill: Mapping[str, Any] | float | None = None,
) -> Source:
    """A `Source` from what a user may write; a single `fill` value stands for every null number."""
    paths = [paths] if isinstance(paths, str | os.PathLike) else paths
    if not isinstance(paths, Sequence) or not all(isinstance(path, str | os.PathLike) for path in paths):
        raise ConfigError(f"`paths`={paths!r} must be a path, a glob or a URI, or a list of these")
    columns = [columns] if isinstance(columns, str) else columns
    if columns is not None and not all(isinstance(name, str) for name in columns):
        raise ConfigError(f"`columns`={columns!r} must be names or patterns of columns")
    if (
        filesystem is not None
        and not isinstance(filesystem, fs.FileSystem)
        and not hasattr(filesystem, "open")
    ):
        raise ConfigError(f"`filesystem`={filesystem!r} must be a pyarrow or fsspec filesystem")
    if columns is not None and not columns:
        raise ConfigError("`columns` is empty; name at least one, or leave it out to read all")
    if fill is None:
        pairs: tuple[tuple[str, Any], ...] = ()
    elif isinstance(fill, Mapping):
        pairs = tuple(fill.items())
    else:
        pairs = ((_EVERY_NUMBER, fill),)
    return Source(
        paths=tuple(str(Path(path)) if isinstance(path, os.PathLike) else str(path) for path in paths),
        filesystem=filesystem,
        columns=None if columns is None else tuple(columns),
        fill=pairs,
    )
