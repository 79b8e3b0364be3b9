"""What a calibration fits: the parameters, their priors, and what the physics measures with them. Pure.

The parameters are those of `Jobs` that decide the rate: of every stage processor and waiting seconds per row,
contention and crowding; of the job the trainer's step, and how much of the processors' and of the storage's
nominal power is really there. All as logarithms (contention as a logit), so that none can come out negative.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from intune.envs.jobs import Floats, Jobs
from intune.envs.measurement import Measurement
from intune.envs.simulator import Simulator

TRAFFIC = 1e10
"""Bytes/s of memory traffic that a processor at work is reckoned to cause. Only its product with the bandwidth means
anything: together they say how many processors' work the hardware really does at once. Two hyperthreads of a core,
or memory that is too slow for all of them, do less than two."""

LONG = 1e4
"""Multiples of the slowest stage's time for a block that an interval lasts: long enough to be at rest."""

SETTLED, POOL_SETTLED, POOL_WARM = 2, 12, 3
"""Intervals until all is at rest; a shared pool's slots find their stages bit by bit, sooner from where they are."""

LEAST_WAIT, FAR = 0.2, 2.5
"""Share of its time that a stage waits which is short of storage; multiple of the rate that processors allow from which
on a limit of storage is far away."""

PER_STAGE = ("cpu", "wait", "contention", "crowding")
"""Coherence is not among them: on real pipelines processor seconds grew in proportion to the slots at work, not with
their square (memory zeroed under the kernel's lock: 1, 1.9, 2.8, 3.4 times with one to four slots), and where nothing
tells the two apart the square runs away from allocations that were not measured."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where in a vector of parameters what is: S each of `PER_STAGE`, then step, knee, switching, power, storage.

    Attributes:
        stages: S.
        cpus: CPUs there are.
        step_cpu: processor seconds per row that the trainer (and whatever else) takes.
        row_bytes, block_rows: ``[S]``.
    """

    stages: int
    cpus: float
    step_cpu: float
    row_bytes: Floats
    block_rows: Floats

    @property
    def size(self) -> int:
        """Parameters, P."""
        return len(PER_STAGE) * self.stages + 5

    @property
    def contention(self) -> int:
        """Where the first stage's contention is."""
        return PER_STAGE.index("contention") * self.stages

    def jobs(self, values: Floats) -> Jobs:
        """``[K, P]`` parameters as K jobs."""
        count, stages = len(values), self.stages
        parts = {name: values[:, at * stages : (at + 1) * stages] for at, name in enumerate(PER_STAGE)}
        step, knee, switching, power, storage = np.exp(values[:, len(PER_STAGE) * stages :]).T
        cpu, wait = np.exp(parts["cpu"]), np.exp(parts["wait"])
        # A limit that processors never let a job come near is none, nor is that of a stage that hardly waits.
        limits = (wait[:, 0] > LEAST_WAIT * (cpu + wait)[:, 0]) & (
            storage < FAR * self.cpus / cpu.sum(axis=1)
        )
        reads = np.zeros((count, stages))
        reads[limits, 0] = 1.0 / self.block_rows[0]
        slowest = (cpu + wait).max(axis=1) * self.block_rows.max()
        return Jobs.of(
            stages=stages,
            jobs=count,
            cpu=cpu,
            wait=wait,
            contention=1.0 / (1.0 + np.exp(-parts["contention"])),
            crowding=np.exp(parts["crowding"]),
            row_bytes=np.broadcast_to(self.row_bytes, (count, stages)),
            block_rows=np.broadcast_to(self.block_rows, (count, stages)),
            storage_requests=reads,
            storage_rate=np.where(limits, storage / self.block_rows[0], np.inf),
            traffic=cpu * TRAFFIC,
            memory_bandwidth=np.where(power < 1.0, power * self.cpus * TRAFFIC, np.inf),
            step=step,
            step_cpu=self.step_cpu,
            switching=switching,
            knee=knee,
            cpus=np.full((count, 1), self.cpus),
            interval=LONG * slowest,
            slots_per_cpu=1e4,
        )


def at_rest(jobs: Jobs, slots: Floats, pool: Floats, busy: Floats | None = None) -> Measurement:
    """What is measured of N jobs with an allocation each, once they have settled, without chance.

    Args:
        jobs: N.
        slots: ``[N, S]``.
        pool: ``[N]``, 0 for slots per stage.
        busy: ``[N, S]`` about how many slots of each stage are at work, where that was measured.
    """
    pooled = pool > 0
    of_pool = POOL_SETTLED if busy is None else POOL_WARM
    busy = np.ones_like(slots) if busy is None else np.maximum(busy, 1.0)
    if not pooled.any() or pooled.all():
        return _run(jobs, slots, pool, busy, of_pool if pooled.any() else SETTLED)
    # Each kind by itself: those with slots of their own settle at once, and they are the most.
    own, shared = np.flatnonzero(~pooled), np.flatnonzero(pooled)
    parts = [
        _run(jobs.take(rows), slots[rows], pool[rows], busy[rows], steps)
        for rows, steps in ((own, SETTLED), (shared, of_pool))
    ]
    return Measurement.joined(parts).take(np.argsort(np.concatenate([own, shared])))


def _run(jobs: Jobs, slots: Floats, pool: Floats, busy: Floats, steps: int) -> Measurement:
    simulator = Simulator(jobs, steps=1)
    simulator.allocate(slots, pool)
    simulator.state = replace(simulator.state, running=busy)
    for _ in range(steps - 1):
        simulator.run()
    return simulator.run()


def predict(jobs: Jobs, slots: Floats, pool: Floats) -> Measurement:
    """What is measured of the one job in `jobs` under each of A allocations: N = A.

    Args:
        jobs: one job.
        slots: ``[A, S]``.
        pool: ``[A]``, 0 for slots per stage.
    """
    slowest = (jobs.cpu + jobs.wait).max() * jobs.block_rows.max()
    # Not cut to what may be given out, and run until at rest: what is asked is what would be.
    patient = jobs.with_(interval=np.array([LONG * slowest]), slots_per_cpu=np.array([1e4]))
    return at_rest(patient.take(np.zeros(len(slots), dtype=np.int64)), slots, pool)
