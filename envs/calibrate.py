"""From measurements of a pipeline under several allocations to a simulated job that behaves like it. Pure.

Rates, times and processor seconds of all stages are fitted together, through the simulator's own physics
(`model.py`), with priors for what the measurements do not show; resident memory afterwards, which is linear in
the slots. Every parameter comes with its uncertainty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import ArrayLike

from intune.envs import calibrate_memory, calibrate_model, least_squares
from intune.envs.calibrate_model import PER_STAGE, Layout
from intune.envs.calibrate_search import RATE_NOISE, layout_of, middle, search
from intune.envs.jobs import Jobs
from intune.envs.measurement import Measurement
from intune.envs.scenario import Scenario
from intune.pipelines.errors import ConfigError

INTERVALS = 24
"""Latest intervals that a twin of a running job is made of."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A fitted job.

    Attributes:
        jobs: one job.
        stages: names of its stages.
        uncertainty: relative standard deviation of its values, by names such as ``"load.cpu"``.
        misfit: mean square of how far off the fit is of what it was made from, in standard deviations of the noise
            assumed; much above 1, the physics misses something.
        rate_error: median of |fitted rate / measured - 1| over what it was made from.
    """

    jobs: Jobs
    stages: tuple[str, ...]
    uncertainty: Mapping[str, float]
    misfit: float
    rate_error: float

    def scenario(self, name: str, description: str = "") -> Scenario:
        """As a scenario that can be saved to a file; `Scenario.uncertain` draws from around it."""
        return Scenario.from_jobs(
            self.jobs,
            name=name,
            stage_names=self.stages,
            description=description,
            uncertainty=self.uncertainty,
        )

    def predict(self, slots: ArrayLike, pool: ArrayLike) -> Measurement:
        """What would be measured under each of A allocations, once settled: see `calibrate_model.predict`.

        Raises:
            ConfigError: not ``[A, S]`` slots and ``[A]`` pools.
        """
        slots, pool = np.asarray(slots, dtype=np.float64), np.asarray(pool, dtype=np.float64)
        if slots.ndim != 2 or pool.shape != slots.shape[:1]:
            raise ConfigError(
                f"`slots` has shape {slots.shape} and `pool` {pool.shape}; give a row of {len(self.stages)} slots and "
                "a pool (0: none) for each allocation"
            )
        return calibrate_model.predict(self.jobs, slots, pool)


def calibrate(
    measured: Measurement | Sequence[Measurement],
    stages: Sequence[str],
    *,
    block_rows: Sequence[float] | None = None,
    slots_per_cpu: float | None = None,
    interval: float = 5.0,
    iterations: int = 25,
    starts: int = 4,
) -> Calibration:
    """Fit a job.

    Args:
        measured: intervals of one pipeline (N intervals), each settled under its allocation; the more the allocations
            differ, the more can be told apart. Those that are not sound are left out.
        stages: names of its stages.
        block_rows: rows of a task of each stage.
        slots_per_cpu: slots that may be given out, for the scenario; by default as measured.
        interval: seconds between two decisions, for the scenario.
        iterations: of the fit, at most, from each of the `starts`.

    Raises:
        ConfigError: no sound measurement, or not as many names as stages.
    """
    sound = _sound(measured, stages)
    layout = layout_of(sound, block_rows)
    found = search(sound, layout, iterations, starts)
    jobs = layout.jobs(found.values[None])
    predicted = calibrate_model.predict(jobs, sound.slots, sound.pool)
    memory = calibrate_memory.fit(sound, predicted)
    error = np.abs(predicted.delivered / sound.delivered - 1.0)
    noise = _noise(sound)
    given = float(np.median(sound.slot_limit / sound.cpus)) if slots_per_cpu is None else slots_per_cpu
    jobs = jobs.with_(
        slot_bytes=memory.slot_bytes[None],
        base_bytes=np.array([memory.base_bytes]),
        memory=np.full((1, 1), middle(sound.memory_limit, np.inf)),
        noise=np.array([noise]),
        memory_noise=np.array([min(memory.noise, 0.5)]),
        slots_per_cpu=np.array([max(given, 1.0)]),
        interval=np.array([float(interval)]),
    )
    if found.values[-2] >= -0.02:
        # A limit that nothing measured came near is left out, instead of being guessed.
        jobs = jobs.with_(memory_bandwidth=np.array([np.inf]), traffic=np.zeros_like(jobs.traffic))
    return Calibration(
        jobs=jobs,
        stages=tuple(stages),
        uncertainty=_uncertainty(tuple(stages), found, layout, memory, jobs),
        misfit=found.misfit,
        rate_error=float(np.median(error)),
    )


def twin_of(history: Sequence[Measurement], *, stages: Sequence[str] | None = None) -> Jobs:
    """A simulated job like the one that runs, from its latest intervals; some tens of milliseconds.

    Args:
        history: what was measured, interval by interval, of one job; the latest `INTERVALS` sound ones count.
        stages: names; only how many there are matters.

    Raises:
        ConfigError: nothing in it can be used.
    """
    kept = [each for each in history if bool(_usable(each)[0])][-INTERVALS:]
    if not kept:
        raise ConfigError("`history` has no interval in which every stage worked and rows were delivered")
    count = int(kept[0].present[0].sum())
    names = tuple(f"stage {at + 1}" for at in range(count)) if stages is None else stages
    return calibrate(_merged(kept), names, iterations=6, starts=1).jobs


# ---- what goes in --------------------------------------------------------------------------------------------


def _sound(measured: Measurement | Sequence[Measurement], stages: Sequence[str]) -> Measurement:
    if not isinstance(measured, Measurement) and not len(measured):
        raise ConfigError("`measured` is empty; give one interval at least")
    joined = measured if isinstance(measured, Measurement) else Measurement.joined(list(measured))
    count = int(joined.present[0].sum())
    if len(stages) != count:
        raise ConfigError(f"`stages` has {len(stages)} names, but {count} stages were measured")
    sound = joined.take(_usable(joined))
    if not len(sound):
        raise ConfigError(
            "`measured` has no interval in which every stage worked and rows were delivered; measure longer, or with "
            "other allocations"
        )
    return sound


def _usable(measured: Measurement) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    worked = (measured.rate > 0) & (measured.busy > 0) | ~measured.present
    usable: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] = (
        measured.sound() & worked.all(axis=1) & ~measured.killed
    )
    return usable


def _merged(history: Sequence[Measurement]) -> Measurement:
    """One interval for each allocation, the mean of all of it: a job mostly runs with few of them."""
    joined = Measurement.joined(list(history))
    key = np.column_stack([joined.pool, np.where(joined.pool[:, None] > 0, 0.0, joined.slots)])
    _, which = np.unique(key, axis=0, return_inverse=True)
    parts = []
    for each in range(int(which.max()) + 1):
        same = joined.take(np.flatnonzero(which.ravel() == each))
        parts.append(_mean(same))
    return Measurement.joined(parts)


def _mean(same: Measurement) -> Measurement:
    last = same.take(slice(len(same) - 1, len(same)))
    values = {
        field.name: np.mean(getattr(same, field.name), axis=0, keepdims=True)
        for field in fields(same)
        if field.name not in ("present", "slots", "pool", "killed")
    }
    return replace(last, **values)


# ---- what comes out ------------------------------------------------------------------------------------------


def _noise(measured: Measurement) -> float:
    """Standard deviation of the logarithm of the rate between intervals with the same allocation."""
    key = np.column_stack([measured.pool, measured.slots])
    _, which = np.unique(key, axis=0, return_inverse=True)
    which = which.ravel()
    logs = np.log(measured.delivered)
    squares, freedom = 0.0, 0
    for each in np.unique(which):
        own = logs[which == each]
        squares += float(np.square(own - own.mean()).sum())
        freedom += len(own) - 1
    return float(np.clip(np.sqrt(squares / freedom), 0.005, 0.5)) if freedom else RATE_NOISE


def _uncertainty(
    stages: tuple[str, ...],
    found: least_squares.Fitted,
    layout: Layout,
    memory: calibrate_memory.MemoryFit,
    jobs: Jobs,
) -> dict[str, float]:
    count = layout.stages
    known: dict[str, float] = {}
    for at, name in enumerate(PER_STAGE):
        spread = found.deviation[at * count : (at + 1) * count]
        if name == "contention":
            spread = spread * (1.0 - jobs.contention[0])
        for stage, value in zip(stages, spread, strict=True):
            known[f"{stage}.{name}"] = float(min(value, 3.0))
    for stage, value in zip(stages, memory.deviation, strict=True):
        known[f"{stage}.slot_bytes"] = float(min(value, 3.0))
    for name, at in (("step", -5), ("knee", -4), ("switching", -3)):
        known[f"job.{name}"] = float(min(found.deviation[at], 3.0))
    if np.isfinite(jobs.memory_bandwidth[0]):
        known["job.memory_bandwidth"] = float(min(found.deviation[-2], 3.0))
    if np.isfinite(jobs.storage_rate[0]):
        known["job.storage_rate"] = float(min(found.deviation[-1], 3.0))
    known["job.base_bytes"] = float(min(memory.base_deviation, 3.0))
    return known
