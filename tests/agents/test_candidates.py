"""Candidates: all feasible, what the twin and the memory record say of each, and which may bring something."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from intune.agents.candidates import (
    MARGINS,
    NAMES,
    fitting_rate,
    out_of_pools,
    promising,
    propose,
    reaching,
)
from intune.agents.memory import MemoryRecord
from intune.agents.twin import GRID, Twin
from intune.envs.jobs import Jobs
from intune.envs.measurement import Measurement
from intune.envs.simulator import Simulator

Measured = Callable[..., Measurement]


def known(measured: Measurement, looks: int = 5) -> tuple[Twin, MemoryRecord]:
    twin, record = Twin(len(measured), measured.stages), MemoryRecord(len(measured), measured.stages)
    for _ in range(looks):
        twin.see(measured)
        record.see(measured)
    return twin, record


def roomy(measurement: Measured, **values: Any) -> Measurement:
    """Stages that take 1, 2 and 4 ms of a slot a row; memory without end."""
    given = {
        "slots": [[2.0, 2.0, 2.0]], "rate": 500.0, "delivered": 500.0, "busy": [[0.5, 1.0, 2.0]],
        "cpu": [[0.05, 0.1, 0.2]], "cpus_used": 0.35, "memory_limit": 1e15, "step": 1e-4, "cpus": 16.0,
    } | values  # fmt: skip
    return measurement(stages=3, **given)


def test_one_name_a_candidate(measurement: Measured) -> None:
    measured = roomy(measurement)
    options = propose(*known(measured), measured)
    assert options.slots.shape == (1, len(NAMES), 3)
    assert options.pool.shape == options.rate.shape == options.memory.shape == (1, len(NAMES))
    np.testing.assert_array_equal(options.slots[0, 0], measured.slots[0])
    assert options.pool[0, 0] == 0


def test_the_plan_is_in_proportion_to_what_stages_cost(measurement: Measured) -> None:
    measured = roomy(measurement, slot_limit=28.0)
    options = propose(*known(measured, 30), measured)
    plan = options.slots[0, NAMES.index("plan x1")]
    assert plan[2] > plan[1] > plan[0] >= 1
    assert plan[2] / plan[0] == pytest.approx(4.0, rel=0.35)
    assert plan.sum() <= 28


def test_no_more_is_planned_than_the_trainer_takes(measurement: Measured) -> None:
    measured = roomy(measurement, step=1 / 1000.0)
    options = propose(*known(measured, 30), measured)
    assert options.wished[0] == pytest.approx(1000.0)
    plan = options.slots[0, NAMES.index("plan x1")]
    assert 4 <= plan[2] <= 6
    slack = options.slots[0, NAMES.index("plan x1.8")]
    assert (slack >= plan).all()
    assert slack.sum() > plan.sum()


def test_margins_ask_for_more_and_more(measurement: Measured) -> None:
    measured = roomy(measurement, step=1 / 1000.0)
    options = propose(*known(measured), measured)
    totals = [options.slots[0, NAMES.index(f"plan x{margin:g}")].sum() for margin in MARGINS]
    assert totals == sorted(totals)


def test_within_slot_limit_whatever_it_is(measurement: Measured) -> None:
    for limit in (3.0, 5.0, 9.0, 30.0):
        measured = roomy(
            measurement, slots=1.0, busy=[[0.25, 0.5, 1.0]], rate=250.0, delivered=250.0, slot_limit=limit
        )
        options = propose(*known(measured), measured)
        per_stage = options.pool[0] == 0
        assert (options.slots[0].sum(axis=1)[per_stage] <= limit).all()
        assert (options.pool[0] <= limit).all()
        assert (options.slots[0] >= 1).all()
        np.testing.assert_array_equal(options.slots, np.rint(options.slots))


def test_named_moves_do_what_they_say(measurement: Measured) -> None:
    measured = roomy(measurement, slots=[[4.0, 4.0, 8.0]])
    options = propose(*known(measured), measured)

    def slots(name: str) -> list[float]:
        return options.slots[0, NAMES.index(name)].tolist()

    # Four slots of 2 ms make 2,000 rows/s, eight of 4 ms as many: the first of equals or nearly so, one of the two.
    raised = np.array(slots("raise the slowest")) - measured.slots[0]
    assert raised.sum() == 1
    assert raised[0] == 0
    assert (
        sum(slots("raise the slowest by a quarter")) == 16 + np.ceil(measured.slots[0][raised > 0] / 4).item()
    )
    # 500 rows/s take one half, one and two slots; what is not certain may be a little faster than it seems.
    load, batch, transform = slots("give back")
    assert (load, batch in (1, 2), transform in (2, 3)) == (1, True, True)


def test_memory_holds_the_plan_down_until_more_is_known(measurement: Measured) -> None:
    """3 slots take 900 MB: at worst, with 2.6 GB, hardly any stage may have a second slot."""
    tight = roomy(
        measurement, slots=1.0, busy=[[0.25, 0.5, 1.0]], rate=250.0, delivered=250.0,
        memory_used=1e9, memory_base=1e8, memory_limit=2.6e9, memory_queued=0.0, queued_bytes=0.0, block_bytes=0.0,
    )  # fmt: skip
    twin, record = known(tight)
    options = propose(twin, record, tight)
    assert options.target[0] < 0.5 * options.wished[0]
    plan = options.memory[0, NAMES.index("plan x1")]
    assert plan <= 2.6e9
    # Second slots of the slow stages take 10 MB: then there is room for more.
    for seen in ([[1.0, 1.0, 2.0]], [[1.0, 2.0, 1.0]]) * 6:
        record.see(replace(tight, slots=np.array(seen), memory_used=np.array([1.01e9])))
    after = propose(twin, record, tight)
    assert after.target[0] > options.target[0]


def test_a_pool_is_planned_for_all_slots_where_there_are_few(measurement: Measured) -> None:
    """Eight stages of which one waits, and eight slots: of their own all have one, of a pool seven wait."""
    measured = measurement(
        stages=8, slots=1.0, rate=500.0, delivered=500.0, busy=[[1.0] + 7 * [0.01]], cpu=0.001, cpus_used=0.01,
        cpus=1.0, slot_limit=8.0, memory_limit=1e15, step=1e-4,
    )  # fmt: skip
    options = propose(*known(measured, 30), measured)
    pools = [NAMES.index(name) for name in NAMES if name.startswith("pool")]
    assert options.pool[0, pools].max() == 8
    assert options.rate[0, pools].max() > 4 * options.target[0]
    assert options.target[0] < options.together[0] <= options.wished[0]
    tight = replace(measured, memory_limit=np.array([6e9]))
    options = propose(*known(tight, 30), tight)
    fits = options.memory[0, pools] <= 6e9
    assert fits.any()
    assert 1 < options.pool[0, pools][fits].max() < 8


def test_reaching_gives_the_fewest_slots_or_the_best_number() -> None:
    table = np.array([[GRID * 100.0, np.minimum(GRID, 5.0) * 100.0]])
    present = np.array([[True, True]])
    np.testing.assert_array_equal(reaching(table, present, np.array([300.0])), [[3.0, 3.0]])
    np.testing.assert_array_equal(reaching(table, present, np.array([800.0])), [[8.0, 5.0]])
    np.testing.assert_array_equal(reaching(table, np.array([[True, False]]), np.array([300.0])), [[3.0, 0.0]])


def test_fitting_rate_is_the_highest_that_fits(measurement: Measured) -> None:
    """Against trying every rate: 10 slots for stages of 1, 2 and 4 ms."""
    measured = roomy(measurement, slot_limit=10.0)
    table = np.stack([GRID * 1000.0, GRID * 500.0, GRID * 250.0])[None]
    _, record = known(measured)
    found = fitting_rate(table, record, measured, np.array([1e5]), rounds=20)[0]
    fits = [
        rate
        for rate in np.geomspace(200, 1e5, 4000)
        if np.ceil(rate / np.array([1000.0, 500.0, 250.0])).sum() <= 10
    ]
    assert found == pytest.approx(max(fits), rel=0.01)


def test_predictions_hold_in_the_simulator() -> None:
    """Of a job without chance, the twin's rates of all plans per stage are within a quarter of what they bring."""
    jobs = Jobs.of(
        stages=3, cpu=[[1e-4, 3e-4, 5e-5]], wait=[[3e-4, 0.0, 0.0]], cpus=8.0, memory=1e12, block_rows=500.0
    )
    simulator = Simulator(jobs)
    twin, record = Twin(1, 3), MemoryRecord(1, 3)
    measured = simulator.run()
    for slots in ([1, 1, 1], [2, 2, 1], [4, 4, 2]):
        simulator.allocate(np.array([slots], dtype=float))
        for _ in range(3):
            measured = simulator.run()
            twin.see(measured)
            record.see(measured)
    options = propose(twin, record, measured)
    for name in ("keep", "plan x1", "plan x1.2", "raise the slowest", "half way"):
        k = NAMES.index(name)
        simulator.allocate(options.slots[:, k])
        for _ in range(4):
            brought = simulator.run().delivered[0]
        assert options.rate[0, k] == pytest.approx(brought, rel=0.25), name


