"""What agents derive from a measurement before they decide: cost per row, slots of its own, whole shares. Pure.

Nothing here raises or warns on a bad number: what cannot be known is 0, and `known` says so.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from intune.envs.jobs import Bools, Floats
from intune.envs.measurement import STAGE_FIELDS, Measurement

LARGE = 1e30


def without_absent(measured: Measurement) -> Measurement:
    """The same with 0 measured in the columns of stages that a job does not have, whatever stands there."""
    if measured.present.all():
        return measured
    return replace(
        measured, **{name: np.where(measured.present, getattr(measured, name), 0.0) for name in _MEASURED}
    )


def own_slots(measured: Measurement) -> Floats:
    """``[N, S]`` slots of each stage; of a shared pool, those it kept busy, rounded, at least one."""
    given = np.where(measured.pool[:, None] > 0, _finite(measured.busy), _finite(measured.slots))
    return np.maximum(np.rint(given), 1.0) * measured.present


def time_per_row(measured: Measurement) -> Floats:
    """``[N, S]`` seconds of a slot's time for one row, waiting included: DS2's inverse true rate."""
    return _per_row(measured, measured.busy)


def cpu_per_row(measured: Measurement) -> Floats:
    """``[N, S]`` processor seconds for one row."""
    return _per_row(measured, measured.cpu)


def known(measured: Measurement) -> Bools:
    """``[N]`` whether costs can be told: the measurement is sound and rows left every stage."""
    left = np.isfinite(measured.rate) & (measured.rate > 0)
    result: Bools = measured.sound() & (left | ~measured.present).all(axis=1)
    return result


def trainer_rate(measured: Measurement) -> Floats:
    """``[N]`` rows/s that the trainer could take; very large where its step time is not measured."""
    step = _finite(measured.step)
    rate: Floats = np.divide(1.0, step, out=np.full(len(measured), LARGE), where=step > 1.0 / LARGE)
    return rate


def spread(total: Any, weights: Floats, present: Bools) -> Floats:
    """Whole numbers that add up to `total`, in proportion to `weights`, at least one for each present stage.

    One is given to each stage first, then what is left by its share of the weights; what rounding leaves goes
    to the largest remainders.

    Args:
        total: ``[N]``; less than one a stage counts as one a stage.
        weights: ``[N, S]`` of 0 or more; all 0 means evenly.
        present: ``[N, S]``.

    Returns:
        ``[N, S]``, 0 for absent stages.
    """
    count = present.sum(axis=1)
    total = np.maximum(np.floor(np.asarray(total, dtype=np.float64)), count)
    weights = np.where(present, np.maximum(_finite(weights), 0.0), 0.0)
    whole = weights.sum(axis=1, keepdims=True)
    share = np.where(
        whole > 0, weights / np.where(whole > 0, whole, 1.0), present / np.maximum(count, 1)[:, None]
    )
    # A stage whose share is below one slot gets that one; the others share what is then left.
    small = present & (share * total[:, None] < 1.0)
    for _ in range(present.shape[1]):
        rest = np.where(small, 0.0, share)
        left = total - small.sum(axis=1)
        scaled = rest * (left / np.maximum(rest.sum(axis=1), 1e-300))[:, None]
        more = present & ~small & (scaled < 1.0)
        if not more.any():
            break
        small |= more
    exact = np.where(small, 1.0, scaled)
    given = np.where(present, np.floor(exact + 1e-9), 0.0)
    missing = total - given.sum(axis=1)
    remainder = np.where(present & ~small, exact - given, -1.0)
    remainder = np.where((small | ~present).all(axis=1)[:, None] & present, 0.0, remainder)
    order = np.argsort(-remainder, axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.broadcast_to(np.arange(order.shape[1]), order.shape), axis=1)
    return np.asarray(given + ((rank < missing[:, None]) & present))


def slots_for(rate: Floats, cost: Floats, present: Bools) -> Floats:
    """``[N, S]`` whole slots with which each stage makes `rate` rows/s at `cost` seconds a row, at least one."""
    needed = np.ceil(np.minimum(rate[:, None] * cost, 1e9) - 1e-9)
    return np.where(present, np.maximum(needed, 1.0), 0.0)


def largest_rate(cost: Floats, present: Bools, limit: Any) -> Floats:
    """``[N]`` the largest rows/s for which `slots_for` gives no more than `limit` slots altogether, from below.

    Found by bisection of the logarithm; at one slot a stage where even that exceeds the limit.

    Args:
        cost: ``[N, S]`` seconds of a slot per row.
        present: ``[N, S]``.
        limit: ``[N]`` slots.
    """
    cost = np.where(present, cost, 0.0)
    limit = np.asarray(limit, dtype=np.float64)
    dearest = np.maximum(cost.max(axis=1), 1.0 / LARGE)
    low = 1.0 / dearest
    high = low * np.maximum(limit, 1.0) * 1.001
    for _ in range(_HALVINGS):
        middle = np.sqrt(low * high)
        fits = slots_for(middle, cost, present).sum(axis=1) <= limit
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    return np.asarray(low)


_MEASURED = tuple(name for name in STAGE_FIELDS if name != "slots")

_HALVINGS = 24
"""A thousandfold range to within 1e-6 of its logarithm: far below what a whole slot changes."""


def _per_row(measured: Measurement, slots: Floats) -> Floats:
    rate = _finite(measured.rate)
    at_work = np.maximum(_finite(slots), 0.0)
    fine = measured.present & (rate > 0)
    return np.divide(at_work, rate, out=np.zeros_like(rate), where=fine)


def _finite(values: Floats) -> Floats:
    finite: Floats = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    return finite
