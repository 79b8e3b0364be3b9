"""Reading row groups from storage that answers slowly: few, large requests, made in the slot's own thread.

Arrow by itself asks for one column chunk after another, or hands the requests to an I/O pool of eight threads
that all slots share; here a slot asks for the bytes it needs in one request where they lie together, so that n
slots keep n requests under way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

LARGEST_HOLE = 1 << 20
"""Bytes nobody asked for that are read along rather than asking twice: at 100 MB/s they take 10 ms, less than
the answer to another request."""

BEYOND = 100
"""Bytes that Arrow reads behind a column chunk of parquet-mr 1.2.8 and older: the lengths that these wrote lack the
header of the dictionary's page."""


def fetch(handle: Any, footer: Any, groups: Sequence[int], columns: Sequence[str]) -> pa.PythonFile:
    """A file that holds the bytes of some columns of some row groups, read in as few requests as it goes.

    Args:
        handle: an open pyarrow file; only positioned reads are used.
        footer: its `FileMetaData`.
        groups: indices of row groups.
        columns: names of (top-level) columns.
    """
    ranges = merge(column_ranges(footer, groups, columns), LARGEST_HOLE)
    size = handle.size()
    parts = [(start, _read(handle, start, max(stop, min(stop + BEYOND, size)))) for start, stop in ranges]
    return pa.PythonFile(_Parts(parts, size), mode="r")


def _read(handle: Any, start: int, stop: int) -> pa.Buffer:
    """Bytes ``[start, stop)`` in one request, into memory of Arrow's own pool.

    Raises:
        OSError: the file ends before.
    """
    data = handle.get_stream(start, stop - start).read_buffer(stop - start)
    if data.size != stop - start:
        raise OSError(f"{data.size} bytes of {stop - start} from byte {start} on: unexpected end of stream")
    return data


def column_ranges(footer: Any, groups: Sequence[int], columns: Sequence[str]) -> Iterator[tuple[int, int]]:
    """First byte and end of every column chunk concerned."""
    leaves = leaves_of(footer.row_group(groups[0]), set(columns))
    for group in groups:
        row_group = footer.row_group(group)
        for index in leaves:
            chunk = row_group.column(index)
            start = chunk.data_page_offset
            # Some writers say 0 where there is no dictionary.
            if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < start:
                start = chunk.dictionary_page_offset
            yield start, start + chunk.total_compressed_size


def leaves_of(group: Any, wanted: set[str]) -> list[int]:
    """Indices of the column chunks that top-level columns of a file are made of, told by any of its row groups."""
    return [
        index for index in range(group.num_columns) if _belongs(group.column(index).path_in_schema, wanted)
    ]


def _belongs(path: str, wanted: set[str]) -> bool:
    """Whether a leaf such as ``bag.list.element`` is part of a column; names may hold dots themselves."""
    parts = path.split(".")
    return any(".".join(parts[:count]) in wanted for count in range(1, len(parts) + 1))


def merge(ranges: Iterator[tuple[int, int]], hole: int) -> list[tuple[int, int]]:
    """Ranges joined where at most `hole` bytes lie between them, in order."""
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if merged and start - merged[-1][1] <= hole:
            merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
        else:
            merged.append((start, stop))
    return merged


class _Parts:
    """A read-only file of which only some parts are there; what Arrow's `PythonFile` wants of a file."""

    closed = False

    def __init__(self, parts: Sequence[tuple[int, pa.Buffer]], size: int) -> None:
        self._parts = parts
        self._size = size
        self._at = 0

    def size(self) -> int:
        return self._size

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def read_buffer(self, length: int) -> pa.Buffer:
        for start, data in self._parts:
            if start <= self._at and self._at + length <= start + data.size:
                begin = self._at - start
                self._at += length
                return data.slice(begin, length)
        raise OSError(f"bytes {self._at} to {self._at + length} were not fetched: unexpected end of stream")

    def read(self, length: int = -1) -> bytes:
        return bytes(self.read_buffer(self._size - self._at if length < 0 else length))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def close(self) -> None:
        self.closed = True
