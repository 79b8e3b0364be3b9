from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from intune.envs.conditions import Coming, channels, quiet, record
from intune.envs.jobs import Jobs
from tests.envs.generated import eventful_jobs


def at(tape: object, step: int, count: int) -> Coming:
    return tape.at(np.full(count, step))  # type: ignore[attr-defined,no-any-return]


def normals(jobs: Jobs, steps: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((len(jobs), steps, channels(jobs.stages)), dtype=np.float32)


def test_a_quiet_world_is_the_job_itself_at_every_interval() -> None:
    jobs = Jobs.of(
        stages=[2, 3], jobs=2, cpu=1e-3, wait=2e-3, slot_bytes=5.0, noise=0.5, loss_rate=1.0, cpus=7
    )
    for step in (0, 3, 9, 50):
        coming = at(quiet(jobs, 10), step, 2)
        now = coming.conditions
        np.testing.assert_array_equal(now.cpu, jobs.cpu)
        np.testing.assert_array_equal(now.wait, jobs.wait)
        np.testing.assert_array_equal(now.slot_bytes, jobs.slot_bytes)
        np.testing.assert_array_equal(now.cpus, [7, 7])
        np.testing.assert_array_equal(coming.slot_limit, [28, 28])
        assert not now.lost.any()
        assert not coming.measured.any()


def test_machines_are_resized_when_their_events_are_due() -> None:
    jobs = Jobs.of(
        stages=1,
        cpus=[[4.0, 4.0]],
        event_time=[[10.0, 20.0]],
        event_cpus=[[0.55, 2.0]],
        event_memory=[[0.5, 3.0]],
    )
    tape = quiet(jobs, 6)
    cpus = [at(tape, step, 1).conditions.cpus[0] for step in range(6)]
    memory = [at(tape, step, 1).conditions.memory[0] for step in range(6)]
    limit = [at(tape, step, 1).slot_limit[0] for step in range(6)]
    # Whole processors: 0.55 x 8 are 4.
    assert cpus == [8, 8, 4, 4, 16, 16]
    assert memory == [1, 1, 0.5, 0.5, 3, 3]
    assert limit == [32, 32, 16, 16, 64, 64]


def test_a_machine_never_shrinks_below_a_processor_and_a_slot_a_stage() -> None:
    jobs = Jobs.of(stages=6, cpus=2, event_time=[[5.0]], event_cpus=[[0.001]], event_memory=[[1.0]])
    coming = at(quiet(jobs, 3), 2, 1)
    assert coming.conditions.cpus[0] == 1
    assert coming.slot_limit[0] == 6


def test_drift_grows_by_e_in_its_time_and_ends_at_a_factor_of_20() -> None:
    jobs = Jobs.of(stages=1, cpu=1.0, wait=3.0, drift=0.01, interval=10.0)
    tape = quiet(jobs, 60)
    assert at(tape, 10, 1).conditions.cpu[0, 0] == pytest.approx(np.e)
    assert at(tape, 10, 1).conditions.wait[0, 0] == pytest.approx(3 * np.e)
    assert at(tape, 59, 1).conditions.cpu[0, 0] == pytest.approx(np.exp(3.0))


def test_chance_has_the_spread_and_the_rates_that_jobs_state() -> None:
    count, steps = 50, 400
    jobs = Jobs.of(
        stages=2, jobs=count, cpu=1.0, wait=2.0, slot_bytes=100.0, noise=0.1, memory_noise=0.2,
        measurement_noise=0.7, hiccup_rate=0.02, hiccup_factor=50.0, loss_rate=0.01, loss_seconds=2.0, cpus=10,
    )  # fmt: skip
    tape = record(jobs, normals(jobs, steps, seed=1))
    coming = [at(tape, step, count) for step in range(steps)]
    cpu = np.stack([each.conditions.cpu for each in coming])
    stumbled = cpu > 7.0
    assert stumbled.mean() == pytest.approx(0.02 * 5, rel=0.05)
    assert np.log(cpu[~stumbled]).std() == pytest.approx(0.1, rel=0.02)
    assert np.log(cpu[stumbled] / 50.0).mean() == pytest.approx(0.0, abs=0.01)
    wait = np.stack([each.conditions.wait for each in coming])
    np.testing.assert_allclose(wait, 2 * cpu)
    held = np.log(np.stack([each.conditions.slot_bytes for each in coming]) / 100.0)
    np.testing.assert_allclose(held[..., 0], held[..., 1])
    assert held[..., 0].std() == pytest.approx(0.2, rel=0.02)
    assert np.stack([each.measured for each in coming]).std() == pytest.approx(0.7, rel=0.02)
    lost = np.stack([each.conditions.lost for each in coming])
    # One of 10 processors' slots, for 2 of 5 seconds.
    assert set(np.unique(lost).tolist()) == {0.0, 0.04}
    assert (lost > 0).mean() == pytest.approx(0.01 * 5, rel=0.1)


def test_a_lost_worker_is_missing_as_long_as_it_is_said_and_one_is_always_left() -> None:
    jobs = Jobs.of(
        stages=1, jobs=4, cpu=1.0, loss_rate=[0.01, 0.01, 0.01, 0.2], loss_seconds=[2.0, 5.0, 23.0, 1e6],
        cpus=10, interval=5.0,
    )  # fmt: skip
    lost = record(jobs, normals(jobs, 4000, seed=2)).data[:, :, -4]
    # So many workers are away at a time on average, of 10.
    np.testing.assert_allclose(lost[:3].mean(axis=1) * 10, [0.02, 0.05, 0.23], rtol=0.15)
    alone = np.flatnonzero(lost[2] > 0)
    alone = alone[np.diff(alone, prepend=-99) > 9][0]
    np.testing.assert_allclose(lost[2, alone : alone + 6], [0.1, 0.1, 0.1, 0.1, 0.06, 0.0])
    assert lost[3, -1] == 0.9


def test_single_jobs_and_many_have_the_same_conditions_at_any_time() -> None:
    jobs = eventful_jobs(np.random.default_rng(1), 6)
    numbers = normals(jobs, 12)
    together = record(jobs, numbers)
    steps = np.array([0, 3, 11, 5, 99, 7])
    all_at_once = together.at(steps)
    for row, step in enumerate(steps):
        alone = record(jobs.take([row]), numbers[[row]]).at(np.array([step]))
        np.testing.assert_array_equal(alone.measured[0], all_at_once.measured[row])
        np.testing.assert_array_equal(alone.slot_limit[0], all_at_once.slot_limit[row])
        for field in fields(alone.conditions):
            np.testing.assert_array_equal(
                getattr(alone.conditions, field.name)[0], getattr(all_at_once.conditions, field.name)[row]
            )


def test_asking_does_not_change_the_steps_asked_for() -> None:
    tape = quiet(Jobs.of(stages=1, jobs=2), 4)
    steps = np.array([1, 9])
    tape.at(steps)
    assert steps.tolist() == [1, 9]


def test_wider_tapes_hold_the_same_and_absent_stages() -> None:
    jobs = eventful_jobs(np.random.default_rng(2), 3)
    numbers = normals(jobs, 4)
    narrow = record(jobs, numbers)
    wide = narrow.widened(jobs.stages + 2)
    ours, theirs = narrow.at(np.array([1, 2, 3])), wide.at(np.array([1, 2, 3]))
    np.testing.assert_array_equal(theirs.conditions.cpu[:, : jobs.stages], ours.conditions.cpu)
    assert (theirs.conditions.wait[:, jobs.stages :] > 0).all()
    assert not theirs.conditions.cpu[:, jobs.stages :].any()
    np.testing.assert_array_equal(theirs.slot_limit, ours.slot_limit)
