from __future__ import annotations

from dataclasses import replace

import pytest

from intune.pipelines.allocation import Allocation
from intune.pipelines.metrics import PipelineStats, StageMeter, StageStats


def stats(**changes: float) -> PipelineStats:
    base = PipelineStats(
        stages=(StageStats(name="load"), StageStats(name="batch")),
        elapsed_s=0.0,
        epoch=0,
        batch=0,
        batches=0,
        rows=0,
        step_s=0.0,
        wait_s=0.0,
        memory_held=0,
        memory_peak=0,
        memory_limit=100,
        allocation=Allocation.shared(2),
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def test_time_of_slots_is_split_into_busy_starved_and_blocked() -> None:
    meter = StageMeter("load")
    meter.pass_time(2.0, 1, 3, shared=False, ready=False)
    meter.pass_time(4.0, 2, 3, shared=False, ready=True)
    read = meter.read(slots=3, running=2, queue=1)
    assert (read.busy_s, read.starved_s, read.blocked_s, read.slot_s) == (10.0, 4.0, 4.0, 18.0)
    assert read.occupancy == pytest.approx(10 / 18)
    assert (read.name, read.slots, read.running, read.queue) == ("load", 3, 2, 1)


def test_tasks_that_outlive_their_slots_count_as_slots() -> None:
    meter = StageMeter("load")
    meter.pass_time(1.0, 4, 2, shared=False, ready=True)
    read = meter.read(slots=2, running=4, queue=0)
    assert (read.busy_s, read.starved_s, read.blocked_s, read.slot_s) == (4.0, 0.0, 0.0, 4.0)


def test_a_shared_pool_offers_what_is_used_and_starves_no_stage() -> None:
    meter = StageMeter("load")
    meter.pass_time(5.0, 1, 8, shared=True, ready=True)
    read = meter.read(slots=8, running=1, queue=0)
    assert (read.busy_s, read.starved_s, read.blocked_s, read.slot_s) == (5.0, 0.0, 0.0, 5.0)


def test_occupancy_and_waiting_of_a_stage() -> None:
    stage = StageStats(name="load", busy_s=8.0, cpu_s=3.0, slot_s=10.0)
    assert stage.occupancy == 0.8
    assert stage.waiting_s == 5.0
    assert StageStats(name="load").occupancy == 0.0
    assert StageStats(name="load", busy_s=1.0, cpu_s=1.5).waiting_s == 0.0


def test_rates_and_shares_of_the_pipeline() -> None:
    read = stats(rows=500, elapsed_s=2.0, step_s=3.0, wait_s=1.0)
    assert read.rows_per_s == 250.0
    assert read.wait_share == 0.25
    assert stats().rows_per_s == 0.0
    assert stats().wait_share == 0.0
    assert read.stage("batch").name == "batch"


def test_between_two_readings_counters_are_subtracted_and_states_are_the_later_ones() -> None:
    earlier = replace(
        stats(
            elapsed_s=1.0, batches=2, rows=20, step_s=0.5, wait_s=0.25, redone=1, skipped=1, workers_lost=1
        ),
        memory_held=70,
        stages=(
            StageStats(name="load", tasks=4, rows=40, busy_s=1.0, queue=9, slots=1),
            StageStats(name="batch"),
        ),
    )
    later = replace(
        stats(elapsed_s=4.0, batches=5, rows=50, step_s=2.5, wait_s=0.5, redone=3, skipped=1, workers_lost=2),
        memory_held=30,
        memory_peak=90,
        epoch=1,
        batch=3,
        stages=(
            StageStats(name="load", tasks=10, rows=100, busy_s=3.0, cpu_s=1.0, queue=2, slots=5, retries=1),
            StageStats(name="batch", tasks=1),
        ),
    )
    between = later.since(earlier)
    assert (between.elapsed_s, between.batches, between.rows) == (3.0, 3, 30)
    assert (between.step_s, between.wait_s) == (2.0, 0.25)
    assert (between.redone, between.skipped, between.workers_lost) == (2, 0, 1)
    assert (between.memory_held, between.memory_peak, between.epoch, between.batch) == (30, 90, 1, 3)
    load = between.stage("load")
    assert (load.tasks, load.rows, load.busy_s, load.cpu_s, load.retries) == (6, 60, 2.0, 1.0, 1)
    assert (load.queue, load.slots) == (2, 5)
    assert between.stage("batch").tasks == 1


def test_what_two_meters_counted_can_be_added() -> None:
    one, other = StageMeter("load"), StageMeter("load")
    one.pass_time(2.0, 1, 3, shared=False, ready=False)
    other.pass_time(4.0, 2, 3, shared=False, ready=True)
    one.tasks, other.tasks, other.bytes_out = 1, 2, 7
    one.add(other)
    read = one.read(slots=3, running=0, queue=0)
    assert (read.tasks, read.bytes_out) == (3, 7)
    assert (read.busy_s, read.starved_s, read.blocked_s, read.slot_s) == (10.0, 4.0, 4.0, 18.0)
