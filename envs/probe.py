"""Runs a real pipeline for a while under one allocation after another, and measures each: what a calibration needs.

Acts: it consumes the loader itself, with a trainer that only waits, or that the caller gives.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from intune.envs.jobs import Floats
from intune.envs.measurement import Measurement
from intune.envs.observer import Observer
from intune.envs.tunable import Tunable
from intune.pipelines.allocation import Allocation
from intune.pipelines.allocators import give_back
from intune.pipelines.errors import ConfigError

SAMPLES = 6
"""Looks at the resident memory in one measurement: the most of them counts."""


LONGER, GAP = 4.0, 0.15
"""A measurement goes on while the longest gap between two batches is more than this part of it: a window of a shuffle
is delivered at once, and two such bursts tell no rate."""

END_S = 0.05
"""Seconds for tasks under way to end: most take less."""

PATIENCE = 4.0
"""Multiples of the time to settle after which it is measured anyway, whether queues still fill or not."""

FILLING = 1.1
"""Growth of what waits in queues, from one look to the next, from which on they still fill."""


class Readable(Tunable, Protocol):
    """What is probed: a `Loader`, for one."""

    def __iter__(self) -> Iterator[Any]:
        """One epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next loop reads."""


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """How long, and what the trainer does.

    Attributes:
        seconds: measured under each allocation; up to `LONGER` times as long where batches come in few large bursts.
        settle: seconds before that, in which queues fill; up to `PATIENCE` times as many while they still do.
        step: seconds per batch that the trainer takes, without using a processor (a device computes).
        train: called with every batch instead, if given.

    Raises:
        ConfigError: negative or no time.
    """

    seconds: float = 1.5
    settle: float = 0.5
    step: float = 0.0
    train: Callable[[Any], object] | None = None

    def __post_init__(self) -> None:
        for name, least in (("seconds", 1e-3), ("settle", 0.0), ("step", 0.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < 3600:
                raise ConfigError(f"`{name}`={value!r} must be seconds from {least:g} to 3600")


@dataclass(frozen=True, kw_only=True)
class Probed:
    """What was measured.

    Attributes:
        measured: one interval for each allocation.
        block_rows: ``[S]`` rows of a task.
    """

    measured: tuple[Measurement, ...]
    block_rows: tuple[float, ...]


def probe(
    loader: Readable,
    allocations: Sequence[Allocation],
    settings: ProbeSettings,
    *,
    observer: Observer | None = None,
    progress: Callable[[int, float], None] = lambda rows, share: None,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
) -> Probed:
    """Measure `loader` under each of `allocations`, every one from the beginning of an epoch of its own.

    Args:
        loader: nobody else reads it meanwhile.
        allocations: complete ones (all stages, or a pool).
        settings: see `ProbeSettings`.
        observer: measures; by default one with what is resident now as its base.
        progress: told of rows read and of the share of the work that is done.
        clock, sleep: injected in tests.
    """
    observer = Observer(loader) if observer is None else observer
    measured = []
    for number, allocation in enumerate(allocations):
        loader.resize(allocation)
        # The tasks of the loop before end for nobody; only then is their memory free.
        sleep(END_S)
        give_back()
        run = _Run(loader, observer, settings, number, clock, sleep)
        measured.append(run.measure())
        progress(loader.stats().rows, (number + 1) / len(allocations))
    stages = loader.stats().stages
    rows = tuple(stage.rows / stage.tasks if stage.tasks else 1.0 for stage in stages)
    return Probed(measured=tuple(measured), block_rows=rows)


class _Run:
    """One allocation."""

    def __init__(
        self,
        loader: Readable,
        observer: Observer,
        settings: ProbeSettings,
        number: int,
        clock: Callable[[], float],
        sleep: Callable[[float], object],
    ) -> None:
        self._loader, self._observer, self._settings = loader, observer, settings
        self._epoch = number
        self._clock, self._sleep = clock, sleep
        self._began: float | None = None
        self._arrivals: list[tuple[float, int]] = []
        self._gap = 0.0
        self._resident: list[float] = []
        self._looked, self._waited = settings.settle / 2.0, math.inf

    def measure(self) -> Measurement:
        """Read until the time is over, epoch after epoch if need be."""
        start = self._clock()
        while True:
            self._loader.set_epoch(self._epoch)
            for batch in self._loader:
                now = self._clock()
                if self._began is None and self._settled(now - start):
                    # Once more: tasks of the loop before may have ended since (reads from far storage take long). Idle
                    # workers have let go of what their allocators kept (`pipelines.idle`), other processes' as well.
                    give_back()
                    self._began = now = self._clock()
                    self._observer.skip()
                if self._began is not None and self._take(now, batch):
                    return self._result()
                self._train(batch)
            self._epoch += 1

    def _settled(self, gone: float) -> bool:
        """Whether queues have filled, as far as can be seen in passing."""
        if gone < self._looked:
            return False
        settle = self._settings.settle
        self._looked = gone + settle / 4.0
        waits = sum(stage.queue for stage in self._loader.stats().stages)
        fills = waits > FILLING * self._waited
        self._waited = float(waits)
        return gone >= settle and (not fills or gone >= PATIENCE * settle)

    def _train(self, batch: Any) -> None:
        if self._settings.train is not None:
            self._settings.train(batch)
        elif self._settings.step:
            self._sleep(self._settings.step)

    def _take(self, now: float, batch: Any) -> bool:
        """Note a batch; whether it was the last."""
        assert self._began is not None
        gone = now - self._began
        if self._arrivals:
            self._gap = max(self._gap, now - self._arrivals[-1][0])
        self._arrivals.append((now, rows_of(batch)))
        if gone >= self._settings.seconds * len(self._resident) / SAMPLES:
            self._resident.append(self._observer.resident())
        least = self._settings.seconds
        return gone >= least and (self._gap <= GAP * gone or gone >= LONGER * least)

    def _result(self) -> Measurement:
        measured = self._observer.measure()
        rate = steady_rate(self._arrivals)
        used = np.array([max([*self._resident, float(measured.memory_used[0])])])
        if rate > 0:
            measured = replace(measured, delivered=np.array([rate]))
        return replace(measured, memory_used=used)


def steady_rate(arrivals: Sequence[tuple[float, int]]) -> float:
    """Rows/s of a straight line through the rows that had arrived at each time (least squares); 0 if unknown.

    Args:
        arrivals: pairs of time and rows that came then, in order.
    """
    if len(arrivals) < 3:
        return 0.0
    times = np.array([time for time, _ in arrivals])
    rows = np.cumsum([count for _, count in arrivals], dtype=np.float64)
    span = times[-1] - times[0]
    if span <= 0:
        return 0.0
    # As a staircase sampled evenly in time: a burst of batches is one step, not many points.
    grid = np.linspace(times[0], times[-1], 400, endpoint=False)
    came: Floats = rows[np.searchsorted(times, grid, side="right") - 1]
    centred = grid - grid.mean()
    return float(centred @ came / (centred @ centred))


def rows_of(batch: Any) -> int:
    """Rows of a batch."""
    first = next(iter(batch.values()))
    return len(first)
