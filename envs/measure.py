"""From two readings of a pipeline's counters to a `Measurement` of what happened in between. Pure.

Counters that make no sense (backwards, no time between, other stages) do not raise: the measurement then says
of itself that it is not sound, and whoever decides on measurements keeps what is in force.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from intune.envs.jobs import Floats, slot_limit
from intune.envs.measurement import STAGE_FIELDS, UNLIMITED, Measurement
from intune.envs.resources import Resources
from intune.pipelines.metrics import PipelineStats, StageStats

SLOTS_PER_CPU = 8.0
"""Slots that may be given out per CPU unless told otherwise: stages that wait for far storage have use for as many
as storage's latency has tasks' times in it (on two CPUs a dozen), and a slot that is idle costs next to nothing."""

SATED = 0.05
"""Share of its time that a trainer waits at most if it is what holds the pipeline up."""

VIEW = 1.0
"""Bytes newly made per row below which a stage only shows its input's memory."""

MOST_CROWDED = 10.0
"""Others that leave less than a tenth of its processors to a job are taken to leave it that."""

LONG_TASKS = 8
"""Tasks of each slot at work in an interval, from which on those that end in it tell what it brought."""

MOST_SMOOTHED = 4.0
"""Factor by which what ended may be off."""

FEW_UNDER_WAY = 0.1
"""Tasks that are under way or wait, as a share of those that a stage has ended, below which its rows tell what it makes
of each row that the trainer gets."""

SAME_ROWS = 1.25
"""Factor within which rows of a stage and of the trainer are taken to be the same rows."""

OUT_OF_MEMORY = 0.9
"""Share of the memory limit above which a worker that died is taken to have died of it."""


def measure(
    now: PipelineStats,
    before: PipelineStats,
    *,
    resources: Resources,
    resources_before: Resources | None = None,
    memory_base: float = math.nan,
    memory_left: float = math.nan,
    since_change: float = 0.0,
    slots_per_cpu: float = SLOTS_PER_CPU,
    elsewhere: bool = False,
    memory_bandwidth: float = math.nan,
) -> Measurement:
    """What happened between two readings of one job's counters.

    Of a shared pool nobody knows what its idle slots waited for: all count as blocked if the trainer did not wait
    for data, as starved if it did.

    Args:
        now, before: of one pipeline; time spent between epochs does not count.
        resources: of the job, read with `now`; resources_before: read with `before`, where there was such a reading.
        memory_base: resident bytes before the pipeline had any slot.
        memory_left: fewest bytes that were left in between; NaN where nobody looked. What was in use then counts.
        since_change: seconds since the allocation was changed.
        slots_per_cpu: slots that may be given out, per CPU.
        elsewhere: whether stages run in processes that `resources` does not count (Ray's workers).
        memory_bandwidth: bytes/s between processors and memory at most; NaN if unknown.

    Returns:
        N = 1. Not `sound` where the two readings cannot be compared.
    """
    count = len(now.stages)
    same = [stage.name for stage in now.stages] == [stage.name for stage in before.stages]
    seconds = now.elapsed_s - before.elapsed_s
    known = _known_now(now, resources, count, since_change, slots_per_cpu)
    if not same or seconds == 0 or fault(now, before):
        return known
    change = now.since(before)
    pool = int(known.pool[0])
    stages = change.stages
    per = 1.0 / seconds
    slots = known.slots
    busy = _row([stage.busy_s * per for stage in stages])
    used = resources.cpu_s - resources_before.cpu_s if resources_before is not None else math.nan
    used = used * per if math.isfinite(used) and used >= 0 else 0.0
    dearer = 1.0 if elsewhere else _dearer(used, resources, resources_before, per)
    cpu = np.minimum(_row([stage.cpu_s * per * dearer for stage in stages]), busy)
    used *= dearer
    rate = _row([stage.rows * per * _smoothing(stage, seconds) for stage in stages])
    rate *= _row([_delivered_of_each(stage, now) for stage in now.stages])
    waiting = change.wait_share if change.step_s + change.wait_s > 0 else math.nan
    starved, blocked = _idle(stages, slots, busy, pool, waiting)
    queue = _row([stage.queue for stage in now.stages])
    of_stages = float(cpu.sum())
    memory = float(now.memory_resident) if now.memory_resident > 0 else resources.resident
    if math.isfinite(memory_left) and math.isfinite(resources.memory_limit):
        memory = max(memory, resources.memory_limit - memory_left)
    traffic = resources.traffic - (resources_before.traffic if resources_before is not None else math.nan)
    killed = change.workers_lost > 0 and memory > OUT_OF_MEMORY * resources.memory_limit
    return replace(
        known,
        rate=rate,
        busy=busy,
        cpu=cpu,
        starved=starved,
        blocked=blocked,
        queued_bytes=queue * known.block_bytes,
        # The scheduler has room for one output ahead of each slot.
        queue_fill=np.minimum(queue / np.maximum(busy if pool else slots, 1.0), 1.0),
        delivered=_one(_delivered(change, rate, seconds, waiting)),
        step=_one(change.step_s / change.rows if change.rows > 0 else math.nan),
        waiting=_one(waiting),
        cpus_used=_one(used + of_stages if elsewhere else max(used, of_stages)),
        memory_used=_one(memory),
        memory_base=_one(memory_base),
        bandwidth=_one(traffic * per / memory_bandwidth),
        interval=_one(seconds),
        killed=np.array([killed]),
    )


