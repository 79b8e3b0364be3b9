"""Files of a data set: opening them, telling whether they are still those that were planned, and keeping them open
for all threads of a process."""

from __future__ import annotations

import os
import resource
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyarrow import fs

MOST_OPEN = 256
"""Of files that are reached over a network: to open one again costs a request."""

FOOTER_BYTES = 64 << 20
"""Encoded bytes of the footers of files that stay open, which decoded take seven times as much: of data sets of
billions of rows, a file's may be megabytes."""

DESCRIPTORS = 16
"""Of a process's file descriptors, usually 1,024, the local files of one loader take a part in so many: several loaders
may be there, for training and for what is held out, beside a trainer's connections. To open one again costs 0.1 ms."""


@dataclass(frozen=True, kw_only=True)
class Version:
    """What tells a file from another one in its place; None where it is not known."""

    size: int | None = None
    mtime_ns: int | None = None
    etag: str | None = None

    def differs(self, other: Version) -> bool:
        """Whether what is known of both is not the same."""
        return (
            _differ(self.size, other.size)
            or _differ(self.mtime_ns, other.mtime_ns)
            or _differ(self.etag, other.etag)
        )


UNKNOWN = Version()


def _differ(one: Any, other: Any) -> bool:
    return one is not None and other is not None and one != other


def is_local(filesystem: Any) -> bool:
    """Whether to ask for a file's size and time costs no request."""
    if isinstance(filesystem, fs.SubTreeFileSystem):
        return is_local(filesystem.base_fs)
    if isinstance(filesystem, fs.PyFileSystem):  # fsspec's says so
        return getattr(getattr(filesystem.handler, "fs", None), "local_file", False) is True
    return isinstance(filesystem, fs.LocalFileSystem)


def is_python(filesystem: Any) -> bool:
    """Whether it is written in Python, as fsspec's are."""
    if isinstance(filesystem, fs.SubTreeFileSystem):
        return is_python(filesystem.base_fs)
    return isinstance(filesystem, fs.PyFileSystem)


def open_file(filesystem: Any, path: str) -> Any:
    """A file to read from at any position; a local one has a descriptor, so that it can be asked for its version."""
    if isinstance(filesystem, fs.LocalFileSystem) and filesystem.equals(fs.LocalFileSystem()):
        return pa.OSFile(path)  # as it would be opened, but for the descriptor
    return filesystem.open_input_file(path)


def version_of(filesystem: Any, path: str, handle: Any) -> Version:
    """The version of an open file, as far as it can be told without a request."""
    if isinstance(handle, pa.OSFile):
        # Not the path's: a file that was replaced by another is still what it was, for who has it open.
        status = os.fstat(handle.fileno())
        return Version(size=status.st_size, mtime_ns=status.st_mtime_ns)
    if is_local(filesystem):
        info = filesystem.get_file_info(path)
        return Version(size=info.size, mtime_ns=info.mtime_ns)
    return Version(size=handle.size(), etag=etag(handle))


def etag(handle: Any) -> str | None:
    """What an object store said on opening a file: another word for every content."""
    try:
        told = handle.metadata()
    except (pa.ArrowException, NotImplementedError, OSError):
        return None
    for name, value in told.items():
        if _text(name).lower() == "etag":
            return _text(value)
    return None


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


class OpenFiles:
    """Open files and their footers by path; of too many, those used last.

    On storage that is reached over a network, opening a file costs a request. The footers are read from files that
    are then open, so the first epoch need not ask again for what it is to read.
    """

    def __init__(self, most: int = MOST_OPEN) -> None:
        self._most = most
        self._lock = threading.RLock()  # the garbage collector may close a loader from under it
        self._open: OrderedDict[str, tuple[Any, Any]] = OrderedDict()
        self._bytes = 0  # of their footers

    def find(self, path: str) -> tuple[Any, Any] | None:
        """File and footer, if it is open."""
        with self._lock:
            found = self._open.get(path)
            if found is not None:
                self._open.move_to_end(path)
            return found

    def keep(self, path: str, handle: Any, footer: Any, *, local: bool = False) -> tuple[Any, Any]:
        """Have a file stay open; the one that is, if another thread was first.

        Args:
            path: names it.
            handle: the file; None where only the footer is to be had again.
            footer: its `FileMetaData`.
            local: whether it takes a file descriptor.
        """
        most = min(self._most, _most_local()) if local else self._most
        with self._lock:
            kept = self._add(path, handle, footer)
            while len(self._open) > most or (self._bytes > FOOTER_BYTES and len(self._open) > 1):
                self.forget(next(iter(self._open)))
            return kept

    def keep_early(self, path: str, handle: Any, footer: Any) -> bool:
        """Have a file stay open that is not read yet, if there is room; whether there was."""
        with self._lock:
            if len(self._open) >= self._most or self._bytes + footer.serialized_size > FOOTER_BYTES:
                return False
            return self._add(path, handle, footer)[0] is handle

    def forget(self, path: str) -> None:
        """Close a file; who reads it now keeps it till then."""
        with self._lock:
            found = self._open.pop(path, None)
            self._bytes -= 0 if found is None else found[1].serialized_size

    def close(self) -> None:
        """Close all."""
        with self._lock:
            self._open.clear()
            self._bytes = 0

    def _add(self, path: str, handle: Any, footer: Any) -> tuple[Any, Any]:
        found = self._open.get(path)
        if found is None:
            found = self._open[path] = handle, footer
            self._bytes += footer.serialized_size
        return found


def _most_local() -> int:
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MOST_OPEN if allowed == resource.RLIM_INFINITY else max(1, allowed // DESCRIPTORS)
