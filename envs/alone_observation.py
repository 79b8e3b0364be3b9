"""Features of one simulated job in plain Python: those of `observation.py`, field by field in the same order.

For a single environment only, where they are computed ten thousand times a second; readings of a simulator are finite,
so that nothing is asked about what could not be measured. `tests/envs/test_alone.py` proves that both agree.
"""

from __future__ import annotations

from math import isnan, log, log2, log10

import numpy as np
from numpy.typing import NDArray

from intune.envs.alone import JobAlone
from intune.envs.observation import SMALL
from intune.envs.observation import STAGE_FIELDS as FIELDS
from intune.envs.reading import Reading


def stage_numbers(job: JobAlone, now: Reading, before: Reading) -> list[float]:
    """``S x len(STAGE_FIELDS)`` numbers, stage by stage, zeros for absent ones."""
    count = job.count
    memory, limit = max(now.memory_limit, 1.0), max(now.slot_limit, 1.0)
    delivered = max(now.delivered, SMALL)
    times = [busy / max(rate, SMALL) for busy, rate in zip(now.busy, now.rate, strict=True)]
    cpu_times = [cpu / max(rate, SMALL) for cpu, rate in zip(now.cpu, now.rate, strict=True)]
    time, cpu_time = max(sum(times), SMALL), max(sum(cpu_times), SMALL)
    last = max(count - 1, 1)
    numbers: list[float] = []
    for i in range(count):
        slots, busy, fill = max(now.slots[i], 1.0), now.busy[i], now.queue_fill[i]
        numbers += (
            1.0,
            _share(log2(slots) / 8.0),
            _share(slots / limit),
            _share(busy / slots),
            _share(now.cpu[i] / max(busy, SMALL)),
            _share(times[i] / time),
            _share(cpu_times[i] / cpu_time),
            _share(log(max(slots / (max(times[i], SMALL) * delivered), SMALL)) / 4.0),
            _share(now.starved[i]),
            _share(now.blocked[i]),
            1.0 if i == 0 else _share(now.queue_fill[i - 1]),
            _share(fill),
            _share(job.block_bytes[i] * slots / memory),
            _share(now.queued_bytes[i] / memory),
            i / last,
            _signed(log2(slots / max(before.slots[i], 1.0)) / 4.0),
        )
    return numbers + [0.0] * ((job.jobs.stages - count) * len(FIELDS))


def job_numbers(job: JobAlone, now: Reading, before: Reading, best: float) -> list[float]:
    """``len(JOB_FIELDS)`` numbers."""
    memory, cpus, used = max(now.memory_limit, 1.0), max(now.cpus, 1.0), sum(now.slots)
    return [
        _share(job.count / 8.0),
        _share(now.delivered / max(best, SMALL)),
        _signed(log(max(now.delivered, SMALL) / max(before.delivered, SMALL))),
        _share(now.waiting),
        _share(now.delivered * job.step_seconds),
        _share(1.0 - now.cpus_used / max(now.cpus, SMALL)),
        _share(1.0 - now.memory_used / memory),
        _share(now.memory_queued / memory),
        _share(used / max(now.slot_limit, 1.0)),
        _share(log2(cpus) / 8.0),
        _signed(log2(max(used, 1.0) / cpus) / 4.0),
        1.0,
        _bandwidth(now),
        _share(now.since_change / (10.0 * job.interval)),
        0.0,
        float(now.killed),
    ]


def paper_numbers(job: JobAlone, now: Reading) -> list[float]:
    """``len(PAPER_FIELDS)`` numbers."""
    return [
        _signed(log10(1e6 / max(now.delivered, SMALL)) / 6.0),
        _signed(1.0 - now.cpus_used / max(now.cpus, SMALL)),
        _signed(1.0 - now.memory_used / max(now.memory_limit, 1.0)),
        _signed(log10(max(job.step_seconds, SMALL) * 1e6) / 6.0),
        _bandwidth(now),
        1.0,
    ]


def as_array(numbers: list[float]) -> NDArray[np.float32]:
    """In single precision, as observations are."""
    return np.array(numbers, dtype=np.float32)


def _bandwidth(now: Reading) -> float:
    return 0.0 if isnan(now.bandwidth) else _share(now.bandwidth)


def _share(value: float) -> float:
    return 0.0 if value < 0.0 else 1.0 if value > 1.0 else value


def _signed(value: float) -> float:
    return -1.0 if value < -1.0 else 1.0 if value > 1.0 else value
