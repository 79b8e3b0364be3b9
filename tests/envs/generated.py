"""Jobs with random parameters, for property tests, and what jobs come to without chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from intune.envs.conditions import channels, record
from intune.envs.jobs import Bools, Floats, Jobs
from intune.envs.measurement import Measurement
from intune.envs.simulator import Simulator

seeds = st.integers(0, 2**32 - 1)


def plain_jobs(rng: np.random.Generator, count: int = 16, **changes: Any) -> Jobs:
    """Jobs of one to seven stages that contend for nothing but processors and memory."""
    stages = rng.integers(1, 8, count)
    shape = (count, int(stages.max()))
    values: dict[str, Any] = {
        "cpu": np.exp(rng.normal(-13.0, 1.0, shape)),
        "wait": np.exp(rng.normal(-13.0, 1.0, shape)) * (rng.random(shape) < 0.5),
        "block_rows": 10.0 ** rng.uniform(1, 5, shape),
        "row_bytes": rng.uniform(10, 5000, shape),
        "queue_blocks": rng.integers(1, 4, shape),
        "cpus": rng.integers(1, 65, (count, 1)),
        "step": np.exp(rng.normal(-15.0, 1.0, count)),
        "slots_per_cpu": 8.0,
        "interval": rng.uniform(1, 10, count),
    }
    return Jobs.of(stages=stages, jobs=count, **(values | changes))


def eventful_jobs(rng: np.random.Generator, count: int = 16, **changes: Any) -> Jobs:
    """Jobs to which everything happens that can."""
    plain = plain_jobs(rng, count)
    shape = plain.present.shape
    values: dict[str, Any] = {
        name: getattr(plain, name) for name in ("cpu", "wait", "block_rows", "row_bytes", "step", "interval")
    }
    values |= {
        "contention": rng.uniform(0, 0.2, shape),
        "coherence": rng.uniform(0, 0.01, shape),
        "slot_bytes": rng.uniform(0, 2e9, shape),
        "storage_bytes": rng.uniform(0, 200, shape),
        "storage_requests": rng.uniform(0, 1e-3, shape),
        "traffic": rng.uniform(0, 1e4, shape),
        "drift": rng.uniform(-1e-3, 1e-3, shape),
        "most_slots": rng.integers(1, 40, shape),
        "step_cpu": rng.uniform(0, 1e-6, count),
        "base_bytes": 1e9,
        "queue_bytes": 10.0 ** rng.uniform(5, 10, count),
        "storage_bandwidth": 10.0 ** rng.uniform(6, 9, count),
        "storage_rate": 10.0 ** rng.uniform(1, 4, count),
        "memory_bandwidth": 10.0 ** rng.uniform(8, 11, count),
        "oversubscription": rng.uniform(0, 0.5, count),
        "knee": rng.uniform(0, 0.4, count) * rng.integers(0, 2),
        "switching": rng.uniform(0, 0.3, count) * rng.integers(0, 2),
        "crowding": rng.uniform(0, 0.5, shape) * rng.integers(0, 2),
        "resize_delay": rng.uniform(0, 12, count),
        "noise": 0.2,
        "measurement_noise": 0.5,
        "memory_noise": 0.2,
        "hiccup_rate": 0.02,
        "hiccup_factor": 5.0,
        "loss_rate": 0.02,
        "loss_seconds": 8.0,
        "cpus": rng.integers(1, 33, (count, 2)),
        "memory": rng.uniform(4e9, 60e9, (count, 2)),
        "nic": 1e9,
        "event_time": np.sort(rng.uniform(0, 100, (count, 2)), axis=1),
        "event_cpus": rng.uniform(0.2, 3, (count, 2)),
        "event_memory": rng.uniform(0.5, 2, (count, 2)),
    }
    return Jobs.of(stages=plain.present.sum(axis=1), jobs=count, **(values | changes))


def simulator_of(jobs: Jobs, rng: np.random.Generator, steps: int = 30, **changes: Any) -> Simulator:
    """Those jobs, with chance."""
    normals = rng.standard_normal((len(jobs), steps, channels(jobs.stages)), dtype=np.float32)
    return Simulator(jobs, record(jobs, normals), **changes)


def rate_of(jobs: Jobs, slots: Any, *, steps: int = 24, pool: Any = None) -> Floats:
    """Rows/s that an allocation settles at, without chance: ``[N]``. Simulated, not solved."""
    simulator = Simulator(jobs, steps=1)
    simulator.allocate(slots, pool)
    measured: Sequence[Measurement] = [simulator.run() for _ in range(steps)]
    return measured[-1].delivered


def survives(jobs: Jobs, slots: Any, *, pool: Any = None) -> Bools:
    """Whether an allocation fits the nodes' memory on average, ``[N]``."""
    simulator = Simulator(jobs, steps=1)
    simulator.allocate(slots, pool)
    killed: Bools = np.any([simulator.run().killed for _ in range(8)], axis=0)
    return ~killed
