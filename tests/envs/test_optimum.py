"""The best steady rate, against trying every allocation and against the simulator."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from intune.envs.jobs import Jobs
from intune.envs.optimum import Work, best_rate, slots_for
from tests.envs.generated import rate_of


def work_of(jobs: Jobs) -> Work:
    return Work(
        cpu=jobs.cpu.T, wait=jobs.wait.T, contention=jobs.contention.T, coherence=jobs.coherence.T,
        crowding=jobs.crowding.T, most_slots=jobs.most_slots.T, step_cpu=jobs.step_cpu, cpus=jobs.cpus.sum(axis=1),
        slots=jobs.limit.astype(np.float64),
    )  # fmt: skip


def some_jobs(count: int, seed: int) -> Jobs:
    rng = np.random.default_rng(seed)
    shape = (count, 3)
    return Jobs.of(
        stages=3,
        jobs=count,
        cpu=10 ** rng.uniform(-7, -5, shape),
        wait=10 ** rng.uniform(-8, -5, shape),
        contention=rng.choice([0.0, 0.05, 0.3], shape),
        coherence=rng.choice([0.0, 1e-3], shape),
        crowding=rng.choice([0.0, 0.1, 1.0], shape),
        most_slots=rng.choice([2.0, 4.0, 4096.0], shape),
        step_cpu=rng.choice([0.0, 2e-7], count),
        cpus=rng.integers(2, 9, (count, 1)).astype(float),
        slots_per_cpu=2.0,
        step=1e-12,
        queue_blocks=2.0,
        block_rows=1024.0,
    )


def tried(jobs: Jobs) -> float:
    """The best rate of all allocations of one job in the simulator."""
    limit, most = int(jobs.limit[0]), jobs.most_slots[0]
    slots = np.array(
        [s for s in product(range(1, limit + 1), repeat=3) if sum(s) <= limit and (s <= most).all()]
    )
    return float(rate_of(jobs.take(np.zeros(len(slots), dtype=int)), slots, steps=6).max())


def test_the_best_rate_is_that_of_the_best_of_all_allocations() -> None:
    jobs = some_jobs(24, seed=0)
    found = best_rate(work_of(jobs))
    expected = np.array([tried(jobs.take([row])) for row in range(len(jobs))])
    # Taking a stage's least slots can use fewer processors than the allocation that is best without looking at them.
    assert (found <= expected * 1.0001).all()
    assert (found >= expected * 0.98).all()
    assert np.median(found / expected) > 0.998


def test_the_slots_it_takes_reach_it_in_the_simulator() -> None:
    jobs = some_jobs(64, seed=1)
    work = work_of(jobs)
    rate = best_rate(work)
    slots = np.maximum(np.ceil(slots_for(work, rate) - 1e-9), 1.0).T
    assert (slots.sum(axis=1) <= jobs.limit).all()
    reached = rate_of(jobs, slots, steps=40) / rate
    assert reached.min() > 0.99
    assert reached.max() < 1.01


def test_slots_that_are_only_in_the_way_of_each_other_reach_no_more_than_one() -> None:
    rng = np.random.default_rng(5)
    shape = (60, 2)
    jobs = Jobs.of(
        stages=2,
        jobs=60,
        cpu=10 ** rng.uniform(-7, -5, shape),
        wait=10 ** rng.uniform(-7, -5, shape),
        contention=rng.choice([0.5, 0.9, 1.0], shape),
        coherence=rng.choice([0.0, 0.01, 0.3, 1.0], shape),
        crowding=rng.choice([0.0, 0.1, 10.0], shape),
        slots_per_cpu=1.0,
        step=1e-12,
        block_rows=64.0,
    )
    limit = int(jobs.limit[0])
    slots = np.array([s for s in product(range(1, limit + 1), repeat=2) if sum(s) <= limit])
    every = rate_of(jobs.take(np.repeat(np.arange(60), len(slots))), np.tile(slots, (60, 1)), steps=6)
    found = best_rate(work_of(jobs)) / every.reshape(60, -1).max(axis=1)
    assert 0.998 < found.min() <= found.max() < 1.001


def test_slots_without_contention_are_rate_times_seconds() -> None:
    jobs = Jobs.of(stages=2, cpu=[[1e-6, 3e-6]], wait=[[1e-6, 0.0]])
    np.testing.assert_allclose(slots_for(work_of(jobs), np.array([2e6])), [[4.0], [6.0]])


def test_no_number_of_slots_beats_the_lock() -> None:
    jobs = Jobs.of(stages=1, cpu=1e-6, contention=0.25)
    slots = slots_for(work_of(jobs), np.array([[3.9e6], [4.1e6]]))
    # n / (1 + (n - 1) / 4) = 3.9 gives n = 117; no n gives 4.1.
    assert slots[0, 0, 0] == pytest.approx(117.0)
    assert np.isinf(slots[0, 1, 0])
