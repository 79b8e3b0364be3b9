"""Measures a real pipeline under a few allocations and fits a simulated job to it: what `intune profile` does."""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from intune.envs.calibrate import Calibration, calibrate
from intune.envs.measurement import Measurement
from intune.envs.observer import Observer
from intune.envs.probe import ProbeSettings, probe
from intune.envs.probe_plan import first_allocations, more_allocations
from intune.pipelines import Allocation, Budget, Loader, Pipeline
from intune.pipelines.errors import ConfigError
from intune.pipelines.executors.choice import choose, reach, usable_by
from intune.pipelines.reading.dataset import Dataset, open_dataset
from intune.pipelines.transforms.criteo import DENSE, SPARSE

ENOUGH_ROWS = 20_000_000
"""Rows of an epoch while measuring: data that is smaller is read several times over within one, lest the end of an
epoch, where a pipeline drains and fills again, be a part of every measurement."""

MOST_TIMES = 64
"""How many times over at most."""

SETTLE_SHARE = 0.25
"""Part of the time for an allocation in which nothing is measured yet."""

ALLOCATIONS = 12
"""Allocations that are measured at most."""

WARM_BATCHES = 8


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """What to measure.

    Attributes:
        data: a file, folder, glob or URI of Parquet files. Nulls among numbers are read as 0.
        transform: ``"criteo"``, ``"none"``, or where the user's function is: ``"module:function"``.
        batch_size: rows of a batch.
        shuffle: row groups of the shuffle's window; 0 for none.
        executor: see `Loader`.
        cpus, memory: of the budget; by default what the job may use.
        step_ms: milliseconds per batch that the trainer takes, 0 for one that is never the limit.
        seconds: of measuring altogether, at least one.
    """

    data: str
    transform: str = "criteo"
    batch_size: int = 8192
    shuffle: int = 0
    executor: Literal["auto", "threads", "ray"] = "threads"
    cpus: int | None = None
    memory: str | None = None
    step_ms: float = 0.0
    seconds: float = 60.0

    def __post_init__(self) -> None:
        for name, least in (("step_ms", 0.0), ("seconds", 1.0)):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not least <= value < math.inf:
                raise ConfigError(f"`{name}`={value!r} must be {least:g} or more and finite")


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What came out.

    Attributes:
        calibration: the fitted job.
        allocations: that were measured.
        measured: of each; predicted: the same by the fitted job.
    """

    calibration: Calibration
    allocations: tuple[Allocation, ...]
    measured: Measurement
    predicted: Measurement


def run_profile(config: ProfileConfig, progress: Callable[[int, float], None]) -> Profile:
    """Measure and fit.

    Args:
        config: what.
        progress: told of rows read and of the share of the work that is done.

    Raises:
        IntuneError: data that cannot be read, a transform that cannot be imported or fails, too little memory.
    """
    pipeline = make_pipeline(config)
    executor = choose(config.executor)
    reach(executor)
    budget = Budget.detect(cpus=config.cpus, memory=config.memory, usable=usable_by(executor))
    with pipeline.loader(executor=config.executor, budget=budget) as loader:
        _warm(loader)
        each = config.seconds / ALLOCATIONS
        settings = ProbeSettings(
            seconds=each * (1.0 - SETTLE_SHARE), settle=each * SETTLE_SHARE, step=config.step_ms / 1000.0
        )
        observer = Observer(loader)
        stages, cpus = loader.stages, loader.budget.cpus
        first = first_allocations(stages, cpus)
        part = len(first) / ALLOCATIONS
        found = probe(
            loader,
            first,
            settings,
            observer=observer,
            progress=lambda rows, share: progress(rows, share * part),
        )
        more = more_allocations(found.measured, stages, cpus, ALLOCATIONS - len(first))
        others = probe(
            loader,
            more,
            settings,
            observer=observer,
            progress=lambda rows, share: progress(rows, part + share * (1.0 - part)),
        )
    measured = Measurement.joined([*found.measured, *others.measured])
    fitted = calibrate(measured, stages, block_rows=others.block_rows)
    return Profile(
        calibration=fitted,
        allocations=(*first, *more),
        measured=measured,
        predicted=fitted.predict(measured.slots, measured.pool),
    )


def make_pipeline(config: ProfileConfig) -> Pipeline:
    """The pipeline that `config` describes, over data enough for the time it is measured.

    Raises:
        IntuneError: no such data, or a transform that cannot be imported or is not for it.
    """
    function = find_transform(config.transform)
    dataset = open_dataset(Pipeline.from_parquet(config.data).load.source)
    missing = [name for name in ("label", *DENSE, *SPARSE) if name not in dataset.columns]
    if config.transform == "criteo" and missing:
        raise ConfigError(
            f"`transform`='criteo' is for Criteo's columns, and `data` has no `{missing[0]}`; give 'none' "
            "to have none, or module:function, where your function is imported from"
        )
    # Without `fill`, nulls among integers are an error.
    pipeline = Pipeline.from_parquet([config.data] * _times(dataset), fill=0)
    if config.shuffle:
        pipeline = pipeline.shuffle(row_groups=config.shuffle, seed=0)
    pipeline = pipeline.batch(config.batch_size)
    if function is not None:
        pipeline = pipeline.map(function)
    return pipeline.to("cpu")


def find_transform(name: str) -> Callable[[dict[str, Any]], dict[str, Any]] | None:
    """The function that `name` stands for; None for no transform.

    Raises:
        ConfigError: it cannot be imported, or is none.
    """
    if name == "none":
        return None
    if name == "criteo":
        from intune.pipelines.transforms import criteo

        return criteo(size=1_000_003)
    module_name, colon, function_name = name.partition(":")
    if not (module_name and colon and function_name):
        raise ConfigError(
            f"`transform`={name!r} must be criteo, none, or module:function, where your function is imported from"
        )
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)  # as `python -m` does: the module may lie in the folder one works in
    try:
        function: Any = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"`transform`={name!r} cannot be imported: {error}") from error
    except SystemExit as error:  # a script that reads its own arguments, or trains, as soon as it is imported
        raise ConfigError(
            f"`transform`={name!r} cannot be imported: {module_name} ends the program; put what it does as a script "
            'under if __name__ == "__main__":'
        ) from error
    if not callable(function):
        raise ConfigError(
            f"`transform`={name!r} is {type(function).__name__}; name a function of a dict of columns"
        )
    found: Callable[[dict[str, Any]], dict[str, Any]] = function
    return found


def _times(dataset: Dataset) -> int:
    rows = int(dataset.row_groups().rows.sum())
    if rows < 1:
        raise ConfigError("`data` has no rows; there is nothing to measure")
    return min(MOST_TIMES, max(1, math.ceil(ENOUGH_ROWS / rows)))


def _warm(loader: Loader) -> None:
    """Open files and connections, start workers, import what is imported late; a mistake shows here."""
    for number, _ in enumerate(loader):
        if number + 1 >= WARM_BATCHES:
            return
