"""Stages that take their slots from one pool: what passes, what they hold at most, what becomes of their own slots.

Symbols as in `model`: N jobs, S stages.
"""

from __future__ import annotations

import numpy as np

from intune.envs.jobs import Floats
from intune.envs.prepared import TINY, ratio


def pooled_flows(rows: Floats, queue: Floats, took: Floats, work: Floats) -> Floats:
    """Rows that pass, ``[N, S + 1]``, where all stages take their slots from one pool, nearest to delivery first.

    To deliver d rows, a stage with B rows waiting between it and the trainer must make ``max(d - B, 0)``. The most
    that the pool can deliver solves ``sum of took (d - B) over the stages that must work = work``; B falls along the
    line, so those are the last ones, and d is the least of the solutions for the last 1, 2, ... stages. What is left
    of the pool then fills the queues.

    Args:
        rows: that would pass if every stage had the whole pool for itself.
        queue: ``[N, S]`` rows waiting behind each stage.
        took: ``[N, S]`` slot seconds per row.
        work: ``[N]`` slot seconds that the pool has.
    """
    waiting = np.cumsum(queue[:, ::-1], axis=1)[:, ::-1]
    cost = np.cumsum(took[:, ::-1], axis=1)[:, ::-1]
    credit = np.cumsum((took * waiting)[:, ::-1], axis=1)[:, ::-1]
    most = ((work[:, None] + credit) / np.maximum(cost, TINY)).min(axis=1)
    delivered = np.minimum(rows[:, -1], most)
    needed = np.maximum(delivered[:, None] - waiting, 0.0)
    more = rows[:, :-1] - needed
    left = np.maximum(work - np.add.reduce(needed * took, axis=1), 0.0)
    filling = ratio(left, np.add.reduce(more * took, axis=1))
    filling = np.where(delivered < rows[:, -1], 0.0, filling)
    passing = np.empty_like(rows)
    passing[:, :-1] = needed + more * filling[:, None]
    passing[:, -1] = delivered
    return passing


def pooled_peak(busy: Floats, pool: Floats, slot_bytes: Floats) -> Floats:
    """``[N, S]`` slots that each stage holds at the moment when a shared pool takes most memory.

    A stage runs up to its mean and twice the square root of it (as tasks that arrive at random do); together
    no more than the pool has, of which the stages with the largest working sets are reckoned first.
    """
    alone = np.minimum(np.ceil(busy + 2.0 * np.sqrt(busy)), pool[:, None])
    order = np.argsort(-slot_bytes, axis=1)
    total = np.minimum(np.cumsum(np.take_along_axis(alone, order, axis=1), axis=1), pool[:, None])
    held: Floats = np.empty_like(total)
    np.put_along_axis(held, order, np.diff(total, axis=1, prepend=0.0), axis=1)
    return held


def shared_anew(
    slots: Floats, pool: Floats, had: Floats, had_pool: Floats, coming: Floats, due: Floats
) -> tuple[Floats, Floats, Floats]:
    """What stages had, and what of it was still on its way, in terms of what they are given now: slots change hands
    between a pool and the stages without anything having to start.

    Args:
        slots: ``[N, S]`` given now (of a pooled job: the pool, in every stage); pool: ``[N]``, 0 for slots per stage.
        had, had_pool: the same before.
        coming: ``[N, S]`` slots that did not work yet (of a pool: those of the pool); due: seconds until they do.

    Returns:
        ``[N, S]`` each: slots, slots on their way, seconds.
    """
    is_pool, was_pool = pool[:, None] > 0, had_pool[:, None] > 0
    present = slots > 0
    total = np.where(was_pool, had_pool[:, None], np.add.reduce(had, axis=1)[:, None])
    late = np.where(was_pool, coming.max(axis=1)[:, None], np.add.reduce(coming, axis=1)[:, None])
    mean = np.add.reduce(coming * due, axis=1)[:, None] / np.maximum(
        np.add.reduce(coming, axis=1)[:, None], TINY
    )
    # Of what a pool had, each stage takes as large a part as it has of what all are given.
    part = slots / np.maximum(np.add.reduce(slots, axis=1)[:, None], TINY)
    to_pool, from_pool = is_pool & present, was_pool & ~is_pool & present
    had = np.where(to_pool, total, np.where(from_pool, np.minimum(total * part, slots), had))
    coming = np.where(to_pool, late, np.where(from_pool, late * part, coming))
    return had, coming, np.where(to_pool | from_pool, mean, due)
