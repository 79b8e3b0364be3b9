"""Listing the folders of an fsspec filesystem, all of what is there or an error.

Most of fsspec's filesystems list a folder and those below it one after another and, where one cannot be listed just
then, go on without it (`walk` swallows every `OSError`). A training would go on with less data, and nobody would know.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from pyarrow import fs

_ONE_BY_ONE = ("fsspec.spec", "fsspec.asyn")
"""Where `find` is defined as one listing for each folder. Object stores have their own, of few requests for all."""


class Handler(fs.FSSpecHandler):  # type: ignore[misc]
    """An fsspec filesystem as pyarrow sees it, but for listings."""

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        """What is in a folder; what fails is raised as it came."""
        if selector.recursive and not _walks(self.fs):
            found = self.fs.find(selector.base_dir, withdirs=True, detail=True).items()
        else:
            found = self._walk(selector.base_dir, deep=selector.recursive)
        folder = selector.base_dir.strip("/")
        return [self._create_file_info(path, info) for path, info in found if path.strip("/") != folder]

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


def _walks(filesystem: Any) -> bool:
    kinds = type(filesystem).__mro__
    owner = next((kind for name in ("_find", "find") for kind in kinds if name in vars(kind)), None)
    return owner is not None and owner.__module__ in _ONE_BY_ONE
