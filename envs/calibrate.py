"""From measurements of a pipeline under several allocations to a simulated job that behaves like it. Pure.

Rates, times and processor seconds of all stages are fitted together, through the simulator's own physics
(`model.py`), with priors for what the measurements do not show; resident memory afterwards, which is linear in
the slots. Every parameter comes with its uncertainty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from intune.envs import calibrate_memory, calibrate_model, least_squares
from intune.envs.calibrate_model import PER_STAGE, Layout
from intune.envs.jobs import Floats, Jobs
from intune.envs.measurement import Measurement
from intune.envs.scenario import Scenario
from intune.pipelines.errors import ConfigError

RATE_NOISE, TIME_NOISE = 0.03, 0.12
"""Standard deviation of the logarithm of a rate and of a time per row over an interval of a second or two, as measured
on machines that do other things besides: a stage's time counts whole tasks only, the rate is known better."""

IMPORTANT = 0.1
"""Share of the time per row of all stages from which on a stage's own time counts fully: what takes a hundredth of
that is measured badly, and does not matter."""

CROWDED, CROWDED_TRUST = 0.9, 0.2
"""Share of the processors in use from which on a stage's time tells little of it: much of that is queueing for one of
them, by rules (who decodes first, whom the system prefers) that are none of its own."""

LEAST_TIME = 1e-10
"""Seconds per row of a stage that costs nothing: below what a clock tells."""

POWERS = (0.5, 0.65, 0.8, 0.92, 1.1)
"""Shares of the processors' nominal power with which the search begins; the last one is no limit."""

STORAGES = (3.0, 1.1, 1.0)
"""Limits of the storage with which it begins, in multiples of the best rate seen; the first one is no limit."""

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

    def predict(self, slots: Floats, pool: Floats) -> Measurement:
        """What would be measured under each of A allocations, once settled: see `calibrate_model.predict`."""
        return calibrate_model.predict(self.jobs, slots, pool)


