"""The regression of memory on slots: against Bayes' rule worked out the long way, and what its bounds promise."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest

from intune.agents.memory_law import BEFORE, FADES, MEAN_NOISE, SIGMAS, SPREAD, Law, Sums, deviations
from intune.envs.jobs import Floats


def added(slots: Floats, used: Floats) -> Sums:
    """One job's intervals: ``[T, C]`` and ``[T]``."""
    sums = Sums.none(1, slots.shape[1])
    for one, bytes_ in zip(slots, used, strict=True):
        sums.add(np.array([0]), one[None], np.array([bytes_]))
    return sums


def long_way(slots: Floats, used: Floats) -> tuple[Floats, Floats, Floats]:
    """Belief in each sigma, and by sigma the mean and spread of what `AT` slots take, from the joint normal
    distribution of all intervals, without any sums."""
    count, width = slots.shape
    scale = used[0] / slots[0]
    rows = slots * scale / used[:, None]
    weight = FADES ** np.arange(count)[::-1]
    centre, at = np.full(width, 1.0 / width), AT * scale
    belief, means, spreads = [], [], []
    for sigma in SIGMAS:
        noise = np.diag(sigma**2 / weight)
        together = SPREAD**2 * rows @ rows.T + noise
        off = 1.0 - rows @ centre
        gain = SPREAD**2 * at @ rows.T @ np.linalg.inv(together)
        means.append(at @ centre + gain @ off)
        spreads.append(SPREAD**2 * at @ at - gain @ (SPREAD**2 * rows @ at))
        density = -0.5 * off @ np.linalg.solve(together, off) - 0.5 * np.linalg.slogdet(together)[1]
        # An interval that counts in part: its density to that power, so of the noise's part of the determinant too.
        density += (1.0 - weight).sum() * np.log(sigma) - 0.5 * np.log(weight).sum()
        belief.append(density + np.log(sigma) - sigma / MEAN_NOISE)
    chance = np.exp(np.array(belief) - max(belief))
    return chance / chance.sum(), np.array(means), np.sqrt(spreads)


AT = np.array([5.0, 2.0, 9.0])


def test_beliefs_and_bounds_are_those_of_bayes_rule() -> None:
    rng = np.random.default_rng(4)
    slots = rng.integers(1, 8, (7, 3)).astype(float)
    used = slots @ np.array([1e9, 4e9, 0.3e9]) * np.exp(0.06 * rng.standard_normal(7))
    risk = 1e-4
    law = Law(added(slots, used), risk)
    belief, mean, spread = long_way(slots, used)
    assert law.noise[0] == pytest.approx(belief @ SIGMAS, rel=1e-6)
    count = (FADES ** np.arange(7)).sum()
    tail = np.minimum(risk * count / (count + BEFORE) ** 2 / belief, 0.5)
    far = np.array([-NormalDist().inv_cdf(each) for each in tail])
    assert law.margin[0] == pytest.approx((far * SIGMAS).max(), rel=1e-3)
    worst = np.where(far > 0, mean * np.exp(np.hypot(np.log1p(far * spread / mean), far * SIGMAS)), 0.0)
    assert law.bound(AT[None, None])[0, 0] == pytest.approx(worst.max(), rel=1e-3)


def test_deviations_of_a_normal_tail() -> None:
    tails = [1e-12, 1e-6, 2.9e-7, 0.01, 0.3]
    expected = [-NormalDist().inv_cdf(tail) for tail in tails]
    np.testing.assert_allclose(deviations(np.log(tails)), expected, rtol=1e-3)
    assert deviations(np.log(0.9)) == 0.0


def test_bounds_hold_as_often_as_they_promise() -> None:
    """Of jobs drawn from the prior; the noises' chances, each within the promise, add up to a few times it."""
    rng = np.random.default_rng(5)
    jobs, width, seen = 4000, 4, 8
    sets = rng.dirichlet(np.full(width, 0.7), jobs)
    sigma = rng.exponential(MEAN_NOISE, jobs)
    sums = Sums.none(jobs, width)
    rows = np.arange(jobs)
    for _ in range(seen):
        slots = rng.integers(1, 6, (jobs, width)).astype(float)
        sums.add(rows, slots, (slots * sets).sum(axis=1) * np.exp(sigma * rng.standard_normal(jobs)))
    count = (FADES ** np.arange(seen)).sum()
    law = Law(sums, 0.01 * (count + BEFORE) ** 2 / count)
    slots = rng.integers(4, 12, (jobs, 1, width)).astype(float)
    truth = (slots[:, 0] * sets).sum(axis=1) * np.exp(sigma * rng.standard_normal(jobs))
    exceeded = (truth > law.bound(slots)[:, 0]).mean()
    assert 0.001 < exceeded < 0.04


def test_a_few_intervals_give_a_wider_margin_than_many() -> None:
    margins = []
    for count in (1, 5, 20, 80):
        slots = np.ones((count, 2))
        margins.append(Law(added(slots, np.full(count, 2e9)), 1e-4).margin[0])
    assert margins[0] > 0.3
    assert margins[0] > 3 * margins[1] > 9 * margins[2]


def test_absent_stages_change_nothing() -> None:
    slots = np.array([[1.0, 2.0], [3.0, 2.0]])
    used = np.array([3e9, 5e9])
    wide = np.concatenate([slots, np.zeros((2, 2))], axis=1)
    one, other = Law(added(slots, used), 1e-4), Law(added(wide, used), 1e-4)
    assert one.bound(slots[None])[0] == pytest.approx(other.bound(wide[None])[0])
    assert one.noise == pytest.approx(other.noise)


def test_forgetting_leaves_the_other_jobs() -> None:
    sums = Sums.none(2, 2)
    sums.add(np.array([0, 1]), np.ones((2, 2)), np.array([1e9, 2e9]))
    before = Law(sums, 1e-4).bound(np.ones((2, 1, 2)))
    sums.forget(np.array([0]))
    after = Law(sums, 1e-4).bound(np.ones((2, 1, 2)))
    assert after[0, 0] == np.inf
    assert after[1, 0] == before[1, 0]
