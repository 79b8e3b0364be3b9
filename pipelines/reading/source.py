"""What a user says of the data: which files, which columns, what stands for nulls. Nothing has been looked at."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pyarrow import fs

from intune.pipelines.errors import ConfigError
from intune.pipelines.schema import in_order

EVERY_NUMBER = ""
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
    if not (filesystem is None or isinstance(filesystem, fs.FileSystem) or hasattr(filesystem, "open")):
        raise ConfigError(f"`filesystem`={filesystem!r} must be a pyarrow or fsspec filesystem")
    return Source(
        paths=tuple(str(Path(path)) if isinstance(path, os.PathLike) else str(path) for path in paths),
        filesystem=filesystem,
        columns=None if columns is None else _patterns(columns),
        fill=() if fill is None else _pairs(fill),
    )


def _patterns(columns: Any) -> tuple[str, ...]:
    single = isinstance(columns, str) or not isinstance(columns, Iterable)
    names = (columns,) if single else in_order(columns)
    if not all(isinstance(name, str) for name in names):
        raise ConfigError(f"`columns`={columns!r} must be names or patterns of columns")
    if not names:
        raise ConfigError("`columns` is empty; name at least one, or leave it out to read all")
    return names


def _pairs(fill: Any) -> tuple[tuple[str, Any], ...]:
    if isinstance(fill, Mapping):
        if not all(isinstance(name, str) for name in fill):
            raise ConfigError(f"`fill`={fill!r} must have names or patterns of columns as its keys")
        return tuple(fill.items())
    if not isinstance(fill, int | float | np.number | np.bool_):
        raise ConfigError(
            f"`fill`={fill!r} must be a number, for all columns of numbers, or a mapping from names or patterns"
        )
    return ((EVERY_NUMBER, fill),)
