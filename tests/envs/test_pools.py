"""Pools whose slots are lost or still on their way, and slots that change hands between a pool and the stages."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from intune.envs.conditions import quiet
from intune.envs.jobs import Jobs
from intune.envs.model import State, advance
from intune.envs.pools import shared_anew
from intune.envs.prepared import prepare
from intune.envs.simulator import Simulator


@pytest.mark.parametrize("pool", [0.0, 4.0])
def test_lost_slots_are_missing_from_a_pool_as_from_stages(pool: float) -> None:
    """Two stages of 1 ms: two slots each, or four for both, make 2,000 rows/s; half of them half of that."""
    jobs = Jobs.of(stages=2, cpu=1e-3, step=1e-12, cpus=64)
    now = replace(quiet(jobs, 1).at(np.zeros(1, dtype=int)).conditions, lost=np.array([0.5]))
    slots = np.full((1, 2), pool or 2.0)
    _, flow = advance(prepare(jobs), State.empty(jobs), now, slots, np.array([pool]), jobs.interval)
    assert flow.rows[0, -1] / jobs.interval[0] == pytest.approx(1000)


def test_slots_added_to_a_pool_work_after_the_delay() -> None:
    """Three stages of 1 ms with one slot each, then a pool of 12: three work at once, the others after 100 s."""
    jobs = Jobs.of(stages=3, cpu=1e-3, step=1e-12, cpus=64, resize_delay=100.0, interval=5.0)
    simulator = Simulator(jobs)
    simulator.run()
    simulator.allocate([[1, 1, 1]], [12])
    assert simulator.run().delivered[0] == pytest.approx(1000)
    for _ in range(20):
        measured = simulator.run()
    assert measured.delivered[0] == pytest.approx(4000)


@pytest.mark.parametrize(
    ("before", "after"), [(([4, 4, 4], 0), ([1, 1, 1], 12)), (([1, 1, 1], 12), ([4, 4, 4], 0))]
)
def test_slots_that_change_hands_need_not_start(
    before: tuple[list[int], int], after: tuple[list[int], int]
) -> None:
    jobs = Jobs.of(stages=3, cpu=1e-3, step=1e-12, cpus=64, resize_delay=5.0, interval=5.0)
    simulator = Simulator(jobs)
    rates = []
    for slots, pool in (before, before, before, after, after):
        simulator.allocate([slots], [pool])
        rates.append(float(simulator.run().delivered[0]))
    assert rates[2:] == pytest.approx([4000] * 3, rel=1e-6)


def test_what_a_stage_had_of_a_pool_is_its_part_of_what_all_have_now() -> None:
    present, of_pool = np.array([[3.0, 9.0, 0.0]]), np.array([[8.0, 8.0, 0.0]])
    late, due = np.array([[2.0, 2.0, 0.0]]), np.array([[4.0, 4.0, 0.0]])
    had, coming, still = shared_anew(present, np.zeros(1), of_pool, np.array([8.0]), late, due)
    assert had.tolist() == [[2, 6, 0]]
    assert coming.tolist() == [[0.5, 1.5, 0]]
    assert still[0, :2].tolist() == [4, 4]
    # And back: those of all stages together, which come when they would have come on average.
    coming, due = np.array([[1.0, 3.0, 0.0]]), np.array([[2.0, 6.0, 0.0]])
    had, coming, still = shared_anew(of_pool, np.array([8.0]), present, np.zeros(1), coming, due)
    assert had.tolist() == [[12, 12, 0]]
    assert coming.tolist() == [[4, 4, 0]]
    assert still[0, :2].tolist() == [5, 5]


def test_a_job_that_died_has_no_pool_any_more() -> None:
    jobs = Jobs.of(stages=2, cpu=1e-3, step=1e-12, cpus=64, resize_delay=5.0, interval=5.0)
    simulator = Simulator(jobs)
    simulator.allocate([[1, 1]], [8])
    simulator.run()
    simulator.restart(np.array([0]))
    assert simulator.state.pool.tolist() == [0]
    simulator.allocate([[4, 4]])
    assert simulator.run().delivered[0] == pytest.approx(1000)
