"""Resident memory of a job, fitted: base, and a working set for each slot of every stage. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from intune.envs import least_squares
from intune.envs.jobs import Floats
from intune.envs.measurement import Measurement
from intune.envs.pools import pooled_peak

NOISE = 0.04
"""Of a reading, as a share: allocators keep what was freed, or do not."""

BASE_NOISE = 0.03
"""Of the bytes that were resident before the pipeline had a slot: caches fill and lazy imports come later."""

BLOCKS = 2.0
"""Blocks that a slot is believed to hold before anything is known: what it takes and what it makes."""

BLOCKS_NOISE = 1.0
"""How many times that it may well be more or less."""

ROUNDS = 8
"""In which what is believed, at first next to nothing, comes to count where measurements do not contradict it."""


@dataclass(frozen=True, slots=True)
class MemoryFit:
    """What was found.

    Attributes:
        base_bytes: resident without any slot; base_deviation: relative standard deviation.
        slot_bytes: ``[S]`` that a slot of each stage adds; deviation: ``[S]`` relative.
        noise: standard deviation of readings about the fit, as a share.
    """

    base_bytes: float
    base_deviation: float
    slot_bytes: Floats
    deviation: Floats
    noise: float


def fit(measured: Measurement, predicted: Measurement) -> MemoryFit:
    """Fit base and working sets to what was resident.

    Args:
        measured: N intervals of one job.
        predicted: the same by the fitted rates: how full queues are, and how many slots of a pool are at work.
    """
    count = int(measured.present[0].sum())
    # Who tells of no memory holds none: a byte, as everything here is in shares of what is held.
    used = np.maximum(measured.memory_used, 1.0)
    base = float(np.nanmin(measured.memory_base)) if np.isfinite(measured.memory_base).any() else np.nan
    base = base if np.isfinite(base) else float(used.min()) * 0.7
    block = np.nan_to_num(measured.block_bytes[-1, :count])
    believed = np.maximum(BLOCKS * block, 1.0)
    target = used - predicted.memory_queued
    noise = NOISE * used
    unit = float(used.max())
    guess = np.concatenate([[base], believed])
    own = np.concatenate([[BASE_NOISE * base + 1.0], BLOCKS_NOISE * believed])
    found, spread = guess, np.full(count + 1, unit)
    for _ in range(ROUNDS):
        held = held_slots(predicted.busy[:, :count], measured.slots[:, :count], measured.pool, found[1:])
        # Everything in units of its own standard deviation; the last rows are what is believed.
        known = np.column_stack([np.ones(len(used)), held]) / noise[:, None]
        rows = unit * np.concatenate([known, np.diag(1.0 / spread)])
        wanted = np.concatenate([target / noise, guess / spread])
        found = least_squares.non_negative(rows, wanted, start=found / unit) * unit
        # Each slot of user code may hold a model of its own, a thousand times its blocks, and libraries are loaded
        # late: the further from what was believed measurements are, the less that counts (Cauchy's loss, by weights).
        spread = np.hypot(own, found - guess)
    least = 0.1 * np.maximum(guess, 1.0)
    deviation = np.sqrt(np.diag(np.linalg.inv(rows.T @ rows))) * unit / np.maximum(found, least)
    off = (held @ found[1:] + found[0] + predicted.memory_queued) / used - 1.0
    return MemoryFit(
        base_bytes=float(found[0]),
        base_deviation=float(deviation[0]),
        slot_bytes=found[1:],
        deviation=deviation[1:],
        noise=float(np.sqrt(np.mean(np.square(off)))),
    )


def held_slots(busy: Floats, slots: Floats, pool: Floats, slot_bytes: Floats) -> Floats:
    """``[N, S]`` slots that hold a working set, as the physics reckons: all of a stage's own; of a pool the peak."""
    pooled = pool[:, None] > 0
    if not pooled.any():
        return slots
    peak = pooled_peak(busy, np.maximum(pool, 1.0), np.broadcast_to(slot_bytes, busy.shape))
    return np.where(pooled, peak, slots)
