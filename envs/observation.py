"""What a learning agent sees: measurements without units, the same for every environment, field by field.

Pure. Every field lies in [-1, 1] or [0, 1] unless said otherwise, is 0 for absent stages, and can be had from a
live pipeline. `PAPER_FIELDS` is the six-number observation after the paper.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from threading import local
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intune.envs.jobs import Floats
from intune.envs.measurement import Measurement

STAGE_FIELDS: dict[str, str] = {
    "present": "1 if the job has the stage, else 0 and all other fields 0.",
    "slots": "log2 of its slots / 8: 0 one slot, 0.5 sixteen, 1 two hundred and fifty-six.",
    "slot_share": "its slots / slots that may be given out, 0 to 1.",
    "busy": "share of its slots at work, waiting included, 0 to 1; near 1 for long: it holds the others up.",
    "cpu_share": "processor time / time at work, 0 to 1; near 0: it waits, more slots than CPUs make sense.",
    "time_share": "its time per row / that of all stages, 0 to 1: what it costs.",
    "cpu_time_share": "its processor time per row / that of all stages, 0 to 1.",
    "headroom": "ln of (rows/s it would make if always at work / rows/s delivered) / 4, 0 to 1; 0: the bottleneck.",
    "starved": "share of its slots' time without input, 0 to 1: upstream is slower.",
    "blocked": "share of its slots' time without room for output, 0 to 1: downstream is slower.",
    "input_fill": "how full the queue before it is, 0 to 1 (1 for the first stage).",
    "output_fill": "how full the queue behind it is, 0 to 1; near 1: faster than what follows.",
    "block_memory": "bytes of a task's output x slots / memory limit, 0 to 1.",
    "queued_memory": "bytes waiting behind it / memory limit, 0 to 1.",
    "position": "0 the first stage, 1 the last.",
    "changed": "log2 of its slots now / one interval ago, divided by 4, -1 to 1.",
}
JOB_FIELDS: dict[str, str] = {
    "stages": "number of stages / 8.",
    "rate_to_best": "rows/s delivered / the most measured of this job, 0 to 1.",
    "rate_change": "ln of rows/s delivered now / one interval ago, -1 to 1.",
    "waiting": "share of the trainer's time spent waiting for data, 0 to 1: what there is to win.",
    "trainer_busy": "rows/s delivered x the trainer's seconds per row, 0 to 1; 1: the trainer is the bottleneck.",
    "free_cpus": "CPUs not in use / CPUs, 0 to 1.",
    "free_memory": "memory not in use / memory limit, 0 to 1.",
    "queued_memory": "bytes in queues / memory limit, 0 to 1.",
    "slots": "slots in use / slots that may be given out, 0 to 1.",
    "cpus": "log2 of the CPUs / 8.",
    "slots_per_cpu": "log2 of (slots in use / CPUs) / 4, -1 to 1.",
    "clock": "processor clock / its highest, 0 to 1; 1 where it cannot be read.",
    "bandwidth": "share of the memory bandwidth in use, 0 to 1; 0 where it cannot be read.",
    "since_change": "intervals since the allocation was changed / 10, 0 to 1.",
    "pooled": "1 if all stages share one pool of slots.",
    "killed": "1 if the job ran out of memory in this interval.",
}
PAPER_FIELDS: dict[str, str] = {
    "latency": "log10 of the pipeline's microseconds per row, / 6.",
    "free_cpus": "CPUs not in use / CPUs, -1 to 1; below 0 where CPUs are about to be taken away.",
    "free_memory": "memory not in use / memory limit, -1 to 1; below 0 where more is in use than will be allowed.",
    "model_latency": "log10 of the trainer's microseconds per row, / 6.",
    "bandwidth": "share of the memory bandwidth in use, 0 to 1; 0 where it cannot be read.",
    "clock": "processor clock / its highest, 0 to 1; 1 where it cannot be read.",
}

SMALL = 1e-12

LINE = 64
"""Bytes of a cache line."""

MOST_ROOMS = 8
"""Shapes for which a thread keeps room to work in."""


def stage_features(
    now: Measurement, before: Measurement | None = None, *, out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """``[N, S, len(STAGE_FIELDS)]``.

    Args:
        now: the interval just measured.
        before: the one before it; None at a job's beginning.
        out: where to write them; None for a new array.
    """
    return _turned(_stage_fields(now, before), out)


def _stage_fields(now: Measurement, before: Measurement | None) -> NDArray[np.float32]:
    """``[len(STAGE_FIELDS), S, N]``: as measurements of many jobs lie in memory."""
    present = now.present.T
    table, out = _table(len(STAGE_FIELDS), *present.shape)
    slots = np.fmax(now.slots.T, 1.0)
    busy, cpu = now.busy.T, now.cpu.T
    rate = np.fmax(now.rate.T, SMALL)
    per_byte = 1.0 / np.maximum(now.memory_limit, 1.0)
    time = busy / rate
    cpu_time = cpu / rate
    limit = np.maximum(now.slot_limit, 1.0)
    counts = np.add.reduce(present, axis=0)
    whole = bool(present.all())
    out[0] = present
    # Logarithms in single precision: they go where single precision is kept.
    out[1] = slots
    np.log2(out[1], out=out[1])
    out[1] *= np.float32(1 / 8)
    np.divide(slots, limit, out=out[2])
    np.divide(busy, slots, out=out[3])
    np.divide(cpu, np.maximum(busy, SMALL), out=out[4])
    for at, each in ((5, time), (6, cpu_time)):
        total = np.add.reduce(each if whole else np.where(present, each, 0.0), axis=0)
        np.divide(each, np.maximum(total, SMALL), out=out[at])
    busiest = np.maximum(time, SMALL) * np.maximum(now.delivered, SMALL)
    np.divide(slots, busiest, out=out[7])
    np.log(np.maximum(out[7], np.float32(SMALL), out=out[7]), out=out[7])
    out[7] *= np.float32(1 / 4)
    out[8], out[9] = now.starved.T, now.blocked.T
    out[10, 0], out[10, 1:] = 1.0, now.queue_fill.T[:-1]
    out[11] = now.queue_fill.T
    np.multiply(now.block_bytes.T, slots * per_byte, out=out[12])
    np.multiply(now.queued_bytes.T, per_byte, out=out[13])
    np.divide(_PLACES[: len(present), None], np.maximum(counts - 1, 1), out=out[14])
    if before is None:
        out[15] = 0.0
    else:
        np.divide(slots, np.fmax(before.slots.T, 1.0), out=out[15])
        np.log2(out[15], out=out[15])
        out[15] *= np.float32(1 / 4)
    _bound(table, _STAGE_LOW)
    if not whole:
        out *= present
    return out


def job_features(
    now: Measurement,
    before: Measurement | None = None,
    best: Floats | None = None,
    *,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """``[N, len(JOB_FIELDS)]``.

    Args:
        now, before, out: as in `stage_features`.
        best: ``[N]`` most rows/s measured of each job so far.
    """
    return _turned(_job_fields(now, before, best), out)


def _job_fields(now: Measurement, before: Measurement | None, best: Floats | None) -> NDArray[np.float32]:
    """``[len(JOB_FIELDS), N]``."""
    table, out = _table(len(JOB_FIELDS), len(now))
    delivered = now.delivered
    pooled = now.pool > 0
    used = np.add.reduce(now.slots * now.present, axis=1)
    if pooled.any():
        used = np.where(pooled, now.pool, used)
    per_byte = 1.0 / np.maximum(now.memory_limit, 1.0)
    cpus = np.maximum(now.cpus, 1.0)
    out[0] = now.counts
    np.divide(delivered, np.maximum(delivered if best is None else best, SMALL), out=out[1])
    if before is None:
        out[2] = 0.0
    else:
        np.log(np.maximum(delivered, SMALL) / np.maximum(before.delivered, SMALL), out=out[2])
    out[3] = now.waiting
    np.multiply(delivered, now.step, out=out[4])
    np.subtract(1.0, now.cpus_used / np.maximum(now.cpus, SMALL), out=out[5])
    np.subtract(1.0, now.memory_used * per_byte, out=out[6])
    np.multiply(now.memory_queued, per_byte, out=out[7])
    np.divide(used, np.maximum(now.slot_limit, 1.0), out=out[8])
    np.log2(cpus, out=out[9])
    np.log2(np.maximum(used, 1.0) / cpus, out=out[10])
    out[11] = _known(now.clock, 1.0)
    out[12] = _known(now.bandwidth, 0.0)
    np.divide(now.since_change, np.maximum(now.interval, SMALL), out=out[13])
    out[14], out[15] = pooled, now.killed
    np.multiply(table, _JOB_SCALE, out=table)
    _bound(table, _JOB_LOW)
    return out


def paper_features(now: Measurement, *, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """``[N, 6]``, after the paper: see `PAPER_FIELDS`; `out` as of `stage_features`."""
    return _turned(_paper_fields(now), out)


def _paper_fields(now: Measurement) -> NDArray[np.float32]:
    """``[len(PAPER_FIELDS), N]``."""
    table, out = _table(len(PAPER_FIELDS), len(now))
    np.log10(1e6 / np.maximum(now.delivered, SMALL), out=out[0])
    np.subtract(1.0, now.cpus_used / np.maximum(now.cpus, SMALL), out=out[1])
    np.subtract(1.0, now.memory_used / np.maximum(now.memory_limit, 1.0), out=out[2])
    np.log10(np.maximum(now.step, SMALL) * 1e6, out=out[3])
    out[4] = _known(now.bandwidth, 0.0)
    out[5] = _known(now.clock, 1.0)
    np.multiply(table, _PAPER_SCALE, out=table)
    _bound(table, _PAPER_LOW)
    return out


def bounds() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The least value of every field of `STAGE_FIELDS` and of `JOB_FIELDS`; the most is 1."""
    return _STAGE_LOW.ravel().copy(), _JOB_LOW.ravel().copy()


