"""Frozen descriptions of a pipeline's stages: what each does, not how it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from intune.pipelines.errors import ConfigError
from intune.pipelines.reading.source import Source
from intune.pipelines.whole import at_least

MapFunction: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Load:
    """Read row groups of Parquet files.

    Attributes:
        source: the files, columns and fills.
        retries: how often a read that failed in storage is tried again, waiting longer each time.
    """

    source: Source
    retries: int = 4
    name: str = "load"

    def __post_init__(self) -> None:
        object.__setattr__(self, "retries", at_least("retries", self.retries, 0))


@dataclass(frozen=True, kw_only=True)
class Shuffle:
    """Mix rows within windows of `row_groups` row groups, read in random order; after `Batch`, whole batches.

    Attributes:
        row_groups: window; small row groups that are read together count as one.
        seed: with the epoch, decides the order.
    """

    row_groups: int = 8
    seed: int = 0
    name: str = "shuffle"

    def __post_init__(self) -> None:
        object.__setattr__(self, "row_groups", at_least("row_groups", self.row_groups, 1))
        object.__setattr__(self, "seed", at_least("seed", self.seed, 0))


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Cut the rows into batches of `size`; `drop_last` leaves out what does not fill one on every rank."""

    size: int
    drop_last: bool = False
    name: str = "batch"

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", at_least("batch_size", self.size, 1))


@dataclass(frozen=True, kw_only=True)
class Map:
    """Run the user's function on every batch (before `Batch`: on every block of rows).

    Attributes:
        function: ``dict[str, column] -> dict[str, column]`` with as many rows as it was given.
        workers: ``"thread"``, or ``"process"`` for code that holds Python's lock.
        timeout: seconds one call may take, None for no limit.
        rowwise: whether a row of the output depends on the same row of the input alone, so that the function may
            be given many batches at once, joined (see `joining`).
    """

    function: MapFunction
    workers: Literal["thread", "process"] = "thread"
    timeout: float | None = None
    rowwise: bool = False
    name: str = "transform"

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise ConfigError(f"`function` must be callable, but {type(self.function).__name__} was given")
        if self.workers not in ("thread", "process"):
            raise ConfigError(f"`workers`={self.workers!r} is unknown; use 'thread' or 'process'")
        if self.timeout is not None and not (
            isinstance(self.timeout, int | float) and 0 < self.timeout < float("inf")
        ):
            raise ConfigError(f"`timeout`={self.timeout!r} must be seconds above 0, or None for no limit")


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Bring batches to the trainer's device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``…"""

    device: str = "cpu"
    name: str = "transfer"

    def __post_init__(self) -> None:
        kind, colon, index = self.device.partition(":")
        if kind not in ("cpu", "cuda") or (colon and not index.isdigit()):
            raise ConfigError(f"`device`={self.device!r} is unknown; use 'cpu', 'cuda' or 'cuda:N'")


Stage: TypeAlias = Load | Shuffle | Batch | Map | Transfer
