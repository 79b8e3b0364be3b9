from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from intune.envs.conditions import channels, record
from intune.envs.jobs import Jobs
from intune.envs.measurement import Measurement
from intune.envs.simulator import Simulator
from intune.pipelines.errors import ConfigError
from tests.envs.generated import eventful_jobs, rate_of, seeds, simulator_of, survives

few = settings(max_examples=10)


def assert_same(one: Measurement, other: Measurement, rows: Any = slice(None)) -> None:
    for field in fields(Measurement):
        np.testing.assert_allclose(
            np.asarray(getattr(one, field.name), dtype=float),
            np.asarray(getattr(other, field.name), dtype=float)[rows],
            rtol=1e-9,
            err_msg=field.name,
        )


@few
@given(seeds)
def test_jobs_side_by_side_run_as_each_alone(seed: int) -> None:
    rng = np.random.default_rng(seed)
    jobs = eventful_jobs(rng, 6)
    normals = rng.standard_normal((6, 12, channels(jobs.stages)), dtype=np.float32)
    together = Simulator(jobs, record(jobs, normals), restart_seconds=13.0)
    alone = [
        Simulator(jobs.take([row]), record(jobs.take([row]), normals[[row]]), restart_seconds=13.0)
        for row in range(6)
    ]
    for _ in range(12):
        slots = rng.integers(1, 20, jobs.present.shape)
        pool = rng.integers(0, 2, 6) * 20.0
        together.allocate(slots, pool)
        measured = together.run()
        for row, one in enumerate(alone):
            one.allocate(slots[[row]], pool[[row]])
        assert_same(Measurement.joined([one.run() for one in alone]), measured)


@few
@given(seeds)
def test_what_is_measured_is_finite_sound_or_of_a_job_out_of_memory(seed: int) -> None:
    rng = np.random.default_rng(seed)
    simulator = simulator_of(eventful_jobs(rng), rng, restart_seconds=7.0)
    down = np.zeros(len(simulator))
    for _ in range(20):
        simulator.allocate(rng.integers(-3, 30, simulator.jobs.present.shape))
        measured = simulator.run()
        for field in fields(Measurement):
            if field.name not in ("clock", "bandwidth"):
                assert np.isfinite(getattr(measured, field.name)).all(), field.name
        standing = measured.killed | (down > 0)
        assert measured.sound()[~standing].all()
        assert (measured.slots.sum(axis=1) <= np.maximum(measured.slot_limit, 30 * 7)).all()
        assert (measured.waiting >= 0).all()
        assert (measured.waiting <= 1).all()
        down = np.where(measured.killed, 7.0, down - simulator.jobs.interval)


def test_a_job_out_of_memory_stands_still_and_begins_again_from_one_slot() -> None:
    jobs = Jobs.of(stages=2, cpu=1e-3, step=1e-9, slot_bytes=1e9, memory=5e9, cpus=8, interval=10.0)
    simulator = Simulator(jobs, steps=9, restart_seconds=15.0)
    simulator.allocate([[2, 2]])
    assert simulator.run().delivered[0] == pytest.approx(2000)
    simulator.allocate([[3, 3]])
    killed = simulator.run()
    assert killed.killed[0]
    assert killed.delivered[0] == 0.0
    assert killed.slots.tolist() == [[1, 1]]
    assert not simulator.state.queue.any()
    # 15 s: one interval at a standstill, then half of one.
    delivered = [simulator.run() for _ in range(3)]
    assert [each.delivered[0] for each in delivered] == pytest.approx([0.0, 500.0, 1000.0])
    assert not any(each.killed[0] for each in delivered)
    assert delivered[0].cpus_used[0] == 0.0


def test_what_stands_still_does_not_die_again() -> None:
    """Also where even one slot a stage would be too much: it dies only when it runs."""
    jobs = Jobs.of(stages=1, slot_bytes=2e9, memory=1e9, interval=10.0)
    simulator = Simulator(jobs, steps=9, restart_seconds=25.0)
    assert [bool(simulator.run().killed[0]) for _ in range(7)] == [
        True,
        False,
        False,
        True,
        False,
        False,
        True,
    ]


def test_slots_are_refused_above_the_limit_and_taken_back_when_the_machine_shrinks() -> None:
    jobs = Jobs.of(
        stages=2, cpus=4, slots_per_cpu=2.0, event_time=[[10.0]], event_cpus=[[0.5]], event_memory=[[1.0]]
    )
    simulator = Simulator(jobs, steps=6)
    assert simulator.allocate([[7, 7]]) == 6
    assert simulator.slots.tolist() == [[4, 4]]
    seen = [simulator.run() for _ in range(2)]
    # The machine of the interval to come is announced.
    assert [(each.slot_limit[0], each.cpus[0]) for each in seen] == [(8, 4), (4, 2)]
    assert simulator.allocate(simulator.slots) == 4
    assert simulator.slots.tolist() == [[2, 2]]


