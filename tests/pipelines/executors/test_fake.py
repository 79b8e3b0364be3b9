from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from intune.pipelines.allocation import Allocation
from intune.pipelines.errors import ConfigError, IntuneError
from intune.pipelines.executors.fake import Costs, FakeExecutor
from intune.pipelines.plan import Order, Plan, RowGroups, make_plan


def plan_of(blocks: int = 40, rows: int = 70_000) -> Plan:
    count = np.arange(blocks, dtype=np.int64)
    groups = RowGroups(file=count, group=count * 0, rows=count * 0 + rows, row_bytes=8.0)
    steps: Any = (("batch", "batch"), ("transform", "map"))
    return make_plan(groups, Order(steps=steps, batch_size=rows, drop_last=False))


EXACT = Costs(task_s=0.0, default_row_s=0.0, row_s={"load": 1e-4, "transform": 3e-4}, spread=0.0)


def seconds(allocation: Allocation, costs: Costs = EXACT, **options: Any) -> float:
    fake = FakeExecutor(plan_of(), allocation=allocation, costs=costs, workers=64, **options)
    assert [index for index, _ in fake] == list(range(40))
    return fake.now


def test_an_epoch_takes_what_its_slowest_stage_takes() -> None:
    """A load takes 7 s and a transform 21 s: 40 of them one after another, and the first load before."""
    slots = {"load": 1, "batch": 1, "transform": 1}
    assert seconds(Allocation.per_stage(slots)) == pytest.approx(40 * 21 + 7)
    assert seconds(Allocation.per_stage(slots | {"transform": 2})) == pytest.approx(20 * 21 + 2 * 7)
    assert seconds(Allocation.per_stage({"load": 2, "batch": 1, "transform": 20})) == pytest.approx(
        20 * 7 + 21
    )


def test_an_agent_sees_the_bottleneck_and_lifts_it() -> None:
    fake = FakeExecutor(
        plan_of(), allocation=Allocation.per_stage({"load": 2, "batch": 1, "transform": 1}), costs=EXACT
    )
    before = fake.stats()
    for index, _ in fake:
        if index == 9:
            stats = fake.stats().since(before)
            assert stats.stage("transform").occupancy > 0.9
            assert stats.stage("load").blocked_s > 0
            fake.resize({"transform": 6})
    assert fake.now < 12 * 21 + 30 * 7
    assert fake.stats().allocation.of("transform") == 6
    assert fake.stats().rows == 40 * 70_000


def test_a_slow_trainer_is_told_from_a_slow_pipeline() -> None:
    slow = FakeExecutor(plan_of(), allocation=Allocation.shared(8), costs=EXACT)
    for _ in slow:
        pass
    assert slow.stats().wait_share == 1.0
    steps = Costs(task_s=0.0, default_row_s=1e-6, spread=0.0, step_s=5.0)
    fast = FakeExecutor(plan_of(), allocation=Allocation.shared(8), costs=steps)
    for _ in fast:
        pass
    stats = fast.stats()
    assert stats.step_s == 200.0
    assert stats.wait_share < 0.01
    assert stats.elapsed_s == pytest.approx(stats.step_s + stats.wait_s)


def test_chance_is_seeded_and_what_goes_wrong_costs_time_only() -> None:
    bad = Costs(failures=0.2, deaths=0.05)
    runs = [seconds(Allocation.shared(4), bad, seed=seed) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    assert min(runs) > seconds(Allocation.shared(4), Costs(), seed=1)


def test_deaths_are_counted_and_what_they_cost_is_made_again() -> None:
    fake = FakeExecutor(
        plan_of(), allocation=Allocation.shared(4), costs=Costs(deaths=0.1), workers=2, seed=3
    )
    assert len(list(fake)) == 40
    stats = fake.stats()
    assert stats.workers_lost > 0
    assert stats.redone > 0
    assert sum(stage.tasks for stage in stats.stages) == 120 + stats.redone


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"deaths": 1.0}, "`deaths`=1.0 must be at least 0 and below 1"),
        ({"failures": -0.1}, "`failures`=-0.1 must be at least 0"),
        ({"spread": 2}, "`spread`=2 must be"),
        ({"step_s": -1}, "`step_s`=-1 must be seconds, 0 or more"),
        ({"task_s": float("inf")}, "`task_s`=inf must be seconds"),
    ],
)
def test_nonsensical_costs_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Costs(**change)


def test_a_pipeline_that_stands_still_is_an_error_not_an_endless_loop() -> None:
    fake = FakeExecutor(plan_of(), allocation=Allocation.shared(1))
    fake.scheduler.take = lambda now: None  # type: ignore[method-assign]
    with pytest.raises(IntuneError, match="deadlock: at 0 s no task runs and none may start"):
        fake.next_output()
