"""The search of a calibration: priors, misfit, where it begins, and the best that is found. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from intune.envs import calibrate_model, least_squares
from intune.envs.calibrate_model import Layout
from intune.envs.jobs import Floats
from intune.envs.measurement import Measurement
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

KNEE = 0.15
"""Believed width of a knee: bursts of tasks cost a tenth of the rate where slots and processors are in balance."""

LOCKED = 7.0
"""By how much the logit of a stage's contention is larger where the search begins with a lock: 0.02 becomes 0.95."""

CROWDING, SWITCHING = 0.02, 0.02
"""What is believed of both before anything is measured: small, but not nothing, so that of two allocations that a twin
has no other reason to tell apart the one with fewer slots is the better one."""

LEAST_TIME = 1e-10
"""Seconds per row of a stage that costs nothing: below what a clock tells."""

POWERS = (0.5, 0.65, 0.8, 0.92, 1.1)
"""Shares of the processors' nominal power with which the search begins; the last one is no limit."""

STORAGES = (3.0, 1.1, 1.0)
"""Limits of the storage with which it begins, in multiples of the best rate seen; the first one is no limit."""


def layout_of(measured: Measurement, block_rows: Sequence[float] | None) -> Layout:
    """What of a job is known beforehand.

    Args:
        measured: usable intervals of it.
        block_rows: rows of a task of each stage; a usual number where None.

    Raises:
        ConfigError: not a number of 1 or more for each stage.
    """
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
            np.full(count, np.log(CROWDING)),
            [np.log(max(step, LEAST_TIME)), np.log(KNEE), np.log(SWITCHING), 0.0, np.log(3.0 * best)],
        ]
    )
    spread = np.concatenate(
        [
            np.full(count, 0.3),
            np.full(count, 1.5),
            np.full(count, 2.0),
            np.full(count, 1.2),
            [0.05, 1.2, 1.0, 0.3, 1.0],
        ]
    )
    return centre, spread


def search(measured: Measurement, layout: Layout, iterations: int, starts: int) -> least_squares.Fitted:
    """The best of fits from several beginnings: parameters as `Layout.jobs` takes them.

    Whether a shared limit binds is a matter of yes or no, with no slope that leads from one to the other: beginnings
    with either are looked at first, all in one call, and the most promising are gone on from.
    """
    prior, deviation = _prior(measured, layout)
    low, high = _bounds(layout)
    residuals = _residuals(measured, layout)
    best = np.log(measured.delivered.max())
    beginnings = [(power, storage, 0.0) for power in np.log(POWERS) for storage in np.log(STORAGES)]
    beginnings.append((np.log(POWERS[-1]), np.log(STORAGES[0]), LOCKED))
    candidates = np.repeat(prior[None], len(beginnings), axis=0)
    power, storage, locked = np.array(beginnings).T
    candidates[:, -2], candidates[:, -1] = power, best + storage
    # One in which the stage that computes most holds a lock while it does.
    costliest = int(np.argmax(prior[: layout.stages]))
    candidates[:, layout.contention + costliest] += locked
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
            np.full(count, np.log(1e-6)),
            [-33.0, np.log(1e-2), np.log(1e-6), -2.0, -20.0],
        ]
    )
    high = np.concatenate(
        [
            np.full(2 * count, np.log(10.0)),
            np.full(count, 9.0),
            np.full(count, np.log(3.0)),
            [2.0, np.log(0.8), np.log(3.0), 0.5, 30.0],
        ]
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


def middle(values: Floats, otherwise: float) -> float:
    """The median of what is known; `otherwise` where nothing is."""
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else otherwise
