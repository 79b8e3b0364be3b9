"""fsspec's filesystems for pyarrow, whose own `FSSpecHandler` loses what goes wrong and reads more than it is asked to.

Most of fsspec's filesystems list a folder and those below it one after another and, where one cannot be listed just
then, go on without it (`walk` swallows every `OSError`). A training would go on with less data, and nobody would know.
A file that cannot be looked at just then counts as one that is not there (`isfile` swallows all). And to be quick where
little is read at a time, files read ahead: 50 MiB more at every request for a row group, in s3fs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pyarrow as pa
from pyarrow import fs

_ONE_BY_ONE = ("fsspec.spec", "fsspec.asyn")
"""Where `find` is defined as one listing for each folder. Object stores have their own, of few requests for all."""

_AHEAD = ("readahead", "bytes")
"""fsspec's caches that read ahead, by name: the defaults. Others keep what was read, which somebody asked for."""


class Handler(fs.FSSpecHandler):  # type: ignore[misc]
    """An fsspec filesystem as pyarrow sees it; what fails is raised as it came."""

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        """What is in a folder, all of it."""
        if selector.recursive and not _walks(self.fs):
            found = self.fs.find(selector.base_dir, withdirs=True, detail=True).items()
        else:
            found = self._walk(selector.base_dir, deep=selector.recursive)
        folder = selector.base_dir.strip("/")
        return [self._create_file_info(path, info) for path, info in found if path.strip("/") != folder]

    def open_input_file(self, path: str) -> pa.PythonFile:
        """A file of which is read what is asked for."""
        file = self.fs.open(path, mode="rb")
        cache: Any = getattr(file, "cache", None)
        if getattr(cache, "name", None) in _AHEAD:
            from fsspec.caching import BaseCache  # type: ignore[import-untyped]

            file.cache = BaseCache(cache.blocksize, cache.fetcher, cache.size)
        return pa.PythonFile(file, mode="r")

    def _walk(self, folder: str, *, deep: bool) -> Iterator[tuple[str, Any]]:
        folders = [folder]
        while folders:
            folder = folders.pop()
            with suppress(FileNotFoundError):  # removed since it was listed
                for info in self.fs.ls(folder, detail=True):
                    yield info["name"], info
                    below = info["name"].strip("/") != folder.strip("/")
                    if deep and below and info["type"] == "directory":
                        folders.append(info["name"])


def handled(filesystem: fs.FileSystem) -> fs.FileSystem:
    """The filesystem, with this handler if it has pyarrow's."""
    if isinstance(filesystem, fs.PyFileSystem) and type(filesystem.handler) is fs.FSSpecHandler:
        return fs.PyFileSystem(Handler(filesystem.handler.fs))
    return filesystem


def _walks(filesystem: Any) -> bool:
    kinds = type(filesystem).__mro__
    owner = next((kind for name in ("_find", "find") for kind in kinds if name in vars(kind)), None)
    return owner is not None and owner.__module__ in _ONE_BY_ONE
