"""The twin: recovers how stages scale, tells stumbles from changes, and never says NaN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from intune.agents.twin import GRID, Twin, slower
from intune.envs.measurement import Measurement
from intune.pipelines.allocation import MOST_SLOTS

Measured = Callable[..., Measurement]
TRIES = (1, 2, 4, 7, 12)


def interval(measurement: Measured, slots: float, per_row: float, **more: Any) -> Measurement:
    """One stage always at work, whose slots take `per_row` seconds of time each."""
    rate = slots / per_row
    return measurement(stages=1, slots=slots, busy=slots, rate=rate, cpu=0.1, delivered=rate, **more)


def learnt(measurement: Measured, law: Callable[[float], float], noise: float = 0.0, looks: int = 3) -> Twin:
    """After `looks` intervals at each of `TRIES` slots, a row taking `law` seconds."""
    rng = np.random.default_rng(0)
    twin = Twin(1, 1)
    for slots in TRIES:
        for _ in range(looks):
            twin.see(interval(measurement, slots, law(slots) * np.exp(noise * rng.standard_normal())))
    return twin


def capacity(twin: Twin, slots: float) -> float:
    return float(twin.capacity(np.array([[slots]]))[0, 0])


@pytest.mark.parametrize(("sigma", "kappa"), [(0.0, 0.0), (0.06, 0.0), (0.3, 0.0), (0.01, 3e-4), (0.02, 0.0)])
def test_scaling_laws_are_recovered(measurement: Measured, sigma: float, kappa: float) -> None:
    """Rates with numbers of slots never tried are within 12 % (one of the laws lies between two of the grid)."""

    def law(n: float) -> float:
        return 1e-3 * (1 + sigma * (n - 1) + kappa * n * (n - 1))

    twin = learnt(measurement, law, noise=0.03)
    for slots in (3.0, 9.0, 16.0):
        assert capacity(twin, slots) == pytest.approx(slots / law(slots), rel=0.12)


def test_a_hard_limit_is_recovered(measurement: Measured) -> None:
    """A disk that is busy with four slots gives no more to twelve, nor to forty."""
    twin = learnt(measurement, lambda n: 1e-3 * max(1.0, n / 4), noise=0.02)
    for slots in (4.0, 16.0, 40.0):
        assert capacity(twin, slots) == pytest.approx(4000.0, rel=0.12)
    assert capacity(twin, 2.0) == pytest.approx(2000.0, rel=0.1)


def test_slots_that_harm_are_told_from_a_job_that_has_become_slower(measurement: Measured) -> None:
    """Of a stage whose slots thrash, three intervals show that it delivered most with few."""

    def law(n: float) -> float:
        return 1e-4 * (1 + 0.15 * n * (n - 1))

    twin = Twin(1, 1)
    for slots in (1.0, 1.0, 14.0, 18.0, 32.0):
        twin.see(interval(measurement, slots, law(slots)))
    most = GRID[twin.table()[0, 0].argmax()]
    assert most <= 6
    assert capacity(twin, 2.0) > 5 * capacity(twin, 32.0)


def test_doubt_grows_with_the_distance_and_falls_with_looks(measurement: Measured) -> None:
    twin = Twin(1, 1)
    twin.see(interval(measurement, 2.0, 1e-3))
    once = [float(twin.deviation(np.array([[slots]]))[0, 0]) for slots in (2.0, 8.0, 64.0)]
    assert once[0] < once[1] < once[2]
    for _ in range(10):
        twin.see(interval(measurement, 8.0, 1e-3))
    assert float(twin.deviation(np.array([[64.0]]))[0, 0]) < once[2]


def test_a_stumble_is_passed_over_and_a_change_believed(measurement: Measured) -> None:
    twin = Twin(1, 1)
    for _ in range(12):
        twin.see(interval(measurement, 4.0, 1e-3))
    before = capacity(twin, 4.0)
    twin.see(interval(measurement, 4.0, 4e-3))
    assert capacity(twin, 4.0) == pytest.approx(before, rel=0.05)
    # The next one is as it was: it was a stumble.
    twin.see(interval(measurement, 4.0, 1e-3))
    assert capacity(twin, 4.0) == pytest.approx(before, rel=0.05)
    # Twice in the same direction: the data has changed.
    for _ in range(2):
        twin.see(interval(measurement, 4.0, 4e-3))
    assert capacity(twin, 4.0) < 0.55 * before
    for _ in range(3):
        twin.see(interval(measurement, 4.0, 4e-3))
    assert capacity(twin, 4.0) == pytest.approx(before / 4, rel=0.1)


def test_short_of_processors_little_is_learnt(measurement: Measured) -> None:
    """What a row takes longer because others have the processors is not the stage's own."""
    free, crowded = Twin(1, 1), Twin(1, 1)
    for _ in range(10):
        free.see(interval(measurement, 4.0, 1e-3))
        crowded.see(interval(measurement, 4.0, 1e-3))
    for _ in range(3):
        free.see(interval(measurement, 4.0, 1.3e-3, cpus_used=2.0))
        crowded.see(interval(measurement, 4.0, 1.3e-3, cpus_used=16.0))
    assert capacity(crowded, 4.0) > capacity(free, 4.0)
    assert capacity(crowded, 4.0) == pytest.approx(4000.0, rel=0.03)


