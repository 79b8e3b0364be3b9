"""What a command is to write: whether it can is found out before the work, not after it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

PICTURES = (".png", ".svg", ".pdf", ".jpg")
"""Endings of pictures that matplotlib draws without more packages."""


def check_file(option: str, path: Path | None) -> None:
    """A `ConfigError` if `path` cannot be a file to write; makes nothing."""
    if path is not None:
        _check(option, path, is_folder=False)


def check_folder(option: str, path: Path | None) -> None:
    """A `ConfigError` if `path` cannot be a folder to write to; makes nothing."""
    if path is not None:
        _check(option, path, is_folder=True)


def check_pictures(option: str, path: Path | None) -> None:
    """A `ConfigError` if pictures are asked for and there is nothing to draw them with."""
    from intune.pipelines.errors import ConfigError

    if path is not None and importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(f"`{option}` needs matplotlib; install it with: pip install 'intune[plots]'")


def check_picture(option: str, path: Path | None) -> None:
    """A `ConfigError` if `path` cannot be a picture to write; makes nothing."""
    from intune.pipelines.errors import ConfigError

    check_file(option, path)
    check_pictures(option, path)
    if path is not None and path.suffix.lower() not in PICTURES:
        raise ConfigError(f"`{option}`={str(path)!r} must end in one of {', '.join(PICTURES)}")


def write_all(*files: tuple[Path | None, Callable[[Path], object]]) -> tuple[list[Path], OSError | None]:
    """Write what is asked for, each by its function, into folders that are made where there are none.

    Returns:
        What was written, and the error of the last that could not be, which names it: what took long to compute can
        be shown before it is raised.
    """
    written, lost = [], None
    for path, write in files:
        if path is None:
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path)
        except OSError as error:  # that of a full disk names no file
            lost = OSError(error.errno, error.strerror, error.filename or str(path))
        else:
            written.append(path)
    return written, lost


def _check(option: str, path: Path, *, is_folder: bool) -> None:
    from intune.pipelines.errors import ConfigError

    try:
        if path.exists() and path.is_dir() != is_folder:
            what = "a file; give a folder" if is_folder else "a folder; give a file in it"
            raise ConfigError(f"`{option}`={str(path)!r} is {what}")
        at = path if path.exists() else _first_there(path)
        if at != path and not at.is_dir():
            raise ConfigError(f"`{option}`={str(path)!r}: {at} is a file, in which nothing can be written")
        allowed = os.access(at, os.W_OK | os.X_OK if at.is_dir() else os.W_OK)
    except OSError as error:
        raise ConfigError(f"`{option}`={str(path)!r} cannot be written: {error.strerror}") from error
    if not allowed:
        raise ConfigError(f"`{option}`={str(path)!r}: {at} may not be written to; give another place")


def _first_there(path: Path) -> Path:
    """The nearest folder above that there is."""
    return next((parent for parent in path.absolute().parents if parent.exists()), Path("/"))
