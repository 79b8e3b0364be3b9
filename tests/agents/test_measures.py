from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from intune.agents.measures import (
    cpu_per_row,
    known,
    largest_rate,
    own_slots,
    slots_for,
    spread,
    time_per_row,
    trainer_rate,
)
from intune.envs.measurement import Measurement


def test_time_per_row_is_slots_at_work_over_rows_made(measurement: Callable[..., Measurement]) -> None:
    measured = measurement(busy=[2.0, 4.0, 1.0], cpu=[1.0, 4.0, 0.0], rate=[1000.0, 500.0, 100.0])
    np.testing.assert_allclose(time_per_row(measured), [[0.002, 0.008, 0.01]])
    np.testing.assert_allclose(cpu_per_row(measured), [[0.001, 0.008, 0.0]])


def test_a_stage_that_made_nothing_has_no_known_cost(measurement: Callable[..., Measurement]) -> None:
    measured = measurement(rate=[1000.0, 0.0, np.nan])
    np.testing.assert_array_equal(time_per_row(measured)[0, 1:], 0.0)
    assert not known(measured)[0]
    assert known(measurement())[0]


def test_slots_of_a_shared_pool_are_those_it_kept_busy(measurement: Callable[..., Measurement]) -> None:
    measured = measurement(pool=8.0, slots=8.0, busy=[0.2, 3.4, 4.6])
    np.testing.assert_array_equal(own_slots(measured), [[1, 3, 5]])


def test_a_trainer_whose_step_is_unknown_takes_anything(measurement: Callable[..., Measurement]) -> None:
    assert trainer_rate(measurement(step=np.nan))[0] > 1e20
    assert trainer_rate(measurement(step=0.001))[0] == 1000.0


def test_spread_by_hand() -> None:
    # 10 slots by weights 6 : 3 : 0.1 (and an absent stage): the small one gets one, nine are shared 2 : 1.
    got = spread(np.array([10.0]), np.array([[6.0, 3.0, 0.1, 9.0]]), np.array([[True, True, True, False]]))
    np.testing.assert_array_equal(got, [[6, 3, 1, 0]])


@given(
    weights=st.lists(st.floats(0, 1e6), min_size=1, max_size=8),
    total=st.integers(1, 300),
    absent=st.integers(0, 3),
)
def test_spread_gives_everything_and_one_to_each(weights: list[float], total: int, absent: int) -> None:
    present = np.array([[True] * len(weights) + [False] * absent])
    padded = np.array([weights + [7.0] * absent])
    got = spread(np.array([total]), padded, present)
    assert got[0, present[0]].min() >= 1
    assert (got[0, ~present[0]] == 0).all()
    assert got.sum() == max(total, len(weights))
    # A dearer stage never gets fewer.
    order = np.argsort(padded[0, present[0]], kind="stable")
    ranked = got[0, present[0]][order]
    tied = np.diff(padded[0, present[0]][order]) == 0
    assert (np.diff(ranked)[~tied] >= 0).all()


@given(
    costs=st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=6),
    extra=st.integers(0, 200),
)
def test_largest_rate_uses_the_slots_up(costs: list[float], extra: int) -> None:
    cost, present = np.array([costs]), np.ones((1, len(costs)), dtype=bool)
    limit = np.array([len(costs) + extra])
    rate = largest_rate(cost, present, limit)
    assert slots_for(rate, cost, present).sum() <= limit[0]
    assert slots_for(rate * 1.001, cost, present).sum() > limit[0]