def _smoothing(stage: StageStats, seconds: float) -> float:
    """What a stage did in an interval, as a multiple of what it ended in it.

    A few long tasks that run side by side begin and end together: of two intervals one has the ends of all, the other
    of none. By Little's law a stage ends as many tasks a second as it has at work, divided by the time of one.
    """
    at_work = stage.busy_s / seconds
    if not 0 < stage.tasks < LONG_TASKS * at_work or stage.done_s <= 0:
        return 1.0
    return float(np.clip(stage.busy_s / stage.done_s, 1.0 / MOST_SMOOTHED, MOST_SMOOTHED))


def _delivered_of_each(stage: StageStats, now: PipelineStats) -> float:
    """Rows that the trainer got for each that a stage made, so that stages can be compared: one may filter rows, or
    make many of each. 1 where they are the same rows, and as long as too few have come through to tell."""
    under_way = sum(other.queue + other.running for other in now.stages)
    if now.rows <= 0 or stage.rows <= 0 or under_way > FEW_UNDER_WAY * stage.tasks:
        return 1.0
    factor = now.rows / stage.rows
    return 1.0 if 1.0 / SAME_ROWS <= factor <= SAME_ROWS else factor


def _delivered(change: PipelineStats, rate: Floats, seconds: float, waiting: float) -> float:
    """Rows/s that the trainer took; where it waits for long tasks, those that they come to."""
    stages = change.stages
    busiest = max(range(len(stages)), key=lambda at: stages[at].busy_s)
    if not (waiting > SATED and change.rows > 0) or _smoothing(stages[busiest], seconds) == 1.0:
        return change.rows / seconds
    return float(rate[0, busiest])


def _dearer(used: float, now: Resources, before: Resources | None, per: float) -> float:
    """Factor by which processor time is scarcer than the job's own use of it shows.

    Where others keep processors busy, what waits for one of them is no waiting that more slots could fill: the job
    would have used as much more as its threads waited for a processor. But no more than there are: the job has what it
    used and what was left idle, and its own threads wait for each other as well. Where that wait cannot be read, all
    that others use is taken to be kept from the job.
    """
    if before is None or used <= 0:
        return 1.0
    idle = (now.idle_s - before.idle_s) * per
    if not math.isfinite(idle) or idle < 0:
        return 1.0
    factor = now.cpus / (used + idle)
    delay = (now.delay_s - before.delay_s) * per
    if math.isfinite(delay):
        # Threads that have ended took their count along.
        factor = min(factor, 1.0 + max(delay, 0.0) / used)
    return float(max(1.0, min(factor, MOST_CROWDED)))