def test_where_the_trainer_does_not_wait_only_fewer_slots_are_promising(measurement: Measured) -> None:
    waits = roomy(measurement, waiting=0.8)
    assert promising(propose(*known(waits, 30), waits), waits).all()
    busy = roomy(measurement, waiting=0.0)
    options = propose(*known(busy, 30), busy)
    allowed = promising(options, busy)[0]
    assert allowed[0]
    total = np.where(options.pool[0] > 0, options.pool[0], options.slots[0].sum(axis=1))
    assert not allowed[total > total[0]].any()


@pytest.mark.parametrize(("used", "more"), [(15.9, False), (14.0, True), (99.0, False), (np.nan, True)])
def test_where_the_processors_do_all_they_can_only_fewer_slots_are_promising(
    measurement: Measured, used: float, more: bool
) -> None:
    measured = roomy(measurement, waiting=0.8, cpus_used=used)
    options = propose(*known(roomy(measurement, waiting=0.8), 30), measured)
    total = np.where(options.pool[0] > 0, options.pool[0], options.slots[0].sum(axis=1))
    assert promising(options, measured)[0][total > total[0]].any() == more


def test_what_no_longer_fits_may_be_left_for_anything(measurement: Measured) -> None:
    measured = roomy(measurement, waiting=0.0, memory_limit=1.0)
    assert promising(propose(*known(measured, 30), measured), measured).all()


