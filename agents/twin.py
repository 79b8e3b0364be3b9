"""`Twin`: what an agent believes about its job, learnt from measurements while the job runs, and what it predicts.

How a stage's time per row grows with the slots at work is one of a few dozen laws: the Universal Scalability Law
(Gunther 2007) with some contention and coherence, a hard limit that is reached at some number of slots (a disk, a
link), or harm that every further slot does. Every interval is weighed against all laws, so belief in each is a
posterior probability, and a prediction is their mean with a spread. Vectorised over N jobs; nothing is fitted that
could come out negative.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from intune.envs.jobs import Bools, Floats
from intune.envs.measurement import Measurement
from intune.pipelines.allocation import MOST_SLOTS

GRID: Any = np.unique(
    np.concatenate(
        [np.arange(1, 33), np.round(np.geomspace(33, 1024, 36)), np.round(np.geomspace(1024, MOST_SLOTS, 15))]
    ).astype(np.int64)
).astype(np.float64)
"""Numbers of slots that plans are made of: all small ones, then steps of a tenth."""

CONTENTION: Any = np.array([0.0, 0.003, 0.01, 0.025, 0.06, 0.14, 0.3, 0.6])
COHERENCE: Any = np.array([0.0, 3e-5, 3e-4, 3e-3])
KNEES: Any = np.array([2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0])
_CONTENTION_PRIOR: Any = np.array([0.34, 0.16, 0.13, 0.11, 0.09, 0.07, 0.06, 0.04])
_COHERENCE_PRIOR: Any = np.array([0.82, 0.08, 0.06, 0.04])
HARM: Any = np.array([0.01, 0.03, 0.1, 0.3])
"""Coherence of stages that slots beyond the first few harm: whose slots thrash, of which most of the time is lost."""
_KNEE_PRIOR = 0.14
"""Mass on a hard limit altogether: most stages do not meet one, those that read from far storage do."""
_HARM_PRIOR = 0.0001
"""Mass on harm altogether: rare, and a disk that stumbles while slots are added looks like it for an interval."""

NOISE = 0.09
"""Standard deviation of the logarithm of a time per row measured over one interval."""

MEMORY = 0.95
"""Weight that an interval keeps from one to the next: about twenty count, older ones fade as the data drifts."""

QUEUEING = 2.0
"""Slots at work for each processor from which on these lose time to switching between them."""

FAR = 4.0
"""Standard deviations beyond which an interval is not noise."""


def _laws() -> tuple[Floats, Floats, Floats, Floats]:
    sigma, kappa = (part.ravel() for part in np.meshgrid(CONTENTION, COHERENCE, indexing="ij"))
    prior = np.outer(_CONTENTION_PRIOR, _COHERENCE_PRIOR).ravel() * (1.0 - _KNEE_PRIOR - _HARM_PRIOR)
    none, free = np.zeros(len(KNEES)), np.zeros(len(HARM))
    return (
        np.concatenate([sigma, none, free]),
        np.concatenate([kappa, none, HARM]),
        np.concatenate([np.full(len(sigma), np.inf), KNEES, free + np.inf]),
        np.concatenate([prior, none + _KNEE_PRIOR / len(KNEES), free + _HARM_PRIOR / len(HARM)]),
    )


_SIGMA, _KAPPA, _KNEE, _PRIOR = _laws()


def slower(slots: Floats) -> Floats:
    """``[..., H]`` how many times as long a row takes with `slots` (``[...]``) at work as with one, by each law."""
    n = np.maximum(slots, 1.0)[..., None]
    return np.maximum(1.0 + _SIGMA * (n - 1.0) + _KAPPA * (n * (n - 1.0)), n / _KNEE)


_SPEEDUP: Any = GRID[None, :] / slower(GRID).T
"""``[H, G]`` speed-up by each law with each number of slots."""


class Twin:
    """Beliefs about N jobs of at most S stages.

    Attributes:
        cpu: ``[N, S]`` processor seconds per row.
        trainer_cpu: ``[N]`` processor seconds per row of the trainer.
        best: ``[N]`` most rows/s delivered so far.
    """

    def __init__(self, jobs: int, stages: int) -> None:
        shape = (jobs, stages, len(_PRIOR))
        # Of every law: the weight of evidence, the logarithm of the time per row of one slot, and its misfit.
        self._weight: Floats = np.zeros((jobs, stages))
        self._alone: Floats = np.zeros(shape)
        self._misfit: Floats = np.zeros(shape)
        self._odd: Floats = np.zeros((jobs, stages))
        self._table: Floats | None = None
        self._spread: Floats | None = None
        self.cpu: Floats = np.zeros((jobs, stages))
        self.trainer_cpu: Floats = np.zeros(jobs)
        self.best: Floats = np.zeros(jobs)

    def forget(self, rows: Any) -> None:
        """New jobs at `rows`."""
        for array in (
            self._weight,
            self._alone,
            self._misfit,
            self._odd,
            self.cpu,
            self.trainer_cpu,
            self.best,
        ):
            array[rows] = 0.0
        self._table = None

    def see(self, measured: Measurement, sound: Bools | None = None) -> None:
        """Learn from one interval of every job; unsound ones are passed over."""
        sound = measured.sound() if sound is None else sound
        good = sound[:, None] & measured.present & (measured.rate > 0) & (measured.busy > 0)
        rate = np.where(good, measured.rate, 1.0)
        busy = np.where(good, measured.busy, 1.0)
        cpu = np.where(good, np.minimum(measured.cpu, busy), 0.0) / rate
        # Short of processors, part of the time per row is queueing for one, which slots do not cause.
        crowded = np.maximum(measured.cpus_used / np.maximum(measured.cpus, 1e-9), 0.0) > 0.97
        # With many more at work than processors, a row takes more of these than it would with fewer.
        at_work = np.where(good, measured.busy, 0.0).sum(axis=1)
        queueing = crowded & (at_work > QUEUEING * np.maximum(measured.cpus, 1.0))
        weight = np.where(self.cpu == 0, 1.0, np.where(queueing, 0.04, 0.4)[:, None])
        self.cpu = np.where(good, self.cpu + weight * (cpu - self.cpu), self.cpu)
        given = np.where(good, np.maximum(measured.slots, 1.0), 1.0)
        slots = np.where((measured.pool > 0)[:, None], busy, np.minimum(busy, given))
        seen = np.log(busy / rate)[..., None] - np.log(slower(slots))
        counts = np.where(good, np.where(crowded[:, None], 0.1, 1.0), 0.0)
        # One interval far off everything seen before is a stumble (a slow disk, a neighbour) and says little; a
        # second one in the same direction is a change, and what was seen before it says little.
        belief = self.belief()
        apart = seen - self._alone
        mean = (belief * apart).sum(axis=-1)
        expected = np.sqrt(NOISE**2 + (belief * (apart - mean[..., None]) ** 2).sum(axis=-1))
        far = mean / expected
        odd = np.where(good & (self._weight > 0) & ~crowded[:, None] & (np.abs(far) > FAR), np.sign(far), 0.0)
        again = (odd != 0) & (odd == self._odd)
        counts = np.where((odd != 0) & ~again, 0.02 * counts, counts)
        kept = np.where(good, np.where(again, 0.1, MEMORY), 1.0) * self._weight
        self._misfit = self._misfit * np.where(again, 0.1, 1.0)[..., None]
        self._odd = np.where(good, odd, self._odd)
        total = kept + counts
        off = seen - self._alone
        part = np.where(total > 0, counts / np.maximum(total, 1e-300), 0.0)
        self._misfit = (
            self._misfit * np.where(good, MEMORY, 1.0)[..., None] + (kept * part)[..., None] * off**2
        )
        self._alone = self._alone + part[..., None] * off
        self._weight = total
        told = sound & np.isfinite(measured.cpus_used)
        of_stages = np.where(sound[:, None] & measured.present, measured.cpu, 0.0).sum(axis=1)
        own = np.maximum(np.where(told, measured.cpus_used - of_stages, 0.0), 0.0)
        per_row = own / np.where(told, np.maximum(measured.delivered, 1e-12), 1.0)
        self.trainer_cpu = np.where(told, per_row, self.trainer_cpu)
        self.best = np.where(sound, np.maximum(self.best, measured.delivered), self.best)
        self._table = None

    def learnt(self) -> dict[str, Floats]:
        """The beliefs as arrays: weight of evidence ``[N, S]``, and of every law the logarithm of the seconds a row
        takes with one slot and the misfit ``[N, S, H]``; processor seconds per row ``[N, S]``."""
        return {
            "weight": self._weight.copy(),
            "alone": self._alone.copy(),
            "misfit": self._misfit.copy(),
            "cpu": self.cpu.copy(),
        }

    def resume(self, learnt: Mapping[str, Floats]) -> None:
        """Begin with beliefs as `learnt` gave them, of a twin of the same jobs and stages."""
        self._weight = np.array(learnt["weight"])
        self._alone = np.array(learnt["alone"])
        self._misfit = np.array(learnt["misfit"])
        self.cpu = np.array(learnt["cpu"])
        self._table = None

    # ---- predictions -----------------------------------------------------------------------------------------

    def belief(self) -> Floats:
        """``[N, S, H]`` probability of each law."""
        score = -0.5 * self._misfit / NOISE**2
        score -= score.max(axis=-1, keepdims=True)
        weight = _PRIOR * np.exp(score)
        return np.asarray(weight / weight.sum(axis=-1, keepdims=True))

    def _predict(self) -> tuple[Floats, Floats]:
        if self._table is None or self._spread is None:
            belief = self.belief()
            known = (self._weight > 0)[..., None]
            per_slot = np.where(known, np.exp(np.clip(-self._alone, -300.0, 300.0)), 1e300**0.5)
            mean = (belief * per_slot) @ _SPEEDUP
            square = (belief * per_slot**2) @ _SPEEDUP**2
            own = NOISE / np.sqrt(np.maximum(self._weight, 1.0))[..., None]
            with np.errstate(over="ignore", invalid="ignore"):
                spread = np.sqrt(np.maximum(square / mean**2 - 1.0, 0.0) + own**2)
            self._table, self._spread = mean, np.nan_to_num(spread, nan=1.0, posinf=1.0)
        return self._table, self._spread

    def table(self) -> Floats:
        """``[N, S, G]`` rows/s with each number of slots in `GRID`."""
        return self._predict()[0]

    def capacity(self, slots: Floats) -> Floats:
        """Rows/s that each stage can make with `slots`, ``[N, S]`` or ``[N, K, S]``; very many where nothing is
        known."""
        return _between(self._predict()[0], slots)

    def deviation(self, slots: Floats) -> Floats:
        """Standard deviation of that, as a share; of the same shape."""
        return _between(self._predict()[1], slots)

    def time(self, slots: Floats) -> Floats:
        """Seconds per row with `slots` at work at once; of the same shape."""
        return np.asarray(np.maximum(slots, 1.0) / np.maximum(self.capacity(slots), 1e-300))

    def cpu_per_row(self, present: Bools) -> Floats:
        """``[N]`` processor seconds that a row takes altogether."""
        return np.asarray((self.cpu * present).sum(axis=1) + self.trainer_cpu)

    def ceiling(self, measured: Measurement) -> Floats:
        """``[N]`` rows/s that processors and trainer allow at most, whatever the slots."""
        # What is used is there, even where it is more than was promised (as CPUs that Ray only counts).
        there = np.maximum(measured.cpus, np.nan_to_num(measured.cpus_used))
        of_cpus = there / np.maximum(self.cpu_per_row(measured.present), 1e-300)
        step = np.where(np.isfinite(measured.step) & (measured.step > 0), measured.step, 1e-300)
        # What is delivered is possible, whatever the processors are thought to allow.
        of_cpus = np.maximum(of_cpus, np.nan_to_num(measured.delivered))
        return np.asarray(np.minimum(of_cpus, 1.0 / step))


def _between(table: Floats, slots: Floats) -> Floats:
    """The table's value, ``[N, S, G]``, at `slots` (``[N, S]`` or ``[N, K, S]``), linear between `GRID`'s numbers."""
    n = np.clip(slots, 1.0, GRID[-1])
    high = np.clip(np.searchsorted(GRID, n), 1, len(GRID) - 1)
    low = GRID[high - 1]
    part = (n - low) / (GRID[high] - low)
    rows = np.arange(len(table)).reshape(-1, *(1,) * (slots.ndim - 1))
    stages = np.arange(table.shape[1])
    below = table[rows, stages, high - 1]
    return np.asarray(below + part * (table[rows, stages, high] - below))