def widened(measured: Measurement, stages: int) -> Measurement:
    """The same with room for `stages` stages; those that a job does not have are 0, as in simulated ones."""
    more = stages - measured.stages
    if more <= 0:
        return measured
    wide = {name: np.pad(getattr(measured, name), ((0, 0), (0, more))) for name in ("present", *STAGE_FIELDS)}
    return replace(measured, **wide)


def _idle(
    stages: tuple[StageStats, ...], slots: Floats, busy: Floats, pool: int, waiting: float
) -> tuple[Floats, Floats]:
    """Shares of the slots' time without input, and without room for output, ``[1, S]``."""
    if pool:
        idle = np.broadcast_to(np.clip(1.0 - busy.sum() / max(pool, 1), 0.0, 1.0), slots.shape)
        none = np.zeros_like(slots)
        return (none, idle.copy()) if waiting < SATED else (idle.copy(), none)
    there = np.maximum(_row([stage.slot_s for stage in stages]), 1e-12)
    starved = np.clip(_row([stage.starved_s for stage in stages]) / there, 0.0, 1.0)
    return starved, np.clip(_row([stage.blocked_s for stage in stages]) / there, 0.0, 1.0 - starved)


def _block_bytes(stages: tuple[StageStats, ...]) -> list[float]:
    """Bytes that one task's output keeps alive, from all that was counted; NaN before the first."""
    sizes = []
    row = math.nan
    for stage in stages:
        made = stage.bytes_out / stage.rows if stage.rows > 0 else math.nan
        # A stage that cuts or hands over its input makes no bytes; what waits behind it is its input's.
        row = made if made >= VIEW or math.isnan(row) else row
        sizes.append(row * stage.rows / stage.tasks if stage.tasks > 0 else math.nan)
    return sizes


def counters(stats: PipelineStats) -> list[tuple[str, Any]]:
    """What only grows, as a message names it, and its value."""
    told = [
        (f"`{name}`", getattr(stats, name)) for name in ("elapsed_s", "rows", "batches", "step_s", "wait_s")
    ]
    for stage in stats.stages:
        names = ("tasks", "rows", "busy_s", "cpu_s", "slot_s")
        told += [(f"`{name}` of stage {stage.name!r}", getattr(stage, name)) for name in names]
    return told


def fault(now: PipelineStats, before: PipelineStats) -> str:
    """The first counter that fell between two readings of the same stages, or is NaN: it is another pipeline's, or was
    set back. Empty where there is none."""
    for (what, value), (_, earlier) in zip(counters(now), counters(before), strict=True):
        if not math.isfinite(value):
            return f"{what} is {value}"
        if not value - earlier > -1e-6:
            return f"{what} fell from {earlier:g} to {value:g}"
    return ""


def _known_now(
    now: PipelineStats, resources: Resources, count: int, since_change: float, slots_per_cpu: float
) -> Measurement:
    """What is known of a job now, where nothing is known of the interval."""
    nothing = np.full((1, count), math.nan)
    unknown = np.array([math.nan])
    return Measurement(
        present=np.ones((1, count), dtype=bool),
        slots=_row([stage.slots for stage in now.stages]),
        pool=_one(now.allocation.pool if now.allocation.is_shared else 0),
        rate=nothing,
        busy=nothing,
        cpu=nothing,
        starved=nothing,
        blocked=nothing,
        block_bytes=_row(_block_bytes(now.stages)),
        queued_bytes=nothing,
        queue_fill=nothing,
        delivered=_one(0.0),
        step=unknown,
        waiting=unknown,
        cpus=_one(resources.cpus),
        cpus_used=unknown,
        memory_used=_one(now.memory_resident or resources.resident),
        memory_base=unknown,
        memory_queued=_one(now.memory_held),
        memory_limit=_one(min(resources.memory_limit, UNLIMITED)),
        slot_limit=slot_limit(_one(resources.cpus), _one(slots_per_cpu), count).astype(np.float64),
        clock=_one(resources.clock),
        bandwidth=unknown,
        since_change=_one(since_change),
        interval=_one(0.0),
        killed=np.array([False]),
        watched=np.array([now.watched]),
    )


def _row(values: list[Any]) -> Floats:
    return np.array([values], dtype=np.float64)


def _one(value: float) -> Floats:
    return np.array([value], dtype=np.float64)