def test_time_since_the_last_change_is_counted_from_changes_only() -> None:
    simulator = Simulator(Jobs.of(stages=2, interval=4.0))
    seen = []
    for slots in ([[1, 1]], [[2, 1]], [[2, 1]], [[2, 1]]):
        simulator.allocate(slots)
        seen.append(simulator.run().since_change[0])
    assert seen == [4, 4, 8, 12]


def test_a_pool_is_one_number_for_all_stages() -> None:
    simulator = Simulator(Jobs.of(stages=[3, 2], jobs=2, cpu=1e-3, step=1e-12, cpus=[[64], [2]]))
    moved = simulator.allocate(np.ones((2, 3)), [9, 99])
    measured = simulator.run()
    assert measured.pool.tolist() == [9, 8]
    assert measured.slots.tolist() == [[9, 9, 9], [8, 8, 0]]
    assert measured.delivered == pytest.approx([9 / 3e-3, 2 / 2e-3])
    assert moved.tolist() == [24, 14]
    assert simulator.allocate(np.ones((2, 3)), [6, 8]).tolist() == [3, 0]
    simulator.allocate(np.ones((2, 3)))
    assert simulator.pool.tolist() == [0, 0]
    assert simulator.slots.tolist() == [[1, 1, 1], [1, 1, 0]]


@few
@given(seeds)
def test_adopted_jobs_go_on_as_they_would_have(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mine, other = (
        simulator_of(eventful_jobs(rng, 5).widened(stages=7, nodes=2, events=2), rng) for _ in range(2)
    )
    for _ in range(3):
        mine.run()
    other.run()
    rows, chosen = np.array([0, 3]), np.array([4, 1])
    held = mine.run()
    before = [np.array(getattr(held, field.name)) for field in fields(Measurement)]
    mine.adopt(rows, other, chosen)
    for field, value in zip(fields(Measurement), before, strict=True):
        np.testing.assert_array_equal(getattr(held, field.name), value, err_msg=field.name)
    for _ in range(4):
        slots = rng.integers(1, 9, (5, 7))
        both = slots.copy()
        both[chosen] = slots[rows]
        mine.allocate(slots)
        other.allocate(both)
        ours, theirs = mine.run(), other.run()
        assert_same(ours.take(rows), theirs, chosen)


def test_without_chance_a_job_still_drifts_and_is_resized_however_long_it_takes() -> None:
    jobs = Jobs.of(
        stages=1, cpu=1e-3, step=1e-12, cpus=8, drift=1e-3, noise=0.3, interval=5.0,
        event_time=[[400.0]], event_cpus=[[0.5]], event_memory=[[1.0]],
    )  # fmt: skip
    simulator = Simulator(jobs)
    seen = [simulator.run() for _ in range(100)]
    assert [float(each.cpus[0]) for each in seen[78:81]] == [8.0, 4.0, 4.0]
    assert seen[99].delivered[0] == pytest.approx(1e3 / np.exp(1e-3 * 99 * 5.0))


def test_beginning_with_slots_waits_for_none() -> None:
    jobs = Jobs.of(stages=1, cpu=1e-3, step=1e-12, resize_delay=100.0, cpus=8)
    late, ready = Simulator(jobs), Simulator(jobs)
    late.allocate([[4]])
    ready.begin_with([[4]])
    assert late.run().delivered[0] == pytest.approx(1000)
    assert ready.run().delivered[0] == pytest.approx(4000)


@pytest.mark.parametrize(
    ("slots", "pool", "words"),
    [
        ([[1, 2, 3]], None, ["slots", "(1, 3)", "(1, 2)"]),
        ([[1, np.nan]], None, ["slots", "NaN"]),
        ([[1, 1]], [1, 2], ["pool", "(2,)", "(1,)"]),
        ([[1, 1]], [np.nan], ["pool", "NaN"]),
    ],
)
def test_bad_allocations_are_named(slots: Any, pool: Any, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        Simulator(Jobs.of(stages=2)).allocate(slots, pool)
    for word in words:
        assert word in str(error.value)


def test_a_rate_and_survival_of_allocations_can_be_asked_for() -> None:
    jobs = Jobs.of(
        stages=2, jobs=2, cpu=[[1e-3, 2e-3]], step=1e-9, slot_bytes=1e9, memory=[[20e9], [5e9]], cpus=64
    )
    slots = [[3, 4], [2, 2]]
    assert rate_of(jobs, slots) == pytest.approx([2000, 1000])
    assert survives(jobs, [[3, 4], [3, 4]]).tolist() == [True, False]


def test_misjudged_times_get_better_with_the_number_of_tasks() -> None:
    spreads = []
    for block in (5000.0, 50.0):
        jobs = Jobs.of(stages=1, jobs=400, cpu=1e-3, measurement_noise=0.5, block_rows=block, step=1e-9)
        rng = np.random.default_rng(0)
        spreads.append(np.log(simulator_of(jobs, rng, 1).run().cpu).std())
    # 1,000 rows/s for 5 s are one task, or a hundred.
    assert spreads[0] == pytest.approx(0.5, rel=0.1)
    assert spreads[1] == pytest.approx(0.05, rel=0.1)
