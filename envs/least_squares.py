"""Robust least squares with priors: Levenberg and Marquardt's method over a batched function. Pure NumPy.

Source: Moré 1978, "The Levenberg-Marquardt algorithm", in the simple form of a damped normal equation; robust by
Huber's loss (Huber 1964).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from intune.envs.jobs import Floats

STEP = 1e-3
"""Of the forward difference; parameters are logarithms, so this is a change by a thousandth."""

DAMPINGS = (0.1, 1.0, 10.0, 1000.0)
"""Multiples of the damping that are tried in one call: a batch of four costs little more than one."""

HUBER = 2.0
"""Standard deviations from which on a residual counts linearly: one odd interval must not bend the fit."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """Where it ended.

    Attributes:
        values: ``[P]``.
        deviation: ``[P]`` standard deviation of each, by the curvature there.
        misfit: mean square of the residuals' robust form, priors left out; 1: as good as the noise allows.
        cost: sum of squares of all, priors included: what was minimised.
    """

    values: Floats
    deviation: Floats
    misfit: float
    cost: float


def fit(
    residuals: Callable[[Floats], Floats],
    start: Floats,
    *,
    prior: Floats,
    prior_deviation: Floats,
    low: Floats,
    high: Floats,
    iterations: int = 25,
    tolerance: float = 1e-3,
) -> Fitted:
    """Minimise the sum of squares of `residuals` and of deviations from the prior.

    Args:
        residuals: of ``[K, P]`` candidates, in standard deviations: ``[K, M]``; 0 where there is no datum.
        start, prior, prior_deviation, low, high: ``[P]``.
        iterations: at most.
        tolerance: relative improvement below which it ends.
    """

    def all_of(candidates: Floats) -> Floats:
        own = robust(np.nan_to_num(residuals(candidates), nan=1e3, posinf=1e3, neginf=-1e3))
        return np.concatenate([own, (candidates - prior) / prior_deviation], axis=1)

    count = len(start)
    x = np.clip(start, low, high)
    damping = 1e-2
    jacobian, now = _slope(all_of, x)
    cost = float(now @ now)
    for _ in range(iterations):
        normal, gradient = jacobian.T @ jacobian, jacobian.T @ now
        scale = np.diag(np.maximum(np.diag(normal), 1e-9))
        tries = np.stack(
            [
                np.clip(x - np.linalg.solve(normal + damping * each * scale, gradient), low, high)
                for each in DAMPINGS
            ]
        )
        costs = np.square(all_of(tries)).sum(axis=1)
        best = int(np.argmin(costs))
        if not costs[best] < cost:
            damping *= 100.0
            if damping > 1e8:
                break
            continue
        better = cost - float(costs[best])
        x, damping = tries[best], max(damping * DAMPINGS[best], 1e-8)
        jacobian, now = _slope(all_of, x)
        cost = float(now @ now)
        if better < tolerance * cost:
            break
    own = now[: len(now) - count]
    used = max(int(np.count_nonzero(own)), 1)
    misfit = float(own @ own) / used
    covariance = np.linalg.inv(jacobian.T @ jacobian + 1e-12 * np.eye(count))
    deviation = np.sqrt(np.maximum(np.diag(covariance), 0.0) * max(misfit, 1.0))
    return Fitted(values=x, deviation=deviation, misfit=misfit, cost=cost)


def robust(residuals: Floats) -> Floats:
    """Residuals whose squares are Huber's loss of the given ones."""
    size = np.abs(residuals)
    bent = np.sqrt(np.maximum(2.0 * HUBER * size - HUBER**2, 0.0))
    return np.where(size > HUBER, np.sign(residuals) * bent, residuals)


def _slope(function: Callable[[Floats], Floats], x: Floats) -> tuple[Floats, Floats]:
    """Jacobian ``[M, P]`` and residuals ``[M]``, in one call."""
    points = np.concatenate([x[None], x + STEP * np.eye(len(x))])
    values = function(points)
    return np.asarray((values[1:] - values[0]).T / STEP), values[0]


def non_negative(matrix: Floats, target: Floats, *, start: Floats, rounds: int = 200) -> Floats:
    """``x >= 0`` that minimises ``|matrix x - target|``, by coordinate descent.

    Args:
        matrix: ``[M, P]`` with no column of zeros only.
        target: ``[M]``.
        start: ``[P]``.
        rounds: over all coordinates, at most.
    """
    normal, right = matrix.T @ matrix, matrix.T @ target
    x = np.maximum(start, 0.0)
    for _ in range(rounds):
        before = x.copy()
        for at in range(len(x)):
            rest = right[at] - normal[at] @ x + normal[at, at] * x[at]
            x[at] = max(rest / max(normal[at, at], 1e-300), 0.0)
        if np.abs(x - before).max() <= 1e-9 * max(float(np.abs(x).max()), 1e-300):
            break
    return x