def calibrate(
    measured: Measurement | Sequence[Measurement],
    stages: Sequence[str],
    *,
    block_rows: Sequence[float] | None = None,
    slots_per_cpu: float | None = None,
    interval: float = 5.0,
    iterations: int = 25,
    starts: int = 3,
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
    layout = _layout(sound, block_rows)
    found = _search(sound, layout, iterations, starts)
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
    jobs = _without_limits(jobs, found.values, layout)
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


# ---- what is fitted ------------------------------------------------------------------------------------------


def middle(values: Floats, otherwise: float) -> float:
    """The median of what is known; `otherwise` where nothing is."""
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else otherwise


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


def _layout(measured: Measurement, block_rows: Sequence[float] | None) -> Layout:
    count = int(measured.present[0].sum())
    rows = np.full(count, 32_768.0) if block_rows is None else np.asarray(block_rows, dtype=np.float64)
    if rows.shape != (count,) or not (rows >= 1).all():
        raise ConfigError(f"`block_rows`={rows.tolist()} must be {count} numbers of 1 or more")
    size = np.nan_to_num(measured.block_bytes[-1, :count])
    own = measured.cpus_used - measured.cpu[:, :count].sum(axis=1)
    beside = middle(np.maximum(own, 0.0) / measured.delivered, 0.0)
    return Layout(
        stages=count,
        cpus=float(np.round(np.median(measured.cpus))),
        step_cpu=beside,
        row_bytes=size / rows,
        block_rows=rows,
    )


def _prior(measured: Measurement, layout: Layout) -> tuple[Floats, Floats]:
    """What is believed before anything is fitted, and how firmly (standard deviation of the logarithm)."""
    count = layout.stages
    rate = measured.rate[:, :count]
    cpu = np.maximum(measured.cpu[:, :count] / rate, LEAST_TIME)
    # The least seen: everything that makes a task wait beside its own storage comes on top.
    idle = np.maximum((measured.busy - measured.cpu)[:, :count] / rate, 0.0)
    own = np.quantile(cpu, 0.25, axis=0)
    wait = np.maximum(idle.min(axis=0), 0.01 * own + LEAST_TIME)
    step = middle(measured.step, LEAST_TIME)
    best = measured.delivered.max()
    centre = np.concatenate(
        [
            np.log(own),
            np.log(wait),
            np.full(count, np.log(0.02)),
            np.full(count, np.log(1e-5)),
            [np.log(max(step, LEAST_TIME)), 0.0, np.log(3.0 * best)],
        ]
    )
    spread = np.concatenate(
        [np.full(count, 0.3), np.full(count, 1.5), np.full(count, 2.0), np.full(count, 2.5), [0.05, 0.3, 1.0]]
    )
    return centre, spread


def _search(measured: Measurement, layout: Layout, iterations: int, starts: int) -> least_squares.Fitted:
    """The best of fits from several beginnings.

    Whether a shared limit binds is a matter of yes or no, with no slope that leads from one to the other: beginnings
    with either are looked at first, all in one call, and the most promising are gone on from.
    """
    prior, deviation = _prior(measured, layout)
    low, high = _bounds(layout)
    residuals = _residuals(measured, layout)
    candidates = np.repeat(prior[None], len(POWERS) * len(STORAGES), axis=0)
    power, storage = np.meshgrid(np.log(POWERS), np.log(STORAGES), indexing="ij")
    candidates[:, -2] = power.ravel()
    candidates[:, -1] = np.log(measured.delivered.max()) + storage.ravel()
    misfits = np.square(least_squares.robust(np.nan_to_num(residuals(candidates), nan=1e3))).sum(axis=1)
    order = list(np.argsort(misfits, kind="stable"))
    # One beginning without any limit is always among them: it is what most jobs are.
    chosen = [*order[:starts], len(STORAGES) * (len(POWERS) - 1)] if starts > 1 else order[:1]
    fits = [
        least_squares.fit(
            residuals,
            candidates[at],
            prior=prior,
            prior_deviation=deviation,
            low=low,
            high=high,
            iterations=iterations,
        )
        for at in dict.fromkeys(chosen)
    ]
    return min(fits, key=lambda each: each.cost)


def _bounds(layout: Layout) -> tuple[Floats, Floats]:
    count = layout.stages
    low = np.concatenate(
        [
            np.full(2 * count, np.log(1e-13)),
            np.full(count, -9.0),
            np.full(count, np.log(1e-9)),
            [-33.0, -2.0, -20.0],
        ]
    )
    high = np.concatenate(
        [np.full(2 * count, np.log(10.0)), np.full(count, 9.0), np.full(count, np.log(0.3)), [2.0, 0.5, 30.0]]
    )
    return low, high


def _residuals(measured: Measurement, layout: Layout) -> Callable[[Floats], Floats]:
    """``[K, P]`` parameters -> ``[K, M]`` how far off what they predict is, in standard deviations."""
    count, intervals = layout.stages, len(measured)
    rate = measured.rate[:, :count]
    times = np.maximum(measured.busy[:, :count] / rate, LEAST_TIME)
    work = np.maximum(measured.cpu[:, :count] / rate, LEAST_TIME)
    used = np.fmax(measured.cpus_used, measured.cpu[:, :count].sum(axis=1)) / measured.cpus
    trust = np.where(used > CROWDED, CROWDED_TRUST, 1.0)[:, None] / TIME_NOISE
    matters = np.minimum(times / times.sum(axis=1, keepdims=True) / IMPORTANT, 1.0) * trust
    matters_cpu = np.minimum(work / work.sum(axis=1, keepdims=True) / IMPORTANT, 1.0) / TIME_NOISE
    log_rate, log_times, log_work = np.log(measured.delivered), np.log(times), np.log(work)
    # Where slots are shared, the search starts from where they were seen to be.
    seen = np.where(measured.pool[:, None] > 0, measured.busy, 1.0)

    def residuals(values: Floats) -> Floats:
        candidates = len(values)
        jobs = layout.jobs(values).take(np.repeat(np.arange(candidates), intervals))
        found = calibrate_model.at_rest(
            jobs,
            np.tile(measured.slots, (candidates, 1)),
            np.tile(measured.pool, candidates),
            np.tile(seen, (candidates, 1)),
        )
        passed = np.maximum(found.rate, 1e-12)
        busy = np.log(np.maximum(found.busy / passed, 1e-14)).reshape(candidates, intervals, count)
        cpu = np.log(np.maximum(found.cpu / passed, 1e-14)).reshape(candidates, intervals, count)
        delivered = np.log(np.maximum(found.delivered, 1e-12)).reshape(candidates, intervals)
        parts = [
            (delivered - log_rate) / RATE_NOISE,
            ((busy - log_times) * matters).reshape(candidates, -1),
            ((cpu - log_work) * matters_cpu).reshape(candidates, -1),
        ]
        return np.concatenate(parts, axis=1)

    return residuals


# ---- what comes out ------------------------------------------------------------------------------------------


def _without_limits(jobs: Jobs, values: Floats, layout: Layout) -> Jobs:
    """Limits that nothing measured came near are left out, instead of being guessed."""
    changes: dict[str, Floats] = {}
    if values[-2] >= -0.02:
        changes |= {"memory_bandwidth": np.array([np.inf]), "traffic": np.zeros_like(jobs.traffic)}
    most = np.exp(values[-1])
    waits = jobs.wait[0, 0] > 0.2 * (jobs.cpu + jobs.wait)[0, 0]
    if not waits or most > 2.5 * layout.cpus / max(float(jobs.cpu.sum()), 1e-300):
        changes |= {
            "storage_rate": np.array([np.inf]),
            "storage_requests": np.zeros_like(jobs.storage_requests),
        }
    return jobs.with_(**changes)


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
    known["job.step"] = float(min(found.deviation[-3], 3.0))
    if np.isfinite(jobs.memory_bandwidth[0]):
        known["job.memory_bandwidth"] = float(min(found.deviation[-2], 3.0))
    if np.isfinite(jobs.storage_rate[0]):
        known["job.storage_rate"] = float(min(found.deviation[-1], 3.0))
    known["job.base_bytes"] = float(min(memory.base_deviation, 3.0))
    return known