def _known(values: Floats, otherwise: float) -> Floats:
    """`values`, and `otherwise` where they could not be read (NaN)."""
    return np.where(np.isnan(values), otherwise, values)


def _bound(table: NDArray[np.float32], low: NDArray[np.float32]) -> None:
    """In place: what was not measured (NaN) becomes 0, the rest is cut to `low` (of every field) ... 1."""
    for first, last, least in _runs(tuple(low.ravel().tolist())):
        np.clip(table[first:last], np.float32(least), np.float32(1.0), out=table[first:last])
    # All is between -1 and 1 or NaN: one sum tells whether there is any, far cheaper than looking at every number.
    if np.isnan(np.add.reduce(np.add.reduce(table, axis=0), axis=None)):
        np.copyto(table, np.float32(0.0), where=np.isnan(table))


@cache
def _runs(low: tuple[float, ...]) -> list[tuple[int, int, float]]:
    """Fields that follow one another and have the same least value: first, last + 1, that value."""
    ends = [at for at in range(1, len(low)) if low[at] != low[at - 1]]
    return [(first, last, low[first]) for first, last in pairwise([0, *ends, len(low)])]


def _table(*shape: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Room to work in, and the part of it that has the `shape` wanted. The same at every call of a thread: a new
    array would cost as much as to fill it.

    The rows of the part do not begin a power of two bytes apart. They would fall on the same lines of a core's cache,
    and turning the table round, which goes through all rows at once, would take several times as long.
    """
    rooms: dict[Any, NDArray[np.float32]] = _rooms.__dict__
    if shape not in rooms:
        if len(rooms) >= MOST_ROOMS:
            rooms.clear()
        rooms[shape] = np.zeros((*shape[:-1], shape[-1] + LINE // 4), dtype=np.float32)
    return rooms[shape], rooms[shape][..., : shape[-1]]


def _turned(fields: NDArray[np.float32], out: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """Jobs first, fields last."""
    made = np.empty(fields.shape[::-1], dtype=np.float32) if out is None else out
    made[...] = fields.transpose()
    return made


def _column(
    fields: dict[str, str], values: dict[str, float], default: float, axes: int
) -> NDArray[np.float32]:
    """A number for every field, to be multiplied with arrays that have the fields first."""
    numbers = np.array([values.get(name, default) for name in fields], dtype=np.float32)
    return numbers.reshape(-1, *(1,) * axes)


_STAGE_LOW = _column(STAGE_FIELDS, {"changed": -1.0}, 0.0, 2)
_JOB_LOW = _column(JOB_FIELDS, {"rate_change": -1.0, "slots_per_cpu": -1.0}, 0.0, 1)
_PAPER_LOW = _column(PAPER_FIELDS, {}, -1.0, 1)
_JOB_SCALE = _column(
    JOB_FIELDS, {"stages": 1 / 8, "cpus": 1 / 8, "slots_per_cpu": 1 / 4, "since_change": 1 / 10}, 1.0, 1
)
_PAPER_SCALE = _column(PAPER_FIELDS, {"latency": 1 / 6, "model_latency": 1 / 6}, 1.0, 1)
_PLACES = np.arange(1024.0)
_rooms = local()