def test_processors_and_trainer_are_a_ceiling(measurement: Measured) -> None:
    twin = Twin(1, 2)
    # 3 processors for 1,000 rows/s in the stages, 1 in the trainer, of 16.
    now = measurement(stages=2, cpu=[[2.0, 1.0]], cpus_used=4.0, cpus=16.0, step=1e-6)
    twin.see(now)
    assert twin.cpu_per_row(now.present)[0] == pytest.approx(4e-3)
    assert twin.ceiling(now)[0] == pytest.approx(4000.0)
    slow = measurement(stages=2, cpu=[[2.0, 1.0]], cpus_used=4.0, step=1e-3)
    assert twin.ceiling(slow)[0] == pytest.approx(1000.0)


def test_processors_that_are_lost_to_switching_are_no_lower_ceiling(measurement: Measured) -> None:
    """A millisecond of a processor a row; sixty slots on eight processors take ten times that."""
    twin = Twin(1, 1)
    given = {"stages": 1, "step": 1e-9, "cpus": 8.0}
    few = measurement(slots=4.0, busy=4.0, cpu=4.0, rate=4e3, delivered=4e3, cpus_used=4.0, **given)
    many = measurement(slots=60.0, busy=60.0, cpu=8.0, rate=800.0, delivered=800.0, cpus_used=8.0, **given)
    for measured in (few, few, *4 * [many]):
        twin.see(measured)
    assert twin.ceiling(many)[0] > 2 * 800.0
    # What is delivered is possible, in any case.
    better = measurement(slots=60.0, busy=60.0, cpu=8.0, rate=9e3, delivered=9e3, cpus_used=8.0, **given)
    assert twin.ceiling(better)[0] >= 9e3


def test_what_was_never_seen_is_fast(measurement: Measured) -> None:
    twin = Twin(1, 1)
    assert capacity(twin, 1.0) > 1e100
    assert np.isfinite(twin.table()).all()


def test_forget_is_a_new_job(measurement: Measured) -> None:
    now = measurement(jobs=3, stages=2, busy=[[1.0, 2.0]] * 3)
    used, fresh = Twin(3, 2), Twin(3, 2)
    for _ in range(3):
        used.see(measurement(jobs=3, stages=2, rate=77.0))
    before = used.table().copy()
    used.forget(np.array([0, 2]))
    used.see(now)
    fresh.see(now)
    np.testing.assert_array_equal(used.table()[[0, 2]], fresh.table()[[0, 2]])
    np.testing.assert_array_equal(used.best[[0, 2]], fresh.best[[0, 2]])
    assert (used.table()[1] != fresh.table()[1]).any()
    assert (used.table()[1] != before[1]).any()


def test_unsound_intervals_teach_nothing(measurement: Measured) -> None:
    twin = Twin(1, 3)
    twin.see(measurement())
    before = twin.table().copy(), twin.cpu.copy(), twin.best.copy()
    for bad in ({"delivered": 0.0}, {"rate": np.nan}, {"busy": [-1.0, 1.0, 1.0]}, {"interval": np.nan}):
        twin.see(measurement(**bad))
    for now, then in zip((twin.table(), twin.cpu, twin.best), before, strict=True):
        np.testing.assert_array_equal(now, then)


NUMBER = st.one_of(st.floats(1e-9, 1e12), st.sampled_from([0.0, np.nan, np.inf, -1.0]))


@settings(max_examples=40, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(rows=st.lists(st.tuples(*[NUMBER] * 6), min_size=1, max_size=6))
def test_it_never_says_nan(measurement: Measured, rows: list[tuple[float, ...]]) -> None:
    twin = Twin(1, 2)
    for slots, busy, rate, cpu, delivered, used in rows:
        twin.see(
            measurement(stages=2, slots=[[slots, 2.0]], busy=[[busy, 1.0]], rate=[[rate, 10.0]], cpu=cpu,
                        delivered=delivered, cpus_used=used)
        )  # fmt: skip
    slots = np.array([[[1.0, 3.5], [1e6, 40.0]]])
    for made in (twin.capacity(slots), twin.deviation(slots), twin.time(slots), twin.table()):
        assert not np.isnan(made).any()
        assert (made >= 0).all()
    np.testing.assert_allclose(twin.belief().sum(axis=2), 1.0)
    assert np.isfinite(twin.ceiling(measurement(stages=2))).all()


def test_capacity_between_the_grids_numbers_is_linear(measurement: Measured) -> None:
    twin = learnt(measurement, lambda n: 1e-3 * (1 + 0.03 * (n - 1)))
    low, high = GRID[40], GRID[41]
    middle = (capacity(twin, low) + capacity(twin, high)) / 2
    assert capacity(twin, (low + high) / 2) == pytest.approx(middle)
    several = twin.capacity(np.array([[[low], [high]]]))
    np.testing.assert_allclose(several[0, :, 0], [capacity(twin, low), capacity(twin, high)])
    assert capacity(twin, 1e9) == capacity(twin, GRID[-1])


def test_one_slot_is_never_slowed_down() -> None:
    np.testing.assert_array_equal(slower(np.array([1.0])), 1.0)
    grown = slower(np.arange(1.0, 200.0))
    assert (np.diff(grown, axis=0) >= 0).all()


def test_plans_reach_as_far_as_allocations_do() -> None:
    assert GRID[-1] == MOST_SLOTS
    assert (np.diff(GRID) > 0).all()
    assert (GRID[1:] / GRID[:-1])[32:].max() < 1.12
