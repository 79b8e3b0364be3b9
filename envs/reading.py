"""`Reading`: a `Measurement` of one simulated job as plain numbers, which plain Python computes with."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan

import numpy as np

from intune.envs.jobs import Floats, Jobs
from intune.envs.measurement import Measurement

Row = list[float]


@dataclass(slots=True)
class Reading:
    """What was measured of the interval: see `Measurement`; of the stages that the job has."""

    slots: Row
    rate: Row
    busy: Row
    cpu: Row
    starved: Row
    blocked: Row
    queued_bytes: Row
    queue_fill: Row
    delivered: float
    waiting: float
    cpus: float
    cpus_used: float
    memory_used: float
    memory_base: float
    memory_queued: float
    memory_limit: float
    slot_limit: float
    bandwidth: float
    since_change: float
    killed: bool


def measurement_of(reading: Reading, jobs: Jobs, block_bytes: Row) -> Measurement:
    """The same as arrays, N = 1; `block_bytes` are those of a task's output of every stage."""
    width = jobs.stages

    def wide(values: Row) -> Floats:
        return np.array([values + [0.0] * (width - len(values))])

    def one(value: float) -> Floats:
        return np.array([value])

    stages = ("slots", "rate", "busy", "cpu", "starved", "blocked", "queued_bytes", "queue_fill")
    single = (
        "delivered", "waiting", "cpus", "cpus_used", "memory_used", "memory_base", "memory_queued", "memory_limit",
        "slot_limit", "bandwidth", "since_change",
    )  # fmt: skip
    return Measurement(
        present=jobs.present.copy(),
        pool=np.zeros(1),
        block_bytes=wide(block_bytes),
        step=jobs.step.copy(),
        clock=one(nan),
        interval=jobs.interval.copy(),
        killed=np.array([reading.killed]),
        watched=np.zeros(1, dtype=bool),
        **{name: wide(getattr(reading, name)) for name in stages},
        **{name: one(getattr(reading, name)) for name in single},
    )
