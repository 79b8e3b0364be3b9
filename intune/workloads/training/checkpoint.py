"""Checkpoints on disk: written whole or not at all, read without running code that a file might contain."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from intune.pipelines.errors import ConfigError, CorruptError, NotFoundError, StorageError
from intune.pipelines.whole import at_least

PLAIN = (bool, int, float, str, bytes, type(None), torch.Tensor)
"""What a checkpoint may hold, in dicts, lists and tuples: all that ``torch.load(weights_only=True)`` reads."""

_NAME = re.compile(r"step-(\d{12})\.pt")
_PARTIAL = ".partial"


@dataclass(frozen=True, kw_only=True)
class CheckpointStore:
    """A folder of checkpoints, ``step-000000001200.pt`` and so on. One trainer at a time writes to it.

    Attributes:
        directory: made when the first checkpoint is written, if not before.
        keep: how many of the latest are kept, ≥ 1.
    """

    directory: Path
    keep: int = 3

    def __post_init__(self) -> None:
        at_least("keep", self.keep, 1)

    def paths(self) -> list[Path]:
        """The checkpoints there are, oldest first."""
        if not self.directory.is_dir():
            return []
        return sorted(path for path in self.directory.iterdir() if _NAME.fullmatch(path.name))

    def latest(self) -> Path | None:
        """The checkpoint of the highest step; None where there is none."""
        return max(self.paths(), default=None)

    def make_directory(self) -> None:
        """Make the folder now, to learn before training whether checkpoints can be written there.

        Raises:
            StorageError: it cannot be made, or written to.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"no checkpoints can be kept in {self.directory} ({error}); choose another folder"
            ) from error
        if not os.access(self.directory, os.W_OK | os.X_OK):
            raise StorageError(
                f"no checkpoints can be kept in {self.directory}, which may not be written to; choose another folder"
            )

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Write a checkpoint, then delete all but the latest `keep`.

        Whatever happens, be it a kill or a power cut, every checkpoint in the folder is whole: the data lies on
        disk before it gets its name, and older ones are deleted after that.

        Raises:
            ConfigError: `state` holds something that could not be read again (see `PLAIN`).
            StorageError: the file could not be written; the earlier checkpoints are still there.
        """
        require_plain(state)
        path = self.directory / f"step-{step:012d}.pt"
        partial = path.with_name(path.name + _PARTIAL)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._remove_partial()
            with partial.open("wb") as file:
                torch.save(dict(state), file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            _sync_directory(self.directory)
        except (OSError, RuntimeError) as error:  # torch reports a failed write as a RuntimeError
            if self.directory.is_dir():
                self._remove_partial()
            raise StorageError(
                f"checkpoint {path} could not be written ({error}); free some space or choose another folder, "
                f"then resume from the checkpoint before it"
            ) from error
        for old in self.paths()[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    def _remove_partial(self) -> None:
        """Delete what a trainer that was killed while writing has left."""
        for path in self.directory.glob(f"step-*{_PARTIAL}"):
            path.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The state in a checkpoint, tensors on the CPU. No code in the file is run (``weights_only=True``).

    Raises:
        NotFoundError: there is no such file.
        StorageError: it may not be read.
        CorruptError: it is not a checkpoint, is cut short, or holds objects that only running code could make.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise NotFoundError(
            f"checkpoint {path} does not exist; name a step-….pt file or its folder"
        ) from error
    except PermissionError as error:
        raise StorageError(f"checkpoint {path} may not be read ({error}); change its rights") from error
    except Exception as error:
        # Bytes that are no checkpoint make torch raise nearly anything: OSError, KeyError, IndexError, AttributeError …
        reason = f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(": ")
        raise CorruptError(
            f"checkpoint {path} cannot be read ({reason}); delete it to resume from the one before"
        ) from error
    if not isinstance(state, dict):
        raise CorruptError(f"checkpoint {path} holds a {type(state).__name__} instead of a trainer's state")
    return state


def require_plain(value: Any, where: str = "state") -> None:
    """Raise a `ConfigError`, naming the place, unless `value` is made of `PLAIN` things only."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            if type(key) not in (str, int):
                raise ConfigError(
                    f"`{where}` has the key {key!r}, but only str and int can be read again from a checkpoint"
                )
            require_plain(entry, f"{where}.{key}")
    elif type(value) in (list, tuple):
        for position, entry in enumerate(value):
            require_plain(entry, f"{where}[{position}]")
    elif not isinstance(value, torch.Tensor) and type(value) not in PLAIN:
        raise ConfigError(
            f"`{where}` is a {type(value).__name__}, which a checkpoint cannot hold safely; "
            f"use numbers, strings, lists, dicts and tensors"
        )


def _sync_directory(directory: Path) -> None:
    """Make a rename survive a power cut."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