def test_where_nothing_was_measured_of_the_trainer_staying_is_still_promising(measurement: Measured) -> None:
    measured = roomy(measurement, waiting=np.nan)
    assert promising(propose(*known(measured, 30), measured), measured)[0, 0]


def test_a_pool_that_memory_holds_back_is_left_for_slots_that_tell_what_they_take(
    measurement: Measured,
) -> None:
    """The record of a pool says nothing of whose slots took it, so that none ever grows that is not left."""
    given = {
        "slots": 3.0, "pool": 3.0, "memory_used": 1e9, "memory_base": 0.0, "memory_queued": 0.0, "block_bytes": 0.0,
        "queued_bytes": 0.0,
    }  # fmt: skip

    def left(limit: float, due: bool, **values: Any) -> np.ndarray:
        measured = roomy(measurement, **(given | {"memory_limit": limit} | values))
        options = propose(*known(measured), measured)
        out = out_of_pools(options, measured, np.array([due]))[0]
        assert not out[options.pool[0] > 0].any()
        fits = options.memory[0] <= limit
        if out.any():
            more = options.rate[0] > 1.03 * options.rate[0, 0]
            assert (more & ~fits).any()
            # Those that promise more, if there are any that fit.
            assert not (out & ~fits).any() or not fits[options.pool[0] == 0].any()
            if not due:
                assert (more & fits)[out].all()
        return out

    assert not left(1e15, True).any()
    assert left(2.2e9, False).any()
    assert not left(1.3e9, False).any()
    assert left(1.3e9, True).any()
    assert not left(1.3e9, True, watched=True).any()
    assert not left(1.3e9, True, pool=0.0).any()
    assert not left(1.3e9, True, waiting=0.0).any()
