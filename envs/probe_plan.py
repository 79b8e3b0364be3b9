"""Which allocations of a real pipeline to measure: a few that show what a calibration must know. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from intune.envs.measurement import Measurement
from intune.pipelines.allocation import Allocation

COSTS = 0.05
"""Share of the time per row of all stages from which on a stage is worth slots of its own to find out about."""

WAITS = 0.5
"""Share of a stage's time in which it uses no processor, from which on it may use many more slots than there are
CPUs."""

WAITING_SLOTS = 6
"""Slots per CPU that such a stage is tried with at most."""


def first_allocations(stages: Sequence[str], cpus: int) -> list[Allocation]:
    """What tells the stages' costs: one slot each, and a pool of one, in which none disturbs another."""
    return [
        Allocation.per_stage(dict.fromkeys(stages, 1)),
        Allocation.shared(1),
        Allocation.shared(max(2, cpus)),
    ]


def more_allocations(
    first: Sequence[Measurement], stages: Sequence[str], cpus: int, most: int = 9
) -> list[Allocation]:
    """What tells how stages scale, the ones that cost most first: each alone, then all of them together.

    Args:
        first: what was measured under `first_allocations`.
        stages: names.
        cpus: that the pipeline may use.
        most: how many to return at most.
    """
    count = len(stages)
    alone = first[1]  # one task at a time: none waits for another
    rate = np.maximum(alone.rate[0, :count], 1e-9)
    time = alone.busy[0, :count] / rate
    share = time / max(float(time.sum()), 1e-30)
    work = np.divide(
        alone.cpu[0, :count], alone.busy[0, :count], out=np.ones(count), where=alone.busy[0, :count] > 0
    )
    costly = [int(at) for at in np.argsort(-share) if share[at] >= COSTS] or [int(np.argmax(share))]
    top = {at: max(2, 2 * cpus if work[at] > WAITS else WAITING_SLOTS * cpus) for at in costly}
    plans: list[dict[int, int]] = []
    for at in costly:
        plans += [{at: top[at]}, {at: 2}]
    if len(costly) > 1:
        plans += [dict.fromkeys(costly, 2), dict(top)]
        plans += [{at: max(2, round(top[at] ** 0.5)) for at in costly}]
    else:
        plans += [{costly[0]: max(2, round(top[costly[0]] ** 0.5))}, {costly[0]: 3}]
    found: list[Allocation] = []
    pools = [Allocation.shared(max(top.values()))] if max(top.values()) > 2 * cpus else []
    pools += [Allocation.shared(2 * max(2, cpus))]
    for each in (
        *pools,
        *(Allocation.per_stage({name: plan.get(at, 1) for at, name in enumerate(stages)}) for plan in plans),
    ):
        if each not in found:
            found.append(each)
    return found[:most]
