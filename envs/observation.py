"""What a learning agent sees: measurements without units, the same for every environment, field by field.

Pure. Every field lies in [-1, 1] or [0, 1] unless said otherwise, is 0 for absent stages, and can be had from a
live pipeline. `PAPER_FIELDS` is the six-number observation after the paper.
"""

from __future__ import annotations

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
    "free_cpus": "CPUs not in use / CPUs, 0 to 1.",
    "free_memory": "memory not in use / memory limit, 0 to 1.",
    "model_latency": "log10 of the trainer's microseconds per row, / 6.",
    "bandwidth": "share of the memory bandwidth in use, 0 to 1; 0 where it cannot be read.",
    "clock": "processor clock / its highest, 0 to 1; 1 where it cannot be read.",
}

SMALL = 1e-12


def stage_features(now: Measurement, before: Measurement | None = None) -> NDArray[np.float32]:
    """``[N, S, len(STAGE_FIELDS)]``.

    Args:
        now: the interval just measured.
        before: the one before it; None at a job's beginning.
    """
    out = np.zeros((*now.present.shape, len(STAGE_FIELDS)), dtype=np.float32)
    slots = np.maximum(now.slots, 1.0)
    rate = np.maximum(now.rate, SMALL)
    limit = np.maximum(now.memory_limit, 1.0)[:, None]
    busy = np.nan_to_num(now.busy)
    time = busy / rate
    cpu = np.nan_to_num(now.cpu)
    cpu_time = cpu / rate
    delivered = np.maximum(now.delivered, SMALL)[:, None]
    position = np.arange(now.stages) / np.maximum(now.counts - 1, 1)[:, None]
    out[..., 0] = 1.0
    out[..., 1] = np.log2(slots) / 8.0
    out[..., 2] = slots / np.maximum(now.slot_limit, 1.0)[:, None]
    out[..., 3] = busy / slots
    out[..., 4] = cpu / np.maximum(busy, SMALL)
    out[..., 5] = time / np.maximum((time * now.present).sum(axis=1, keepdims=True), SMALL)
    out[..., 6] = cpu_time / np.maximum((cpu_time * now.present).sum(axis=1, keepdims=True), SMALL)
    # NaN-free and bounded whatever was measured: the clip below takes care of infinities.
    out[..., 7] = np.log(slots / np.maximum(time, SMALL) / delivered + SMALL) / 4.0
    out[..., 8] = now.starved
    out[..., 9] = now.blocked
    out[:, 0, 10] = 1.0
    out[:, 1:, 10] = now.queue_fill[:, :-1]
    out[..., 11] = now.queue_fill
    out[..., 12] = now.block_bytes * slots / limit
    out[..., 13] = now.queued_bytes / limit
    out[..., 14] = position
    if before is not None:
        out[..., 15] = np.log2(slots / np.maximum(before.slots, 1.0)) / 4.0
    # Not a number: not measured. Zero says least.
    np.nan_to_num(out, copy=False, nan=0.0, posinf=1.0, neginf=-1.0)
    np.clip(out, _STAGE_LOW, 1.0, out=out)
    out *= now.present[..., None]
    return out


def job_features(
    now: Measurement, before: Measurement | None = None, best: Floats | None = None
) -> NDArray[np.float32]:
    """``[N, len(JOB_FIELDS)]``.

    Args:
        now, before: as in `stage_features`.
        best: ``[N]`` most rows/s measured of each job so far.
    """
    out = np.zeros((len(now), len(JOB_FIELDS)), dtype=np.float32)
    delivered = now.delivered
    used = np.where(now.pool > 0, now.pool, (now.slots * now.present).sum(axis=1))
    limit = np.maximum(now.memory_limit, 1.0)
    out[:, 0] = now.counts / 8.0
    out[:, 1] = delivered / np.maximum(delivered if best is None else best, SMALL)
    if before is not None:
        out[:, 2] = np.log(np.maximum(delivered, SMALL) / np.maximum(before.delivered, SMALL))
    out[:, 3] = now.waiting
    out[:, 4] = delivered * now.step
    out[:, 5] = 1.0 - now.cpus_used / np.maximum(now.cpus, SMALL)
    out[:, 6] = 1.0 - now.memory_used / limit
    out[:, 7] = now.memory_queued / limit
    out[:, 8] = used / np.maximum(now.slot_limit, 1.0)
    out[:, 9] = np.log2(np.maximum(now.cpus, 1.0)) / 8.0
    out[:, 10] = np.log2(np.maximum(used, 1.0) / np.maximum(now.cpus, 1.0)) / 4.0
    out[:, 11] = np.where(np.isnan(now.clock), 1.0, now.clock)
    out[:, 12] = np.where(np.isnan(now.bandwidth), 0.0, now.bandwidth)
    out[:, 13] = now.since_change / np.maximum(10.0 * now.interval, SMALL)
    out[:, 14] = now.pool > 0
    out[:, 15] = now.killed
    np.nan_to_num(out, copy=False, nan=0.0, posinf=1.0, neginf=-1.0)
    return np.clip(out, _JOB_LOW, 1.0, out=out)


def paper_features(now: Measurement) -> NDArray[np.float32]:
    """``[N, 6]``, after the paper: see `PAPER_FIELDS`."""
    out = np.empty((len(now), len(PAPER_FIELDS)), dtype=np.float32)
    out[:, 0] = np.log10(1e6 / np.maximum(now.delivered, SMALL)) / 6.0
    out[:, 1] = 1.0 - now.cpus_used / np.maximum(now.cpus, SMALL)
    out[:, 2] = 1.0 - now.memory_used / np.maximum(now.memory_limit, 1.0)
    out[:, 3] = np.log10(np.maximum(now.step, SMALL) * 1e6) / 6.0
    out[:, 4] = np.where(np.isnan(now.bandwidth), 0.0, now.bandwidth)
    out[:, 5] = np.where(np.isnan(now.clock), 1.0, now.clock)
    np.nan_to_num(out, copy=False, nan=0.0, posinf=1.0, neginf=-1.0)
    return np.clip(out, -1.0, 1.0, out=out)


_STAGE_LOW: Any = np.array([-1.0 if name == "changed" else 0.0 for name in STAGE_FIELDS], dtype=np.float32)
_JOB_LOW: Any = np.array(
    [-1.0 if name in ("rate_change", "slots_per_cpu") else 0.0 for name in JOB_FIELDS], dtype=np.float32
)


def bounds() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The least value of every field of `STAGE_FIELDS` and of `JOB_FIELDS`; the most is 1."""
    return _STAGE_LOW.copy(), _JOB_LOW.copy()
