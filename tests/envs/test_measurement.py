from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from intune.envs.jobs import Jobs
from intune.envs.measurement import Measurement
from intune.envs.simulator import Simulator


@pytest.fixture
def measured() -> Measurement:
    jobs = Jobs.of(stages=[3, 2, 1], jobs=3, cpu=1e-3, wait=1e-3, memory=1e12, memory_bandwidth=1e9)
    return Simulator(jobs).run()


def test_what_a_simulator_measures_is_sound(measured: Measurement) -> None:
    assert measured.sound().tolist() == [True, True, True]
    assert len(measured) == 3
    assert measured.stages == 3
    assert measured.counts.tolist() == [3, 2, 1]


@pytest.mark.parametrize("name", ["slots", "rate", "busy", "cpu", "starved", "blocked"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_a_stage_measured_wrongly_makes_its_job_unsound(
    measured: Measurement, name: str, value: float
) -> None:
    broken = getattr(measured, name).copy()
    broken[1, 1] = value
    assert replace(measured, **{name: broken}).sound().tolist() == [True, False, True]
    absent = getattr(measured, name).copy()
    absent[1, 2] = value
    assert replace(measured, **{name: absent}).sound().all()


@pytest.mark.parametrize(
    "name", ["delivered", "cpus", "memory_used", "memory_limit", "interval", "slot_limit", "pool"]
)
@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_a_job_measured_wrongly_is_unsound(measured: Measurement, name: str, value: float) -> None:
    broken = np.array(getattr(measured, name), dtype=float)
    broken[2] = value
    assert replace(measured, **{name: broken}).sound().tolist() == [True, True, False]


@pytest.mark.parametrize("name", ["clock", "bandwidth", "memory_base"])
def test_what_need_not_be_known_may_be_missing(measured: Measurement, name: str) -> None:
    assert replace(measured, **{name: np.full(3, np.nan)}).sound().all()


@pytest.mark.parametrize(("name", "value"), [("delivered", 0.0), ("interval", 0.0), ("cpus", 0.0)])
def test_nothing_can_be_decided_on_zero(measured: Measurement, name: str, value: float) -> None:
    broken = np.array(getattr(measured, name), dtype=float)
    broken[0] = value
    assert replace(measured, **{name: broken}).sound().tolist() == [False, True, True]


def test_more_slots_at_work_than_there_are_contradict_each_other(measured: Measurement) -> None:
    busy = measured.busy.copy()
    busy[0, 0] = 3.0
    assert replace(measured, busy=busy).sound().tolist() == [False, True, True]


def test_rows_can_be_taken_joined_and_put(measured: Measurement) -> None:
    back = Measurement.joined([measured.take([0]), measured.take(slice(1, 3))])
    turned = Measurement.joined([measured])
    turned.put(np.array([0, 2]), measured, np.array([2, 0]))
    for field in fields(Measurement):
        mine = getattr(measured, field.name)
        np.testing.assert_array_equal(getattr(back, field.name), mine)
        np.testing.assert_array_equal(getattr(turned, field.name), mine[[2, 1, 0]])
        assert not np.shares_memory(getattr(turned, field.name), mine)
