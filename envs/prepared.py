"""What the physics needs of jobs beside their parameters, computed once: constants, and which parts are needed at all.
Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from intune.envs.jobs import Bools, Floats, Jobs

TINY = 1e-30
"""Instead of zero where something is divided by it."""


LEAST_KNEE = 1e-2
"""Width of a knee below which it is reckoned as this, lest a power overflows; where slots and processors are in balance
it takes 0.7 % of the rate then."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Which parts of the physics some job needs; the others are not computed.

    Attributes:
        scaling: contention, coherence or crowding; crowding: that one.
        switching: time lost to slots beyond the processors; knee: queueing for processors below saturation.
        delay: added slots that come late.
        queue_limit: a limit on the bytes of all queues.
        storage: a limit on the bytes or requests per second of storage; memory_bandwidth: on that.
        nodes: more than one node.
        trainer_cpu: processor time that the trainer takes.
    """

    scaling: bool
    crowding: bool
    switching: bool
    knee: bool
    delay: bool
    queue_limit: bool
    storage: bool
    memory_bandwidth: bool
    nodes: bool
    trainer_cpu: bool

    def __or__(self, other: Parts) -> Parts:
        """What either needs."""
        return Parts(*(getattr(self, each.name) or getattr(other, each.name) for each in fields(self)))


@dataclass(frozen=True, slots=True)
class Prepared:
    """What can be computed from `Jobs` once: see `prepare`.

    Attributes:
        parts: of the physics that are needed.
        storage_rate: ``[N, S]`` rows/s that storage has for the stage; inf where it uses none, or there is no limit.
        uses_traffic: ``[N, S]`` whether the stage stretches where memory bandwidth is short.
        share: ``[N, M]`` part of the slots that each node carries.
        step_rate: ``[N]`` rows/s that the trainer takes at most, and that reach it over its node's network.
        queue_rows: ``[N, S]`` rows per slot that may wait behind the stage.
    """

    jobs: Jobs
    parts: Parts
    storage_rate: Floats
    uses_traffic: Bools
    share: Floats
    step_rate: Floats
    queue_rows: Floats

    @property
    def crowding(self) -> Floats | None:
        """Of `jobs`; None where no job has any."""
        return self.jobs.crowding if self.parts.crowding else None


def prepare(jobs: Jobs) -> Prepared:
    """Constants of `jobs` that every interval needs."""
    share = jobs.cpus / jobs.cpus.sum(axis=1, keepdims=True)
    # Slots are spread over the nodes by their CPUs; what is made elsewhere reaches the trainer by node 0's network.
    last = np.take_along_axis(jobs.row_bytes, jobs.present.sum(axis=1, keepdims=True) - 1, axis=1)[:, 0]
    remote = (1.0 - share[:, 0]) * last
    rows_of_storage = np.minimum(
        jobs.storage_bandwidth / np.maximum(jobs.storage_bytes.sum(axis=1), TINY),
        jobs.storage_rate / np.maximum(jobs.storage_requests.sum(axis=1), TINY),
    )
    uses_storage = (jobs.storage_bytes > 0) | (jobs.storage_requests > 0)
    storage_rate = np.where(uses_storage, rows_of_storage[:, None], np.inf)
    parts = Parts(
        scaling=bool(jobs.contention.any() or jobs.coherence.any() or jobs.crowding.any()),
        crowding=bool(jobs.crowding.any()),
        switching=bool(jobs.switching.any()),
        knee=bool(jobs.knee.any()),
        delay=bool(jobs.resize_delay.any()),
        queue_limit=bool(np.isfinite(jobs.queue_bytes).any()),
        storage=bool(np.isfinite(storage_rate).any()),
        memory_bandwidth=bool(np.isfinite(jobs.memory_bandwidth).any()),
        nodes=jobs.cpus.shape[1] > 1,
        trainer_cpu=bool(jobs.step_cpu.any()),
    )
    return Prepared(
        jobs=jobs,
        parts=parts,
        storage_rate=storage_rate,
        uses_traffic=jobs.traffic > 0,
        share=share,
        step_rate=np.minimum(1.0 / jobs.step, jobs.nic[:, 0] / np.maximum(remote, TINY)),
        queue_rows=jobs.queue_blocks * jobs.block_rows,
    )


def ratio(there: Floats, wanted: Floats) -> Floats:
    """``there / wanted``, at most 1."""
    return np.asarray(np.minimum(there / np.maximum(wanted, TINY), 1.0))
