"""The bound on memory: never below the truth, of use after a few records, blind to what says nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intune.agents.memory import LATELY, WATCHED_RISK, MemoryRecord, in_use, queues_at_worst
from intune.envs.measurement import Measurement

Measured = Callable[..., Measurement]
BASE = 1e9


def took(
    measurement: Measured, slots: Any, sets: Any, *, queued: float = 0.0, base: float = BASE, **more: Any
) -> Measurement:
    """One job whose stages take `sets` bytes a slot."""
    slots = np.asarray(slots, dtype=np.float64)
    used = base + float(slots @ np.asarray(sets)) + queued
    return measurement(
        stages=len(slots), slots=slots, memory_used=used, memory_queued=queued, memory_base=base,
        busy=slots, block_bytes=0.0, queued_bytes=0.0, **more,
    )  # fmt: skip


def bound_of(record: MemoryRecord, slots: Any, now: Measurement, pool: float = 0.0) -> float:
    return float(record.bound(np.array([slots], dtype=float), np.array([pool]), now)[0])


def taught(
    measurement: Measured, seen: list[list[int]], sets: list[float]
) -> tuple[MemoryRecord, Measurement]:
    record = MemoryRecord(1, len(sets))
    now = took(measurement, seen[0], sets)
    for slots in seen:
        now = took(measurement, slots, sets)
        record.see(now)
    return record, now


SETS = st.floats(0.0, 1e9)


@st.composite
def jobs(draw: st.DrawFn) -> tuple[list[float], list[list[int]], list[int], bool]:
    stages = draw(st.integers(1, 5))
    slots = st.lists(st.integers(1, 40), min_size=stages, max_size=stages)
    sets = draw(st.lists(SETS, min_size=stages, max_size=stages))
    return sets, draw(st.lists(slots, min_size=1, max_size=12)), draw(slots), draw(st.booleans())


@settings(max_examples=50)
@given(job=jobs(), pool=st.integers(0, 40))
def test_the_bound_is_never_below_the_truth(
    measurement: Measured, job: tuple[list[float], list[list[int]], list[int], bool], pool: int
) -> None:
    sets, seen, wanted, known = job
    record = MemoryRecord(1, len(sets))
    for slots in seen:
        now = took(measurement, slots, sets)
        if not known:
            now = replace(now, memory_base=np.array([np.nan]))
        record.see(now)
    truth = BASE + float(np.array(wanted) @ np.array(sets))
    assert bound_of(record, wanted, now) >= truth * (1 - 1e-9)
    if pool:
        # At some moment all slots of a pool may be at work in the stage with the largest working set.
        assert bound_of(record, wanted, now, pool) >= (BASE + pool * max(sets)) * (1 - 1e-9)


def test_nothing_is_known_of_a_job_that_was_never_seen(measurement: Measured) -> None:
    record = MemoryRecord(1, 3)
    assert bound_of(record, [1, 1, 1], measurement()) == np.inf


def test_one_record_bounds_multiples_of_it(measurement: Measured) -> None:
    """Three times the slots of each stage take three times what the slots took, and more for noise."""
    record, now = taught(measurement, [[1, 1]], [1e9, 3e9])
    bound = bound_of(record, [3, 3], now)
    assert BASE + 12e9 <= bound <= BASE + 12e9 * 2.2
    # One stage alone may have been nearly all of it, nearly none is left for the other.
    assert bound_of(record, [3, 1], now) == pytest.approx(bound, rel=0.3)


def test_two_records_tell_what_a_stage_costs(measurement: Measured) -> None:
    """[2, 1] took 1 GB more than [1, 1], so the first stage's slots are cheap, whatever the second's cost."""
    sets = [1e9, 30e9]
    one, now = taught(measurement, [[1, 1]], sets)
    two, _ = taught(measurement, [[1, 1]] * 6 + [[2, 1]] * 6, sets)
    truth = BASE + 4e9 + 30e9
    assert bound_of(one, [4, 1], now) > 3 * truth
    assert truth < bound_of(two, [4, 1], now) < 1.6 * truth


def test_noise_is_learnt_and_never_forgotten_at_once(measurement: Measured) -> None:
    rng = np.random.default_rng(0)
    quiet, loud = MemoryRecord(1, 2), MemoryRecord(1, 2)
    quiet.see(took(measurement, [4, 4], [1e9, 1e9]))
    first = quiet.noise[0]
    for _ in range(60):
        quiet.see(took(measurement, [4, 4], [1e9, 1e9]))
        loud.see(took(measurement, [4, 4], np.array([1e9, 1e9]) * np.exp(0.3 * rng.standard_normal())))
    assert quiet.noise[0] < first / 2
    assert 0.2 < loud.noise[0] < 0.45
    now = took(measurement, [4, 4], [1e9, 1e9])
    assert bound_of(loud, [8, 8], now) > 1.5 * bound_of(quiet, [8, 8], now)


def test_noise_stays_below_the_bound(measurement: Measured) -> None:
    """Of 2,000 intervals with 8 % of noise, none takes more than what was bounded from four others."""
    rng = np.random.default_rng(1)
    sets = np.array([1e9, 2e9, 0.5e9])
    jobs, wanted = 500, np.array([5.0, 9.0, 7.0])
    record = MemoryRecord(jobs, 3)
    for slots in ([1, 1, 1], [2, 2, 2], [2, 4, 2], [3, 5, 4]):
        used = BASE + float(np.array(slots) @ sets) * np.exp(0.08 * rng.standard_normal(jobs))
        now = measurement(
            jobs=jobs, slots=slots, busy=slots, memory_used=used, memory_queued=0.0, memory_base=BASE,
            block_bytes=0.0, queued_bytes=0.0,
        )  # fmt: skip
        record.see(now)
    bound = record.bound(np.tile(wanted, (jobs, 1)), np.zeros(jobs), now)
    truth = BASE + float(wanted @ sets) * np.exp(0.08 * rng.standard_normal((jobs, 4)))
    assert (truth <= bound[:, None]).all()


def test_less_risk_is_a_higher_bound(measurement: Measured) -> None:
    now = took(measurement, [2, 2], [1e9, 1e9])
    bounds = []
    for risk in (0.1, 1e-3, 1e-6):
        record = MemoryRecord(1, 2, risk=risk)
        record.see(now)
        bounds.append(bound_of(record, [4, 4], now))
    assert BASE + 8e9 < bounds[0] < bounds[1] < bounds[2]


@pytest.mark.parametrize(
    "nothing",
    [
        {"memory_used": np.nan}, {"memory_queued": np.nan}, {"delivered": 0.0}, {"delivered": np.nan},
        {"killed": True}, {"memory_used": 0.0}, {"slots": np.nan},
    ],
)  # fmt: skip
def test_intervals_that_say_nothing_change_nothing(measurement: Measured, nothing: dict[str, Any]) -> None:
    """A job that was killed has one slot a stage in force, which is not what took the memory; one that stands
    still takes next to none."""
    record, now = taught(measurement, [[2, 1, 1], [4, 2, 2]], [1e9, 2e9, 3e9])
    before = bound_of(record, [5, 5, 5], now)
    for memory in (1e7, 1e12):
        record.see(measurement(**({"slots": 1.0, "memory_used": memory, "memory_base": 1e6} | nothing)))
    assert bound_of(record, [5, 5, 5], now) == before


def test_a_job_whose_rows_grow_is_known_anew(measurement: Measured) -> None:
    """What was seen first would promise too much room."""
    light, heavy = [1e8, 1e8], [1e9, 1e9]
    record = MemoryRecord(1, 2)
    for slots in range(1, 8):
        record.see(took(measurement, [slots, slots], light))
    for slots in range(1, 8):
        now = took(measurement, [slots + 7, slots], heavy)
        record.see(now)
    assert BASE + 21e9 <= bound_of(record, [14, 7], now) <= BASE + 42e9


def test_forget_is_a_new_job(measurement: Measured) -> None:
    now = measurement(jobs=2, stages=2, slots=[[1.0, 2.0], [3.0, 1.0]], pool=[0.0, 1.0])
    record, fresh = MemoryRecord(2, 2), MemoryRecord(2, 2)
    slots, pool = np.array([[3.0, 3.0]] * 2), np.zeros(2)
    record.see(now)
    record.bound(slots, pool, now)
    record.forget(np.array([0, 1]))
    np.testing.assert_array_equal(record.bound(slots, pool, now), np.inf)
    record.see(now)
    fresh.see(now)
    np.testing.assert_array_equal(record.bound(slots, pool, now), fresh.bound(slots, pool, now))
    np.testing.assert_array_equal(record.noise, fresh.noise)


def test_a_pool_in_force_takes_what_it_was_seen_to_take(measurement: Measured) -> None:
    record, now = taught(measurement, [[2, 2]], [1e9, 4e9])
    pooled = took(measurement, [8, 8], [0.0, 0.0], pool=8.0)
    pooled = replace(pooled, memory_used=np.array([BASE + 9e9]))
    record.see(pooled)
    running = bound_of(record, [8, 8], pooled, 8.0)
    assert BASE + 9e9 < running < BASE + 9e9 * (1 + 2.01 * record.law.margin[0])
    # Fewer slots take no more; one slot more may always be in the largest stage.
    assert bound_of(record, [4, 4], pooled, 4.0) <= running
    assert bound_of(record, [9, 9], pooled, 9.0) > bound_of(record, [8, 8], now, 8.0) * 0.99


def test_a_pool_may_return_for_what_it_took_while_that_is_fresh(measurement: Measured) -> None:
    """A change that was tried and failed is taken back; slots of their own in between say less of pools."""
    record = MemoryRecord(1, 2)
    pooled = took(measurement, [16, 16], [0.0, 0.0], pool=16.0)
    pooled = replace(pooled, busy=np.array([[1.0, 12.0]]), memory_used=np.array([BASE + 8e8]))
    for _ in range(3):
        record.see(pooled)
    own = took(measurement, [1, 13], [1e7, 6e7])
    for number in range(LATELY):
        record.see(own)
        back = bound_of(record, [16, 16], own, 16.0)
        assert back <= BASE + 8e8 * (1 + 2.01 * record.law.margin[0]), number
        assert bound_of(record, [17, 17], own, 17.0) > back
    record.see(own)
    assert bound_of(record, [16, 16], own, 16.0) >= BASE + 16 * 6e7, "all may be in the larger stage"


def test_a_pool_of_one_stage_tells_what_its_slots_take(measurement: Measured) -> None:
    """Those at work: nobody else can have taken it. One bad interval before does not stay the only one."""
    record = MemoryRecord(1, 1)
    record.see(took(measurement, [1], [2.5e8]))
    pooled = replace(took(measurement, [12], [1e8], pool=12.0), busy=np.array([[11.0]]))
    before = bound_of(record, [16], pooled)
    for _ in range(5):
        record.see(pooled)
    assert BASE + 16e8 < bound_of(record, [16], pooled) < 0.8 * before


def test_working_sets_are_not_negative(measurement: Measured) -> None:
    """With twice the slots at one stage of eight the memory is no more than twice what it was."""
    record, now = taught(measurement, [[1] * 8] * 8, [1e9] * 8)
    there = bound_of(record, [1] * 8, now) - BASE
    assert bound_of(record, [2] + [1] * 7, now) - BASE <= 2 * there * (1 + 1e-9)


def test_what_a_pool_took_before_it_was_killed_is_forgotten(measurement: Measured) -> None:
    record = MemoryRecord(1, 2)
    pooled = took(measurement, [4, 4], [0.0, 0.0], pool=4.0)
    pooled = replace(pooled, busy=np.array([[0.5, 3.0]]), memory_used=np.array([BASE + 4e8]))
    record.see(pooled)
    before = bound_of(record, [4, 4], pooled, 4.0)
    record.see(replace(pooled, killed=np.array([True])))
    assert bound_of(record, [4, 4], pooled, 4.0) > before


@pytest.mark.parametrize("watched", [False, True])
def test_a_smaller_pool_of_a_job_that_watches_its_memory_takes_less(
    measurement: Measured, watched: bool
) -> None:
    """Without, no pool but one slot could be sure of less, and a lowered limit left one slot of sixteen."""
    record = MemoryRecord(1, 2)
    pooled = took(measurement, [16, 16], [0.0, 0.0], pool=16.0, watched=watched)
    pooled = replace(pooled, busy=np.array([[0.1, 14.0]]), memory_used=np.array([BASE + 8e8]))
    for _ in range(4):
        record.see(pooled)
    full, half = (bound_of(record, [n, n], pooled, n) for n in (16.0, 8.0))
    assert full >= BASE + 8e8
    assert (half < BASE + 0.7 * 8e8) == watched
    assert half >= BASE + 4e8


def test_less_is_left_free_by_a_job_that_watches_its_memory(measurement: Measured) -> None:
    bounds = []
    for watched in (False, True):
        record = MemoryRecord(1, 2)
        for more in (1.0, 1.2, 0.9, 1.1):
            now = took(measurement, [2, 6], [1e8 * more, 1e8 * more], watched=watched)
            record.see(now)
        bounds.append(bound_of(record, [2, 6], now))
    assert BASE + 1.2 * 8e8 < bounds[1] < bounds[0]


@pytest.mark.parametrize(("limit", "less"), [(1e12, True), (5e9, False)])
def test_tasks_that_take_a_part_of_all_memory_are_not_seen_coming(
    measurement: Measured, limit: float, less: bool
) -> None:
    """A few that begin together take the last of it before anyone looks."""
    bounds = []
    for watched in (False, True):
        record = MemoryRecord(1, 2, risk=WATCHED_RISK)  # so that the doubt alone differs
        now = replace(took(measurement, [1, 1], [1e9, 1e9], watched=watched), memory_limit=np.array([limit]))
        record.see(now)
        bounds.append(bound_of(record, [1, 4], now))
    assert (bounds[1] < bounds[0]) == less


def test_of_pools_nobody_knows_whose_slots_take_the_memory(measurement: Measured) -> None:
    bounds = []
    for pool in (0.0, 4.0):
        record = MemoryRecord(1, 2)
        now = took(measurement, [2, 2], [1e8, 1e8], watched=True)
        now = replace(now, pool=np.array([pool]), busy=np.array([[2.0, 2.0]]), memory_limit=np.array([1e12]))
        record.see(now)
        bounds.append(bound_of(record, [1, 6], now))
    assert bounds[0] < bounds[1]


def test_what_slots_left_behind_is_not_held_against_those_that_stayed(measurement: Measured) -> None:
    """The most that was held in the first interval with fewer slots is what the slots before held."""
    record = MemoryRecord(1, 1)
    for _ in range(3):
        record.see(took(measurement, [10], [1e8], watched=True))
    before = bound_of(record, [5], took(measurement, [5], [1e8], watched=True))
    record.see(replace(took(measurement, [5], [1e8], watched=True), memory_used=np.array([BASE + 1e9])))
    assert bound_of(record, [5], took(measurement, [5], [1e8], watched=True)) == before
    record.see(took(measurement, [5], [1e8], watched=True))
    assert bound_of(record, [5], took(measurement, [5], [1e8], watched=True)) < before


def test_a_job_that_only_ever_had_a_pool_is_bounded_by_what_that_took(measurement: Measured) -> None:
    """Loaders begin with a pool: with no bound at all nothing else would ever be tried."""
    record = MemoryRecord(1, 2)
    busy = np.array([[0.2, 1.8]])
    now = took(measurement, [2, 2], [0.0, 0.0], pool=2.0)
    now = replace(now, busy=busy, memory_used=np.array([BASE + 1.8e8]))
    for _ in range(3):
        record.see(now)
    most = [bound_of(record, [pool, pool], now, pool) for pool in (2.0, 4.0, 8.0)]
    assert BASE + 2 * 1e8 < most[0] < most[1] < most[2] < BASE + 8 * 5e8
    # The first interval in which every stage has its own slots says more.
    record.see(took(measurement, [1, 1], [1e6, 1e6]))
    assert bound_of(record, [1, 1], now) < BASE + 1e8


def test_many_allocations_at_once_are_bounded_as_one_by_one(measurement: Measured) -> None:
    rng = np.random.default_rng(3)
    jobs, width, many = 40, 4, 19
    record = MemoryRecord(jobs, width)
    now = measurement(jobs=jobs, stages=width)
    for _ in range(9):
        now = measurement(
            jobs=jobs, stages=width, slots=rng.integers(1, 9, (jobs, width)), memory_used=rng.uniform(1e9, 5e9, jobs),
            pool=rng.choice([0.0, 1.0, 5.0], jobs), busy=1.0,
        )  # fmt: skip
        record.see(now)
    slots = rng.integers(1, 20, (jobs, many, width)).astype(float)
    pool = rng.choice([0.0, 0.0, 1.0, 7.0], (jobs, many))
    together = record.bounds(slots, pool, now)
    for k in range(many):
        np.testing.assert_allclose(together[:, k], record.bound(slots[:, k], pool[:, k], now))


def test_queues_are_counted_full(measurement: Measured) -> None:
    """Half full with 3 MB at two slots: 6 MB when full, 12 MB at four slots."""
    now = measurement(
        stages=2, slots=2.0, queued_bytes=[[3e6, 0.0]], queue_fill=[[0.5, 0.0]], block_bytes=5e6
    )
    slots = np.array([[[4.0, 2.0], [2.0, 2.0]]])
    # Of the second nothing is seen waiting: a block for every slot.
    worst = queues_at_worst(now, slots, np.zeros((1, 2)), np.zeros((1, 2)))
    np.testing.assert_allclose(worst, [[12e6 + 10e6, 6e6 + 10e6]])


def test_room_of_queues_is_remembered_while_they_are_empty(measurement: Measured) -> None:
    """A job that starts again has empty queues: they fill up as they did before it ran out of memory."""
    record = MemoryRecord(1, 2)
    full = measurement(stages=2, queued_bytes=2e9, queue_fill=0.5, memory_queued=4e9, memory_used=5e9)
    empty = measurement(stages=2, queued_bytes=0.0, queue_fill=0.0, memory_queued=0.0, memory_used=1e9)
    record.see(full)
    assert bound_of(record, [2, 2], full) > 8e9
    record.see(replace(empty, killed=np.array([True])))
    record.see(empty)
    assert bound_of(record, [2, 2], empty) > 8e9
    record.forget(0)
    record.see(empty)
    assert bound_of(record, [2, 2], empty) < 8e9


def test_slots_in_use_of_a_pool_are_those_at_work(measurement: Measured) -> None:
    now = measurement(
        stages=2, jobs=2, slots=[[4.0, 4.0], [6.0, 6.0]], pool=[0.0, 6.0], busy=[[1.2, 2.0], [1.2, 9.0]]
    )
    np.testing.assert_array_equal(in_use(now), [[4.0, 4.0], [2.0, 6.0]])
