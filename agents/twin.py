"""`Twin`: what an agent believes about its job, learnt from measurements while the job runs, and what it predicts.

Every stage's time per row is taken to grow with the slots at work as in the Universal Scalability Law (Gunther
2007): ``s(n) = a + b (n - 1) + c n (n - 1)``, linear in its coefficients, so a Kalman filter per stage learns
them with their uncertainty. Vectorised over N jobs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from intune.envs.jobs import Bools, Floats
from intune.envs.measurement import Measurement

GRID: Any = np.unique(
    np.concatenate([np.arange(1, 33), np.round(np.geomspace(33, 1024, 36))]).astype(np.int64)
).astype(np.float64)
"""Numbers of slots that plans are made of: all small ones, then steps of a tenth."""

_LOOK: Any = np.stack([np.ones_like(GRID), GRID - 1.0, GRID * (GRID - 1.0)], axis=-1)

PRIOR = np.array([1.0, 0.015, 0.0002])
"""Coefficients before anything was seen, as multiples of the first time per row: mild contention."""

PRIOR_DEVIATION = np.array([0.15, 0.06, 0.0003])
"""Their standard deviations. The last is small: a stage that looks retrograde mostly was measured badly."""

NOISE = 0.08
"""Standard deviation of a time per row measured over one interval, as a share."""

FORGETTING = 0.02
"""Standard deviation by which a time per row may wander in one interval, as a share: data drift."""


class Twin:
    """Beliefs about N jobs of at most S stages.

    Attributes:
        scale: ``[N, S]`` seconds per row at first measured; 0 where nothing was.
        mean: ``[N, S, 3]`` coefficients a, b, c as multiples of `scale`.
        cpu: ``[N, S]`` processor seconds per row.
        trainer_cpu: ``[N]`` processor seconds per row of the trainer.
        best: ``[N]`` most rows/s delivered so far.
    """

    def __init__(self, jobs: int, stages: int) -> None:
        self.scale: Floats = np.zeros((jobs, stages))
        self.mean: Floats = np.tile(PRIOR, (jobs, stages, 1))
        self._spread: Floats = np.tile(np.diag(PRIOR_DEVIATION**2), (jobs, stages, 1, 1))
        self.cpu: Floats = np.zeros((jobs, stages))
        self.trainer_cpu: Floats = np.zeros(jobs)
        self.best: Floats = np.zeros(jobs)

    def forget(self, rows: Any) -> None:
        """New jobs at `rows`."""
        self.scale[rows] = 0.0
        self.mean[rows] = PRIOR
        self._spread[rows] = np.diag(PRIOR_DEVIATION**2)
        self.cpu[rows] = 0.0
        self.trainer_cpu[rows] = 0.0
        self.best[rows] = 0.0

    def see(self, measured: Measurement, sound: Bools | None = None) -> None:
        """Learn from one interval of every job; unsound ones are passed over."""
        sound = measured.sound() if sound is None else sound
        good = sound[:, None] & measured.present & (measured.rate > 0) & (measured.busy > 0)
        rate = np.where(good, measured.rate, 1.0)
        took = np.where(good, measured.busy, 0.0) / rate
        cpu = np.where(good, np.minimum(measured.cpu, measured.busy), 0.0) / rate
        # Short of processors, part of the time per row is queueing for one, which slots do not cause.
        crowded = np.maximum(measured.cpus_used / np.maximum(measured.cpus, 1e-9), 0.0) > 0.97
        first = good & (self.scale == 0)
        self.scale = np.where(first, took, self.scale)
        weight = np.where(first | (self.cpu == 0), 1.0, 0.4)
        self.cpu = np.where(good, self.cpu + weight * (cpu - self.cpu), self.cpu)
        self._filter(measured, good, took, crowded)
        own = np.maximum(measured.cpus_used - (measured.cpu * measured.present).sum(axis=1), 0.0)
        per_row = own / np.maximum(measured.delivered, 1e-12)
        self.trainer_cpu = np.where(sound, per_row, self.trainer_cpu)
        self.best = np.where(sound, np.maximum(self.best, measured.delivered), self.best)

    def _filter(self, measured: Measurement, good: Bools, took: Floats, crowded: Bools) -> None:
        seen = np.where(good, took / np.maximum(self.scale, 1e-300), 1.0)
        pooled = (measured.pool > 0)[:, None]
        busy = np.maximum(measured.busy, 1.0)
        n = np.where(pooled, busy, np.minimum(busy, np.maximum(measured.slots, 1.0)))
        look = np.stack([np.ones_like(n), n - 1.0, n * (n - 1.0)], axis=-1)
        self._spread[..., 0, 0] += FORGETTING**2 * self.mean[..., 0] ** 2
        predicted = (look * self.mean).sum(axis=-1)
        seen_by = (self._spread @ look[..., None])[..., 0]
        noise = (NOISE * np.maximum(predicted, seen)) ** 2
        noise = np.where(crowded[:, None], noise + (0.5 * seen) ** 2, noise)
        gain = seen_by / ((look * seen_by).sum(axis=-1) + noise)[..., None]
        gain = np.where(good[..., None], gain, 0.0)
        mean = self.mean + gain * (seen - predicted)[..., None]
        self.mean = np.maximum(mean, np.array([0.02, 0.0, 0.0]))
        self._spread = self._spread - gain[..., :, None] * seen_by[..., None, :]

    # ---- predictions -----------------------------------------------------------------------------------------

    def deviation(self, slots: Floats) -> Floats:
        """``[N, S]`` standard deviation of the time per row with `slots` at work, as a share of it."""
        n = np.maximum(slots, 1.0)
        look = np.stack([np.ones_like(n), n - 1.0, n * (n - 1.0)], axis=-1)
        variance = (look * (self._spread @ look[..., None])[..., 0]).sum(axis=-1)
        return np.asarray(
            np.sqrt(np.maximum(variance, 0.0)) / np.maximum((look * self.mean).sum(axis=-1), 1e-9)
        )

    def time(self, slots: Floats) -> Floats:
        """``[N, S]`` seconds per row with `slots` at work at once."""
        n = np.maximum(slots, 1.0)
        a, b, c = self.mean[..., 0], self.mean[..., 1], self.mean[..., 2]
        return np.asarray(self.scale * (a + b * (n - 1.0) + c * n * (n - 1.0)))

    def capacity(self, slots: Floats) -> Floats:
        """``[N, S]`` rows/s that each stage can make with `slots`; infinity where nothing is known."""
        return np.asarray(np.maximum(slots, 1.0) / np.maximum(self.time(slots), 1e-300))

    def table(self, optimism: float = 0.0) -> Floats:
        """``[N, S, G]`` rows/s with each number of slots in `GRID`.

        Args:
            optimism: standard deviations by which times per row are taken to be shorter than believed. What is
                unknown is then worth a try, and stops being so once it was tried.
        """
        time = self.mean @ _LOOK.T
        if optimism:
            spread = ((_LOOK @ self._spread) * _LOOK).sum(axis=-1)
            time = np.maximum(time - optimism * np.sqrt(np.maximum(spread, 0.0)), 0.6 * self.mean[..., 0:1])
        return np.asarray(GRID / np.maximum(self.scale[..., None] * time, 1e-300))

    def cpu_per_row(self, present: Bools) -> Floats:
        """``[N]`` processor seconds that a row takes altogether."""
        return np.asarray((self.cpu * present).sum(axis=1) + self.trainer_cpu)

    def ceiling(self, measured: Measurement) -> Floats:
        """``[N]`` rows/s that processors and trainer allow at most, whatever the slots."""
        of_cpus = measured.cpus / np.maximum(self.cpu_per_row(measured.present), 1e-300)
        step = np.where(np.isfinite(measured.step) & (measured.step > 0), measured.step, 1e-300)
        return np.asarray(np.minimum(of_cpus, 1.0 / step))
