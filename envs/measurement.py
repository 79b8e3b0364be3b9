"""`Measurement`: what can be measured of N jobs over one interval, live or simulated. All that an agent ever sees.

Arrays, so that one agent can decide for thousands of simulated jobs at once; a live job is N = 1. NaN stands
for what a source cannot tell. `observation.py` turns measurements into dimensionless features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from intune.envs.jobs import Bools, Floats

STAGE_FIELDS = (
    "slots", "rate", "busy", "cpu", "starved", "blocked", "block_bytes", "queued_bytes", "queue_fill",
)  # fmt: skip


UNLIMITED = float(1 << 50)
"""Bytes of memory that stand for no limit: measurements are finite."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """N jobs of at most S stages, at the end of an interval.

    Attributes:
        present: ``[N, S]`` whether the job has the stage.
        slots: ``[N, S]`` tasks of the stage that may run at once (of a shared pool: the pool).
        pool: ``[N]`` slots shared by all stages; 0 where stages have slots of their own.
        rate: ``[N, S]`` rows/s that left the stage.
        busy: ``[N, S]`` slots at work on average (0 to `slots`), waiting included.
        cpu: ``[N, S]`` processors that the stage used on average.
        starved: ``[N, S]`` share of its slots' time without input: upstream is the slower one.
        blocked: ``[N, S]`` share of its slots' time without room for output: downstream is the slower one.
        block_bytes: ``[N, S]`` bytes of one task's output.
        queued_bytes: ``[N, S]`` bytes waiting behind the stage.
        queue_fill: ``[N, S]`` the same as a share of what may wait there, 0 to 1.
        delivered: ``[N]`` rows/s that the trainer took.
        step: ``[N]`` seconds per row that the trainer computed (its own time, without waiting).
        waiting: ``[N]`` share of the trainer's time spent waiting for data, 0 to 1.
        cpus: ``[N]`` CPUs that the job may use in the interval to come.
        cpus_used: ``[N]`` CPUs in use on average, by the pipeline and the trainer.
        memory_used: ``[N]`` the most resident bytes: trainer and pipeline, on all nodes.
        memory_base: ``[N]`` resident bytes before the pipeline had any slot: trainer, libraries; NaN if unknown.
        memory_queued: ``[N]`` bytes of those in queues.
        memory_limit: ``[N]`` bytes that they may be in the interval to come, until the first node is full.
        slot_limit: ``[N]`` slots that may be given out altogether.
        clock: ``[N]`` processor clock as a share of its highest; NaN where it cannot be read.
        bandwidth: ``[N]`` share of the memory bandwidth in use; NaN where it cannot be read.
        since_change: ``[N]`` seconds since the allocation was changed.
        interval: ``[N]`` seconds that were measured.
        killed: ``[N]`` the job ran out of memory in the interval (and was started again).
        watched: ``[N]`` the job itself begins nothing that would take the last of the memory.
    """

    present: Bools
    slots: Floats
    pool: Floats
    rate: Floats
    busy: Floats
    cpu: Floats
    starved: Floats
    blocked: Floats
    block_bytes: Floats
    queued_bytes: Floats
    queue_fill: Floats
    delivered: Floats
    step: Floats
    waiting: Floats
    cpus: Floats
    cpus_used: Floats
    memory_used: Floats
    memory_base: Floats
    memory_queued: Floats
    memory_limit: Floats
    slot_limit: Floats
    clock: Floats
    bandwidth: Floats
    since_change: Floats
    interval: Floats
    killed: Bools
    watched: Bools

    def __len__(self) -> int:
        return len(self.present)

    @property
    def stages(self) -> int:
        """Stages at most, S."""
        return int(self.present.shape[1])

    @property
    def counts(self) -> Any:
        """``[N]`` stages that each job has."""
        return self.present.sum(axis=1)

    def take(self, rows: Any) -> Measurement:
        """The jobs at `rows` (an index array or slice)."""
        return Measurement(**{name: getattr(self, name)[rows] for name in NAMES})

    def put(self, rows: Any, other: Measurement, chosen: Any = slice(None)) -> None:
        """Overwrite the jobs at `rows` in place by those of `other` at `chosen`."""
        for name in NAMES:
            getattr(self, name)[rows] = getattr(other, name)[chosen]

    @classmethod
    def joined(cls, parts: Sequence[Measurement]) -> Measurement:
        """Measurements of other jobs one after another; all of the same width."""
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in NAMES})

    def sound(self) -> Bools:
        """``[N]`` whether a job's measurement can be trusted to decide on: what must be there is there, finite,
        within range and not contradictory. An agent keeps the allocation where it is not."""
        core = np.ones(len(self), dtype=bool)
        for name in ("slots", "rate", "busy", "cpu", "starved", "blocked"):
            value = getattr(self, name)
            core &= (np.isfinite(value) & (value >= 0) | ~self.present).all(axis=1)
        for name in ("delivered", "cpus", "memory_used", "memory_limit", "interval", "slot_limit", "pool"):
            value = getattr(self, name)
            core &= np.isfinite(value) & (value >= 0)
        core &= (self.interval > 0) & (self.cpus > 0) & (self.delivered > 0)
        core &= ((self.slots >= 1) | ~self.present).all(axis=1) & self.present.any(axis=1)
        core &= (self.busy <= self.slots * 1.25 + 1.0).all(axis=1, where=self.present)
        return core


NAMES = tuple(field.name for field in fields(Measurement))
"""Of all arrays of a `Measurement`."""
