"""What the physics needs of jobs beside their parameters, computed once: constants, which parts are needed at all,
and the limits that all stages share. Pure.
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
        storage_bandwidth, storage_rate, memory_bandwidth, network: the limits shared by all stages.
        nodes: more than one node.
        trainer_cpu: processor time that the trainer takes.
    """

    scaling: bool
    crowding: bool
    switching: bool
    knee: bool
    delay: bool
    queue_limit: bool
    storage_bandwidth: bool
    storage_rate: bool
    memory_bandwidth: bool
    network: bool
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
        remote: ``[N]`` bytes of a row delivered that come over the network of the first node, on average.
        uses_storage, uses_traffic: ``[N, S]`` whether the stage stretches where storage, or memory, is short.
        share: ``[N, M]`` part of the slots that each node carries.
        step_rate: ``[N]`` rows/s of the trainer at most.
        queue_rows: ``[N, S]`` rows per slot that may wait behind the stage.
    """

    jobs: Jobs
    parts: Parts
    remote: Floats
    uses_storage: Bools
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
    limited = np.isfinite
    parts = Parts(
        scaling=bool(jobs.contention.any() or jobs.coherence.any() or jobs.crowding.any()),
        crowding=bool(jobs.crowding.any()),
        switching=bool(jobs.switching.any()),
        knee=bool(jobs.knee.any()),
        delay=bool(jobs.resize_delay.any()),
        queue_limit=bool(limited(jobs.queue_bytes).any()),
        storage_bandwidth=bool((limited(jobs.storage_bandwidth) & jobs.storage_bytes.any(axis=1)).any()),
        storage_rate=bool((limited(jobs.storage_rate) & jobs.storage_requests.any(axis=1)).any()),
        memory_bandwidth=bool(limited(jobs.memory_bandwidth).any()),
        network=bool((limited(jobs.nic[:, 0]) & (remote > 0)).any()),
        nodes=jobs.cpus.shape[1] > 1,
        trainer_cpu=bool(jobs.step_cpu.any()),
    )
    return Prepared(
        jobs=jobs,
        parts=parts,
        remote=remote,
        uses_storage=(jobs.storage_bytes > 0) | (jobs.storage_requests > 0),
        uses_traffic=jobs.traffic > 0,
        share=share,
        step_rate=1.0 / jobs.step,
        queue_rows=jobs.queue_blocks * jobs.block_rows,
    )


@dataclass(frozen=True, slots=True)
class Shortage:
    """How short the shared limits are: what there is / what all flows together would take, 1 where enough.

    Attributes:
        flows: ``[N]`` the shortest of all: what flows are slowed down to; 1.0 where nothing is limited.
        storage, memory: ``[N]`` of storage, of memory bandwidth; None where not limited.
        traffic: ``[N]`` bytes/s of memory traffic that flows would take; None where not limited.
    """

    flows: Floats | float
    storage: Floats | None
    memory: Floats | None
    traffic: Floats | None


def shortage(prepared: Prepared, through: Floats, delivered: Floats) -> Shortage:
    """What `through` rows/s of the stages, ``[N, S]``, and `delivered` rows/s would take of the shared limits."""
    jobs, parts = prepared.jobs, prepared.parts
    flows: Floats | float = 1.0
    storage = memory = traffic = None
    for used, each, limit in (
        (parts.storage_bandwidth, jobs.storage_bytes, jobs.storage_bandwidth),
        (parts.storage_rate, jobs.storage_requests, jobs.storage_rate),
    ):
        if used:
            short = ratio(limit, np.add.reduce(through * each, axis=1))
            storage = short if storage is None else np.minimum(storage, short)
    if storage is not None:
        flows = storage
    if parts.memory_bandwidth:
        traffic = np.add.reduce(through * jobs.traffic, axis=1)
        memory = ratio(jobs.memory_bandwidth, traffic)
        flows = np.minimum(flows, memory)
    if parts.network:
        flows = np.minimum(flows, ratio(jobs.nic[:, 0], delivered * prepared.remote))
    return Shortage(flows=flows, storage=storage, memory=memory, traffic=traffic)


def ratio(there: Floats, wanted: Floats) -> Floats:
    """``there / wanted``, at most 1."""
    return np.asarray(np.minimum(there / np.maximum(wanted, TINY), 1.0))
