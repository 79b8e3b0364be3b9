"""What memory grows by with every slot, and how much it moves by itself: a Bayesian regression of N jobs. Pure.

An interval with slots n takes ``u = (n . w) exp(sigma z)`` bytes: working sets w are not negative and unknown; the
noise is of all of them at once, and its size is unknown too. Divided by what was seen, ``1 = (n / u) . w + sigma z`` is
linear in w with the same noise in every interval, so sums of x = n / u and of its squares are all that has to be kept,
whatever sigma is. For each sigma of a grid w is then normal given these sums, and the evidence (MacKay 1992, "Bayesian
interpolation") says how much to believe in that sigma; intervals with slots never tried before tell about it too.

A bound that may fail with a chance p reckons with every sigma: one that is believed with probability q needs
``z(p / q)`` standard deviations. So few intervals give a wide margin, as Student's t does, and more a narrower one.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from intune.envs.jobs import Floats

SIGMAS: Any = np.geomspace(0.005, 0.6, 18)
"""Noises considered, as shares of the memory in use."""

MEAN_NOISE = 0.03
"""Mean of the exponential prior of the noise: jobs of the training draws of all families together."""

SPREAD = 0.4
"""Prior standard deviation of a stage's share of the memory first seen. All of it in one stage of many is 2.5 of these
off, within what every bound allows: without noise, none is below the truth, whatever the working sets are."""

FADES = 0.99
"""Weight that an interval keeps from one to the next: a hundred count."""

BEFORE = 5.0
"""Interval n may fail with a chance of ``risk * n / (n + BEFORE)^2``: little in the first ones, of which least is
known, most where there is most to gain; a whole job's grows with the logarithm of its length only."""

_LOG_PRIOR: Any = np.log(SIGMAS) - SIGMAS / MEAN_NOISE
_LOG_TAILS: Any = np.linspace(-40.0, np.log(0.5), 800)
_DEVIATIONS: Any = np.array([-NormalDist().inv_cdf(float(np.exp(tail))) for tail in _LOG_TAILS])


def deviations(log_tail: Any) -> Floats:
    """How many standard deviations leave ``exp(log_tail)`` above them; 0 for a half and more."""
    return np.asarray(np.interp(log_tail, _LOG_TAILS, _DEVIATIONS))


@dataclass(slots=True)
class Sums:
    """Of N jobs with C columns (a stage each, and one for what was there before): what the intervals come to.

    Attributes:
        squares: ``[N, C, C]`` sum of x x'; firsts: ``[N, C]`` sum of x; count: ``[N]`` intervals.
        scale: ``[N, C]`` bytes of a slot if its stage took all that was seen first; 0 for absent columns.
    """

    squares: Floats
    firsts: Floats
    count: Floats
    scale: Floats

    @classmethod
    def none(cls, jobs: int, columns: int) -> Sums:
        """Of jobs of which nothing was seen."""
        shape = (jobs, columns)
        return cls(np.zeros((*shape, columns)), np.zeros(shape), np.zeros(jobs), np.zeros(shape))

    def forget(self, rows: Any) -> None:
        """Nothing was seen of the jobs at `rows`."""
        for each in (self.squares, self.firsts, self.count, self.scale):
            each[rows] = 0.0

    def add(self, rows: Any, slots: Floats, used: Floats) -> None:
        """One more interval of the jobs at `rows`.

        Args:
            rows: n numbers of jobs.
            slots: ``[n, C]``; used: ``[n]`` bytes.
        """
        wide = np.maximum(slots, 1.0)
        fresh = np.where(slots > 0, used[:, None] / wide, 0.0)
        # More than any working sets could take that took so little at first: the job has changed, so begin anew.
        most = (slots * self.scale[rows]).max(axis=1)
        anew = (self.count[rows] == 0) | (used > 2.0 * most)
        self.forget(rows[anew])
        self.scale[rows[anew]] = fresh[anew]
        scale = self.scale[rows]
        x = slots * scale / np.maximum(used, 1e-3 * most)[:, None]
        self.squares[rows] = FADES * self.squares[rows] + x[:, :, None] * x[:, None, :]
        self.firsts[rows] = FADES * self.firsts[rows] + x
        self.count[rows] = FADES * self.count[rows] + 1.0


class Law:
    """Beliefs about N jobs that follow from the sums.

    Args:
        sums: what was seen.
        risk: ``[N]``, or one for all: that a bound does not hold, before it is shared out over the intervals (see
            `BEFORE`).
        doubt: ``[N]``, or one for all: part of the doubt about the working sets that a bound reckons with.

    Attributes:
        noise: ``[N]`` expected noise, as a share.
        margin: ``[N]`` part by which memory at the same slots may rise, as a logarithm.
    """

    def __init__(self, sums: Sums, risk: Any, doubt: Any = 1.0) -> None:
        present = sums.scale > 0
        variance = SIGMAS**2
        self._scale = sums.scale
        self._seen = sums.count > 0
        centre = present / np.maximum(present.sum(axis=1, keepdims=True), 1)
        self._centre = centre
        toward = (sums.squares @ centre[..., None])[..., 0]
        values, self._turn = np.linalg.eigh(sums.squares)
        # What is left to explain once the prior's mean is taken off, in the directions that the intervals tell of.
        rest = ((sums.firsts - toward)[:, None] @ self._turn)[:, 0]
        left = sums.count - 2.0 * (sums.firsts * centre).sum(axis=1) + (toward * centre).sum(axis=1)
        sure = np.maximum(values, 0.0)[:, None] / variance[:, None] + SPREAD**-2
        self._spread = np.square(doubt).reshape(-1, 1, 1) / sure
        self._mean = rest[:, None] / sure / variance[:, None]
        unexplained = left[:, None] - (rest[:, None] * self._mean).sum(axis=2)
        belief = _LOG_PRIOR - sums.count[:, None] * np.log(SIGMAS)
        belief = belief - 0.5 * np.log(sure * SPREAD**2).sum(axis=2) - 0.5 * unexplained / variance
        belief -= belief.max(axis=1, keepdims=True)
        belief -= np.log(np.exp(belief).sum(axis=1, keepdims=True))
        self.noise: Floats = np.exp(belief) @ SIGMAS
        seen = np.maximum(sums.count, 1.0)
        chance = np.log(risk) + np.log(seen) - 2.0 * np.log(seen + BEFORE)
        self._far = deviations(np.minimum(chance[:, None] - belief, 0.0))
        self.margin: Floats = (self._far * SIGMAS).max(axis=1)

    def bound(self, slots: Floats) -> Floats:
        """``[N, K]`` bytes that slots take at worst; infinity where nothing was seen.

        Args:
            slots: ``[N, K, C]``.
        """
        along = (slots * self._scale[:, None]) @ self._turn
        most = (slots * self._scale[:, None]).sum(axis=2)
        mean = (slots @ (self._scale * self._centre)[..., None]) + along @ self._mean.swapaxes(1, 2)
        mean = np.maximum(mean, 1e-9 * most[..., None] + 1e-9)
        spread = np.sqrt(along**2 @ self._spread.swapaxes(1, 2))
        far = self._far[:, None]
        # Working sets that are larger than thought, and rows that are: two errors that rarely come together.
        worst = mean * np.exp(np.hypot(np.log1p(far * spread / mean), far * SIGMAS))
        worst = np.where(far > 0, worst, 0.0).max(axis=2)
        return np.asarray(np.where(self._seen[:, None], worst, np.inf))
