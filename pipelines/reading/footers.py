"""Footers of Parquet files: read once, kept for as long as the process needs them again."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from intune.pipelines.errors import CorruptError, DataError, NotFoundError, SchemaError
from intune.pipelines.reading.failures import explain, patiently
from intune.pipelines.reading.files import OpenFiles, Version, etag, is_local, open_file

KEPT_FOOTER_BYTES = 64 << 20
"""Footers up to this many encoded bytes stay in memory; those of very large data sets are read again when a
file is opened, since decoded they take several times as much."""

_TAIL = 64 << 10
"""Bytes read from the end of a file at first: one request fetches the footer of nearly every file."""


@dataclass(frozen=True, kw_only=True)
class Footer:
    """What a file's footer says, and of which version of the file.

    Attributes:
        metadata: a pyarrow `FileMetaData`.
        rows: of each row group.
        digest: of the footer's bytes.
        bytes: encoded size of the footer.
    """

    filesystem: Any
    version: Version
    metadata: Any
    schema: pa.Schema
    rows: tuple[int, ...]
    digest: bytes
    bytes: int


class Cache:
    """Footers by what tells a file; of too many bytes, those kept last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[Any, ...], Footer] = OrderedDict()
        self._bytes = 0

    def find(self, key: tuple[Any, ...], filesystem: Any) -> Footer | None:
        """The footer of a file."""
        with self._lock:
            kept = self._kept.get(key)
        # Two buckets, or two folders seen as roots, may have files of one name, length and time.
        return kept if kept is not None and kept.filesystem.equals(filesystem) else None

    def keep(self, key: tuple[Any, ...], footer: Footer) -> None:
        """Have a footer found from now on."""
        with self._lock:
            before = self._kept.pop(key, None)
            self._kept[key] = footer
            self._bytes += footer.bytes - (0 if before is None else before.bytes)
            while self._bytes > KEPT_FOOTER_BYTES and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1].bytes

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0


cache = Cache()
"""Shared by all data sets of the process."""


def read_footer(
    filesystem: Any, info: fs.FileInfo, retries: int, sleep: Callable[[float], None], files: OpenFiles | None
) -> Footer | DataError:
    """The footer of one file, or what is wrong with it (so that threads need not be cancelled).

    Args:
        info: what was said of the file when it was found.
    """
    try:
        read = partial(_read_footer, filesystem, info, files)
        return patiently(read, info.path, filesystem, retries, sleep)
    except DataError as error:
        return error


def _read_footer(filesystem: Any, info: fs.FileInfo, files: OpenFiles | None) -> Footer:
    path = info.path
    if is_local(filesystem):
        info = filesystem.get_file_info(path)  # costs no request, and a listing may be older
        if info.type == fs.FileType.NotFound:
            raise NotFoundError(
                f"{path}: no such file (a link to one that is gone, or removed since it was listed); mend the link or "
                "remove it"
            )
    key = (filesystem.type_name, path, info.size, info.mtime_ns)
    kept = cache.find(key, filesystem) if info.mtime_ns is not None else None
    if kept is not None:
        return kept
    if info.size is not None and info.size < 12:
        raise CorruptError(f"{path}: {info.size} bytes are too few for a Parquet file; remove or rewrite it")
    handle = open_file(filesystem, path)
    stays_open = False
    try:
        version = Version(size=handle.size(), mtime_ns=info.mtime_ns, etag=etag(handle))
        metadata, digest = parse_footer(handle, path)
        # A local file costs nothing to open; one written in Python has one position, which threads cannot share.
        if files is not None and not isinstance(filesystem, fs.LocalFileSystem | fs.PyFileSystem):
            stays_open = files.keep_early(path, handle, metadata)
    finally:
        if not stays_open:
            handle.close()
    try:
        # Not by `metadata.schema`: the two hold each other, and a footer would stay until the garbage collector runs.
        schema = pq.ParquetFile(pa.BufferReader(b""), metadata=metadata).schema_arrow
        counts = Counter(schema.names)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise explain(error, path, decoding=True) from error
    for name, count in counts.items():
        if count > 1:
            raise SchemaError(f"{path}: column {name!r} is there twice; give every column a name of its own")
    footer = Footer(
        filesystem=filesystem,
        version=version,
        metadata=metadata,
        schema=schema,
        rows=tuple([metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]),
        digest=digest,
        bytes=metadata.serialized_size,
    )
    cache.keep(key, footer)
    return footer


def parse_footer(handle: Any, path: str) -> tuple[Any, bytes]:
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
