"""The best steady rate that jobs can reach by themselves, and the slots it takes. Pure.

This is what trainers, storage and memory are stated relative to in a scenario. It follows `model.py`: a stage of n
slots delivers ``n / (a (1 + sigma (n - 1) + kappa n (n - 1)) + gamma cpu (n - 1))`` rows/s with ``a = cpu + wait``,
slots are whole, all work together takes no more processors and slots than there are, and slots without work contend
with nobody. How the knee and switching slow a machine that is nearly full is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from intune.envs.capacity import ROUNDS, service
from intune.envs.jobs import Floats

ONE = 1.0 + 1e-9
"""Slots that are one, rounding aside."""

_POINTS = 8
_ROUNDS = 4


@dataclass(frozen=True, slots=True)
class Work:
    """What stages take, ``[S, N]`` each (stages first: sums over them are then fast).

    Attributes:
        cpu, wait: seconds per row; wait above 0 where cpu is 0.
        contention, coherence, crowding: sigma, kappa and gamma.
        most_slots: that the stage can use.
        step_cpu: ``[N]`` seconds per row of the trainer.
        cpus: ``[N]`` processors there are.
        slots: ``[N]`` slots that may be given out.
    """

    cpu: Floats
    wait: Floats
    contention: Floats
    coherence: Floats
    crowding: Floats
    most_slots: Floats
    step_cpu: Floats
    cpus: Floats
    slots: Floats


def slots_for(work: Work, rate: Floats) -> Floats:
    """Least slots with which every stage delivers `rate`, as real numbers of 0 or more; inf where none do.

    Args:
        work: of the stages.
        rate: rows/s, ``[…, N]``; the result has the shape ``[S, …, N]``.
    """
    extra = (1,) * (rate.ndim - 1)
    shape = (work.cpu.shape[0], *extra, work.cpu.shape[1])
    alone = work.cpu + work.wait
    # Crowding is contention of the processor's part alone.
    sigma = (work.contention + work.crowding * work.cpu / alone).reshape(shape)
    kappa = work.coherence.reshape(shape)
    load = alone.reshape(shape) * rate
    # The smaller root of kappa load n^2 + (load (sigma - kappa) - 1) n + load (1 - sigma) = 0.
    slope = 1.0 - load * (sigma - kappa)
    rest = load * (1.0 - sigma)
    square = slope * slope - 4.0 * kappa * load * rest
    never = (square < 0.0) | (slope <= 0.0)
    # Where a second slot is only in the way, a root below one slot is none.
    never |= (1.0 - sigma <= kappa) & (load > ONE)
    root = slope + np.sqrt(np.maximum(square, 0.0))
    found = np.where(never, np.inf, 2.0 * rest / np.where(never, 1.0, root))
    # One slot will do, also where a second one would only be in its way.
    return np.where(load <= ONE, np.clip(found, 0.0, load), found)


def attainable(work: Work, rate: Floats) -> NDArray[np.bool_]:
    """Whether some whole allocation delivers `rate` (``[…, N]``) within processors and slots."""
    shape = (work.cpu.shape[0], *(1,) * (rate.ndim - 1), work.cpu.shape[1])
    needed = np.maximum(np.ceil(slots_for(work, rate) - 1e-9), 1.0)
    possible = (needed <= work.most_slots.reshape(shape)).all(axis=0)
    given = np.where(possible, needed, 1.0)
    cpu, wait, *law = (
        part.reshape(shape) for part in (work.cpu, work.wait, work.contention, work.coherence, work.crowding)
    )
    each, waits = service(cpu, wait, given, *law)
    # Rounded up, slots may be past the point from which on more of them do harm.
    possible &= (rate * (each + waits) <= given * ONE).all(axis=0)
    used = rate * (each.sum(axis=0) + work.step_cpu)
    least = rate * (work.cpu.sum(axis=0) + work.step_cpu)
    doubtful = possible & (used > work.cpus) & (least <= work.cpus)
    if doubtful.any():
        used[doubtful] = rate[doubtful] * _at_work(work, np.nonzero(doubtful)[-1], given[:, doubtful])
    result: NDArray[np.bool_] = possible & (used <= work.cpus) & (given.sum(axis=0) <= work.slots)
    return result


def _at_work(work: Work, jobs: NDArray[np.intp], slots: Floats) -> Floats:
    """``[K]`` processor seconds per row of all stages and the trainer, of `jobs` with `slots` ``[S, K]`` each.

    The stage that is slowest keeps its slots at work; of the others as many are as the rows that it passes take.
    """
    law = [part[:, jobs] for part in (work.contention, work.coherence, work.crowding)]
    alone = work.cpu[:, jobs], work.wait[:, jobs]
    cpu, wait = service(*alone, slots, *law)
    through = (slots / (cpu + wait)).min(axis=0)
    for _ in range(ROUNDS):  # as `capacity.as_few` does
        cpu, wait = service(*alone, np.clip(through * (cpu + wait), 1.0, slots), *law)
    return np.asarray(cpu.sum(axis=0) + work.step_cpu[jobs])


def best_rate(work: Work) -> Floats:
    """Rows/s of the best allocation, ``[N]``, to about a thousandth, from below.

    Searched in a grid of the logarithm that is refined `_ROUNDS` times: the demand for slots and processors grows
    with the rate, so attainable rates are all those below the best.
    """
    alone = work.cpu + work.wait
    slowest = 1.0 / alone.max(axis=0)
    processors = work.cpus / np.maximum(work.cpu.sum(axis=0) + work.step_cpu, 1e-30)
    low = np.minimum(slowest, processors)  # one slot a stage
    high = np.minimum(slowest * work.slots, processors) * 1.0001
    parts = np.linspace(0.0, 1.0, _POINTS + 1)[1:, None]
    for _ in range(_ROUNDS):
        ratio = np.maximum(high / low, 1.0)
        tried = low * ratio**parts
        good = attainable(work, tried).sum(axis=0)
        step = ratio ** (1.0 / _POINTS)
        low, high = low * step**good, low * step ** np.minimum(good + 1, _POINTS)
    found: Floats = low
    return found
